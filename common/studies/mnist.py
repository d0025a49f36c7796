"""Two studies on digits that are drawn: where the balance of the two players is lost, and which of the three
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
from common.inference import digit_uses
from common.inference import mnist as inference
from common.inference.mnist import Sampler
from common.results import table
from common.training.run import checkpoint

STEPS = {False: 900, True: 20}  # of each player at least, in each small GAN; True for --quick
WRITTEN = 1_000
"""Characters that each method writes for its score, in turn."""
NAMES = {"conditional": "conditional", "1": "Method 1", "2": "Method 2"}


def balance(
    config: Any, preset: Any, data: Digits, judge: evaluation.Judge, train: Callable[..., Any], figs: Path
) -> int:
    """Trains small GANs that differ in the strength of one player only, and draws what became of each.

    The discriminator is made weaker and stronger in two ways: by its width, and by how often the two take a
    step: the one that takes fewer takes as many as elsewhere. One more GAN is without the minibatch standard
    deviation.

    Args:
        preset: of the GAN in the middle; it has `critic`, `every` and `compares`.
        train: of (config, preset) to a sampler and its run.

    Returns:
        the exit code.
    """
    width = preset.critic
    changes: dict[str, list[tuple[float, str, dict[str, Any]]]] = {
        "width": [
            (factor, f"discriminator of {round(width * factor)} channels", {"critic": round(width * factor)})
            for factor in (0.25, 0.5, 1, 2, 4)
        ],
        "steps": [
            (factor, f"{who} steps to 1", {"every": every})
            for factor, who, every in (
                (0.25, "generator: 4", (4, 1)),
                (0.5, "generator: 2", (2, 1)),
                (2.0, "discriminator: 2", (1, 2)),
                (4.0, "discriminator: 4", (1, 4)),
            )
        ],
        "eye": [(1.0, "without the minibatch standard deviation", {"compares": False})],
    }
    if config.quick:
        changes = {"width": changes["width"][1:3], "eye": changes["eye"]}
    rows: list[dict[str, Any]] = []
    seconds = 0.0
    for way, variants in changes.items():
        for factor, name, change in variants:
            place = config.runs / "gan_mnist-balance" / name.replace(": ", "_").replace(" ", "_")
            steps = STEPS[config.quick] * max(change.get("every", preset.every))
            apart = replace(config, steps=steps, runs=place)
            begun = checkpoint(digit_uses.folder(apart, apart.method)).exists()
            apart = replace(apart, resume=config.resume and begun)
            sampler, run = train(apart, replace(preset, steps=steps, **change))
            run.finish()
            seconds += sum(phase["seconds"] for phase in run.record.values())  # those before a stop, too
            labels = torch.arange(len(data.test)) % len(data.characters)
            made, _ = sampler.draw(labels, torch.Generator().manual_seed(config.seed))
            last = [row for row in run.history if "accuracy_real" in row][-20:]
            right = {
                side: sum(row[f"accuracy_{side}"] for row in last) / len(last) for side in ("real", "fake")
            }
            score = judge.score(made, labels)
            rows.append(
                {"way": way, "factor": factor, "name": name, **score, **right, "pictures": made[:200]}
            )
            print(f"{name}: distance {score['distance']:.2f}, recall {score['recall']:.2f}")

    references = evaluation.baselines(judge, data.train, data.train_labels, data.test, data.test_labels)
    figures.balance(
        figs / "GAN_mnist_balance.png",
        rows,
        references,
        title="Where the balance of the two players is lost",
        caption=f"{data.name}. Conditional GANs, {STEPS[config.quick]:,} steps of each player or what is "
        f"said, seed {config.seed}; nothing else differs. {data.note.partition(chr(10))[0]}".strip(),
        columns=len(data.characters),
    )
    scores = {row["name"]: {k: row[k] for k in ("distance", "recall", "rarest", "asked")} for row in rows}
    kept = {name: {k: v for k, v in score.items() if k != "precision"} for name, score in references.items()}
    print(table(evaluation.named(scores | kept, data.name)))
    results.save(
        figs,
        "gan_mnist_balance",
        config,
        data=data,
        count=len(data.test),
        metrics=evaluation.named(scores, data.name),
        baselines=evaluation.named(kept, data.name),
        seconds=seconds,
        device=cli.pick_device(config.device),
        discriminator_right={row["name"]: {side: row[side] for side in ("real", "fake")} for row in rows},
    )
    best, worst = (pick(rows, key=lambda row: row["distance"]) for pick in (min, max))
    print(
        f"Best: {best['name']}, distance {best['distance']:.2f}; worst: {worst['name']}, "
        f"{worst['distance']:.2f}. Picture: {figs}/GAN_mnist_balance.png"
    )
    return 0


def compare(
    config: Any, data: Digits, judge: evaluation.Judge, load: Callable[[str], Sampler], figs: Path
) -> int:
    """Writes with each of the three methods, scores what was written, and keeps the three in one file.

    Args:
        load: of a method to its sampler.

    Returns:
        the exit code.
    """
    found = {method: load(method) for method in inference.METHODS}
    count = len(data.characters)
    asked = torch.arange(WRITTEN) % count
    all_labels = torch.arange(len(data.test)) % count
    scores: dict[str, dict[str, float]] = {}
    by_class: dict[str, list[float]] = {}
    strips = {}
    begun = time.monotonic()
    for method, sampler in found.items():
        rng = torch.Generator().manual_seed(config.seed)
        drawing_began = time.monotonic()
        written, _ = sampler.draw(asked, rng)
        writing = time.monotonic() - drawing_began
        made, _ = sampler.draw(all_labels, rng)
        score = judge.score(made, all_labels)
        name = NAMES[method]
        scores[name] = {
            "asked": judge.score(written, asked)["asked"],
            "distance": score["distance"],
            "recall": score["recall"],
            # Method 2's picker has to be trained, too
            "training, minutes": sum(of["seconds"] for of in sampler.about["phases"].values()) / 60,
            "writing, ms a character": 1_000 * writing / WRITTEN,
            "million parameters": sampler.parameters() / 1e6,
        }
        by_class[name] = judge.distances(made, all_labels)
        strips[name] = written[: 2 * count]
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[: len(data.test)]
    by_class["real"] = judge.distances(data.train[order], data.train_labels[order])
    baselines = evaluation.baselines(judge, data.train, data.train_labels, data.test, data.test_labels)
    references = {name: {k: of[k] for k in ("asked", "distance", "recall")} for name, of in baselines.items()}
    print(table(evaluation.named(scores | references, data.name, gaps=True)))

    figures.compare(
        figs / "GAN_mnist_methods.png",
        strips,
        scores,
        by_class,
        data.characters,
        title="Three ways to write a character that was asked for",
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
        baselines=evaluation.named(references, data.name),
        seconds=time.monotonic() - begun,
        device=cli.pick_device(config.device),
        distance_by_class=by_class,
    )
    for sampler, of in zip(found.values(), scores.values(), strict=True):
        sampler.about["written"] = of
    together = config.runs / "gan_mnist-all" / "digits.safetensors"
    inference.save(together, found.values(), half=True)
    print(f"All three: {together}, {together.stat().st_size / 1e6:.1f} MB")
    best = max(scores, key=lambda name: scores[name]["asked"])
    asked_best = scores[best]["asked"]
    print(f"Read as asked most often: {best}, {asked_best:.2%}. Picture: {figs}/GAN_mnist_methods.png")
    return 0
