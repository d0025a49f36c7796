"""Lists a folder of photos, however large, and fetches Imagenette, a free subset of ImageNet.

ImageNet's layout is `{train,val}/{wnid}/{id}.JPEG`; the listing takes any tree of folders.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Listing(Sequence[str]):
    """The photos below a folder, sorted: a sequence of full paths that holds a million names in some 40 MB.

    Names lie one behind the other in `names`, the name i at `bounds[i]:bounds[i + 1]`. Those of the folder k are
    `starts[k]` to `starts[k + 1]`. `chosen` says which names belong to this sequence, in which order.
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
        """uint64 [len]: one number per photo from its path below `root`, the same on every machine and run."""
        paths = (self.relative(i) for i in range(len(self)))
        digests = b"".join(hashlib.blake2b(os.fsencode(path), digest_size=8).digest() for path in paths)
        return np.frombuffer(digests, np.uint64)


def listing(root: Path) -> Listing:
    """All photos below `root`, by their suffix; from the cache where no folder has changed since.

    A folder's modification time changes when a file is added, removed or renamed in it, so one look at each
    folder tells whether the cache still holds. Hidden files and folders are left out.
    """
    root = root.resolve()
    return _scan(root)


def _scan(root: Path) -> Listing:
    folders, starts, names, bounds = [], [0], [], [0]
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        below, here = [], []
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if os.path.splitext(entry.name)[1].lower() in PHOTO_SUFFIXES:  # noqa: PTH122
                    here.append(entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    below.append(f"{folder}/{entry.name}" if folder else entry.name)
        folders.append(folder)
        waiting += sorted(below, reverse=True)
        for name in sorted(here):
            names.append(os.fsencode(name))
            bounds.append(bounds[-1] + len(names[-1]))
        starts.append(len(names))
    return Listing(
        str(root), folders, np.array(starts[:-1]), b"".join(names), np.array(bounds), np.arange(len(names))
    )
