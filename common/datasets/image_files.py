"""Which files below a folder are images: one rule for all that read folders, and what is left out by it."""

import heapq
import importlib
import os
import stat
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from PIL import features

from common.cli import UserError
from common.files import cause_of

FORMATS = ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]
"""What can be read here, as Pillow names it."""
SUFFIXES: tuple[str, ...] = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm")
SUFFIXES += (".tif", ".tiff", ".webp")
"""Files that end so, in upper or lower case, are taken for images."""
HEIC = (".heic", ".heif", ".hif")
if features.check("avif"):
    FORMATS.append("AVIF")
    SUFFIXES += (".avif",)
if find_spec("pillow_heif"):
    importlib.import_module("pillow_heif").register_heif_opener()
    FORMATS.append("HEIF")
    SUFFIXES += HEIC

# Why something is left out; {s} makes the plural
REASONS = {
    ".avif": "AVIF file{s} (this Pillow reads none: pip install -U pillow)",
    **dict.fromkeys(HEIC, "HEIC file{s} (pip install pillow-heif, or convert to JPEG)"),
    **dict.fromkeys(
        (".7z", ".gz", ".rar", ".tar", ".tgz", ".zip"),
        "archive{s} (unpack first, ImageNet's by util/unzip_imagenet)",
    ),
    "": "file{s} without a suffix",
}
SPECIAL = "special file{s} (a pipe, socket or device)"
FOLDER = "folder{s} named like an image (images inside are taken)"
BROKEN, TWICE = "broken link{s}", "link{s} to what is there already"


class ImageFiles:
    """The images below a folder, each once, whatever links lead to it; what is hidden does not count.

    Links are followed after all else, so a file is listed under its own name. No file is opened.

    Attributes:
        paths: relative to the folder, sorted, the files of a folder before those of its subfolders.
        changed: when each folder, such as "" or "a/b/", was changed, in nanoseconds.
        left_out: how many were left out, by reason.
        unreadable: folders that cannot be listed, with the cause.
    """

    def __init__(self, root: Path, without: Path | None = None) -> None:
        """Looks for images below `root`, but not below `without`, where results may go.

        Raises:
            UserError: `root` itself cannot be listed.
        """
        self.root = root
        self.changed: dict[str, int] = {}
        self.left_out: Counter[str] = Counter()
        self.unreadable: list[str] = []
        self._names: dict[str, list[str]] = {}  # of images, by folder
        self._seen = {_identity(without.stat())} if without and without.exists() else set()
        self._linked: set[Path] = set()  # images that only links lead to
        self._folders, self._links = [""], list[tuple[bool, str]]()  # still to be looked at

        while self._folders or self._links:
            if not self._folders:
                self._follow(heapq.heappop(self._links)[1])
                continue
            folder = self._folders.pop()
            try:
                self._look_into(folder)
            except OSError as error:
                if not folder:
                    raise UserError(f"{root} cannot be listed: {cause_of(error)}; name another one") from None
                self.unreadable.append(f"{folder[:-1]} ({cause_of(error)})")

        self.paths: list[bytes] = []
        for folder in sorted(self._names, key=lambda folder: folder.split("/")):
            prefix = os.fsencode(folder)
            self.paths += [prefix + name for name in sorted(map(os.fsencode, self._names[folder]))]

    def _look_into(self, folder: str) -> None:
        state = (self.root / folder).stat()
        if _identity(state) in self._seen:
            return
        self._seen.add(_identity(state))
        with os.scandir(self.root / folder) as entries:
            self.changed[folder] = state.st_mtime_ns
            names = self._names[folder] = []
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    continue
                if name.lower().endswith(SUFFIXES) and entry.is_file(follow_symlinks=False):
                    names.append(name)
                elif entry.is_symlink():  # those to folders are followed first
                    link = folder + name
                    heapq.heappush(self._links, (not os.path.isdir(self.root / link), link))  # noqa: PTH112
                else:
                    self._add(folder + name, entry.is_dir(follow_symlinks=False))

    def _add(self, path: str, is_dir: bool) -> None:
        """A folder, or what is no image."""
        is_image, suffix = path.lower().endswith(SUFFIXES), Path(path).suffix.lower()
        if is_dir:
            self._folders.append(f"{path}/")
        if is_image:
            self.left_out[FOLDER if is_dir else SPECIAL] += 1
        elif not is_dir:
            self.left_out[REASONS.get(suffix, f"{suffix} file{{s}}")] += 1

    def _follow(self, link: str) -> None:
        path = self.root / link
        try:
            state = path.stat()
        except OSError:  # nothing is there, or the link itself
            self.left_out[BROKEN] += 1
            return
        is_dir = stat.S_ISDIR(state.st_mode)
        if not is_dir and not (stat.S_ISREG(state.st_mode) and link.lower().endswith(SUFFIXES)):
            self._add(link, is_dir)
            return
        file = path.resolve()
        listed = file.name[:1] != "." and file.name.lower().endswith(SUFFIXES)
        if (
            _identity(state) in self._seen
            or file in self._linked
            or (listed and not is_dir and _identity(file.parent.stat()) in self._seen)
        ):
            self.left_out[TWICE] += 1
        elif is_dir:
            self._add(link, is_dir)
        else:
            self._linked.add(file)
            folder, slash, name = link.rpartition("/")
            self._names[folder + slash].append(name)

    def left_out_line(self) -> str:
        """Such as `left out: 2 broken links, 1 folder that cannot be listed: lost+found (...)`, or ""."""
        reasons = self.left_out.most_common()
        if len(reasons) > 9:
            reasons[8:] = [("other{s}", sum(count for _, count in reasons[8:]))]
        if self.unreadable:
            names = ", ".join(self.unreadable[:3]) + ", ..." * (len(self.unreadable) > 3)
            reasons.append((f"folder{{s}} that cannot be listed: {names}", len(self.unreadable)))
        words = [f"{count:,} {reason.replace('{s}', 's' * (count > 1))}" for reason, count in reasons]
        return f"left out: {', '.join(words)}" if words else ""


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino
