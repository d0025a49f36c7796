"""MNIST and EMNIST: their files, damaged ones, places, the download, the stand-in."""

import functools
import gzip
import hashlib
import http.server
import io
import socket
import string
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from common.cli import UserError
from common.datasets import download, mnist
from common.inference import handwriting

REAL = Path(__file__).parents[2] / "shared/data"
RAW = Path("data/MNIST/raw")
RESOURCES = datasets.MNIST.resources
NOBODY = "http://127.0.0.1:9/"


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the data or the network of the machine."""
    monkeypatch.setattr(datasets.MNIST, "mirrors", [NOBODY])
    monkeypatch.setattr(datasets.EMNIST, "url", NOBODY + "gzip.zip")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def idx(array: np.ndarray) -> bytes:
    """An IDX file of uint8."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def fake_files(public: mnist.PublicSet = mnist.MNIST, train: int = 2, test: int = 1) -> dict[str, np.ndarray]:
    """So many images of each character: what is in each of the four files."""
    rng = np.random.default_rng(0)
    files = {}
    for part, each in zip(public.parts, (train, test), strict=True):
        labels = np.tile(np.arange(len(public.characters), dtype=np.uint8) + public.first, each)
        files[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (len(labels), 28, 28), np.uint8)
        files[f"{part}-labels-idx1-ubyte"] = labels
    return files


def put(place: Path, files: dict[str, np.ndarray], pack: Callable[[str], bool] = lambda name: False) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, array in files.items():
        if pack(name):
            (place / f"{name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
        else:
            (place / name).write_bytes(idx(array))


def equal(one: mnist.Digits, other: mnist.Digits) -> bool:
    parts = ("train", "train_labels", "test", "test_labels")
    same = all(torch.equal(getattr(one, part), getattr(other, part)) for part in parts)
    return same and (one.name, one.note, one.builtin) == (other.name, other.note, other.builtin)


def refused(data: str = "mine", **options: bool) -> str:
    before = tree()
    with pytest.raises(UserError) as refusal:
        mnist.find(data, **options)
    assert "\n" not in str(refusal.value) and tree() == before
    return str(refusal.value)


def tree() -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in Path().rglob("*")}


# ----------------------------------------------------------------------------------------- files


def test_images_and_labels_come_as_they_are_in_the_files() -> None:
    files = fake_files()
    put(Path("mine"), files)
    found = mnist.find("mine")
    tensors = (found.train, found.train_labels, found.test, found.test_labels)
    for tensor, array in zip(tensors, files.values(), strict=True):
        assert np.array_equal(tensor.numpy(), array)
    assert [tensor.dtype for tensor in tensors] == 2 * [torch.uint8, torch.int64]
    assert (found.characters, found.builtin) == ("0123456789", False)


@pytest.mark.parametrize(
    "pack", [lambda name: True, lambda name: "train" in name, lambda name: "lab" in name]
)
def test_packed_files_give_the_same(pack: Callable[[str], bool]) -> None:
    put(Path("mine"), fake_files())
    put(Path("packed"), fake_files(), pack)
    assert len(list(Path("packed").glob("*.gz"))) in (2, 4)
    assert equal(mnist.find("packed"), mnist.find("mine"))


def test_the_content_tells_whether_a_file_is_packed() -> None:
    put(Path("mine"), fake_files())
    put(Path("other"), fake_files())
    for file in list(Path("other").iterdir()):
        content = file.read_bytes()
        if "images" in file.name:
            file.write_bytes(gzip.compress(content))
        else:
            file.rename(f"{file}.gz")
    assert equal(mnist.find("other"), mnist.find("mine"))


def test_nothing_warns_that_a_tensor_cannot_be_written_to(recwarn: pytest.WarningsRecorder) -> None:
    put(Path("mine"), fake_files(), lambda name: "train" in name)
    torch.set_warn_always(True)  # not only the first time, which may have been in another test
    try:
        mnist.find("mine")
    finally:
        torch.set_warn_always(False)
    assert not recwarn.list


