"""Photos for upscaling: found, split into three parts, decoded, and cut to the images that are scored.

An image is uint8 RGB all the way to the batch. The high-resolution image (hr) is 224x224; its low-resolution
version (lr) is 64x64: see `degradation`. Batches: see `photo_batches`.

torch is imported where it is used: `common.doctor` looks for photos without it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from common import cli
from common.cli import UserError, command_line, user_path
from common.datasets import imagenet
from common.datasets.dead_leaves import dead_leaves
from common.datasets.image_files import FORMATS, SUFFIXES
from common.datasets.images import plain, resize_shorter
from common.files import cause_of

if TYPE_CHECKING:
    from torch import Tensor

LR_SIDE, HR_SIDE = 64, 224
SHORTER = 256  # pixels: the images that are scored are cut from photos whose shorter side is this long
VALIDATION_IMAGES = 32
GENERATED = 1500  # dead leaves to train on: some ten seconds of work for two cores
DOWNLOADS = Path("data")
USUAL = (DOWNLOADS / "ImageNet", Path("/data/datasets/ImageNet"))
LAYOUTS = [  # where ImageNet's `train` and `val` may be below a folder; Kaggle's tree has `CLS-LOC`
    Path(folder, below)
    for folder in ("", "ImageNet", "imagenet-object-localization-challenge")
    for below in ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
]
COMPRESSED = {b"PK": "zip", b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"7z": "7z"}  # by 2 bytes
REMEDY = "name a folder of photos, ImageNet's training archive, or `auto`, `imagenette`, `builtin`"


class Unreadable(Exception):
    """A file that no image can be got from; its two arguments are the file's name and the cause."""


def read(photo: str | Path | imagenet.Member, enough: int | None = None) -> Image.Image:
    """Decodes any photo to 8-bit RGB, upright by its EXIF orientation, with white behind what is transparent.

    None of ImageNet's validation photos that the score is taken on is turned, so programs that ignore the
    orientation see the same. Of a JPEG only 1/2, 1/4 or 1/8 of the size is decoded if its shorter side then
    still is `enough` pixels.

    Raises:
        Unreadable: missing, truncated, corrupt, no image at all, or too large to be one.
    """
    try:
        data = io.BytesIO(photo.read()) if isinstance(photo, imagenet.Member) else photo
        with Image.open(data, formats=FORMATS) as file:  # others let programs run, as Ghostscript
            if enough:
                file.draft(None, (enough, enough))
            image, _ = plain(file)
        if max(image.size) > 200 * min(image.size):  # scaled up it would fill the memory
            raise ValueError(f"{image.width}x{image.height} is a line, not a photo")
        if image.mode.endswith("A"):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")
    except MemoryError:  # is not the photo's fault
        raise
    except Exception as error:  # a decoder raises whatever a damaged file leads it into
        unknown = isinstance(error, UnidentifiedImageError)
        raise Unreadable(str(photo), "no image that can be read" if unknown else cause_of(error)) from None


read_to_train = functools.partial(read, enough=2 * SHORTER)
"""`read` where the image is scaled to a shorter side of 256 next: a large JPEG costs a part of its decoding.
JPEG's own reduction stops at twice the side that is asked for, so the last halving is done by scaling."""


def standard(image: Image.Image) -> Tensor:
    """The crop that is scored: shorter side to 256, then the central 224x224; uint8 [3,224,224]."""
    import torch

    pixels = np.asarray(resize_shorter(image, SHORTER))  # [h,w,3]
    top, left = (pixels.shape[0] - HR_SIDE) // 2, (pixels.shape[1] - HR_SIDE) // 2
    return torch.from_numpy(pixels[top : top + HR_SIDE, left : left + HR_SIDE].copy()).permute(2, 0, 1)


