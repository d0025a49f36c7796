"""Bytes from outside, crafted files, kills, full disks: one clear line, nothing half-written, nothing lost.

    python -m pytest tests/test_faults.py -m slow    # a hundred kills, 100,000 inputs a reader, memory

What the other tests of faults hold already is not held here again: test_training.py (signals, damaged
checkpoints), test_datasets_photos.py (workers), test_inference_upscale.py (images), test_unzip_imagenet.py.
Inputs are made by Atheris where it is installed (pip install atheris), which is led by what each one reaches;
else by hypothesis.
"""

import contextlib
import csv
import errno
import gzip
import http.server
import io
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing import active_children
from pathlib import Path
from types import ModuleType
from typing import Any

import fuzzing
import numpy as np
import pandas as pd
import pytest
import torch
from forking import run_to_the_end
from fuzzing import EXAMPLES, MANY, Reader, Survivor, fuzz, harmed
from imagenet_archives import photo, train_tar
from PIL import Image
from safetensors.torch import save as to_bytes
from test_datasets_photos import (
    archive_of,
    eventually,
    folder_of,
    is_running,
    set_pool,
    source_of,
)
from test_training import fit, net, open_run, outcome, run_lesson, same
from test_training import server as server
from test_unzip_imagenet import call, unzip

import gan_mnist
import gan_upscale
import lstm
import multi_layer_rnn
import single_layer_rnn
from common import results, weights
from common.cli import UserError, read_flags
from common.datasets import download, imagenet, mnist, photo_batches, photos, sms_spam
from common.datasets import packed as packed_files
from common.evaluation.mnist import load_classifier
from common.figures import page
from common.files import PREFIX, atomic_write, save_json
from common.inference import mnist as digits
from common.inference import spam, upscale
from common.models.upscale import LinearFilter, Upscaler
from common.training import loop
from common.training import run as run_module
from common.training.phase import Phase
from common.training.run import Run
from util.imagenet import labels

FLAT_STEPS = int(os.environ.get("FLAT_STEPS", 10_000))
FLAT_LINES = int(os.environ.get("FLAT_LINES", 1_000_000))
ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SCRIPTS = single_layer_rnn, multi_layer_rnn, lstm, gan_mnist, gan_upscale


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
        for name in ("a.npz", "a.csv", "a.zip"):
            (folder / name).write_bytes(data)
            with contextlib.suppress(UserError):
                mnist.find(str(folder / name))

    return [keras.getvalue(), rows, packed("train.csv", rows)], read


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


def flags(folder: Path) -> Reader:
    """Words of a command line, a line each; the first of them names the script."""
    whole = [
        "multi_layer_rnn --epochs 3 --data builtin --n-models 2 --resume",
        "lstm --test-on a.csv b.csv --weights shipped",
        "gan_mnist --write Hello --output note.png --method 2 --seed 7",
        "gan_upscale --input a.png --output b.webp --blend 0.5 --scale 3 --quality 90",
        "single_layer_rnn --help",
        "unzip_imagenet a.tar --out b --mode shrink --size 128 --workers 2",
    ]
    configs = {script.SCRIPT if hasattr(script, "SCRIPT") else script.__name__: script for script in SCRIPTS}

    def read(data: bytes) -> None:
        script, *words = data.replace(b"\0", b"").decode(errors="surrogateescape").split("\n")
        with pytest.MonkeyPatch.context() as patch:
            for name in ("stdout", "stderr"):
                patch.setattr(sys, name, io.TextIOWrapper(io.BytesIO()))
            patch.setattr(sys, "argv", [f"{script}.py", *words])
            try:
                if script in configs:
                    read_flags(configs[script].Config)
                else:
                    unzip.read_settings(words)
            except SystemExit as end:
                assert end.code in (0, 2)

    return [line.replace(" ", "\n").encode() for line in whole], read


READERS = (
    *(messages, idx, tables_of_pixels, images, checkpoints, safetensors, listings, indexes, archives),
    *(validation_labels, extracted, results_files, lines, flags),
)
of_each_reader = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that readers may write to."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "work"


