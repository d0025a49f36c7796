"""Figures of the spam experiments: how a classifier learned, where it is wrong, and the two claims on RNNs.

Drawn on the pages of `figures.page`, so each PNG carries its title, its caption and the command that made it.
`heading` is title and caption. All raise a UserError where the PNG cannot be written to `path`.
"""

import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import SubFigure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, PercentFormatter
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from common.evaluation.spam import Fold, calibration_error, confusion, score_answers
from common.figures.page import BLUE, DASHES, GREEN, GREY, ORANGE, PINK, WIDTH, head, label_points, new_page
from common.results import Scores

COLUMNS = 5  # of confusion matrices
CURVES, MATRICES, CALIBRATION = 400, 370, 430  # pixels: heights of the rows of a report
HEADING: dict[str, Any] = {"x": 0.01, "ha": "left", "weight": "bold", "fontsize": "medium"}
LEARNING = (  # panel, column of the history, label, colour
    (0, "loss", "batches", "#bbbbbb"),
    (0, "train_loss", "training", BLUE),
    (0, "validation_loss", "validation", ORANGE),
    (1, "train_accuracy", "training", BLUE),
    (1, "validation_accuracy", "validation", ORANGE),
    (2, "validation_f1", "validation", ORANGE),
)


def report(
    path: Path,
    kind: str,
    folds: Sequence[Fold],
    scores: Scores,
    history: list[dict[str, Any]],
    **heading: str,
) -> None:
    """One page on one classifier: learning curves, confusion matrices beside the baselines', calibration. It
    replaces what `save_training` has drawn.

    `kind` is the ensemble. `scores` are by method `accuracy` and `f1`, and if known their deviations
    `accuracy_sd` and `f1_sd`. `history` is that of a `Run` with a phase for each fold: rows with `loss`, the
    sum over all models, are of training batches, those with `validation_loss` of evaluations.
    """
    truth = np.concatenate([fold.messages.labels for fold in folds])
    probability = np.concatenate([fold.probability for fold in folds])
    n_models = len(folds[0].answers.get(f"{kind}, single model", [None]))
    matrices = {
        name: confusion(truth, np.concatenate([fold.answers[name][0] for fold in folds]))
        for name, answers in folds[0].answers.items()
        if len(answers) == 1
    }
    rows = math.ceil(len(matrices) / COLUMNS)
    calibration = CURVES + 40 + rows * MATRICES
    with new_page(path, WIDTH, calibration + CALIBRATION, **heading) as page:
        _learning(page.charts(0, CURVES), history, n_models, scores["majority class"]["accuracy"])
        words = "Test messages: what they are, and what each method says"
        _matrices(page.charts(CURVES, calibration - CURVES), words, matrices, scores, rows, COLUMNS)
        _calibration(page.charts(calibration), truth, probability)
    _training(path).unlink(missing_ok=True)


def save_training(
    path: Path, kind: str, history: list[dict[str, Any]], n_models: int, labels: np.ndarray
) -> None:
    """Draws the learning curves so far beside the report that will be in `path`; before the first step,
    nothing. `labels` are of all messages, bool [N].
    """
    if any(row["step"] for row in history):
        title = "{}, while it trains: {phase}, step {step:,}".format(kind, **history[-1])
        with new_page(_training(path), WIDTH, CURVES, title, "") as page:
            _learning(page.charts(), history, n_models, max(labels.mean(), 1 - labels.mean()))


def _training(report: Path) -> Path:
    return report.with_name(f"{report.stem}_training.png")


def collapse(
    path: Path,
    lengths: np.ndarray,
    curves: dict[str, np.ndarray],
    truth: np.ndarray,
    answers: dict[str, np.ndarray],
    **heading: str,
) -> None:
    """Why a net that reads its state after the padding answers the more frequent class to everything.

    `lengths` are tokens of each message, int [N]; all were padded to the longest. By set-up, the collapsed
    one, then the repaired: `curves`, steps and accuracy, [2,K], and `answers` to test messages, bool [M].
    """
    majority = max(truth.mean(), 1 - truth.mean())
    matrices = {name: confusion(truth, answer) for name, answer in answers.items()}
    scores = {name: score_answers(truth, answer) for name, answer in answers.items()}
    with new_page(path, WIDTH, 960, **heading) as page:
        _padding(page.charts(0, 510).subplots(), lengths)

        axes = page.charts(510, width=750).subplots()
        for colour, (name, (steps, accuracy)) in zip((ORANGE, BLUE), curves.items(), strict=True):
            axes.plot(steps, accuracy, color=colour, linewidth=3, label=name)
        _accuracy_axis(axes, majority, f"majority: {majority:.2%}")
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        head(axes, "2. What it learned: accuracy on validation messages")

        _matrices(page.charts(510, x=760), "3. What it answers to test messages", matrices, scores, 1, 2)


