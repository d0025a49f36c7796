"""Bytes from outside, crafted files, kills, full disks: one clear line, nothing half-written, nothing lost.

    FUZZ_EXAMPLES=100000 python -m pytest tests/test_faults.py -n 2 -k reader     # an hour or two
    python -m pytest tests/test_faults.py -m slow                                 # a hundred kills, and memory

What the other tests of faults hold already is not held here again: test_training.py (signals, damaged
checkpoints), test_datasets_photos.py (workers), test_inference_upscale.py (images), test_unzip_imagenet.py.
"""

import contextlib
import csv
import gzip
import io
import resource
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import EXAMPLES, fuzz, harmed
from imagenet_archives import photo, train_tar
from PIL import Image
from test_datasets_photos import archive_of
from test_training import fit, net, open_run
from test_unzip_imagenet import call

import gan_mnist
import gan_upscale
import lstm
import multi_layer_rnn
import single_layer_rnn
from common import results, weights
from common.cli import UserError
from common.datasets import imagenet, mnist, photos, sms_spam
from common.evaluation.mnist import load_classifier
from common.inference import mnist as digits
from common.inference import spam, upscale
from util.imagenet import labels

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SCRIPTS = gan_mnist, gan_upscale, lstm, multi_layer_rnn, single_layer_rnn
MOST = 2 << 30
"""Bytes that reading any of these small files may add to the memory in use."""

Reader = tuple[list[bytes], Callable[[bytes], object]]
"""Whole files, of which damaged ones are made, and what reads them."""


