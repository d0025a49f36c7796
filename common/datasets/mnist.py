"""Handwritten digits and letters: found, downloaded and checked, read from IDX files, put into batches.

MNIST (LeCun, Bottou, Bengio, Haffner 1998, "Gradient-Based Learning Applied to Document Recognition") has
70,000 digits; EMNIST (Cohen, Afshar, Tapson, van Schaik 2017, "EMNIST: an extension of MNIST to handwritten
letters") has letters too, in the same format.
"""

import gzip
import hashlib
import io
import math
import string
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from common.cli import UserError
from common.datasets.download import FAILURES, fetch, fetch_from_mirrors, in_one_line
from common.datasets.epochs import shuffled_batches
from common.datasets.images import to_float
from common.files import atomic_write

SIDE = 28
ORIGINAL = "1e35582d42a90940c55b956deb61875c020b567ed20e3c5b174f52bf7809ed9b"
"""`_sha256` of the original MNIST, whose four files have the MD5 sums that are known for them unpacked."""
REMEDY = "put a whole copy in its place, or name another folder by --data"


@dataclass
class Digits:
    """Characters in the order of their files, or of the stand-in's split."""

    name: str  # for the screen and the results file; its first word for a score's name
    train: Tensor  # uint8 [N,28,28], 255 for ink: white on black, upright
    train_labels: Tensor  # int64 [N]: label k is `characters[k]`
    test: Tensor
    test_labels: Tensor
    characters: str
    builtin: bool
    note: str  # what screen and results must say about these images, a line each; the first is for captions

    def fingerprint(self) -> str:
        """The same for the same training images and labels in the same order: sha256, in hexadecimals."""
        return _sha256(self.train, self.train_labels)

    def validation_split(self) -> "Digits":
        """The training part alone: its last 2,000 characters, at most a fifth, become the test part."""
        end = len(self.train) - min(2_000, len(self.train) // 5)
        images, labels = self.train, self.train_labels
        validation = replace(self, test=images[end:], test_labels=labels[end:])
        return replace(validation, train=images[:end], train_labels=labels[:end])

    def trial(self) -> "Digits":
        """The set with at most 1,000 test characters."""
        return replace(self, test=self.test[:1_000], test_labels=self.test_labels[:1_000])

    def training_sample(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` training images at random, always the same ones, and their labels."""
        index = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:count]
        return self.train[index], self.train_labels[index]


def gan_batches(
    data: Digits, size: int, latent: int, seed: int, labelled: bool, by_class: bool
) -> Callable[[int], Iterator[tuple[tuple[Tensor, ...], Tensor]]]:
    """A GAN's batches from any step on: ((noise, labels), real), or ((noise,), real) without `labelled`.

    Args:
        by_class: whether a real "image" is one of each character, for as many nets side by side.

    Returns:
        of a step, an iterator without end: normal noise [size,nets,latent], labels int64 [size], and real
        images [size,nets,28,28] in 0..1.

    Raises:
        UserError: a character has fewer than two training images.
    """
    classes = [(data.train_labels == k).nonzero()[:, 0] for k in range(len(data.characters))]
    fewest = min(map(len, classes))
    if fewest < 2:
        raise UserError(f"--data: a character has {fewest} images to train on; take larger data")

    def start(first: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        for step, batch in enumerate(shuffled_batches(len(data.train), size, seed, first), first):
            rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
            index = torch.tensor(batch)[:, None]  # [N,1]
            if by_class:
                index = torch.stack([of[torch.randint(len(of), (size,), generator=rng)] for of in classes], 1)
            noise = torch.randn(*index.shape, latent, generator=rng)
            label = (data.train_labels[index[:, 0]],) if labelled else ()
            yield (noise, *label), to_float(data.train[index])

    return start


# --------------------------------------------------------------------------------------- finding


@dataclass(frozen=True)
class PublicSet:
    """A set that many people have."""

    name: str
    folder: str  # below the folder of all data: torchvision's layout
    parts: tuple[str, str]  # what the names of the training and of the test files begin with
    counts: tuple[int, int]  # images in each part
    characters: str
    first: int = 0  # the label of `characters[0]` in the files
    transposed: bool = False  # whether rows and columns are exchanged in the files

    def files(self) -> list[str]:
        """Names of the four files, unpacked: images and labels of training, then of test."""
        kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
        return [f"{part}-{kind}" for part in self.parts for kind in kinds]


def _emnist(split: str, counts: tuple[int, int], characters: str, first: int = 0) -> PublicSet:
    parts = (f"emnist-{split}-train", f"emnist-{split}-test")
    return PublicSet(f"EMNIST {split}", "EMNIST/raw", parts, counts, characters, first, transposed=True)


MNIST = PublicSet("MNIST", "MNIST/raw", ("train", "t10k"), (60_000, 10_000), string.digits)
# EMNIST's own order; of 15 letters small and capital look alike and stand together as capitals
BALANCED = _emnist("balanced", (112_800, 18_800), string.digits + string.ascii_uppercase + "abdefghnqrt")
PUBLIC_SETS = (
    MNIST,
    BALANCED,
    _emnist("letters", (124_800, 20_800), string.ascii_lowercase, first=1),
    _emnist("digits", (240_000, 40_000), string.digits),
)


def find(data: str, *, download: bool = True, folder: Path = Path("data")) -> Digits:
    """The digits that `--data` names.

    `auto` is the user's MNIST, `MNIST/raw` in `folder`, else a download to there, else `builtin`, and then
    the note says why.

    Args:
        data: `auto`; `builtin`, scikit-learn's digits of 8x8 pixels, scaled up; `emnist`, its balanced split,
            `EMNIST/raw` in `folder` or a download to there; or a folder that holds the four IDX files of
            MNIST or of EMNIST's split balanced, letters or digits, packed by gzip or not, in itself, in
            `raw` or in torchvision's `MNIST/raw` or `EMNIST/raw`.
        download: whether a set that is not there may be fetched.
        folder: where `auto` and `emnist` look, and store what they have fetched.

    Raises:
        UserError: no such folder; one of the four files is missing, cannot be read, is damaged or does not
            fit to the others, also where `auto` finds it; EMNIST cannot be fetched.
    """
    if data == "builtin":
        return _stand_in()
    if data in ("auto", "emnist"):
        public = MNIST if data == "auto" else BALANCED
        path = folder / public.folder
        if _has_any(path, public):
            return _load(path, public)
        try:
            if not download:
                raise UserError(
                    f"A trial downloads none; a whole run does, or put its four files {public.files()[0]}.gz "
                    "and so on there"
                )
            return _download(path, public)
        except UserError as error:
            why = f"There is no {public.name} in {path}. {error}"
            if data == "emnist":  # who asked for letters must not get digits
                raise UserError(why) from None
            return _stand_in(f"{why}.")
    path = Path(data).expanduser()
    for public in PUBLIC_SETS:
        for place in (path, path / "raw", path / public.folder):
            if _has_any(place, public):
                return _load(place, public)
    wrong = "is a file" if path.exists() else "does not exist"
    if path.is_dir():
        wrong = (
            f"holds no {MNIST.files()[0]} and no {BALANCED.files()[0]}, nor do its raw, MNIST/raw, EMNIST/raw"
        )
    raise UserError(
        f"--data {path} {wrong}; name a folder with MNIST's or EMNIST's files, or `auto`, `emnist`, `builtin`"
    )


def _has_any(folder: Path, public: PublicSet) -> bool:
    """Whether any of the four files is there: with one the others are missed, not passed over."""
    return any(_file(folder, name) is not None for name in public.files())


def _file(folder: Path, name: str) -> Path | None:
    """The unpacked file, else the packed one, if there is any."""
    for path in (folder / name, folder / f"{name}.gz"):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _unusable(f"cannot read {path}: {error.strerror}") from None
        return path
    return None


def _stand_in(why: str = "") -> Digits:
    """scikit-learn's digits, 8x8 with 17 levels, scaled to 20x20 in the middle of 28x28 and sharpened."""
    pixels, labels = load_digits(return_X_y=True)  # float [N,64], 0 to 16; int [N]
    small = torch.from_numpy(pixels).view(-1, 1, 8, 8) / 16
    # with room around it a stroke fades out at the edge, too
    large = F.interpolate(F.pad(small, (2, 2, 2, 2)), scale_factor=2.5, mode="bicubic")  # [N,1,30,30]
    sharp = (2 * large[:, 0, 1:-1, 1:-1] - 0.5).clamp(0, 1)  # MNIST's strokes have narrow grey edges
    # float64 and no tie: every machine gets the same images
    images = (sharp * 255 + 0.500001).floor().byte()  # [N,28,28]
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    classes = torch.from_numpy(labels).long()
    note = (
        f"Built-in: {len(labels):,} real digits of 8x8 pixels, scaled up, in place of MNIST.\n{why}".strip()
    )
    parts = images[train], classes[train], images[test], classes[test]
    return Digits("scikit-learn digits", *parts, string.digits, builtin=True, note=note)


# --------------------------------------------------------------------------------------- reading


def _load(folder: Path, public: PublicSet) -> Digits:
    files = []
    for name in public.files():
        if not (file := _file(folder, name)):
            raise _unusable(f"{folder / name} is missing, packed or not")
        files.append(file)
    return _digits(public, files, [_content(file) for file in files])


def _content(path: Path) -> np.ndarray:
    """The file's bytes, unpacked, as uint8 that may be written to, which torch wants."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise _unusable(f"cannot read {path}: {error.strerror}") from None
    packed = content[:2].tobytes() == b"\x1f\x8b"  # whatever the name says
    return _unpacked(content.tobytes(), path) if packed else content


def _unpacked(content: bytes, path: Path) -> np.ndarray:
    try:
        return np.frombuffer(bytearray(gzip.decompress(content)), np.uint8)
    except (EOFError, OSError, zlib.error) as error:
        raise _unusable(f"{path} cannot be unpacked ({in_one_line(error)})") from None


def _digits(public: PublicSet, files: list[Path], contents: list[np.ndarray]) -> Digits:
    """The set, checked, from its four files and what they hold, in the order of `public.files()`."""
    train, test = (_part(public, files[at : at + 2], contents[at : at + 2]) for at in (0, 2))
    parts = (*train, *test)
    counts = torch.bincount(train[1], minlength=len(public.characters))
    if not counts.all():
        raise _unusable(f"{files[1]} has no {public.characters[int(counts.argmin())]}")
    name, note = public.name, ""
    if (len(train[0]), len(test[0])) != public.counts:
        note = (
            f"Not the original {name}: {len(train[0]):,} and {len(test[0]):,} images to train and test on, "
            f"instead of {public.counts[0]:,} and {public.counts[1]:,}."
        )
    elif public is MNIST and _sha256(*parts) != ORIGINAL:  # others come in files of the same names
        note = f"Not the original {name}: as many images, but others."
    if note:
        name = name.replace("MNIST", "MNIST-like")
    return Digits(name, *parts, public.characters, False, note)


def _part(public: PublicSet, files: list[Path], contents: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Images, uint8 [N,28,28], and labels, int64 [N], from what their two files hold."""
    images, labels = (_idx(*of) for of in zip(contents, files, ("images", "labels"), (3, 1), strict=True))
    height, width = images.shape[1:]
    if (height, width) != (SIDE, SIDE):
        raise _unusable(f"{files[0]} has images of {height}x{width} instead of 28x28")
    if len(images) != len(labels):
        raise _unusable(f"{files[0]} has {len(images):,} images, {files[1]} {len(labels):,} labels")
    low, high = public.first, public.first + len(public.characters) - 1
    if labels.min() < low or labels.max() > high:
        strange = labels.max() if labels.max() > high else labels.min()
        raise _unusable(f"{files[1]} has the label {strange}, {public.name} has {low} to {high}")
    if public.transposed:
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64) - low)


def _idx(content: np.ndarray, path: Path, kind: str, dimensions: int) -> np.ndarray:
    """The array uint8 in an IDX file: its kind, its sizes as 32-bit big-endian numbers, its bytes.

    torchvision's reader asserts less, and does not say what is wrong with which file.
    """
    header = 4 + 4 * dimensions
    start, expected = content[:4].tobytes(), bytes([0, 0, 8, dimensions])
    if start != expected:
        how = f"it begins with {start.hex()} instead of {expected.hex()}" if len(content) else "it is empty"
        raise _unusable(f"{path} is no IDX file of {kind}: {how}")
    sizes = np.frombuffer(content[4:header].tobytes().ljust(header - 4, b"\0"), ">u4").tolist()
    whole = header + math.prod(sizes)
    if len(content) != whole:
        how = "is cut off" if len(content) < whole else "is too long"
        raise _unusable(f"{path} {how}: {len(content):,} bytes instead of {whole:,}")
    if not sizes[0]:
        raise _unusable(f"{path} has no {kind}")
    return content[header:].reshape(sizes)


def _unusable(what: str) -> UserError:
    return UserError(f"{what}; {REMEDY}")


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


# ----------------------------------------------------------------------------------- downloading


def _download(folder: Path, public: PublicSet) -> Digits:
    """Fetches the four files, checks them and stores them, unpacked, in `folder`.

    Raises:
        UserError: they cannot be had; the message names the address and where to put them by hand.
    """
    from torchvision import datasets  # which knows addresses and checksums

    if public is MNIST:
        names = ", ".join(name for name, _ in datasets.MNIST.resources)
        by_hand = f"fetch {names} from {datasets.MNIST.mirrors[0]} by hand and put them into {folder}"
    else:
        names = " and ".join(f"{part}-*" for part in public.parts)
        by_hand = f"fetch {datasets.EMNIST.url} by hand, unzip it and put its {names} into {folder}"
    try:
        packed = _fetch_mnist() if public is MNIST else _fetch_emnist(folder.parent.parent)
    except FAILURES as error:
        raise UserError(f"{public.name} could not be had ({in_one_line(error)}); {by_hand}") from None
    files = [folder / name for name in public.files()]
    contents = [_unpacked(packed[file.name], file) for file in files]
    digits = _digits(public, files, contents)
    try:
        with ExitStack() as stack:  # all four are written before the first one gets its name
            temporary = [stack.enter_context(atomic_write(file)) for file in files]
            for path, content in zip(temporary, contents, strict=True):
                content.tofile(path)
    except UserError as error:
        lost = f"{public.name} could not be kept, the next run fetches it again ({in_one_line(error)})."
        digits.note = f"{digits.note}\n{lost}".strip()
    return digits


def _fetch_mnist() -> dict[str, bytes]:
    """The four packed files, by their unpacked names."""
    from torchvision import datasets

    print("Fetching MNIST, 12 MB of real digits", file=sys.stderr)
    mirrors, packed = list(datasets.MNIST.mirrors), {}
    for name, md5 in datasets.MNIST.resources:
        file = io.BytesIO()
        fetch_from_mirrors(mirrors, name, file, md5)
        packed[name.removesuffix(".gz")] = file.getvalue()
    return packed


def _fetch_emnist(folder: Path) -> dict[str, bytes]:
    """The same of EMNIST's balanced split, out of an archive that is in `folder` meanwhile."""
    from torchvision import datasets

    print(f"Fetching EMNIST, 560 MB of real digits and letters, from {datasets.EMNIST.url}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as archive:
        fetch(datasets.EMNIST.url, archive, datasets.EMNIST.md5)
        with zipfile.ZipFile(archive) as opened:
            return {name: opened.read(f"gzip/{name}.gz") for name in BALANCED.files()}