def elsewhere(
    path: Path, truth: np.ndarray, odds: dict[str, np.ndarray], scores: Scores, **heading: str
) -> None:
    """ROC curves, and beside them recall at each method's own threshold and at equal false alarms.

    By method, the net first: `odds`, float [N], spam where they are above 0, and of them `score_ranking`.
    `truth` is bool [N].
    """
    methods = [name for name in scores if name != "majority class"]
    lowest = 0.5 / (~truth).sum()  # of false alarms: to the left of it there are none
    with new_page(path, WIDTH, 620, **heading) as page:
        roc, recalls = page.charts().subplots(1, 2)
        for y, (name, colour) in enumerate(zip(methods, (BLUE, GREEN, PINK, ORANGE), strict=True)):
            score = scores[name]
            own, equal = score["recall"], score["recall at 1 % false alarms"]
            false_alarms, recall, _ = roc_curve(truth, odds[name])
            line = {"color": colour, "linewidth": 1.6 if y else 3, "where": "post"}
            roc.step(
                np.maximum(false_alarms, lowest), recall, label=f"{name}, AUC {score['AUC']:.3f}", **line
            )
            point = {"color": colour, "markersize": 11, "markeredgecolor": "white", "clip_on": False}
            roc.plot(max(score["false_alarms"], lowest), own, "o", zorder=3, **point)

            recalls.plot([own, equal], [y, y], color=GREY, zorder=1)
            recalls.plot(own, y, "o", **point)
            recalls.plot(equal, y, "D", **point)
            words = f"own {own:.2f} with {score['false_alarms']:.1%} false alarms; at 1 % {equal:.2f}"
            recalls.text(0.01, y - 0.15, words)
        roc.axvline(0.01, color=GREY, linestyle="--")
        roc.set(xscale="log", xlim=(lowest, 1), ylim=(0, 1.02))
        roc.set(xlabel="false alarms: share of ham", ylabel="recall of spam")
        roc.xaxis.set_major_formatter("{x:g}")
        roc.set_title("ROC curves; dot: a method's own threshold")
        roc.legend(loc="lower right")
        recalls.set(xlim=(0, 1), ylim=(len(methods) - 0.6, -0.6), xlabel="recall of spam")
        recalls.set_yticks(range(len(methods)), methods)
        recalls.set_title("The same dot; diamond: at 1 % false alarms")


