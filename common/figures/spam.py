"""Figures of the spam experiments: how a classifier learned, where it is wrong, and the two claims on RNNs.

Drawn on the pages of `figures.page`, so each PNG carries its title, its caption and the command that made it.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import SubFigure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, PercentFormatter
from sklearn.calibration import calibration_curve

from common.evaluation.spam import Fold, calibration_error, confusion
from common.figures.page import BLUE, GREEN, GREY, ORANGE, PINK, WIDTH, label_points, new_page
from common.results import Scores

DASHES = ("--", ":", "-.", (0, (8, 2, 1, 2, 1, 2)))
COLUMNS = 5  # of confusion matrices
CURVES, MATRICES, CALIBRATION = 400, 370, 430  # pixels: heights of the rows of a report
HEADING: dict[str, Any] = {"x": 0.01, "ha": "left", "weight": "bold", "fontsize": "medium"}
LEGEND = {"borderaxespad": 0.2, "borderpad": 0, "handlelength": 1.2, "handletextpad": 0.4, "columnspacing": 1}


def report(
    path: Path,
    kind: str,
    folds: Sequence[Fold],
    scores: Scores,
    history: list[dict[str, Any]],
    *,
    title: str,
    caption: str,
) -> None:
    """One page on one classifier: learning curves, confusion matrices beside the baselines', calibration.

    Args:
        path: of the PNG, as in all functions here.
        folds: what each method answers to the test messages; `kind` is the ensemble.
        scores: by method, `accuracy` and `f1`, and if known their deviations `accuracy_sd` and `f1_sd`.
        history: rows of `Run.history`, a phase for each fold; those with `loss`, the sum over all models, are
            of training batches, those with `validation_loss` of evaluations, as `learning_scores` gives them.

    Raises:
        UserError: the figure cannot be written; so do all functions here.
    """
    truth = np.concatenate([fold.messages.labels for fold in folds])
    n_models = len(folds[0].answers.get(f"{kind}, single model", [None]))
    matrices = {
        name: confusion(truth, np.concatenate([fold.answers[name][0] for fold in folds]))
        for name, answers in folds[0].answers.items()
        if len(answers) == 1
    }
    rows = math.ceil(len(matrices) / COLUMNS)
    heights = (CURVES, 40 + rows * MATRICES, CALIBRATION)
    with new_page(path, WIDTH, sum(heights), title, caption) as page:
        curves = pd.DataFrame(history).assign(loss=lambda table: table.loss / n_models)
        _learning(page.charts(0, CURVES), curves, scores["majority class"]["accuracy"])
        chart = page.charts(CURVES, heights[1])
        chart.suptitle("Test messages: what they are, and what each method says", **HEADING)
        squares = list(chart.subplots(rows, COLUMNS, squeeze=False).flat)
        for i, (name, matrix) in enumerate(matrices.items()):
            _matrix(squares[i], name, matrix, scores[name], first=i % COLUMNS == 0)
        for axes in squares[len(matrices) :]:
            axes.set_visible(False)
        probability = np.concatenate([fold.probability for fold in folds])
        _calibration(page.charts(CURVES + heights[1]), truth, probability)


def collapse(
    path: Path,
    *,
    lengths: np.ndarray,
    curves: dict[str, np.ndarray],
    majority: float,
    matrices: dict[str, np.ndarray],
    scores: Scores,
    title: str,
    caption: str,
) -> None:
    """Why a net that reads its state after the padding answers the more frequent class to everything.

    Args:
        lengths: tokens of each message, int [N]; all were padded to the longest.
        curves: by set-up, the collapsed one, then the repaired: steps and accuracy, [2,K].
        majority: the accuracy of answering the more frequent class to everything.
        matrices, scores: by set-up, int [2,2], and its `accuracy` and `f1`.
    """
    with new_page(path, WIDTH, 960, title, caption) as page:
        _padding(page.charts(0, 510).subplots(), lengths)

        axes = page.charts(510, width=750).subplots()
        for colour, (name, (steps, accuracy)) in zip((ORANGE, BLUE), curves.items(), strict=True):
            axes.plot(steps, accuracy, color=colour, linewidth=3, label=name)
        _accuracy_axis(axes, majority, f"majority: {majority:.2%}")
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        _head(axes, "2. What it learned: accuracy on validation messages")

        chart = page.charts(510, x=760)
        chart.suptitle("3. What it answers to test messages", **HEADING)
        for i, (axes, name) in enumerate(zip(chart.subplots(1, 2), matrices, strict=True)):
            _matrix(axes, name, matrices[name], scores[name], first=i == 0)


def scaling(
    path: Path,
    rows: Sequence[dict[str, Any]],
    baselines: Scores,
    *,
    title: str,
    caption: str,
) -> None:
    """Accuracy and F1 against the number of parameters, for each setting that was varied.

    Parameters are counted without the embedding table, which can be many times the rest and hides it: small
    models would all lie in one place (as Kaplan et al. 2020, section 2.1, count).

    Args:
        rows: a dict for each point: `kind` (of model), `vary` (the setting), `value` (of it), `parameters`,
            and `accuracy` and `f1`, lists with a number for each seed. Error bars are sample deviations.
        baselines: by method, `accuracy` and `f1`, drawn as dashed lines; those far from the models' scores
            would flatten the rest.
    """
    points = pd.DataFrame(rows).sort_values("parameters", kind="stable")
    colours = dict(zip(dict.fromkeys(row["kind"] for row in rows), (ORANGE, BLUE), strict=False))
    varied = list(dict.fromkeys(row["vary"] for row in rows))
    with new_page(path, WIDTH, 930, title, caption) as page:
        chart = page.charts()
        panels = chart.subplots(2, len(varied), squeeze=False, sharey="row")
        labels = []
        for row, metric, name in zip(panels, ("accuracy", "f1"), ("Accuracy", "F1"), strict=True):
            for axes, vary in zip(row, varied, strict=True):
                axes.set_title(f"{name} by {vary}")
                for style, (method, level) in zip(DASHES, baselines.items(), strict=False):
                    axes.axhline(level[metric], color=GREY, linestyle=style, label=method)
                labels.append((axes, _points(axes, points[points.vary == vary], metric, colours)))
                axes.margins(y=0.12)
            row[0].set_ylim(bottom=max(0.0, row[0].get_ylim()[0]))
            row[0].yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        for axes in panels[-1]:
            axes.set_xlabel("parameters without the embedding table")
        pairs = zip(*panels[0, 0].get_legend_handles_labels(), strict=True)
        models_first = sorted(pairs, key=lambda pair: not isinstance(pair[0], ErrorbarContainer))
        handles, names = zip(*models_first, strict=True)
        chart.legend(handles, names, loc="outside upper left", ncols=len(names))

        for axes, ends in labels:
            label_points(page, axes, ends.text.tolist(), list(zip(ends.x, ends.y, strict=True)))
            for text, colour in zip(axes.texts, ends.colour, strict=True):
                text.set_color(colour)


# ----------------------------------------------------------------------------------------- the panels


def _learning(figure: SubFigure, history: pd.DataFrame, majority: float) -> None:
    """Loss, accuracy and F1 over the steps."""
    loss, accuracy, f1 = panels = figure.subplots(1, 3)
    _curve(loss, history, "loss", "batches", "#bbbbbb", light=True)
    _curve(loss, history, "train_loss", "training", BLUE)
    _curve(loss, history, "validation_loss", "validation", ORANGE)
    loss.set_ylim(bottom=0)
    _curve(accuracy, history, "train_accuracy", "training", BLUE)
    _curve(accuracy, history, "validation_accuracy", "validation", ORANGE)
    _accuracy_axis(accuracy, majority, "majority")
    _curve(f1, history, "validation_f1", "validation", ORANGE)
    f1.set_ylim(0, 1.02)
    count = history.phase.nunique()
    for axes, name in zip(panels, ("Loss", "Accuracy", "F1"), strict=True):
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("step")
        _head(axes, f"{name}, mean of {count}" if count > 1 else name)


def _curve(
    axes: Axes, history: pd.DataFrame, name: str, label: str, colour: str, light: bool = False
) -> None:
    """The mean over folds; below it a thin line for each, unless the mean is to be `light` itself."""
    phases = history.dropna(subset=name).groupby("phase", sort=False)
    lines = [phase[["step", name]].to_numpy(float).T for _, phase in phases]  # each [2,K]
    if len(lines) > 1 and not light:
        for line in lines:
            axes.plot(*line, color=colour, linewidth=0.8, alpha=0.5)
    # folds differ by a message or two, so their evaluations may lie at slightly different steps
    steps = lines[0][0]
    mean = np.mean([np.interp(steps, *line) for line in lines], axis=0)
    axes.plot(steps, mean, color=colour, linewidth=1 if light else 2.5, label=label)


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
    axes.annotate(
        f"median message: {median:,} tokens, then {longest - median:,} of padding",
        (median, middle),
        (0.6 * longest, middle),
        va="center",
        ha="center",
        bbox={"facecolor": "white", "edgecolor": GREY},
        arrowprops={"arrowstyle": "->"},
    )
    _head(axes, f"1. What the net was given: each row is a message, padded to {longest:,} tokens")


def _matrix(axes: Axes, name: str, matrix: np.ndarray, scores: dict[str, float], first: bool) -> None:
    """One confusion matrix: counts, shares of the row, right ones blue; accuracy and F1 under it."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)  # [2,2]
    colours = [
        [to_rgba(BLUE if i == j else ORANGE, 0.06 + 0.5 * shares[i, j]) for j in (0, 1)] for i in (0, 1)
    ]
    axes.imshow(colours)
    for i, j in np.ndindex(2, 2):
        axes.text(j, i, f"{matrix[i, j]:,}\n{shares[i, j]:.1%}", ha="center", va="center")
    axes.set_xticks([0, 1], ["says ham", "spam"])
    axes.set_yticks([0, 1], ["is\nham", "is\nspam"] if first else ["", ""])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    heading = textwrap.wrap(name, 20, max_lines=2, placeholder=" ...")
    axes.set_title("\n".join(heading))
    lines = []
    for metric, label in (("accuracy", "accuracy"), ("f1", "F1")):
        # four digits without the zero before the point: five matrices stand side by side
        mean, deviation = (f"{scores.get(key, 0):.4f}".removeprefix("0") for key in (metric, f"{metric}_sd"))
        lines.append(f"{label} {mean} ± {deviation}" if scores.get(f"{metric}_sd") else f"{label} {mean}")
    axes.set_xlabel("\n".join(lines), loc="left")


