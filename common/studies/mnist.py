"""Two studies on generated digits: where the balance of the two players is lost, and which of the three
methods to write with."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common import cli, results
from common.datasets.mnist import Digits
from common.evaluation import mnist as evaluation
from common.figures import mnist as figures
from common.inference import mnist as inference
from common.inference.mnist import METHODS, Sampler
from common.results import table
from common.training.run import Run, checkpoint

STEPS, QUICK_STEPS = 900, 20  # of each player at least, in each small GAN
WRITTEN = 1_000
"""Characters that each method writes for its score, in turn."""


def balance(
    config: Any,
    preset: Any,
    data: Digits,
    evaluator: evaluation.Evaluator,
    train: Callable[[Any, Any], tuple[Sampler, Run, Any]],
    figs: Path,
) -> int:
    """Trains small GANs that differ in the strength of one player only, and draws what became of each.

    The discriminator is made weaker and stronger in two ways: by its width, and by how often the two take a
    step: the one that takes fewer takes as many as elsewhere. One more GAN is without the minibatch standard
    deviation.

    Args:
        preset: of the GAN in the middle; it has `d_channels`, `d_every`, `g_every` and `minibatch_std`.
        train: of (config, preset) to a sampler, its run, and more.

    Returns:
        the exit code.
    """
    player_steps = QUICK_STEPS if config.quick else STEPS
    labels = torch.arange(len(data.test)) % len(data.characters)
    rows: list[dict[str, Any]] = []
    seconds = 0.0
    for way, factor, name, change in _variants(preset.d_channels, config.quick):
        variant = replace(preset, **change)
        steps = player_steps * max(variant.d_every, variant.g_every)
        runs = config.runs / "gan_mnist-balance" / name.replace(": ", "_").replace(" ", "_")
        own = replace(config, steps=steps, runs=runs)
        started = checkpoint(inference.run_dir(own, own.method)).exists()
        sampler, run, _ = train(replace(own, resume=config.resume and started), variant)
        run.finish()
        seconds += sum(phase["seconds"] for phase in run.record.values())  # those before a stop, too

        fake, _ = sampler.sample(labels, torch.Generator().manual_seed(config.seed))
        score = evaluator.score(fake, labels)
        last = [row for row in run.history if "accuracy_real" in row][-20:]
        right = {k: sum(row[k] for row in last) / len(last) for k in ("accuracy_real", "accuracy_fake")}
        rows.append({"way": way, "factor": factor, "name": name, "images": fake[:200], **score, **right})
        print(f"{name}: distance {score['distance']:.2f}, recall {score['recall']:.2f}")

    metrics = ("distance", "recall", "min_class_share", "class_accuracy")
    scores = {row["name"]: {k: row[k] for k in metrics} for row in rows}
    baselines = {
        name: {k: score[k] for k in metrics} for name, score in evaluation.baselines(evaluator, data).items()
    }
    print(table(evaluation.named(scores | baselines, data.name)))
    figures.balance(
        figs / "GAN_mnist_balance.png",
        rows,
        baselines,
        title="Where the balance of the two players is lost",
        caption=f"{data.name}. Conditional GANs, {player_steps:,} steps of each player or what is said, seed "
        f"{config.seed}; nothing else differs. {data.note.partition(chr(10))[0]}".strip(),
        columns=len(data.characters),
    )
    results.save(
        figs,
        "gan_mnist_balance",
        config,
        data=data,
        count=len(data.test),
        metrics=evaluation.named(scores, data.name),
        baselines=evaluation.named(baselines, data.name),
        seconds=seconds,
        device=cli.pick_device(config.device),
        discriminator_right={
            row["name"]: {"real": row["accuracy_real"], "fake": row["accuracy_fake"]} for row in rows
        },
    )
    best, worst = (choose(rows, key=lambda row: row["distance"]) for choose in (min, max))
    print(
        f"Best: {best['name']}, distance {best['distance']:.2f}; worst: {worst['name']}, "
        f"{worst['distance']:.2f}. Figure: {figs}/GAN_mnist_balance.png"
    )
    return 0


def _variants(channels: int, quick: bool) -> list[tuple[str, float, str, dict[str, Any]]]:
    """What is changed, the discriminator's strength, a name, and the change of the preset."""
    widths = [
        (factor, f"discriminator of {round(channels * factor)} channels", round(channels * factor))
        for factor in (0.25, 0.5, 1, 2, 4)
    ]
    variants = [("width", factor, name, {"d_channels": width}) for factor, name, width in widths]
    without = ("minibatch_std", 1.0, "without the minibatch standard deviation", {"minibatch_std": False})
    if quick:
        return [*variants[1:3], without]
    return [
        *variants,
        ("steps", 0.25, "generator: 4 steps to 1", {"d_every": 4}),
        ("steps", 0.5, "generator: 2 steps to 1", {"d_every": 2}),
        ("steps", 2.0, "discriminator: 2 steps to 1", {"g_every": 2}),
        ("steps", 4.0, "discriminator: 4 steps to 1", {"g_every": 4}),
        without,
    ]


