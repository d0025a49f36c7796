"""Photos for upscaling: found, split into three parts, decoded, and cut to the images that are scored.

An image is uint8 RGB all the way to the batch. The high-resolution image (hr) is 224x224; its low-resolution
version (lr) is 64x64 and is made by `downscale`, here and nowhere else. Batches: see `photo_batches`.
"""

import functools
import hashlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from common.cli import UserError, command_line, user_path
from common.datasets import imagenet
from common.datasets.dead_leaves import dead_leaves
from common.datasets.image_files import SUFFIXES
from common.datasets.images import resize_shorter, to_8_bits, upright
from common.files import cause_of

LR_SIDE, HR_SIDE = 64, 224
SHORTER = 256
"""The images that are scored are cut from photos whose shorter side is this long."""
VALIDATION_IMAGES = 32
GENERATED = 1500
"""Dead leaves images to train on: some ten seconds of work for two cores."""
DOWNLOADS = Path("data")
USUAL = (DOWNLOADS / "ImageNet", Path("/data/datasets/ImageNet"))
LAYOUTS = [
    Path(folder, layout)
    for folder in ("", "ImageNet", "imagenet-object-localization-challenge")
    for layout in ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
]
"""Where ImageNet's `train` and `val` may be in a folder; `CLS-LOC` is Kaggle's name for where they are."""
COMPRESSED = {
    b"PK\x03\x04": "zip",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
}
"""The first bytes of archives in which no photo can be found without unpacking them."""
REMEDY = "name a folder of photos, ImageNet's training archive, or `auto`, `imagenette`, `builtin`"

T = TypeVar("T")


# ------------------------------------------------------------------------------------- one image


class Unreadable(Exception):
    """A file that no image can be got from; its two arguments are the file's name and the cause."""


def read(photo: str | Path | imagenet.Member, enough: int | None = None) -> Image.Image:
    """Decodes any photo to 8-bit RGB, upright by its EXIF orientation, with white behind what is transparent.

    None of ImageNet's validation photos that the score is taken on is turned, so programs that ignore the
    orientation see the same.

    Args:
        photo: a file, or a member of an archive.
        enough: of a JPEG, decode only 1/2, 1/4 or 1/8 of the size if its shorter side is then still so long.

    Raises:
        Unreadable: missing, truncated, corrupt, no image at all, or too large to be one.
    """
    try:
        with Image.open(io.BytesIO(photo.read()) if isinstance(photo, imagenet.Member) else photo) as file:
            if enough:
                file.draft(None, (enough, enough))
            file.load()
            image = to_8_bits(upright(file))
        if max(image.size) > 200 * min(image.size):  # scaled up it would fill the memory
            raise ValueError(f"{image.width}x{image.height} is a line, not a photo")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except MemoryError:  # is not the photo's fault
        raise
    except UnidentifiedImageError:
        raise Unreadable(str(photo), "not an image of a kind that is read") from None
    except Exception as error:  # a decoder raises whatever a damaged file leads it into
        raise Unreadable(str(photo), cause_of(error)) from None


read_to_train = functools.partial(read, enough=2 * SHORTER)
"""`read` where the image is scaled to a shorter side of 256 next: a large JPEG costs a part of its decoding.
JPEG's own reduction stops at twice the side that is asked for, so the last halving is done by scaling."""


def standard(image: Image.Image) -> Tensor:
    """The crop that is scored: shorter side to 256, then the central 224x224; uint8 [3,224,224]."""
    pixels = np.asarray(resize_shorter(image, SHORTER))  # [h,w,3]
    top, left = (pixels.shape[0] - HR_SIDE) // 2, (pixels.shape[1] - HR_SIDE) // 2
    return torch.from_numpy(pixels[top : top + HR_SIDE, left : left + HR_SIDE].copy()).permute(2, 0, 1)


