"""A small lesson, FOLDER [--resume], that test_training.py kills, interrupts and resumes."""

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import cli
from common.training import loop
from common.training.loop import adversarial, supervised
from common.training.run import Run


def batches(first: int) -> Iterator[Any]:
    """Noise [8, 4] and real points [8, 2]."""
    loader_seed = torch.rand(1)  # as a starting DataLoader does: it must not disturb the run
    while True:
        generator = torch.Generator().manual_seed(first)
        time.sleep(0.005)
        yield (torch.randn(8, 4, generator=generator),), torch.randn(8, 2, generator=generator) * 2 + 1
        first += 1 + 0 * int(loader_seed)


def squared(model: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
    (noise,), real = batch
    return {"squared": (model(noise) - real).square().mean() * (1 + random.random())}


def hinge(d: nn.Module, real: Tensor, fake: Tensor, condition: Any, step: int) -> Any:
    a, b = d(real), d(fake)
    losses = {"hinge": (1 - a).relu().mean() + (1 + b).relu().mean()}
    if step % 4 == 0:
        losses["size"] = 0.1 * a.square().mean()
    return losses, a, b


def deceit(d: nn.Module, real: Tensor, fake: Tensor, condition: Any, step: int) -> dict[str, Tensor]:
    return {"adversarial_loss": -d(fake).mean()}


def main() -> None:
    folder, resume = Path(sys.argv[1]), "--resume" in sys.argv
    loop.ROWS = 15  # so that some steps lie between two rows
    cli.seed_everything(0)
    run = Run(
        folder,
        settings={},
        device=torch.device("cpu"),
        resume=resume,
        precision="float32",
        checkpoint_every=0.12,
    )
    generator = nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 2)
    )
    plan: dict[str, Any] = {
        "schedule": lambda progress: 1 - progress,
        "ema": 0.9,
        "evaluate": lambda model: {"size": model[0].weight.abs().sum() + torch.rand(()) * 0},
        "evaluations": 3,
    }
    optimizer = torch.optim.Adam(generator.parameters(), 1e-2)
    supervised(run, "fit", generator, optimizer, squared, batches, steps=100, **plan)
    discriminator = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(2, 16)),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(16, 1),
    )
    players = (
        torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.0, 0.99)),
        torch.optim.Adam(discriminator.parameters(), 1e-3, betas=(0.0, 0.99)),
    )
    adversarial(run, "gan", generator, discriminator, players, deceit, hinge, batches, steps=100, **plan)
    run.finish()
    torch.save(
        {"weights": generator.state_dict(), "history": run.history, "random": torch.rand(4)},
        folder / "outcome.pt",
    )


def serve() -> None:
    """Forks a run for each line of stdin, a JSON list of words; answers with its process and its exit code.

    Each run is a process of its own, to be killed, but torch is imported only once.
    """
    torch.set_num_threads(1)
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])  # imports some more
    for line in sys.stdin:
        words = json.loads(line)
        process = os.fork()
        if process == 0:
            sys.argv = ["training_lesson.py", *words]
            log = os.open(f"{words[0]}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            main()
            return
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
