"""Files that appear whole or not at all, and clear refusals. Needs only Python, so that tools start fast."""

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Refused(Exception):
    """Something the user gave cannot be used. The message is one line: what is wrong, where, what to do."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to, beside `path`; renames it to `path` at the end, or removes it on an error.

    So a file appears whole or not at all. The name keeps its suffix, since writers choose a format by it.

    Raises:
        Refused: the folder cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror}; name another place") from None
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        mask = os.umask(0)
        os.umask(mask)
        beside.chmod(0o666 & ~mask)  # mkstemp's own mode would hide the file from everybody else
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def command_line(*words: str) -> str:
    """The words as one would type them here: Windows' cmd takes single quotes for a part of a name."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def check_writable(folder: Path) -> None:
    """Says before the work, not after it, that its results could not be written. Makes nothing.

    Raises:
        Refused: `folder`, or the folder that it would be made in, cannot be written to.
    """
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise Refused(f"cannot write to {folder}: {there} is a file; name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Refused(f"cannot write to {folder}: {there} is not yours to change; name another place")


def save_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON, whole or not at all."""
    with whole(path) as beside:
        beside.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
