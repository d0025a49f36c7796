"""Which class each of ImageNet's validation pictures belongs to, from any of the files that say so.

The pictures are keyed by their number, never by their position in a listing: number 1 is
`ILSVRC2012_val_00000001.JPEG`, wherever it lies.
"""

import csv
import io
import re
import struct
import tarfile
import zlib
from pathlib import Path

from common.cli import UserError

DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
KAGGLE = "LOC_val_solution.csv"
WNID = re.compile("n[0-9]{8}")
MATRIX, COMPRESSED = 14, 15  # types of elements in a MAT-file, and below those of numbers
NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}


def find_labels(folders: list[Path]) -> Path | None:
    """The first file or folder in one of `folders` that `read_labels` takes."""
    for folder in folders:
        for name in (f"{DEVKIT}.tar.gz", f"{DEVKIT}.tar", DEVKIT, KAGGLE, TRUTH):
            if (folder / name).exists():
                return folder / name
    return None


def read_labels(path: Path) -> dict[int, str]:
    """The wnid of each picture number.

    Args:
        path: the devkit as `.tar.gz`, as `.tar` or unpacked; `ILSVRC2012_validation_ground_truth.txt` with
            the devkit's `meta.mat` beside it; or Kaggle's `LOC_val_solution.csv`.

    Raises:
        UserError: it is none of these, or damaged.
    """
    try:
        if path.suffix == ".csv":
            return _kaggle(path.read_text(encoding="utf-8-sig"))
        if path.is_dir() or path.name == TRUTH:
            folder = path.parent if path.name == TRUTH else path
            folder = folder / "data" if (folder / "data").is_dir() else folder
            return _devkit((folder / TRUTH).read_text(), (folder / "meta.mat").read_bytes())
        found = {}
        with tarfile.open(path) as devkit:  # read in memory; nothing is unpacked
            for member in devkit:
                name = member.name.rsplit("/", 1)[-1]
                if member.isfile() and name in (TRUTH, "meta.mat") and (file := devkit.extractfile(member)):
                    found[name] = file.read()
        return _devkit(found[TRUTH].decode(), found["meta.mat"])
    except KeyError as error:
        raise UserError(f"{path} holds no {error.args[0]}; name {DEVKIT}.tar.gz by --labels") from None
    except (OSError, EOFError, ValueError, struct.error, zlib.error, tarfile.TarError) as error:
        why = " ".join(str(error).split())  # tarfile's has lines
        raise UserError(
            f"{path} gives no labels ({why}); name {DEVKIT}.tar.gz or {KAGGLE} by --labels"
        ) from None


def _kaggle(text: str) -> dict[int, str]:
    """Rows as `ILSVRC2012_val_00048981,n03995372 85 1 499 272`: the box follows the class."""
    labels = {}
    for row in csv.DictReader(io.StringIO(text)):
        if not row.get("ImageId") or not row.get("PredictionString"):
            raise ValueError("no columns ImageId and PredictionString")
        name, wnid = row["ImageId"], row["PredictionString"].split()[0]
        number = re.fullmatch("ILSVRC2012_val_([0-9]{8})", name)
        if not number or not WNID.fullmatch(wnid):
            raise ValueError(f"the row of {name!a} cannot be read")
        labels[int(number[1])] = wnid
    if not labels:
        raise ValueError("it has no rows")
    return labels


def _devkit(truth: str, meta: bytes) -> dict[int, str]:
    """Line k of the ground truth has the id of picture k; ids are not places in a sorted list of classes."""
    wnids = _wnids_by_id(meta)
    ids = [int(line) for line in truth.split()]
    if unknown := set(ids) - set(wnids):
        raise ValueError(f"meta.mat has no class of id {min(unknown)}")
    return {number: wnids[i] for number, i in enumerate(ids, start=1)}


def _wnids_by_id(meta: bytes) -> dict[int, str]:
    """Reads ILSVRC2012_ID and WNID from the array of structs in meta.mat.

    Format: MATLAB, "MAT-File Format", level 5. An element is a type, a number of bytes, and the bytes; those
    of an array of structs are flags, dimensions, name, length of field names, field names, and every field of
    every struct as a matrix of its own.
    """
    if meta[126:128] != b"IM":
        raise ValueError("meta.mat is no little-endian MAT-file of level 5")
    (kind, body), *_ = _elements(meta[128:])
    if kind == COMPRESSED:
        ((kind, body),) = _elements(zlib.decompress(body))
    if kind != MATRIX:
        raise ValueError("meta.mat holds no array")
    _flags, _dimensions, _name, (_, width), (_, names), *values = _elements(body)
    length = int.from_bytes(width, "little")
    fields = [names[i : i + length].split(b"\0", 1)[0] for i in range(0, len(names), length)]
    if not {b"ILSVRC2012_ID", b"WNID"} <= set(fields) or len(values) % len(fields):
        raise ValueError("meta.mat has no structs with ILSVRC2012_ID and WNID")
    found = {}
    for i in range(0, len(values), len(fields)):
        synset = dict(zip(fields, values[i : i + len(fields)], strict=True))
        *_, (kind, number) = _elements(synset[b"ILSVRC2012_ID"][1])
        *_, (_, characters) = _elements(synset[b"WNID"][1])
        wnid = characters.replace(b"\0", b"").decode("ascii")  # stored with 8 or 16 bits
        if kind not in NUMBERS or not WNID.fullmatch(wnid):
            raise ValueError(f"meta.mat has a class {wnid!a} that cannot be read")
        found[int(struct.unpack("<" + NUMBERS[kind], number)[0])] = wnid
    return found


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """Type and bytes of each; up to four bytes may stand in the place of their own length."""
    found, at = [], 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        if kind >> 16:
            kind, length, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start = at + 8
            end = start + length if kind == COMPRESSED else start + -(-length // 8) * 8
        if start + length > len(data):
            raise ValueError("meta.mat is cut short")
        found.append((kind, data[start : start + length]))
        at = end
    return found