@of_each_reader
def test_a_reader_survives_damaged_bytes(
    reader: Callable[[Path], Reader], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It reads them or refuses them by one line, within bounds of time and memory."""
    survive(reader, work, EXAMPLES)


@pytest.mark.slow
@of_each_reader
def test_a_reader_survives_a_hundred_thousand_inputs(
    reader: Callable[[Path], Reader], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("atheris"):
        words = [sys.executable, fuzzing.__file__, reader.__name__, str(MANY)]
        paths = os.pathsep.join([str(ROOT), *sys.path])
        work.rmdir()
        environment = os.environ | {"PYTHONPATH": paths}
        done = subprocess.run(words, cwd=work.parent, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        said = done.stdout.splitlines()[-1]
    else:
        said = survive(reader, work, MANY)
    with capsys.disabled():
        print(f"\n{said}")


def survive(reader: Callable[[Path], Reader], work: Path, count: int) -> str:
    """Calls a reader with that many damaged inputs; says what became of them."""
    whole, read = reader(work)
    survivor = Survivor(read, work)
    fuzz(harmed(*whole), count)(lambda data: survivor(data))()
    return f"{reader.__name__}: {survivor}"


# ------------------------------------------------------------------------------------------- crafted files


FORBIDDEN = {
    "unpickles": r"\bpickle\.loads?\b|\bUnpickler\b|allow_pickle=True|weights_only=False|\bshelve\b|joblib",
    "runs a shell": r"shell=True|os\.system|os\.popen|\beval\(\s*[^)\s]|(?<![.\w])exec\(",
    "asks a server in the clear": r"[\"']http://",
    "leaves a name to guess": r"mktemp\(|gettempdir|NamedTemporaryFile\(",
}
WITH = {
    r"torch\.load\(": "weights_only=True",
    r"\bextractall\(": 'filter="data"',
    r"np\.load\(": "allow_pickle=False",
}


def test_nothing_is_unpickled_no_shell_is_called_and_archives_are_filtered() -> None:
    sources = [*ROOT.glob("*.py"), *(ROOT / "common").rglob("*.py"), *(ROOT / "util").rglob("*")]
    texts = {path: path.read_text() for path in sources if path.suffix in (".py", "") and path.is_file()}
    assert len(texts) > 50
    for path, text in texts.items():
        for does, pattern in FORBIDDEN.items():
            found = [match[0] for match in re.finditer(pattern, text) if match[0] != ".eval("]
            assert not found, f"{path} {does}: {found}"
        for function, needed in WITH.items():
            for match in re.finditer(function, text):
                line = text[match.start() :].partition("\n")[0]
                assert needed in line, f"{path}: {line} without {needed}"


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sprung,)


def test_a_crafted_checkpoint_or_array_runs_nothing(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    run = open_run(tmp_path / "run")
    fit(run, net(), steps=2)
    del run
    content = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    (tmp_path / "run/checkpoint-before.pt").unlink()
    file = io.BytesIO()
    torch.save(content | {"record": Trap(sprung)}, file)
    for data in (file.getvalue(), pickle.dumps(Trap(sprung))):
        (tmp_path / "run/checkpoint.pt").write_bytes(data + zlib.crc32(data).to_bytes(4))
        with pytest.raises(UserError, match="is damaged"):
            open_run(tmp_path / "run", resume=True)
    array = np.array([Trap(sprung)], object)
    np.savez(tmp_path / "mnist.npz", x_train=array, y_train=array, x_test=array, y_test=array)
    with pytest.raises(UserError, match="cannot be used"):
        mnist.find(str(tmp_path / "mnist.npz"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(photo(0))
    np.savez(tmp_path / "cache.npz", folders=array, changed=array, paths=array, left_out=array)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet, "cache_of", lambda root: tmp_path / "cache.npz")
        assert len(imagenet.listing(tmp_path / "photos")) == 1
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists(), "the trap works"


@pytest.mark.parametrize("name", ["a.gz", "a.zip", "train-images-idx3-ubyte.gz", "mnist.npz", "mnist.zip"])
def test_what_unpacks_to_far_more_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand times the limit would take no more memory: what is beyond it is not unpacked."""
    monkeypatch.setattr(packed_files, "LARGEST", 1 << 20)
    zeros = bytes(8 << 20)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(zeros, 1))
    else:
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            members = {"a.zip": ["spam.csv"], "mnist.npz": ["x_train.npy"], "mnist.zip": mnist.MNIST.files()}
            for member in members[name]:
                archive.writestr(member, zeros)
    find = sms_spam.find if name.startswith("a.") else mnist.find
    for file in mnist.MNIST.files()[1:]:
        (tmp_path / file).touch()
    tracemalloc.start()
    with pytest.raises(UserError, match=r"unpacks to .*more than 1,048,576"):
        find(str(tmp_path / name))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "about",
    [
        "[" * 100_000,
        json.dumps({"channels": float("inf"), "blocks": 1}),
        json.dumps({"channels": 20_000, "blocks": 6}),
        json.dumps({"channels": 1, "blocks": 10**12}),
        json.dumps({"channels": "9" * 5_000, "blocks": 1}),
    ],
)
def test_weights_of_impossible_sizes_are_refused_before_they_take_memory(about: str, tmp_path: Path) -> None:
    state = {f"{name}.x": torch.zeros(200, 200) for name in ("linear", "fidelity", "gan")}
    state |= {f"linear.{name}": value for name, value in LinearFilter().state_dict().items()}
    del state["linear.x"]
    (tmp_path / "w.safetensors").write_bytes(to_bytes(state, metadata={"about": about}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="holds no weights"):
        upscale.load(tmp_path / "w.safetensors", CPU)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("url", ["http://example.org/a", "ftp://example.org/a", "file:///etc/passwd"])
def test_nothing_is_fetched_in_the_clear(url: str) -> None:
    with pytest.raises(OSError, match="only https is asked"):
        download.fetch(url, io.BytesIO())


def test_a_redirection_into_the_clear_is_not_read() -> None:
    class Redirecting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path == "/a" else 200)
            self.send_header("Location", f"http://127.0.0.2:{self.server.server_port}/b")  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with pytest.raises(OSError, match=r"http://127.0.0.2:\d+/b is not fetched: only https is asked"):
            download.fetch(f"http://127.0.0.1:{server.server_port}/a", io.BytesIO())
        server.shutdown()


