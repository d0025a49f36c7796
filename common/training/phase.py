"""A phase of a training: all that changes while it trains, what is kept of that, and brought back."""

import copy
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.cli import UserError, size
from common.training import distributed

Losses = dict[str, Tensor]


@dataclass
class Phase:
    """All that changes while a phase trains: what a checkpoint keeps and a rewind brings back."""

    name: str
    modules: list[nn.Module]  # the first is the one that is averaged and returned
    optimizers: list[Optimizer]
    device: torch.device
    step: int = 0
    steps: int = 0  # 0: not settled yet
    precision: str = ""
    evaluations: int = 0
    evaluated: int = -1  # step of the last evaluation
    sums: Losses = field(default_factory=dict)  # since the last row of the history
    counts: dict[str, int] = field(default_factory=dict)
    stepping: float = 0.0  # seconds in all steps,
    waiting: float = 0.0  # and of these until the batch was there
    warned: set[str] = field(default_factory=set)  # sides of a GAN that were said to have won

    PACKED = (
        *("name", "step", "steps", "precision", "evaluations", "evaluated", "sums", "counts"),
        *("stepping", "waiting"),
    )

    def __post_init__(self) -> None:
        self.start = time.monotonic()
        for module in self.modules:
            distributed.convert(module)
        self.average = copy.deepcopy(self.modules[0]).eval().requires_grad_(False)
        for group in self.groups():
            group.setdefault("initial_lr", group["lr"])  # torch's own name; saved with the optimizer

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def pack(self) -> dict[str, Any]:
        """The state as tensors, numbers and names."""
        return {
            **{name: getattr(self, name) for name in self.PACKED},
            "modules": [module.state_dict() for module in (*self.modules, self.average)],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": get_rng(self.device),
        }

    def unpack(self, packed: dict[str, Any]) -> None:
        """Brings back what `pack` gave."""
        packed = copy.deepcopy(packed)  # an optimizer would go on writing into it
        for module, weights in zip((*self.modules, self.average), packed["modules"], strict=True):
            module.load_state_dict(weights)
        for optimizer, state in zip(self.optimizers, packed["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for name in self.PACKED:
            setattr(self, name, type(getattr(self, name))(packed[name]))
        self.sums = {name: value.to(self.device) for name, value in self.sums.items()}
        set_rng(packed["rng"], self.device)

    def add(self, values: Losses) -> None:
        """Adds numbers of a step to their sums, which stay on the device; some steps may lack some names."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def share_sums(self) -> None:
        """Several processes: replaces the sums, each of its own share of the batches, by their means."""
        if size() > 1 and self.sums:
            means = distributed.mean(torch.stack([value.to(self.device) for value in self.sums.values()]))
            self.sums = dict(zip(self.sums, means, strict=True))

    def means(self) -> dict[str, float]:
        """The means since the last row of the history."""
        return {name: value.item() / self.counts[name] for name, value in self.sums.items()}

    def check(self, path: Path, weights: bool = False) -> None:
        """Stops where a sum, so a loss or a gradient since the last row, or a weight is not finite.

        Raises:
            UserError: one is not; `path` keeps the last good state.
        """
        bad = [name for name, value in self.sums.items() if not math.isfinite(value)]
        if weights:
            tensors = [t for module in self.modules for t in module.state_dict().values()]
            bad += [] if all(bool(torch.isfinite(t).all()) for t in tensors) else ["a weight"]
        if bad:
            raise UserError(
                f"{self.name}, step {self.step}: not finite: {', '.join(bad)}. {path} keeps the last good "
                "state: --resume goes on from there; if it happens again, start anew at a lower learning rate"
            )


def get_rng(device: torch.device) -> dict[str, Any]:
    """The states of all random number generators that a training draws from."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def set_rng(state: dict[str, Any], device: torch.device) -> None:
    """Brings back what `get_rng` gave."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
