"""One source of ImageNet becomes folders of images: planned, read once, verified, counted."""

import os
import sys
from collections import deque
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from itertools import islice, pairwise
from typing import Any
from zipfile import BadZipFile

from tqdm import tqdm

from common.cli import UserError, command_line
from common.datasets.imagenet_archive import MANIFEST
from common.files import check_writable
from util.imagenet import unpacking
from util.imagenet.labels import labels_for
from util.imagenet.settings import Settings, space
from util.imagenet.sources import KNOWN, Choice, Group, Source, groups_of_folder, groups_of_tar
from util.imagenet.tars import BLOCK, CHUNK, Archive, Parts


def say(line: str) -> None:
    print(line, file=sys.stderr)


def describe(about: dict[str, Any]) -> str:
    """What `.complete` says, in words."""
    size = f"{about['bytes'] / 1e9:,.1f} GB" if about["bytes"] >= 1e9 else f"{about['bytes'] / 1e6:,.1f} MB"
    words = f"{about['pictures']:,} images of {about['classes']:,} classes, {size}"
    if about["mode"] == "shrink":
        words += f", shrunk to a shorter side of {about['size']} pixels at JPEG quality {about['quality']}"
    return words + (f"; only a part: {about['part']}" if about["part"] else "")


def progress_bar(total: int | None) -> tqdm:
    """Bytes and time left, on a terminal."""
    return tqdm(total=total or None, unit="B", unit_scale=True, disable=None, dynamic_ncols=True)


def fill(sources: list[Source], settings: Settings) -> None:
    """Fills `settings.out` from the sources, or says what would be done.

    All that can be refused is, of every source, before anything is made: the second may come hours later.
    """
    jobs = [Job(source, settings) for source in sources]
    if settings.dry_run:
        for job in jobs:
            print(job.plan())
        return
    check_writable(settings.out)
    todo = [job for job in jobs if not job.complete]
    labels = {job.source: labels_for(job.source, settings) for job in todo}
    need, free = sum(job.need() for job in todo if not job.started), space(settings.out)[0]
    if need > free:
        raise UserError(
            f"{settings.out}: {need / 1e9:,.1f} GB are needed, {free / 1e9:,.1f} GB are free; "
            "--mode shrink takes a sixth, --consume frees the archive, --mode index takes nothing"
        )
    with unpacking.locked(settings.out):  # which makes a folder
        for source in sources:
            Job(source, settings).run(labels.get(source, {}))  # another process may have been at work
    print(f"Train with it: python gan_upscale.py --data {command_line(str(settings.out))}")


