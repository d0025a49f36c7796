"""Handwritten digits and letters: found, downloaded and checked, read from IDX files.

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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import numpy as np
import pooch
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from common.cli import UserError
from common.files import atomic_write

SIDE = 28
TIMEOUT = 10
"""Seconds without an answer after which a server counts as out of reach."""
ORIGINAL = "1e35582d42a90940c55b956deb61875c020b567ed20e3c5b174f52bf7809ed9b"
"""`_sha256` of the original MNIST, whose four files have the MD5 sums that are known for them unpacked."""
REMEDY = "put a whole copy in its place, or name another folder by --data"


@dataclass
class Digits:
    """Characters in the order of their files, or of the stand-in's split."""

    name: str
    """For the screen and the results file; its first word for a score's name."""
    train: Tensor
    """uint8 [N,28,28], 255 for ink: white on black, upright."""
    train_labels: Tensor
    """int64 [N]: label k is `characters[k]`."""
    test: Tensor
    test_labels: Tensor
    characters: str
    builtin: bool
    note: str
    """What screen and results must say about these pictures, a line each; the first one is for captions."""

    def fingerprint(self) -> str:
        """The same for the same training pictures and labels in the same order: sha256, in hexadecimals."""
        return _sha256(self.train, self.train_labels)


@dataclass(frozen=True)
class Known:
    """What is known of a set that many people have."""

    name: str
    folder: str
    """Below the folder of all data: torchvision's layout."""
    parts: tuple[str, str]
    """What the names of the training and of the test files begin with."""
    counts: tuple[int, int]
    """Pictures in each part."""
    characters: str
    first: int = 0
    """The label of `characters[0]` in the files."""
    transposed: bool = False
    """Whether rows and columns are exchanged in the files."""

    def files(self) -> list[str]:
        """Names of the four files, unpacked: pictures and labels of training, then of test."""
        kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
        return [f"{part}-{kind}" for part in self.parts for kind in kinds]


def _emnist(split: str, counts: tuple[int, int], characters: str, first: int = 0) -> Known:
    parts = (f"emnist-{split}-train", f"emnist-{split}-test")
    return Known(f"EMNIST {split}", "EMNIST/raw", parts, counts, characters, first, transposed=True)


MNIST = Known("MNIST", "MNIST/raw", ("train", "t10k"), (60_000, 10_000), string.digits)
# EMNIST's own order; of 15 letters small and capital look alike and stand together as capitals
BALANCED = _emnist("balanced", (112_800, 18_800), string.digits + string.ascii_uppercase + "abdefghnqrt")
KNOWN = (
    MNIST,
    BALANCED,
    _emnist("letters", (124_800, 20_800), string.ascii_lowercase, first=1),
    _emnist("digits", (240_000, 40_000), string.digits),
)


# --------------------------------------------------------------------------------------- finding


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
        folder: where `auto` and `emnist` look, and keep what they have fetched.

    Raises:
        Refused: no such folder; one of the four files is missing, cannot be read, is damaged or does not fit
            to the others, also where `auto` finds it; EMNIST cannot be fetched.
    """
    if data == "builtin":
        return _stand_in()
    if data in ("auto", "emnist"):
        known = MNIST if data == "auto" else BALANCED
        place = folder / known.folder
        if _holds(place, known):
            return _load(place, known)
        try:
            if not download:
                raise UserError(
                    f"A trial downloads none; a whole run does, or put its four files {known.files()[0]}.gz "
                    "and so on there"
                )
            return _download(place, known)
        except UserError as refusal:
            if data == "emnist":  # who asked for letters must not get digits
                raise UserError(f"There is no {known.name} in {place}. {refusal}") from None
            return _stand_in(f"There is no {known.name} in {place}. {refusal}.")
    path = Path(data).expanduser()
    for known in KNOWN:
        for place in (path, path / "raw", path / known.folder):
            if _holds(place, known):
                return _load(place, known)
    wrong = (
        f"holds no {MNIST.files()[0]} and no {BALANCED.files()[0]}, nor do its raw, MNIST/raw, EMNIST/raw"
        if path.is_dir()
        else "is a file"
        if path.exists()
        else "does not exist"
    )
    raise UserError(
        f"--data {path} {wrong}; name a folder with MNIST's or EMNIST's files, or `auto`, `emnist`, `builtin`"
    )


def _holds(place: Path, known: Known) -> bool:
    """Whether any of the four files is there: with one the others are missed, not passed over."""
    return any(_file(place, name) is not None for name in known.files())


def _file(place: Path, name: str) -> Path | None:
    """The unpacked file, else the packed one, if there is any."""
    for path in (place / name, place / f"{name}.gz"):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; {REMEDY}") from None
        return path
    return None


def _stand_in(why: str = "") -> Digits:
    """scikit-learn's digits, 8x8 with 17 levels, scaled to 20x20 in the middle of 28x28 and sharpened."""
    pictures, labels = load_digits(return_X_y=True)  # float [N,64], 0 to 16; int [N]
    small = torch.from_numpy(pictures).view(-1, 1, 8, 8) / 16
    # with room around it a stroke fades out at the edge, too
    large = F.interpolate(F.pad(small, (2, 2, 2, 2)), scale_factor=2.5, mode="bicubic")  # [N,1,30,30]
    sharp = (2 * large[:, 0, 1:-1, 1:-1] - 0.5).clamp(0, 1)  # MNIST's strokes have narrow grey edges
    # float64 and no tie: every machine gets the same pictures
    inked = (sharp * 255 + 0.500001).floor().byte()  # [N,28,28]
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    classes = torch.from_numpy(labels).long()
    note = f"Built-in: {len(labels):,} real digits of 8x8 pixels, scaled up, in place of MNIST."
    return Digits(
        "scikit-learn digits",
        inked[train],
        classes[train],
        inked[test],
        classes[test],
        string.digits,
        builtin=True,
        note=f"{note}\n{why}".strip(),
    )


