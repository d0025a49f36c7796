"""The two studies of the spam experiments: why the earlier set-up collapsed, and how RNN and LSTM scale."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from common import cli, results
from common.cli import UserError
from common.datasets import sms_spam
from common.datasets.sms_spam import Messages
from common.datasets.vocabulary import tokenize
from common.evaluation import spam as evaluation
from common.figures import spam as figures
from common.files import save_json
from common.inference import spam
from common.models.spam import PaddedNet, SpamLSTM, SpamRNN
from common.results import table
from common.training import loop
from common.training.run import Run

Fit = Callable[[Any, Callable[..., nn.Module], Messages, Run, str], spam.SpamFilter]
"""The script's own `fit`."""

CLASSIC_SEED = 42  # of the split that the earlier version used; its test part has 966 ham in 1,115
COLLAPSED_EPOCHS = 5
NETS: dict[str, Callable[..., nn.Module]] = {"RNN": SpamRNN, "LSTM": SpamLSTM}
BASE = {"embed_size": 32, "hidden_size": 32, "num_layers": 1}
SIZES = {"embed_size": (8, 16, 32, 64, 128), "hidden_size": (8, 16, 32, 64, 128), "num_layers": (1, 2, 3, 4)}
NAMES = {"embed_size": "embedding size", "hidden_size": "hidden size", "num_layers": "depth"}
SEEDS = 3


