"""Which class each of ImageNet's validation images belongs to, from any of the files that say so.

The images are keyed by their number, never by their position in a listing: number 1 is
`ILSVRC2012_val_00000001.JPEG`, wherever it lies.
"""

import io
import re
import tarfile
import zipfile
from itertools import chain
from pathlib import Path

from common.cli import UserError
from util.imagenet.settings import Settings
from util.imagenet.sources import CLASS, Source

DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
KAGGLE = "LOC_val_solution.csv"


def labels_for(source: Source, settings: Settings) -> dict[int, str]:
    """The class of each validation image; empty where there are none, or they carry it.

    They are looked for beside the source, in the folder to be filled and in the current one.
    """
    if settings.labels and not settings.labels.exists():
        raise UserError(f"--labels {settings.labels} does not exist; name {DEVKIT}.tar.gz or {KAGGLE}")
    if not source.unlabeled and not settings.labels:
        return {}
    zips = []
    if source.path and zipfile.is_zipfile(source.path):  # Kaggle's has them inside
        with zipfile.ZipFile(source.path) as archive:
            zips = [source.path] if KAGGLE in map(_last, archive.namelist()) else []
    beside = [*source.path.resolve().parents][:4] if source.path else []
    names = (f"{DEVKIT}.tar.gz", f"{DEVKIT}.tar", DEVKIT, KAGGLE, TRUTH)
    candidates = (folder / name for folder in [*beside, settings.out, Path.cwd()] for name in names)
    path = settings.labels or next((path for path in chain(zips, candidates) if path.exists()), None)
    if path is None:
        raise UserError(
            f"the validation images need their labels: put {DEVKIT}.tar.gz or {KAGGLE} "
            f"beside {source.path or 'this folder'}, or name it by --labels"
        )
    return read_labels(path)


def read_labels(path: Path) -> dict[int, str]:
    """The wnid of each image number; a UserError where `path` is damaged, or none of the files that say it.

    These are the devkit as `.tar.gz`, `.tar` or unpacked; `ILSVRC2012_validation_ground_truth.txt` with the
    devkit's `meta.mat` beside it; and Kaggle's `LOC_val_solution.csv`.
    """
    try:
        if path.suffix == ".csv":
            return _kaggle(path.read_text(encoding="utf-8-sig"))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next((name for name in archive.namelist() if _last(name) == KAGGLE), KAGGLE)
                return _kaggle(archive.read(name).decode("utf-8-sig"))
        if path.is_dir() or path.name == TRUTH:
            folder = path.parent if path.name == TRUTH else path
            folder = folder / "data" if (folder / "data").is_dir() else folder
            return _devkit((folder / TRUTH).read_text(), (folder / "meta.mat").read_bytes())
        with tarfile.open(path) as devkit:  # read in memory; nothing is unpacked
            truth, meta = (devkit.extractfile(f"{DEVKIT}/data/{name}") for name in (TRUTH, "meta.mat"))
            assert truth and meta
            return _devkit(truth.read().decode(), meta.read())
    except (ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file leads tarfile and SciPy into
        why = " ".join(str(error).split())  # tarfile's has lines
        remedy = f"name {DEVKIT}.tar.gz or {KAGGLE} by --labels"
        raise UserError(f"{path} gives no labels ({why}); {remedy}") from None


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _kaggle(text: str) -> dict[int, str]:
    """Rows as `ILSVRC2012_val_00048981,n03995372 85 1 499 272`: the box follows the class."""
    labels = {}
    for row in text.splitlines()[1:]:
        match = re.match(r"ILSVRC2012_val_([0-9]{8}),(n[0-9]{8})\b", row)
        if not match:
            raise ValueError(f"the row {row!a:.60} cannot be read")
        labels[int(match[1])] = match[2]
    if not labels:
        raise ValueError("it has no rows")
    return labels


def _devkit(truth: str, meta: bytes) -> dict[int, str]:
    """Line k of the ground truth has the id of image k; ids are not places in a sorted list of classes."""
    from scipy.io import loadmat  # takes a while, and is needed for this alone

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    ids = [int(line) for line in truth.split()]
    if unknown := {i for i in ids if not CLASS.fullmatch(wnids.get(i, ""))}:
        raise ValueError(f"meta.mat has no class of id {min(unknown)}")
    return {number: wnids[i] for number, i in enumerate(ids, start=1)}