class Job:
    """One source, and the folders that it fills; a UserError where the flags make no sense for it."""

    def __init__(self, source: Source, settings: Settings) -> None:
        self.source, self.settings = source, settings
        self.labels: dict[int, str] = {}
        is_tar = source.path and source.path.is_file() and source.kind != "folders of images"
        self.path = source.path if is_tar else None
        self.bytes = sum(p.stat().st_size for p in source.parts or [self.path]) if self.path else None
        folders = [settings.out / split for split in source.splits]
        self.where = " and ".join(map(str, folders))
        self.splits = [unpacking.Split(folder, settings, self.bytes, source.flat) for folder in folders]
        self.started = any(split.head for split in self.splits)
        self.complete = all(split.about for split in self.splits)
        known = KNOWN.get(self.path.name) if self.path else None
        self.known = known if known and known.bytes in (None, self.bytes) else None
        self.expected = settings.md5 or (self.known.md5 if self.known else None)
        if source.path and (not self.path or source.parts) and (settings.md5 or settings.verify == "md5"):
            raise UserError(f"an md5 is that of one tar, and {settings.source} is none; leave it out")
        if not settings.consume:
            return
        if not source.path or not source.size or len(source.splits) > 1:
            raise UserError(f"--consume frees a tar on disk; {settings.source} is none")
        real = source.path.resolve()
        if not os.access(real, os.W_OK) or not os.access(real.parent, os.W_OK):
            raise UserError(f"--consume frees {real}, which is not yours to change; leave it out")
        if not (self.expected or self.started or self.complete):
            destroys = f"--consume destroys {source.path}, and nobody knows its right md5"
            raise UserError(f"{destroys}; say by --md5 what it must be")

    def need(self) -> float:
        """Bytes that will be written, about; a tree becomes other names of the same files."""
        return self.settings.need(self.bytes or self._inner_bytes())

    def _inner_bytes(self) -> int:
        path = self.source.path
        if not path or path.is_file():  # a zip, most of which are the training images
            return path.stat().st_size if path and "train" in self.source.splits else 0
        return sum(inner.stat().st_size for inner in path.glob("n*.t*"))

    def plan(self) -> str:
        """What would be done, in words; makes nothing."""
        settings, (free, inodes) = self.settings, space(self.settings.out)
        labels_for(self.source, settings)
        lines = [f"{settings.source}: {self.source.kind}", f"{settings.mode} to {self.where}"]
        if self.source.size and not self.source.flat:
            starts, broken = self._outline(self.source.size)
            lines.append(f"{len(starts):,} classes in {self.bytes:,} bytes")
            lines += [f"broken: {broken}"] if broken else []
            lines += self.source.told()
        lines += [f"only a part: {settings.part()}"] if settings.part() else []
        need = f"{self.need() / 1e9:,.1f} GB; {free / 1e9:,.1f} GB, {inodes:,} files are free"
        lines.append(f"takes about {need}")
        if settings.consume:
            lines.append("the archive is verified, freed while it is read, and removed at the end")
        return "\n  ".join(lines)

    def _outline(self, end: int, *, closed: bool = True) -> tuple[list[int], UserError | None]:
        """Where classes, or blocks of images, start in the archive, by headers alone; and what is wrong."""
        starts: list[int] = []
        with closing(Archive(self.path, chunk=BLOCK)) as archive:
            try:
                for group in groups_of_tar(archive, end, self.source, self.labels, closed=closed):
                    starts.append(group.start - BLOCK if starts else 0)  # folders may stand before the first
                    if self.source.flat:
                        deque(group.images, maxlen=0)
            except UserError as error:
                return starts, error
        return starts, None

    def run(self, labels: dict[int, str]) -> None:
        """Fills the folders, or goes on filling them; what is finished stays, whatever stops it.

        Args:
            labels: the class of each validation image that does not carry it.
        """
        self.labels = labels
        if self.complete:
            self._tidy()
            return
        self.splits = [split for split in self.splits if not split.about]
        try:
            with ExitStack() as stack:
                self._open_splits(stack)
                verified, md5 = self._read()
                source = self.splits[0].head["source"]
                about = {"archive": source["archive"], "archive_bytes": source["bytes"], "md5": md5}
                for split in self.splits:
                    if len(self.splits) > 1 and split.is_empty():
                        continue  # the archive might have had both
                    split.complete(about | {"verified": verified})
                    print(f"{split.folder}: {describe(split.about)}")
                    if kept := split.about["kept"]:
                        print(f"  {kept:,} could not be shrunk and are as they were; see {MANIFEST}")
                print(*self.source.told(), sep="\n", end="\n" if self.source.notes else "")
        except BrokenPipeError:
            raise
        except BadZipFile as error:
            raise UserError(f"{self.source.path}: {error}; fetch it again") from None
        except (OSError, MemoryError, BrokenProcessPool) as error:
            raise unpacking.failure(error, self.splits) from None
        if self.settings.consume and self.path:
            self.path.resolve().unlink()

    def _tidy(self) -> None:
        """Removes what a kill at the last moment may have left where all is complete."""
        for split in self.splits:
            split.tidy()
            print(f"{split.folder}: complete already: {describe(split.about)}")
            archive_bytes = split.about.get("archive_bytes") or 0
            # a whole archive is another copy, or one of a single part
            if self.path and split.about["consumed"] and self.path.stat().st_size < archive_bytes:
                self.path.resolve().unlink()

    def _open_splits(self, stack: ExitStack) -> None:
        for split in self.splits:  # what was found to be damaged does not become right by itself
            if split.wrong and self.expected != split.wrong and self.settings.verify != "none":
                wrong = f"{split.folder} was filled from an archive of a wrong md5, {split.wrong}"
                remedy = "remove it and extract a good one, or take it as it is by --verify none"
                raise UserError(f"{wrong}; {remedy}")
        name, md5 = self.path.name if self.path else None, None
        if not self.started and not self.known and (known := KNOWN.get(name or "")):
            own = f"{self.path} has {self.bytes:,} bytes, ImageNet's own {known.bytes:,}"
            say(f"{own}: cut short, or another archive; it is taken as it is")
        if self.settings.consume and not self.splits[0].last:
            if self.started:  # killed before the first class: is it still the same archive?
                self.expected = self.splits[0].head["source"]["md5"]
            md5 = self._verify_before()
        for split in self.splits:
            split.open({"archive": name, "bytes": self.bytes, "md5": md5})
            stack.callback(split.close)
        if finished := sum(len(split.finished) for split in self.splits):
            say(f"going on behind {finished:,} classes that are finished")

    def _read(self) -> tuple[str, str | None]:
        """Adds all images; gives how the source was verified, and its md5 if that is known."""
        if self.settings.consume:
            self._consume(self.splits[0])
            return "md5", self.splits[0].head["source"]["md5"]
        if self.source.path and not self.path:
            with progress_bar(self._inner_bytes()) as bar:
                self._add(groups_of_folder(self.source, self.labels), bar)
            if not self.splits[0].finished and self.splits[0].images == 0:
                raise UserError(f"{self.source.path} holds no images of ImageNet")
            return "fast", None
        return self._read_archive()

    def _read_archive(self) -> tuple[str, str | None]:
        """Adds all images of an archive in one pass; gives as `_read`."""
        settings, stdin, known = self.settings, self.source.stdin, self.known
        verify = settings.verify or ("md5" if self.expected or stdin else "fast")
        in_parts = settings.part() or self.started
        if settings.verify is None and self.expected and in_parts and not stdin:
            say("the md5 is not checked, since not all is read; --verify md5 reads all of it")
            verify = "fast"
        md5 = None
        parts = Parts(self.source.parts) if len(self.source.parts) > 1 else None
        archive = stdin or Archive(self.path, md5=verify == "md5", file=parts)
        with closing(archive), progress_bar(self.bytes) as bar:
            if not all(split.is_written() for split in self.splits):
                groups = groups_of_tar(archive, archive.size, self.source, self.labels)
                self._add(groups, bar, archive)
            if verify == "md5" and not (stdin and settings.classes):  # which stops as soon as it can
                md5 = self._check_md5(archive, self.splits)
        if known and self.source.kind == "training images" and not settings.part() and verify != "none":
            self.splits[0].settle()
            count = sum(entry["pictures"] for entry in self.splits[0].finished.values())
            if count != known.images:
                instead = f"{count:,} images instead of {known.images:,}"
                raise UserError(f"{settings.source} holds {instead}; fetch it again")
        return ("md5" if md5 else "none" if verify == "none" else "fast"), md5

    def _add(self, groups: Iterable[Group], bar: tqdm, archive: Archive | None = None, **note: int) -> None:
        """Adds the images of `groups` that are wanted and not there yet; `note` is for the journal."""
        by_name = {split.folder.name: split for split in self.splits}
        choice = Choice(self.settings, self.labels)
        for group in groups:
            if group.wnid and not choice.wants(group.wnid):
                if self.source.stdin and choice.is_full():
                    break  # the rest of a download need not be waited for
                continue
            if self._is_finished(group):
                continue
            count = 0
            for image in islice(group.images, self.settings.per_class if group.wnid else None):
                split = by_name.get(image.split)
                if choice.takes(image.split, image.wnid) and split and image.offset >= split.until:
                    split.add(image)
                    count += 1
                    bar.update(archive.bytes_read() - bar.n if archive else 0)
            entry = {"class": group.wnid, "start": group.start, "size": group.size, "pictures": count}
            for split in self.splits:
                split.finish((entry if group.wnid else {"until": archive and archive.position}) | note)
            rate = sum(split.images for split in self.splits) / max(0.1, bar.format_dict["elapsed"])
            bar.set_postfix_str(f"{rate:,.0f} images/s", refresh=False)
            bar.update(archive.bytes_read() - bar.n if archive else group.size)
        choice.check(self.settings.source)

    def _is_finished(self, group: Group) -> bool:
        finished, folder = self.splits[0].finished.get(group.wnid), self.splits[0].folder
        if finished and (finished["start"], finished["size"]) != (group.start, group.size):
            another = f"{folder / group.wnid} comes from another archive than {self.settings.source}"
            raise UserError(f"{another}; remove {folder}, or name another --out")
        return finished is not None

    def _check_md5(self, archive: Archive, splits: list[unpacking.Split]) -> str | None:
        """Reads the archive to its end; gives its md5, which is noted where it is wrong."""
        md5, right = archive.md5(), self.expected
        if right is None and self.path is None:
            right = next((own.md5 for own in KNOWN.values() if own.bytes == archive.bytes_read()), None)
        if md5 and right and md5 != right:
            for split in splits:
                split.note_wrong(md5)
            damaged = f"{self.settings.source} has md5 {md5} instead of {right}, it is damaged"
            remedy = f"fetch it again and remove {self.where}, or take it as it is by --verify none"
            raise UserError(f"{damaged}; {remedy}")
        return md5

    def _verify_before(self) -> str | None:
        """The md5 of the archive as it is, before anything of it is freed."""
        say(f"verifying {self.path} before any of it is freed")
        with closing(Archive(self.path, md5=True)) as archive, progress_bar(self.bytes) as bar:
            while part := archive.read(CHUNK):
                bar.update(len(part))
            return self._check_md5(archive, [])

    def _consume(self, split: unpacking.Split) -> None:
        """Reads the archive from its end and cuts off what is written: any file system can do that.

        What is cut off was on the disk and in the journal before. The first part stays until all is complete.
        """
        path, closed = self.path, not split.last
        assert path
        if split.is_written():
            return
        end = path.stat().st_size
        if split.last:
            until = split.last["until"] if self.source.flat else split.last["start"] - BLOCK
            if end not in (until, split.last["before"]):
                stays = f"{path} is not the archive that {split.folder} was started from; it is left as it is"
                raise UserError(f"{stays}: remove {split.folder}, or name another --out")
            end = until
        starts, broken = self._outline(end, closed=closed) if end else ([], None)
        if broken:
            raise broken
        if self.source.notes:
            raise UserError(
                f"--consume takes archives as plain as ImageNet's own; {path} is none; leave it out"
            )
        with closing(Archive(path)) as archive, progress_bar(end) as bar:
            for start, stop in reversed([*pairwise([*starts, end])]):
                os.truncate(path, stop)
                archive.seek(start)
                groups = groups_of_tar(archive, stop, self.source, self.labels, closed=closed)
                self._add(islice(groups, 1), bar, until=start, before=stop)
                bar.update(end - start - bar.n)
