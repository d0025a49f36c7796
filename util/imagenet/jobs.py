"""One source of ImageNet becomes folders of pictures: planned, read once, verified, counted."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from common.cli import UserError
from common.datasets import imagenet_archive
from util.imagenet import labels, sources, tars, unpacking

BLOCK_OF_PICTURES = 500
"""Between two notes in the journal, where an archive has no classes in order."""
SHRUNK = 1 / 6
"""Bytes of a shrunk set, of those of the archive: with something to spare."""
KINDS = {
    "train": "an archive of training pictures",
    "val": "an archive of validation pictures",
    "imagenette": "an archive of Imagenette",
    "inner": "a folder of class archives",
    "tree": "a folder of pictures",
}


@dataclass(frozen=True)
class Order:
    """What the command line asks for."""

    source: str
    """As it was given; `-` is standard input."""
    out: Path
    settings: unpacking.Settings
    command: str
    """Does the same from any folder: for whoever finds the work unfinished."""
    workers: int
    labels: Path | None = None
    verify: Literal["fast", "md5", "none"] | None = None
    md5: str | None = None
    """What the archive's must be."""


def say(line: str) -> None:
    print(line, file=sys.stderr)


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


def describe(about: dict[str, Any]) -> str:
    """What `.complete` says, in words."""
    size = f"{about['bytes'] / 1e9:,.1f} GB" if about["bytes"] >= 1e9 else f"{about['bytes'] / 1e6:,.1f} MB"
    words = f"{about['pictures']:,} pictures of {about['classes']:,} classes, {size}"
    if about["mode"] == "shrink":
        words += f", shrunk to a shorter side of {about['size']} pixels at JPEG quality {about['quality']}"
    return words + (f"; only a part: {about['part']}" if about["part"] else "")


def labels_for(
    source: sources.Source, given: Path | None, more: list[Path], archive: tars.Archive | None = None
) -> dict[int, str]:
    """The class of each validation picture; empty where there are none, or their names carry it.

    Args:
        given: a file that `read_labels` takes; None looks for one beside the source and in `more`.
        archive: the source, if it is open at its beginning already.

    Raises:
        UserError: there are no labels.
    """
    if given and not given.exists():
        raise UserError(f"--labels {given} does not exist; name {labels.DEVKIT}.tar.gz or {labels.KAGGLE}")
    if source.kind == "val":
        opened = archive or tars.open_archive(source.path, md5=False, chunk=tars.BLOCK)
        first = tars.parse(opened.stream, 0, opened.stream.peek(tars.BLOCK)).name
        if archive is None:
            opened.close()
    elif source.kind == "tree" and source.split == "val" and source.path:
        first = next((path.name for path in source.path.iterdir() if path.suffix == ".JPEG"), "")
    else:
        return {}
    match = sources.VAL_PICTURE.fullmatch(first)
    if match is None or match[1] or match[3]:
        return {}
    beside = [] if source.path is None else [*source.path.resolve().parents][:4]
    file = given or labels.find_labels([*beside, *more])
    if file is None:
        raise UserError(
            f"the validation pictures need their labels: put {labels.DEVKIT}.tar.gz or {labels.KAGGLE} "
            f"beside {source.path or 'this folder'}, or name it by --labels"
        )
    return labels.read_labels(file)


def outline(path: Path, end: int, *, closed: bool = True) -> tuple[list[tars.Member], UserError | None]:
    """The classes of a training archive, by their headers alone; and what is wrong with these."""
    archive = tars.open_archive(path, md5=False, chunk=tars.BLOCK)
    found: list[tars.Member] = []
    try:
        for member in sources.class_tars(archive.stream, end, closed=closed):
            found.append(member)
    except UserError as refusal:
        return found, refusal
    finally:
        archive.close()
    return found, None


class Progress:
    """Bytes, pictures a second, classes and time left, on a terminal; `with` ends its line."""

    def __init__(self, total: int | None, classes: int | None = None) -> None:
        self.bar = tqdm(total=total, unit="B", unit_scale=True, disable=None, dynamic_ncols=True)
        self._classes = classes
        self._began = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *what: object) -> None:
        self.bar.close()

    def at(self, position: int, pictures: int, finished: int | None = None) -> None:
        words = f"{pictures / max(0.1, time.monotonic() - self._began):,.0f} pictures/s"
        if finished is not None:
            words += f", class {finished:,}" + (f"/{self._classes:,}" if self._classes else "")
        self.bar.set_postfix_str(words, refresh=False)
        self.bar.update(position - self.bar.n)


