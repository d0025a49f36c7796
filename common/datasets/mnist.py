"""Handwritten digits and letters: found, downloaded, checked, read from files of any form, batched.

MNIST (LeCun, Bottou, Bengio, Haffner 1998, "Gradient-Based Learning Applied to Document Recognition") has
70,000 digits; EMNIST (Cohen, Afshar, Tapson, van Schaik 2017, "EMNIST: an extension of MNIST to handwritten
letters") has letters too, in the same format, IDX.

torch is imported where it is used: `common.doctor` looks for the files without it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import re
import string
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from common import cli
from common.cli import UserError, out_of_memory, user_path
from common.datasets.download import FAILURES, fetch, fetch_from_mirrors, in_one_line
from common.datasets.epochs import shuffled_batches
from common.datasets.images import to_float
from common.datasets.packed import gunzip, unzip
from common.files import atomic_write, cause_of

if TYPE_CHECKING:
    from torch import Tensor

ORIGINAL = "1e35582d42a90940c55b956deb61875c020b567ed20e3c5b174f52bf7809ed9b"
"""`_sha256` of the original MNIST, whose four files have the MD5 sums that are known for them unpacked."""
REMEDY = "put a whole copy in its place, or name another by --data"
FORMS = "a folder with MNIST's or EMNIST's files, Keras' mnist.npz, a table of pixels (.csv), a .zip of these"
NAMELESS = "⓪①②③④⑤⑥⑦⑧⑨"
"""In place of characters for ten classes that are none, so that nobody can write with them."""
UNEVEN = 2
"""A set in which the most frequent character has this many times the images of the rarest is no even one."""


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

    def validation_split(self) -> Digits:
        """The training part alone: its last 2,000 characters, at most a fifth, become the test part."""
        end = len(self.train) - min(2_000, len(self.train) // 5)
        held_out = replace(self, test=self.train[end:], test_labels=self.train_labels[end:])
        return replace(held_out, train=self.train[:end], train_labels=self.train_labels[:end])

    def trial(self) -> Digits:
        """The set with at most 1,000 test characters."""
        return replace(self, test=self.test[:1_000], test_labels=self.test_labels[:1_000])

    def training_sample(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` training images at random, always the same ones, and their labels."""
        import torch

        index = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:count]
        return self.train[index], self.train_labels[index]

    def is_even(self) -> bool:
        """Whether all characters have about as many training images."""
        counts = self.train_labels.bincount(minlength=len(self.characters))
        return bool(counts.max() < UNEVEN * counts.min())

    def labels_to_sample(self, count: int) -> Tensor:
        """Labels, int64 [count], of what is generated to stand beside the test part: in turn, or, where some
        characters are rare, each as often as there, else the shares of the classes would be scored."""
        import torch

        return (torch.arange(count) % len(self.characters)) if self.is_even() else self.test_labels[:count]


