"""Endless batches of random crops of photos, to train on.

The batch of a step follows from the seed and the step alone, whatever the workers and wherever the iteration
began: a run that is resumed goes on as if it had never stopped.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common.datasets.epochs import epoch_order
from common.datasets.images import size_by_shorter
from common.datasets.photos import HR_SIDE, SHORTER, Source, Unreadable

MEMORY = 3e9
"""Bytes: a set whose decoded images take less is kept in memory; Imagenette takes 2.5e9."""
POOL = 2048
"""Decoded images in memory, about 0.5e9 bytes, of a set that is larger than that."""
USES = 16
"""Crops from each image of the pool before another takes its place."""

Decoded = np.ndarray | Unreadable
"""An image with its shorter side at 256, uint8 [h,w,3], or why there is none."""


def batches(
    source: Source, *, size: int = HR_SIDE, batch: int, seed: int, workers: int | None = None
) -> Callable[[int], Iterator[Tensor]]:
    """Endless batches of random crops, turned and mirrored at random, of images in shuffled epochs.

    A set that fits into memory is decoded once, now, by worker processes; else see `Pool`.

    Args:
        source: the images; those that cannot be read are counted in `source.skipped`, and the next one that
            can be stands in.
        size: side of the crops, in pixels.
        batch: crops per batch.
        workers: processes that decode; 0 is none, None is one per processor, 8 at most.

    Returns:
        `start(first)`, an iterator over the batches of the steps `first`, `first + 1`, ... without end; each
        is uint8 [batch,3,size,size] in channels-last memory.

    Raises:
        UserError: no image can be read.
        ValueError: crops larger than the images.
    """
    if size > SHORTER:
        raise ValueError(f"crops of {size} pixels do not fit into a shorter side of {SHORTER}")
    if workers is None:
        # a container may be given fewer processors than the machine has
        ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        workers = min(8, len(ours))
    fits = len(source) * 3 * SHORTER * SHORTER * 4 / 3 <= MEMORY
    images = (Kept if fits else Pool)(source, seed, workers)

    def start(first: int) -> Iterator[Tensor]:
        arriving = images.start(first * batch)
        for step in itertools.count(first):
            # the first of six numbers is not used: with it crops are those of earlier versions
            draws = np.random.default_rng([seed, 1, step]).random((batch, 6))[:, 1:]
            crops = np.empty((batch, size, size, 3), np.uint8)
            for crop, where, image in zip(crops, draws, itertools.islice(arriving, batch), strict=True):
                _crop(image, where, crop)
            yield torch.from_numpy(crops).permute(0, 3, 1, 2)  # [batch,3,size,size]

    return start


def _crop(image: np.ndarray, where: Sequence[float], out: np.ndarray) -> None:
    """Fills `out` [size,size,3] from `image` [h,w,3]; `where` are five numbers in [0,1)."""
    y, x, mirror, flip, transpose = where
    size = len(out)
    top, left = int(y * (image.shape[0] - size + 1)), int(x * (image.shape[1] - size + 1))
    crop = image[top : top + size, left : left + size]
    crop = crop[:: -1 if flip < 0.5 else 1, :: -1 if mirror < 0.5 else 1]
    if transpose < 0.5:
        crop = crop.transpose(1, 0, 2)
    for channel in range(3):  # numpy copies a turned image four times as fast channel by channel
        out[..., channel] = crop[..., channel]


# ------------------------------------------------------------------------- which image comes next


@dataclass
class Kept:
    """All images decoded once, in memory."""

    source: Source
    seed: int
    workers: int

    def __post_init__(self) -> None:
        arriving = Decoder(self.source).in_order(range(len(self.source)), self.workers)
        self.images = list(tqdm(arriving, "reading photos", len(self.source), disable=None))
        for image in self.images:
            if isinstance(image, Unreadable):
                self.source.skip(image)
        next(self.start(0))  # says at once if none can be read

    def start(self, first: int) -> Iterator[np.ndarray]:
        """The images of crop `first`, `first + 1`, ..., each uint8 [h,w,3]."""
        for crop in itertools.count(first):
            yield next_readable(self.source, self.images, shuffled(crop, len(self.source), self.seed))


@dataclass
class Pool:
    """Some of the images decoded, cropped in another order in every pass, while workers decode the next.

    In a pass over the pool each image is cropped once. After it the oldest make room for the next ones of
    the shuffled epochs, so each is cropped 16 times, elsewhere and turned otherwise, about a pass apart. The
    price: training sees fewer images. What it buys: to decode an image takes processors about as long as to
    train on a crop of it, and few have none to spare. This is data echoing before augmentation (Choi et al.
    2019, "Faster Neural Network Training with Data Echoing", section 2).
    """

    source: Source
    seed: int
    workers: int

    def __post_init__(self) -> None:
        self.decoder = Decoder(self.source)
        self.renewed = max(1, min(POOL, len(self.source)) // USES)  # images that come after each pass
        self.size = self.renewed * USES
        self.images: dict[int, np.ndarray] = {}  # by their position in the row of epochs

    def start(self, first: int) -> Iterator[np.ndarray]:
        """The images of crop `first`, `first + 1`, ..., each uint8 [h,w,3].

        At first the pool is filled, unless an iteration before has left the images that it needs.
        """
        oldest = first // self.size * self.renewed
        needed = range(oldest, oldest + self.size + self.renewed) if oldest in self.images else ()
        images = self.images = {
            position: self.images[position] for position in needed if position in self.images
        }
        arrived = oldest + len(images)
        arriving = self.decoder.in_order(map(self.image_at, itertools.count(arrived)), self.workers)

        for crop in itertools.count(first):
            number, within = divmod(crop, self.size)
            oldest = number * self.renewed
            if within == 0:
                for position in range(oldest - self.renewed, oldest):
                    images.pop(position, None)

            # One crop in 16 brings an image: after the first step none waits for many
            missing = range(arrived, self.size + crop // USES + 1)
            for position in tqdm(missing, "reading photos", disable=None) if len(missing) > 1 else missing:
                image = next(arriving)
                if isinstance(image, Unreadable):
                    image = next_readable(self.source, self.decoder, self.image_at(position))
                images[position] = image
            arrived = max(arrived, missing.stop)
            yield images[oldest + int(epoch_order(self.size, self.seed, 2, number)[within])]

    def image_at(self, position: int) -> int:
        """Which image stands at a position of the row of epochs."""
        return shuffled(position, len(self.source), self.seed)


def shuffled(position: int, count: int, seed: int) -> int:
    """The number at a position of an endless row of epochs, each of them 0 to count - 1 in another order."""
    return int(epoch_order(count, seed, 0, position // count)[position % count])


def next_readable(source: Source, decoded: "Decoder | list[Decoded]", i: int) -> np.ndarray:
    """Image i, else the next one that can be read; those that cannot be are counted in `source.skipped`.

    Raises:
        UserError: none can be read.
    """
    for tried in range(min(len(source), 1000)):
        image = decoded[(i + tried) % len(source)]
        if not isinstance(image, Unreadable):
            return image
        source.skip(image)
    raise source.nothing_readable()


# -------------------------------------------------------------------------------------- decoding


@dataclass
class Decoder(Dataset[Decoded]):
    """The images of a source, each decoded when it is asked for."""

    source: Source

    def __getitem__(self, i: int) -> Decoded:
        try:
            image = self.source.open(self.source.items[i])
        except Unreadable as unreadable:
            return unreadable
        # a panorama counts by its central part: it would fill the memory that many photos need
        width, height = (min(length, 2 * min(image.size)) for length in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        pixels = torch.from_numpy(np.array(image)[top : top + height, left : left + width])  # [h,w,3]
        width, height = size_by_shorter(width, height, SHORTER)
        # equal to `resize_shorter` up to rounding: torch has vector code for it
        channels = pixels.permute(2, 0, 1)[None]  # [1,3,h,w]
        resized = F.interpolate(channels, (height, width), mode="bicubic", antialias=True)
        return resized[0].permute(1, 2, 0).contiguous().numpy()

    def in_order(self, order: Iterable[int], workers: int) -> Iterator[Decoded]:
        """The images of those numbers, decoded by worker processes.

        Workers send NumPy arrays through a pipe: tensors would go through /dev/shm, which containers keep
        small.
        """
        yield from DataLoader(
            self,
            batch_size=None,
            sampler=order,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_ignore_interrupts,
            # of its own: else DataLoader draws from the generator that the run's results depend on
            generator=torch.Generator(),
        )


def _as_it_is(image: Any) -> Any:
    return image


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C is the main process's to answer; it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
