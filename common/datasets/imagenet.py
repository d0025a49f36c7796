"""Lists a folder of photos or an archive of ImageNet, however large, and fetches Imagenette, a free subset.

ImageNet's layout is `{train,val}/{wnid}/{id}.JPEG`; the listing takes any tree of folders.
"""

import hashlib
import http.client
import os
import shutil
import socket
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from torchvision.datasets import Imagenette

from common.cli import UserError
from common.datasets import imagenet_archive
from common.files import atomic_write

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
WORTH_CACHING = 10_000
"""Photos: fewer are listed faster than anyone notices."""
IMAGENETTE = {"train": 9_469, "val": 3_925}
"""Pictures in the whole set, by fastai's own count (github.com/fastai/imagenette)."""
TIMEOUT = 10
"""Seconds without an answer after which a server counts as out of reach."""


@dataclass(frozen=True)
class Listing(Sequence[str]):
    """The photos below a folder, sorted: a sequence of full paths that holds a million names in some 40 MB.

    The name i is `names[bounds[i]:bounds[i + 1]]`. The names of the folder k begin with `starts[k]`.
    `chosen` says which names belong to this sequence, in which order.
    """

    root: str
    folders: list[str]
    """Relative to `root`; the first is `root` itself, named by nothing."""
    starts: np.ndarray
    names: bytes
    bounds: np.ndarray
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]  # an index gives a path, a slice a Listing
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        return os.path.join(self.root, self.relative(place))  # noqa: PTH118 - a Path costs ten times as much

    def relative(self, place: int) -> str:
        """The path below `root`, with `/` between its parts on every system."""
        i = int(self.chosen[place])
        folder = self.folders[int(np.searchsorted(self.starts, i, side="right")) - 1]
        name = os.fsdecode(self.names[self.bounds[i] : self.bounds[i + 1]])
        return f"{folder}/{name}" if folder else name

    def take(self, places: np.ndarray) -> "Listing":
        """Only the photos at these places."""
        return replace(self, chosen=self.chosen[places])

    def hashes(self) -> np.ndarray:
        """uint64 [len]: a number for each photo, of its path below `root`: the same everywhere, always."""
        folders = [os.fsencode(folder + "/") if folder else b"" for folder in self.folders]
        holding = np.searchsorted(self.starts, self.chosen, side="right") - 1  # [len], the folder of each
        digests = b"".join(
            hashlib.blake2b(
                folders[k] + self.names[self.bounds[i] : self.bounds[i + 1]], digest_size=8
            ).digest()
            for k, i in zip(holding.tolist(), self.chosen.tolist(), strict=True)
        )
        return np.frombuffer(digests, "<u8")

    def fingerprint(self) -> str:
        """The same for the same paths below `root` in the same order."""
        digest = hashlib.sha256("\0".join(self.folders).encode(errors="surrogateescape"))
        for part in (self.starts.data, self.names, self.bounds.data, self.chosen.data):
            digest.update(part)
        return digest.hexdigest()


@dataclass(frozen=True)
class Archived(Sequence["Member"]):
    """The photos inside one of ImageNet's archives, of which nothing is unpacked.

    `rows` is the index beside the archive, memory-mapped: all processes share its pages. `chosen` says which
    rows belong to this sequence, in which order.
    """

    tar: Path
    rows: np.ndarray
    about: dict[str, Any]
    chosen: np.ndarray
    handle: "Handle"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (
            self.tar,
            self.chosen,
        )  # a worker maps the index itself: pickled it would be copied

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]  # a number gives a Member, a slice an Archived
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        offset, size, which, number = self.rows[self.chosen[place]].tolist()
        wnid = self.about["wnids"][which]
        name = f"{wnid}/{imagenet_archive.picture_name(self.about['split'], wnid, number)}"
        return Member(self.handle, name, offset, size)

    def take(self, places: np.ndarray) -> "Archived":
        """Only the photos at these places."""
        return replace(self, chosen=self.chosen[places])

    def hashes(self) -> np.ndarray:
        """uint64 [len]: a number for each photo, of its class and number: the same everywhere, always.

        The finalizer of SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number
        Generators", figure 16): digests of a million names would take seconds.
        """
        rows = self.rows[self.chosen]
        wnids = np.array([int(wnid[1:]) for wnid in self.about["wnids"]], np.uint64)
        x = (wnids[rows["class"]] << np.uint64(32)) | rows["number"]  # [len]
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    def fingerprint(self) -> str:
        """The same for the same photos in the same order."""
        digest = hashlib.sha256(" ".join(self.about["wnids"]).encode())
        rows = self.rows[self.chosen]
        for column in ("class", "number"):
            digest.update(np.ascontiguousarray(rows[column]).data)
        return digest.hexdigest()