def collapse(
    config: Any,
    script: str,
    kind: str,
    fit: Fit,
    build: Callable[..., nn.Module],
    data: Messages,
    figs: Path,
    folder: Path,
    device: torch.device,
) -> int:
    """Trains the earlier set-up and one net of the repaired kind on the classic split, and draws both.

    The classic split keeps duplicates, so it flatters; it is used here because the earlier version used it.

    Returns:
        the exit code.
    """
    begun = time.monotonic()
    rest, test = train_test_split(
        np.arange(len(data)), test_size=0.2, stratify=data.labels, random_state=CLASSIC_SEED
    )
    known, unknown = data.part(np.sort(rest)), data.part(np.sort(test))
    settings = {"data": data.name, "study": "collapse", "seed": config.seed, "epochs": config.epochs}
    run = Run(
        folder.with_name(f"{folder.name}-collapse"), settings=settings, device=device, precision="float32"
    )

    # The earlier set-up
    lists = [tokenize(text.lower()) for text in known.texts]
    numbers = {word: i for i, word in enumerate(sorted(set(itertools.chain(*lists))), 1)}
    longest = max(len(tokenize(text)) for text in data.texts)

    def padded(texts: list[str]) -> Tensor:
        """Numbers of words, int64 [N,longest]; unknown words are left out."""
        rows = torch.zeros(len(texts), longest, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            found = [numbers[word] for word in tokenize(text.lower()) if word in numbers]
            row[: len(found)] = torch.tensor(found, dtype=torch.int64)
        return rows

    learn, kept = spam.parts(known.labels, 1, config.seed)[0]
    words, labels = padded(known.texts), torch.from_numpy(known.labels.astype(np.float32))

    def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in itertools.count(first):
            chosen = np.random.default_rng((config.seed, step)).choice(learn, 64, replace=False)
            yield words[chosen], labels[chosen]

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        return {"cross entropy": F.binary_cross_entropy_with_logits(net(batch[0]), batch[1])}

    def answers(net: nn.Module, rows: Tensor) -> np.ndarray:
        with torch.inference_mode():
            found = torch.cat([net(part.to(device)).cpu() for part in rows.split(256)])
        return (found > 0).numpy()

    def evaluate(net: nn.Module) -> dict[str, float]:
        score = evaluation.score_answers(known.labels[kept], answers(net, words[kept]))
        return {"validation_accuracy": score["accuracy"], "validation_f1": score["f1"]}

    earlier = PaddedNet(kind, len(numbers)).to(device)
    steps = max(1, COLLAPSED_EPOCHS * len(learn) // 64)
    loop.supervised(
        run,
        "earlier set-up",
        earlier,
        torch.optim.Adam(earlier.parameters(), 1e-3),
        loss,
        batches,
        steps=steps,
        schedule=lambda progress: 1.0,
        ema=0,
        evaluate=evaluate,
    )
    said = {"earlier set-up": answers(earlier, padded(unknown.texts))}

    # The repaired one: a single net, not the committee, so that the set-up is what differs
    repaired = fit(replace(config, members=1), build, known, run, "repaired")
    said["repaired"] = repaired.probabilities(unknown.texts) >= 0.5
    run.finish()

    # Figure
    scores = {name: evaluation.score_answers(unknown.labels, answer) for name, answer in said.items()}
    baselines = {"majority class": evaluation.score_answers(unknown.labels, np.zeros(len(unknown), bool))}
    majority = baselines["majority class"]["accuracy"]
    print(table(scores | baselines, digits=4))
    curves = {}
    for name in said:
        rows = [row for row in run.history if row["phase"] == name and "validation_accuracy" in row]
        curves[name] = (
            np.array([row["step"] for row in rows]),
            np.array([row["validation_accuracy"] for row in rows]),
        )
    figures.collapse(
        figs / f"{script}_collapse.png",
        lengths=np.array([len(tokenize(text)) for text in data.texts]),
        longest=longest,
        curves=curves,
        majority=majority,
        matrices={name: evaluation.confusion(unknown.labels, answer) for name, answer in said.items()},
        title=f"Why {majority:.2%} was no result: the {kind} read padding, and answered ham to everything",
        caption=f"{data.name}, {len(data):,} messages with duplicates, the split of the earlier version; "
        f"{len(unknown):,} test messages, {int((~unknown.labels).sum()):,} of them ham.",
    )
    results.save(
        figs,
        f"{script}_collapse",
        config,
        data=data,
        count=len(unknown),
        metrics=scores,
        baselines=baselines,
        seconds=time.monotonic() - begun,
        device=device,
        trained=run.record,
    )
    collapsed = scores["earlier set-up"]["accuracy"] == majority
    print(
        f"The earlier set-up is right about {scores['earlier set-up']['accuracy']:.2%}, the majority class "
        f"about {majority:.2%}, the repaired {kind} about {scores['repaired']['accuracy']:.2%}. "
        f"Picture: {figs}/{script}_collapse.png"
    )
    if not collapsed:
        print("It has not collapsed this time: it says more than ham to everything.")
    return 0


def sweep(config: Any, fit: Fit, data: Messages, figs: Path, folder: Path, device: torch.device) -> int:
    """Trains single RNNs and LSTMs, one size changed at a time, all on the same splits, and draws them.

    With `--resume` points that are done are not trained again. Scores are of test parts; nothing was chosen
    by them.

    Returns:
        the exit code.
    """
    folder = folder.with_name(f"rnn_scaling{'-quick' if config.quick else ''}")
    settings = {"data": data.name, "messages": len(data), "epochs": config.epochs, "seed": config.seed}
    points = _done(folder / "points.json", settings) if config.resume else {}
    varied = {name: values[-2:] if config.quick else values for name, values in SIZES.items()}
    seeds = list(range(config.seed, config.seed + (1 if config.quick else SEEDS)))

    # Train
    rows = []
    for kind, (name, values) in itertools.product(NETS, varied.items()):
        for value in values:
            sizes = BASE | {name: value}
            each = []
            for seed in seeds:
                key = f"{kind} {sizes} seed {seed}"
                if key not in points:
                    chosen = replace(config, **sizes, members=1, seed=seed, resume=False)
                    points[key] = _point(chosen, kind, fit, data, folder, device)
                    save_json(folder / "points.json", {"settings": settings, "points": points})
                    print(f"{key}: accuracy {points[key]['accuracy']:.4f}, F1 {points[key]['f1']:.3f}")
                each.append(points[key])
            rows.append(
                {
                    "kind": kind,
                    "vary": NAMES[name],
                    "value": value,
                    "parameters": each[0]["parameters"],
                    "accuracy": [point["accuracy"] for point in each],
                    "f1": [point["f1"] for point in each],
                    "seconds": [point["seconds"] for point in each],
                }
            )

    # Beside the baselines
    simple: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        known, unknown = (data.part(index) for index in sms_spam.folds(data.labels, 5, seed)[0])
        found = evaluation.baselines(known.texts, known.labels, unknown.texts, seed)
        for name, answer in found.items():
            simple.setdefault(name, []).append(evaluation.score_answers(unknown.labels, answer))
    baselines = {name: evaluation.mean_and_deviation(scores) for name, scores in simple.items()}
    metrics = {
        f"{row['kind']}, {row['vary']} {row['value']}": {
            "parameters": row["parameters"],
            **evaluation.mean_and_deviation(
                [{"accuracy": a, "f1": f} for a, f in zip(row["accuracy"], row["f1"], strict=True)]
            ),
        }
        for row in rows
        if row["vary"] == NAMES["hidden_size"]
    }

    # Figure
    figures.scaling(
        figs / "rnn_scaling.png",
        rows,
        {name: score for name, score in baselines.items() if name != "majority class"},
        title="Do vanilla RNNs scale? Single nets of many sizes, RNN and LSTM",
        caption=f"{data.name}, {len(data):,} messages. One size is changed, the others are 32, 32 and 1. "
        f"Mean and deviation of {len(seeds)} splits and seeds, test messages. Majority class: "
        f"{baselines['majority class']['accuracy']:.2%}, F1 0.",
        counted="parameters without the embedding table",
    )
    results.save(
        figs,
        "rnn_scaling",
        config,
        data=data,
        count=len(data),
        metrics=metrics,
        baselines=baselines,
        seconds=sum(sum(row["seconds"]) for row in rows),
        device=device,
        points=rows,
    )
    for kind in NETS:
        means = [float(np.mean(row["accuracy"])) for row in rows if row["kind"] == kind]
        print(f"{kind}: accuracy {min(means):.2%} to {max(means):.2%} over all sizes")
    print(f"Picture: {figs}/rnn_scaling.png")
    return 0


def _point(
    config: Any, kind: str, fit: Fit, data: Messages, folder: Path, device: torch.device
) -> dict[str, float]:
    """One net of one size, trained and tested on the first fold of its seed."""
    cli.seed_everything(config.seed)
    known, unknown = (data.part(index) for index in sms_spam.folds(data.labels, 5, config.seed)[0])
    run = spam.start(config, data, folder, device)
    net = fit(config, NETS[kind], known, run, "fit")
    run.finish()
    table_size = sum(p.numel() for name, p in net.net.named_parameters() if ".embedding." in name)
    score = evaluation.score(unknown.labels, net.probabilities(unknown.texts))
    return {
        "parameters": sum(p.numel() for p in net.net.parameters()) - table_size,
        "accuracy": score["accuracy"],
        "f1": score["f1"],
        "seconds": run.record["fit"]["seconds"],
    }


def _done(path: Path, settings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The points of a sweep that was stopped.

    Raises:
        Refused: there are none, or of other settings.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, points = content["settings"], dict(content["points"])
    except FileNotFoundError:
        raise UserError(f"--resume: there is no {path}; start without --resume") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--resume: {path} is damaged; remove it and start without --resume") from None
    if found != settings:
        raise UserError(f"--resume: {path} is of {found}, now it is {settings}; start without --resume")
    return points
