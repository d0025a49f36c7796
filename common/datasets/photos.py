"""Photos for upscaling: found, decoded, split, and served as endless batches of random crops.

A picture is uint8 RGB all the way to the batch. The high-resolution picture is 224x224; its low-resolution
twin is 64x64 and is made by `shrink`, here and nowhere else.
"""

import functools
import hashlib
import io
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
import torch.nn.functional as F
from PIL import Image
from PIL.ExifTags import Base
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from common.cli import UserError
from common.datasets import imagenet, imagenet_archive
from common.datasets.dead_leaves import dead_leaves

LOW, HIGH = 64, 224
SHORTER = 256
"""The score's pictures are cut from photos whose shorter side is this long."""
MEMORY = 3e9
"""Bytes: a set whose decoded pictures take less is kept in memory; Imagenette takes 2.5e9."""
POOL = 2048
"""Decoded pictures in memory, about 0.5e9 bytes, of a set that is larger than that."""
USES = 16
"""Crops from each picture of the pool before another takes its place."""
WATCHED = 32
MADE = 1500
"""Dead leaves pictures to train on: some ten seconds of work for two cores."""
TOO_SMALL = f"a side under {HIGH}"

Small = Literal["scale up", "leave out"]
"""What to do with a photo that has a side under 224."""


class Unreadable(Exception):
    """A file that no picture can be got from."""

    def __init__(self, photo: str | Path | imagenet.Member, why: str) -> None:
        super().__init__(str(photo), why)
        self.path, self.why = str(photo), why

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


def read(photo: str | Path | imagenet.Member, enough: int | None = None) -> Image.Image:
    """Decodes any photo to 8-bit RGB, upright.

    Transparent parts become white. 16-bit greyscale is scaled to 8 bits, where Pillow alone would clip it.
    The EXIF orientation is followed. (None of ImageNet's validation photos that the score is taken on is
    turned, so programs that ignore the orientation see the same.)

    Args:
        photo: a file, or a member of an archive.
        enough: of a JPEG, decode only 1/2, 1/4 or 1/8 of the size if its shorter side is then still so long.

    Raises:
        Unreadable: missing, truncated, corrupt, no picture at all, or too large to be one.
    """
    try:
        with Image.open(io.BytesIO(photo.read()) if isinstance(photo, imagenet.Member) else photo) as file:
            if enough:
                file.draft(None, (enough, enough))
            file.load()
            image = _upright(file)
        return _to_rgb(image)
    except FileNotFoundError:
        raise Unreadable(photo, "no such file") from None
    except Exception as error:  # a decoder raises whatever a damaged file leads it into
        raise Unreadable(photo, str(error) or type(error).__name__) from None


