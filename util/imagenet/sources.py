"""What ImageNet comes as: the two archives, a folder of inner archives, a Kaggle tree, Imagenette.

The training archive holds an archive `n########.tar` for each class, and that the images
`n########_NUMBER.JPEG`. The validation archive holds the images `ILSVRC2012_val_NUMBER.JPEG`. Whatever
else is in one is refused by a UserError.
"""

import math
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

from common.cli import UserError
from util.imagenet.settings import Settings
from util.imagenet.tars import BLOCK, Archive, members, parse

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


class Official(NamedTuple):
    bytes: int | None
    md5: str
    images: int


KNOWN = {
    TRAIN: Official(147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e", 1_281_167),
    VAL: Official(6_744_924_160, "29b22e2961454d5413ddabcf34fc5622", 50_000),
    "imagenette2.tgz": Official(None, "fe2fc210e6bb7c5664d602c3cd71e612", 13_394),
    "imagenette2-320.tgz": Official(None, "3df6f0d01a2c9592104656642f5e78a3", 13_394),
    "imagenette2-160.tgz": Official(None, "e793b78cc4c9e9a4ccc0c1155377a412", 13_394),
}
Labels = dict[int, str]
"""The class of each validation image, by its number."""
LARGEST = 1 << 28
"""Bytes: a larger member of a class cannot be a photo, and would fill the memory."""
IMAGES_PER_NOTE = 500
"""Images between two notes in the journal, where an archive has no classes in order."""

Kind = Literal["training images", "validation images", "Imagenette", "class archives", "folders of images"]
WNID = "n[0-9]{8}"
TRAIN_NAME = rf"(?P<train>(?P<own>{WNID})_(?P<k>0|[1-9][0-9]{{0,8}}))"
# some copies of the validation set carry the class: in the name, or as a folder
VAL_NAME = rf"(?P<val>ILSVRC2012_val_(?P<number>[0-9]{{8}}))(?:_(?P<suffix>{WNID}))?"
IMAGENETTE = r"imagenette2(?:-[0-9]+)?"
IMAGE: dict[Kind, re.Pattern[str]] = {
    "training images": re.compile(rf"{TRAIN_NAME}\.JPEG"),
    "class archives": re.compile(rf"{TRAIN_NAME}\.JPEG"),
    "validation images": re.compile(rf"(?:(?P<folder>{WNID})/)?{VAL_NAME}\.JPEG"),
    "folders of images": re.compile(rf"(?:{TRAIN_NAME}|{VAL_NAME})\.JPEG"),
    "Imagenette": re.compile(
        rf"{IMAGENETTE}/(?P<split>train|val)/(?P<folder>{WNID})/(?:{TRAIN_NAME}|{VAL_NAME})\.JPEG"
    ),
}
CLASS, CLASS_TAR = re.compile(WNID), re.compile(rf"{WNID}\.tar")
FOLDER = re.compile(rf"({WNID}|{IMAGENETTE}(/(train|val)(/{WNID})?)?)/?")
NOISY_LABELS = re.compile(rf"{IMAGENETTE}/\w+\.csv")  # for another purpose


@dataclass(frozen=True)
class Source:
    """One thing to read."""

    kind: Kind
    path: Path | None  # None is standard input; of folders of images: the folder `train` or `val`
    splits: tuple[str, ...]  # what is in it of `train` and `val`
    unlabeled: bool = False  # whether its images do not carry their class
    size: int | None = None  # bytes of an archive on disk that is not compressed
    stdin: Archive | None = None  # standard input, opened at its beginning

    @property
    def flat(self) -> bool:
        """Whether the images of an archive come without classes in order."""
        return self.kind in ("validation images", "Imagenette")


def find_sources(path: Path | None) -> list[Source]:
    """What is in `path`, an archive or a folder; None is standard input."""
    if path is None:
        return [_identify(Archive(None, md5=True))]
    _refuse_other_tasks(path)
    if not path.is_dir():
        with closing(Archive(path, chunk=BLOCK)) as archive:
            return [_identify(archive)]
    if archives := [path / name for name in (TRAIN, VAL) if (path / name).is_file()]:
        return [source for archive_path in archives for source in find_sources(archive_path)]
    names = sorted(entry.name for entry in path.iterdir())
    if any(CLASS_TAR.fullmatch(name) for name in names):
        return [Source("class archives", path, ("train",))]
    for root in (path, *(path / below for below in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC"))):
        if trees := [tree for split in ("train", "val") if (tree := _tree(root / split, split))]:
            return trees
    for name in names:
        _refuse_other_tasks(path / name)
    raise UserError(
        f"{path} holds neither {TRAIN} nor {VAL}, nor archives n########.tar, nor folders train and val "
        "with ImageNet's images; name a file or folder that does"
    )


def _refuse_other_tasks(path: Path) -> None:
    if path.name.endswith("_t3.tar"):
        raise UserError(f"{path.name} holds only the dogs of task 3; fetch {TRAIN}")
    if "_img_test" in path.name:
        raise UserError(f"{path.name} holds the test images, which nobody has labels for; fetch {TRAIN}")


def _identify(archive: Archive) -> Source:
    """The archive as a source, by its first member."""
    name = parse(archive, 0, archive.peek(BLOCK)).name.removesuffix("/")
    splits: tuple[str, ...] = ("train",)
    unlabeled = False
    if CLASS_TAR.fullmatch(name):
        kind: Kind = "training images"
    elif re.match(rf"{IMAGENETTE}(/|$)", name):
        kind, splits = "Imagenette", ("train", "val")
    elif CLASS.fullmatch(name) or IMAGE["validation images"].fullmatch(name):
        kind, splits, unlabeled = "validation images", ("val",), not CLASS.search(name)
    else:
        raise archive.error(0, f"{name} is not what an archive of ImageNet begins with; fetch {TRAIN}")
    stdin = None if archive.path else archive
    return Source(kind, archive.path, splits, unlabeled, archive.size, stdin)


def _tree(path: Path, split: str) -> Source | None:
    """The folder as a source, if it holds folders of classes, or images of the validation set."""
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    images = [name for name in names if IMAGE["validation images"].fullmatch(name)]
    has_classes = any(CLASS.fullmatch(name) for name in names)
    unlabeled = split == "val" and not has_classes and not all(map(CLASS.search, images))
    return Source("folders of images", path, (split,), unlabeled) if images or has_classes else None


class Choice:
    """Which classes and images are taken: all, or a part."""

    def __init__(self, settings: Settings, labels: Labels) -> None:
        """For `--classes N` takes the first classes of `labels`, sorted, else the first that come."""
        classes = settings.classes
        self._named = set(classes) if isinstance(classes, list) else set()
        count = len(self._named) if isinstance(classes, list) else classes
        self._wanted = self._named or set(sorted(set(labels.values()))[: count or 0])
        self._room = math.inf if count is None else count - len(self._wanted)
        self._takes_all = classes is None and settings.per_class is None
        self._per_class = settings.per_class or math.inf
        self._counts: Counter[tuple[str, str]] = Counter()
        self._seen: set[str] = set()

    def is_full(self) -> bool:
        """Whether as many classes as are wanted have been seen."""
        return not self._room and self._seen == self._wanted

    def wants(self, wnid: str) -> bool:
        """Whether images of this class are taken."""
        if wnid not in self._wanted and self._room:
            self._wanted.add(wnid)
            self._room -= 1
        self._seen |= {wnid} & self._wanted
        return wnid in self._wanted

    def takes(self, split: str, wnid: str) -> bool:
        """Whether the next image of this class is taken."""
        if self._takes_all:
            return True
        self._counts[split, wnid] += 1
        return self.wants(wnid) and self._counts[split, wnid] <= self._per_class

    def check(self, source: str) -> None:
        """Refuses a source that had not all classes that were named."""
        if missing := sorted(self._named - self._seen):
            raise UserError(f"{source} has no class {missing[0]}; of those wanted {len(missing)} are missing")


class Image(NamedTuple):
    """An image of a source, whose bytes are not read before they are asked for."""

    split: str
    wnid: str
    name: str
    number: int
    source: Archive | Path  # the archive, which is at the image's first byte; or the image's file
    offset: int
    size: int

    def read(self) -> bytes:
        return self.source.read_bytes() if isinstance(self.source, Path) else self.source.take(self.size)


class Group(NamedTuple):
    """The images of a class, or some that come without classes in order; read as they are asked for."""

    wnid: str  # the class, or ""
    start: int  # where its first bytes are in the archive; 0 of a file of its own
    size: int  # bytes of the class's archive; else 0
    images: Iterator[Image]


def parse_name(kind: Kind, name: str, labels: Labels, wnid: str = "") -> tuple[str, str, str, int] | None:
    """Split, class, ImageNet's own name and number of an image; None for a name that is none.

    The class is the one in the name, which must be `wnid` if there is one, else that of `labels`.
    It is "" where there is none, or two.
    """
    if not (match := IMAGE[kind].fullmatch(name)):
        return None
    part = match.groupdict().get
    number = int(part("k") or part("number") or 0)
    carried = {part("folder"), part("own"), part("suffix"), wnid or None} - {None}
    label, *others = carried or {labels.get(number)}
    split = part("split") or ("train" if part("train") else "val")
    return split, "" if others else label or "", f"{part('train') or part('val')}.JPEG", number


def images_of_tar(
    archive: Archive, end: int | None, kind: Kind, labels: Labels, wnid: str = "", closed: bool = True
) -> Iterator[Image]:
    """The images of an archive of class `wnid`, of validation images or of Imagenette, as they come."""
    seen = set()
    for member in members(archive, end, closed=closed):
        name = member.name
        if not wnid and (FOLDER.fullmatch(name) if member.folder else NOISY_LABELS.fullmatch(name)):
            continue
        image = parse_name(kind, name, labels, wnid)
        if image is None or member.folder:
            raise archive.error(member.start, f"{name} is none of the {wnid} {kind}; this is refused")
        if not image[1]:
            raise archive.error(member.start, f"{name} has no label, or two; name other labels by --labels")
        if image in seen:
            raise archive.error(member.start, f"{name} is there twice; this is refused")
        if not 0 < member.size <= LARGEST:
            raise archive.error(member.start, f"{name} has {member.size:,} bytes, which no photo has")
        seen.add(image)
        yield Image(*image, archive, member.offset, member.size)
    if not seen:
        raise archive.error(archive.position, f"no images {wnid} are here; fetch the archive again")


def groups_of_tar(
    archive: Archive, end: int | None, kind: Kind, labels: Labels, closed: bool = True
) -> Iterator[Group]:
    """The classes of the training archive, the inner archives walked in place; or blocks of images.

    What the caller does not read of a class is skipped, of a block it has to be read.
    """
    if kind != "training images":
        images = images_of_tar(archive, end, kind, labels, closed=closed)
        for first in images:
            yield Group("", first.offset, 0, chain([first], islice(images, IMAGES_PER_NOTE - 1)))
        return
    seen = set()
    for member in members(archive, end, closed=closed):
        if member.folder or not CLASS_TAR.fullmatch(member.name):
            no_class = f"{member.name} is no class archive n########.tar; this is refused"
            raise archive.error(member.start, no_class)
        if member.name in seen:
            raise archive.error(member.start, f"{member.name} is there twice; this is refused")
        seen.add(member.name)
        wnid = member.name.removesuffix(".tar")
        images = images_of_tar(archive, member.offset + member.size, kind, {}, wnid)
        yield Group(wnid, member.offset, member.size, images)


def groups_of_folder(source: Source, labels: Labels) -> Iterator[Group]:
    """The classes of a folder of inner archives, or of folders of images, by name."""
    paths = sorted(source.path.iterdir()) if source.path else []
    if source.kind == "class archives":
        for path in filter(lambda path: CLASS_TAR.fullmatch(path.name), paths):
            with closing(Archive(path)) as archive:
                images = images_of_tar(archive, archive.size, source.kind, {}, path.stem)
                yield Group(path.stem, 0, path.stat().st_size, images)
        return
    folders = [path for path in paths if CLASS.fullmatch(path.name) and path.is_dir()]
    for path in folders:
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        if not files:
            raise UserError(f"{path} holds no images; remove it")
        yield Group(path.name, 0, len(files), iter([_image_file(file, {}, path.name) for file in files]))
    by_class: dict[str, list[Image]] = {}
    for path in () if folders else paths:  # validation images without folders
        if path.suffix == ".JPEG":
            image = _image_file(path, labels)
            by_class.setdefault(image.wnid, []).append(image)
    for wnid, own in sorted(by_class.items()):
        yield Group(wnid, 0, len(own), iter(own))


def _image_file(file: Path, labels: Labels, wnid: str = "") -> Image:
    """An image of class `wnid`, or of the one that its name or `labels` say."""
    state = file.stat()
    if not stat.S_ISREG(state.st_mode) or not state.st_size:
        raise UserError(f"{file} is no image, or empty; remove it")
    image = parse_name("folders of images", file.name, labels, wnid)
    if image is None:
        raise UserError(f"{ascii(str(file))[1:-1]} is no image of ImageNet; remove it")
    if not image[1]:
        raise UserError(f"{file} has no label, or two; remove it, or name other labels by --labels")
    return Image(*image, file, 0, state.st_size)
