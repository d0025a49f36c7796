"""What every run of every script needs: a seed, a device, a folder, a results file, clear refusals."""

import json
import platform
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import tyro
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common.files import Refused as Refused
from common.files import check_writable as check_writable
from common.files import command_line
from common.files import save_json as save_json
from common.files import whole as whole

Config = TypeVar("Config")


def launch(main: Callable[[Config], int | None], config_class: type[Config]) -> NoReturn:
    """Reads the command line into `config_class`, runs `main` and exits: 0, or what `main` returned.

    A refusal is one line on stderr and exit code 2; Ctrl-C outside of training is exit code 130.
    """
    script = Path(sys.argv[0]).name
    config = tyro.cli(config_class)
    commit()  # of the code that runs: another may be there when the run ends
    try:
        code = main(config) or 0
    except Refused as refusal:
        print(f"{script}: {refusal}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f"\n{script}: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's generators.

    Raises:
        Refused: NumPy takes 0 to 2^32 - 1.
    """
    if not 0 <= seed < 2**32:
        raise Refused(f"--seed {seed}: give a whole number from 0 to {2**32 - 1}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        Refused: the device asked for is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there.get(name, False):
        have = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise Refused(f"--device {name}: this machine has none; it has {have}")
    return torch.device(name)


def save_results(
    figs: Path,
    script: str,
    config: Any,
    *,
    data: dict[str, Any],
    metrics: dict[str, Any],
    baselines: dict[str, Any],
    seconds: float,
    device: torch.device,
    **more: Any,
) -> None:
    """Writes `figs/SCRIPT.json`, from which the README's table and the gallery are made.

    Args:
        config: the script's dataclass.
        data: `name`, `count` and `builtin`, whether it is the stand-in.
        metrics, baselines: numbers, or numbers by method.
        more: whatever else a script has to say.
    """
    results = {
        "script": script,
        "command": command(),
        "config": asdict(config),
        "data": data,
        "metrics": metrics,
        "baselines": baselines,
        "seconds": round(seconds),
        "device": device_name(device),
        "versions": versions(),
        "commit": commit(),
    }
    save_json(figs / f"{script}.json", results | more)


def save_weights(path: Path, modules: dict[str, nn.Module], about: dict[str, Any]) -> None:
    """Writes the weights of several modules into one .safetensors file, with what a reader must know of them.

    Args:
        modules: by name; the name goes before the names of the weights.
        about: what builds the modules again, and where the weights come from; anything that JSON holds.
    """
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    with whole(path) as beside:
        save_file(tensors, beside, metadata={"about": json.dumps(about, default=str)})


def load_weights(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Reads what `save_weights` wrote: state dicts by module name, and `about`.

    Raises:
        Refused: no such file, or not one of these.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            for full_name in file.keys():  # noqa: SIM118 - it is no dict
                name, key = full_name.split(".", 1)
                modules.setdefault(name, {})[key] = file.get_tensor(full_name)
    except FileNotFoundError:
        raise Refused(f"there are no weights in {path}; train some, or name another file") from None
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise Refused(f"{path} holds no weights of these scripts ({error}); name another file") from None
    return modules, about


def device_name(device: torch.device) -> str:
    """The device as a reader knows it, for example `cpu, 2 threads` or `NVIDIA H200`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "torchmetrics", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


@cache
def commit() -> str:
    """The commit of this checkout when it is first asked for, with `+` after it where files differ from it;
    `unknown` outside of git."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def command() -> str:
    """The command that started this run, as it would be typed again from the repository's folder.

    Without `--resume`: a run that was stopped and resumed ends as one left alone.
    """
    return command_line("python", Path(sys.argv[0]).name, *(w for w in sys.argv[1:] if w != "--resume"))
