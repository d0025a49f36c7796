"""Lists the photos of a folder or of an archive of ImageNet, however many, and fetches Imagenette, a subset.

ImageNet's layout is `{train,val}/{wnid}/{id}.JPEG`; the listing takes any tree of folders.
"""

import errno
import hashlib
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pooch

from common.cli import UserError
from common.datasets import imagenet_archive
from common.datasets.download import FAILURES, fetch, in_one_line
from common.datasets.image_files import BROKEN, SUFFIXES, ImageFiles
from common.files import atomic_write, check_writable

WORTH_CACHING = 10_000  # photos: fewer are listed faster than anyone notices
IMAGENETTE_FOLDER = "imagenette2-320"
IMAGENETTE = {"train": 9_469, "val": 3_925}
"""Photos in the whole set, by fastai's own count (github.com/fastai/imagenette)."""


@dataclass(frozen=True)
class Member:
    """A photo inside an archive; `name` is the archive's path and what the photo's would be below it."""

    name: str
    tar: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The photo's bytes, still compressed."""
        with self.tar.open("rb") as file:  # workers that shared a handle would share its position
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class PhotoList(Sequence[str | Member]):
    """Photos in a fixed order, of a folder or of an archive, of which nothing is unpacked.

    Attributes:
        rows: [len], paths as bytes, or an archive's rows; a million take 20 to 40 MB, which forks share.
        about: what `util/unzip_imagenet` noted of these photos; empty where they come from elsewhere.
        left_out: what else is in the folder, in a line.
    """

    path: Path
    rows: np.ndarray
    about: dict[str, Any]
    left_out: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """The photo at a number; or the list of those that a slice, numbers or a mask choose."""
        if not isinstance(index, int | np.integer):
            return replace(self, rows=self.rows[index])
        row = self.rows[index].item()
        name = f"{self.path}/{self._name(row)}"
        return name if isinstance(row, bytes) else Member(name, self.path, *row[:2])

    def _name(self, row: Any) -> str:
        """The path below the folder, or below the one that the archive would be unpacked to."""
        if isinstance(row, bytes):
            return os.fsdecode(row)
        wnid = self.about["wnids"][row[2]]
        return f"{wnid}/{imagenet_archive.image_name(self.about['split'], wnid, row[3])}"

    def hashes(self) -> np.ndarray:
        """uint64 [len]: a number for each photo that follows from its path below the folder, everywhere."""
        names = (os.fsencode(self._name(row)) for row in self.rows.tolist())
        return np.frombuffer(b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names), "<u8")

    def fingerprint(self) -> str:
        """The same for the same photos in the same order."""
        return hashlib.sha256(self.rows.tobytes()).hexdigest()


def listing(root: Path) -> PhotoList:
    """All photos below `root`; of a large folder from a cache, if no folder in it has changed since.

    A folder's modification time changes when a file is added to it, removed or renamed.

    Raises:
        UserError: the folder cannot be listed, or is one that `util/unzip_imagenet` has not finished.
    """
    root = root.resolve()
    about = imagenet_archive.check_complete(root) or {}
    cache = cache_of(root)
    try:
        with np.load(cache, allow_pickle=False) as saved:
            now = [(root / os.fsdecode(folder)).stat().st_mtime_ns for folder in saved["folders"].tolist()]
            if np.array_equal(now, saved["changed"]):
                return PhotoList(root, saved["paths"], about, str(saved["left_out"]))
    except Exception:  # no cache, a folder that is gone, or whatever a damaged one leads NumPy into
        pass
    start = time.time_ns()
    images = ImageFiles(root)
    photos = PhotoList(root, np.array(images.paths, bytes), about, "" if about else images.left_out_line())
    # a folder that changed within the clock's last tick could change again and keep its time; and what may
    # be read, or where links lead to, changes none
    old = max(images.changed.values()) < start - 2_000_000_000
    if len(photos) >= WORTH_CACHING and old and not images.unreadable and BROKEN not in images.left_out:
        save_listing(cache, photos, images.changed)
    return photos