def compare(
    config: Any,
    data: Digits,
    evaluator: evaluation.Evaluator,
    load: Callable[[str], Sampler],
    figs: Path,
) -> int:
    """Writes with each of the three methods, scores what was written, and saves the three in one file.

    Args:
        load: of a method to its sampler.

    Returns:
        the exit code.
    """
    samplers = {method: load(method) for method in METHODS}
    count = len(data.characters)
    labels, all_labels = torch.arange(WRITTEN) % count, torch.arange(len(data.test)) % count
    scores: dict[str, dict[str, float]] = {}
    by_class, strips = {}, {}
    start = time.monotonic()
    for method, sampler in samplers.items():
        name, rng = METHODS[method], torch.Generator().manual_seed(config.seed)
        writing_start = time.monotonic()
        written, _ = sampler.sample(labels, rng)
        writing = time.monotonic() - writing_start
        fake, _ = sampler.sample(all_labels, rng)
        score = evaluator.score(fake, all_labels)
        scores[name] = sampler.about["written"] = {
            "class_accuracy": evaluator.score(written, labels)["class_accuracy"],
            "distance": score["distance"],
            "recall": score["recall"],
            # Method 2's classifier has to be trained, too
            "training, minutes": sum(phase["seconds"] for phase in sampler.about["phases"].values()) / 60,
            "writing, ms a character": 1_000 * writing / WRITTEN,
            "million parameters": sampler.parameters() / 1e6,
        }
        by_class[name] = evaluator.distances(fake, all_labels)
        strips[name] = written[: 2 * count]
    by_class["real"] = evaluator.distances(*data.training_sample(len(data.test)))
    baselines = {
        name: {k: score[k] for k in ("class_accuracy", "distance", "recall")}
        for name, score in evaluation.baselines(evaluator, data).items()
    }
    print(table(evaluation.named(scores | baselines, data.name, gaps=True)))

    figures.compare(
        figs / "GAN_mnist_methods.png",
        strips,
        scores,
        by_class,
        data.characters,
        title="Three ways to write a character",
        caption=f"{data.name}. The first {2 * count} of {WRITTEN:,} written characters, seed {config.seed}; "
        f"distances of {len(data.test):,}. {data.note.partition(chr(10))[0]}".strip(),
    )
    results.save(
        figs,
        "gan_mnist_methods",
        config,
        data=data,
        count=len(data.test),
        metrics=evaluation.named(scores, data.name),
        baselines=evaluation.named(baselines, data.name),
        seconds=time.monotonic() - start,
        device=cli.pick_device(config.device),
        distance_by_class=by_class,
    )
    path = config.runs / "gan_mnist-all" / "digits.safetensors"
    inference.save(path, samplers.values(), half=True)
    print(f"All three: {path}, {path.stat().st_size / 1e6:.1f} MB")
    accuracy, best = max((score["class_accuracy"], name) for name, score in scores.items())
    print(f"Best class accuracy: {best}, {accuracy:.2%}. Figure: {figs}/GAN_mnist_methods.png")
    return 0
