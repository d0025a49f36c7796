"""Two studies on generated digits: where the balance of the two players is lost, and which of the three
methods to write with."""

import string
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from common import results
from common.datasets.mnist import Digits
from common.evaluation import mnist as evaluation
from common.evaluation.mnist import Evaluator
from common.figures import handwriting
from common.figures import mnist as figures
from common.inference import mnist as inference
from common.inference.mnist import METHODS, Sampler
from common.results import Scores
from common.training.run import checkpoint

STEPS, QUICK_STEPS = 900, 20  # of each player at least, in each small GAN
WRITTEN = 1_000
"""Characters that each method writes for its score, in turn."""

Train = Callable[[Any, Any, Digits, Evaluator, torch.device], tuple[Sampler, figures.Progress]]


def balance(
    config: Any, preset: Any, data: Digits, evaluator: Evaluator, device: torch.device, train: Train
) -> int:
    """Trains small GANs that differ in the strength of one player only, and shows what became of each.

    The discriminator is made weaker and stronger in two ways: by its width, and by how often the two take a
    step: the one that takes fewer takes as many as elsewhere. One more GAN is without the minibatch standard
    deviation. `preset` is that of the GAN in the middle.
    """
    player_steps = QUICK_STEPS if config.quick else STEPS
    labels = data.labels_to_sample(len(data.test))
    rows: list[dict[str, Any]] = []
    scores, right, seconds = Scores(), Scores(), 0.0
    for name, ways, strength, change in _variants(preset.d_channels, config.quick):
        variant = replace(preset, **change)
        steps = player_steps * max(variant.d_every, variant.g_every)
        runs = config.runs / "gan_mnist-balance" / name.replace(": ", "_").replace(" ", "_")
        own = replace(config, steps=steps, runs=runs)
        folder = own.run_dir(inference.name_of(data.characters, own.method), data.builtin)
        own.resume &= checkpoint(folder).exists()
        sampler, progress = train(own, variant, data, evaluator, device)
        progress.run.finish()
        seconds += progress.seconds()

        fake, _ = sampler.sample(labels, torch.Generator().manual_seed(config.seed))
        score = evaluator.score(fake, labels)
        scores[name] = {metric: value for metric, value in score.items() if metric != "precision"}
        last = pd.DataFrame(progress.run.history)[["accuracy_real", "accuracy_fake"]].dropna()[-20:].mean()
        right[name] = {"real": last["accuracy_real"], "fake": last["accuracy_fake"]}
        about = {"name": name, "ways": ways, "strength": strength, "images": fake[: 2 * len(data.characters)]}
        rows.append(about | scores[name] | right[name])
        print(f"{name}: distance {score['distance']:.2f}, recall {score['recall']:.2f}")

    baselines = evaluation.baselines(evaluator, data)
    more = {"seconds": seconds, "device": device, "discriminator_right": right}
    study = inference.name_of(data.characters, "balance", "_")
    _save(study, config, data, scores, baselines, more)
    what = f"Conditional GANs, {player_steps:,} steps of each player or what is said; nothing else differs."
    path = config.figs_dir(data.builtin) / f"{study.replace('gan', 'GAN')}.png"
    figures.balance(path, rows, baselines["real"], _caption(config, data, what))
    best, *_, worst = sorted((score["distance"], name) for name, score in scores.items())
    verdict = f"Best: {best[1]}, distance {best[0]:.2f}; worst: {worst[1]}, {worst[0]:.2f}"
    print(f"{verdict}. Figure: {results.where(path, data)}")
    return 0


def _variants(channels: int, quick: bool) -> list[tuple[str, set[str], float, dict[str, Any]]]:
    """A name, what is changed, the discriminator's strength by it, and the change of the preset."""
    widths = {strength: round(channels * strength) for strength in (0.25, 0.5, 1, 2, 4)}
    variants: list[tuple[str, set[str], float, dict[str, Any]]] = [
        (f"discriminator of {width} channels", {"width"}, strength, {"d_channels": width})
        for strength, width in widths.items()
    ]
    variants[2][1].add("steps")
    variants += [
        ("generator: 4 steps to 1", {"steps"}, 0.25, {"d_every": 4}),
        ("generator: 2 steps to 1", {"steps"}, 0.5, {"d_every": 2}),
        ("discriminator: 2 steps to 1", {"steps"}, 2.0, {"g_every": 2}),
        ("discriminator: 4 steps to 1", {"steps"}, 4.0, {"g_every": 4}),
    ]
    without = "without the minibatch standard deviation", {"minibatch_std"}, 1.0, {"group": 0}
    return [*(variants[1:3] if quick else variants), without]