def join(first: PhotoList, second: PhotoList) -> PhotoList:
    """The photos of two folders in one list.

    Raises:
        UserError: one is an archive, or they have no folder in common.
    """
    parts = first, second
    for photos in parts:
        if photos.rows.dtype.kind != "S":
            raise UserError(f"{photos.path} is an archive, which can only be taken alone; unpack it")
    try:
        path = Path(os.path.commonpath([photos.path for photos in parts]))
    except ValueError:  # two drives of Windows
        raise UserError(f"{first.path} and {second.path} are on different drives; put them on one") from None
    rows = []
    for photos in parts:
        below = os.fsencode(os.path.relpath(photos.path, path)) + b"/"
        rows.append(photos.rows if below == b"./" else np.char.add(below, photos.rows))
    return PhotoList(path, np.concatenate(rows), first.about)


def cache_of(root: Path) -> Path:
    """The file that keeps the listing of a folder, by today's suffixes."""
    key = hashlib.blake2b(os.fsencode(root.resolve()) + repr(SUFFIXES).encode(), digest_size=16).hexdigest()
    try:
        folder = Path(pooch.os_cache("deep-learning-experiments"))
    except RuntimeError:  # this user has no home, and a place in /tmp could be anybody's: nothing is kept
        folder = Path(os.devnull)
    return folder / f"listing-{key}.npz"


def save_listing(cache: Path, photos: PhotoList, changed: dict[str, int]) -> None:
    """Writes the cache, if that is possible; `changed` is when each folder was changed."""
    arrays: dict[str, Any] = {"paths": photos.rows, "left_out": photos.left_out}
    arrays |= {"folders": [os.fsencode(folder) for folder in changed], "changed": list(changed.values())}
    try:
        with atomic_write(cache) as temporary:
            np.savez(temporary, **arrays)
    except UserError as error:
        print(f"the list of photos is not kept, the next run lists them again: {error}", file=sys.stderr)


def archived(tar: Path) -> PhotoList:
    """All photos of one of ImageNet's archives, in the order of the unpacked ones: training is the same.

    Raises:
        UserError: no such archive, or no index that fits it; the message has the command that makes it.
    """
    tar = tar.absolute()  # a link in a folder of one's own may have the index
    rows, about = imagenet_archive.open_index(tar)
    if about["split"] == "train":  # the numbers have no leading zeros: as names 10 comes before 9
        number = rows["number"].astype(np.int64)
        digits = np.searchsorted(10 ** np.arange(1, 10), number, side="right") + 1
        rows = rows[np.lexsort((digits, number * 10 ** (10 - digits), rows["class"]))]
    return PhotoList(tar, np.asarray(rows), about)


def imagenette(root: Path) -> Path:
    """The folder `root/imagenette2-320`, in ImageNet's layout; it is fetched, 341 MB, if it is not there.

    It gets its name after its MD5 sum and count are found right: a download that is interrupted never passes
    for the whole set. An archive put into `root` is used without a network.

    Raises:
        UserError: it cannot be had; the message names address, checksum and where to put it by hand.
    """
    folder = root / IMAGENETTE_FOLDER
    fault = _miscounted(folder) if folder.is_dir() else ""
    if folder.is_dir() and not fault:
        return folder
    from torchvision.datasets import Imagenette  # not above: `common.doctor` does without torch
    from torchvision.datasets.utils import check_integrity

    url, md5 = Imagenette._ARCHIVES["320px"]
    archive = folder.with_suffix(".tgz")
    by_hand = f"fetch {url} (md5 {md5}) by hand and put it at {archive}"
    if fault:
        raise UserError(f"{folder} {fault}; remove it, or {by_hand}")
    check_writable(root)
    print("Fetching Imagenette, 341 MB of real photos", file=sys.stderr)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".imagenette.", dir=root) as name:
            temporary = Path(name)
            if not check_integrity(archive, md5):
                archive = temporary / archive.name
                with archive.open("w+b") as file:
                    fetch(url, file, md5)
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            if fault := _miscounted(temporary / folder.name):
                raise OSError(f"it {fault}")
            (temporary / folder.name).rename(folder)
    except FAILURES as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = f"make room in {root}" if full else by_hand
        raise UserError(f"Imagenette could not be had ({in_one_line(error)}); {remedy}") from None
    return folder


def _miscounted(folder: Path) -> str:
    """What is wrong with the number of photos in Imagenette's folder; "" if nothing is."""
    count = {split: len(listing(folder / split)) if (folder / split).is_dir() else 0 for split in IMAGENETTE}
    return "" if count == IMAGENETTE else f"holds {count} photos instead of {IMAGENETTE}"
