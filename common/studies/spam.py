"""Three studies of the spam experiments: why the earlier set-up collapsed, how RNN and LSTM scale, and what
they are worth on messages of another time and place."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
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
from common.files import parse_json, save_json
from common.inference.spam import SpamFilter
from common.models.spam import PaddedClassifier, SpamClassifier
from common.training import loop
from common.training.run import Run

Build = partial[SpamClassifier]
Fit = Callable[[Any, Build, Messages, Run, str], SpamFilter]
"""The script's own `fit`."""

CLASSIC_SEED = 42  # of the split that the earlier version used; its test part has 966 ham in 1,115
COLLAPSED_EPOCHS = 5
BASE = {"embed_size": 32, "hidden_size": 32, "num_layers": 1}
SIZES = {"embed_size": (8, 16, 32, 64, 128), "hidden_size": (8, 16, 32, 64, 128), "num_layers": (1, 2, 3, 4)}
NAMES = {"embed_size": "embedding size", "hidden_size": "hidden size", "num_layers": "depth"}
SEEDS = 3


HEADS = {
    "RNN": lambda size, dropout: nn.Linear(size, 1),
    "LSTM": lambda size, dropout: nn.Sequential(
        nn.Linear(size, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 1)
    ),
}
MODELS = {  # those of the two scripts, which a study does not import
    kind: partial(SpamClassifier, cell=getattr(nn, kind), head=head) for kind, head in HEADS.items()
}


# ------------------------------------------------------------------------------------------- --collapse


def collapse(
    config: Any, script: str, kind: str, fit: Fit, build: Build, data: Messages, device: torch.device
) -> int:
    """Trains the earlier set-up and one model of the repaired kind on the classic split, and draws both.

    The classic split keeps duplicates, so it flatters; it is used here because the earlier version used it.
    """
    start = time.monotonic()
    indices = train_test_split(
        np.arange(len(data)), test_size=0.2, stratify=data.labels, random_state=CLASSIC_SEED
    )
    train, test = (data.part(np.sort(index)) for index in indices)
    settings = {"data": data.name, "study": "collapse", "seed": config.seed, "epochs": config.epochs}
    run = Run(config.run_dir(f"{script}-collapse"), settings=settings, device=device, precision="float32")

    # Train; the repaired one is a single model, not the ensemble, so that the set-up is what differs
    lengths = np.array([len(tokenize(text)) for text in data.texts])
    answers = {"earlier set-up": _earlier_set_up(run, kind, train, test, lengths.max(), config.seed)}
    repaired = fit(replace(config, n_models=1), build, train, run, "repaired")
    answers["repaired"] = repaired.probabilities(test.texts) >= 0.5
    run.finish()
    everything = answers | {"majority class": np.zeros(len(test), bool)}
    scores = {name: evaluation.score_answers(test.labels, answer) for name, answer in everything.items()}
    print(results.table(scores, digits=4))
    earlier, best, majority = (score["accuracy"] for score in scores.values())
    baselines = {"majority class": scores.pop("majority class")}

    # Figure
    figs, name = config.figs_dir(data.builtin), f"{script}_collapse"
    path = figs / f"{name}.png"
    evaluated = pd.DataFrame(run.history).dropna(subset="validation_accuracy").groupby("phase", sort=False)
    figures.collapse(
        path,
        lengths,
        {method: table.to_numpy().T for method, table in evaluated[["step", "validation_accuracy"]]},
        test.labels,
        answers,
        title=f"Why {majority:.2%} was no result: the {kind} read padding, and answered ham to everything",
        caption=f"{data.name}, {len(data):,} messages with duplicates, the split of the earlier version; "
        f"{len(test):,} test messages, {int((~test.labels).sum()):,} of them ham.",
    )
    about: dict[str, Any] = {
        "data": data,
        "count": len(test),
        "device": device,
        "seconds": time.monotonic() - start,
    }
    results.save(figs, name, config, metrics=scores, baselines=baselines, trained=run.record, **about)
    print(
        f"The earlier set-up is right about {earlier:.2%}, the majority class about {majority:.2%}, the "
        f"repaired {kind} about {best:.2%}. Figure: {results.where(path, data)}"
    )
    if earlier != majority:
        print("It has not collapsed this time: it says more than ham to everything.")
    return 0


