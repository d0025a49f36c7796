"""What is here, what is missing, and the command that mends it.

    python -m common.doctor      # one screen, in about three seconds; exit code 1 if something is broken

Looks where the scripts look, and fetches nothing. Versions are read from files: to import torch takes seconds
and may be what fails, so that is tried in a second process, for as long as the rest takes.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from common.cli import UserError, one_line, prepare_output
from common.files import cause_of, check_writable, parse_json

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "data" / "pretrained"
INSTALL = "python -m pip install -e ."
WHEELS = "https://download.pytorch.org/whl/"
SECONDS = 2.5  # that the whole screen may take
ROOM = 2e9  # bytes: a download of photos, weights, checkpoints
BEHIND = 15  # torchvision 0.29 goes with torch 2.14, and so on (its README, "Installation")
IMAGENET = 1_281_167  # photos to train on, by its own count
SCORES = {"accuracy": "accuracy", "f1": "F1", "psnr": "PSNR", "distance": "FID"}

PROBE = """
import torchvision, torch
cuda = torch.cuda.is_available()
print(torch.cuda.get_device_name() if cuda else "MPS" if torch.backends.mps.is_available() else "CPU")
"""


@dataclass
class Row:
    """A line of the screen: what it is about, what was found, and where something is to be done the cure."""

    name: str
    text: str
    cure: str = ""
    broken: bool = False

    def __str__(self) -> str:
        mark = "BROKEN" if self.broken else ""
        return f"{mark:7}{self.name:23}{self.text}" + (f"\n{'':30}-> {self.cure}" if self.cure else "")


def broken(name: str, error: UserError) -> Row:
    """The row of an error, whose last part is the cure."""
    text, _, cure = str(error).rpartition("; ")
    return Row(name, text or cure, cure if text else "", broken=True)


# -------------------------------------------------------------------------------------------- program


def program(probe: subprocess.Popen[str], end: float) -> Iterator[Row]:
    """Python, the packages that are asked for, whether torch and torchvision fit, and the device."""
    yield Row("Python", f"{platform.python_version()}, {sys.executable}")
    asked, faults = _asked(), []
    for name, _, number in (word.partition(">=") for word in asked):
        try:
            if _numbers(version(name)) < _numbers(number):
                faults.append(f"{name} {version(name)} is older than {number}")
        except PackageNotFoundError:
            faults.append(f"{name} is missing")
    text = "; ".join(faults) or f"all {len(asked)} are here and new enough"
    yield Row("packages", text, f"{INSTALL} --upgrade" if faults else "", bool(faults))

    builds = {name: build(name) for name in ("torch", "torchvision")}
    text = ", ".join(f"{name} {number or 'missing'}" for name, number in builds.items())
    fault = mismatch(*builds.values())
    kind = builds["torch"].partition("+")[2] or "cpu"
    again = f"python -m pip install --force-reinstall torch torchvision --index-url {WHEELS}{kind}"
    device, fails = ("", "") if fault else _probed(probe, end)
    if fault or fails:
        yield Row("torch", f"{text}: {fault or fails}", again if all(builds.values()) else INSTALL, True)
    else:
        yield Row("torch", f"{text}: {'they fit' if device else 'they fit, as far as can be told in time'}")
    yield _device(device, kind)


def _asked() -> list[str]:
    """The packages with their least versions, as torch>=2.14."""
    if (file := ROOT / "pyproject.toml").is_file():
        return list(tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"])
    return [word for word in requires("deep-learning-experiments") or [] if "extra" not in word]  # a wheel


def build(package: str) -> str:
    """The version of a package with its build, as 2.14.1+cu130, without importing it; "" if there is none."""
    spec = find_spec(package)
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    found = file and file.is_file() and re.search(r"__version__ = '(.+)'", file.read_text(encoding="utf-8"))
    try:
        return found[1] if found else version(package)
    except PackageNotFoundError:
        return ""


def mismatch(torch: str, torchvision: str) -> str:
    """Why two builds, such as 2.14.1+cu130, cannot be used together; "" if nothing is known against it."""
    if not torch or not torchvision:
        return "one is missing" if torch or torchvision else "both are missing"
    (major, minor), (_, other) = _numbers(torch)[:2], _numbers(torchvision)[:2]
    if major == 2 and other != minor + BEHIND:
        return f"torch {major}.{minor} goes with torchvision 0.{minor + BEHIND}"
    of_torch, of_other = (number.partition("+")[2] for number in (torch, torchvision))
    if of_torch and of_other and of_torch != of_other:
        return f"builds for different devices, {of_torch} and {of_other}"
    return ""


def _probed(probe: subprocess.Popen[str], end: float) -> tuple[str, str]:
    """The device that torch takes, "" where it is not known in time; and why it cannot be imported."""
    try:
        said, error = probe.communicate(timeout=max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "", ""
    return said.strip(), (error.strip() or "no reason").splitlines()[-1] if probe.returncode else ""


def _device(device: str, kind: str) -> Row:
    """What is computed on, and what else would be there."""
    gpus = [path.read_text() for path in Path("/proc/driver/nvidia/gpus").glob("*/information")]
    models = [found[1] for text in gpus if (found := re.search(r"Model:\s*(.+)", text))]
    if models and kind == "cpu":
        cure = "python -m pip install --force-reinstall torch torchvision"
        return Row("device", f"CPU: this build of torch cannot use the {models[0]}", cure)
    usual = "MPS" if sys.platform == "darwin" and platform.machine() == "arm64" else "CPU"
    return Row("device", device or (models[0] if models else usual))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def machine() -> Iterator[Row]:
    """Cores, memory, disk, and whether the folders of results can be written to."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        memory = f"memory: {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB"
    except (AttributeError, ValueError):  # Windows
        memory = "memory: unknown"
    yield Row("machine", f"{platform.system()} {platform.machine()}, cores: {cores}, {memory}")
    free = shutil.disk_usage(".").free
    little = "make room, or clone to a larger disk" if free < ROOM else ""
    yield Row("disk", f"{free / 1e9:.1f} GB free in {Path.cwd()}", little, bool(little))
    try:
        check_writable(Path("figs"), Path("runs"), Path("data"))
    except UserError as error:
        yield broken("folders", error)


# ----------------------------------------------------------------------------------------------- data


def data() -> dict[str, Row]:
    """A row for each data set, by the name that `SCRIPTS` gives it."""
    return {name: _looked(title, look) for name, (title, look) in LOOKS.items()}


def _looked(title: str, look: Callable[[], Row]) -> Row:
    try:
        return look()
    except UserError as error:
        return broken(title, error)
    except (ImportError, RuntimeError) as error:  # what a broken torchvision raises
        return Row(title, f"cannot be looked for: {cause_of(error)}", INSTALL, broken=True)


def _messages() -> Row:
    from common.datasets import sms_spam

    found = sms_spam.find("auto", download=False)
    if found.builtin:
        return Row("SMS Spam Collection", "not here", "python lstm.py fetches 0.2 MB")
    whole = "complete" if found.name == sms_spam.NAME else "not the original collection"
    return Row("SMS Spam Collection", f"{sms_spam.usual_copy()}: {whole}, {len(found):,} different messages")


def _digits() -> Row:
    from common.datasets import mnist

    if not (found := mnist.locate(Path("data/MNIST"), (mnist.MNIST,))):
        return Row("MNIST", "not here", "python gan_mnist.py fetches 12 MB")
    sizes = tuple(len(array) for _, array in mnist.read_arrays(found[1]))[::2]  # of images, without labels
    whole = "complete" if sizes == mnist.MNIST.counts else "not the original"
    return Row("MNIST", f"data/MNIST: {whole}, {sum(sizes):,} digits")


def _letters() -> Row:
    from common.datasets import mnist

    sets = tuple(of for of in mnist.PUBLIC_SETS if of is not mnist.MNIST)
    if not (found := mnist.locate(Path("data/EMNIST"), sets)):
        get = "python gan_mnist.py --data emnist fetches 560 MB"
        return Row("EMNIST", "not here; only --data emnist needs it, for letters", get)
    return Row("EMNIST", f"data/EMNIST: all files of {found[0].name}, not read now")


def _photos() -> Row:
    from common.datasets import imagenet, photos

    found = photos.find("auto", download=False)
    if found.builtin:
        if (photos.DOWNLOADS / imagenet.IMAGENETTE_FOLDER).is_dir():  # and is passed over
            return broken("photos", UserError(found.note.partition(". ")[2].rstrip(".")))
        get = (
            "python gan_upscale.py fetches Imagenette, 341 MB; `python util/unzip_imagenet` helps to ImageNet"
        )
        return Row("photos", "neither ImageNet nor Imagenette is here", get)
    count = len(found.train) + len(found.validation)
    part = f" of ImageNet's {IMAGENET:,}" if found.name == "ImageNet" and count < IMAGENET else ""
    lists = [cast(imagenet.PhotoList, of.items) for of in (found.train, found.test)]
    where = os.path.commonpath([str(part.path) for part in lists])
    return Row("photos", f"{where}: {count:,}{part} to train on")


LOOKS: dict[str, tuple[str, Callable[[], Row]]] = {
    "messages": ("SMS Spam Collection", _messages),
    "digits": ("MNIST", _digits),
    "letters": ("EMNIST", _letters),
    "photos": ("photos", _photos),
}
SCRIPTS = {  # and the data that each takes
    "single_layer_rnn": "",
    "multi_layer_rnn": "messages",
    "lstm": "messages",
    "gan_mnist": "digits",
    "gan_upscale": "photos",
}


# -------------------------------------------------------------------------------------------- weights


def weights() -> Iterator[Row]:
    """The weights that come with the repository, with cards or none, and those that were trained here."""
    for path in sorted({path.with_suffix(".safetensors") for path in SHIPPED.glob("*.*")}):
        yield _weights("shipped", path, f"git checkout -- data/pretrained/{path.name}")
    for path in sorted(Path("runs").glob("*/*.safetensors")):
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        yield _weights(f"trained {day}", path, "remove it: the shipped ones are taken then")


def _weights(when: str, path: Path, cure: str) -> Row:
    name = path.stem if when == "shipped" else path.parent.name
    try:
        about = read_about(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Row(name, f"{path} cannot be read: {cause_of(error)}", cure, broken=True)
    known: dict[str, Any] = {}  # of the first net of several
    for part in (about, *(part for part in about.values() if isinstance(part, dict))):
        known = part | known
    origin = f"{when}, on {known.get('data', 'its own data')}, commit {known.get('commit', 'unknown')}"
    return Row(name, f"{origin}: {', '.join(_scores(about).values())}")


def read_about(path: Path) -> dict[str, Any]:
    """The description of a .safetensors file, of which only the head is read, and without torch."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("it is cut off, or no .safetensors file")
        return dict(parse_json(parse_json(file.read(size).decode())["__metadata__"]["about"]))


def _scores(about: dict[str, Any], net: str = "") -> dict[str, str]:
    """By net its first headline numbers, as `GAN PSNR 25.92`."""
    numbers = [
        f"{name} {about[key]:.4g}" for key, name in SCORES.items() if isinstance(about.get(key), float)
    ]
    scores = {net: " ".join([net, *numbers]).strip()} if numbers else {}
    for name, part in about.items():
        if isinstance(part, dict):
            named = "" if name == "scores" else f"Method {name}" if name.isdigit() else name
            more = _scores(part, net or named)
            scores |= {of: text for of, text in more.items() if of not in scores}
    return scores


# -------------------------------------------------------------------------------------------- scripts


def scripts(found: dict[str, Row]) -> Iterator[Row]:
    """What each script would do now and for how long, by its own docstring, and on which data."""
    for script, name in SCRIPTS.items():
        text = ast.get_docstring(ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8"))) or ""
        says = re.search(rf"^\s*python {script}\.py\s+# (.+)$", text, re.MULTILINE)
        row = found.get(name)
        on = f"on {row.text.partition(': ')[0]}" if row else "makes its own data"
        if row and row.broken:
            on = "see to its data first"
        elif row and row.cure:
            what = row.cure.partition(";")[0].partition(" fetches ")[2]
            on = f"fetches {what} first, else takes a stand-in"
        yield Row(f"{script}.py", f"{says[1] if says else 'trains'}; {on}")


def main() -> int:
    """Prints the screen; returns 1 if something is broken."""
    end = time.monotonic() + SECONDS
    words = [sys.executable, "-c", PROBE]
    probe = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        found = data()
        parts = {
            "Machine": [*machine()],
            "Data": [*found.values()],
            "Weights": [*weights()],
            "What a script does now": [*scripts(found)],
        }
        parts = {"Program": [*program(probe, end)]} | parts
    finally:
        probe.kill()
        probe.wait()
    for heading, rows in parts.items():
        print(heading, *rows, sep="\n")
    count = sum(row.broken for rows in parts.values() for row in rows)
    print(f"{count} broken: each has its cure beside it." if count else "Nothing is broken.")
    return min(count, 1)


if __name__ == "__main__":
    prepare_output()
    with one_line():
        sys.exit(main())