# --------------------------------------------------------------------------------------- reading


def _load(place: Path, known: Known) -> Digits:
    files = []
    for name in known.files():
        if not (file := _file(place, name)):
            raise UserError(f"{place / name} is missing, packed or not; {REMEDY}")
        files.append(file)
    return _digits(known, files, [_content(file) for file in files])


def _content(path: Path) -> np.ndarray:
    """The file's bytes, unpacked, as uint8 that may be written to, which torch wants."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {REMEDY}") from None
    packed = content[:2].tobytes() == b"\x1f\x8b"  # whatever the name says
    return _unpacked(content.tobytes(), path) if packed else content


def _unpacked(content: bytes, path: Path) -> np.ndarray:
    try:
        return np.frombuffer(bytearray(gzip.decompress(content)), np.uint8)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked ({_in_one_line(error)}); {REMEDY}") from None


def _digits(known: Known, files: list[Path], contents: list[np.ndarray]) -> Digits:
    """The set, checked, from its four files and what they hold, in the order of `known.files()`."""
    parts = []
    for at in (0, 2):
        pictures = _idx(contents[at], files[at], "pictures", 3)
        labels = _idx(contents[at + 1], files[at + 1], "labels", 1)
        if pictures.shape[1:] != (SIDE, SIDE):
            height, width = pictures.shape[1:]
            raise UserError(f"{files[at]} has pictures of {height}x{width} instead of 28x28; {REMEDY}")
        if len(pictures) != len(labels):
            raise UserError(
                f"{files[at]} has {len(pictures):,} pictures, {files[at + 1]} {len(labels):,} labels; "
                f"{REMEDY}"
            )
        low, high = known.first, known.first + len(known.characters) - 1
        if labels.min() < low or labels.max() > high:
            strange = labels.max() if labels.max() > high else labels.min()
            raise UserError(
                f"{files[at + 1]} has the label {strange}, {known.name} has {low} to {high}; {REMEDY}"
            )
        if known.transposed:
            pictures = np.ascontiguousarray(pictures.transpose(0, 2, 1))
        parts += [torch.from_numpy(pictures), torch.from_numpy(labels.astype(np.int64) - low)]
    train, train_labels, test, test_labels = parts
    counts = torch.bincount(train_labels, minlength=len(known.characters))
    if not counts.all():
        missing = known.characters[int(counts.argmin())]
        raise UserError(f"{files[1]} has no {missing}; {REMEDY}")
    name, note, counted = known.name, "", (len(train), len(test))
    if counted != known.counts:
        (has, has_test), (should, should_test) = counted, known.counts
        note = (
            f"Not the original {name}: {has:,} and {has_test:,} pictures to train and test on, "
            f"instead of {should:,} and {should_test:,}."
        )
    elif known is MNIST and _sha256(*parts) != ORIGINAL:  # others come in files of the same names
        note = f"Not the original {name}: as many pictures, but others."
    if note:
        name = name.replace("MNIST", "MNIST-like")
    return Digits(name, train, train_labels, test, test_labels, known.characters, False, note)


def _idx(content: np.ndarray, path: Path, kind: str, dimensions: int) -> np.ndarray:
    """The array uint8 in an IDX file: its kind, its sizes as 32-bit big-endian numbers, its bytes."""
    header = 4 + 4 * dimensions
    begins, expected = content[:4].tobytes(), bytes([0, 0, 8, dimensions])
    if begins != expected:
        how = f"it begins with {begins.hex()} instead of {expected.hex()}" if len(content) else "it is empty"
        raise UserError(f"{path} is no IDX file of {kind}: {how}; {REMEDY}")
    sizes = np.frombuffer(content[4:header].tobytes().ljust(header - 4, b"\0"), ">u4").tolist()
    whole = header + math.prod(sizes)
    if len(content) < header or len(content) != whole:
        how = "is cut off" if len(content) < max(header, whole) else "is too long"
        raise UserError(f"{path} {how}: {len(content):,} bytes instead of {max(header, whole):,}; {REMEDY}")
    if not sizes[0]:
        raise UserError(f"{path} has no {kind}; {REMEDY}")
    return content[header:].reshape(sizes)


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


# ----------------------------------------------------------------------------------- downloading


def _download(place: Path, known: Known) -> Digits:
    """Fetches the four files, checks them and keeps them, unpacked, in `place`.

    Raises:
        Refused: they cannot be had; the message names the address and where to put them by hand.
    """
    try:
        packed = _fetch_mnist() if known is MNIST else _fetch_emnist(place)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, LookupError, RuntimeError) as error:
        raise UserError(
            f"{known.name} could not be had ({_in_one_line(error)}); {_by_hand(place, known)}"
        ) from None
    files = [place / name for name in known.files()]
    contents = [_unpacked(content, file) for content, file in zip(packed, files, strict=True)]
    digits = _digits(known, files, contents)
    try:
        with ExitStack() as stack:  # all four are written before the first one gets its name
            besides = [stack.enter_context(atomic_write(file)) for file in files]
            for beside, content in zip(besides, contents, strict=True):
                content.tofile(beside)
    except (OSError, UserError) as error:
        kept_not = f"{known.name} could not be kept, the next run fetches it again ({_in_one_line(error)})."
        digits.note = f"{digits.note}\n{kept_not}".strip()
    return digits


def _by_hand(place: Path, known: Known) -> str:
    from torchvision import datasets

    if known is MNIST:
        names = ", ".join(name for name, _ in datasets.MNIST.resources)
        return f"fetch {names} from {datasets.MNIST.mirrors[0]} by hand and put them into {place}"
    names = " and ".join(f"{part}-*" for part in known.parts)
    return f"fetch {datasets.EMNIST.url} by hand, unzip it and put its {names} into {place}"


def _fetch_mnist() -> list[bytes]:
    """The four packed files, in the order of `MNIST.files()`."""
    from torchvision import datasets

    mirrors = list(datasets.MNIST.mirrors)
    print("Fetching MNIST, 12 MB of real digits", file=sys.stderr)
    packed = {}
    for name, md5 in datasets.MNIST.resources:
        reasons = []
        for mirror in tuple(mirrors):
            received = io.BytesIO()
            try:
                _get(mirror + name, md5, received)
            except OSError as error:
                reasons.append(f"{urlsplit(mirror).netloc}: {_in_one_line(error)}")
                mirrors.append(mirrors.pop(0))  # it is asked last for the other files
                continue
            packed[name.removesuffix(".gz")] = received.getvalue()
            break
        else:
            raise OSError("; ".join(reasons))
    return [packed[name] for name in MNIST.files()]


def _fetch_emnist(place: Path) -> list[bytes]:
    """The four packed files of the balanced split out of the archive of all, which is not kept."""
    from torchvision import datasets

    print(f"Fetching EMNIST, 560 MB of real digits and letters, from {datasets.EMNIST.url}", file=sys.stderr)
    folder = place.parent.parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as archive:
        _get(datasets.EMNIST.url, datasets.EMNIST.md5, archive)
        with zipfile.ZipFile(archive) as opened:
            return [opened.read(f"gzip/{name}.gz") for name in BALANCED.files()]


def _get(url: str, md5: str, received: IO[bytes]) -> None:
    """Writes what is at `url`, whole and with the right checksum, into a file that can be read again.

    Raises:
        OSError: it cannot be had.
    """
    get = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        chunk_size=2**16,
        timeout=TIMEOUT,
        # some servers call the file's own gzip an encoding of the transfer, which requests would undo
        hooks={"response": lambda response, **_: response.raw.headers.discard("Content-Encoding")},
    )
    get(url, received, None)
    received.seek(0)
    checksum = hashlib.md5(usedforsecurity=False)
    while piece := received.read(2**20):
        checksum.update(piece)
    if (digest := checksum.hexdigest()) != md5:
        raise OSError(f"{url} has another content than expected, its md5 is {digest} instead of {md5}")


def _in_one_line(error: BaseException) -> str:
    while error.__context__:  # the first one says it shortest
        error = error.__context__
    return " ".join(str(error).split()) or type(error).__name__