def in_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def write_and_read(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return write_and_read


def packed(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


# ------------------------------------------------------------------------------- readers of outside bytes


def messages(folder: Path) -> Reader:
    rows = [("spam" if i % 4 == 0 else "ham", f'text "{i}", £{i} \N{EURO SIGN}') for i in range(12)]
    table = "".join(f"{label}\t{text}\n" for label, text in rows)
    written = io.StringIO()
    csv.writer(written).writerows([("v1", "v2"), *rows])
    comma = written.getvalue().encode()
    whole = [table.encode(), table.encode("utf-16"), comma, gzip.compress(comma), packed("spam.csv", comma)]
    return whole, in_file(folder / "sms", lambda path: sms_spam.find(str(path)))


def idx(folder: Path) -> Reader:
    """One of the four files is damaged, the others are whole."""
    for part in ("train", "t10k"):
        pixels, numbers = np.zeros((20, 28, 28), np.uint8).tobytes(), bytes(range(10)) * 2
        images = bytes([0, 0, 8, 3]) + np.array([20, 28, 28], ">u4").tobytes() + pixels
        for kind, data in (("images-idx3", images), ("labels-idx1", b"\0\0\x08\1\0\0\0\x14" + numbers)):
            (folder / f"{part}-{kind}-ubyte").write_bytes(data)
    file = folder / "train-images-idx3-ubyte"
    whole = [file.read_bytes(), gzip.compress(file.read_bytes())]
    return whole, in_file(file, lambda path: mnist.find(str(folder)))


def tables_of_pixels(folder: Path) -> Reader:
    pixels, numbers = np.zeros((20, 28, 28), np.uint8), np.arange(20) % 10
    keras = io.BytesIO()
    np.savez_compressed(keras, x_train=pixels, y_train=numbers, x_test=pixels, y_test=numbers)
    rows = "".join(f"{k % 10},{','.join(['0'] * 784)}\n" for k in range(20)).encode()

    def read(data: bytes) -> None:
        for name in ("a.npz", "a.csv"):
            (folder / name).write_bytes(data)
            with contextlib.suppress(UserError):
                mnist.find(str(folder / name))

    return [keras.getvalue(), rows], read


def images(folder: Path) -> Reader:
    whole = []
    image = Image.effect_noise((16, 12), 90)
    for kind, mode in (
        *(("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "RGBA"), ("GIF", "P")),
        *(("WEBP", "RGB"), ("TIFF", "RGB"), ("BMP", "RGB"), ("PPM", "RGB")),
    ):
        file, exif = io.BytesIO(), Image.Exif()
        exif[274] = 6
        image.convert("RGB").convert(mode if mode != "I;16" else "I").convert(mode).save(
            file, kind, exif=exif
        )
        whole.append(file.getvalue())

    def read(path: Path) -> None:
        with contextlib.suppress(photos.Unreadable):
            photos.standard(photos.read(path))
        upscale._read(path, "PNG", upscale.Options())

    return whole, in_file(folder / "image.jpg", read)


def checkpoints(folder: Path) -> Reader:
    """With a checksum that fits: so all that is wrong is in the content."""
    fit(open_run(folder), net(), steps=2)
    whole = (folder / "checkpoint.pt").read_bytes()[:-4]
    (folder / "checkpoint-before.pt").unlink()
    file = folder / "checkpoint.pt"

    def read(data: bytes) -> None:
        file.write_bytes(data + zlib.crc32(data).to_bytes(4))
        fit(open_run(folder, resume=True), net(), steps=2)

    return [whole], read


def safetensors(folder: Path) -> Reader:
    model = multi_layer_rnn.build(4, 2, 2, 1)
    about = {"kind": "RNN", "features": ["a", "b", "c", "d"], "embed_size": 2, "hidden_size": 2}
    about |= {"num_layers": 1, "n_models": 1, "scale": 1, "shift": 0}
    weights.save(folder / "w", {"ensemble": spam.Ensemble([model])}, about)

    def read(path: Path) -> None:
        for load in (
            lambda: weights.load(path),
            lambda: upscale.load(path, CPU),
            lambda: digits.load(path, "1", CPU),
            lambda: load_classifier(path),
        ):
            with contextlib.suppress(UserError):
                load()
        spam.load(path, "RNN", multi_layer_rnn.build)

    return [(folder / "w").read_bytes()], in_file(folder / "w", read)


def listings(folder: Path) -> Reader:
    """Whatever the cache holds, the folder is listed."""
    root = folder / "photos"
    root.mkdir()
    for i in range(3):
        (root / f"{i}.png").write_bytes(photo(i))
    photo_list = imagenet.listing(root)
    cache = folder / "cache.npz"
    imagenet.save_listing(cache, photo_list, {"": root.stat().st_mtime_ns})

    def read(path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(imagenet, "cache_of", lambda root: path)
            assert [*imagenet.listing(root)] == [*photo_list]

    return [cache.read_bytes()], in_file(cache, read)


def indexes(folder: Path) -> Reader:
    file = folder / "train" / "n00000001" / "n00000001_1.JPEG"
    file.parent.mkdir(parents=True)
    file.write_bytes(photo(0))
    tar = archive_of(folder / "train", folder / "ILSVRC2012_img_train.tar")
    names = [tar.with_name(f"{tar.name}.index.{kind}") for kind in ("json", "npy")]
    wholes = [name.read_bytes() for name in names]

    def read(data: bytes) -> None:
        for name, other in (names, names[::-1]):
            name.write_bytes(data)
            other.write_bytes(wholes[names.index(other)])
            with contextlib.suppress(UserError):
                [str(member) for member in imagenet.archived(tar)]

    return wholes, read


def archives(folder: Path) -> Reader:
    """What comes out lies in the folder that was named, and in no other."""
    train_tar(folder / "t.tar", 2, 2, lambda k: bytes([k % 251]) * 700)
    whole = (folder / "t.tar").read_bytes()
    (folder / "t.tar").unlink()

    def read(path: Path) -> None:
        code = call(path, "--out", folder / "out")
        assert code in (0, 2)
        assert sorted(file.name for file in folder.iterdir()) in (["out", "t.tar"], ["t.tar"])
        shutil.rmtree(folder / "out", ignore_errors=True)

    return [whole, gzip.compress(whole)], in_file(folder / "t.tar", read)


def validation_labels(folder: Path) -> Reader:
    table = b"ImageId,PredictionString\n" + b"ILSVRC2012_val_00000007,n00000001 1 2 3 4\n" * 3

    def read(path: Path) -> None:
        for name in ("a.csv", "a.zip", "a.tar.gz"):
            path = path.rename(folder / name)
            with contextlib.suppress(UserError):
                labels.read_labels(path)

    return [table, packed("LOC_val_solution.csv", table)], in_file(folder / "labels", read)


def extracted(folder: Path) -> Reader:
    """The notes that util/unzip_imagenet leaves in a folder."""
    train_tar(folder / "t.tar", 1, 3)
    assert call(folder / "t.tar", "--out", folder / "out") == 0
    file = folder / "out" / "train" / ".complete"
    return [file.read_bytes()], in_file(file, lambda path: photos.find(str(folder / "out" / "train")))


def results_files(folder: Path) -> Reader:
    whole = (ROOT / "figs" / "single_layer_rnn.json").read_bytes()
    return [whole], in_file(folder / "a.json", lambda path: results.pages(folder))


def lines(folder: Path) -> Reader:
    known = spam.load(multi_layer_rnn.SHIPPED, "RNN", multi_layer_rnn.build)
    text = "Hello, are you there?\nWIN £1000 now! http://x.y\r\n\nok".encode()
    return [text, text.decode().encode("utf-16")], in_file(
        folder / "lines", lambda path: spam.predict(known, str(path), explained=True)
    )


READERS = (
    *(messages, idx, tables_of_pixels, images, checkpoints, safetensors, listings, indexes, archives),
    *(validation_labels, extracted, results_files, lines),
)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_reader_survives_damaged_bytes(
    reader: Callable[[Path], Reader],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It reads them or refuses them by one line, in 20 seconds and within a bound of memory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    whole, read = reader(tmp_path / "work")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {"read": 0, "refused": 0}

    @fuzz(harmed(*whole))
    def survives(data: bytes) -> None:
        try:
            read(data)
            outcomes["read"] += 1
        except UserError as refused:
            assert "\n" not in str(refused) and str(refused)
            outcomes["refused"] += 1
        capsys.readouterr()

    survives()
    assert [file.name for file in tmp_path.iterdir()] == ["work"], "nothing is written elsewhere"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST, f"{grown:,} bytes"
    with capsys.disabled():
        if EXAMPLES >= 1000:
            print(f"\n{reader.__name__}: {outcomes}, memory grew by {grown / 1e6:.0f} MB")