def scaling(path: Path, rows: Sequence[dict[str, Any]], baselines: Scores, **heading: str) -> None:
    """Accuracy and F1 against the number of parameters, for each setting that was varied.

    Parameters are counted without the embedding table, which can be many times the rest and hides it: small
    models would all lie in one place (as Kaplan et al. 2020, section 2.1, count).

    `rows` are points: `kind` of model, the setting to `vary`, its `value`, `parameters`, and `accuracy` and
    `f1`, lists with a number for each seed; error bars are sample deviations. `baselines` have `accuracy` and
    `f1` by method; those far from the models' scores would flatten the rest.
    """
    points = pd.DataFrame(rows)
    kinds, varied = points.kind.unique(), points.vary.unique()
    labels: dict[Axes, list[tuple[str, tuple[float, float], str]]] = defaultdict(list)
    bars: dict[Axes, list[tuple[float, float]]] = defaultdict(list)  # points along them
    with new_page(path, WIDTH, 930, **heading) as page:
        chart = page.charts()
        panels = chart.subplots(2, len(varied), squeeze=False, sharey="row")
        for axes, (metric, vary) in zip(panels.flat, product(("accuracy", "f1"), varied), strict=True):
            lines = points[points.vary == vary].sort_values("parameters", kind="stable")
            _parameters_axis(axes, lines.parameters)
            for dash, (method, level) in zip(DASHES, baselines.items(), strict=False):
                axes.axhline(level[metric], color=GREY, linestyle=dash, label=method)
            axes.set_title(f"{metric.title()} by {vary}")
            for kind, colour, side in zip(kinds, (ORANGE, BLUE), (-1, 1), strict=False):
                line = lines[lines.kind == kind]
                seeds = pd.DataFrame(line[metric].tolist())
                mean, spread = seeds.mean(axis=1), seeds.std(axis=1).fillna(0.0)
                axes.errorbar(line.parameters, mean, spread, color=colour, marker="o", capsize=4, label=kind)
                # the value of the setting, below the bars of the first kind, above those of the other
                ends = zip(line.value.map("{:,}".format), line.parameters, mean + side * spread, strict=True)
                labels[axes] += [(value, (x, y), colour) for value, x, y in ends]
                for y in mean.to_numpy() + np.linspace(-1, 1, 21)[:, None] * spread.to_numpy():
                    bars[axes] += zip(line.parameters, y, strict=True)
            axes.margins(y=0.12)
        for axes in panels[:, 0]:
            axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
            axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        for axes in panels[-1]:
            axes.set_xlabel("parameters without the embedding table")
        handles, names = panels[0, 0].get_legend_handles_labels()
        order = np.roll(range(len(names)), len(kinds))  # the models first
        legend = zip(*((handles[i], names[i]) for i in order), strict=True)
        chart.legend(*legend, loc="outside upper left", ncols=len(names))
        for axes, label in labels.items():
            values, places, colours = zip(*label, strict=True)
            label_points(page, axes, values, [*places, *bars[axes]])
            for text, colour in zip(axes.texts, colours, strict=True):
                text.set_color(colour)


# ----------------------------------------------------------------------------------------- the panels


def _learning(figure: SubFigure, history: list[dict[str, Any]], n_models: int, majority: float) -> None:
    """Loss, accuracy and F1 over the steps: means over folds, and a thin line for each."""
    rows = pd.DataFrame(history).assign(loss=lambda table: table.loss / n_models)
    panels = figure.subplots(1, 3)
    for panel, name, label, colour in LEARNING:
        phases = rows.dropna(subset=name).groupby("phase", sort=False)
        lines = [phase[["step", name]].to_numpy(float).T for _, phase in phases]  # each [2,K]
        light = name == "loss"
        style: dict[str, Any] = {"color": colour, "linewidth": 1 if light else 2.5, "label": label}
        if len(lines) > 1 and not light:
            for line in lines:
                panels[panel].plot(*line, color=colour, linewidth=0.8, alpha=0.5)
        # folds differ by a message or two, so their evaluations may lie at slightly different steps
        steps = lines[0][0]
        values = np.array([np.interp(steps, *line) for line in lines])
        values[-1, steps > lines[-1][0, -1]] = np.nan  # the last fold may still be at work
        panels[panel].plot(steps, np.nanmean(values, axis=0), **style)
    panels[0].set_ylim(bottom=0)
    _accuracy_axis(panels[1], majority, "majority")
    panels[2].set_ylim(0, 1.02)
    count = rows.phase.nunique()
    for axes, name in zip(panels, ("Loss", "Accuracy", "F1"), strict=True):
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("step")
        head(axes, f"{name}, mean of {count} folds" if count > 1 else name)


def _padding(axes: Axes, lengths: np.ndarray) -> None:
    """Some messages as they went into the earlier net, from short to long."""
    longest = int(lengths.max())
    sample = np.quantile(lengths, np.linspace(0, 1, 41), method="nearest")
    rows, middle = np.arange(len(sample)), len(sample) // 2
    median = int(sample[middle])
    axes.barh(rows, sample, 0.8, color=BLUE, label="words: all that the repaired net reads")
    axes.barh(rows, longest - sample, 0.8, sample, color="#dddddd", label="padding")
    axes.axvline(longest, color=ORANGE, linewidth=6, label="here the collapsed net's state was read")
    axes.set(xlim=(0, 1.005 * longest), ylim=(-0.6, len(sample) - 0.4), yticks=[], xlabel="token")
    axes.grid(False)
    words = f"median message: {median:,} tokens, then {longest - median:,} of padding"
    box, arrow = {"facecolor": "white", "edgecolor": GREY}, {"arrowstyle": "->"}
    place = (0.6 * longest, middle)
    axes.annotate(words, (median, middle), place, va="center", ha="center", bbox=box, arrowprops=arrow)
    head(axes, f"1. What the net was given: each row is a message, padded to {longest:,} tokens")


