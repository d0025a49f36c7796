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
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common.cli import UserError
from common.datasets.imagenet_archive import COMPLETE, FORMAT, JOURNAL, MANIFEST, check_complete
from common.files import cause_of, parse_json
from util.imagenet.settings import Settings
from util.imagenet.shrinking import shrink_batch, start_worker, write
from util.imagenet.sources import Image

PARTIAL = ".partial"
LOCK = ".unzip_imagenet.lock"
BATCH = 8
"""Images that go to a worker process at once."""
FULL = (errno.ENOSPC, errno.EDQUOT)
Entry = dict[str, Any]
Results = list[Future[list[tuple[int, str]]]]


class Split:
    """`ImageNet/train` or `ImageNet/val`: what is in it, and its filling after `open`.

    Attributes:
        about: the content of `.complete`; {} where it is not complete.
        head: the journal's first line, of the settings and of the archive; {} where there is no journal.
        finished, last: its entries of classes that are done; the last entry of classes or images.
        wrong: the md5 of the archive, if it was found not to be the right one.
        until: place in an archive without classes in order; the images before it are written.
    """

    def __init__(self, folder: Path, settings: Settings, archive_bytes: int | None, flat: bool) -> None:
        """Looks at what is there, and refuses what was made otherwise or from an archive of another size.

        Args:
            flat: whether the images come without classes in order.
        """
        self.folder, self.settings, self.flat = folder, settings, flat
        self.about = (check_complete(folder) or {}) if (folder / COMPLETE).exists() else {}
        self.head, *entries = ([] if self.about else _read_journal(folder)) or [{}]
        self.wrong = next((entry["wrong"] for entry in reversed(entries) if "wrong" in entry), None)
        entries = [entry for entry in entries if "wrong" not in entry]
        self.last = entries[-1] if entries else {}
        self.until = 0 if settings.consume else self.last.get("until") or 0
        self.finished = {entry["class"]: entry for entry in entries if "class" in entry}
        self._kept = [line for entry in entries for line in entry.get("kept", [])]
        if self.about:
            then = self.about | read_manifest(folder)["settings"] | {"consume": settings.consume}
            name, size, freed = (self.about.get(key) for key in ("archive", "archive_bytes", "consumed"))
            state, remedy = "is complete", ""
        elif self.head:
            then, source, freed = self.head["settings"], self.head["source"], settings.consume
            name, size = source.get("archive"), source["bytes"]
            state, remedy = "was started", f"finish it: {self.head['command']}; or "
        else:
            return
        now = settings.recorded()
        others = [f"made otherwise, with other {key}" for key in now if then.get(key) != now[key]]
        if not freed and None not in (size, archive_bytes) and size != archive_bytes:
            others.append(f"from another {name}, of {size:,} bytes")
        if others:
            raise UserError(f"{folder} {state}, but {others[0]}; {remedy}remove it, or name another --out")

    def open(self, source: dict[str, Any]) -> None:
        """Makes the folder, or goes on with what is there.

        Args:
            source: what is known of the archive: `archive`, its name, `bytes` and `md5`, or None.
        """
        self.images = self._bytes = 0  # bytes since the last entry
        self._partial = self.folder / PARTIAL
        self._class_folders: set[str] = set()
        self._copies = False  # whether it was said that images are copied
        self._unsynced: list[str] = []
        self._batch: list[tuple[str, bytes]] = []
        self._results: Results = []  # of the workers, since the last entry
        self._waiting: deque[tuple[Entry, Results]] = deque()
        self._pool: ProcessPoolExecutor | None = None
        for wnid, entry in list(self.finished.items()):
            if measure(self.folder / wnid) != (entry["pictures"], entry["bytes"]):
                if self.settings.consume:
                    changed = f"{self.folder / wnid} was changed since, and its archive is freed already"
                    raise UserError(f"{changed}; remove {self.folder} and start again from a new archive")
                print(f"{wnid} was changed since it was finished; it is extracted again", file=sys.stderr)
                del self.finished[wnid]
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.flat or not self.head:
            _remove(self._partial)  # of a run that was killed
        journal = self.folder / JOURNAL
        if self.head:
            os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)  # it was killed in a line
        self._journal = journal.open("ab" if self.head else "wb")
        if not self.head:
            settings = self.settings.recorded()
            self.head = {"command": self.settings.command, "settings": settings, "source": source}
            self._write(self.head)
        if self.settings.mode == "shrink":
            self._room = threading.Semaphore(4 * self.settings.workers)
            self._pool = ProcessPoolExecutor(self.settings.workers, get_context("spawn"), start_worker)

    def add(self, image: Image) -> None:
        """Writes an image, or has it shrunk; a file gets another name in place of a copy."""
        if image.wnid not in self._class_folders:
            (self._partial / image.wnid).mkdir(parents=True, exist_ok=True)
            self._class_folders.add(image.wnid)
        self.images += 1
        path = f"{self._partial}{os.sep}{image.wnid}{os.sep}{image.name}"
        if self.settings.consume and not hasattr(os, "sync"):
            self._unsynced.append(path)
        if self._pool:
            self._batch.append((path, image.read()))
            if len(self._batch) == BATCH:
                self._send()
            return
        self._bytes += image.size
        if isinstance(image.source, Path):
            self._link(image.source, path)
        else:
            write(path, image.read())

    def _link(self, file: Path, path: str) -> None:
        """Gives a file another name, which takes no space; copies it to another disk."""
        try:
            Path(path).unlink(missing_ok=True)
            os.link(file.resolve() if file.is_symlink() else file, path)
        except OSError as error:
            if error.errno in FULL:
                raise
            if not self._copies:
                self._copies = True
                why = f"{file} cannot have a second name in {self.folder} ({error.strerror})"
                print(f"{why}: images are copied, which takes space", file=sys.stderr)
            shutil.copyfile(file, path)

    def _send(self) -> None:
        if self._pool and self._batch:
            self._room.acquire()
            size, quality = self.settings.size or 0, self.settings.quality or 0
            self._results.append(self._pool.submit(shrink_batch, self._batch, size, quality))
            self._results[-1].add_done_callback(lambda _: self._room.release())
            self._batch = []

    def finish(self, entry: Entry) -> None:
        """Notes what was added since the last entry, now or when the workers are done with it.

        Args:
            entry: of a class that gets its name now: `class`, `start` and `size` of its archive, `pictures`,
                how many it must have. Else `until`: the images before this place of the archive are written,
                or behind it, where the archive is consumed.
        """
        self._send()
        self._waiting.append((entry | {"bytes": self._bytes}, self._results))
        self._bytes, self._results = 0, []
        self.settle(wait=self.settings.consume)

    def settle(self, *, wait: bool = True) -> None:
        """Commits, in order, what is written; if it waits for the workers, all."""
        while self._waiting and (wait or all(result.done() for result in self._waiting[0][1])):
            entry, results = self._waiting[0]
            for count, why in (line for result in results for line in result.result()):
                entry["bytes"] += count
                if why:
                    entry.setdefault("kept", []).append(why)
            self._waiting.popleft()
            self._commit(entry)

    def _commit(self, entry: Entry) -> None:
        for path in self._unsynced:  # on Windows, which cannot be told to write all that waits
            with open(path, "rb+") as file:  # noqa: PTH123
                os.fsync(file.fileno())
        self._unsynced.clear()
        if wnid := entry.get("class"):
            self._class_folders.discard(wnid)
            count = len(os.listdir(self._partial / wnid))  # noqa: PTH208 - only the number of names
            if count != entry["pictures"]:
                instead = f"{count} files instead of {entry['pictures']}"
                raise UserError(f"{self._partial / wnid} has {instead}; run it again")
            _remove(self.folder / wnid)  # of a run that was killed before it noted the class
            (self._partial / wnid).rename(self.folder / wnid)
            self.finished[wnid] = entry
        if self.settings.consume and hasattr(os, "sync"):
            os.sync()
        self._write(entry)
        if self.settings.consume:
            os.fsync(self._journal.fileno())
        self.last = entry
        self._kept += entry.get("kept", [])

    def _write(self, line: dict[str, Any]) -> None:
        self._journal.write(json.dumps(line).encode() + b"\n")
        self._journal.flush()

    def note_wrong(self, md5: str) -> None:
        """Notes that the archive is not what it should be, for whoever goes on."""
        self.settle()
        self._write({"wrong": md5})

    def is_empty(self) -> bool:
        """Whether no image of it came; then nothing is left of it."""
        if has_images := any(self._partial.glob("n*")):
            return not has_images
        self._journal.close()
        _remove(self.folder)
        return True

    def is_written(self) -> bool:
        """Whether all images are, of a set without classes in order; then the archive is not read again."""
        return bool(self.last.get("renaming"))

    def complete(self, source: dict[str, Any]) -> None:
        """Writes manifest and `.complete` with what is to be noted of the archive, after all images."""
        self.settle()
        counts = {wnid: (entry["pictures"], entry["bytes"]) for wnid, entry in self.finished.items()}
        if self.flat:
            if not self.is_written():
                self.finish(self.last | {"renaming": True})
                self.settle()
            for path in sorted(self._partial.glob("n*")):
                path.rename(self.folder / path.name)
            counts = {path.name: measure(path) for path in self.folder.glob("n*")}
        settings = self.settings.recorded()
        self.about = {
            "format": FORMAT,
            "split": self.folder.name,
            **{name: settings.pop(name) for name in ("mode", "size", "quality")},
            "part": self.settings.part(),
            "consumed": settings.pop("consume"),
            "classes": len(counts),
            "pictures": sum(count for count, _ in counts.values()),
            "bytes": sum(size for _, size in counts.values()),
            "kept": len(self._kept),
            **source,
        }
        by_class = {wnid: {"pictures": counts[wnid][0], "bytes": counts[wnid][1]} for wnid in sorted(counts)}
        manifest = {"settings": settings, "kept as they are": sorted(self._kept), "by class": by_class}
        self._partial.mkdir(exist_ok=True)
        self._save(MANIFEST, self.about | manifest)
        self._save(COMPLETE, self.about)
        if self.settings.consume and hasattr(os, "sync"):
            os.sync()
        self._journal.close()
        self.tidy()

    def _save(self, name: str, content: dict[str, Any]) -> None:
        """Writes a file by way of `.partial`, where a kill leaves nothing that would stay."""
        with (self._partial / name).open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        (self._partial / name).replace(self.folder / name)

    def tidy(self) -> None:
        """Removes what is needed no more once a set is complete."""
        _remove(self.folder / PARTIAL)
        (self.folder / JOURNAL).unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the workers; classes that were read to their end are noted, half a class is removed."""
        with contextlib.suppress(OSError, BrokenProcessPool, UserError):  # the first error is the one to tell
            self.settle()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        with contextlib.suppress(OSError):
            self._journal.close()
            if not self.flat:
                _remove(self._partial)


def _read_journal(folder: Path) -> list[dict[str, Any]]:
    """Head and entries; [] where none was started, and a UserError where the folder is somebody else's."""
    journal = folder / JOURNAL
    if not journal.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} holds files that are not of this extraction; name another --out")
        return []
    lines = journal.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):  # killed while it was written
        lines.pop()
    try:
        entries = [parse_json(line.decode()) for line in lines]
        for head in entries[:1]:
            _ = head["command"], head["settings"], head["source"]["bytes"]
        keys = {"class", "start", "size", "pictures", "bytes"}
        if not all(keys <= set(entry) or {"until", "wrong"} & set(entry) for entry in entries[1:]):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{journal} is damaged; remove {folder} and extract again") from None
    return entries


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was written; a UserError where that cannot be read."""
    try:
        manifest: dict[str, Any] = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        _ = manifest["settings"], manifest["by class"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST} cannot be read ({error!r}); extract again") from None
    return manifest


def measure(folder: Path) -> tuple[int, int]:
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
    """One extraction into `folder` at a time. The system gives the lock back whatever becomes of us."""
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(folder / LOCK).acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"another unzip_imagenet is at work in {folder}; wait for it, or end it") from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {cause_of(error)}; name another --out") from None
    with held:
        yield


def failure(error: Exception, splits: list[Split]) -> UserError:
    """What to say where writing fails."""
    done = sum(len(split.finished) for split in splits)
    stays = f"{done:,} classes are finished and stay; the same command goes on"
    if isinstance(error, BrokenProcessPool):
        ended = "a worker process was ended, perhaps for memory"
        return UserError(f"{ended}; {stays}, with --workers 1 if need be")
    if getattr(error, "errno", None) in FULL:
        return UserError(f"the disk of {splits[0].folder} is full; free some space: {stays}")
    where = getattr(error, "filename", None) or splits[0].folder
    return UserError(f"{where}: {cause_of(error)}; {stays}")
