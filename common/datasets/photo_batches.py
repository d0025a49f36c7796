"""Endless batches of random crops of photos, to train on.

The batch of a step follows from the seed and the step alone, whatever the workers and wherever the iteration
began: a run that is resumed goes on as if it had never stopped.
"""

import contextlib
import functools
import gc
import itertools
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from common.cli import UserError
from common.datasets.epochs import epoch_order
from common.datasets.images import size_by_shorter
from common.datasets.photos import HR_SIDE, SHORTER, Source, Unreadable

MEMORY = 3e9  # bytes: a set whose decoded images take less is kept in memory; Imagenette takes 2.5e9
POOL = 2048  # decoded images in memory, about 0.5e9 bytes, of a set that is larger than that
USES = 16  # crops from each image of the pool before another takes its place

Decoded = np.ndarray | Unreadable
"""An image with its shorter side at 256, uint8 [h,w,3], or why there is none."""
Images = Callable[[int], Iterator[np.ndarray]]
"""From the number of a crop: the image that it is cut from, and those of all crops after it, without end."""


class WorkerKilled(UserError, RuntimeError):
    """A process that decodes was killed."""

    exit_code = 1  # none of the user's making


def batches(
    source: Source, *, size: int = HR_SIDE, batch: int, seed: int, workers: int | None = None
) -> Callable[[int], Iterator[Tensor]]:
    """Endless batches of random crops, turned and mirrored at random, of images in shuffled epochs.

    Args:
        source: the images; for one that cannot be read, the next one that can be stands in.
        size: side of the crops, in pixels, 256 at most.
        batch: crops per batch.
        workers: processes that decode; 0 is none, None is one per processor, 8 at most.

    Returns:
        `start(first)`, an iterator over the batches of the steps `first`, `first + 1`, ... without end; each
        is uint8 [batch,3,size,size] in channels-last memory.

    Raises:
        UserError: no image can be read, or a worker was killed.
    """
    if size > SHORTER:
        raise ValueError(f"crops of {size} pixels do not fit into a shorter side of {SHORTER}")
    if workers is None:
        # a container may be given fewer processors than the machine has
        ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        workers = max(1, min(8, len(ours) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    fits = len(source) * 3 * SHORTER * SHORTER * 4 / 3 <= MEMORY
    images = (keep_all if fits else keep_some)(source, seed, workers)

    def start(first: int) -> Iterator[Tensor]:
        arriving = images(first * batch)
        for step in itertools.count(first):
            # the first of six numbers is not used: with it crops are those of earlier versions
            draws = np.random.default_rng([seed, 1, step]).random((batch, 6))[:, 1:]
            crops = np.empty((batch, size, size, 3), np.uint8)
            for crop, (y, x, mirror, flip, transpose) in zip(crops, draws, strict=True):
                image = next(arriving)  # [h,w,3]
                top, left = int(y * (image.shape[0] - size + 1)), int(x * (image.shape[1] - size + 1))
                part = image[top : top + size, left : left + size]
                part = part[:: -1 if flip < 0.5 else 1, :: -1 if mirror < 0.5 else 1]
                if transpose < 0.5:
                    part = part.transpose(1, 0, 2)
                for channel in range(3):  # a turned image is copied four times as fast channel by channel
                    crop[..., channel] = part[..., channel]
            yield torch.from_numpy(crops).permute(0, 3, 1, 2)  # [batch,3,size,size]

    return start


def keep_all(source: Source, seed: int, workers: int) -> Images:
    """All images, decoded once, now, and kept in memory."""
    arriving = in_order(source, range(len(source)), workers)
    images = list(tqdm(arriving, "reading photos", len(source), disable=None))
    for image in images:
        if isinstance(image, Unreadable):
            source.skip(image)

    def start(first: int) -> Iterator[np.ndarray]:
        for crop in itertools.count(first):
            yield source.next_readable(shuffled(crop, len(source), seed), images.__getitem__)[1]

    next(start(0))  # says at once if none can be read
    return start


def keep_some(source: Source, seed: int, workers: int) -> Images:
    """A pool of decoded images, cropped in another order in every pass, while workers decode the next.

    In a pass over the pool each image is cropped once. After it the oldest make room for the next ones of
    the shuffled epochs, so each is cropped 16 times, elsewhere and turned otherwise, about a pass apart. The
    price: training sees fewer images. What it buys: to decode an image takes processors about as long as to
    train on a crop of it, and few have none to spare. This is data echoing before augmentation (Choi et al.
    2019, "Faster Neural Network Training with Data Echoing", section 2).
    """
    renewed = max(1, min(POOL, len(source)) // USES)  # images that come after each pass
    size = renewed * USES
    kept: dict[int, np.ndarray] = {}  # by their position in the row of epochs

    def start(first: int) -> Iterator[np.ndarray]:
        nonlocal kept
        # The pool is filled now, unless an iteration before has left the images that are needed
        oldest = first // size * renewed
        needed = range(oldest, oldest + size + renewed) if oldest in kept else ()
        images = kept = {position: kept[position] for position in needed if position in kept}
        arrived = oldest + len(images)
        row = (shuffled(position, len(source), seed) for position in itertools.count(arrived))
        arriving = in_order(source, row, workers)

        for crop in itertools.count(first):
            number, within = divmod(crop, size)
            oldest = number * renewed
            if within == 0:
                for position in range(oldest - renewed, oldest):
                    images.pop(position, None)

            # One crop in 16 brings an image: after the first step none waits for many
            missing = range(arrived, size + crop // USES + 1)
            for position in tqdm(missing, "reading photos", disable=None) if len(missing) > 1 else missing:
                image = next(arriving)
                if isinstance(image, Unreadable):
                    i = shuffled(position, len(source), seed)
                    image = source.next_readable(i, functools.partial(decode, source))[1]
                images[position] = image
            arrived = max(arrived, missing.stop)
            yield images[oldest + int(epoch_order(size, seed, 2, number)[within])]

    return start


def shuffled(position: int, count: int, seed: int) -> int:
    """The number at a position of an endless row of epochs, each of them 0 to count - 1 in another order."""
    return int(epoch_order(count, seed, 0, position // count)[position % count])


def decode(source: Source, i: int) -> Decoded:
    """Image i of the source; of a panorama the central part, since all of it would fill the memory."""
    decoded: Decoded = source.read(source.items[i], _scale)
    return decoded


def _scale(image: Image.Image) -> np.ndarray:
    width, height = (min(length, 2 * min(image.size)) for length in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = torch.from_numpy(np.array(image)[top : top + height, left : left + width])  # [h,w,3]
    width, height = size_by_shorter(width, height, SHORTER)
    # equal to `resize_shorter` up to rounding: torch has vector code for it
    resized = F.interpolate(pixels.permute(2, 0, 1)[None], (height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def in_order(source: Source, order: Iterable[int], workers: int) -> Iterator[Decoded]:
    """The images of those numbers, decoded by worker processes a little ahead of time.

    Each worker has a pipe of its own: if one is killed while it writes, the others do not wait for its lock.

    Raises:
        WorkerKilled: as it says.
    """
    if not workers:
        yield from (decode(source, i) for i in order)
        return
    pipes: list[Connection] = []
    processes: list[Process] = []
    try:
        for _ in range(workers):
            pipe, theirs = Pipe()
            pipes.append(pipe)
            processes.append(Process(target=_work, args=(source, theirs, pipes), daemon=True))
            processes[-1].start()
            theirs.close()
        numbers, waiting = iter(order), deque[Connection]()
        for pipe, i in zip(pipes * 2, numbers, strict=False):
            pipe.send(i)
            waiting.append(pipe)
        while waiting:
            pipe = waiting.popleft()
            image = pipe.recv()
            for i in itertools.islice(numbers, 1):
                pipe.send(i)
                waiting.append(pipe)
            if isinstance(image, Exception) and not isinstance(image, Unreadable):
                raise image
            yield image
    except (EOFError, OSError):
        cause = "a worker that reads photos was killed, perhaps for memory"
        remedy = "close other programs, then start again; --resume goes on from the last checkpoint"
        raise WorkerKilled(f"{cause}; {remedy}") from None
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _work(source: Source, pipe: Connection, other_ends: list[Connection]) -> None:
    """Decodes until the main process ends this one, or is gone, however it went: then the pipe breaks."""
    for other in other_ends:  # a pipe breaks when nobody has its other end
        other.close()
    gc.freeze()  # what it has not yet closed is not to be closed here
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # torchrun signals the group of the main process, which is to answer
    torch.set_num_threads(1)  # a forked process has none of torch's other threads
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in {"SIGINT", "SIGHUP"} & {*dir(signal)}:  # these are for the main process to answer
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        while True:
            i = pipe.recv()
            try:
                image: Decoded | Exception = decode(source, i)
            except Exception as error:
                image = error
            pipe.send(image)