@dataclass
class Source:
    """Images that are made when asked for: from files, or from numbers.

    Attributes:
        items: what `open`, a function of a module, makes images from: paths, members of an archive, or seeds.
        reserve: where an image that is scored and cannot be read gets its replacement from.
        keep: how many images a reserve never gives away.
        skipped: why each image that could not be read so far was skipped, by name.
    """

    items: Sequence[Any]
    open: Callable[[Any], Image.Image] = read
    reserve: Source | None = None
    keep: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def first(self, count: int) -> Source:
        """The first `count` images alone."""
        return replace(self, items=self.items[:count])

    def fingerprint(self) -> str:
        """The same for the same images in the same order: a run is resumed on these alone."""
        if isinstance(self.items, imagenet.PhotoList):
            return self.items.fingerprint()
        return hashlib.sha256(repr(self.items).encode()).hexdigest()

    def standard_images(self) -> Tensor:
        """The crops that are scored, uint8 [N,3,224,224]; `items` becomes what they are made from.

        One that cannot be read is replaced by the next one of the reserve, which then has it no more. It is a
        UserError if none can be read.
        """
        import torch

        scored = []
        for k, item in enumerate(self.items):
            image = self.read(item, standard)
            if isinstance(image, Unreadable):
                self.skip(image)
                scored += self._replacement(k / len(self))
            else:
                scored.append((item, image))
        if not scored:
            raise self.nothing_readable()
        if self.skipped:
            self.items = [item for item, _ in scored]
        return torch.stack([image for _, image in scored])

    def _replacement(self, where: float) -> list[tuple[Any, Tensor]]:
        """What the reserve has at this share of its length (0..1) or after it."""
        reserve = self.reserve
        if reserve is None or len(reserve) <= reserve.keep:
            return []
        try:
            start = int(where * len(reserve))
            i, image = reserve.next_readable(start, lambda i: self.read(reserve.items[i], standard))
        except UserError:
            return []
        item = reserve.items[i]
        reserve.items = reserve.items[np.arange(len(reserve)) != i]
        tqdm.write(f"in its place: {item}", file=sys.stderr)
        return [(item, image)]

    def read(self, item: Any, change: Callable[[Image.Image], Any]) -> Any:
        """What `change` makes of an image, or an `Unreadable`."""
        try:
            return change(self.open(item))
        except Unreadable as unreadable:
            return unreadable

    def next_readable(self, i: int, image_of: Callable[[int], Any]) -> tuple[int, Any]:
        """`i` and its image, else the next that can be read; those before are skipped."""
        for number in range(i, i + min(len(self), 1000)):
            image = image_of(number % len(self))
            if not isinstance(image, Unreadable):
                return number % len(self), image
            self.skip(image)
        raise self.nothing_readable()

    def skip(self, unreadable: Unreadable) -> None:
        """Counts an image that cannot be read, and names it on screen the first time.

        Raises:
            UserError: none can, since the folder or the archive itself is gone.
        """
        name, cause = unreadable.args
        if isinstance(self.items, imagenet.PhotoList) and not self.items.path.exists():
            remedy = "bring it back, then --resume goes on from the last checkpoint"
            raise UserError(f"{self.items.path} has vanished; {remedy}")
        if name not in self.skipped:
            self.skipped[name] = cause
            tqdm.write(f"skipped {name}: {cause}", file=sys.stderr)

    def nothing_readable(self) -> UserError:
        """The error for a source of which no image can be read."""
        name, cause = next(iter(self.skipped.items()), ("nothing", "the list is empty"))
        return UserError(f"no photo can be used, such as {name}: {cause}; name other photos by --data")


@dataclass(frozen=True)
class Photos:
    """A set of images in three parts that share none.

    Attributes:
        validation: at most 32, split off from those to train on: for curves and choices during training.
        test: the images of the figure that is reported, and of nothing else.
        note: what screen and captions must say about these images; its first line alone is for captions.
    """

    name: str
    builtin: bool
    train: Source
    validation: Source
    test: Source
    note: str = ""

    def shorten(self, *, train: int, validation: int) -> None:
        """Keeps only so many of these images, for a short run."""
        for part, count in ((self.train, train), (self.validation, validation)):
            part.items = part.items[:count]

    def skipped(self) -> list[str]:
        """The names of the files that could not be read so far."""
        parts = (self.train, self.validation, self.test)
        return sorted(Path(name).name for part in parts for name in part.skipped)


