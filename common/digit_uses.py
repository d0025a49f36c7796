"""What gan_mnist.py does besides its lesson: which flags go together, and what trained weights are for."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import digit_figures, handwriting, runs, samplers
from common.samplers import Sampler


def refuse_bad_flags(config: Any) -> None:
    """Before any work is done: budgets that are none, and flags that would be ignored."""
    modes = [
        name
        for name in ("sample", "write", "evaluate", "balance", "compare")
        if getattr(config, name) is not None and getattr(config, name) is not False
    ]
    if len(modes) > 1:
        raise runs.Refused(f"--{modes[0]} and --{modes[1]} are two things to do; give one of them")
    mode = f"--{modes[0]}" if modes else "training"
    budget, output, colours = ("steps", "minutes"), ("output", "overwrite"), ("ink", "paper")
    training_flags = ("resume", *budget, "preset", "precision")
    idle = {
        "--sample": (*training_flags, *colours, "quick", "data", "judge", "figs"),
        "--write": (*training_flags, "quick", "data", "judge", "figs"),
        "--evaluate": (*training_flags, *output, *colours, "quick"),
        "--balance": (*training_flags, *output, *colours, "method", "unconditional", "weights"),
        "--compare": (*training_flags, *output, *colours, "method", "unconditional", "quick"),
        "training": (*output, *colours, "weights"),
    }
    for name in idle[mode]:
        if getattr(config, name) != getattr(type(config), name):
            raise runs.Refused(f"--{name} means nothing with {mode}; leave it out")
    if config.unconditional and config.method == "1":
        raise runs.Refused("--unconditional is --method 2; give one of them")
    if config.steps is not None and config.minutes is not None:
        raise runs.Refused("--steps and --minutes are two budgets for one run; give one of them")
    if config.steps is not None and config.steps < 1:
        raise runs.Refused(f"--steps {config.steps}: give a whole number above 0")
    if config.minutes is not None and not 0 < config.minutes < math.inf:
        raise runs.Refused(f"--minutes {config.minutes}: give a time above 0")


def folder(config: Any, method: str) -> Path:
    """Of a method's run; quick ones are kept apart, so that they never stand in for a real one."""
    name = "gan_mnist" if method == "conditional" else f"gan_mnist-{method}"
    return config.runs / (f"{name}-quick" if config.quick else name)


def load(config: Any, shipped: Path, method: str, device: torch.device) -> Sampler:
    """What --weights names."""
    newest = folder(config, method) / "weights.safetensors"
    usual = {"shipped": shipped, "auto": newest if newest.exists() else shipped}
    path = usual.get(config.weights, Path(config.weights))
    sampler = samplers.load(path, method, device)
    print(f"Weights: {path}, trained on {sampler.about['data']}")
    return sampler


def use(config: Any, shipped: Path, device: torch.device) -> int:
    """Draws digits, or writes a text, into --output; returns the exit code."""
    formats = (".png",) if config.write is not None else (".npz", ".png")
    if config.output is None or config.output.suffix.lower() not in formats:
        raise runs.Refused(f"--output: name a file that ends in {' or '.join(formats)}")
    if config.output.exists() and not config.overwrite:
        raise runs.Refused(f"--output: {config.output} exists; name another file, or add --overwrite")
    if config.sample is not None and config.sample < 1:
        raise runs.Refused(f"--sample {config.sample}: give a whole number above 0")
    for name in ("ink", "paper"):
        handwriting.colour(f"--{name}", getattr(config, name))
    sampler = load(config, shipped, config.method, device)
    rng = torch.Generator().manual_seed(config.seed)
    if config.write is None:
        assert config.sample is not None
        labels = torch.arange(config.sample) % len(sampler.characters)
        made, cost = sampler.draw(labels, rng)
        digit_figures.keep(config.output, made, labels, columns=len(sampler.characters))
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
        with runs.whole(config.output) as beside:
            page.save(beside)
    if config.method == "2":
        each = ", ".join(f"{of} {samples:.0f}" for of, samples in sorted(cost.items()))
        print(f"Samples that one character cost: {each}")
    print(f"Drawn: {config.output}")
    return 0