def _calibration(figure: SubFigure, truth: np.ndarray, probability: np.ndarray) -> None:
    """Reliability diagram, and how many messages are in each of its bins."""
    diagram, bins = figure.subplots(1, 2)
    share, mean = calibration_curve(truth, probability, n_bins=10)
    diagram.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfect")
    diagram.plot(mean, share, "o-", color=BLUE, markersize=8, label="messages, in ten bins", clip_on=False)
    diagram.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of spam", ylabel="share that is spam")
    _head(diagram, f"Calibration: ECE {calibration_error(truth, probability):.4f}")

    edges = np.linspace(0, 1, 11)
    for label, colour, index, shift in (("ham", GREEN, ~truth, 0.007), ("spam", PINK, truth, 0.05)):
        counts, _ = np.histogram(probability[index], edges)
        bins.bar(edges[:-1] + shift, counts, 0.043, align="edge", color=colour, label=label)
    for edge, count in zip(edges[:-1], np.histogram(probability, edges)[0], strict=True):
        bins.text(edge + 0.05, 1.15 * max(count, 0.7), f"{count:,}", ha="center", fontsize="small")
    bins.set(yscale="log", xlim=(0, 1), ylim=(0.7, 4 * len(truth)), xlabel="probability of spam")
    bins.yaxis.set_major_formatter("{x:,.0f}")
    _head(bins, "Messages in each bin")