def prepare(todo: list["Job"], archive: tars.Archive | None) -> None:
    """All that can be refused before anything is made, of every source: the second may come hours later.

    Args:
        archive: standard input, opened.

    Raises:
        UserError: labels are missing, or space.
    """
    need = 0.0
    for job in todo:
        if not job.done():
            job.wnids = job.labels(archive)
            need += 0 if job.begun() else job.need()
    out = todo[0].order.out
    if need > (free := space(out)[0]):
        raise UserError(
            f"{out}: {need / 1e9:,.1f} GB are needed, {free / 1e9:,.1f} GB are free; "
            "--mode shrink takes a sixth, --consume frees the archive, --mode index takes nothing"
        )


class Job:
    """One source, and the folders that it fills.

    Attributes:
        wnids: the class of each validation picture, filled by `prepare`.

    Raises:
        UserError: the order makes no sense for this source.
    """

    def __init__(self, source: sources.Source, order: Order) -> None:
        self.source, self.order = source, order
        self.wnids: dict[int, str] = {}
        if source.kind in ("inner", "tree") and (order.md5 or order.verify == "md5"):
            raise UserError(f"an md5 is that of an archive, and {order.source} is a folder; leave it out")
        self.flat = source.kind in ("val", "imagenette")
        self.folders = [order.out / split for split in source.splits]
        is_file = source.path is not None and source.path.is_file()
        self.bytes = source.path.stat().st_size if source.path and is_file else None
        self.known = sources.KNOWN.get(source.path.name) if source.path and is_file else None
        if self.known and self.known.bytes not in (None, self.bytes):
            if not self.begun():
                say(
                    f"{source.path} has {self.bytes:,} bytes, ImageNet's own {self.known.bytes:,}: "
                    "cut short, or another archive; it is taken as it is"
                )
            self.known = None
        self.expected = order.md5 or (self.known.md5 if self.known else None)
        if order.settings.consume:
            if not is_file or source.kind == "imagenette":
                raise UserError(f"--consume frees a tar on disk; {order.source} is none")
            real = source.path.resolve() if source.path else Path()
            if not os.access(real, os.W_OK) or not os.access(real.parent, os.W_OK):
                raise UserError(f"--consume frees {real}, which is not yours to change; leave it out")
            if not self.expected and not self.begun():
                raise UserError(
                    f"--consume destroys {source.path}, and nobody knows its right md5; "
                    "say by --md5 what it must be"
                )

    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return any((folder / imagenet_archive.JOURNAL).exists() for folder in self.folders)

    def done(self) -> bool:
        """Whether all is there already.

        Raises:
            UserError: it is, but made otherwise.
        """
        return all(self._complete(folder) for folder in self.folders)

    def _complete(self, folder: Path) -> bool:
        if not (folder / imagenet_archive.COMPLETE).exists():
            return False
        about = imagenet_archive.check_complete(folder)
        settings = self.order.settings
        ours = (settings.mode, settings.size, settings.quality, settings.part())
        if about is None or (about["mode"], about["size"], about["quality"], about["part"]) != ours:
            raise UserError(f"{folder} is complete, but made otherwise; remove it, or name another --out")
        if settings.part() and not self._same_part(folder):
            raise UserError(f"{folder} is complete, but of other classes; remove it, or name another --out")
        then = about.get("archive_bytes")
        if None not in (then, self.bytes) and then != self.bytes and not about.get("consumed"):
            raise UserError(
                f"{folder} is complete, but from another {about['archive']}, of {then:,} bytes; remove it, "
                "or name another --out"
            )
        return True

    def _same_part(self, folder: Path) -> bool:
        """Whether the same classes were taken: as many can be others."""
        try:
            then = json.loads((folder / imagenet_archive.MANIFEST).read_text(encoding="utf-8"))["settings"]
            ours = self.order.settings.as_json()
            return all(then[name] == ours[name] for name in ("classes", "per_class"))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def need(self) -> float:
        """Bytes that will be written, about."""
        settings = self.order.settings
        total = self.bytes or 0  # a tree becomes other names of the same files
        if self.source.kind == "inner" and self.source.path:
            total = sum(path.stat().st_size for path in self.source.path.glob("n*.tar"))
        need = total * (SHRUNK if settings.mode == "shrink" else 1.0)
        if settings.consume:
            return need * 0.02
        if settings.classes is not None:
            count = settings.classes if isinstance(settings.classes, int) else len(settings.classes)
            need *= min(1, count / 1000)
        return need * min(1, (settings.per_class or 1300) / 1300)

    def labels(self, archive: tars.Archive | None = None) -> dict[int, str]:
        """The class of each validation picture, as `labels_for` has it."""
        return labels_for(self.source, self.order.labels, [self.order.out, Path.cwd()], archive)

    def plan(self, archive: tars.Archive | None) -> list[str]:
        """What would be done, in words; makes nothing.

        Args:
            archive: standard input, opened.
        """
        settings, lines = self.order.settings, [f"{self.order.source}: {KINDS[self.source.kind]}"]
        if self.source.kind == "train" and self.source.path and self.bytes is not None:
            found, broken = outline(self.source.path, self.bytes)
            lines.append(f"  {len(found):,} classes in {self.bytes:,} bytes")
            lines += [f"  broken: {broken}"] if broken else []
        self.labels(archive)
        free, inodes = space(self.order.out)
        lines.append(f"  {settings.mode} to {' and '.join(map(str, self.folders))}")
        if settings.part():
            lines.append(f"  only a part: {settings.part()}")
        lines.append(
            f"  takes about {self.need() / 1e9:,.1f} GB; {free / 1e9:,.1f} GB, {inodes:,} files are free"
        )
        if settings.consume:
            lines.append("  the archive is verified, freed while it is read, and removed at the end")
        return lines

    def run(self, archive: tars.Archive | None = None) -> None:
        """Fills the folders, or goes on filling them.

        Args:
            archive: standard input, opened.

        Raises:
            UserError: anything that stops it; what is finished stays.
        """
        resumed, wnids = self.begun(), self.wnids
        name = self.source.path.name if self.source.path else None
        md5 = self._verify_first() if self.order.settings.consume and not resumed else None
        splits: list[unpacking.Split] = []
        try:
            for folder in self.folders:
                if not self._complete(folder):
                    splits.append(
                        unpacking.Split(
                            folder,
                            self.order.settings,
                            {"archive": name, "bytes": self.bytes, "md5": md5},
                            self.order.command,
                            flat=self.flat,
                            workers=self.order.workers,
                        )
                    )
            self._refuse_wrong(splits)
            if finished := sum(len(split.finished) for split in splits):
                say(f"going on behind {finished:,} classes that are finished")
            if self.order.settings.consume:
                verified, md5 = "md5", splits[0].head["source"]["md5"]
                self._consume(splits[0], wnids)
            elif self.source.kind in ("inner", "tree"):
                verified = "fast"
                self._folder(splits[0], wnids)
            else:
                verified, md5 = self._read(splits, archive, wnids, resumed)
            size = splits[0].head["source"]["bytes"]
            about = {"archive": name, "archive_bytes": size, "md5": md5, "verified": verified}
            done = [split.complete(about) for split in splits]
        except (OSError, BrokenProcessPool) as error:
            raise unpacking.told(error, self.folders[0], splits) from None
        finally:
            for split in splits:
                split.close()
        for folder, about in zip(self.folders, done, strict=False):
            print(f"{folder}: {describe(about)}")
            if about["kept"]:
                print(
                    f"  {about['kept']:,} could not be shrunk and are as they were; "
                    f"see {imagenet_archive.MANIFEST}"
                )
        if self.order.settings.consume and self.source.path:
            self.source.path.resolve().unlink()

    def tidy(self) -> None:
        """Where all is complete: removes what a kill at the last moment may have left."""
        for folder in self.folders:
            unpacking.tidy(folder)
        path, about = self.source.path, imagenet_archive.check_complete(self.folders[0])
        # a whole archive is another copy, or one of a single part
        if path and about and about["consumed"] and path.stat().st_size < about["archive_bytes"]:
            path.resolve().unlink()

    # ------------------------------------------------------------------------------------------ read

    def _read(
        self,
        splits: list[unpacking.Split],
        archive: tars.Archive | None,
        wnids: dict[int, str],
        resumed: bool,
    ) -> tuple[str, str | None]:
        """One pass over an archive; gives how it was verified, and its md5 if that was taken."""
        verify = self.order.verify or ("md5" if self.expected or archive else "fast")
        in_parts = resumed or self.order.settings.part() is not None
        if self.order.verify is None and self.source.path and self.expected and in_parts:
            say("the md5 is not checked, since not all is read; --verify md5 reads all of it")
            verify = "fast"
        archive = archive or tars.open_archive(self.source.path, md5=verify == "md5")
        stream, end = archive.stream, archive.size
        count = None
        if self.source.kind == "train" and self.source.path and end is not None:
            found, broken = outline(self.source.path, end)
            count = len(found)
            if broken:
                say(f"{broken}; the {count:,} classes before are extracted")
        md5 = None
        with Progress(self.bytes, count) as progress:
            if not self.flat:
                self._classes(splits[0], sources.classes_of_tar(stream, end), progress, archive)
            elif not all(split.renaming for split in splits):
                self._pictures(splits, stream, end, wnids, progress, archive)
            stopped_early = self.source.path is None and self.order.settings.classes is not None
            if verify == "md5" and archive.md5 and not stopped_early:
                md5 = archive.md5()
                try:
                    self._compare(md5, archive.raw())
                except UserError:
                    for split in splits:
                        split.note_wrong(md5)
                    raise
            progress.at(archive.raw(), sum(split.pictures for split in splits))
        archive.close()
        splits[0].settle()
        pictures = sum(entry["pictures"] for entry in splits[0].finished.values())
        if self.known and self.source.kind == "train" and not self.order.settings.part() and verify != "none":
            self._count(pictures, self.known.pictures)
        return ("md5" if md5 else "none" if verify == "none" else "fast"), md5

    def _compare(self, md5: str, count: int) -> None:
        right = self.expected
        if self.source.path is None and right is None:
            right = next((known.md5 for known in sources.KNOWN.values() if known.bytes == count), None)
        if right and md5 != right:
            raise UserError(
                f"{self.order.source} has md5 {md5} instead of {right}, it is damaged; fetch it again "
                f"and remove {' and '.join(map(str, self.folders))}, or take it as it is by --verify none"
            )

    def _refuse_wrong(self, splits: list[unpacking.Split]) -> None:
        """What was found to be damaged does not become right by the same command again."""
        for split in splits:
            if split.wrong and self.expected != split.wrong and self.order.verify != "none":
                raise UserError(
                    f"{split.folder} was filled from an archive of a wrong md5, {split.wrong}; remove it and "
                    "extract a good one, or take it as it is by --verify none"
                )

    def _count(self, pictures: int, right: int) -> None:
        if pictures != right:
            raise UserError(
                f"{self.order.source} holds {pictures:,} pictures instead of {right:,}; fetch it again"
            )

    def _classes(
        self,
        split: unpacking.Split,
        classes: Iterable[sources.Class],
        progress: Progress,
        archive: tars.Archive | None = None,
        **more: int,
    ) -> None:
        """Adds whole classes, those that are wanted and not there yet."""
        settings = self.order.settings
        choice = sources.Choice(settings.classes, settings.per_class)
        for one in classes:
            if not choice.wants(one.wnid):
                if self.source.path is None and choice.full:
                    break  # the rest of a download need not be waited for
                continue
            if finished := split.finished.get(one.wnid):
                if (finished["start"], finished["size"]) != (one.start, one.size):
                    raise UserError(
                        f"{split.folder / one.wnid} comes from another archive than {self.order.source}; "
                        f"remove {split.folder}, or name another --out"
                    )
                continue
            count = 0
            for name, data in islice(one.pictures, settings.per_class):
                split.add(one.wnid, name, data)
                count += 1
                if archive and count % 64 == 0:
                    progress.at(archive.raw(), split.pictures, len(split.finished))
            split.finish_class(one.wnid, one.start, one.size, count, **more)
            position = archive.raw() if archive else progress.bar.n + one.size
            progress.at(position, split.pictures, len(split.finished))
        choice.check(self.order.source)

    def _pictures(
        self,
        splits: list[unpacking.Split],
        stream: tars.Stream,
        end: int | None,
        wnids: dict[int, str],
        progress: Progress,
        archive: tars.Archive,
    ) -> None:
        """Adds pictures that come without classes in order."""
        by_name = {split.folder.name: split for split in splits}
        choice = sources.Choice(self.order.settings.classes, self.order.settings.per_class, wnids)
        since = 0
        for picture in sources.pictures_of_tar(stream, end, self.source.kind, wnids):
            split = by_name.get(picture.split)
            if (
                not choice.takes(picture.split, picture.wnid)
                or split is None
                or picture.member.offset < (split.until or 0)
            ):
                continue
            split.add(picture.wnid, picture.name, stream.take(picture.member.size))
            since += 1
            if since % BLOCK_OF_PICTURES == 0:
                for split in splits:
                    split.finish_until(picture.member.end)
                progress.at(archive.raw(), since)
        choice.check(self.order.source)
        for split in splits:
            split.finish_until(stream.position)

    def _folder(self, split: unpacking.Split, wnids: dict[int, str]) -> None:
        assert self.source.path
        if self.source.kind == "inner":
            classes = sources.classes_of_folder(self.source.path)
            total = sum(path.stat().st_size for path in self.source.path.glob("n*.tar"))
        else:
            classes = sources.classes_of_tree(self.source.path, wnids)
            total = None
        with Progress(total) as progress:
            self._classes(split, classes, progress)
        if not split.finished and split.pictures == 0:
            raise UserError(f"{self.source.path} holds no pictures of ImageNet")

    # --------------------------------------------------------------------------------------- consume

    def _verify_first(self) -> str:
        """The md5 of the archive as it is, before anything of it is freed."""
        assert self.source.path and self.expected
        say(f"verifying {self.source.path} before any of it is freed")
        archive = tars.open_archive(self.source.path, md5=True)
        with Progress(self.bytes) as progress:
            while part := archive.stream.peek(tars.CHUNK):
                archive.stream.skip(len(part))
                progress.bar.update(len(part))
        assert archive.md5
        self._compare(archive.md5(), archive.raw())
        archive.close()
        return self.expected

    def _consume(self, split: unpacking.Split, wnids: dict[int, str]) -> None:
        """Reads the archive from its end and cuts off what is written: any file system can do that.

        What is cut off was on the disk and in the journal before. The first part stays until all is complete.
        """
        path = self.source.path
        assert path is not None
        if split.renaming:
            return
        size = path.stat().st_size
        end, begun = size, bool(split.last)
        if split.resumed and not begun:  # killed before the first class: is it still the same archive?
            self.expected = split.head["source"]["md5"]
            self._verify_first()
        if begun:
            places = [entry["start"] - tars.BLOCK for entry in split.finished.values()]
            end = split.until if split.until is not None else min(places)
            if size not in (end, split.last["before"]):
                raise UserError(
                    f"{path} is not the archive that {split.folder} was begun from; it is left as it is: "
                    f"remove {split.folder}, or name another --out"
                )
            if end:
                os.truncate(path, end)
                size = end
        archive = tars.open_archive(path, md5=False)
        regions = self._regions(path, end, wnids, closed=not begun)
        count = None if self.flat else len(regions) + len(split.finished)
        with Progress(end, count) as progress:
            for start, region_end in reversed(regions):
                archive.stream.seek(start)
                if self.flat:
                    pictures = sources.pictures_of_tar(archive.stream, region_end, "val", wnids, closed=False)
                    for picture in pictures:
                        split.add(picture.wnid, picture.name, archive.stream.take(picture.member.size))
                    split.finish_until(start, before=size)
                    progress.at(progress.bar.n + region_end - start, split.pictures)
                else:
                    classes = sources.classes_of_tar(archive.stream, region_end, closed=False)
                    self._classes(split, classes, progress, before=size)
                if start:
                    os.truncate(path, start)
                    size = start
        archive.close()

    def _regions(self, path: Path, end: int, wnids: dict[int, str], *, closed: bool) -> list[tuple[int, int]]:
        """Beginning and end of each part that is written at once; all names are checked on the way."""
        if not self.flat:
            found, broken = outline(path, end, closed=closed)
            if broken:
                raise broken
            return [(member.start, member.end) for member in found]
        archive = tars.open_archive(path, md5=False, chunk=tars.BLOCK)
        pictures = list(sources.pictures_of_tar(archive.stream, end, "val", wnids, closed=closed))
        archive.close()
        starts = [pictures[i].member.start for i in range(0, len(pictures), BLOCK_OF_PICTURES)]
        starts = [0, *starts[1:]]  # folders may stand before the first picture
        ends = [*starts[1:], pictures[-1].member.end if pictures else 0]
        return list(zip(starts, ends, strict=True))