@pytest.mark.parametrize("split", ["byclass", "balanced", "letters", "digits", "mnist"])
def test_emnist_stands_upright_and_has_torchvisions_characters(split: str) -> None:
    public = next(public for public in mnist.PUBLIC_SETS if public.name == f"EMNIST {split}")
    files = fake_files(public)
    upright = np.zeros((28, 28), np.uint8)  # an L
    upright[4:24, 8], upright[23, 8:18] = 255, 255
    files[f"emnist-{split}-train-images-idx3-ubyte"][3] = upright.T
    files[f"emnist-{split}-test-images-idx3-ubyte"][5] = upright.T
    put(Path("mine/EMNIST/raw"), files)
    found = mnist.find("mine")
    assert np.array_equal(found.train[3].numpy(), upright) and found.train.is_contiguous()
    assert np.array_equal(found.test[5].numpy(), upright)
    classes = datasets.EMNIST.classes_split_dict[split]
    assert list(found.characters) == [name for name in classes if len(name) == 1]
    for part, labels in (("train", found.train_labels), ("test", found.test_labels)):
        theirs = [classes[label] for label in files[f"emnist-{split}-{part}-labels-idx1-ubyte"]]
        assert [found.characters[label] for label in labels] == theirs
    # torchvision itself reads the same
    theirs = datasets.EMNIST("mine", split, train=True)
    assert torch.equal(theirs.data.transpose(1, 2), found.train)


def test_other_images_than_the_original_are_never_called_by_its_name() -> None:
    put(Path("mine"), fake_files())
    found = mnist.find("mine")
    assert found.name == "MNIST-like"
    assert found.note == (
        "Not the original MNIST: 20 and 10 images to train and test on, instead of 60,000 and 10,000."
    )
    put(Path("letters"), fake_files(mnist.EMNIST[1]))
    assert mnist.find("letters").name == "EMNIST-like balanced"


def test_as_many_others_are_not_called_mnist_and_fashion_mnist_cannot_write() -> None:
    put(Path("mine"), files := fake_files(train=6_000, test=1_000))  # Fashion-MNIST's are called so, too
    found = mnist.find("mine")
    assert found.characters == "⓪①②③④⑤⑥⑦⑧⑨" and "as in Fashion-MNIST" in found.note
    with pytest.raises(UserError, match="cannot write"):
        handwriting.check_text("2026", found.characters)
    files[LABELS][0] = 1
    Path("mine", LABELS).write_bytes(idx(files[LABELS]))
    found = mnist.find("mine")
    assert (len(found.train), len(found.test), found.name) == (60_000, 10_000, "MNIST-like")
    assert found.note == "Not the original MNIST: as many images, but others."
    assert found.characters == string.digits


def test_the_mapping_file_says_what_the_labels_are() -> None:
    put(Path("mine"), fake_files(mnist.EMNIST[0]._replace(characters="abc")))
    mapping = Path("mine/emnist-byclass-mapping.txt")
    mapping.write_text("0 97\n1 66 98\n2 33\n")
    found = mnist.find("mine:byclass")
    assert found.characters == "ab!" and found.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    for wrong in ("0 97\n2 98\n", "0 97\n1 97\n2 98\n", "0\tx\n", "0 99999999999\n", "", "\n\n"):
        mapping.write_text(wrong)
        assert "mine/emnist-byclass-mapping.txt cannot be used: " in refused("mine")


def test_uneven_sets_are_trained_evenly_and_scored_as_they_are() -> None:
    files = fake_files(mnist.EMNIST[3], train=40)
    keep = np.r_[:20, 20:400:10, 21:400:10]  # 2 of each, and all of 0 and 1
    for name in ("images-idx3", "labels-idx1"):
        files[f"emnist-digits-train-{name}-ubyte"] = files[f"emnist-digits-train-{name}-ubyte"][keep]
    put(Path("mine"), files)
    found = mnist.find("mine")
    assert not found.is_even() and torch.equal(found.labels_to_sample(7), found.test_labels[:7])
    batches = mnist.gan_batches(found, 48, 4, 0, 4, False)(0)
    (_, labels), real = next(batches)
    shown = (255 * real[:, 0]).round().byte()
    index = torch.stack([(found.train == image).all((1, 2)).nonzero()[0, 0] for image in shown])
    assert torch.equal(found.train_labels[index], labels) and (labels.view(4, 12) == labels[:12]).all()
    counts = torch.cat([next(batches)[0][1] for _ in range(40)]).bincount(minlength=10)
    assert counts.min() > 140 and counts.max() < 270  # 200 each, though 0 is 20 times as frequent as 2
    _, real = next(mnist.gan_batches(found, 96, 4, 0, 0, False)(0))  # without labels: as they come
    assert torch.equal((255 * real).sum().round(), found.train.float().sum())


