"""Trained weights as .safetensors files, each with a description of what it holds; nothing is unpickled."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from common.cli import UserError, user_path
from common.files import atomic_write


def save(path: Path, modules: dict[str, nn.Module], about: dict[str, Any]) -> None:
    """Writes the weights of several modules into one file, with what a reader must know of them.

    Args:
        modules: by name; the name goes before the names of the weights.
        about: what builds the modules again, and where the weights come from; anything that JSON holds.
    """
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    content = to_bytes(tensors, metadata={"about": json.dumps(about, default=str)})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Reads what `save` wrote: state dicts by module name, and `about`.

    Raises:
        UserError: there is no such file, or it is not one of these.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            for full_name in file.keys():  # noqa: SIM118 - it is no dict
                name, key = full_name.split(".", 1)
                modules.setdefault(name, {})[key] = file.get_tensor(full_name)
    except FileNotFoundError:
        raise UserError(f"there are no weights in {path}; train some, or name another file") from None
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} holds no weights of these scripts ({error}); name another file") from None
    return modules, about


def choose(flag: str, newest: Path, shipped: Path) -> Path:
    """The file that `--weights` names: `auto` is the newest trained, else shipped."""
    usual = {"shipped": shipped, "auto": newest if newest.exists() else shipped}
    return usual.get(flag) or user_path("weights", flag)
