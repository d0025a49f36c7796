"""Files that appear whole or not at all, and one line with the true cause where they cannot be written."""

import contextlib
import errno
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from common.cli import UserError, is_first

PREFIX = ".unfinished-"  # short: a name of 250 bytes must find room too
FORGOTTEN = 3600  # seconds after which the temporary file of a program that was killed is swept away


class DiskFull(UserError):
    """No room for a file: every further one would meet it too."""

    exit_code = 1  # no mistake in what was typed


def cause_of(error: BaseException) -> str:
    """Why something failed, in one line: what the system says, and not what a library makes of it."""
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split()) or type(error).__name__


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to; renames it at the end, or removes it on an error.

    So a file appears whole or not at all. The name keeps its suffix, since writers choose a format by it.

    Raises:
        UserError: the folder cannot be made or written to; DiskFull, which is one: there is no room.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(path.parent.resolve())
        handle, name = tempfile.mkstemp(prefix=PREFIX, suffix=path.suffix[:20], dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        with contextlib.suppress(OSError):  # some disks know no modes; mkstemp's own hides it
            temporary.chmod(0o666 & ~mask)
        if is_first():  # of several processes; they all have the same to write
            temporary.replace(path)
    except OSError as error:
        cause = f"cannot write {path}: {cause_of(error)}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(f"{cause}; make room, or name another place") from None
        raise UserError(f"{cause}; name another place") from None
    finally:
        if temporary:
            with contextlib.suppress(OSError):  # a disk may have become read-only
                temporary.unlink()


def sweep(folder: Path, age: float = FORGOTTEN) -> None:
    """Removes what killed programs have left half-written in a folder, `age` seconds ago or more."""
    with contextlib.suppress(OSError):
        for left in folder.glob(f"{PREFIX}*"):
            if time.time() - left.stat().st_mtime >= age:
                left.unlink()


_sweep_once = cache(sweep)


def parse_json(text: str) -> Any:
    """What JSON says; a ValueError where it is none, or nested so deeply that nobody has meant it."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def save_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


def check_writable(*folders: Path) -> None:
    """Says before the work, not after it, that its results could not be written. Makes nothing.

    Raises:
        UserError: one of `folders`, or the folder that it would be made in, cannot be written to.
    """
    for folder in folders:
        there = folder.absolute()
        try:
            while not there.exists() and there != there.parent:
                there = there.parent
        except OSError as error:  # a name too long, a folder that may not be entered
            raise UserError(f"cannot write to {folder}: {cause_of(error)}; name another place") from None
        if not there.is_dir():
            raise UserError(f"cannot write to {folder}: {there} is a file; name another place")
        if not os.access(there, os.W_OK | os.X_OK):
            read_only = getattr(os, "ST_RDONLY", 0) and os.statvfs(there).f_flag & os.ST_RDONLY
            cause = "is on a read-only disk" if read_only else "is not yours to change"
            raise UserError(f"cannot write to {folder}: {there} {cause}; name another place")


def check_output(path: Path | None, suffixes: tuple[str, ...], overwrite: bool) -> None:
    """Says before the work that --output cannot be written.

    Raises:
        UserError: it is missing, ends in none of `suffixes`, is a folder, cannot be written, or exists
            already and is not to be overwritten.
    """
    if path is None or path.suffix.lower() not in suffixes:
        raise UserError(f"--output: name a file that ends in {' or '.join(suffixes)}")
    try:
        if path.is_dir():
            raise UserError(f"--output: {path} is a folder; name a file")
        if path.exists() and not overwrite:
            raise UserError(f"--output: {path} exists; name another file, or add --overwrite")
    except OSError as error:  # a name too long, a folder that may not be entered
        raise UserError(f"--output: {error.strerror}; name another file") from None
    check_writable(path.parent)