def test_the_fingerprint_is_that_of_training_images_and_labels() -> None:
    put(Path("mine"), fake_files())
    found = mnist.find("mine")
    same = found.fingerprint()
    assert len(same) == 64 and mnist.find("mine").fingerprint() == same
    assert replace(found, test=found.test[:1], note="other").fingerprint() == same
    other = found.train.clone()
    other[7, 13, 13] ^= 1
    labels = found.train_labels.clone()
    labels[3] = 4
    prints = [
        replace(found, train=other).fingerprint(),
        replace(found, train_labels=labels).fingerprint(),
        replace(found, train=found.train[:-1], train_labels=found.train_labels[:-1]).fingerprint(),
        replace(found, train=found.train.flip(0)).fingerprint(),
    ]
    assert len({same, *prints}) == 5
    turned = found.train.transpose(1, 2).contiguous().transpose(1, 2)  # the same, elsewhere in memory
    assert replace(found, train=turned).fingerprint() == same


def test_the_real_mnist() -> None:
    if not (REAL / "MNIST").exists():
        pytest.skip("no real MNIST here")
    found = mnist.find(str(REAL))
    assert (found.name, found.note, len(found.train), len(found.test)) == ("MNIST", "", 60_000, 10_000)
    assert found.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    for theirs, train in (
        (datasets.MNIST(REAL, train=True), True),
        (datasets.MNIST(REAL, train=False), False),
    ):
        assert torch.equal(theirs.data, found.train if train else found.test)
        assert torch.equal(theirs.targets, found.train_labels if train else found.test_labels)


# --------------------------------------------------------------------------------- damaged files

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
ZEROS = np.zeros((20, 28, 28), np.uint8)
DAMAGES = {
    "cut off": (IMAGES, lambda old: old[:5000], "it is cut off: 5,000 bytes instead of 15,696"),
    "cut off in the header": (IMAGES, lambda old: old[:10], "it is cut off: 10 bytes instead of 16"),
    "cut off after the header": (LABELS, lambda old: old[:8], "it is cut off: 8 bytes instead of 28"),
    "too long": (LABELS, lambda old: old + b"\0", "it is too long: 29 bytes instead of 28"),
    "empty": (LABELS, lambda old: b"", "it is no IDX file of labels: it is empty"),
    "a page": (IMAGES, lambda old: b"<html>" * 900, "no IDX file of images: it begins with 3c68746d"),
    "labels for images": (
        IMAGES,
        lambda old: idx(fake_files()[LABELS]),
        "begins with 00000801 instead of 00000803",
    ),
    "floats": (LABELS, lambda old: b"\0\0\x0d\1" + old[4:], "begins with 00000d01 instead of 00000801"),
    "fewer labels": (
        LABELS,
        lambda old: idx(fake_files()[LABELS][:-3]),
        f"20 images, mine/{LABELS} 17 labels",
    ),
    "no images": (IMAGES, lambda old: idx(ZEROS[:0]), "has no images"),
    "no labels": (LABELS, lambda old: idx(fake_files()[LABELS][:0]), "has no labels"),
    "larger images": (IMAGES, lambda old: idx(np.zeros((20, 32, 30), np.uint8)), "32x30 instead of 28x28"),
    "a strange label": (LABELS, lambda old: old[:-1] + b"\x0b", "has the label 11, MNIST has 0 to 9"),
    "a class is missing": (LABELS, lambda old: old.replace(b"\7", b"\6"), "has no 7"),
    "gzip cut off": (
        IMAGES,
        lambda old: gzip.compress(old)[:-500],
        "cannot be used: Compressed file ended",
    ),
    "gzip damaged": (IMAGES, lambda old: gzip.compress(old)[:-8] + bytes(8), "cannot be used: CRC check"),
    "gzip of a page": (LABELS, lambda old: gzip.compress(b"<html>"), "begins with 3c68746d"),
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_file_is_refused_by_name(how: str, packed: bool) -> None:
    name, damage, why = DAMAGES[how]
    put(Path("mine"), fake_files())
    file = Path("mine", name)
    content = damage(file.read_bytes())
    if packed:
        file.unlink()
        file = Path(f"{file}.gz")
    file.write_bytes(content)
    refusal = refused().replace(".gz", "")
    assert refusal.startswith(f"mine/{name} ") or how == "fewer labels"
    assert why in refusal and mnist.REMEDY in refusal


@pytest.mark.parametrize("name", fake_files())
def test_a_damaged_copy_of_the_users_is_refused_not_replaced(name: str) -> None:
    put(RAW, fake_files(), lambda name: "labels" in name)
    file = next(RAW.glob(f"{name}*"))
    file.write_bytes(file.read_bytes()[:-1])
    assert str(file) in refused("auto")
    file.unlink()
    assert f"{RAW / name} is missing" in refused("auto")
    assert f"{RAW / name} is missing" in refused("data")


def test_a_file_that_cannot_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    put(Path("mine"), fake_files())
    Path("mine", IMAGES).unlink()
    Path("mine", IMAGES).mkdir()
    assert refused() == f"mine/{IMAGES} cannot be used: Is a directory; {mnist.REMEDY}"

    def denied(path: Path, *options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=f"mine/{IMAGES} .*: Permission denied; "),
    ):
        patch.setattr(Path, "read_bytes", denied)
        mnist.find("mine")
    monkeypatch.setattr(Path, "stat", denied)  # the folder does not let us in
    with pytest.raises(UserError, match=r"mine cannot be read \(Permission denied\)"):
        mnist.find("mine")