def gan_batches(
    data: Digits, size: int, latent: int, seed: int, alike: int, by_class: bool
) -> Callable[[int], Iterator[tuple[tuple[Tensor, ...], Tensor]]]:
    """A GAN's batches from any step on, without end: ((noise, labels), real), or ((noise,), real) without
    `alike`: normal noise [size,nets,latent], int64 [size], and real images [size,nets,28,28] in 0..1.

    With `by_class` a real "image" is one of each character, for as many nets side by side. The `alike` images
    that stand size / alike apart are of one character, drawn with equal chances however few images it has: so
    the minibatch standard deviation sees how much they differ, and not only that a 1 is no 8.

    Raises:
        UserError: a character has fewer than two training images.
    """
    import torch

    classes = [(data.train_labels == k).nonzero()[:, 0] for k in range(len(data.characters))]
    if (fewest := min(map(len, classes))) < 2:
        raise UserError(f"--data: a character has {fewest} images to train on; take larger data")

    def start(first: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        for step, batch in enumerate(shuffled_batches(len(data.train), size, seed, first), first):
            rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
            index = torch.tensor(batch)[:, None]  # [N,1]
            if alike:
                chosen = torch.randint(len(classes), (size // alike,), generator=rng).repeat(alike).tolist()
                index = torch.stack(
                    [classes[k][torch.randint(len(classes[k]), (1,), generator=rng)] for k in chosen]
                )
            if by_class:
                index = torch.stack([of[torch.randint(len(of), (size,), generator=rng)] for of in classes], 1)
            noise = torch.randn(*index.shape, latent, generator=rng)
            label = (data.train_labels[index[:, 0]],) if alike else ()
            yield (noise, *label), to_float(data.train[index])

    return start


class PublicSet(NamedTuple):
    """A set that many people have."""

    name: str  # its first word is its folder in the folder of all data
    counts: tuple[int, int]  # images to train and to test on
    characters: str
    first: int = 0  # the label of `characters[0]` in the files

    @property
    def parts(self) -> tuple[str, str]:
        """What the names of the training and of the test files begin with."""
        name = self.name.lower().replace(" ", "-")
        return ("train", "t10k") if self is MNIST else (f"{name}-train", f"{name}-test")

    def files(self) -> list[str]:
        """Plain names of the four IDX files: images and labels of training, then of test."""
        return [f"{part}-{kind}-ubyte" for part in self.parts for kind in ("images-idx3", "labels-idx1")]


MNIST = PublicSet("MNIST", (60_000, 10_000), string.digits)
CAPITALS_FIRST = string.digits + string.ascii_uppercase
EMNIST = (  # the largest set of characters first
    PublicSet("EMNIST byclass", (697_932, 116_323), CAPITALS_FIRST + string.ascii_lowercase),
    # of 15 letters small and capital look alike and stand together as capitals
    PublicSet("EMNIST balanced", (112_800, 18_800), CAPITALS_FIRST + "abdefghnqrt"),
    PublicSet("EMNIST letters", (124_800, 20_800), string.ascii_lowercase, first=1),
    PublicSet("EMNIST digits", (240_000, 40_000), string.digits),
    PublicSet("EMNIST mnist", (60_000, 10_000), string.digits),
)
PUBLIC_SETS = (MNIST, *EMNIST)


def find(data: str, *, download: bool = True, folder: Path = Path("data")) -> Digits:
    """The digits that `--data` names.

    `auto` is the user's MNIST in `folder`, else a download to its `MNIST/raw`, where `download` allows one,
    else `builtin`, and the note says why; `builtin` is scikit-learn's digits of 8x8 pixels, scaled up;
    `emnist` is the split of EMNIST in `folder` that has the most characters, or a download to its
    `EMNIST/raw`. All else is one of `FORMS`, or one file of them; files may be in `raw`, `MNIST/raw` or
    `EMNIST/raw`, packed by gzip or not; where there are several sets, MNIST comes first, then EMNIST's split
    with the most characters. `:byclass`, `:balanced`, `:letters`, `:digits` or `:mnist` after `emnist` or
    after a path names the split.

    Raises:
        UserError: nothing of that kind is there; a file is missing, cannot be read, is damaged or does not
            fit to the others, also where `auto` finds it; EMNIST cannot be fetched.
    """
    if data == "builtin":
        return _stand_in()
    split = re.fullmatch(f"(.+):({'|'.join(of.name.split()[1] for of in EMNIST)})", data)
    where, sets = data, {"auto": (MNIST,), "emnist": EMNIST}.get(data, PUBLIC_SETS)
    if split:
        where, sets = split[1], tuple(of for of in EMNIST if of.name.split()[1] == split[2])
    if data != "auto" and where != "emnist":
        path = user_path("data", where)
        if digits := _read(path, sets):
            names = {MNIST.name: "auto"} | {of.name: of.name.lower().replace(" ", ":") for of in EMNIST}
            if digits.name in names:
                cli.anywhere[data] = names[digits.name]
            return digits
        wrong = "is none of these" if path.exists() else "does not exist"
        wrong = f"has no {sets[0].name}" if split else wrong
        raise UserError(f"--data {path} {wrong}: {FORMS}; name one, or `auto`, `emnist`, `builtin`")
    public = sets[0]
    path = folder / where.replace("auto", "mnist").upper() / "raw"
    if digits := _read(path.parent, sets):
        return digits
    try:
        if not download:
            first = f"{public.files()[0]}.gz"
            raise UserError(f"A trial downloads none; a whole run does, or put {first} and its like there")
        return _download(path, public)
    except UserError as error:
        why = f"There is no {public.name} in {path}. {error}"
        if data != "auto":  # who asked for letters must not get digits
            raise UserError(why) from None
        return _stand_in(f"{why}.")


def _stand_in(why: str = "") -> Digits:
    """scikit-learn's digits, 8x8 with 17 levels, scaled to 20x20 in the middle of 28x28 and sharpened."""
    import torch
    import torch.nn.functional as F
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)  # float [N,64], 0 to 16; int [N]
    small = torch.from_numpy(pixels).view(-1, 1, 8, 8) / 16
    # with room around it a stroke fades out at the edge, too
    large = F.interpolate(F.pad(small, (2, 2, 2, 2)), scale_factor=2.5, mode="bicubic")  # [N,1,30,30]
    sharp = (2 * large[:, 0, 1:-1, 1:-1] - 0.5).clamp(0, 1)  # MNIST's strokes have narrow grey edges
    images = (sharp * 255 + 0.500001).floor().byte()  # float64 and no tie: every machine gets the same
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    classes = torch.from_numpy(labels).long()
    parts = images[train], classes[train], images[test], classes[test]
    note = f"Built-in: {len(labels):,} real digits of 8x8 pixels, scaled up, in place of MNIST.\n{why}"
    return Digits("scikit-learn digits", *parts, string.digits, builtin=True, note=note.strip())


Source = Path | zipfile.Path


def _read(path: Path, sets: tuple[PublicSet, ...]) -> Digits | None:
    """What `locate` finds, read and checked."""
    found = locate(path, sets)
    return found and _digits(*found, path)


def locate(path: Path, sets: tuple[PublicSet, ...]) -> tuple[PublicSet, dict[Source, None]] | None:
    """The first of `sets` of which any file is in a folder or a .zip, or of which `path` is one: then others
    of its files are missed, by a UserError, and not passed over. Returns it and its files, none of them read
    yet; None where there is none."""
    forms = [(of, names) for of in sets for names in (of.files(), [f"{part}.csv" for part in of.parts])]
    forms += [(MNIST, ["mnist.npz"])] if MNIST in sets else []
    places = [path / below for below in ("", "raw", "MNIST/raw", "EMNIST/raw")]
    try:
        if path.is_file() and (path.suffix.lower() == ".npz" or not zipfile.is_zipfile(path)):
            with path.open("rb") as file:
                if file.read(4) == b"PK\x03\x04" and not zipfile.is_zipfile(file):
                    raise zipfile.BadZipFile("this zip is damaged or cut short")
            name, places = _plain(path.name), [path.parent]
            forms = [(of, names) for of, names in forms if name in names]
            if not forms and re.fullmatch(r"(?!emnist).*\.(csv|npz)", name):  # by a name of one's own
                forms = [(MNIST, [name])]
        found = [(place, _listing(place)) for place in places]
    except FAILURES as error:
        raise _unusable(f"{path} cannot be read ({cause_of(error)})") from None
    for public, names in forms:
        for place, files in found:
            if not files.keys().isdisjoint(names):
                needed = names[:1] if names[0].endswith(".csv") else names  # a table may be alone
                if missing := [name for name in needed if name not in files]:
                    raise _unusable(f"{place / missing[0]} is missing, packed or not")
                mapping = files.get(f"{public.name.lower().replace(' ', '-')}-mapping.txt")
                known = _mapped(public, mapping) if mapping else public
                return known, {files[name]: None for name in names if name in files}
    return None


def _mapped(public: PublicSet, mapping: Source) -> PublicSet:
    """The set with the characters of its mapping file: on each line a label and the code of its character,
    in `letters` those of capital and small letter."""
    try:
        rows = [[int(number) for number in line.split()] for line in mapping.read_text().splitlines()]
        characters = "".join(chr(row[-1]) for row in rows)
        if [row[0] for row in rows] != list(range(rows[0][0], rows[0][0] + len(set(characters)))):
            raise ValueError("it does not give labels in turn a character each")
    except (OSError, ValueError, IndexError, OverflowError) as error:
        raise _unusable(f"{mapping} cannot be used: {cause_of(error)}") from None
    return public._replace(characters=characters, first=rows[0][0])


def _listing(place: Path) -> dict[str, Source]:
    """The files of an archive or of a folder, also in its folders that are named so, by plain names."""
    if place.is_file():
        archive = zipfile.ZipFile(place)
        members = [name for name in sorted(archive.namelist(), reverse=True) if name[-1] != "/"]
        return {_plain(name.rpartition("/")[2]): zipfile.Path(archive, name) for name in members}
    paths = [*place.iterdir(), *place.glob("*ubyte*/*")] if place.is_dir() else []
    paths.sort(key=lambda path: (path.is_dir(), len(path.parts), path), reverse=True)
    return {_plain(path.name): path for path in paths}  # the last of a name counts, a file before a folder


def _plain(name: str) -> str:
    """`train-images.idx3-ubyte.gz` is `train-images-idx3-ubyte`, `mnist_test.csv` is `t10k.csv`."""
    name = name.lower().removesuffix(".gz").replace(".idx", "-idx")
    table = re.fullmatch(r"(?:(?:fashion-)?mnist_)?(train|test)\.csv", name)
    return {"train": "train.csv", "test": "t10k.csv"}[table[1]] if table else name


def _arrays(path: Source, content: bytes) -> list[np.ndarray]:
    """Of an IDX file (kind, sizes as 32-bit big-endian numbers, bytes) images or labels; of a table both, or
    nothing where it has no labels; of Keras' file those of training and of test."""
    name = _plain(path.name)
    if name.endswith(".npz"):
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = (unzip(file, f"{name}_{part}.npy") for part in ("train", "test") for name in "xy")
            return [np.load(io.BytesIO(member), allow_pickle=False) for member in members]
    if name.endswith(".csv"):
        first = content.partition(b"\n")[0]
        header = 0 if re.search(rb"[A-Za-z]", first) else None  # without one the label stands first
        separator = ";" if b";" in first else ","
        table = pd.read_csv(io.BytesIO(content), sep=separator, header=header, dtype=np.float32)
        table.columns = [str(column).strip().lower() for column in table]
        labels = [table.pop(column) for column in ("label", "class", "0") if column in table][:1]
        pixels = table[[column for column in table if not column.startswith("unnamed")]]  # numbers of rows
        return [part.to_numpy() for part in (pixels, *labels)] if labels else []
    # IDX; torchvision's reader does not say what is wrong with which file
    kind, dimensions = ("images", 3) if "images" in name else ("labels", 1)
    header = 4 + 4 * dimensions
    start, expected = content[:4], bytes([0, 0, 8, dimensions])
    if start != expected:
        how = f"it begins with {start.hex()} instead of {expected.hex()}" if content else "it is empty"
        raise ValueError(f"it is no IDX file of {kind}: {how}")
    sizes = np.frombuffer(content[4:header].ljust(header - 4, b"\0"), ">u4").tolist()
    if len(content) != (whole := header + math.prod(sizes)):
        how = "cut off" if len(content) < whole else "too long"
        raise ValueError(f"it is {how}: {len(content):,} bytes instead of {whole:,}")
    return [np.frombuffer(content[header:], np.uint8).reshape(sizes)]


def read_arrays(contents: Mapping[Any, bytes | None]) -> list[tuple[Source, np.ndarray]]:
    """The arrays, uint8, of each file in turn: of its content, or where that is None, of what is in it.

    Raises:
        UserError: one cannot be used.
    """
    arrays = []
    for path, content in contents.items():
        try:
            if content is None:
                content = path.read_bytes() if isinstance(path, Path) else unzip(path.root, path.at)
            if content.startswith(b"\x1f\x8b"):  # packed, whatever its name says
                content = gunzip(content)
            for array in map(np.atleast_1d, _arrays(path, content)):
                whole = array if array.dtype == np.uint8 else np.clip(np.nan_to_num(array), 0, 255)
                arrays.append((path, whole.astype(np.uint8)))
                if not np.array_equal(array, arrays[-1][1]):
                    raise ValueError("it has other values than whole numbers from 0 to 255")
        except Exception as error:  # whatever damaged bytes lead NumPy and pandas into
            if out_of_memory(error):  # in pandas' words, as if the file were at fault
                raise MemoryError from None
            raise _unusable(f"{path} cannot be used: {cause_of(error)}") from None
    return arrays


def _digits(public: PublicSet, contents: Mapping[Any, bytes | None], named: Path | None = None) -> Digits:
    """The set in one of its forms, read and checked. The file that is `named`, if it is one of them, must
    have labels."""
    import torch

    arrays = read_arrays(contents)
    if not arrays:
        raise _unusable(f"{next(iter(contents))} has no column `label`")
    if named in contents and named not in [path for path, _ in arrays]:
        raise UserError(f"{named} has no labels (no column `label`); name {arrays[0][0]} instead")
    sources = " and ".join(dict.fromkeys(str(path) for path, _ in arrays))
    note = f"Read from {sources}." if len(contents) < 4 else ""
    if len(arrays) == 2:
        (path, images), (_, labels) = arrays
        end = len(labels) - max(1, len(labels) // 7)
        arrays = [(path, part) for part in (images[:end], labels[:end], images[end:], labels[end:])]
        note = f"Read from {path} alone: the last {len(labels) - end:,} of its images are the test part."
    train, test = _part(public, *arrays[:2]), _part(public, *arrays[2:])
    found = torch.bincount(train[1], minlength=len(public.characters))
    if not found.all():
        raise _unusable(f"{arrays[1][0]} has no {public.characters[int(found.argmin())]}")
    name, counts, how = public.name, (len(train[0]), len(test[0])), ""
    if counts != public.counts:
        how = "{:,} and {:,} images to train and test on, instead of {:,} and {:,}"
    elif public is MNIST and _sha256(*train, *test) != ORIGINAL:  # others come in files of the same names
        how = "as many images, but others"
        if bool((found == found[0]).all()):  # digits that people wrote are not as even
            how += ", and equally many of each class, as in Fashion-MNIST: what the classes are is unknown"
            public = public._replace(characters=NAMELESS)
    if how:
        note = f"Not the original {name}: {how.format(*counts, *public.counts)}.\n{note}".strip()
        name = name.replace("MNIST", "MNIST-like")
    return Digits(name, *train, *test, public.characters, False, note)


def _part(public: PublicSet, *pair: tuple[Source, np.ndarray]) -> tuple[Tensor, Tensor]:
    """Images, uint8 [N,28,28], and labels, int64 [N], from what their two files hold."""
    import torch

    (path, images), (label_path, labels) = pair
    if not len(images) or not len(labels):
        raise _unusable(f"{label_path} has no labels" if len(images) else f"{path} has no images")
    images = images.reshape(-1, 28, 28) if images[0].size == 784 else images
    if images.shape[1:] != (28, 28):
        size = "x".join(map(str, images.shape[1:]))
        raise _unusable(f"{path} has images of {size} instead of 28x28 pixels")
    if labels.ndim > 1:
        shape = "x".join(map(str, labels.shape))
        raise _unusable(f"{label_path} has labels of shape {shape} instead of one number for each image")
    if labels.shape != images.shape[:1]:
        raise _unusable(f"{path} has {len(images):,} images, {label_path} {len(labels):,} labels")
    low, high = public.first, public.first + len(public.characters) - 1
    if len(strange := labels[(labels < low) | (labels > high)]):
        raise _unusable(f"{label_path} has the label {strange[0]}, {public.name} has {low} to {high}")
    if public is not MNIST:  # EMNIST's rows and columns are exchanged
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64) - low)


def _unusable(what: str) -> UserError:
    return UserError(f"{what}; {REMEDY}")


def _sha256(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def _download(folder: Path, public: PublicSet) -> Digits:
    """Fetches the four files, checks them and stores them, unpacked, in `folder`.

    Raises:
        UserError: they cannot be had; the message names the address and where to put them by hand.
    """
    from torchvision import datasets  # which knows addresses and checksums

    names = ", ".join(f"{name}.gz" for name in public.files())
    source = datasets.MNIST.mirrors[0] if public is MNIST else datasets.EMNIST.url
    packed = {}
    try:
        if public is MNIST:
            print("Fetching MNIST, 12 MB of real digits", file=sys.stderr)
            mirrors = list(datasets.MNIST.mirrors)
            for name, md5 in datasets.MNIST.resources:
                fetch_from_mirrors(mirrors, name, buffer := io.BytesIO(), md5)
                packed[name] = buffer.getvalue()
        else:
            print(f"Fetching EMNIST, 560 MB of real digits and letters, from {source}", file=sys.stderr)
            (place := folder.parent.parent).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place) as archive:
                fetch(source, archive, datasets.EMNIST.md5)
                with zipfile.ZipFile(archive) as opened:
                    packed = {f"{name}.gz": opened.read(f"gzip/{name}.gz") for name in public.files()}
    except FAILURES as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room" if full else f"fetch {names} from {source} by hand and put them into {folder}"
        raise UserError(f"{public.name} could not be had ({in_one_line(error)}); {remedy}") from None
    contents = {folder / name: gunzip(packed[f"{name}.gz"]) for name in public.files()}
    digits = _digits(public, contents)
    try:
        with ExitStack() as stack:  # all four are written before the first one gets its name
            for path, content in contents.items():
                stack.enter_context(atomic_write(path)).write_bytes(content)
    except UserError as error:
        lost = f"{public.name} could not be kept, the next run fetches it again ({error})."
        digits.note = f"{digits.note}\n{lost}".strip()
    return digits