def read_to_train(photo: str | Path | imagenet.Member) -> Image.Image:
    """`read`, for a picture that `resize_shorter` follows: a large JPEG costs a fraction of its decoding.

    JPEG's own reduction stops at twice the side that is asked for, so the last halving is `resize_shorter`'s.
    """
    return read(photo, enough=2 * SHORTER)


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
    """What `open` makes a picture from: paths, members of an archive, or seeds."""
    open: Callable[[Any], Image.Image] = read
    """A function of a module, since worker processes get it pickled."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Of each picture that could not be used so far: why. Filled while pictures are read."""

    def __len__(self) -> int:
        return len(self.items)

    def first(self, count: int) -> "Source":
        """Only the first `count` pictures, for a short run."""
        return Source(self.items[:count], self.open)

    def fingerprint(self) -> str:
        """The same for the same pictures in the same order: a run is resumed on these alone."""
        if isinstance(self.items, imagenet.Listing | imagenet.Archived):
            return self.items.fingerprint()
        return hashlib.sha256(repr(self.items).encode()).hexdigest()

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

    def refusal(self) -> UserError:
        """For a source of which nothing can be used."""
        name, why = next(iter(self.skipped.items()), ("nothing", "the list is empty"))
        return UserError(
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
            photos of scikit-learn for the test; ImageNet's training archive with its index; or a folder: in
            ImageNet's layout or with its archives, one that holds such a folder as `ImageNet/`, or any folder
            of photos, of which about a tenth, chosen by a hash of the path, is kept for the test.
        limit: at most so many test pictures, evenly spaced over the sorted list.
        download: whether `auto` may fetch Imagenette, 341 MB.

    Raises:
        Refused: no such place, too few photos in it, an archive without its index, an extraction that was
            not finished, or Imagenette cannot be had.
    """
    downloads = Path("data")
    if data == "builtin":
        return _builtin()
    if data == "imagenette":
        return _named(imagenet.imagenette(downloads), limit)
    if data != "auto":
        return _named(Path(data).expanduser(), limit)
    if named := os.environ.get("IMAGENET_DIR"):  # named on purpose: if it is wrong, say so
        return _named(Path(named).expanduser(), limit)
    for usual in (downloads / "ImageNet", Path("/data/datasets/ImageNet")):
        if usual.is_dir() and (found := _folder(usual, limit)):
            return found
    nothing = f"\nWhy: no photos in $IMAGENET_DIR, {downloads / 'ImageNet'}, {usual}."
    if not download and not (downloads / "imagenette2-320").is_dir():
        return _builtin(f"{nothing} A trial downloads none.")
    try:
        return _named(imagenet.imagenette(downloads), limit)
    except UserError as refusal:
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


REMEDY = "name a folder of photos, ImageNet's training archive, or `auto`, `imagenette`, `builtin`"


@dataclass(frozen=True)
class Part:
    """Photos of one split, or of a folder."""

    photos: imagenet.Listing | imagenet.Archived
    about: dict[str, Any] | None
    """What `util/unzip_imagenet` noted of them; None if they come from elsewhere."""

    def what(self) -> str:
        """What they are less than, for the note."""
        about, found = self.about or {}, []
        if about.get("mode") == "shrink":
            found.append(f"shrunk to a shorter side of {about['size']} (JPEG quality {about['quality']})")
        if about.get("part"):
            found.append(f"a part of ImageNet: {about['part']}")
        return ", ".join(found)


def _named(place: Path, limit: int) -> Photos:
    """The photos of a place that somebody named; refused if there are none."""
    if place.is_file() and place.suffix == ".tar":
        train = imagenet.archived(place)
        if train.about["split"] != "train":
            raise UserError(f"--data {place} holds ImageNet's validation photos; name the training archive")
        return _split_photos(place.name, Part(train, train.about), _part(place.parent, "val"), limit)
    if not place.is_dir():
        raise UserError(f"--data {place} {'is no archive' if place.exists() else 'does not exist'}; {REMEDY}")
    found = _folder(place, limit)
    if found is None:
        kinds = " ".join(sorted(imagenet.PHOTO_SUFFIXES))
        raise UserError(f"--data {place} holds no photos ({kinds}); {REMEDY}")
    return found


def _folder(root: Path, limit: int) -> Photos | None:
    """The photos of a folder, or None where it holds none."""
    for place in (root, root / "ImageNet"):
        train, test = _part(place, "train"), _part(place, "val")
        if train and len(train.photos) > 1 and (test or train.about):
            return _split_photos(place.resolve().name, train, test, limit)
    found = Part(imagenet.listing(root), imagenet_archive.check_complete(root))
    if not found.photos:
        return None
    if len(found.photos) < 3:
        raise UserError(f"--data {root} holds {len(found.photos)} photos, it takes 3; {REMEDY}")
    return _split_photos(f"photos in {root.resolve().name}", found, None, limit)


def _part(place: Path, split: str) -> Part | None:
    """ImageNet's `train` or `val`: a folder with photos, else the archive."""
    folder, tar = place / split, place / f"ILSVRC2012_img_{split}.tar"
    if folder.is_dir():
        about = imagenet_archive.check_complete(folder)
        if len(listed := imagenet.listing(folder)):
            return Part(listed, about)
    if tar.exists():
        found = imagenet.archived(tar)
        return Part(found, found.about)
    return None


def _split_photos(name: str, train: Part, test: Part | None, limit: int) -> Photos:
    """The three parts; where there are no photos to be tested on, they are taken from those to train on."""
    note = []
    train_on = train.photos
    if test is None:
        hashes = train_on.hashes()
        # a share of the range of hashes, so that photos added later move none from one part to the other
        tested = hashes < 2**64 // 10
        if not tested.any() or tested.sum() > len(hashes) - 2:  # only among very few photos
            tested = hashes == hashes.min()
        test_on, train_on = train_on.take(np.flatnonzero(tested)), train_on.take(np.flatnonzero(~tested))
        if train.about:
            note.append("No validation photos are there: about a tenth of the training photos is the test.")
    else:
        test_on = test.photos
    if len(test_on) > limit:
        note.append(f"Scored on {limit} of {len(test_on):,} test photos, evenly spaced over the sorted list.")
        test_on = test_on.take(_evenly(len(test_on), limit))
    whats = {"Training": train.what(), "Test": (test or train).what()}
    if whats["Training"] == whats["Test"]:
        whats = {"All": whats["Training"]}
    note += [f"{whose} photos are {what}." for whose, what in whats.items() if what]

    watched = _evenly(len(train_on), min(WATCHED, max(1, len(train_on) // 20)))
    rest = np.delete(np.arange(len(train_on)), watched)
    return Photos(
        name,
        builtin=False,
        train=Source(train_on.take(rest), read_to_train),
        watch=Source(train_on.take(watched)),
        test=Source(test_on),
        note=" ".join(note),
    )


def _evenly(count: int, wanted: int) -> np.ndarray:
    """`wanted` places of `count`, evenly spaced, with the first and the last."""
    return np.linspace(0, count - 1, wanted).round().astype(int)


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
    uses: int = USES,
) -> Callable[[int], Iterator[Tensor]]:
    """Endless batches of random crops, turned and mirrored at random.

    The batch of a step follows from `seed` and the step alone, whatever the workers and wherever the
    iteration began: a run that is resumed goes on as if it had never stopped. Pictures come in shuffled
    epochs. A set that fits into memory is decoded once, now, by worker processes. Of a larger one a pool of
    2,048 pictures is in memory: see `_rolling`.

    Args:
        source: the pictures; those that cannot be used are counted in `source.skipped`, and the next one that
            can stands in.
        size: side of the crops, in pixels.
        batch: crops per batch.
        workers: processes that decode; 0 is none, None is one per processor, 8 at most.
        scales: before the crop the shorter side is scaled to one of these, chosen at random.
        small: whether photos with a side under 224 are scaled up or left out.
        uses: crops from each picture of a set too large for the memory, before another takes its place.

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
    picture_at = _shuffled(len(source), seed)
    if len(source) * sum(3 * side * side * 4 / 3 for side in scales) <= MEMORY:
        pictures = _kept(source, decoded, picture_at, workers)
    else:
        pictures = _rolling(source, decoded, picture_at, uses, seed, workers)

    def start(first: int) -> Iterator[Tensor]:
        arriving = pictures(first * batch)
        for step in itertools.count(first):
            draws = np.random.default_rng([seed, 1, step]).random((batch, 6))
            crops = np.empty((batch, size, size, 3), np.uint8)
            for crop, (scale, *where), scaled in zip(
                crops, draws, itertools.islice(arriving, batch), strict=True
            ):
                _crop(scaled[int(scale * len(scales))], where, crop)
            yield torch.from_numpy(crops).permute(0, 3, 1, 2)  # [batch,3,size,size]

    return start


Scaled = list[np.ndarray]
"""A picture at every scale, uint8 [h,w,3]."""


@dataclass
class Decoded(Dataset[tuple[Scaled | None, str]]):
    """Picture i and "", decoded when it is asked for; or None and why there is none."""

    open: Callable[[Any], Image.Image]
    items: Sequence[Any]
    scales: tuple[int, ...]
    small: Small

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Scaled | None, str]:
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
        middle = torch.from_numpy(np.array(image)[top : top + height, left : left + width])  # [h,w,3]
        return [_scaled(middle, side) for side in self.scales], ""


def _scaled(pixels: Tensor, side: int) -> np.ndarray:
    """`resize_shorter` of uint8 [h,w,3], equal up to rounding: torch has vector code for it."""
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    size = [max(side, round(length * scale)) for length in (height, width)]
    resized = F.interpolate(pixels.permute(2, 0, 1)[None], size, mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


@dataclass
class Usable(Dataset[tuple[Scaled | None, list[tuple[int, str]]]]):
    """Picture i, else the next one that can be used, and which were skipped for it and why."""

    pictures: Decoded | list[tuple[Scaled | None, str]]

    def __getitem__(self, i: int) -> tuple[Scaled | None, list[tuple[int, str]]]:
        skipped: list[tuple[int, str]] = []
        for tried in range(min(len(self.pictures), 1000)):
            at = (i + tried) % len(self.pictures)
            scaled, why = self.pictures[at]
            if scaled is not None:
                return scaled, skipped
            skipped.append((at, why))
        return None, skipped


def _shuffled(count: int, seed: int) -> Callable[[int], int]:
    """Which picture comes at a place of an endless row of epochs, each of them shuffled."""

    @functools.lru_cache(maxsize=2)  # a million take some milliseconds to shuffle
    def epoch(number: int) -> np.ndarray:
        return np.random.default_rng([seed, 0, number]).permutation(count)

    def picture_at(place: int) -> int:
        return int(epoch(place // count)[place % count])

    return picture_at


def _kept(
    source: Source, decoded: Decoded, picture_at: Callable[[int], int], workers: int
) -> Callable[[int], Iterator[Scaled]]:
    """Decodes all pictures now; the function that is returned gives those of crop first, first + 1, ...

    Raises:
        Refused: no picture can be used.
    """
    pictures = []
    order = range(len(source))
    arriving = _in_order(decoded, order, workers)
    for i, picture in zip(order, tqdm(arriving, "reading pictures", len(source), disable=None), strict=True):
        if picture[0] is None:
            source.skip(str(source.items[i]), picture[1])
        pictures.append(picture)
    usable = Usable(pictures)

    def start(first: int) -> Iterator[Scaled]:
        for crop in itertools.count(first):
            scaled, _ = usable[picture_at(crop)]
            if scaled is None:
                raise source.refusal()
            yield scaled

    next(start(0))
    return start


def _rolling(
    source: Source, decoded: Decoded, picture_at: Callable[[int], int], uses: int, seed: int, workers: int
) -> Callable[[int], Iterator[Scaled]]:
    """A pool of decoded pictures, cropped in another order in every pass, while workers decode the next.

    In a pass over the pool each picture is cropped once. After it the oldest make room for the next ones of
    the row, so each is cropped `uses` times, elsewhere and turned otherwise, about a pass apart; with `uses`
    1 every crop is of another picture. The price: training sees fewer pictures. What it buys: to decode a
    picture takes processors about as long as to train on a crop of it, and few have none to spare. This is
    data echoing before augmentation (Choi et al. 2019, "Faster Neural Network Training with Data Echoing",
    section 2).

    The function that is returned gives the pictures of crop first, first + 1, ...; at first the pool is
    filled, unless an iteration before has left the pictures that it needs.
    """
    new = max(1, min(POOL, len(source)) // uses) if uses > 1 else 1  # pictures that come after each pass
    pool = new * uses
    usable = Usable(decoded)
    last: dict[int, Scaled] = {}  # pictures by their place in the row, of the iteration that began last

    def start(first: int) -> Iterator[Scaled]:
        nonlocal last
        oldest = first // pool * new
        pictures = {place: last[place] for place in range(oldest, oldest + pool + new) if place in last}
        last, there = pictures, frozenset(pictures)
        missing = (picture_at(place) for place in itertools.count(oldest) if place not in there)
        arriving = _in_order(usable, missing, workers)

        def arrive(place: int) -> None:
            if place in pictures:
                return
            scaled, skipped = next(arriving)
            for i, why in skipped:
                source.skip(str(source.items[i]), why)
            if scaled is None:
                raise source.refusal()
            pictures[place] = scaled

        for place in tqdm(range(oldest, pool + first // uses), "reading pictures", disable=None):
            arrive(place)
        order = np.empty(0, int)
        for crop in itertools.count(first):
            number, within = divmod(crop, pool)
            oldest = number * new
            if not within or not len(order):
                order = np.random.default_rng([seed, 2, number]).permutation(pool)
                for place in [place for place in pictures if place < oldest]:
                    del pictures[place]
            arrive(pool + crop // uses)  # one in `uses` crops brings one: no step waits for many
            yield pictures[oldest + int(order[within])]

    return start


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