# ------------------------------------------------------------------------------------ other forms


def dotted(place: Path, files: dict[str, np.ndarray]) -> None:
    put(place, {name.replace("-idx", ".idx"): array for name, array in files.items()})


def own_folders(place: Path, files: dict[str, np.ndarray]) -> None:
    """Kaggle's, whose folders are called as what they hold; two of them hold it under another name."""
    for name, array in files.items():
        inner = f"{name}.gz" if "t10k-i" in name else name.replace("-idx", ".idx") if "t10k" in name else name
        put(place / name, {inner.removesuffix(".gz"): array}, lambda _, inner=inner: inner.endswith(".gz"))


def keras(place: Path, files: dict[str, np.ndarray], name: str = "mnist.npz", **other: np.ndarray) -> None:
    arrays = dict(zip(("x_train", "y_train", "x_test", "y_test"), files.values(), strict=True)) | other
    place.mkdir(parents=True, exist_ok=True)
    np.savez(place / name, **arrays)  # type: ignore[arg-type]


def table(images: np.ndarray, labels: np.ndarray | None, header: str = "", separator: str = ",") -> str:
    """A header's name for column k is `header` % k."""
    rows = images.reshape(len(images), -1)
    names = [] if labels is None else ["label"]
    head = separator.join(names + [header % k for k in range(rows.shape[1])]) + "\n" if header else ""
    columns = rows if labels is None else np.column_stack([labels, rows])
    return head + "".join(separator.join(map(str, row)) + "\n" for row in columns.tolist())


