"""ImageNet's archives used in place: an index of where every image lies, and whether a folder is whole.

Beside `X.tar` lie `X.tar.index.npy`, a row for every image sorted by (class, number), and
`X.tar.index.json`, which says what the archive is. `util/imagenet/indexing.py` writes both.
"""

from pathlib import Path
from typing import Any

import numpy as np

from common.cli import UserError, command_line
from common.files import cause_of, parse_json

ROW = np.dtype([("offset", "<u8"), ("size", "<u4"), ("class", "<u2"), ("number", "<u4")])
"""Where a JPEG begins in the outer archive, its bytes, the place of its class in `wnids`, its number."""
FORMAT = 1
NOTED = {"mode", "size", "quality", "part", "classes", "images", "bytes"}  # in `.complete`, at least
COMPLETE, JOURNAL, MANIFEST = ".complete", ".journal", "manifest.json"


def image_name(split: str, wnid: str, number: int) -> str:
    """As ImageNet calls it: `n01440764_18.JPEG` in `train`, `ILSVRC2012_val_00000293.JPEG` in `val`."""
    return f"{wnid}_{number}.JPEG" if split == "train" else f"ILSVRC2012_val_{number:08d}.JPEG"


def index_files(tar: Path) -> tuple[Path, Path]:
    """The rows and the description."""
    return tar.with_name(tar.name + ".index.npy"), tar.with_name(tar.name + ".index.json")


def open_index(tar: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The rows [images] of dtype `ROW`, memory-mapped and read-only, and the description.

    Image i is `image_name(about["split"], about["wnids"][rows[i]["class"]], rows[i]["number"])`.

    Raises:
        UserError: no such archive; the index is missing, damaged, or of an archive that has changed since.
            The message has the command that makes it.
    """
    npy, description = index_files(tar)
    if not description.exists():  # a link has an index of its own, or its archive's
        npy, description = index_files(tar.resolve())
    try:
        state = tar.stat()
    except OSError as error:
        raise UserError(f"{tar}: {cause_of(error)}; name another archive") from None
    try:
        about = _read(description)
        rows = np.load(npy, mmap_mode="r", allow_pickle=False)
        if about["format"] != FORMAT:
            fault = f"the index of {tar} is of another version"
        elif (about["archive_bytes"], about["archive_mtime_ns"]) != (state.st_size, state.st_mtime_ns):
            fault = f"{tar} has changed since its index was made"
        elif (
            about["complete"] is True
            and about["split"] in ("train", "val")
            and (rows.dtype, rows.shape) == (ROW, (about["images"],))
            and int(rows["class"].max()) < len(about["wnids"])
            and int((rows["offset"] + rows["size"]).max()) <= state.st_size
        ):
            return rows, about
        else:
            fault = f"the index of {tar} is damaged"
    except FileNotFoundError as error:
        fault = f"{tar} has no index ({Path(error.filename).name})"
    except Exception as error:  # whatever damaged bytes lead NumPy into
        fault = f"the index of {tar} is damaged ({cause_of(error)})"
    remedy = command_line("python", "util/unzip_imagenet", str(tar), "--mode", "index")
    raise UserError(f"{fault}; make it: {remedy}")


def check_complete(folder: Path) -> dict[str, Any] | None:
    """What `util/unzip_imagenet` noted at the end of its work on a folder, `NOTED` at least; else None.

    Raises:
        UserError: the work was started and not finished; the message has the command that finishes it.
    """
    try:
        about = _read(folder / COMPLETE)
        if missing := ", ".join(NOTED - about.keys()):
            raise ValueError(f"without {missing}")
        return about
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        remedy = "name another folder" if isinstance(error, OSError) else f"remove {folder} and extract again"
        raise UserError(f"{folder / COMPLETE} cannot be read ({cause_of(error)}); {remedy}") from None
    try:
        first = (folder / JOURNAL).read_text(encoding="utf-8").split("\n", 1)[0]
        command = parse_json(first)["command"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):  # killed while the first line was written
        command = "the same util/unzip_imagenet again"
    raise UserError(f"{folder} is not complete: its extraction was interrupted; finish it: {command}")


def _read(path: Path) -> dict[str, Any]:
    about = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(about, dict):
        raise ValueError("no description")
    if "pictures" in about:  # written by versions before this one
        about.setdefault("images", about["pictures"])
    return about
