"""Photos for upscaling: found, decoded, split, and served as endless batches of random crops.

A picture is uint8 RGB all the way to the batch. The high-resolution picture is 224x224; its low-resolution
twin is 64x64 and is made by `shrink`, here and nowhere else.
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from PIL.ExifTags import Base
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from common import runs
from common.datasets import imagenet
from common.datasets.dead_leaves import dead_leaves

LOW, HIGH = 64, 224
SHORTER = 256
"""The score's pictures are cut from photos whose shorter side is this long."""
MEMORY = 3e9
"""Bytes: a set whose decoded pictures take less is kept in memory; Imagenette takes 2.5e9."""
WATCHED = 32
MADE = 1500
"""Dead leaves pictures to train on: some ten seconds of work for two cores."""
TOO_SMALL = f"a side under {HIGH}"

Small = Literal["scale up", "leave out"]
"""What to do with a photo that has a side under 224."""


class Unreadable(Exception):
    """A file that no picture can be got from."""

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = str(path), why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


def shrink(high: Tensor) -> Tensor:
    """The low-resolution twin, 2/7 of the size: torchvision's default resize (bilinear, antialiased), 8 bits.

    Three times as fast on channels-last memory, which `batches` gives, as on contiguous; same result.

    Args:
        high: uint8 [N,3,h,w] or [3,h,w], both sides multiples of 7.

    Returns:
        uint8 [N,3,h*2/7,w*2/7] or [3,h*2/7,w*2/7].

    Raises:
        ValueError: not uint8, or a side that is no multiple of 7.
    """
    height, width = high.shape[-2:]
    if high.dtype != torch.uint8 or height % 7 or width % 7:
        raise ValueError(
            f"shrink takes uint8 with sides in multiples of 7, not {high.dtype} {height}x{width}"
        )
    return TF.resize(high, [height * 2 // 7, width * 2 // 7], antialias=True)


def read(path: str | Path) -> Image.Image:
    """Decodes any photo to 8-bit RGB, upright.

    Transparent parts become white. 16-bit greyscale is scaled to 8 bits, where Pillow alone would clip it.
    The EXIF orientation is followed. (None of ImageNet's validation photos that the score is taken on is
    turned, so programs that ignore the orientation see the same.)

    Raises:
        Unreadable: missing, truncated, corrupt, no picture at all, or too large to be one.
    """
    try:
        with Image.open(path) as file:
            file.load()
            image = _upright(file)
        return _to_rgb(image)
    except FileNotFoundError:
        raise Unreadable(path, "no such file") from None
    except Exception as error:  # a decoder raises whatever a damaged file leads it into
        raise Unreadable(path, str(error) or type(error).__name__) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if max(image.size) > 200 * min(image.size):  # scaled up it would fill the memory
        raise ValueError(f"{image.width}x{image.height} is a line, not a photo")
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.float64)
        return Image.fromarray((levels / 257).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Follows EXIF's orientation. Pillow's own function rewrites the other tags too: broken ones stop it."""
    turn = Image.Transpose
    turns = [
        turn.FLIP_LEFT_RIGHT,
        turn.ROTATE_180,
        turn.FLIP_TOP_BOTTOM,
        turn.TRANSPOSE,
        turn.ROTATE_270,
        turn.TRANSVERSE,
        turn.ROTATE_90,
    ]
    orientation = image.getexif().get(Base.Orientation, 1)  # 1 is upright, 2 to 8 are as listed
    return image.transpose(turns[orientation - 2]) if orientation in range(2, 9) else image


def resize_shorter(image: Image.Image, side: int = SHORTER) -> Image.Image:
    """The whole picture with its shorter side at `side` pixels (Pillow bicubic), up or down."""
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def standard(image: Image.Image) -> Tensor:
    """The crop that is scored: shorter side to 256, then the central 224x224.

    Returns:
        uint8 [3,224,224].
    """
    pixels = np.asarray(resize_shorter(image))  # [h,w,3]
    top, left = (pixels.shape[0] - HIGH) // 2, (pixels.shape[1] - HIGH) // 2
    return torch.from_numpy(pixels[top : top + HIGH, left : left + HIGH].copy()).permute(2, 0, 1)


@dataclass
class Source:
    """Pictures that are made when asked for: from files, or from numbers."""

    items: Sequence[Any]
    """What `open` makes a picture from: paths, or seeds."""
    open: Callable[[Any], Image.Image] = read
    """A function of a module, since worker processes get it pickled."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Of each picture that could not be used so far: why. Filled while pictures are read."""

    def __len__(self) -> int:
        return len(self.items)

    def first(self, count: int) -> "Source":
        """Only the first `count` pictures, for a short run."""
        return Source(self.items[:count], self.open)

    def skip(self, name: str, why: str) -> None:
        """Counts a picture that cannot be used, and names it on screen the first time."""
        if name not in self.skipped:
            self.skipped[name] = why
            if why != TOO_SMALL:  # one in fourteen of ImageNet's: a count will do
                tqdm.write(f"skipped {name}: {why}", file=sys.stderr)

    def standard_pictures(self) -> tuple[Tensor, list[str]]:
        """The crops that are scored, of every picture that can be read.

        Returns:
            uint8 [N,3,224,224], and the name of each.

        Raises:
            Refused: not one can be read.
        """
        pictures, names = [], []
        for item in self.items:
            try:
                pictures.append(standard(self.open(item)))
                names.append(str(item))
            except Unreadable as unreadable:
                self.skip(str(item), unreadable.why)
        if not pictures:
            raise self.refusal()
        return torch.stack(pictures), names

    def refusal(self) -> runs.Refused:
        """For a source of which nothing can be used."""
        name, why = next(iter(self.skipped.items()), ("nothing", "the list is empty"))
        return runs.Refused(
            f"none of {len(self)} pictures can be used, such as {name}: {why}; name other photos by --data"
        )


@dataclass(frozen=True)
class Photos:
    """A set of pictures in three parts that share none."""

    name: str
    """For the screen and the results file."""
    builtin: bool
    train: Source
    watch: Source
    """Split off from the training pictures, at most 32: for curves and choices during training."""
    test: Source
    """For the figure that is reported, and nothing else."""
    note: str = ""
    """What screen and captions must say about these pictures; the first line alone is for captions."""


# --------------------------------------------------------------------------------------- finding


def find(data: str, *, limit: int = 100, download: bool = True) -> Photos:
    """The pictures that `--data` names.

    `auto` is ImageNet in `$IMAGENET_DIR`, `data/ImageNet` or `/data/datasets/ImageNet`, else `imagenette`,
    else `builtin`, and then the note says why.

    Args:
        data: `auto`; `imagenette`, downloaded into `data/`; `builtin`, dead leaves for training and the two
            photos of scikit-learn for the test; or a folder: in ImageNet's layout, one that holds such a
            folder as `ImageNet/`, or any folder of photos, of which about a tenth, chosen by a hash of the
            path, is kept for the test.
        limit: at most so many test pictures, evenly spaced over the sorted list.
        download: whether `auto` may fetch Imagenette, 341 MB.

    Raises:
        Refused: no such folder, too few photos in it, or Imagenette cannot be had.
    """
    downloads = Path("data")
    if data == "builtin":
        return _builtin()
    if data == "imagenette":
        return _folder(imagenet.imagenette(downloads), limit)
    if data != "auto":
        return _folder(Path(data).expanduser(), limit)
    if named := os.environ.get("IMAGENET_DIR"):  # named on purpose: if it is wrong, say so
        return _folder(Path(named).expanduser(), limit)
    for usual in (downloads / "ImageNet", Path("/data/datasets/ImageNet")):
        if usual.is_dir():
            return _folder(usual, limit)
    nothing = f"\nWhy: no photos in $IMAGENET_DIR, {downloads / 'ImageNet'}, {usual}."
    if not download and not (downloads / "imagenette2-320").is_dir():
        return _builtin(f"{nothing} A trial downloads none.")
    try:
        return _folder(imagenet.imagenette(downloads), limit)
    except runs.Refused as refusal:
        return _builtin(f"{nothing} {refusal}.")


def _builtin(why: str = "") -> Photos:
    return Photos(
        "dead leaves, tested on scikit-learn's photos",
        builtin=True,
        train=Source(range(WATCHED, WATCHED + MADE), dead_leaves),
        watch=Source(range(WATCHED), dead_leaves),
        test=Source([f"{name} {part}" for name in SKLEARN_PHOTOS for part in PARTS], _sklearn_photo),
        note="Built-in: dead leaves to train on, ten crops of scikit-learn's two photos to be scored on."
        + why,
    )


SKLEARN_PHOTOS = ("china.jpg", "flower.jpg")
PARTS = ("top left", "top right", "bottom left", "bottom right", "whole")


def _sklearn_photo(which: str) -> Image.Image:
    """A photo of scikit-learn's (640x427), or 256 pixels of one corner, unscaled: `china.jpg top left`."""
    from sklearn.datasets import load_sample_image  # takes a second, which other pictures need not wait for

    name, part = which.split(" ", 1)
    image = Image.fromarray(load_sample_image(name))
    if part == "whole":
        return image
    left = image.width - SHORTER if "right" in part else 0
    top = image.height - SHORTER if "bottom" in part else 0
    return image.crop((left, top, left + SHORTER, top + SHORTER))


def _folder(root: Path, limit: int) -> Photos:
    remedy = "name a folder of photos, or `auto`, `imagenette`, `builtin`"
    if not root.is_dir():
        raise runs.Refused(f"--data {root} {'is a file' if root.exists() else 'does not exist'}; {remedy}")
    for place in (root, root / "ImageNet"):
        if (place / "train").is_dir() and (place / "val").is_dir():
            train, test = imagenet.listing(place / "train"), imagenet.listing(place / "val")
            if len(train) > 1 and len(test):
                return _photos(place.resolve().name, train, test, limit)
    found = imagenet.listing(root)
    if len(found) < 3:
        kinds = " ".join(sorted(imagenet.PHOTO_SUFFIXES))
        raise runs.Refused(f"--data {root} holds {len(found)} photos ({kinds}), it takes 3; {remedy}")
    hashes = found.hashes()
    # a share of the range of hashes, so that photos added later move none from one part to the other
    tested = hashes < 2**64 // 10
    if not tested.any() or tested.sum() > len(found) - 2:  # only among very few photos
        tested = hashes == hashes.min()
    return _photos(
        f"photos in {root.resolve().name}",
        found.take(np.flatnonzero(~tested)),
        found.take(np.flatnonzero(tested)),
        limit,
    )


def _photos(name: str, train: imagenet.Listing, test: imagenet.Listing, limit: int) -> Photos:
    watched = np.sort(np.argsort(train.hashes(), kind="stable")[: min(WATCHED, max(1, len(train) // 20))])
    note = ""
    if len(test) > limit:
        note = f"Scored on {limit} of {len(test):,} test photos, evenly spaced over the sorted list."
        test = test.take(np.linspace(0, len(test) - 1, limit).round().astype(int))
    rest = np.delete(np.arange(len(train)), watched)
    return Photos(name, False, Source(train.take(rest)), Source(train.take(watched)), Source(test), note)


# ------------------------------------------------------------------------------ training batches


def batches(
    source: Source,
    *,
    size: int = HIGH,
    batch: int,
    seed: int,
    workers: int | None = None,
    scales: tuple[int, ...] = (SHORTER,),
    small: Small = "scale up",
) -> Callable[[int], Iterator[Tensor]]:
    """Endless batches of random crops, turned and mirrored at random.

    The batch of a step follows from `seed` and the step alone, whatever the workers and wherever the
    iteration began: a run that is resumed goes on as if it had never stopped. All pictures come before any
    comes again. A set that fits into memory is decoded once, now, by worker processes; a larger one streams
    through them.

    Args:
        source: the pictures; those that cannot be used are counted in `source.skipped`, and the next one that
            can stands in.
        size: side of the crops, in pixels.
        batch: crops per batch.
        workers: processes that decode; 0 is none, None is one per processor, 8 at most.
        scales: before the crop the shorter side is scaled to one of these, chosen at random.
        small: whether photos with a side under 224 are scaled up or left out.

    Returns:
        `start(first)`, an iterator over the batches of the steps `first`, `first + 1`, ... without end; each
        is uint8 [batch,3,size,size] in channels-last memory.

    Raises:
        Refused: no picture can be used.
        ValueError: crops larger than the smallest scale.
    """
    if size > min(scales):
        raise ValueError(f"crops of {size} pixels do not fit into a shorter side of {min(scales)}")
    if workers is None:
        # a container may be given fewer processors than the machine has
        ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        workers = min(8, len(ours))
    decoded = Decoded(source.open, source.items, scales, small)
    pictures: Decoded | Kept = decoded
    if len(source) * sum(3 * side * side * 4 / 3 for side in scales) <= MEMORY:
        pictures = _keep(source, decoded, workers)
        workers = 0
    crops = Crops(pictures, len(source), size, batch, seed, len(scales))

    def start(first: int) -> Iterator[Tensor]:
        for pixels, skipped in _in_order(crops, itertools.count(first), workers):
            for name, why in skipped:
                source.skip(name, why)
            if pixels is None:
                raise source.refusal()
            yield torch.from_numpy(pixels).permute(0, 3, 1, 2)  # [batch,3,size,size]

    return start


Decoding = tuple[list[np.ndarray] | None, str]
"""A picture as uint8 [h,w,3] at every scale and "", or None and why there is none."""


@dataclass
class Decoded(Dataset[Decoding]):
    """Picture i, decoded when it is asked for."""

    open: Callable[[Any], Image.Image]
    items: Sequence[Any]
    scales: tuple[int, ...]
    small: Small

    def __getitem__(self, i: int) -> Decoding:
        try:
            image = self.open(self.items[i])
        except Unreadable as unreadable:
            return None, unreadable.why
        if self.small == "leave out" and min(image.size) < HIGH:
            return None, TOO_SMALL
        # a panorama counts by its central part: it would fill the memory that many photos need
        shorter = min(image.size)
        width, height = (min(length, 2 * shorter) for length in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
        return [np.asarray(resize_shorter(image, side)) for side in self.scales], ""


@dataclass
class Kept(Dataset[Decoding]):
    """Picture i, decoded before. Of one that cannot be used the skipping is told when it is decoded."""

    pictures: list[Decoding]
    items: Sequence[Any]

    def __getitem__(self, i: int) -> Decoding:
        return self.pictures[i]


def _keep(source: Source, decoded: Decoded, workers: int) -> Kept:
    pictures = []
    order = range(len(source))
    arriving = _in_order(decoded, order, workers)
    for i, picture in zip(order, tqdm(arriving, "reading pictures", len(source), disable=None), strict=True):
        if picture[0] is None:
            source.skip(str(source.items[i]), picture[1])
        pictures.append(picture)
    if all(picture is None for picture, _ in pictures):
        raise source.refusal()
    return Kept(pictures, source.items)


@dataclass
class Crops(Dataset[tuple[np.ndarray | None, list[tuple[str, str]]]]):
    """The batch of a step: uint8 [batch,size,size,3], and the pictures that were skipped for it."""

    pictures: Decoded | Kept
    count: int
    size: int
    batch: int
    seed: int
    scales: int
    _order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def picture_at(self, place: int) -> int:
        """Which picture comes at this place of the endless row of shuffled epochs."""
        epoch, within = divmod(place, self.count)
        if self._order[0] != epoch:  # kept: a million take some milliseconds to shuffle
            self._order = epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(self.count)
        return int(self._order[1][within])

    def __getitem__(self, step: int) -> tuple[np.ndarray | None, list[tuple[str, str]]]:
        draws = np.random.default_rng([self.seed, 1, step]).random((self.batch, 6))
        crops = np.empty((self.batch, self.size, self.size, 3), np.uint8)
        skipped = []
        for k, (scale, *where) in enumerate(draws):
            i = self.picture_at(step * self.batch + k)
            for tried in range(min(self.count, 1000)):
                at = (i + tried) % self.count
                scaled, why = self.pictures[at]
                if scaled is not None:
                    break
                skipped.append((str(self.pictures.items[at]), why))
            else:
                return None, skipped
            _crop(scaled[int(scale * self.scales)], where, crops[k])
        return crops, skipped


def _crop(picture: np.ndarray, where: Sequence[float], out: np.ndarray) -> None:
    """Fills `out` [size,size,3] from `picture` [h,w,3]; `where` are five numbers in [0,1)."""
    y, x, mirror, flip, transpose = where
    size = len(out)
    top, left = int(y * (picture.shape[0] - size + 1)), int(x * (picture.shape[1] - size + 1))
    crop = picture[top : top + size, left : left + size]
    crop = crop[:: -1 if flip < 0.5 else 1, :: -1 if mirror < 0.5 else 1]
    if transpose < 0.5:
        crop = crop.transpose(1, 0, 2)
    for channel in range(3):  # numpy copies a turned picture four times as fast channel by channel
        out[..., channel] = crop[..., channel]


def _in_order(dataset: Dataset[Any], order: Any, workers: int) -> Iterator[Any]:
    """`dataset[i]` for every i of `order`, made by worker processes.

    Workers send NumPy arrays through a pipe: tensors would go through /dev/shm, which containers keep small.
    """
    # a generator of its own: DataLoader would otherwise draw from the one that the run's results depend on
    yield from DataLoader(
        dataset,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),
    )


def _as_it_is(made: Any) -> Any:
    return made


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C is the main process's to answer; it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
