"""What ImageNet comes as: the two archives, a folder of inner archives, a Kaggle tree, Imagenette.

The training archive holds an archive `n########.tar` for each class, and that the pictures
`n########_NUMBER.JPEG`. The validation archive holds the pictures `ILSVRC2012_val_NUMBER.JPEG`.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from common.cli import UserError
from common.datasets.imagenet_archive import ROW, image_name
from util.imagenet.tars import BLOCK, LARGEST, Archive, Member, Stream, members, open_archive, parse

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


@dataclass(frozen=True)
class Official:
    """What is known of a file that many people have."""

    bytes: int | None
    md5: str
    pictures: int


KNOWN = {
    TRAIN: Official(147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e", 1_281_167),
    VAL: Official(6_744_924_160, "29b22e2961454d5413ddabcf34fc5622", 50_000),
    "imagenette2.tgz": Official(None, "fe2fc210e6bb7c5664d602c3cd71e612", 13_394),
    "imagenette2-320.tgz": Official(None, "3df6f0d01a2c9592104656642f5e78a3", 13_394),
    "imagenette2-160.tgz": Official(None, "e793b78cc4c9e9a4ccc0c1155377a412", 13_394),
}

CLASS = re.compile("n[0-9]{8}")
CLASS_TAR = re.compile(r"(n[0-9]{8})\.tar")
TRAIN_PICTURE = re.compile(r"(n[0-9]{8})_(0|[1-9][0-9]{0,8})\.JPEG")
# some copies of the validation set carry the class: in the name, or as a folder
VAL_PICTURE = re.compile(r"(?:(n[0-9]{8})/)?ILSVRC2012_val_([0-9]{8})(?:_(n[0-9]{8}))?\.JPEG")
IMAGENETTE = re.compile(r"imagenette2(?:-[0-9]+)?/(train|val)/(n[0-9]{8})/([^/]+)")

Kind = Literal["train", "val", "imagenette", "inner", "tree"]


@dataclass(frozen=True)
class Source:
    """One thing to read."""

    kind: Kind
    """An archive of training, of validation pictures, of Imagenette; a folder of class archives; a tree."""
    path: Path | None
    """None is standard input. Of a tree: the folder `train` or `val`."""
    split: str
    """`train` or `val`; `train` for Imagenette's archive, which has both."""

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "val") if self.kind == "imagenette" else (self.split,)