class Handle:
    """Reads an archive, in each process by a handle of its own: a shared one would share its place in it."""

    def __init__(self, tar: Path) -> None:
        self.tar = tar
        self._process = -1

    def read(self, offset: int, size: int) -> bytes:
        if self._process != os.getpid():
            self._file, self._process = self.tar.open("rb"), os.getpid()
        self._file.seek(offset)
        return self._file.read(size)


@dataclass(frozen=True)
class Member:
    """A photo inside an archive; its name is the one that it would have as a file."""

    handle: Handle
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The photo's bytes, still compressed."""
        return self.handle.read(self.offset, self.size)

    def __str__(self) -> str:
        return f"{self.handle.tar}/{self.name}"


def archived(tar: Path) -> Archived:
    """All photos of one of ImageNet's archives, in the order that `listing` gives the unpacked ones.

    So training from the archive is the same as training from the folder.

    Raises:
        Refused: no such archive, or no index that fits it; the message has the command that makes it.
    """
    tar = tar.absolute()  # a link in a folder of one's own may have the index
    rows, about = imagenet_archive.open_index(tar)
    chosen = np.arange(len(rows), dtype=np.uint32)
    if about["split"] == "train":  # the numbers have no leading zeros: as names 10 comes before 9
        number = rows["number"].astype(np.int64)
        digits = np.searchsorted(10 ** np.arange(1, 10), number, side="right") + 1
        padded = number * 10 ** (10 - digits) * 16 + digits  # 9 is 9,000,000,000 and one digit
        chosen = chosen[np.lexsort((padded, rows["class"]))]
    return Archived(tar, rows, about, chosen, Handle(tar))


def _reopened(tar: Path, chosen: np.ndarray) -> Archived:
    return Archived(tar, *imagenet_archive.open_index(tar), chosen, Handle(tar))


def listing(root: Path) -> Listing:
    """All photos below `root`, by their suffix; a large listing comes from a cache if nothing has changed.

    A folder's modification time changes when a file is added to it, removed or renamed, so one look at each
    folder tells whether the cache still holds. Hidden files and folders are left out.

    Raises:
        Refused: a folder cannot be listed.
    """
    root = root.resolve()
    cache = cache_of(root)
    found = _from_cache(root, cache)
    if found is None:
        found, changed = _scan(root)
        # a folder that changed within the clock's last tick could change again and keep its time
        if len(found) >= WORTH_CACHING and changed.max() < time.time_ns() - 2_000_000_000:
            _to_cache(found, changed, cache)
    return found


def cache_of(root: Path) -> Path:
    """The file that keeps the listing of a folder."""
    key = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=16).hexdigest()
    return Path(pooch.os_cache("deep-learning-experiments")) / f"listing-{key}.npz"


