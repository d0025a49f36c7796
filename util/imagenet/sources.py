"""What ImageNet comes as: tars of classes or of images, in parts or compressed, zips, folders.

The training archive holds an archive `n########.tar` for each class, and that the images
`n########_NUMBER.JPEG`. The validation archive holds the images `ILSVRC2012_val_NUMBER.JPEG`. Other forms of
these names are read where they can mean but one image, and told; whatever else is in one is refused by a
UserError.
"""

import math
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

from common.cli import UserError
from util.imagenet.settings import Settings
from util.imagenet.tars import BLOCK, GZIP, LONG, Archive, Member, members

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

Kind = Literal["training images", "validation images", "single images", "class archives", "folders of images"]
WNID = "n[0-9]{8}"
# folders in front mean nothing, but the split and the class; nothing is ever written below them
FOLDERS = r"(?:\./|(?!\.\.?/|test/)[^/]+/)*?"
# Hugging Face's names carry the class once more, some copies of the validation set too
IMAGE = re.compile(
    rf"{FOLDERS}(?:(?P<split>train|val)/)?(?:\./)*(?:(?P<folder>{WNID})/)?(?:\./)*"
    rf"(?:(?P<train>(?P<own>{WNID})_(?P<k>0|[1-9][0-9]{{0,8}}))|(?P<val>ILSVRC2012_val_(?P<number>[0-9]{{8}})))"
    rf"(?:_(?P<suffix>{WNID}))?\.(?i:jpe?g)"
)
CLASS = re.compile(WNID)
CLASS_TAR = re.compile(rf"{FOLDERS}(?P<wnid>{WNID})\.(?:tar|tar\.gz|tgz)")
MACOS = re.compile(rf"{FOLDERS}(?:\._[^/]*|\.DS_Store|__MACOSX/.*)")
LEFT_OUT = {
    MACOS: "files of macOS are left out",
    re.compile(rf"{FOLDERS}(?:[^/]+\.(?:xml|csv|txt)|test/[^/]+)"): "other files are left out",
}
COMPRESSED = "classes are compressed"
OTHER_TASKS = re.compile("_t3|_test|devkit|_bbox")
UNFINISHED = r"\.(part|partial|crdownload|download|aria2|opdownload|!ut)"
FORMS = {b"BZh": "bzip2 -dc", b"\xfd7zXZ": "xz -dc", b"(\xb5/\xfd": "zstd -dc", b"7z\xbc\xaf": "7z x -so"}
BEGINNING = "(?i:ILSVRC|imagenet|train_images_0|val_images)"
ARCHIVES = re.compile(rf"{BEGINNING}.*(\.(tar|tgz|gz|zip|bz2|xz|zst|7z)|{UNFINISHED})")


@dataclass(frozen=True)
class Source:
    """One thing to read."""

    kind: Kind
    path: Path | None  # None is standard input; of folders of images: the folder `train` or `val`
    splits: tuple[str, ...]  # what is in it of `train` and `val`
    unlabeled: bool = False  # whether its images do not carry their class
    size: int | None = None  # bytes of an archive on disk that is not compressed
    stdin: Archive | None = None  # standard input, opened at its beginning
    parts: tuple[Path, ...] = ()  # the files that `path` is the first of
    notes: dict[str, tuple[int, str]] = field(default_factory=dict, compare=False)  # how often, the first

    @property
    def flat(self) -> bool:
        """Whether the images of an archive come without classes in order."""
        return self.kind in ("validation images", "single images")

    def note(self, what: str, example: str) -> None:
        """Counts what was understood, or left out."""
        count, first = self.notes.get(what, (0, example))
        self.notes[what] = count + 1, first

    def told(self) -> list[str]:
        """What was understood, in words."""
        return [f"  {count:,} {what}: {first}" for what, (count, first) in self.notes.items()]