def _matrices(
    figure: SubFigure, heading: str, matrices: dict[str, np.ndarray], scores: Scores, rows: int, columns: int
) -> None:
    """Confusion matrices: counts, shares of the row, right ones blue; accuracy and F1 under them."""
    figure.suptitle(heading, **HEADING)
    squares = figure.subplots(rows, columns, squeeze=False).flat
    for i, ((name, matrix), axes) in enumerate(zip(matrices.items(), squares, strict=False)):
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)  # [2,2]
        colours = np.empty((2, 2, 4))
        for row, column in np.ndindex(2, 2):
            share = shares[row, column]
            colours[row, column] = to_rgba(BLUE if row == column else ORANGE, 0.06 + 0.5 * share)
            axes.text(column, row, f"{matrix[row, column]:,}\n{share:.1%}", ha="center", va="center")
        axes.imshow(colours)
        axes.set_xticks([0, 1], ["says ham", "spam"])
        axes.set_yticks([0, 1], ["is\nham", "is\nspam"] if i % columns == 0 else ["", ""])
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_title("\n".join(textwrap.wrap(name, 20, max_lines=2, placeholder=" ...")))
        # four digits without the zero before the point: five matrices stand side by side
        digits = {key: f"{value:.4f}".removeprefix("0") for key, value in scores[name].items()}
        lines = [
            f"{label} {digits[key]}" + (f" ± {digits[f'{key}_sd']}" if scores[name].get(f"{key}_sd") else "")
            for key, label in (("accuracy", "accuracy"), ("f1", "F1"))
        ]
        axes.set_xlabel("\n".join(lines), loc="left")
    for axes in squares:  # those that are left
        axes.set_visible(False)


def _calibration(figure: SubFigure, truth: np.ndarray, probability: np.ndarray) -> None:
    """Reliability diagram, and how many messages are in each of its bins."""
    diagram, bins = figure.subplots(1, 2)
    share, mean = calibration_curve(truth, probability, n_bins=10)
    diagram.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfect")
    diagram.plot(mean, share, "o-", color=BLUE, markersize=8, label="messages, in ten bins", clip_on=False)
    diagram.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of spam", ylabel="share that is spam")
    head(diagram, f"Calibration, expected error (ECE) {calibration_error(truth, probability):.4f}")

    edges = np.linspace(0, 1, 11)
    for label, colour, index, shift in (("ham", GREEN, ~truth, 0.007), ("spam", PINK, truth, 0.05)):
        counts, _ = np.histogram(probability[index], edges)
        bins.bar(edges[:-1] + shift, counts, 0.043, align="edge", color=colour, label=label)
    for edge, count in zip(edges[:-1], np.histogram(probability, edges)[0], strict=True):
        bins.text(edge + 0.05, 1.15 * max(count, 0.7), f"{count:,}", ha="center", fontsize="small")
    bins.set(yscale="log", xlim=(0, 1), ylim=(0.7, 4 * len(truth)), xlabel="probability of spam")
    bins.yaxis.set_major_formatter("{x:,.0f}")
    head(bins, "Messages in each bin")


def _parameters_axis(axes: Axes, parameters: pd.Series) -> None:
    low, high = parameters.min() / 1.3, parameters.max() * 1.3
    narrow = high < 10 * low  # LogLocator would find too few ticks or too many
    axes.set(xscale="log", xlim=(low, high))
    axes.xaxis.set_major_locator(MaxNLocator(4) if narrow else LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter("")


def _accuracy_axis(axes: Axes, majority: float, label: str) -> None:
    """In percent, from a little below the majority rate to 1; a first step far below falls out."""
    room = max(1 - majority, 0.1)
    lowest = min([majority, *(np.asarray(line.get_ydata())[-1] for line in axes.lines)])
    axes.axhline(majority, color="black", linestyle="--", label=label)
    axes.set_ylim(max(0, lowest - 0.5 * room), 1 + 0.05 * room)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(5))
