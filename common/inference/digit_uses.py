"""What gan_mnist.py does besides its lesson: which flags go together, and what trained weights are for."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.cli import UserError
from common.datasets.mnist import Digits
from common.figures import mnist as figures
from common.files import atomic_write, check_writable
from common.inference import handwriting
from common.inference import mnist as inference
from common.inference.mnist import Sampler

MOST_SAMPLES = 1_000_000  # in one file: they are held in memory, 784 bytes each


def refuse_bad_flags(config: Any) -> None:
    """Before any work is done: budgets that are none, and flags that would be ignored."""
    modes = [
        name
        for name in ("sample", "write", "evaluate", "balance", "compare")
        if getattr(config, name) is not None and getattr(config, name) is not False
    ]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]} are two things to do; give one of them")
    mode = f"--{modes[0]}" if modes else "training"
    budget, output, colours = ("steps", "minutes"), ("output", "overwrite"), ("ink", "paper")
    settings = (*budget, "preset", "precision")
    training_flags = ("resume", *settings)
    idle = {
        "--sample": (*training_flags, *colours, "quick", "data", "judge", "figs"),
        "--write": (*training_flags, "quick", "data", "judge", "figs"),
        "--evaluate": (*training_flags, *output, *colours, "quick"),
        "--balance": (*settings, *output, *colours, "method", "unconditional", "weights"),
        "--compare": (*training_flags, *output, *colours, "method", "unconditional", "quick"),
        "training": (*output, *colours, "weights"),
    }
    for name in idle[mode]:
        if getattr(config, name) != getattr(type(config), name):
            raise UserError(f"--{name} means nothing with {mode}; leave it out")
    if config.quick and config.preset != "auto":
        raise UserError(f"--preset {config.preset}: --quick has a size of its own; leave one of them out")
    if config.unconditional and config.method == "1":
        raise UserError("--unconditional is --method 2; give one of them")
    if config.steps is not None and config.minutes is not None:
        raise UserError("--steps and --minutes are two budgets for one run; give one of them")
    if config.steps is not None and config.steps < 1:
        raise UserError(f"--steps {config.steps}: give a whole number above 0")
    if config.minutes is not None and not 0 < config.minutes < math.inf:
        raise UserError(f"--minutes {config.minutes}: give a time above 0")


def folder(config: Any, method: str) -> Path:
    """Of a method's run; quick ones are kept apart, so that they never stand in for a real one."""
    name = "gan_mnist" if method == "conditional" else f"gan_mnist-{method}"
    return config.runs / (f"{name}-quick" if config.quick else name)


def load(
    config: Any, shipped: Path, method: str, device: torch.device, data: Digits | None = None
) -> Sampler:
    """What --weights names; refused where it draws other characters than `data` has."""
    newest = folder(config, method) / "weights.safetensors"
    usual = {"shipped": shipped, "auto": newest if newest.exists() else shipped}
    path = usual.get(config.weights, Path(config.weights))
    sampler = inference.load(path, method, device)
    if data and sampler.characters != data.characters:
        raise UserError(
            f"--data: {data.name} has {data.characters}, but the weights in {path} draw {sampler.characters}"
        )
    print(f"Weights: {path}, trained on {sampler.about['data']}")
    return sampler


def use(config: Any, shipped: Path, device: torch.device) -> int:
    """Draws digits, or writes a text, into --output; returns the exit code."""
    formats = (".png",) if config.write is not None else (".npz", ".png")
    if config.output is None or config.output.suffix.lower() not in formats:
        raise UserError(f"--output: name a file that ends in {' or '.join(formats)}")
    try:
        if config.output.is_dir():
            raise UserError(f"--output: {config.output} is a folder; name a file")
        if config.output.exists() and not config.overwrite:
            raise UserError(f"--output: {config.output} exists; name another file, or add --overwrite")
    except OSError as error:  # a name too long, a folder that may not be entered
        raise UserError(f"--output: {error.strerror}; name another file") from None
    check_writable(config.output.parent)
    if config.sample is not None and not 1 <= config.sample <= MOST_SAMPLES:
        raise UserError(f"--sample {config.sample}: give a whole number from 1 to {MOST_SAMPLES}")
    for name in ("ink", "paper"):
        handwriting.colour(f"--{name}", getattr(config, name))
    sampler = load(config, shipped, config.method, device)
    rng = torch.Generator().manual_seed(config.seed)
    keep: Callable[[Path], object]
    if config.write is None:
        assert config.sample is not None
        labels = torch.arange(config.sample) % len(sampler.characters)
        made, cost = sampler.draw(labels, rng)
        keep = partial(figures.keep, pictures=made, labels=labels, columns=len(sampler.characters))
    else:
        handwriting.check_text(config.write, sampler.characters)
        cost = {}

        def draw(word: str) -> Tensor:
            """One word in one style."""
            labels = torch.tensor([sampler.characters.index(character) for character in word])
            pictures, used = sampler.draw(
                labels, rng, style=torch.randn(sampler.generator.latent, generator=rng)
            )
            cost.update({of: max(used[of], cost.get(of, 0.0)) for of in used})
            return pictures

        page = handwriting.compose(config.write, draw, ink=config.ink, paper=config.paper)
        keep = page.save
    try:
        with atomic_write(config.output) as beside:
            keep(beside)
    except OSError as error:  # such as a full disk
        raise UserError(f"cannot write {config.output}: {error.strerror or error}") from None
    if config.method == "2":
        each = ", ".join(f"{of} {samples:.0f}" for of, samples in sorted(cost.items()))
        where = " in the word where it cost most" if config.write is not None else ""
        print(f"Samples that one character cost{where}: {each}")
    print(f"Drawn: {config.output}")
    return 0