def find(*places: str, limit: int = 100, download: bool = True) -> Photos:
    """The images that `--data` names; data/README.md says what it can name, and in which order `auto` looks.

    At most `limit` of them, evenly spaced over the sorted list, are the test. `auto` fetches Imagenette, 341
    MB, only if it may `download`. All photos of the second place and those after it are to train on.

    Raises:
        UserError: no such path, too few photos in it, an archive without its index, an extraction that was
            not finished, places that share photos or cannot be joined, or Imagenette cannot be had.
    """
    data, *others = places
    if others and {"auto", "builtin"} & {*places}:
        raise UserError(
            "--data: auto and builtin stand alone; name several folders of photos, or one of these"
        )
    if data == "builtin":
        return _builtin()
    origin, text = "--data", data
    if data == "auto":  # what is named on purpose and is wrong is not passed over
        origin, text = "$IMAGENET_DIR", os.environ.get("IMAGENET_DIR", "")
        if not text:
            return _usual(limit, download)
    path = _path(text, origin)
    with _named(origin, path):
        parts = _some(path)
        if parts[0] == "ImageNet":
            cli.anywhere[text] = "data/ImageNet"
        photos, taken = _split(*parts, limit), [part.path for part in parts[1:] if part is not None]
    for text in others:
        path = _path(text, origin)
        with _named(origin, path):
            name, more, _ = _some(path)
            for before in taken:
                if before.is_relative_to(more.path) or more.path.is_relative_to(before):
                    raise UserError(f"{more.path} shares photos with {before}; name places that share none")
            photos, taken = _add(photos, name, more), [*taken, more.path]
    return photos


def _path(text: str, origin: str) -> Path:
    return imagenet.imagenette(DOWNLOADS) if text == "imagenette" else user_path(origin.strip("-"), text)


@contextlib.contextmanager
def _named(origin: str, path: Path) -> Iterator[None]:
    """Errors within it name the flag and the path."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{origin} {error}") from None
    except OSError as error:
        raise UserError(f"{origin} {path}: {cause_of(error)}; {REMEDY}") from None


def _some(path: Path) -> tuple[str, imagenet.PhotoList, imagenet.PhotoList | None]:
    """As `_train_and_test`, and a UserError where there are no photos to train on."""
    name, train, test = _train_and_test(path)
    if not train:
        left_out = f"; {train.left_out}" if train.left_out else ""
        raise UserError(f"{path} holds no photos ({' '.join(SUFFIXES)}){left_out}; {REMEDY}")
    return name, train, test


def _add(photos: Photos, name: str, more: imagenet.PhotoList) -> Photos:
    """The same photos to be scored on, and more to train on."""
    if more.left_out:
        print(f"{more.path}: {more.left_out}", file=sys.stderr)
    source = replace(photos.train, items=imagenet.join(cast(imagenet.PhotoList, photos.train.items), more))
    for part in (photos.validation, photos.test):
        if part.reserve is photos.train:
            part.reserve = source
    return replace(photos, name=f"{photos.name} + {name}", train=source)


def _usual(limit: int, download: bool) -> Photos:
    """ImageNet where it usually lies, else Imagenette, else the built-in images."""
    for path in USUAL:
        with contextlib.suppress(OSError):  # one may not look there
            if path.is_dir() and (parts := _train_and_test(path))[1]:
                return _split(*parts, limit)
    cause = "A trial downloads none"
    if download or (DOWNLOADS / imagenet.IMAGENETTE_FOLDER).is_dir():
        try:
            return find("imagenette", limit=limit)
        except UserError as error:
            cause = str(error)
    return _builtin(f"\nWhy: no photos in $IMAGENET_DIR, {USUAL[0]}, {USUAL[1]}. {cause}.")


def _train_and_test(path: Path) -> tuple[str, imagenet.PhotoList, imagenet.PhotoList | None]:
    """The name of a set, its photos, perhaps none, and those to test on where there are such."""
    if not path.is_dir():
        return path.name, _archive(path), _imagenet(path.parent, "val")
    for root in (path / layout for layout in LAYOUTS):
        train, test = _imagenet(root, "train"), _imagenet(root, "val")
        if train and len(train) > 1 and (test or train.about or root.name == "CLS-LOC"):
            return "ImageNet" if root.name == "CLS-LOC" else root.resolve().name, train, test
    photos = imagenet.listing(path)
    if len(photos) and (kaggle := np.char.find(photos.rows, b"CLS-LOC/") >= 0).any():
        inside = path / os.fsdecode(photos.rows[kaggle.argmax()].partition(b"CLS-LOC/")[0]) / "CLS-LOC"
        raise UserError(f"{path} holds ImageNet in {inside}, with a test that is not to train on; name that")
    if (path / "train").is_dir():
        print(f"{path} has train/ and no val/ that goes with it: all its photos are taken together")
    if 0 < len(photos) < 3:
        raise UserError(f"{path} holds {len(photos)} photos, it takes 3; {REMEDY}")
    return path.resolve().name, photos, None


def _imagenet(root: Path, split: str) -> imagenet.PhotoList | None:
    """ImageNet's `train` or `val`: the photos in the folder of that name, else those in the archive."""
    folder, tar = root / split, root / f"ILSVRC2012_img_{split}.tar"
    if folder.is_dir() and (photos := imagenet.listing(folder)):
        return photos
    return imagenet.archived(tar) if tar.exists() else None