def downscale(hr: Tensor) -> Tensor:
    """The low-resolution version, by torchvision's default resize (bilinear, antialiased), 8 bits.

    Three times as fast on channels-last memory, which batches have, as on contiguous; same result.

    Args:
        hr: uint8 [N,3,h,w] or [3,h,w], both sides multiples of 7.

    Returns:
        uint8 [N,3,h*2/7,w*2/7] or [3,h*2/7,w*2/7].

    Raises:
        ValueError: not uint8, or a side that is no multiple of 7.
    """
    height, width = hr.shape[-2:]
    if hr.dtype != torch.uint8 or height % 7 or width % 7:
        raise ValueError(f"downscale takes uint8, sides in multiples of 7, not {hr.dtype} {height}x{width}")
    return TF.resize(hr, [height * 2 // 7, width * 2 // 7], antialias=True)


# ----------------------------------------------------------------------------------- many images


@dataclass
class Source:
    """Images that are made when asked for: from files, or from numbers."""

    items: Sequence[Any]
    """What `open` makes an image from: paths, members of an archive, or seeds."""
    open: Callable[[Any], Image.Image] = read
    """A function of a module, since worker processes get it pickled."""
    reserve: "Source | None" = None
    """Gives an image for each that is scored and cannot be read, and then has it no more."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why each image that could not be read so far was skipped, by name; filled while images are read."""

    def __len__(self) -> int:
        return len(self.items)

    def first(self, count: int) -> "Source":
        """Keeps only the first `count` images, for a short run; returns itself."""
        self.items = self.items[:count]
        return self

    def fingerprint(self) -> str:
        """The same for the same images in the same order: a run is resumed on these alone."""
        if isinstance(self.items, imagenet.PhotoList):
            return self.items.fingerprint()
        return hashlib.sha256(repr(self.items).encode()).hexdigest()

    def standard_images(self) -> Tensor:
        """The crops that are scored, uint8 [N,3,224,224]; from now on `items` are what they were made from.

        An image that cannot be read is left out; the next one of the reserve that can be replaces it.

        Raises:
            UserError: not one can be read.
        """
        scored = []
        for k, item in enumerate(self.items):
            image = self.read(item, standard)
            if isinstance(image, Unreadable):
                self.skip(image)
                scored += self._replacement(k * len(self.reserve or ()) // len(self))
            else:
                scored.append((item, image))
        if not scored:
            raise self.nothing_readable()
        if self.skipped:
            self.items = [item for item, _ in scored]
        return torch.stack([image for _, image in scored])

    def _replacement(self, i: int) -> list[tuple[Any, Tensor]]:
        """Takes image i of the reserve, or the next one, out of it; but not its last."""
        reserve = self.reserve
        if not reserve or len(reserve) == 1:
            return []
        try:
            i, image = reserve.next_readable(i, lambda i: self.read(reserve.items[i], standard))
        except UserError:
            return []
        item = reserve.items[i]
        tqdm.write(f"in its place: {item}", file=sys.stderr)
        reserve.items = reserve.items[np.arange(len(reserve)) != i]
        return [(item, image)]

    def read(self, item: Any, change: Callable[[Image.Image], T]) -> T | Unreadable:
        """What `change` makes of an image, or why there is none."""
        try:
            return change(self.open(item))
        except Unreadable as unreadable:
            return unreadable

    def next_readable(self, i: int, image_of: Callable[[int], T | Unreadable]) -> tuple[int, T]:
        """The number i and its image, or the next ones that can be read; the others are counted in `skipped`.

        Raises:
            UserError: none can be read.
        """
        for tried in range(min(len(self), 1000)):
            number = (i + tried) % len(self)
            image = image_of(number)
            if not isinstance(image, Unreadable):
                return number, image
            self.skip(image)
        raise self.nothing_readable()

    def skip(self, unreadable: Unreadable) -> None:
        """Counts an image that cannot be read, and names it on screen the first time."""
        name, cause = unreadable.args
        if name not in self.skipped:
            self.skipped[name] = cause
            tqdm.write(f"skipped {name}: {cause}", file=sys.stderr)

    def nothing_readable(self) -> UserError:
        """The error for a source of which no image can be read."""
        name, cause = next(iter(self.skipped.items()), ("nothing", "the list is empty"))
        return UserError(
            f"none of {len(self)} photos can be used, such as {name}: {cause}; name other photos by --data"
        )


@dataclass(frozen=True)
class Photos:
    """A set of images in three parts that share none."""

    name: str
    """The set's name for the screen and the results file."""
    builtin: bool
    train: Source
    validation: Source
    """At most 32 images, split off from those to train on: for curves and choices during training."""
    test: Source
    """The images of the figure that is reported, and of nothing else."""
    note: str = ""
    """What screen and captions must say about these images; the first line alone is for captions."""


# --------------------------------------------------------------------------------------- finding


def find(data: str, *, limit: int = 100, download: bool = True) -> Photos:
    """The images that `--data` names.

    Args:
        data: `auto`: ImageNet in `$IMAGENET_DIR`, `data/ImageNet` or `/data/datasets/ImageNet`, else
            `imagenette`, else `builtin`, and then the note says why; `imagenette`, downloaded into `data/`;
            `builtin`, dead leaves for training and the two photos of scikit-learn for the test; ImageNet's
            training archive with its index; or a folder: in ImageNet's or Kaggle's layout or with ImageNet's
            archives, one that holds such a folder, or any folder of photos, of which about a tenth, chosen by
            a hash of the path, is kept for the test.
        limit: at most so many test images, evenly spaced over the sorted list.
        download: whether `auto` may fetch Imagenette, 341 MB.

    Raises:
        UserError: no such path, too few photos in it, an archive without its index, an extraction that was
            not finished, or Imagenette cannot be had.
    """
    if data == "builtin":
        return _builtin()
    origin, text = "--data", data
    if data == "auto":  # what is named on purpose and is wrong is not passed over
        origin, text = "$IMAGENET_DIR", os.environ.get("IMAGENET_DIR", "")
        if not text:
            return _usual(limit, download)
    path = imagenet.imagenette(DOWNLOADS) if data == "imagenette" else user_path(origin.strip("-"), text)
    try:
        name, train, test = _train_and_test(path)
        if not train:
            left_out = f"; {train.left_out}" if train.left_out else ""
            raise UserError(f"{path} holds no photos ({' '.join(SUFFIXES)}){left_out}; {REMEDY}")
        return _split(name, train, test, limit)
    except UserError as error:
        raise UserError(f"{origin} {error}") from None
    except OSError as error:
        raise UserError(f"{origin} {path}: {cause_of(error)}; {REMEDY}") from None


def _usual(limit: int, download: bool) -> Photos:
    """ImageNet where it usually lies, else Imagenette, else the built-in images."""
    for path in USUAL:
        if os.path.isdir(path) and (parts := _train_and_test(path))[1]:  # noqa: PTH112 - never raises
            return _split(*parts, limit)
    cause = "A trial downloads none"
    if download or (DOWNLOADS / "imagenette2-320").is_dir():
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
    if 0 < len(photos) < 3:
        raise UserError(f"{path} holds {len(photos)} photos, it takes 3; {REMEDY}")
    return f"photos in {path.resolve().name}", photos, None


def _imagenet(root: Path, split: str) -> imagenet.PhotoList | None:
    """ImageNet's `train` or `val`: the photos in the folder of that name, else those in the archive."""
    folder, tar = root / split, root / f"ILSVRC2012_img_{split}.tar"
    if folder.is_dir() and (photos := imagenet.listing(folder)):
        return photos
    return imagenet.archived(tar) if tar.exists() else None


def _archive(path: Path) -> imagenet.PhotoList:
    """The photos of a training archive, with the reason where it is none."""
    if path.stat() and not path.is_file():  # a pipe would make one wait
        raise UserError(f"{path} is neither a folder nor a file; {REMEDY}")
    with path.open("rb") as file:
        start = file.read(6)
    if kind := next((kind for magic, kind in COMPRESSED.items() if start.startswith(magic)), None):
        command = command_line("python", "util/unzip_imagenet", str(path))
        raise UserError(
            f"{path} is a {kind} archive, of which no photo can be read in place; unpack it, if it is of "
            f"ImageNet by {command}, and name the folder"
        )
    if path.suffix != ".tar":
        raise UserError(f"{path} is no archive; {REMEDY}")
    archive = imagenet.archived(path)
    if archive.about["split"] != "train":
        raise UserError(f"{path} holds ImageNet's validation photos; name the training archive")
    return archive


def _builtin(why: str = "") -> Photos:
    parts = ("top left", "top right", "bottom left", "bottom right", "whole")
    crops = [f"{photo} {part}" for photo in ("china.jpg", "flower.jpg") for part in parts]
    note = f"Built-in: dead leaves to train on, ten crops of scikit-learn's two photos to be scored on.{why}"
    return Photos(
        "dead leaves, tested on scikit-learn's photos",
        builtin=True,
        train=Source(range(VALIDATION_IMAGES, VALIDATION_IMAGES + GENERATED), dead_leaves),
        validation=Source(range(VALIDATION_IMAGES), dead_leaves),
        test=Source(crops, _sklearn_photo),
        note=note,
    )


def _sklearn_photo(which: str) -> Image.Image:
    """A photo of scikit-learn's (640x427), or 256 pixels of one corner, unscaled: `china.jpg top left`."""
    from sklearn.datasets import load_sample_image  # takes a second, which other photos need not wait for

    name, part = which.split(" ", 1)
    image = Image.fromarray(load_sample_image(name))
    if part == "whole":
        return image
    left = image.width - SHORTER if "right" in part else 0
    top = image.height - SHORTER if "bottom" in part else 0
    return image.crop((left, top, left + SHORTER, top + SHORTER))


# ------------------------------------------------------------------------------------- splitting


def _split(name: str, train: imagenet.PhotoList, test: imagenet.PhotoList | None, limit: int) -> Photos:
    """The three parts; where there are no photos to be tested on, they are taken from those to train on."""
    for photos in (train, test):
        if photos and photos.left_out:
            print(f"{photos.path}: {photos.left_out}", file=sys.stderr)
    notes = []
    limits = {"Training": _limits(train.about), "Test": _limits((test or train).about)}
    if limits["Training"] == limits["Test"]:
        limits = {"All": limits["Training"]}
    own_test = test is not None
    if test is None:
        notes.append("No validation photos are there: about a tenth of the photos is the test.")
        hashes = train.hashes()
        # a share of the range of hashes, so that photos added later move none from one part to the other
        tested = hashes < 2**64 // 10
        if not tested.any() or tested.sum() > len(hashes) - 2:  # only among very few photos
            tested = hashes == hashes.min()
        train, test = train[~tested], train[tested]

    # Evenly spaced over the list; what is not taken stands in for what cannot be read
    count = min(VALIDATION_IMAGES, max(1, len(train) // 20))
    validation, train = _evenly_spaced(train, count)
    if len(test) > limit:
        notes.append(f"Scored on {limit} of {len(test):,} test photos, evenly spaced over the sorted list.")
    test, others = _evenly_spaced(test, min(limit, len(test)))
    notes += [f"{part} photos are {what}." for part, what in limits.items() if what]
    to_train = Source(train, read_to_train)
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
    """What photos are less than ImageNet's, by what `util/unzip_imagenet` noted of them, for the note."""
    limits = []
    if about.get("mode") == "shrink":
        limits.append(f"shrunk to a shorter side of {about['size']} (JPEG quality {about['quality']})")
    if about.get("part"):
        limits.append(f"a part of ImageNet: {about['part']}")
    return ", ".join(limits)
