"""The doctor finds what the scripts would find, says what is broken, and never waits for torch."""

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from common import doctor
from common.datasets.mnist import MNIST

ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in; torch is taken to work, since to import it takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    monkeypatch.setattr("common.datasets.photos.USUAL", (Path("data/ImageNet"), Path("nowhere")))
    monkeypatch.setattr(doctor, "PROBE", "print('CPU')")
    monkeypatch.setattr(doctor, "SECONDS", 30)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What the doctor says, and its cures, by the name of the row."""
    code = doctor.main()
    rows = {"": ""}
    lines = capsys.readouterr().out.splitlines()
    for line in (line for line in lines if line.startswith((" ", "BROKEN"))):
        name = line[7:30].strip() if len(line) > 30 and line[29] == " " else ""
        last = name or next(reversed(rows))
        rows[last] = rows.get(last, "") + line[:7].strip() + line[30:]
    return rows | {"code": str(code)}


def test_a_machine_without_data_is_not_broken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = said(capsys)
    assert rows["code"] == "0" and not list(here.iterdir())
    for name, command in (
        ("SMS Spam Collection", "python lstm.py"),
        ("MNIST", "python gan_mnist.py"),
        ("EMNIST", "python gan_mnist.py --data emnist"),
        ("photos", "python gan_upscale.py"),
    ):
        assert "here" in rows[name] and f"-> {command} fetches" in rows[name]
    assert "they fit" in rows["torch"] and rows["device"] == "CPU"
    assert "minute" in rows["lstm.py"] and "fetches 0.2 MB first" in rows["lstm.py"]
    assert "accuracy 0.99" in rows["spam_lstm"] and "GAN PSNR 26" in rows["upscaler"]


def test_data_are_found_where_the_scripts_find_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for split, count in (("train", 3), ("val", 2)):
        folder = here / "data" / "ImageNet" / split / "n01"
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 9)).save(folder / f"{number}.JPEG")
    (here / "data" / "SMSSpamCollection").write_text("ham\tsee you\nspam\twin cash\n")
    rows = said(capsys)
    assert rows["code"] == "0" and "3 of ImageNet's 1,281,167" in rows["photos"]
    assert rows["gan_upscale.py"].endswith("ImageNet")
    assert (
        rows["SMS Spam Collection"]
        == "data/SMSSpamCollection: not the original collection, 2 different messages"
    )


def test_what_is_damaged_is_broken_and_has_a_cure(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sms = here / "data" / "sms"
    sms.mkdir(parents=True)
    (sms / "SMSSpamCollection").write_text("ham\tsee you\nspam\twin cash\n")
    (sms / "archive.sha256").write_text("0")  # it was downloaded
    raw = here / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST.files():
        head = (
            struct.pack(">4B3I", 0, 0, 8, 3, 9, 28, 28)
            if "images" in name
            else struct.pack(">4BI", 0, 0, 8, 1, 9)
        )
        (raw / f"{name}.gz").write_bytes(gzip.compress(head))
    (here / "data" / "imagenette2-320" / "train").mkdir(parents=True)
    weights = here / "runs" / "lstm" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"nothing")
    rows = said(capsys)
    assert rows["code"] == "1"
    for name, cure in (
        ("SMS Spam Collection", "fetch https"),
        ("MNIST", "put a whole copy"),
        ("photos", "remove"),
        ("lstm", "remove it"),
    ):
        assert rows[name].startswith("BROKEN") and cure in rows[name].partition("-> ")[2], rows[name]
    assert "see to its data first" in rows["gan_mnist.py"]


@pytest.mark.parametrize(
    ("torch", "torchvision", "why"),
    [
        ("2.14.1+cu130", "0.29.1+cu130", ""),
        ("2.14.1", "0.29.0", ""),
        ("2.14.1+cpu", "0.28.0+cpu", "torchvision 0.29"),
        ("2.13.0+cpu", "0.29.1+cpu", "torchvision 0.28"),
        ("2.14.1+cpu", "0.29.1+cu130", "cpu and cu130"),
        ("2.14.1+cpu", "", "one is missing"),
        ("", "", "both are missing"),
    ],
)
def test_builds_that_do_not_fit_are_known_by_their_versions(torch: str, torchvision: str, why: str) -> None:
    fault = doctor.mismatch(torch, torchvision)
    assert why in fault and bool(fault) == bool(why)


@pytest.mark.parametrize(
    ("version", "why"), [("0.27.0+cpu", "goes with torchvision 0."), ("", "nms does not exist")]
)
def test_a_torchvision_that_cannot_be_imported(tmp_path: Path, version: str, why: str) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    (package / "version.py").write_text(f"__version__ = '{version or doctor.build('torchvision')}'\n")
    code = "import sys; from common import doctor; doctor.SECONDS = 60\n"
    code += "print(doctor.main(), 'torch' in sys.modules)"
    path = os.pathsep.join(map(str, (tmp_path, ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "1 False", done.stderr
    assert (
        why in done.stdout and "-> python -m pip install --force-reinstall torch torchvision" in done.stdout
    )