def find_sources(path: Path) -> list[Source]:
    """What is in `path`, an archive or a folder.

    Raises:
        UserError: nothing that can be used; or an archive of another task.
    """
    _refuse_other_tasks(path)
    if not path.is_dir():
        archive = open_archive(path, md5=False, chunk=BLOCK)
        try:
            kind = identify(archive)
        finally:
            archive.close()
        return [Source(kind, path, "val" if kind == "val" else "train")]
    if tars := [path / name for name in (TRAIN, VAL) if (path / name).is_file()]:
        return [source for tar in tars for source in find_sources(tar)]
    names = sorted(entry.name for entry in path.iterdir())
    if any(CLASS_TAR.fullmatch(name) for name in names):
        return [Source("inner", path, "train")]
    for root in (path, *(path / below for below in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC"))):
        if found := [
            Source("tree", root / split, split) for split in ("train", "val") if _is_tree(root / split)
        ]:
            return found
    for name in names:
        _refuse_other_tasks(path / name)
    raise UserError(
        f"{path} holds neither {TRAIN} nor {VAL}, nor archives n########.tar, nor folders train and val "
        "with ImageNet's pictures; name a file or folder that does"
    )


def _is_tree(folder: Path) -> bool:
    """Whether it holds folders of classes, or pictures of the validation set."""
    return folder.is_dir() and any(
        CLASS.fullmatch(path.name) or VAL_PICTURE.fullmatch(path.name) for path in folder.iterdir()
    )


def _refuse_other_tasks(path: Path) -> None:
    if re.search(r"_t3\.tar$", path.name):
        raise UserError(f"{path.name} holds only the dogs of task 3; fetch {TRAIN}")
    if "_img_test" in path.name:
        raise UserError(f"{path.name} holds the test pictures, which nobody has labels for; fetch {TRAIN}")


def identify(archive: Archive) -> Literal["train", "val", "imagenette"]:
    """Which archive it is, by its first member.

    Raises:
        UserError: none of ImageNet's.
    """
    stream = archive.stream
    first = parse(stream, 0, stream.peek(BLOCK))
    name = first.name.removesuffix("/")
    if CLASS_TAR.fullmatch(name):
        return "train"
    if VAL_PICTURE.fullmatch(name) or CLASS.fullmatch(name):
        return "val"
    if re.match(r"imagenette2(-[0-9]+)?(/|$)", name):
        return "imagenette"
    raise stream.broken(0, f"{first.name} is not what an archive of ImageNet begins with; fetch {TRAIN}")


class Choice:
    """Which classes and pictures are taken: all, or a part.

    Attributes:
        full: whether as many classes as are wanted have been seen.
    """

    def __init__(
        self,
        classes: int | tuple[str, ...] | None,
        per_class: int | None,
        labels: dict[int, str] | None = None,
    ) -> None:
        """Which ones.

        Args:
            classes: these, or so many: the first of `labels`, sorted, else the first that come.
            per_class: so many first pictures of each.
        """
        self._classes, self._per_class = classes, per_class
        named = (
            classes if isinstance(classes, tuple) else sorted(set((labels or {}).values()))[: classes or 0]
        )
        self._wanted = set(named)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._seen: set[str] = set()

    @property
    def full(self) -> bool:
        return self._classes is not None and self._seen == self._wanted

    def wants(self, wnid: str) -> bool:
        """Whether pictures of this class are taken."""
        if isinstance(self._classes, int) and len(self._wanted) < self._classes:
            self._wanted.add(wnid)
        self._seen |= {wnid} & self._wanted
        return self._classes is None or wnid in self._wanted

    def takes(self, split: str, wnid: str) -> bool:
        """Whether the next picture of this class is taken."""
        if self._classes is None and self._per_class is None:
            return True
        if not self.wants(wnid):
            return False
        self._counts[split, wnid] += 1
        return self._per_class is None or self._counts[split, wnid] <= self._per_class

    def check(self, source: str) -> None:
        """Says at the end if one was not there.

        Raises:
            UserError: a class that was named.
        """
        if isinstance(self._classes, tuple) and (missing := sorted(self._wanted - self._seen)):
            raise UserError(
                f"{source} has no class {missing[0]} ({len(missing)} of those wanted are missing)"
            )


# ---------------------------------------------------------------------------------- training pictures


@dataclass
class Class:
    """The pictures of one class, in order; what is not asked for is not read."""

    wnid: str
    start: int
    """Where its archive begins in the outer one; 0 where it is a file of its own."""
    size: int
    """Bytes of its archive."""
    pictures: Iterator[tuple[str, bytes | Path]]
    """Names and contents; or files."""


def classes_of_tar(stream: Stream, end: int | None, *, closed: bool = True) -> Iterator[Class]:
    """The classes of the training archive, the inner archives walked in place.

    Raises:
        UserError: a member that is no archive of a class, or that was there before; and as `members`.
    """
    for member in class_tars(stream, end, closed=closed):
        wnid = member.name.removesuffix(".tar")
        inner_end = member.offset + member.size
        yield Class(wnid, member.offset, member.size, _contents(stream, wnid, inner_end))


def class_tars(stream: Stream, end: int | None, *, closed: bool = True) -> Iterator[Member]:
    """The members of the training archive; what the caller does not read of one is skipped."""
    seen = set()
    for member in members(stream, end, closed=closed):
        if member.folder or not CLASS_TAR.fullmatch(member.name):
            raise stream.broken(
                member.start, f"{member.name} is no class archive n########.tar; this is refused"
            )
        if member.name in seen:
            raise stream.broken(member.start, f"{member.name} is there twice; this is refused")
        seen.add(member.name)
        yield member


def classes_of_folder(folder: Path) -> Iterator[Class]:
    """The classes of a folder of inner archives, by name."""
    for path in sorted(path for path in folder.iterdir() if CLASS_TAR.fullmatch(path.name)):
        archive = open_archive(path, md5=False)
        size = path.stat().st_size
        yield Class(path.stem, 0, size, _contents(archive.stream, path.stem, archive.size))
        archive.close()


def classes_of_tree(folder: Path, labels: dict[int, str]) -> Iterator[Class]:
    """The classes of unpacked pictures: in folders of classes, or validation pictures without."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and CLASS.fullmatch(path.name))
    for path in folders:
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        if not files:
            raise UserError(f"{path} holds no pictures; remove it")
        for file in files:
            own = _wnid_and_number(file, labels={})[0]
            if own not in (None, path.name):
                raise UserError(f"{file} is no picture of class {path.name}; remove it")
        yield Class(path.name, 0, len(files), ((file.name, file) for file in files))
    by_class: dict[str, list[tuple[str, Path]]] = {}
    for file in () if folders else sorted(folder.glob("*.JPEG")):
        wnid, number = _wnid_and_number(file, labels)
        if wnid is None:
            raise UserError(f"no label is known for {file}; name other labels by --labels")
        by_class.setdefault(wnid, []).append((image_name("val", wnid, number), file))
    for wnid, pictures in sorted(by_class.items()):
        yield Class(wnid, 0, len(pictures), iter(pictures))


def _wnid_and_number(file: Path, labels: dict[int, str]) -> tuple[str | None, int]:
    if match := TRAIN_PICTURE.fullmatch(file.name):
        return match[1], int(match[2])
    if match := VAL_PICTURE.fullmatch(file.name):
        return match[3] or labels.get(int(match[2])), int(match[2])
    raise UserError(f"{ascii(str(file))[1:-1]} is no picture of ImageNet; remove it")


def _inner_pictures(stream: Stream, wnid: str, end: int | None) -> Iterator[tuple[int, Member]]:
    """Number and place of each picture of a class.

    Raises:
        UserError: a member that is no picture of this class, was there before, or is empty; and as `members`.
    """
    seen = set()
    for member in members(stream, end):
        match = TRAIN_PICTURE.fullmatch(member.name)
        if member.folder or not match or match[1] != wnid:
            raise stream.broken(
                member.start, f"{member.name} is no picture {wnid}_NUMBER.JPEG; this is refused"
            )
        number = int(match[2])
        if number in seen:
            raise stream.broken(member.start, f"{member.name} is there twice; this is refused")
        _refuse_size(stream, member)
        seen.add(number)
        yield number, member
    if not seen:
        raise stream.broken(stream.position, f"{wnid}.tar holds no pictures; fetch the archive again")


def _refuse_size(stream: Stream, member: Member) -> None:
    if not 0 < member.size <= LARGEST:
        raise stream.broken(member.start, f"{member.name} has {member.size:,} bytes, which no photo has")


def _contents(stream: Stream, wnid: str, end: int | None) -> Iterator[tuple[str, bytes | Path]]:
    for _, member in _inner_pictures(stream, wnid, end):
        yield member.name, stream.take(member.size)


# -------------------------------------------------------------------------- pictures without an order


@dataclass(frozen=True)
class Picture:
    """A picture of an archive that is not sorted by class."""

    split: str
    wnid: str
    name: str
    number: int
    member: Member


def pictures_of_tar(
    stream: Stream, end: int | None, kind: Kind, labels: dict[int, str], *, closed: bool = True
) -> Iterator[Picture]:
    """The pictures of the validation archive or of Imagenette's; what the caller does not take is skipped.

    Args:
        labels: the class of each picture number, for those whose name does not carry it.

    Raises:
        UserError: a member that is no picture, was there before, or has no label; and as `members`.
    """
    seen = set()
    for member in members(stream, end, closed=closed):
        picture = (_in_val if kind == "val" else _in_imagenette)(stream, member, labels)
        if picture is None:
            continue
        if (picture.split, picture.wnid, picture.name) in seen:
            raise stream.broken(member.start, f"{member.name} is there twice; this is refused")
        _refuse_size(stream, member)
        seen.add((picture.split, picture.wnid, picture.name))
        yield picture


def _in_val(stream: Stream, member: Member, labels: dict[int, str]) -> Picture | None:
    if member.folder and CLASS.fullmatch(member.name.removesuffix("/")):
        return None
    match = VAL_PICTURE.fullmatch(member.name)
    if member.folder or not match:
        raise stream.broken(
            member.start, f"{member.name} is no picture ILSVRC2012_val_########.JPEG; this is refused"
        )
    number = int(match[2])
    wnid = match[1] or match[3] or labels.get(number)
    if wnid is None or (match[1] and match[3] and match[1] != match[3]):
        raise stream.broken(
            member.start, f"{member.name} has no label, or two; name other labels by --labels"
        )
    return Picture("val", wnid, image_name("val", wnid, number), number, member)


def _in_imagenette(stream: Stream, member: Member, labels: dict[int, str]) -> Picture | None:
    match = IMAGENETTE.fullmatch(member.name)
    if member.folder and re.fullmatch(r"imagenette2(-[0-9]+)?(/(train|val)(/n[0-9]{8})?)?/?", member.name):
        return None
    if re.fullmatch(r"imagenette2(-[0-9]+)?/\w+\.csv", member.name):  # labels with noise, for another purpose
        return None
    if (
        member.folder
        or not match
        or not (TRAIN_PICTURE.fullmatch(match[3]) or VAL_PICTURE.fullmatch(match[3]))
    ):
        raise stream.broken(member.start, f"{member.name} is no picture of Imagenette; this is refused")
    return Picture(match[1], match[2], match[3], 0, member)


# --------------------------------------------------------------------------------------------- index


def index_rows(
    archive: Archive, kind: Kind, labels: dict[int, str], choice: Choice
) -> tuple[np.ndarray, list[str]]:
    """Where every picture lies, from the headers alone.

    Returns:
        Rows of dtype `ROW`, sorted by class and number, and the wnids, sorted.

    Raises:
        UserError: as `classes_of_tar` and `pictures_of_tar`.
    """
    stream, end = archive.stream, archive.size
    places: dict[str, int] = {}
    columns = {name: array("Q") for name in ("offset", "size", "class", "number")}

    def note(wnid: str, number: int, member: Member) -> None:
        place = places.setdefault(wnid, len(places))
        for column, value in zip(columns.values(), (member.offset, member.size, place, number), strict=True):
            column.append(value)

    if kind == "train":
        for outer in class_tars(stream, end):
            wnid = outer.name.removesuffix(".tar")
            if choice.wants(wnid):
                for number, member in _inner_pictures(stream, wnid, outer.offset + outer.size):
                    if choice.takes("train", wnid):
                        note(wnid, number, member)
    else:
        for picture in pictures_of_tar(stream, end, kind, labels):
            if choice.takes(picture.split, picture.wnid):
                note(picture.wnid, picture.number, picture.member)
    rows = np.empty(len(columns["offset"]), ROW)
    for name, column in columns.items():
        rows[name] = np.frombuffer(column, "u8")
    wnids = sorted(places)
    order = {wnid: k for k, wnid in enumerate(wnids)}
    rows["class"] = np.array([order[wnid] for wnid in places], "u2")[rows["class"]]
    return rows[np.lexsort((rows["number"], rows["class"]))], wnids
