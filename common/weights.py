"""Trained weights as .safetensors files, each with a description of what it holds; nothing is unpickled."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from common.cli import UserError, user_path
from common.files import atomic_write, parse_json

Module = TypeVar("Module", bound=nn.Module)


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
            about = parse_json(file.metadata()["about"])
            for full_name in file.keys():  # noqa: SIM118 - it is no dict
                name, key = full_name.split(".", 1)
                modules.setdefault(name, {})[key] = file.get_tensor(full_name)
    except FileNotFoundError:
        raise UserError(f"there are no weights in {path}; train some, or name another file") from None
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} holds no weights of these scripts ({error}); name another file") from None
    return modules, about


def build(make: Callable[..., Module], sizes: Iterable[Any], state: dict[str, Tensor]) -> Module:
    """What `make` builds of the sizes that stand in a file, with the weights from there.

    It is built without memory at first: a small file may name sizes that would fill all there is.

    Raises:
        ValueError, TypeError, RuntimeError: these are no sizes, or not those of the weights.
    """
    sizes, most = [int(str(size)) for size in sizes], sum(value.numel() for value in state.values())
    if not all(0 <= size <= most for size in sizes):
        raise ValueError(f"sizes of {sizes} for {most:,} weights")
    with torch.device("meta"):
        make(*sizes).load_state_dict(state, assign=True)
    module = make(*sizes)
    module.load_state_dict(state)
    return module


def choose(flag: str, newest: Path, shipped: Path) -> Path:
    """The file that `--weights` names: `auto` is the newest trained, else shipped."""
    usual = {"shipped": shipped, "auto": newest if newest.exists() else shipped}
    return usual.get(flag) or user_path("weights", flag)
