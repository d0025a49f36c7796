"""Texts as numbers: tokens, the features of each token, their vocabulary, and batches to train on."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

TOKEN = re.compile(r"\w+|[^\w\s]")

Encoded = tuple[np.ndarray, np.ndarray]
"""One text: the numbers of all features of all its tokens, int64 [F]; how many each token has, int64 [T]."""
Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Several texts, one after the other; all int64: numbers of features [F]; where each token's begin [D]; which
of these tokens stands at each position [T]; tokens of each text [N]. No padding: all are real tokens."""


def tokenize(text: str) -> list[str]:
    """Words, numbers, and each other visible character by itself."""
    return TOKEN.findall(text)


def length(tokens: Sequence[str]) -> int:
    """Characters of a text, without spaces; 1 where there are none, since its logarithm is taken."""
    return max(1, sum(map(len, tokens)))


def features(token: str) -> list[str]:
    """What describes a token: the word, with each digit as 0; its pieces of 2 to 5 letters; its shape.

    Pieces tell something of words that were never seen whole (Bojanowski et al. 2017, "Enriching Word Vectors
    with Subword Information", section 3.2); `<` and `>` mark where a word begins and ends.
    """
    lower = token.lower()
    marked = f"<{lower}>"
    pieces = [marked[i : i + n] for n in (2, 3, 4, 5) for i in range(len(marked) - n + 1)]
    if token.isdigit():
        shape = f"{min(len(token), 12)} digits"
    elif token.isupper() and len(token) > 1:
        shape = "CAPITALS"
    elif token[0].isupper():
        shape = "Capital"
    else:  # other signs count as lower case
        shape = "mixed" if any(map(str.isdigit, token)) else "lower"
    return ["word " + re.sub(r"\d", "0", lower), *pieces, f"shape {shape}"]


class Vocabulary:
    """The features that occur often enough in the training texts, numbered from 1."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        of = {name: number for number, name in enumerate(self.names, start=1)}

        @lru_cache(
            maxsize=20_000
        )  # most tokens are among a few thousand; memory stays flat over endless input
        def numbers(token: str) -> bytes:  # of int64: thousands of small arrays would scatter the memory
            return np.array([of[name] for name in features(token) if name in of], np.int64).tobytes()

        self._numbers = numbers

    @classmethod
    def from_texts(cls, texts: Iterable[str], least: int = 3) -> "Vocabulary":
        """The vocabulary of texts to train on: features that occur at least `least` times in them."""
        counts: Counter[str] = Counter()
        for token, count in Counter(token for text in texts for token in tokenize(text)).items():
            for name in features(token):
                counts[name] += count
        return cls(sorted(name for name, count in counts.items() if count >= least))

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, tokens: Sequence[str]) -> Encoded:
        """A text's tokens as numbers. A token of which no feature is in the vocabulary has none."""
        numbers = [self._numbers(token) for token in tokens]
        counts = np.array([len(of_token) // 8 for of_token in numbers], np.int64)
        return np.frombuffer(bytearray(b"".join(numbers)), np.int64), counts

    def batch(self, texts: Sequence[Sequence[str]]) -> Batch:
        """The tokens of several texts. A token that occurs again is not looked up, nor summed, again."""
        distinct: dict[str, int] = {}
        which = [distinct.setdefault(token, len(distinct)) for tokens in texts for token in tokens]
        return _batch(*self.encode(list(distinct)), which, map(len, texts))


def _batch(numbers: np.ndarray, counts: np.ndarray, which: Iterable[int], lengths: Iterable[int]) -> Batch:
    starts = torch.from_numpy(np.cumsum(counts) - counts)
    return torch.from_numpy(numbers), starts, torch.tensor(list(which)), torch.tensor(list(lengths))


def collate(texts: Sequence[Encoded]) -> Batch:
    """Puts texts, each of at least one token, one after the other; each position has a token of its own."""
    numbers, counts = map(np.concatenate, zip(*texts, strict=True))  # [F], [T]
    return _batch(numbers, counts, range(len(counts)), [len(counts) for _, counts in texts])


def drop(text: Encoded, rng: np.random.Generator, tokens: float, features: float) -> Encoded:
    """Leaves out shares, 0..1, of tokens and of the features of those that stay; one token always stays."""
    numbers, counts = text
    stays = rng.random(len(counts)) >= tokens  # [T]
    if not stays.any():
        stays[:] = True
    numbers, counts = numbers[np.repeat(stays, counts)], counts[stays]
    visible = rng.random(len(numbers)) >= features  # [F]
    token = np.repeat(np.arange(len(counts)), counts)  # [F]
    return numbers[visible], np.bincount(token[visible], minlength=len(counts))


def steps_per_epoch(parts: Sequence[np.ndarray], size: int) -> int:
    """Steps in which each of `parts` is seen once in batches of `size`; the shortest one decides."""
    return min(math.ceil(len(part) / size) for part in parts)


def ensemble_batches(
    texts: Sequence[Encoded],
    labels: np.ndarray,
    parts: Sequence[np.ndarray],
    size: int,
    seed: int,
    token_dropout: float,
    feature_dropout: float,
) -> Callable[[int], Iterator[list[tuple[Batch, Tensor]]]]:
    """For a first step, batches without end: a list with (batch, labels float [N]) for each model.

    Texts of a batch have similar lengths, since a batch takes as many steps in time as its longest text:
    each epoch is shuffled, sorted within every 8 batches, and the batches are shuffled. `parts` are for each
    model the indices of its training texts. Shares of each text are left out, others in each epoch.
    """
    per_epoch = steps_per_epoch(parts, size)

    def stream(model: int, first: int) -> Iterator[tuple[Batch, Tensor]]:
        for epoch in itertools.count(first // per_epoch):
            rng = np.random.default_rng((seed, model, epoch))
            order = rng.permutation(parts[model])
            chunks = [order[i : i + 8 * size] for i in range(0, len(order), 8 * size)]
            sort = [sorted(chunk, key=lambda i: len(texts[i][1])) for chunk in chunks]
            batches = [chunk[i : i + size] for chunk in sort for i in range(0, len(chunk), size)]
            shuffled = [batches[i] for i in rng.permutation(len(batches))[:per_epoch]]
            for step in range(max(0, first - epoch * per_epoch), per_epoch):
                rng = np.random.default_rng((seed, model, epoch, step))
                batch = [drop(texts[i], rng, token_dropout, feature_dropout) for i in shuffled[step]]
                yield collate(batch), torch.from_numpy(labels[shuffled[step]].astype(np.float32))

    return lambda first: map(list, zip(*(stream(model, first) for model in range(len(parts))), strict=True))