def _earlier_set_up(
    run: Run, kind: str, train: Messages, test: Messages, longest: int, seed: int
) -> np.ndarray:
    """Trains the earlier net as the earlier version did; returns its answers to `test`, bool [N]."""
    lists = [tokenize(text.lower()) for text in train.texts]
    numbers = {word: i for i, word in enumerate(sorted(set(itertools.chain(*lists))), 1)}

    def padded(messages: Messages) -> Tensor:
        """Numbers of words, int64 [N,longest]; words that are not in the vocabulary are left out."""
        rows = torch.zeros(len(messages), longest, dtype=torch.int64)
        for row, text in zip(rows, messages.texts, strict=True):
            words = [numbers[word] for word in tokenize(text.lower()) if word in numbers]
            row[: len(words)] = torch.tensor(words, dtype=torch.int64)
        return rows

    words, labels = padded(train), torch.from_numpy(train.labels.astype(np.float32))
    index, validation = sms_spam.folds(train.labels, 10, seed)[0]

    def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in itertools.count(first):
            batch = np.random.default_rng((seed, step)).choice(index, 64, replace=False)
            yield words[batch], labels[batch]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], progress: float) -> loop.Losses:
        return {"cross entropy": F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])}

    @torch.inference_mode()
    def answers(model: nn.Module, rows: Tensor) -> np.ndarray:
        return (torch.cat([model(part.to(run.device)).cpu() for part in rows.split(256)]) > 0).numpy()

    def evaluate(model: nn.Module) -> dict[str, float]:
        score = evaluation.score_answers(train.labels[validation], answers(model, words[validation]))
        return {"validation_accuracy": score["accuracy"], "validation_f1": score["f1"]}

    model = PaddedClassifier(kind, len(numbers)).to(run.device)
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    steps = max(1, COLLAPSED_EPOCHS * len(index) // 64)
    plain: dict[str, Any] = {"schedule": lambda progress: 1.0, "ema": 0}
    loop.supervised(
        run, "earlier set-up", model, adam, loss, batches, steps=steps, evaluate=evaluate, **plain
    )
    return answers(model, padded(test))


# -------------------------------------------------------------------------------------------- --test-on


def elsewhere(config: Any, script: str, spam_filter: SpamFilter, data: Messages, device: torch.device) -> int:
    """Scores a trained filter on messages of other times and places, beside baselines that learn from the
    messages that it was trained on.

    Raises:
        UserError: the filter was trained on other messages than the first fold of `data`.
    """
    start, about, kind = time.monotonic(), spam_filter.about, spam_filter.about["kind"]
    train = data.part(sms_spam.folds(data.labels, 5, config.seed)[0][0])
    if (about["data"], about["messages"]) != (data.name, len(train)):
        theirs = f"these weights learned from {about['messages']:,} messages of {about['data']}"
        here = f"here the baselines would learn from {len(train):,} of {data.name}"
        raise UserError(f"--test-on: {theirs}, {here}; give --data, --seed and --quick of their training")
    test = sms_spam.find_elsewhere(config.test_on, train)
    print(f"Test on: {test.name}; {test}\n{test.note}".strip())

    odds = {kind: spam_filter.log_odds(test.texts)}
    odds |= evaluation.simple_log_odds(train.texts, train.labels, test.texts, config.seed)
    scores = {name: evaluation.score_ranking(test.labels, values) for name, values in odds.items()}
    print(results.table(scores))

    # Figure
    figs, name = config.figs_dir(data.builtin), f"{script}_elsewhere"
    path = figs / f"{name}.png"
    title = f"Spam elsewhere: {kind} and baselines on messages of another kind"
    caption = f"Trained on {len(train):,} messages of {data.name}, tested on {test.name}: {test}."
    figures.elsewhere(path, test.labels, odds, scores, title=title, caption=caption)
    net = scores.pop(kind)
    about = {"data": test, "count": len(test), "device": device, "seconds": time.monotonic() - start}
    results.save(figs, name, config, metrics={kind: net}, baselines=scores, **about)
    own = f"recall {net['recall']:.2f} at its own threshold, with {net['false_alarms']:.1%} false alarms"
    at_one, svm = (score["recall at 1 % false alarms"] for score in (net, scores["SVM on characters"]))
    closing = f"{kind}: {own}; at 1 % {at_one:.2f} (SVM on characters {svm:.2f})"
    print(f"{closing}. Figure: {results.where(path, data)}")
    return 0


# ---------------------------------------------------------------------------------------------- --sweep


def sweep(config: Any, fit: Fit, data: Messages, device: torch.device) -> int:
    """Trains single RNNs and LSTMs of many sizes, each with some seeds, and draws their scores.

    Each point is written to the run's folder when it is there; `--resume` goes on after the last one.
    """
    splits = {}
    for seed in range(config.seed, config.seed + (1 if config.quick else SEEDS)):
        train_index, test_index = sms_spam.folds(data.labels, 5, seed)[0]
        splits[seed] = data.part(train_index), data.part(test_index)
    rows = _train_all(config, fit, data, splits, device)
    simple: dict[str, list[dict[str, float]]] = {}
    for seed, (train, test) in splits.items():
        for name, answer in evaluation.baselines(train.texts, train.labels, test.texts, seed).items():
            simple.setdefault(name, []).append(evaluation.score_answers(test.labels, answer))
    baselines = {name: evaluation.mean_and_deviation(scores) for name, scores in simple.items()}
    metrics = {
        f"{row['kind']}, {row['vary']} {row['value']}": {"parameters": row["parameters"]}
        | evaluation.mean_and_deviation({name: row[name] for name in ("accuracy", "f1")})
        for row in rows
        if row["vary"] == NAMES["hidden_size"]
    }

    # Figure
    figs = config.figs_dir(data.builtin)
    path = figs / "rnn_scaling.png"
    figures.scaling(
        path,
        rows,
        {name: score for name, score in baselines.items() if name != "majority class"},
        title="Do vanilla RNNs scale? Single models of many sizes, RNN and LSTM",
        caption=f"{data.name}, {len(data):,} messages. The number at a point is the size that is changed; "
        "else embedding and state have 32, in 1 layer. Mean and deviation of "
        f"{len(splits)} splits and seeds, test messages. Majority class: "
        f"{baselines['majority class']['accuracy']:.2%}, F1 0.",
    )
    seconds = sum(sum(row["seconds"]) for row in rows)
    about: dict[str, Any] = {"data": data, "count": len(data), "device": device, "seconds": seconds}
    results.save(figs, "rnn_scaling", config, metrics=metrics, baselines=baselines, points=rows, **about)
    for kind in MODELS:
        means = [float(np.mean(row["accuracy"])) for row in rows if row["kind"] == kind]
        print(f"{kind}: accuracy {min(means):.2%} to {max(means):.2%} over all sizes")
    print(f"Figure: {results.where(path, data)}")
    return 0


def _train_all(
    config: Any, fit: Fit, data: Messages, splits: dict[int, tuple[Messages, Messages]], device: torch.device
) -> list[dict[str, Any]]:
    """A row for each model and size: kind, vary, value, parameters, and by seed accuracy, f1 and seconds."""
    path = config.run_dir("rnn_scaling") / "points.json"
    settings = {"data": data.name, "messages": len(data), "epochs": config.epochs, "seed": config.seed}
    points = _read_points(path, settings) if config.resume else {}
    rows = []
    for kind, (name, values) in itertools.product(MODELS, SIZES.items()):
        for value in values[-2:] if config.quick else values:
            sizes = BASE | {name: value}
            keys = {seed: f"{kind} {sizes} seed {seed}" for seed in splits}
            for seed, key in keys.items():
                if key not in points:
                    chosen = replace(config, **sizes, n_models=1, seed=seed, resume=False)
                    points[key] = _train_one(chosen, kind, fit, *splits[seed], path.parent, device)
                    save_json(path, {"settings": settings, "points": points})
                    print(f"{key}: accuracy {points[key]['accuracy']:.4f}, F1 {points[key]['f1']:.3f}")
            point = pd.DataFrame([points[key] for key in keys.values()]).to_dict("list")
            point["parameters"] = point["parameters"][0]
            rows.append({"kind": kind, "vary": NAMES[name], "value": value} | point)
    return rows


def _train_one(
    config: Any, kind: str, fit: Fit, train: Messages, test: Messages, run_dir: Path, device: torch.device
) -> dict[str, float]:
    """One model of one size, trained and tested on the first fold of its seed."""
    cli.seed_everything(config.seed)
    run = Run(run_dir, settings={}, device=device, precision="float32")  # never resumed: it takes seconds
    spam_filter = fit(config, MODELS[kind], train, run, "fit")
    run.finish()
    counts = {name: weight.numel() for name, weight in spam_filter.ensemble.named_parameters()}
    score = evaluation.score_answers(test.labels, spam_filter.probabilities(test.texts) >= 0.5)
    return {
        "parameters": sum(count for name, count in counts.items() if ".embedding." not in name),
        "accuracy": score["accuracy"],
        "f1": score["f1"],
        "seconds": run.record["fit"]["seconds"],
    }


def _read_points(path: Path, settings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The points of a sweep that was stopped; a UserError where there are none, or of other settings."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        old, points = content["settings"], dict(content["points"])
    except FileNotFoundError:
        raise UserError(f"--resume: there is no {path}; start without --resume") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--resume: {path} is damaged; remove it and start without --resume") from None
    if old != settings:
        raise UserError(f"--resume: {path} is of {old}, now it is {settings}; start without --resume")
    return points