def compare(config: Any, data: Digits, evaluator: Evaluator, device: torch.device) -> int:
    """Writes with each of the three methods, scores what was written, and saves the three in one file."""
    samplers = {name: inference.load_chosen(config, method, device, data) for method, name in METHODS.items()}
    count, study = len(data.characters), inference.name_of(data.characters, "methods", "_")
    labels, all_labels = torch.arange(WRITTEN) % count, data.labels_to_sample(len(data.test))
    scores, images, distances, start = Scores(), {}, {}, time.monotonic()
    for name, sampler in samplers.items():
        rng, writing_start = torch.Generator().manual_seed(config.seed), time.monotonic()
        written, cost = sampler.sample(labels, rng)
        writing = time.monotonic() - writing_start
        fake, _ = sampler.sample(all_labels, rng)
        score = evaluator.score(fake, all_labels)
        scores[name] = sampler.about["written"] = {
            **{of: n for of, n in evaluator.score(written, labels).items() if of.endswith("class_accuracy")},
            "distance": score["distance"],
            "recall": score["recall"],
            # Method 2's classifier has to be trained, too
            "training, minutes": sum(phase["seconds"] for phase in sampler.about["phases"].values()) / 60,
            "writing, ms a character": 1_000 * writing / WRITTEN,
            "samples for the costliest character": max(cost.values()),
            "million parameters": sampler.parameters() / 1e6,
        }
        distances[name] = evaluator.distances(fake, all_labels)
        images[name] = written[: 2 * count][:: max(1, 2 * count // 23)]
        costliest = sorted(cost.items(), key=lambda of: -of[1])[:5]
        print(f"{name}, samples for one character: " + ", ".join(f"{of} {n:.0f}" for of, n in costliest))
    path = config.runs / study.replace("_methods", "-all")
    path /= "digits.safetensors" if data.characters == string.digits else "handwriting.safetensors"
    inference.save(path, samplers.values(), half=True)
    distances["real"] = evaluator.distances(*data.training_sample(len(data.test)))
    more = {"seconds": time.monotonic() - start, "device": device, "distance_by_class": distances}
    _save(study, config, data, scores, evaluation.baselines(evaluator, data), more)
    figure = config.figs_dir(data.builtin) / f"{study.replace('gan', 'GAN')}.png"
    caption = f"Some of {WRITTEN:,} written characters; distances of {len(data.test):,}."
    figures.compare(figure, images, scores, distances, data.characters, _caption(config, data, caption))
    if set(string.ascii_letters) <= set(data.characters):
        caption = f"By --write; class accuracy of {WRITTEN:,} characters, the rest of {len(data.test):,}."
        written = config.figs_dir(data.builtin) / "GAN_handwriting.png"
        handwriting.save(written, samplers, scores, config.seed, _caption(config, data, caption))
    print(f"All three: {path}, {path.stat().st_size / 1e6:.1f} MB")
    accuracy, best = max((score["class_accuracy"], name) for name, score in scores.items())
    print(f"Best class accuracy: {best}, {accuracy:.2%}. Figure: {results.where(figure, data)}")
    return 0


def _caption(config: Any, data: Digits, what: str) -> str:
    return f"{data.name}. {what} Seed {config.seed}. {data.note.partition(chr(10))[0]}".strip()


def _save(
    script: str, config: Any, data: Digits, scores: Scores, baselines: Scores, more: dict[str, Any]
) -> None:
    """Shows the scores of a study beside the same ones of the baselines, and writes its results file."""
    metrics = next(iter(scores.values()))
    baselines = {name: {k: row[k] for k in row if k in metrics} for name, row in baselines.items()}
    scores, baselines = (evaluation.named(rows, data.name) for rows in (scores, baselines))
    print(results.table(scores | baselines))
    more |= {"data": data, "count": len(data.test), "metrics": scores, "baselines": baselines}
    results.save(config.figs_dir(data.builtin), script, config, **more)