def test_all_that_is_fetched_has_a_checksum_or_a_known_content() -> None:
    """The messages' archive has none that is published: it is remembered, and its content is counted."""
    calls = [
        match[0]
        for path in (ROOT / "common").rglob("*.py")
        for match in re.finditer(r"(?<!def )\bfetch(_from_mirrors)?\(.*", path.read_text())
    ]
    assert len(calls) == 6
    assert [call for call in calls if "md5" not in call and "sha256" not in call] == ["fetch(URL, received)"]


def test_half_written_files_are_nobody_elses_to_read(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "weights") as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600


# ------------------------------------------------------------------------------------- faults on the way


def experiment(folder: Path) -> None:
    """Trains, and writes all that a script writes: checkpoints, weights, a figure, results."""
    resume = any((folder / "runs").glob("checkpoint*"))
    run = open_run(folder / "runs", resume=resume)
    model = fit(run, net(), steps=6, evaluations=2)
    run.finish()
    weights.save(folder / "runs" / "weights.safetensors", {"net": model}, {})
    page.grid(folder / "figs" / "a.png", torch.zeros(4, 3, 9, 9).byte(), 2, title="T", caption="")
    save_json(folder / "figs" / "a.json", run.history)


def start(function: Callable[[], object], log: Path) -> int:
    """Calls `function` in a process of its own, whose stderr goes to `log`; returns its id."""
    process = os.fork()
    if process == 0:
        run_to_the_end(
            function, os.open(os.devnull, os.O_WRONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        )
    return process


def end_of(process: int, log: Path) -> tuple[int, str]:
    """Exit code of a process, below 0 for a signal, and what it said on stderr."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), log.read_text()


def forked(function: Callable[[], object], log: Path) -> tuple[int, str]:
    return end_of(start(function, log), log)


def at_write(
    number: int, happen: Callable[[], object], function: Callable[[Path], object], folder: Path
) -> None:
    """Runs `function`; before what it writes gets its name for the `number`th time, something happens."""
    replace = Path.replace

    def counting(path: Path, target: Path) -> Path:
        nonlocal number
        number -= 1
        if number == 0:
            happen()
        return replace(path, target)

    Path.replace = counting  # type: ignore[method-assign] # in a process of its own
    function(folder)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def written(folder: Path) -> dict[str, bytes]:
    """What people look at or go on from; each file is whole."""
    files = {
        f"{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()
    }
    for name, data in files.items():
        if name.endswith(".png"):
            Image.open(io.BytesIO(data)).load()
        elif name.endswith(".json"):
            json.loads(data)
        elif name.endswith(".safetensors"):
            assert weights.load(folder / name)
    return {name: data for name, data in files.items() if not name.endswith((".pt", ".csv"))}


NAMES = (
    *(
        "checkpoint",
        "history",
        "before",
        "checkpoint",
        "before",
        "checkpoint",
        "history",
        "history",
        "before",
    ),
    *("checkpoint", "history", "before", "checkpoint", "history", "history", "before", "checkpoint"),
    *("history", "before", "checkpoint", "before", "checkpoint", "before", "checkpoint", "weights", "figure"),
    "results",
)
"""What gets its name in `experiment`, in turn: the checkpoint before is renamed, all others are written."""
WRITES = len(NAMES)
FEW = 6, WRITES - 2, WRITES - 1
"""Of these one of each kind; the others are slow."""
each_write = pytest.mark.parametrize(
    "number",
    [
        pytest.param(k, marks=() if k in FEW else pytest.mark.slow, id=f"{k}-{name}")
        for k, name in enumerate(NAMES, 1)
    ],
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What `experiment` writes where nothing happens."""
    folder, count = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("count") / "reached"

    def exactly(number: int) -> int:
        return forked(lambda: at_write(number, count.touch, experiment, folder), folder / ".log")[0]

    assert exactly(WRITES) == 0 and count.exists()
    count.unlink()
    shutil.rmtree(folder)
    folder.mkdir()
    assert exactly(WRITES + 1) == 0 and not count.exists(), "WRITES is another number now"
    return written(folder)


@needs_fork
@each_write
def test_killed_at_any_write_and_resumed_is_as_if_nothing_had_happened(
    number: int, alone: dict[str, bytes], tmp_path: Path
) -> None:
    code, _ = forked(lambda: at_write(number, kill, experiment, tmp_path), tmp_path / ".log")
    assert code == -signal.SIGKILL
    assert written(tmp_path).items() <= alone.items()
    assert forked(lambda: experiment(tmp_path), tmp_path / ".log") == (0, "")
    assert written(tmp_path) == alone
    assert not [*(tmp_path / "runs").glob(f"{PREFIX}*")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 4 MB, which can get full or read-only."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path / "disk")]
    if sys.platform != "linux" or not shutil.which("mount"):
        pytest.skip("needs Linux's tmpfs")
    if (done := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", str(tmp_path / "disk")], check=True)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


@needs_fork
@each_write
def test_a_full_disk_is_one_line_and_resume_goes_on_once_there_is_room(
    number: int, alone: dict[str, bytes], tmp_path: Path, small_disk: Path
) -> None:
    def happen() -> None:
        with (small_disk / ".filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass

    code, said = forked(lambda: at_write(number, happen, experiment, small_disk), tmp_path / ".log")
    (small_disk / ".filler").unlink()
    # the last file has got its room already; an older checkpoint that goes leaves enough for the small ones
    assert code == 1 or number == WRITES or NAMES[number - 1] == "before", said
    assert not code or re.search(r"cannot write .*: No space left on device; make room", said)
    assert said.count("\n") == code
    assert written(small_disk).items() <= alone.items()
    assert forked(lambda: experiment(small_disk), tmp_path / ".log") == (0, "")
    assert written(small_disk) == alone


@needs_fork
def test_a_folder_for_figures_that_becomes_read_only_is_one_line(
    alone: dict[str, bytes], tmp_path: Path, small_disk: Path
) -> None:
    (small_disk / "runs").symlink_to(tmp_path)  # a disk with an open file, as a run's lock, stays writable
    at = WRITES - 1, lambda: remount(small_disk, "ro"), experiment, small_disk
    code, said = forked(lambda: at_write(*at), tmp_path / ".log")
    assert code == 2 and said.count("\n") == 1
    assert re.search(r"cannot write .*a.png: Read-only file system; name another place", said)
    remount(small_disk, "rw")
    assert not written(small_disk)
    assert forked(lambda: experiment(small_disk), tmp_path / ".log") == (0, "")
    assert written(small_disk).items() <= alone.items() and len(written(small_disk)) == 2


def test_photos_that_vanish_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_pool(monkeypatch, size=1, uses=1)
    root = folder_of(tmp_path / "photos", 6)
    crops = photo_batches.batches(source_of(root), batch=1, seed=0, workers=0)(0)
    next(crops)
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"photos has vanished; bring it back, then --resume goes on"):
        for _ in range(50):
            next(crops)
    assert capsys.readouterr().err == ""


def train_on_photos(root: Path, folder: Path) -> None:
    """Trains without end on photos that two workers read; says in a file who they are."""
    os.setpgid(0, 0)
    replace = Path.replace

    def checked(path: Path, target: Path) -> Path:
        if (folder / "full").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    Path.replace = checked  # type: ignore[method-assign] # in a process of its own

    def loss(model: torch.nn.Module, batch: torch.Tensor, progress: float) -> loop.Losses:
        (folder / "workers").write_text(" ".join(str(child.pid) for child in active_children()))
        return {"size": model(batch.float().mean((1, 2, 3))[:, None]).square().mean()}

    crops = photo_batches.batches(source_of(root), size=28, batch=4, seed=0, workers=2)
    run, model = open_run(folder / "run", checkpoint_every=0.0), torch.nn.Linear(1, 1)
    plan: dict[str, Any] = {"steps": 10**6, "schedule": float, "ema": 0.0}
    loop.supervised(run, "fit", model, torch.optim.SGD(model.parameters()), loss, crops, **plan)


ENDS = {
    "Ctrl-C twice": (130, ""),
    "SIGTERM": (130, ""),
    "SIGHUP": (130, ""),
    "SIGKILL": (-signal.SIGKILL, ""),
    "the data vanish": (2, "photos has vanished; bring it back, then --resume goes on"),
    "a worker is killed": (1, "a worker that reads photos was killed, perhaps for memory"),
    "the disk is full": (1, "checkpoint.pt: No space left on device; make room"),
}
"""How a run ends: by its exit code, and the one line on stderr, if it has to say any."""


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("how", ENDS)
def test_no_worker_outlives_its_run(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_pool(monkeypatch, size=1, uses=1)
    root, log, out = folder_of(tmp_path / "photos", 6), tmp_path / "log", tmp_path / "workers"
    main = start(lambda: train_on_photos(root, tmp_path), log)
    assert eventually(lambda: out.exists() and len(out.read_text().split()) == 2), log.read_text()
    workers = [int(word) for word in out.read_text().split()]
    if how == "SIGKILL":
        os.kill(main, signal.SIGKILL)  # it alone: its workers have to notice
    elif how == "the data vanish":
        root.rename(tmp_path / "elsewhere")
    elif how == "a worker is killed":
        os.kill(workers[0], signal.SIGKILL)
    elif how == "the disk is full":
        (tmp_path / "full").touch()
    else:
        names = ("SIGINT", "SIGINT") if how == "Ctrl-C twice" else (how,)
        for name in names:  # as a terminal does: to all
            os.killpg(main, getattr(signal, name))
    code, said = end_of(main, log)
    expected, line = ENDS[how]
    assert code == expected and line in said and said.count("\n") == bool(line), said
    assert eventually(lambda: not any(is_running(worker) for worker in workers))


@pytest.mark.slow
@needs_fork
def test_a_hundred_random_kills_change_nothing(server: Any, tmp_path: Path) -> None:
    """Half of them wait for a file to be written, and hit it."""
    assert run_lesson(server, tmp_path / "alone")[0] == 0
    expected, kills, runs = outcome(tmp_path / "alone"), 0, 0
    while kills < 100:
        runs += 1
        folder, words, code = tmp_path / f"run{runs}", [], -signal.SIGKILL
        while code == -signal.SIGKILL:
            words = ["--resume"] if any(folder.glob("checkpoint*.pt")) else []
            wait = random.uniform(0, 0.5)
            how = {"send": signal.SIGKILL, "saves": 0, "after": wait, "hit": bool(kills % 2)}
            code, said = run_lesson(server, folder, *words, **how)
            kills += code == -signal.SIGKILL
        assert code == 0, said
        found = outcome(folder)
        assert found["history"] == expected["history"] and same(found["weights"], expected["weights"])
        assert torch.equal(found["random"], expected["random"])
        assert not [*folder.glob(f"{PREFIX}*")]
    print(f"{kills} kills in {runs} runs")


# ---------------------------------------------------------------------------------------- reproducibility


def test_on_a_cpu_the_same_seed_and_threads_give_the_same_bits_and_others_nearly(tmp_path: Path) -> None:
    before = torch.get_num_threads()

    def trained(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        model = Upscaler(8, 1)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.rand(4, 3, 32, 32)).square().mean().backward()
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    for threads in (1, 2):
        assert torch.equal(trained(threads), trained(threads))
    assert torch.allclose(trained(1), trained(2), rtol=1e-3, atol=1e-5)
    torch.set_num_threads(before)


# -------------------------------------------------------------------------------------------- flat memory


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def assert_flat(used: pd.Series, what: str) -> None:
    """The second half uses no more than the second tenth, the first one being the warm-up; but for 2 %."""
    early, late = used[len(used) // 10 : len(used) // 5].max(), used[len(used) // 2 :].max()
    print(f"{what}: {early / 1e6:.1f} to {late / 1e6:.1f} MB")
    assert late < 1.02 * early


@pytest.mark.slow
@needs_fork
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("script", [gan_mnist, gan_upscale], ids=lambda script: script.__name__)
def test_memory_stays_flat_over_ten_thousand_steps(script: ModuleType, tmp_path: Path) -> None:
    log = loop._log
    data = ("builtin",) if script is gan_upscale else "builtin"
    places = {"figs": tmp_path / "figs", "runs": tmp_path / "runs"}

    def noting(run: Run, phase: Phase, scores: dict[str, float]) -> None:
        log(run, phase, scores)
        with (tmp_path / "memory").open("a") as file:
            file.write(f"{phase.name} {phase.step} {resident()}\n")

    def train() -> None:
        loop._log = noting
        run_module.DRAW_EVERY = math.inf  # figures take memory until some six are drawn, then no more
        script.main(script.Config(data=data, quick=True, steps=FLAT_STEPS, device="cpu", **places))

    assert forked(train, tmp_path / "log")[0] == 0, (tmp_path / "log").read_text()
    rows = pd.read_csv(tmp_path / "memory", sep=" ", names=["phase", "step", "bytes"])
    for phase, own in rows.groupby("phase"):
        own = own[own.step >= own.step.max() / 2]  # an evaluation belongs to the warm-up: that half-way
        if len(own) >= 100:
            assert_flat(
                own.bytes.reset_index(drop=True), f"{script.__name__}, {phase}, {own.step.max()} steps"
            )


@pytest.mark.slow
@needs_fork
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_stays_flat_over_a_million_lines(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = ["free", "WIN", "£1000", "hello", "you", "where", "are", "call", "now", "tomorrow", "0800123"]
    with (tmp_path / "lines").open("w") as file:
        for number in range(FLAT_LINES):
            file.write(f"{' '.join(rng.choices(words, k=rng.randint(1, 12)))} {number}\n")

    def predict() -> None:
        lines, number = spam._lines, 0

        def noting(source: str) -> Iterator[list[str]]:
            nonlocal number
            for messages in lines(source):
                yield messages
                number += len(messages)
                with (tmp_path / "memory").open("a") as file:
                    file.write(f"{number} {resident()}\n")

        spam._lines = noting
        known = spam.load(multi_layer_rnn.SHIPPED, "RNN", multi_layer_rnn.build)
        sys.stdout = open(tmp_path / "answers", "w")  # noqa: SIM115, PTH123
        spam.predict(known, str(tmp_path / "lines"), explained=False)
        sys.stdout.close()

    assert forked(predict, tmp_path / "log")[0] == 0, (tmp_path / "log").read_text()
    rows = pd.read_csv(tmp_path / "memory", sep=" ", names=["lines", "bytes"])
    assert_flat(rows.bytes, f"{rows.lines.max():,} lines")
    with (tmp_path / "answers").open() as answers:
        assert sum(1 for _ in answers) == FLAT_LINES