def _archive(path: Path) -> imagenet.PhotoList:
    if path.stat() and not path.is_file():  # a pipe would make one wait
        raise UserError(f"{path} is neither a folder nor a file; {REMEDY}")
    with path.open("rb") as file:
        kind = COMPRESSED.get(file.read(2))
    if kind:
        command = command_line("python", "util/unzip_imagenet", str(path))
        raise UserError(
            f"{path} is a {kind} archive: unpack it, ImageNet's by {command}, and name the folder"
        )
    if path.suffix != ".tar":
        raise UserError(f"{path} is no archive; {REMEDY}")
    archive = imagenet.archived(path)
    if archive.about["split"] != "train":
        raise UserError(f"{path} holds ImageNet's validation photos; name the training archive")
    return archive


def _builtin(why: str = "") -> Photos:
    boxes = [(x, y, x + SHORTER, y + SHORTER) for y in (0, 171) for x in (0, 384)] + [(0, 0, 640, 427)]
    note = f"Built-in: dead leaves to train on, ten crops of scikit-learn's two photos to be scored on.{why}"
    return Photos(
        "dead leaves, tested on scikit-learn's photos",
        builtin=True,
        train=Source(range(VALIDATION_IMAGES, VALIDATION_IMAGES + GENERATED), dead_leaves),
        validation=Source(range(VALIDATION_IMAGES), dead_leaves),
        test=Source([(name, box) for name in ("china.jpg", "flower.jpg") for box in boxes], _sklearn_crop),
        note=note,
    )


def _sklearn_crop(crop: tuple[str, tuple[int, int, int, int]]) -> Image.Image:
    from sklearn.datasets import load_sample_image  # takes a second, which other photos need not wait for

    name, box = crop
    return Image.fromarray(load_sample_image(name)).crop(box)


def _split(name: str, train: imagenet.PhotoList, test: imagenet.PhotoList | None, limit: int) -> Photos:
    """The three parts; where there are no photos to be tested on, they are taken from those to train on."""
    for photos in (train, test):
        if photos and photos.left_out:
            print(f"{photos.path}: {photos.left_out}", file=sys.stderr)
    limits = {"Training": _limits(train.about), "Test": _limits((test or train).about)}
    if limits["Training"] == limits["Test"]:
        limits = {"All": limits["Training"]}
    notes, own_test = [], test is not None
    if test is None:
        notes.append("No validation photos are there: about a tenth of the photos is the test.")
        hashes = train.hashes()
        # a share of the range of hashes, so that photos added later move none from one part to the other
        tested = hashes < 2**64 // 10
        if not tested.any() or tested.sum() > len(hashes) - 2:  # only among very few photos
            tested = hashes == hashes.min()
        train, test = train[~tested], train[tested]
    if len(test) > limit:
        notes.append(f"Scored on {limit} of {len(test):,} test photos, evenly spaced over the sorted list.")
    notes += [f"{part} photos are {what}." for part, what in limits.items() if what]

    validation, train = _evenly_spaced(train, min(VALIDATION_IMAGES, max(1, len(train) // 20)))
    test, others = _evenly_spaced(test, min(limit, len(test)))
    to_train = Source(train, read_to_train, keep=1)
    return Photos(
        name,
        builtin=False,
        train=to_train,
        validation=Source(validation, reserve=to_train),
        test=Source(test, reserve=Source(others) if others or own_test else to_train),
        note=" ".join(notes),
    )


def _evenly_spaced(photos: imagenet.PhotoList, count: int) -> tuple[imagenet.PhotoList, imagenet.PhotoList]:
    """`count` of the photos, with the first and the last, and the others."""
    chosen = np.linspace(0, len(photos) - 1, count).round().astype(int)
    return photos[chosen], photos[np.delete(np.arange(len(photos)), chosen)]


def _limits(about: dict[str, Any]) -> str:
    """What photos are less than ImageNet's, by what `util/unzip_imagenet` noted of them."""
    shrunk = "shrunk to a shorter side of {size} (JPEG quality {quality})" * (about.get("mode") == "shrink")
    part = "a part of ImageNet: {part}" * bool(about.get("part"))
    return ", ".join(filter(None, (shrunk, part))).format(**about)