def find_sources(path: Path | None) -> list[Source]:
    """What is in `path`, an archive or a folder; None is standard input."""
    if path is None:
        return [_identify(Archive(None, md5=True))]
    _refuse_other_tasks(path)
    if not path.is_dir():
        return _file_sources(path)
    archives = [own for name in (TRAIN, VAL) for own in [path / name, path / f"{name}.gz"] if own.is_file()]
    if archives := [own for own in archives if own.suffix == ".tar" or own.with_suffix("") not in archives]:
        return [source for own in archives for source in find_sources(own)]
    names = sorted(entry.name for entry in path.iterdir())
    if any(CLASS_TAR.fullmatch(name) for name in names):
        return [Source("class archives", path, ("train",))]
    for root in (path, *(path / below for below in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC"))):
        if trees := [tree for split in ("train", "val") if (tree := _tree(root / split, split))]:
            return trees
    archives = [path / name for name in names if ARCHIVES.fullmatch(name) and not OTHER_TASKS.search(name)]
    sources = [source for archive_path in archives for source in find_sources(archive_path)]
    if twice := [split for split, n in Counter(s for own in sources for s in own.splits).items() if n > 1]:
        raise UserError(f"{path} holds {twice[0]} more than once; name one of its archives")
    if sources:
        return sources
    for name in names:
        _refuse_other_tasks(path / name)
    raise UserError(
        f"{path} holds neither {TRAIN} nor {VAL}, nor archives n########.tar, nor folders train and val "
        "with ImageNet's images; name a file or folder that does"
    )


def _file_sources(path: Path) -> list[Source]:
    """A tar, Hugging Face's parts of one, or a zip."""
    if re.fullmatch(UNFINISHED, path.suffix) or path.with_name(f"{path.name}.aria2").exists():
        raise UserError(f"{path} is a download that is not finished; let it go on, or fetch it again")
    parts: tuple[Path, ...] = ()
    if match := re.fullmatch(r"train_images_[0-9]+(\.tar\.gz|\.tgz)", path.name):
        count = len(list(path.parent.glob(f"train_images_*{match[1]}")))
        parts = tuple(path.with_name(f"train_images_{k}{match[1]}") for k in range(count))
        if missing := [part for part in parts if not part.exists()]:
            raise UserError(f"{missing[0]} is missing, a part of the training images; fetch it")
    with closing(Archive(path, chunk=BLOCK)) as archive:
        if archive.peek(2) == b"PK":
            return _zip_sources(path)
        return [_identify(archive, parts)]


def _refuse_other_tasks(path: Path) -> None:
    if path.name.endswith("_t3.tar"):
        raise UserError(f"{path.name} holds only the dogs of task 3; fetch {TRAIN}")
    if re.search("_img_test|^test_images", path.name):
        raise UserError(f"{path.name} holds the test images, which nobody has labels for; fetch {TRAIN}")


def _identify(archive: Archive, parts: tuple[Path, ...] = ()) -> Source:
    """The archive as a source, by the first of its members that says what it is."""
    head = archive.peek(BLOCK)
    if form := next((form for magic, form in FORMS.items() if head.startswith(magic)), None):
        remedy = f"{form} {archive.name} | python util/unzip_imagenet -"
        raise UserError(f"{archive.name} is compressed in another way than gzip: {remedy}")
    if head[:2] == b"PK":
        raise UserError("a zip cannot be read from standard input; name the file")
    if head and re.fullmatch(rb"[\t\n\r\x20-\x7e\x80-\xff]+", head):
        start = ascii(" ".join(head.decode(errors="replace").split())[:40])
        text = f"no tar header but text, {start}: a page that was saved in place of the archive"
        raise archive.error(0, f"{text}; log in, and fetch the archive again")
    if len(head) < BLOCK or not head.strip(b"\0"):
        what = "empty, or zeros alone" if not head.strip(b"\0") else "cut short"
        raise archive.error(0, f"it is {what}: a download that did not come; fetch the archive again")
    with archive.looking_ahead():
        kind, splits, unlabeled = _first_image(archive)
    stdin = None if archive.path else archive
    return Source(kind, archive.path, splits, unlabeled, archive.size, stdin, parts)


def _first_image(archive: Archive) -> tuple[Kind, tuple[str, ...], bool]:
    """Kind, splits and whether labels are needed, by the first member that says it."""
    for member in members(archive, archive.size):
        name = member.name
        match = IMAGE.fullmatch(name)
        is_kaggle = name.removeprefix("./").startswith("ILSVRC/")
        if is_kaggle or (match and match["split"]):  # both splits may follow
            return "single images", ("train", "val"), is_kaggle
        if CLASS_TAR.fullmatch(name):
            return "training images", ("train",), False
        if match:
            if match["train"]:
                return "single images", ("train",), False
            return "validation images", ("val",), not CLASS.search(name)
        if not _why_left_out(name):
            raise archive.error(0, f"{name} is not what an archive of ImageNet begins with; fetch {TRAIN}")
    raise archive.error(0, f"it holds nothing of ImageNet; fetch {TRAIN}")


def _why_left_out(name: str) -> str | None:
    return next((why for pattern, why in LEFT_OUT.items() if pattern.fullmatch(name)), None)


def _zip_sources(path: Path) -> list[Source]:
    """The splits of a zip such as Kaggle's."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [match for name in archive.namelist() if (match := IMAGE.fullmatch(name))]
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is a zip that is cut short or damaged ({error}); fetch it again") from None
    splits = {_split(match) for match in names}
    if not splits:
        raise UserError(f"{path} is a zip without ImageNet's images; unpack it, and name what was in it")
    unlabeled = not all(CLASS.search(match[0]) for match in names)
    kind: Kind = "folders of images"
    return [Source(kind, path, (split,), unlabeled and split == "val") for split in sorted(splits)]


def _tree(path: Path, split: str) -> Source | None:
    """The folder as a source, if it holds folders of classes, or images of the validation set."""
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    images = [name for name in names if IMAGE.fullmatch(name)]
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
    source: Archive | Path | Callable[[], bytes]  # the archive, which is at its first byte; its file; a zip's
    offset: int
    size: int

    def read(self) -> bytes:
        if isinstance(self.source, Archive):
            return self.source.take(self.size)
        return self.source.read_bytes() if isinstance(self.source, Path) else self.source()


class Group(NamedTuple):
    """The images of a class, or some that come without classes in order; read as they are asked for."""

    wnid: str  # the class, or ""
    start: int  # where its first bytes are in the archive; 0 of a file of its own
    size: int  # bytes of the class's archive; else 0
    images: Iterator[Image]


def _split(match: re.Match[str]) -> str:
    return match["split"] or ("train" if match["train"] else "val")


def parse_name(name: str, labels: Labels, wnid: str = "") -> tuple[str, str, str, int] | None:
    """Split, class, ImageNet's own name and number of an image; None for a name that is none.

    The class is the one in the name, which must be `wnid` if there is one, else that of `labels`.
    It is "" where there is none, or two.
    """
    if not (match := IMAGE.fullmatch(name)):
        return None
    part = match.groupdict().get
    number = int(part("k") or part("number") or 0)
    carried = {part("folder"), part("own"), part("suffix"), wnid or None} - {None}
    label, *others = carried or {labels.get(number)}
    return _split(match), "" if others else label or "", f"{part('train') or part('val')}.JPEG", number


def _understand(
    source: Source, name: str, size: int, labels: Labels, wnid: str, error: Callable[[str], UserError]
) -> tuple[str, str, str, int] | None:
    """As `parse_name`; None for what is left out and noted, and `error` raised for all else."""
    image = parse_name(name, labels, wnid)
    if image is None or image[0] not in source.splits:
        if why := _why_left_out(name):
            source.note(why, name)
            return None
        raise error(f"{name} is none of the {f'{wnid} {source.kind}'.strip()}; this is refused")
    if not image[1] and wnid:
        raise error(f"{name} is of another class than its archive, {wnid}; this is refused")
    if not image[1]:
        raise error(f"{name} has no label, or two; name other labels by --labels")
    if not 0 < size <= LARGEST:
        raise error(f"{name} has {size:,} bytes, which no photo has")
    if name != image[2] and name.removeprefix(f"{image[0]}/") != image[2]:
        source.note("names are read as ImageNet's own", f"{name} as {image[2]}")
    return image


def images_of_tar(
    archive: Archive, end: int | None, source: Source, labels: Labels, wnid: str = "", closed: bool = True
) -> Iterator[Image]:
    """The images of an archive of class `wnid`, or of one that comes without classes, as they come."""
    seen = set()

    def error(why: str) -> UserError:
        return archive.error(member.start, why)

    for member in members(archive, end, closed=closed):
        image = _understand(source, member.name, member.size, labels, wnid, error)
        if image is None:
            continue
        if (key := image[0] + image[2]) in seen:
            raise error(f"{member.name} is there twice; this is refused")
        if member.long:
            source.note(LONG, member.name)
        seen.add(key)
        yield Image(*image, archive, member.offset, member.size)
    if not seen:
        raise archive.error(archive.position, f"no images {wnid} are here; fetch the archive again")


def _images_of_class(archive: Archive, member: Member, source: Source, wnid: str) -> Iterator[Image]:
    """The images of a class in the training archive, walked in place; perhaps compressed."""
    if archive.peek(2) != GZIP:
        yield from images_of_tar(archive, member.offset + member.size, source, {}, wnid)
        return
    if member.size > 1 << 30:
        raise archive.error(member.start, f"{member.name} has {member.size:,} bytes, which no class has")
    source.note(COMPRESSED, member.name)
    inner = Archive(Path(f"{archive.name}/{member.name}"), file=BytesIO(archive.take(member.size)))
    yield from images_of_tar(inner, None, source, {}, wnid)


def groups_of_tar(
    archive: Archive, end: int | None, source: Source, labels: Labels, closed: bool = True
) -> Iterator[Group]:
    """The classes of the training archive, the inner archives walked in place; or blocks of images.

    What the caller does not read of a class is skipped, of a block it has to be read.
    """
    if source.flat:
        images = images_of_tar(archive, end, source, labels, closed=closed)
        for first in images:
            yield Group("", first.offset, 0, chain([first], islice(images, IMAGES_PER_NOTE - 1)))
        return
    seen = set()
    for member in members(archive, end, closed=closed):
        name = member.name
        match = CLASS_TAR.fullmatch(name)
        if why := None if match else _why_left_out(name):
            source.note(why, name)
            continue
        if not match:
            raise archive.error(member.start, f"{name} is no class archive n########.tar; this is refused")
        wnid = match["wnid"]
        if wnid in seen:
            raise archive.error(member.start, f"{name} is there twice; this is refused")
        seen.add(wnid)
        if name != f"{wnid}.tar":
            source.note("archives are read as those of classes", f"{name} as {wnid}")
        if member.long:
            source.note(LONG, name)
        yield Group(wnid, member.offset, member.size, _images_of_class(archive, member, source, wnid))


def groups_of_folder(source: Source, labels: Labels) -> Iterator[Group]:
    """The classes of a folder of inner archives, of folders of images or of a zip, by name."""
    assert source.path
    if source.path.is_file():
        yield from _groups_of_zip(source, source.path, labels)
        return
    paths = sorted(source.path.iterdir())
    if source.kind == "class archives":
        for path in paths:
            if match := CLASS_TAR.fullmatch(path.name):
                with closing(Archive(path)) as archive:
                    images = images_of_tar(archive, archive.size, source, {}, match["wnid"])
                    yield Group(match["wnid"], 0, path.stat().st_size, images)
        return
    folders = [path for path in paths if CLASS.fullmatch(path.name) and path.is_dir()]
    by_class: dict[str, list[Image]] = {folder.name: [] for folder in folders}
    files = [(file, folder.name) for folder in folders for file in sorted(folder.iterdir())]
    for file, wnid in files or [(file, "") for file in paths if file.suffix.lower() in (".jpeg", ".jpg")]:
        if file.name.startswith(".") and not MACOS.fullmatch(file.name):
            continue
        if image := _image_file(source, file, labels, wnid):
            by_class.setdefault(image.wnid, []).append(image)
    for wnid, own in sorted(by_class.items()):
        if not own:
            raise UserError(f"{source.path / wnid} holds no images; remove it")
        yield Group(wnid, 0, len(own), iter(own))


def _image_file(source: Source, file: Path, labels: Labels, wnid: str) -> Image | None:
    """An image of class `wnid`, or of the one that its name or `labels` say; None for what is left out."""
    state = file.stat()
    if not stat.S_ISREG(state.st_mode) or not state.st_size:
        raise UserError(f"{file} is no image, or empty; remove it")
    name = f"{source.splits[0]}/{ascii(file.name)[1:-1]}"
    image = _understand(
        source, name, state.st_size, labels, wnid, lambda why: UserError(f"{file.parent}: {why}")
    )
    return Image(*image, file, 0, state.st_size) if image else None


def _groups_of_zip(source: Source, path: Path, labels: Labels) -> Iterator[Group]:
    """The classes of one split of a zip, by name."""
    by_class: dict[str, dict[str, Image]] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            match = IMAGE.fullmatch(info.filename)
            if info.is_dir() or (match and _split(match) not in source.splits):
                continue
            name, error = ascii(info.filename)[1:-1], lambda why: UserError(f"{path}: {why}")
            if image := _understand(source, name, info.file_size, labels, "", error):
                if image[2] in by_class.setdefault(image[1], {}):
                    raise error(f"{name} is there twice; this is refused")
                by_class[image[1]][image[2]] = Image(*image, partial(archive.read, info), 0, info.file_size)
        for wnid, own in sorted(by_class.items()):
            yield Group(wnid, 0, len(own), iter(own.values()))