def tables(place: Path, files: dict[str, np.ndarray], names: tuple[str, ...] = (), **look: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    train, train_labels, test, test_labels = files.values()
    for name, part in zip(
        names or ("mnist_train.csv", "mnist_test.csv"),
        ((train, train_labels), (test, test_labels)),
        strict=True,
    ):
        (place / name).write_text(table(*part, **look))


def archive(place: Path, files: dict[str, np.ndarray]) -> None:
    tables(place / "inside", files)
    with zipfile.ZipFile(place / "archive.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in (place / "inside").iterdir():
            file.write(path, f"digits/{path.name}")
            file.writestr(f"__MACOSX/._{path.name}", "no table")


FORMS = {
    "dots": (dotted, "", "train-labels.idx1-ubyte"),
    "folders": (own_folders, "", None),
    "keras": (keras, "", "mnist.npz"),
    "keras by another name": (lambda *words: keras(*words, name="keras.NPZ.npz"), None, "keras.NPZ.npz"),
    "tables": (tables, "", "mnist_train.csv"),
    "tables with a header": (lambda *words: tables(*words, header="%dx1"), "", "mnist_train.csv"),
    "tables of a spreadsheet": (lambda *words: tables(*words, header="pixel%d", separator=";"), "", None),
    "fashion": (lambda *w: tables(*w, names=("fashion-mnist_train.csv", "fashion-mnist_test.csv")), "", None),
    "archive": (archive, None, "archive.zip"),
}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_mnist_are_read_from_their_folder_or_file(form: str) -> None:
    write, folder, file = FORMS[form]
    put(Path("mine"), fake_files())
    write(Path("other"), fake_files())
    mine = mnist.find("mine")
    for data in [Path("other", name) for name in (folder, file) if name is not None]:
        found = mnist.find(str(data))
        assert equal(replace(found, note=mine.note), mine)
        known = ("dots", "folders")
        assert found.note == mine.note if form in known else "Read from other/" in found.note.split("\n")[1]


def test_what_auto_finds_may_have_these_forms_too() -> None:
    keras(Path("data/MNIST"), fake_files())
    assert len(mnist.find("auto", download=False).train) == 20


def test_a_table_alone_gives_its_last_seventh_to_test() -> None:
    files = list(fake_files(train=7).values())
    Path("mine").mkdir()
    Path("mine/train.csv").write_text(table(*files[:2], header="pixel%d"))  # type: ignore[call-overload]
    Path("mine/test.csv").write_text(table(files[2], None, header="pixel%d"))  # as Kaggle's: without labels
    for data in ("mine", "mine/train.csv"):
        found = mnist.find(data)
        assert np.array_equal(torch.cat([found.train, found.test]), files[0])
        assert np.array_equal(torch.cat([found.train_labels, found.test_labels]), files[1])
        assert "train.csv alone: the last 10 of its images are the test part." in found.note
    assert "mine/test.csv has no labels" in (why := refused("mine/test.csv")) and "mine/train.csv" in why
    Path("mine/train.csv").unlink()
    assert "mine/train.csv is missing" in refused()
    with_numbers = "".join(f"{k},{line}\n" for k, line in enumerate(table(*files[:2]).splitlines()))
    Path("rows.csv").write_text("," + table(*files[:2], header="%dx1").split("\n")[0] + "\n" + with_numbers)
    assert torch.equal(mnist.find("rows.csv").train, found.train)


def test_tables_of_emnist_stand_upright_too() -> None:
    files = fake_files(mnist.EMNIST[2])
    put(Path("mine"), files)
    tables(Path("other"), files, names=("emnist-letters-train.csv", "emnist-letters-test.csv"))
    assert torch.equal(mnist.find("other/emnist-letters-train.csv").train, mnist.find("mine").train)
    tables(Path("more"), fake_files(), names=("emnist-mnist-train.csv", "emnist-mnist-test.csv"))
    assert mnist.find("more/emnist-mnist-train.csv").name == "EMNIST-like mnist"


def test_one_file_stands_for_its_own_set() -> None:
    put(Path("mine"), fake_files())
    put(Path("mine"), fake_files(mnist.EMNIST[2]))
    keras(Path("mine"), fake_files(train=3))
    assert mnist.find("mine/emnist-letters-test-labels-idx1-ubyte").name == "EMNIST-like letters"
    assert len(mnist.find("mine/mnist.npz").train) == 30 and len(mnist.find("mine").train) == 20


def test_forms_that_are_not_certain_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    files, fine = fake_files(), table(*list(fake_files().values())[:2])  # type: ignore[call-overload]
    said = {
        "no item named 'x_train.npy'": lambda: np.savez("mine.npz", images=files[IMAGES]),
        "File is not a zip file": lambda: Path("mine.npz").write_bytes(b"\x80\x04no arrays"),
        "allow_pickle=False": lambda: keras(Path(), files, "mine.npz", y_test=np.array([{}], object)),
        "other values than whole numbers from 0 to 255": lambda: keras(
            Path(), files, "mine.npz", x_train=files[IMAGES] / 255
        ),
        "images of 27x28 instead": lambda: keras(Path(), files, "mine.npz", x_test=files[IMAGES][:, 1:]),
        "images, mine.npz 19 labels": lambda: keras(Path(), files, "mine.npz", y_train=files[LABELS][1:]),
        "labels of shape 20x10 instead": lambda: keras(
            Path(), files, "mine.npz", y_train=np.eye(10)[files[LABELS]]
        ),
        "this zip is damaged or cut short": lambda: Path("mine.zip").write_bytes(b"PK\x03\x04 cut"),
        "(this zip is damaged or cut short)": lambda: Path("mine.npz").write_bytes(b"PK\x03\x04 cut"),
        "could not convert string": lambda: Path("mine.csv").write_text(fine + "label,pixel\n"),
        "images of 756 instead of 28x28": lambda: Path("mine.csv").write_text(
            table(files[IMAGES][:, 1:], files[LABELS])
        ),
        "from 0 to 255": lambda: Path("mine.csv").write_text(fine[:-300]),  # cut off
        "has no column `label`": lambda: Path("mine.csv").write_text(table(files[IMAGES], None, "pixel%d")),
        "No columns to parse": lambda: Path("mine.csv").write_text(""),
    }
    for why, write in said.items():
        write()
        (name,) = (path.name for path in Path().glob("mine.*"))
        refusal = refused(name)
        assert why in refusal and refusal.startswith(name) and mnist.REMEDY in refusal
        Path(name).unlink()


@pytest.mark.parametrize("words", ["Error tokenizing data. C error: out of memory", None])
def test_too_little_memory_is_no_damage(words: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    tables(Path("mine"), fake_files())

    def too_large(*_: object, **__: object) -> None:
        raise ValueError(words) if words else MemoryError

    monkeypatch.setattr(mnist.pd, "read_csv", too_large)
    with pytest.raises(MemoryError):
        mnist.find("mine")


def test_paths_with_a_tilde_and_names_that_are_too_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "mine", fake_files())
    assert len(mnist.find("~/mine").train) == 20
    assert "--data ~nosuchuser" in refused("~nosuchuser/mine")
    assert "File name too long" in refused("a" * 300)


# ---------------------------------------------------------------------------------------- places


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_a_folder_is_found_at_every_level_of_torchvisions_layout(place: str) -> None:
    put(Path("mine", place), fake_files())
    assert len(mnist.find("mine").train) == 20


@pytest.mark.parametrize("place", ["", "raw", "EMNIST/raw"])
def test_so_is_emnist(place: str) -> None:
    put(Path("mine", place), fake_files(mnist.EMNIST[1]))
    found = mnist.find("mine")
    assert found.characters == string.digits + string.ascii_uppercase + "abdefghnqrt"


def test_where_both_are_mnist_is_taken_unless_emnist_is_asked_for() -> None:
    put(RAW, fake_files())
    put(Path("data/EMNIST/raw"), fake_files(mnist.EMNIST[1]))
    assert mnist.find("data").name == mnist.find("auto").name == "MNIST-like"
    assert mnist.find("emnist").name == mnist.find("data/EMNIST").name == "EMNIST-like balanced"


def test_the_most_characters_are_taken_unless_a_split_is_named() -> None:
    place = Path("data/EMNIST/raw")
    for public in mnist.EMNIST[1:]:
        put(place, fake_files(public))
    assert mnist.find("emnist").name == mnist.find("data/EMNIST").name == "EMNIST-like balanced"
    put(place, fake_files(mnist.EMNIST[0]))
    assert mnist.find("emnist").name == mnist.find("data").name == "EMNIST-like byclass"
    for split in ("byclass", "balanced", "letters", "digits", "mnist"):
        for name in ("emnist", "data", "data/EMNIST/raw"):
            assert mnist.find(f"{name}:{split}").name == f"EMNIST-like {split}"
    put(Path("mine"), fake_files())
    assert "--data mine has no EMNIST letters" in refused("mine:letters")
    assert "--data mine:other does not exist" in refused("mine:other")


def test_what_holds_no_digits_is_refused() -> None:
    Path("empty").mkdir()
    Path("file").touch()
    assert "does not exist" in refused("gone")
    for name in ("file", "empty"):
        for part in (
            f"--data {name} is none of these",
            "MNIST's or EMNIST's files",
            "mnist.npz",
            "`builtin`",
        ):
            assert part in refused(name)


# -------------------------------------------------------------------------------------- download


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Files, or what else a server does, where a file beside says so."""

    def log_message(self, *words: object) -> None:
        pass

    def says(self, what: str) -> bool:
        return Path(self.translate_path(self.path)).with_name(what).exists()

    def do_GET(self) -> None:
        with Path(self.directory, "asked").open("a") as file:
            file.write(self.path + "\n")
        if self.says("rude"):
            self.wfile.write(b"220 mail ready\r\n")
        elif self.says("silent"):
            time.sleep(5)
        else:
            super().do_GET()

    def end_headers(self) -> None:
        if self.says("encoded"):
            self.send_header("Content-Encoding", "x-gzip")
        super().end_headers()

    def copyfile(self, source, outputfile) -> None:  # type: ignore[no-untyped-def]
        if self.says("cut"):  # the line goes dead half-way
            outputfile.write(source.read(1000))
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            super().copyfile(source, outputfile)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The folder of a local server, whose `a` and `b` are mirrors of a small MNIST; EMNIST is there, too."""
    folder = tmp_path / "served"
    for mirror in ("a", "b"):
        put(folder / mirror, fake_files(), lambda name: True)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for public in mnist.EMNIST[:2]:
            for name, array in fake_files(public).items():
                file.writestr(f"gzip/{name}.gz", gzip.compress(idx(array), mtime=0))
        file.writestr("gzip/emnist-mnist-mapping.txt", "0 48\n")
    (folder / "gzip.zip").write_bytes(archive.getvalue())
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [here + "a/", here + "b/"])
        resources = [(f"{name}.gz", md5(folder / "a" / f"{name}.gz")) for name in fake_files()]
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
        monkeypatch.setattr(datasets.EMNIST, "url", here + "gzip.zip")
        monkeypatch.setattr(datasets.EMNIST, "md5", md5(folder / "gzip.zip"))
        yield folder
        server.shutdown()


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def asked(served: Path) -> list[str]:
    return (served / "asked").read_text().split() if (served / "asked").exists() else []


def test_mnist_is_downloaded_once_and_then_used_without_a_network(
    served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(Path("mine"), fake_files())
    found = mnist.find("auto")
    assert equal(found, mnist.find("mine")) and not found.builtin
    assert asked(served) == [f"/a/{name}.gz" for name in fake_files()]
    assert capsys.readouterr().err == "Fetching MNIST, 12 MB of real digits\n"
    assert {path.name: path.read_bytes() for path in RAW.iterdir()} == {
        name: idx(array) for name, array in fake_files().items()
    }
    assert torch.equal(datasets.MNIST("data").data, found.train)
    assert equal(mnist.find("auto"), found) and equal(mnist.find("auto", download=False), found)
    assert len(asked(served)) == 4 and capsys.readouterr().err == ""


def test_a_trial_downloads_nothing(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = mnist.find("auto", download=False)
    assert found.builtin and "downloads none" in found.note and str(RAW) in found.note
    assert "There is no EMNIST byclass in data/EMNIST/raw" in refused("emnist", download=False)
    assert not tree() and not asked(served) and not capsys.readouterr().err


def harm(mirror: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes a mirror fail, and gives a word of the reason that must be named."""
    if how == "not found":
        (mirror / "t10k-images-idx3-ubyte.gz").unlink()  # the third of four
        return "404"
    if how == "other content":
        (mirror / f"{LABELS}.gz").write_bytes(gzip.compress(idx(fake_files()[LABELS][::-1].copy())))
        return "has another content than expected, its md5 is"
    if how == "no answer":
        monkeypatch.setattr(download, "TIMEOUT", 0.3)
    mark, word = {
        "no answer": ("silent", "timed out"),
        "cut off": ("cut", "IncompleteRead"),
        "no web server": ("rude", "220 mail ready"),
    }[how]
    (mirror / mark).touch()
    return word


HARMS = ["not found", "other content", "no answer", "cut off", "no web server"]


@pytest.mark.parametrize("how", HARMS)
def test_what_one_mirror_does_not_give_another_does(
    served: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm(served / "a", how, monkeypatch)
    if how == "no answer":
        monkeypatch.setattr(download, "TIMEOUT", 1.5)  # enough for the other one, on a busy machine
    found = mnist.find("auto")
    assert not found.builtin and len(list(RAW.iterdir())) == 4
    names = list(fake_files())
    tried = {"not found": 3, "other content": 2}.get(how, 1)  # after that it is asked for nothing more
    order = [f"/a/{name}.gz" for name in names[:tried]] + [f"/b/{name}.gz" for name in names[tried - 1 :]]
    assert asked(served) == order


@pytest.mark.parametrize("how", HARMS)
def test_a_download_that_fails_leaves_nothing_and_says_what_to_do(
    served: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = harm(served / "a", how, monkeypatch)
    harm(served / "b", how, monkeypatch)
    found = mnist.find("auto")
    assert found.builtin and found.name == "scikit-learn digits" and not tree()
    first, why = found.note.split("\n")
    assert "Built-in" in first and why.count(word) == 2
    for part in (f"no MNIST in {RAW}", datasets.MNIST.mirrors[0], f"{IMAGES}.gz", f"put them into {RAW}"):
        assert part in why


def test_a_file_that_the_server_calls_encoded_is_kept_as_it_is(served: Path) -> None:
    (served / "a/encoded").touch()
    assert not mnist.find("auto").builtin and len(asked(served)) == 4


def test_a_download_that_cannot_be_kept_is_used_and_told(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("data").mkdir()
    Path("data/MNIST").touch()  # a file where the folder should go
    found = mnist.find("auto")
    assert not found.builtin and len(found.train) == 20
    assert "could not be kept, the next run fetches it again" in found.note.split("\n")[1]
    Path("data/MNIST").unlink()

    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)  # by which a file gets its name
    assert "No space left" in mnist.find("auto").note
    assert set(tree()) == {"data", "data/MNIST", str(RAW)}  # nothing half-written


@pytest.mark.parametrize(("name", "split", "characters"), [("emnist", 0, 62), ("emnist:balanced", 1, 47)])
def test_emnist_is_downloaded_and_only_one_split_is_kept(
    served: Path, name: str, split: int, characters: int
) -> None:
    put(Path("mine"), fake_files(mnist.EMNIST[split]))
    found = mnist.find(name)
    assert equal(found, mnist.find("mine")) and len(found.characters) == characters
    place = Path("data/EMNIST/raw")
    assert {path.name for path in place.iterdir()} == set(fake_files(mnist.EMNIST[split]))
    assert set(tree()) - {str(path) for path in Path().rglob("emnist-*")} == {
        *("mine", "data", "data/EMNIST", "data/EMNIST/raw")
    }
    (served / "gzip.zip").unlink()
    assert equal(mnist.find(name), found)


@pytest.mark.parametrize("how", ["not found", "other content", "no answer", "cut off", "no zip", "other zip"])
def test_emnist_that_cannot_be_had_is_refused(
    served: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = served / "gzip.zip"
    Path("data").mkdir()
    if how == "not found":
        archive.unlink()
        word = "404"
    elif how == "other content":
        archive.write_bytes(archive.read_bytes() + b"\0")
        word = "has another content than expected"
    elif how in ("no zip", "other zip"):
        archive.write_bytes(b"PK")
        if how == "other zip":
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr("other", "")
        monkeypatch.setattr(datasets.EMNIST, "md5", md5(archive))
        word = "not a zip" if how == "no zip" else "no item named"
    else:
        word = harm(served, how, monkeypatch)
    refusal = refused("emnist")
    for part in (word, "There is no EMNIST byclass in data/EMNIST/raw", datasets.EMNIST.url, "by hand"):
        assert part in refusal


def test_torchvision_knows_where_to_get_the_four_files() -> None:
    assert sorted(name for name, _ in RESOURCES) == sorted(f"{name}.gz" for name in mnist.MNIST.files())
    assert "balanced" in datasets.EMNIST.splits


# -------------------------------------------------------------------------------------- stand-in


def test_the_stand_in_is_always_the_same_and_announced() -> None:
    found = mnist.find("builtin")
    assert found.builtin and found.name.split()[0] == "scikit-learn" and "\n" not in found.note
    assert "Built-in: 1,797 real digits of 8x8 pixels" in found.note and "MNIST" in found.note
    assert found.train.shape == (1437, 28, 28) and found.test.shape == (360, 28, 28)
    assert found.train.dtype == torch.uint8 and found.train_labels.dtype == torch.int64
    # on every machine and with every version: evaluators and runs are recognised by it
    assert found.fingerprint() == "e6c9d5001607565ba86b411119437f42c4e9f1fe83340e7407fa3a72174b1aba"
    for labels, share in ((found.train_labels, 0.8), (found.test_labels, 0.2)):
        counts = torch.bincount(torch.cat([found.train_labels, found.test_labels]))
        assert (torch.bincount(labels) - share * counts).abs().max() <= 1
    both = {bytes(image.numpy()) for image in found.train} & {bytes(p.numpy()) for p in found.test}
    assert not both


def test_the_stand_in_looks_like_mnist() -> None:
    found = mnist.find("builtin")
    images = found.train.float() / 255
    assert found.train.min() == 0 and found.train.max() == 255
    # MNIST: 0.13 of a image is ink, 0.06 of its pixels are grey, the digit stands in the middle 20x20
    assert 0.1 < images.mean() < 0.18
    assert ((images > 0.2) & (images < 0.8)).float().mean() < 0.09
    assert images[:, 4:24, 4:24].sum() > 0.98 * images.sum()
    assert images[:, 0].max() == images[:, :, -1].max() == 0
    where = torch.arange(28.0)
    for line in (images.sum(1), images.sum(2)):
        assert abs(float((line @ where / line.sum(1)).mean()) - 13.5) < 0.5


def test_the_stand_in_can_be_read() -> None:
    found = mnist.find("builtin")
    nearest = torch.cdist(found.test.flatten(1).float(), found.train.flatten(1).float()).argmin(1)
    assert (found.train_labels[nearest] == found.test_labels).float().mean() > 0.95
