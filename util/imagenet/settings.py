"""What one call of unzip_imagenet has to do, and how much of the disk that takes."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SHRUNK = 1 / 6
"""Bytes of a shrunk set as a share of its archive's, with something to spare."""


@dataclass
class Settings:
    """The flags, as `unzip_imagenet --help` explains them, after they have been checked."""

    source: str
    out: Path
    mode: Literal["extract", "shrink", "index"] = "extract"
    size: int | None = None
    quality: int | None = None
    workers: int = 1
    consume: bool = False
    classes: int | list[str] | None = None
    per_class: int | None = None
    labels: Path | None = None
    verify: Literal["fast", "md5", "none"] | None = None
    md5: str | None = None
    dry_run: bool = False
    check: bool = False
    decode: bool = False
    command: str = ""
    """The command that does the same from any folder, for whoever finds the work unfinished."""

    def recorded(self) -> dict[str, Any]:
        """What decides which files appear, and their bytes: a resumed extraction must have the same."""
        names = ("mode", "size", "quality", "classes", "per_class", "consume")
        return {name: getattr(self, name) for name in names}

    def part(self) -> str | None:
        """The part of the set that is taken, in words; None if nothing is left out."""
        count = len(self.classes) if isinstance(self.classes, list) else self.classes
        words = [f"{count} classes"] if count else []
        words += [f"at most {self.per_class} images a class"] if self.per_class else []
        return ", ".join(words) or None

    def need(self, archive_bytes: int) -> float:
        """Bytes that will be written, about."""
        need = archive_bytes * (SHRUNK if self.mode == "shrink" else 1.0)
        if self.consume:
            return need * 0.02
        count = len(self.classes) if isinstance(self.classes, list) else self.classes or 1000
        return need * min(1, count / 1000) * min(1, (self.per_class or 1300) / 1300)


def space(folder: Path) -> tuple[int, int]:
    """Bytes and files that are free where `folder` is or would be."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:  # as on a drive that is not there
        there = there.parent
    free = shutil.disk_usage(there).free
    if hasattr(os, "statvfs"):
        state = os.statvfs(there)
        if state.f_files:  # some file systems make them as they go
            return free, state.f_favail
    return free, 10**9
