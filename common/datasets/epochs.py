"""The order in which training sees its data: epochs, each shuffled, that follow from a seed alone."""

import itertools
from collections.abc import Iterator
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)  # a million take some milliseconds to shuffle
def epoch_order(count: int, *seed: int) -> np.ndarray:
    r"""The numbers 0 to count - 1 shuffled, int64 [count]; the same for the same seed, as \(seed, epoch\)."""
    order = np.random.default_rng(seed).permutation(count)
    order.setflags(write=False)
    return order


def shuffled_batches(count: int, size: int, seed: int, first: int = 0) -> Iterator[np.ndarray]:
    r"""Without end the batches of step `first`, `first + 1`, ..., each int64 \[size\]: a step always has one.

    The last, incomplete batch of an epoch is left out.
    """
    per_epoch = max(1, count // size)
    for step in itertools.count(first):
        start = step % per_epoch * size
        yield epoch_order(count, seed, step // per_epoch)[start : start + size]