def _points(axes: Axes, points: pd.DataFrame, metric: str, colours: dict[str, str]) -> pd.DataFrame:
    """A line with error bars for each kind of model; returns the ends of the bars, where the value of the
    setting is to be written: x, y, text and colour.
    """
    low, high = points.parameters.min() / 1.2, points.parameters.max() * 1.2
    narrow = high < 10 * low  # LogLocator would find too few ticks or too many
    axes.set(xscale="log", xlim=(low, high))
    axes.xaxis.set_major_locator(MaxNLocator(4) if narrow else LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter("")
    ends = []
    for side, (kind, colour) in zip(
        (-1, 1), colours.items(), strict=False
    ):  # below the first, above the other
        line = points[points.kind == kind]
        mean = line[metric].map(np.mean)
        spread = line[metric].map(lambda values: np.std(values, ddof=1) if len(values) > 1 else 0.0)
        axes.errorbar(line.parameters, mean, spread, color=colour, marker="o", capsize=4, label=kind)
        text = line.value.map("{:,}".format)
        ends.append(
            pd.DataFrame({"x": line.parameters, "y": mean + side * spread, "text": text, "colour": colour})
        )
    return pd.concat(ends)


def _head(axes: Axes, heading: str) -> None:
    """A heading, and under it the legend in one row, where no line is."""
    axes.set_title(heading, pad=34)
    count = len(axes.get_legend_handles_labels()[0])
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=count, **LEGEND)


def _accuracy_axis(axes: Axes, majority: float, label: str) -> None:
    """In percent, from a little below the majority rate to 1; a first step far below falls out."""
    room = max(1 - majority, 0.1)
    lowest = min([majority, *(np.asarray(line.get_ydata())[-1] for line in axes.lines)])
    axes.axhline(majority, color="black", linestyle="--", label=label)
    axes.set_ylim(max(0, lowest - 0.5 * room), 1 + 0.05 * room)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(5))
