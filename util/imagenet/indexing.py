"""An archive stays as it is, and an index beside it says where each image lies."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from common.cli import UserError, command_line
from common.datasets.imagenet_archive import FORMAT, ROW, index_files
from common.files import atomic_write, check_writable, save_json
from util.imagenet.jobs import say
from util.imagenet.labels import labels_for
from util.imagenet.settings import Settings
from util.imagenet.sources import COMPRESSED, KNOWN, Choice, Group, Labels, Source, groups_of_tar
from util.imagenet.tars import BLOCK, CHUNK, LONG, Archive


def make_indices(sources: list[Source], settings: Settings) -> None:
    """Writes an index beside each archive; what can be refused is, before the first one is read."""
    for source in sources:
        if not source.path or not source.size or len(source.splits) > 1:
            what = "takes an archive of ImageNet, on disk and not compressed"
            raise UserError(f"--mode index {what}; {source.path or 'standard input'} is none")
        check_writable(source.path.parent)
    labels = [labels_for(source, settings) for source in sources]
    for source, own_labels in zip(sources, labels, strict=True):
        assert source.path
        if settings.dry_run:
            files = " and ".join(map(str, index_files(source.path)))
            print(f"{source.path}: {source.kind}\n  index to {files}, 0.02 GB for all of ImageNet")
        else:
            _make_index(source, source.path, own_labels, settings)
            print(f"Train with it: python gan_upscale.py --data {command_line(str(source.path))}")


def _make_index(source: Source, path: Path, labels: Labels, settings: Settings) -> None:
    state, choice = path.stat(), Choice(settings, labels)
    hashed = bool(settings.md5) or settings.verify == "md5"
    say(f"reading the headers of {path}")
    with closing(Archive(path, md5=hashed, chunk=CHUNK if hashed else BLOCK)) as archive:
        rows, wnids = _rows(groups_of_tar(archive, archive.size, source, labels), choice)
        md5 = archive.md5()
    choice.check(settings.source)
    if odd := {COMPRESSED, LONG} & set(source.notes):
        raise UserError(f"--mode index takes plain archives, and {path} has {odd.pop()}; leave it out")
    known = KNOWN.get(path.name)
    right = settings.md5 or (known.md5 if known and known.bytes == state.st_size else md5)
    if md5 and md5 != right:
        raise UserError(f"{path} has md5 {md5} instead of {right}, it is damaged somewhere; fetch it again")
    about = {
        "archive_bytes": state.st_size,
        "archive_mtime_ns": state.st_mtime_ns,
        "md5": md5,
        "split": source.splits[0],
        "wnids": wnids,
        "part": settings.part(),
    }
    write_index(path, rows, about)
    part = f"; only a part: {settings.part()}" if settings.part() else ""
    print(
        f"{index_files(path)[0]}: {len(rows):,} images of {len(wnids):,} classes{part}",
        *source.told(),
        sep="\n",
    )


def _rows(groups: Iterator[Group], choice: Choice) -> tuple[np.ndarray, list[str]]:
    """Rows of dtype `ROW` of the images that are taken, sorted by class and number; and the wnids, sorted."""
    places: dict[str, int] = {}
    unsorted = (
        (image.offset, image.size, places.setdefault(image.wnid, len(places)), image.number)
        for group in groups
        if not group.wnid or choice.wants(group.wnid)
        for image in group.images
        if choice.takes(image.split, image.wnid)
    )
    rows = np.fromiter(unsorted, ROW)
    ranks = np.argsort(np.argsort(list(places)))  # the place of each class among the sorted ones
    rows["class"] = ranks[rows["class"]]
    return rows[np.lexsort((rows["number"], rows["class"]))], sorted(places)


def write_index(tar: Path, rows: np.ndarray, about: dict[str, Any]) -> None:
    """Writes both files, the description last: without it the rows count for nothing.

    Args:
        rows: of dtype `ROW`, sorted by class and number.
        about: `archive_bytes` and `archive_mtime_ns` as they were before it was read, `md5` or None, `split`,
            `wnids`, and `part`: None, or what the index leaves out.
    """
    npy, description = index_files(tar)
    description.unlink(missing_ok=True)
    with atomic_write(npy) as temporary:
        np.save(temporary, rows, allow_pickle=False)
    about = {"format": FORMAT, "archive": tar.name} | about | {"images": len(rows), "complete": True}
    save_json(description, about)
