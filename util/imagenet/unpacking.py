"""Fills `ImageNet/train` and `ImageNet/val` so that a kill at any moment costs one class, and never the rest.

A class is written in `.partial`, counted, renamed, and then noted in `.journal`; what the journal does not
note is done again. A set without classes in order (the validation archive) is written in `.partial` to its
end, and the journal notes how far. `manifest.json` and `.complete` come last, and the journal goes.

A killed process loses nothing that it wrote. A power cut may: what it took is seen by a class's count and
bytes, and the class is done again. Only where the archive is consumed, the disk is waited for.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO, Literal

from tqdm import tqdm

from common.cli import UserError
from common.datasets.imagenet_archive import COMPLETE, FORMAT, JOURNAL, MANIFEST
from util.imagenet.shrinking import shrink_batch, start_worker, undecodable, undecodable_rows, write

PARTIAL = ".partial"
LOCK = ".unzip_imagenet.lock"
BATCH = 8
"""Pictures that go to a worker process at once."""


@dataclass(frozen=True)
class Settings:
    """What decides which files appear, and their bytes: a resumed extraction must have the same."""

    mode: Literal["extract", "shrink"] = "extract"
    size: int | None = None
    """Shorter side in pixels, for `shrink`."""
    quality: int | None = None
    """Of the JPEG files, for `shrink`."""
    classes: int | tuple[str, ...] | None = None
    """So many first classes, or these."""
    per_class: int | None = None
    """So many first pictures of each class."""
    consume: bool = False
    """Free the archive while it is read, from its end."""

    def part(self) -> str | None:
        """What is left out, in words; None if nothing is."""
        words = []
        if self.classes is not None:
            count = self.classes if isinstance(self.classes, int) else len(self.classes)
            words.append(f"{count} classes")
        if self.per_class is not None:
            words.append(f"at most {self.per_class} pictures a class")
        return ", ".join(words) or None

    def as_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))


# ------------------------------------------------------------------------------------------- filling


class Split:
    """`ImageNet/train` or `ImageNet/val` while it is filled.

    Attributes:
        finished: what the journal says of each class that is done: `class`, `start` and `size` of its
            archive, `pictures`, `bytes`.
        until: how far a set without classes in order is done, a place in its archive; None at the beginning.
        resumed: whether something was there already.
        wrong: the md5 of the archive, if it was found not to be the right one.
        pictures: how many were written now.
        head: what the journal says of the settings and of the archive; `last`: its last line.

    Raises:
        UserError: the folder holds something else, or was begun with other settings.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        source: dict[str, Any],
        command: str,
        *,
        flat: bool,
        workers: int,
    ) -> None:
        """Makes the folder, or goes on with what is there.

        Args:
            source: what is known of the archive: `archive`, its name, and `bytes`, None where nobody knows.
            command: what finishes the work, if it is interrupted.
            flat: whether the pictures come without classes in order.
            workers: processes that make pictures small.
        """
        self.folder = folder
        self.settings = settings
        self.flat = flat
        self.finished: dict[str, dict[str, Any]] = {}
        self.until: int | None = None
        self.renaming = False
        self.last: dict[str, Any] = {}
        self.resumed = False
        self.wrong: str | None = None
        self.pictures = 0
        self._kept: list[str] = []
        self._partial = folder / PARTIAL
        self._made: set[str] = set()
        self._copies = False  # whether it was said that pictures are copied
        self._unsynced: list[str] = []
        self._bytes = 0
        self._waiting: deque[tuple[dict[str, Any], list[Future[list[tuple[int, str]]]]]] = deque()
        self._futures: list[Future[list[tuple[int, str]]]] = []
        self._batch: list[tuple[str, bytes]] = []
        self._pool: ProcessPoolExecutor | None = None
        self.head = self._begin({"command": command, "settings": settings.as_json(), "source": source})
        if not flat or not self.resumed:
            _remove(self._partial)  # of a run that was killed
        self._journal: BinaryIO = (folder / JOURNAL).open("ab")
        if settings.mode == "shrink":
            self._room = threading.Semaphore(4 * workers)
            self._pool = ProcessPoolExecutor(workers, get_context("spawn"), start_worker)

    def _begin(self, head: dict[str, Any]) -> dict[str, Any]:
        """Makes the folder, or reads how far it is; gives the head of the journal."""
        journal = self.folder / JOURNAL
        if not journal.exists():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise UserError(
                    f"{self.folder} holds files that are not of this extraction; name another --out"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
        lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # killed while it was written
            lines.pop()
        if not lines:
            journal.write_bytes(json.dumps(head).encode() + b"\n")
            return head
        try:
            head_then, *entries = [json.loads(line) for line in lines]
            command, then = head_then["command"], head_then["source"]
            settings_then = head_then["settings"]
            if any(
                {"class", "start", "size", "pictures", "bytes"} - set(one)
                and not {"until", "wrong"} & set(one)
                for one in entries
            ):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{journal} is damaged; remove {self.folder} and extract again") from None
        if settings_then != head["settings"]:
            raise UserError(f"{self.folder} was begun otherwise; finish it: {command}; or remove it")
        ours = head["source"]
        if not head["settings"]["consume"] and None not in (then["bytes"], ours["bytes"]) and then != ours:
            raise UserError(
                f"{self.folder} was begun from another {then['archive']}, of {then['bytes']:,} bytes; "
                f"finish it: {command}; or remove it"
            )
        os.truncate(journal, sum(map(len, lines)))
        self.resumed = True
        for entry in entries:
            if "wrong" in entry:
                self.wrong = entry["wrong"]
                continue
            if "class" in entry:
                self.finished[entry["class"]] = entry
            else:
                self.until, self.renaming = entry["until"], entry.get("renaming", False)
            self._kept += entry.get("kept", [])
            self.last = entry
        for wnid, entry in list(self.finished.items()):
            if _measure(self.folder / wnid) != (entry["pictures"], entry["bytes"]):
                if head["settings"]["consume"]:
                    raise UserError(
                        f"{self.folder / wnid} was changed since, and its archive is freed already; remove "
                        f"{self.folder} and begin again from a new archive"
                    )
                print(f"{wnid} was changed since it was finished; it is extracted again", file=sys.stderr)
                del self.finished[wnid]
        return head_then

    def add(self, wnid: str, name: str, data: bytes | Path) -> None:
        """Writes a picture, or has it made small; a path is a file that becomes another name of the same."""
        if wnid not in self._made:
            (self._partial / wnid).mkdir(parents=True, exist_ok=True)
            self._made.add(wnid)
        self.pictures += 1
        path = f"{self._partial}{os.sep}{wnid}{os.sep}{name}"
        if self.settings.consume and not hasattr(os, "sync"):
            self._unsynced.append(path)
        if isinstance(data, Path):
            state = data.stat()
            if not stat.S_ISREG(state.st_mode) or not state.st_size:
                raise UserError(f"{data} is no picture, or empty; remove it")
        if self._pool:
            self._batch.append((path, data if isinstance(data, bytes) else data.read_bytes()))
            if len(self._batch) == BATCH:
                self._send()
        elif isinstance(data, bytes):
            write(path, data)
            self._bytes += len(data)
        else:
            self._bytes += state.st_size
            self._link(data, path)

    def _link(self, file: Path, path: str) -> None:
        """Another name for the same file, which takes no space; on another disk a copy."""
        try:
            Path(path).unlink(missing_ok=True)
            os.link(file.resolve() if file.is_symlink() else file, path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if not self._copies:
                self._copies = True
                print(
                    f"{file} cannot have a second name in {self.folder} ({error.strerror}): pictures are "
                    "copied, which takes space",
                    file=sys.stderr,
                )
            shutil.copyfile(file, path)

    def _send(self) -> None:
        if self._batch:
            assert self._pool is not None and self.settings.size and self.settings.quality
            self._room.acquire()
            future = self._pool.submit(shrink_batch, self._batch, self.settings.size, self.settings.quality)
            future.add_done_callback(lambda _: self._room.release())
            self._futures.append(future)
            self._batch = []

    def finish_class(self, wnid: str, start: int, size: int, pictures: int, **more: int) -> None:
        """The class gets its name; or later, when workers are still at it.

        Args:
            start: where its archive begins in the outer one.
            size: bytes of its archive.
            pictures: how many it must have.
            more: for the journal.
        """
        self._note({"class": wnid, "start": start, "size": size, "pictures": pictures} | more)

    def finish_until(self, position: int, **more: int) -> None:
        """All before this place of the archive is written; or behind it, where the archive is consumed."""
        self._note({"until": position} | more)

    def _note(self, entry: dict[str, Any]) -> None:
        self._send()
        self._waiting.append((entry | {"bytes": self._bytes}, self._futures))
        self._bytes, self._futures = 0, []
        self._settle(everything=self.settings.consume)

    def _settle(self, *, everything: bool) -> None:
        """Commits, in order, what is written."""
        while self._waiting:
            entry, futures = self._waiting[0]
            if not everything and not all(future.done() for future in futures):
                return
            for future in futures:
                for count, why in future.result():
                    entry["bytes"] += count
                    if why:
                        entry.setdefault("kept", []).append(why)
            self._waiting.popleft()
            self._kept += entry.get("kept", [])
            self._sync_files()
            if "class" in entry:
                self._made.discard(entry["class"])
                self._name(entry["class"], entry["pictures"])
            if self.settings.consume and hasattr(os, "sync"):
                os.sync()
            self._journal.write(json.dumps(entry).encode() + b"\n")
            self._journal.flush()
            if self.settings.consume:
                os.fsync(self._journal.fileno())
            if "class" in entry:
                self.finished[entry["class"]] = entry

    def _sync_files(self) -> None:
        """Where the system cannot be told to write all that waits, on Windows: the files one by one."""
        for path in self._unsynced:
            with open(path, "rb+") as file:  # noqa: PTH123
                os.fsync(file.fileno())
        self._unsynced.clear()

    def _name(self, wnid: str, pictures: int) -> None:
        count = len(os.listdir(self._partial / wnid))  # noqa: PTH208 - only the number of names
        if count != pictures:
            raise UserError(f"{self._partial / wnid} has {count} files instead of {pictures}; run it again")
        _remove(self.folder / wnid)  # of a run that was killed before it noted the class
        (self._partial / wnid).rename(self.folder / wnid)

    def note_wrong(self, md5: str) -> None:
        """All is written, and the archive is not what it should be: whoever goes on is told."""
        self._settle(everything=True)
        self._journal.write(json.dumps({"wrong": md5}).encode() + b"\n")
        self._journal.flush()

    def settle(self) -> None:
        """Waits for the workers; then `finished` has all classes."""
        self._settle(everything=True)

    def complete(self, about: dict[str, Any]) -> dict[str, Any]:
        """All is written: manifest, and the mark that says so.

        Args:
            about: what is to be noted of the archive.

        Returns:
            What `.complete` says.
        """
        self._settle(everything=True)
        if self.flat:
            if not self.renaming:  # from here on names are given, and the archive is not read again
                self._note({"until": self.until, "renaming": True})
                self._settle(everything=True)
            for path in sorted(self._partial.glob("n*")):
                path.rename(self.folder / path.name)
            measured = {path.name: _measure(path) for path in self.folder.glob("n*")}
        else:
            measured = {wnid: (entry["pictures"], entry["bytes"]) for wnid, entry in self.finished.items()}
        settings = self.settings.as_json()
        summary = {
            "format": FORMAT,
            "split": self.folder.name,
            "mode": settings.pop("mode"),
            "size": settings.pop("size"),
            "quality": settings.pop("quality"),
            "part": self.settings.part(),
            "consumed": settings.pop("consume"),
            "classes": len(measured),
            "pictures": sum(pictures for pictures, _ in measured.values()),
            "bytes": sum(size for _, size in measured.values()),
            "kept": len(self._kept),
            **about,
        }
        by_class = {
            wnid: {"pictures": pictures, "bytes": size} for wnid, (pictures, size) in sorted(measured.items())
        }
        manifest = {"settings": settings, "kept as they are": sorted(self._kept), "by class": by_class}
        # through .partial, where a kill leaves nothing that would stay
        self._partial.mkdir(exist_ok=True)
        for name, content in ((MANIFEST, summary | manifest), (COMPLETE, summary)):
            with (self._partial / name).open("w", encoding="utf-8") as file:
                file.write(json.dumps(content, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            (self._partial / name).replace(self.folder / name)
        if self.settings.consume and hasattr(os, "sync"):
            os.sync()
        self._journal.close()
        tidy(self.folder)
        return summary

    def close(self) -> None:
        """Ends the workers; classes that were read to their end are noted, half a class is removed."""
        with contextlib.suppress(
            OSError, BrokenProcessPool, UserError
        ):  # the reason to close is told already
            self._settle(everything=True)
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        with contextlib.suppress(OSError):
            self._journal.close()
            if not self.flat:
                _remove(self._partial)


def check(folder: Path, *, decode: bool, workers: int) -> list[str]:
    """What is wrong with a complete set, by its manifest: counts, bytes; on request every picture is decoded.

    Raises:
        UserError: no manifest, or a damaged one.
    """
    try:
        by_class = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["by class"]
        right = {wnid: (one["pictures"], one["bytes"]) for wnid, one in by_class.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST} cannot be read ({error!r}); extract again") from None
    wrong = []
    there = {path.name for path in folder.iterdir() if path.is_dir()}
    for wnid in sorted(set(right) | there):
        now, then = _measure(folder / wnid), right.get(wnid, (0, 0))
        if now != then:
            wrong.append(
                f"{folder / wnid}: {now[0]:,} pictures, {now[1]:,} bytes instead of {then[0]:,}, {then[1]:,}"
            )
    if decode:
        wrong += _decoded(workers, undecodable, [str(folder / wnid) for wnid in sorted(there)])
    return wrong


def check_rows(tar: Path, count: int, workers: int) -> list[str]:
    """Which of the `count` pictures of an archive's index cannot be decoded, and why."""
    firsts = range(0, count, 1000)
    return _decoded(
        workers, undecodable_rows, [str(tar)] * len(firsts), firsts, [first + 1000 for first in firsts]
    )


def _decoded(workers: int, work: Callable[..., list[str]], *arguments: Any) -> list[str]:
    """What `work` found, in worker processes."""
    wrong = []
    with ProcessPoolExecutor(workers, get_context("spawn"), start_worker) as pool:
        parts = pool.map(work, *arguments)
        for found in tqdm(parts, "decoding", len(arguments[0]), unit="part", disable=None):
            wrong += found
    return wrong


def tidy(folder: Path) -> None:
    """Removes what is needed no more once a set is complete."""
    _remove(folder / PARTIAL)
    (folder / JOURNAL).unlink(missing_ok=True)


def _measure(folder: Path) -> tuple[int, int]:
    """How many files, and their bytes."""
    try:
        with os.scandir(folder) as entries:
            sizes = [entry.stat().st_size for entry in entries]
    except FileNotFoundError:
        return 0, 0
    return len(sizes), sum(sizes)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One extraction into `folder` at a time. The system gives the lock back whatever becomes of us.

    Raises:
        UserError: another one is at work there, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("ab")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; name another --out") from None
    with file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"another unzip_imagenet is at work in {folder}; wait for it, or end it"
            ) from None
        yield


def told(error: OSError | BrokenProcessPool, folder: Path, splits: list[Split]) -> UserError:
    """What to say where writing fails; finished classes stay."""
    done = sum(len(split.finished) for split in splits)
    stays = f"{done:,} classes are finished and stay; the same command goes on"
    if isinstance(error, BrokenProcessPool):
        return UserError(
            f"a worker process was ended, perhaps for memory; {stays}, with --workers 1 if need be"
        )
    where = error.filename or folder
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"the disk of {folder} is full; free some space: {stays}")
    return UserError(f"{where}: {error.strerror}; {stays}")