def _scan(root: Path) -> tuple[Listing, np.ndarray]:
    """The listing, and the modification time of each folder in nanoseconds."""
    folders, changed, starts, bounds = [], [], [], [0]
    names: list[bytes] = []
    waiting, seen = [""], set()
    while waiting:
        folder = waiting.pop()
        below, here = [], []
        try:
            state = (root / folder).stat()
            if (state.st_dev, state.st_ino) in seen:  # a link that leads back up
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if os.path.splitext(entry.name)[1].lower() in PHOTO_SUFFIXES:  # noqa: PTH122 - a million times
                        here.append(os.fsencode(entry.name))
                    elif entry.is_dir():
                        below.append(f"{folder}/{entry.name}" if folder else entry.name)
        except OSError as error:
            raise UserError(f"cannot list {root / folder}: {error.strerror}; name another folder") from None
        waiting += sorted(below, reverse=True)
        folders.append(folder)
        changed.append(state.st_mtime_ns)
        starts.append(len(names))
        for name in sorted(here):
            names.append(name)
            bounds.append(bounds[-1] + len(name))
    everything = np.arange(len(names), dtype=np.uint32)
    found = Listing(
        str(root), folders, np.array(starts), b"".join(names), np.array(bounds, np.uint32), everything
    )
    return found, np.array(changed)


def _from_cache(root: Path, cache: Path) -> Listing | None:
    try:
        with np.load(cache, allow_pickle=False) as saved:
            folders = os.fsdecode(saved["folders"].tobytes()).split("\0")
            now = [(root / folder).stat().st_mtime_ns for folder in folders]
            if not np.array_equal(now, saved["changed"]):
                return None
            bounds = saved["bounds"]
            everything = np.arange(len(bounds) - 1, dtype=np.uint32)
            return Listing(str(root), folders, saved["starts"], saved["names"].tobytes(), bounds, everything)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # no cache, a damaged one, or a folder that is gone: the scan will tell


def _to_cache(found: Listing, changed: np.ndarray, cache: Path) -> None:
    folders = os.fsencode("\0".join(found.folders))
    try:
        with atomic_write(cache) as beside:
            np.savez(
                beside,
                folders=np.frombuffer(folders, np.uint8),
                changed=changed,
                starts=found.starts,
                names=np.frombuffer(found.names, np.uint8),
                bounds=found.bounds,
            )
    except (OSError, UserError) as error:
        print(
            f"the list of photos could not be kept, the next run lists them again: {error}", file=sys.stderr
        )


def imagenette(root: Path) -> Path:
    """The 320-pixel Imagenette, 13,394 photos of ten ImageNet classes: downloads it if it is not in `root`.

    341 MB, checked by MD5, unpacked in a temporary folder, counted and only then given its name: a download
    that is interrupted never passes for the whole set. An archive put into `root` is used without a network.

    Returns:
        `root/imagenette2-320`, in ImageNet's layout.

    Raises:
        Refused: it cannot be had; the message names address, checksum and where to put it by hand.
    """
    url, md5 = Imagenette._ARCHIVES["320px"]
    archive = root / url.rsplit("/", 1)[1]
    folder = archive.with_suffix("")
    by_hand = f"fetch {url} (md5 {md5}) by hand and put it at {archive}"
    if folder.is_dir():
        if (count := _count(folder)) != IMAGENETTE:
            raise UserError(
                f"{folder} holds {count} pictures instead of {IMAGENETTE}; remove it, or {by_hand}"
            )
        return folder
    print("Fetching Imagenette, 341 MB of real photos", file=sys.stderr)
    patience = socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".imagenette.", dir=root) as name:
            beside = Path(name)
            if archive.exists():
                shutil.copy(archive, beside)  # torchvision takes it if its checksum is right
            socket.setdefaulttimeout(TIMEOUT)
            Imagenette(beside, size="320px", download=True)
            if (count := _count(beside / folder.name)) != IMAGENETTE:
                raise RuntimeError(f"it holds {count} pictures instead of {IMAGENETTE}")
            (beside / folder.name).rename(folder)
    # urllib raises OSError or HTTPException, torchvision RuntimeError where the checksum is wrong
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        why = " ".join(str(error).split())  # what a server answers may have lines
        raise UserError(f"Imagenette could not be had ({why}); {by_hand}") from None
    finally:
        socket.setdefaulttimeout(patience)
    return folder


def _count(folder: Path) -> dict[str, int]:
    return {split: len(listing(folder / split)) if (folder / split).is_dir() else 0 for split in IMAGENETTE}
