"""Figures of the text experiments: how a classifier learned, where it is wrong, and the two claims on RNNs.

Drawn on the pages of `figures`, so each PNG carries its title, its caption and the command that made it.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, PercentFormatter

from common.evaluation.spam import calibration_error, reliability
from common.figures.page import BLUE, GREEN, GREY, LINE, ORANGE, WIDTH, Page, label_points, new_page
from common.results import Scores

PINK = "#CC79A7"  # of the same palette as the others
CELL = 98  # pixels of a confusion matrix's cell
MATRIX = 2 * CELL + 6 * LINE  # and of the whole with its texts
DASHES = ("--", ":", "-.", (0, (8, 2, 1, 2, 1, 2)))


def report(
    path: Path,
    histories: dict[str, list[dict[str, Any]]],
    matrices: dict[str, np.ndarray],
    scores: Scores,
    truth: np.ndarray,
    probability: np.ndarray,
    majority: float,
    *,
    title: str,
    caption: str,
) -> None:
    """One page on one classifier: learning curves, confusion matrices beside the baselines', calibration.

    Args:
        path: of the PNG, as in all functions here.
        histories: by fold or seed, rows of `training.Run.history`; those with `loss` are of training batches,
            those with `validation_loss` of evaluations and have `train_loss`, `train_accuracy`,
            `validation_accuracy` and `validation_f1` too.
        matrices: by method, int [2,2] as `evaluation.classification.confusion` gives them; the net's first.
        scores: by method, `accuracy` and `f1`, and if known their deviations `accuracy_sd` and `f1_sd`.
        truth, probability: bool [N] and float [N] (0..1, of spam) of the test messages.
        majority: the accuracy of answering the more frequent class to everything.

    Raises:
        Refused: the figure cannot be written; so do all functions here.
    """
    columns, below_curves = 5, 400
    rows = math.ceil(len(matrices) / columns)
    below_matrices = below_curves + LINE + rows * MATRIX + 20
    with new_page(path, WIDTH, below_matrices + 420, title, caption) as page:
        _learning(page, histories, majority)
        page.text(75, below_curves, "Test messages: what they are, and what each method says", weight="bold")
        for i, (name, matrix) in enumerate(matrices.items()):
            x, y = 75 + i % columns * 256, below_curves + LINE + i // columns * MATRIX
            _matrix(page, x, y, name, matrix, scores[name], first=i % columns == 0)
        _calibration(page, below_matrices, truth, probability)


def collapse(
    path: Path,
    *,
    lengths: np.ndarray,
    longest: int,
    curves: dict[str, tuple[np.ndarray, np.ndarray]],
    majority: float,
    matrices: dict[str, np.ndarray],
    title: str,
    caption: str,
) -> None:
    """Why a net that reads its state after the padding answers the more frequent class to everything.

    Args:
        lengths: tokens of each message, int [N].
        longest: tokens that all were padded to.
        curves: by set-up, the collapsed one, then the repaired: steps [K] and accuracy [K].
        majority: the accuracy of answering the more frequent class to everything.
        matrices: by set-up, int [2,2].
    """
    with new_page(path, WIDTH, 960, title, caption) as page:
        # What is read: some messages as they went in, from short to long
        heading = f"1. What the net was given: each row is a message, padded to {longest:,} tokens"
        axes = _panel(page, 75, 0, 1270, 460, heading)
        shown = np.quantile(lengths, np.linspace(0, 1, 41), method="nearest")
        rows = np.arange(len(shown))
        middle, of_middle = len(shown) // 2, int(shown[len(shown) // 2])
        axes.barh(rows, shown, 0.8, color=BLUE, label="words: all that the repaired net reads")
        axes.barh(rows, longest - shown, 0.8, shown, color="#dddddd", label="padding")
        axes.axvline(longest, color=ORANGE, linewidth=6, label="here the collapsed net's state was read")
        axes.set(xlim=(0, 1.005 * longest), ylim=(-0.6, len(shown) - 0.4), yticks=[], xlabel="token")
        axes.grid(False)
        axes.annotate(
            f"median message: {of_middle:,} tokens, then {longest - of_middle:,} of padding",
            (of_middle, middle),
            (0.6 * longest, middle),
            va="center",
            ha="center",
            bbox={"facecolor": "white", "edgecolor": GREY},
            arrowprops={"arrowstyle": "->"},
        )
        _legend_above(axes)

        # What is learned
        axes = _panel(page, 75, 540, 640, 370, "2. What it learned: accuracy on validation messages")
        for colour, (name, (steps, accuracy)) in zip((ORANGE, BLUE), curves.items(), strict=True):
            axes.plot(steps, accuracy, color=colour, linewidth=3, label=name)
        _accuracy_axis(axes, majority)
        axes.axhline(majority, color="black", linestyle="--", label=f"majority: {majority:.2%}")
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        _legend_above(axes)

        # What it answers
        page.text(800, 540, "3. What it answers to test messages", weight="bold")
        for i, (name, matrix) in enumerate(matrices.items()):
            _matrix(page, 870 + i * 256, 540 + LINE, name, matrix, _scores(matrix), first=i == 0)


def scaling(
    path: Path,
    rows: Sequence[dict[str, Any]],
    baselines: Scores,
    *,
    title: str,
    caption: str,
    counted: str = "parameters",
) -> None:
    """Accuracy and F1 against the number of parameters, for each setting that was varied.

    Args:
        rows: a dict for each point: `kind` (of net), `vary` (the setting), `value` (of it), `parameters`, and
            `accuracy` and `f1`, lists with a number for each seed. Error bars are sample standard deviations.
        baselines: by method, `accuracy` and `f1`, drawn as dashed lines; those far from the nets' scores
            would flatten the rest.
        counted: what `parameters` counts. Without the embedding table, which can be many times the rest and
            hides it, small nets do not all lie in one place (as Kaplan et al. 2020, section 2.1, count).
    """
    kinds, varied = (list(dict.fromkeys(row[key] for row in rows)) for key in ("kind", "vary"))
    pitch = 440
    with new_page(path, WIDTH, 50 + 2 * pitch, title, caption) as page:
        for down, (metric, metric_name) in enumerate((("accuracy", "Accuracy"), ("f1", "F1"))):
            bottom, top = _range(rows, baselines, metric)
            for across, vary in enumerate(varied):
                place = 90 + across * pitch, 40 + down * pitch, 370, 370
                axes = _panel(page, *place, f"{metric_name} by {vary}", legend=False)
                axes.set(xscale="log", ylim=(bottom, top), xlabel=counted if down else "")
                axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
                for style, (name, level) in zip(DASHES, baselines.items(), strict=False):
                    axes.axhline(level[metric], color=GREY, linestyle=style, label=name)
                _points(page, axes, [row for row in rows if row["vary"] == vary], kinds, metric)
        handles, labels = axes.get_legend_handles_labels()
        nets = [isinstance(handle, ErrorbarContainer) for handle in handles]
        order = sorted(range(len(handles)), key=lambda i: not nets[i])
        page.figure.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="upper left",
            bbox_to_anchor=(75 / page.width, 1 - page.head / page.height),
            ncols=len(order),
            borderaxespad=0,
        )


# ----------------------------------------------------------------------------------------- the panels


def _learning(page: Page, histories: dict[str, list[dict[str, Any]]], majority: float) -> None:
    """Loss, accuracy and F1 over the steps."""
    mean_of = f", mean of {len(histories)}" if len(histories) > 1 else ""
    loss, accuracy, f1 = (
        _panel(page, 75 + i * 446, 0, 375, 300, f"{name}{mean_of}")
        for i, name in enumerate(("Loss", "Accuracy", "F1"))
    )
    _curve(loss, histories, "loss", "batches", "#bbbbbb", thin=True)
    _curve(loss, histories, "train_loss", "training", BLUE)
    _curve(loss, histories, "validation_loss", "validation", ORANGE)
    loss.set_ylim(bottom=0)

    _curve(accuracy, histories, "train_accuracy", "training", BLUE)
    _curve(accuracy, histories, "validation_accuracy", "validation", ORANGE)
    _accuracy_axis(accuracy, majority)
    accuracy.axhline(majority, color="black", linestyle="--", label="majority")

    _curve(f1, histories, "validation_f1", "validation", ORANGE)
    f1.set_ylim(0, 1.02)

    for axes in (loss, accuracy, f1):
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("step")
        _legend_above(axes)


def _curve(
    axes: Axes,
    histories: dict[str, list[dict[str, Any]]],
    name: str,
    label: str,
    colour: str,
    thin: bool = False,
) -> None:
    """The mean over folds; below it a thin line for each, unless the mean is to be `thin` itself."""
    points = [[(row["step"], row[name]) for row in rows if name in row] for rows in histories.values()]
    lines = [np.array(fold, float).T for fold in points if fold]  # each [2,K]
    if not lines:
        return
    if len(lines) > 1 and not thin:
        for line in lines:
            axes.plot(*line, color=colour, linewidth=0.8, alpha=0.5)
    # folds differ by a message or two, so their evaluations may lie at slightly different steps
    steps = lines[0][0]
    mean = np.mean([np.interp(steps, *line) for line in lines], axis=0)
    axes.plot(steps, mean, color=colour, linewidth=1 if thin else 2.5, label=label)


def _matrix(
    page: Page, x: float, y: float, name: str, matrix: np.ndarray, scores: dict[str, float], first: bool
) -> None:
    """One confusion matrix: counts, shares of the row, and accuracy and F1 under it."""
    heading = textwrap.wrap(name, 20, max_lines=2, placeholder=" ...")
    for i, line in enumerate(heading, start=2 - len(heading)):
        page.text(x, y + i * LINE, line, weight="bold")
    y += 2 * LINE + 4
    axes = page.axes(x, y, 2 * CELL, 2 * CELL)
    axes.grid(False)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)  # [2,2]
    for is_spam in range(2):
        for says_spam in range(2):
            right, share = is_spam == says_spam, shares[is_spam, says_spam]
            colour = BLUE if right else ORANGE
            axes.add_patch(
                Rectangle((says_spam, is_spam), 1, 1, facecolor=colour, alpha=0.06 + 0.5 * share, linewidth=0)
            )
            text = f"{matrix[is_spam, says_spam]:,}\n{share:.1%}"
            axes.text(says_spam + 0.5, is_spam + 0.5, text, ha="center", va="center")
    axes.set(xlim=(0, 2), ylim=(2, 0), xticks=[0.5, 1.5], yticks=[0.5, 1.5])
    axes.set_xticklabels(["says ham", "spam"])
    axes.set_yticklabels(["is\nham", "is\nspam"] if first else ["", ""])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    for i, (metric, label) in enumerate((("accuracy", "accuracy"), ("f1", "F1"))):
        deviation = scores.get(f"{metric}_sd", 0)
        text = f"{label} {_share(scores[metric])}" + (f" ± {_share(deviation)}" if deviation else "")
        page.text(x, y + 2 * CELL + 32 + i * LINE, text)


def _calibration(page: Page, y: float, truth: np.ndarray, probability: np.ndarray) -> None:
    """Reliability diagram, and how many messages are in each of its bins."""
    mean, share, counts = reliability(truth, probability)  # [bins] each
    edges = np.linspace(0, 1, len(counts) + 1)
    error = calibration_error(truth, probability)
    axes = _panel(page, 75, y, 560, 370, f"Calibration: ECE {error:.4f}")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfect")
    axes.plot(mean, share, "o-", color=BLUE, markersize=8, label="messages, in ten bins", clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of spam", xticks=edges[::2])
    axes.set_ylabel("share that is spam")
    _legend_above(axes)

    axes = _panel(page, 780, y, 560, 370, "Messages in each bin")
    step = edges[1]
    for label, colour, which, shift in (("ham", GREEN, ~truth, 0.07), ("spam", PINK, truth, 0.5)):
        found, _ = np.histogram(probability[which], edges)
        axes.bar(edges[:-1] + shift * step, found, 0.43 * step, align="edge", color=colour, label=label)
    for middle, count in zip(edges[:-1] + step / 2, counts, strict=True):
        axes.text(middle, 1.15 * max(count, 0.7), f"{count:,.0f}", ha="center", fontsize="small")
    axes.set(yscale="log", xlim=(0, 1), ylim=(0.7, 4 * len(truth)), xlabel="probability of spam")
    axes.set_xticks(edges[::2])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    _legend_above(axes)


def _points(page: Page, axes: Axes, rows: list[dict[str, Any]], kinds: list[str], metric: str) -> None:
    """A line with error bars for each kind of net, the values of the setting at the ends of the bars."""
    _parameter_axis(axes, [row["parameters"] for row in rows])
    points: list[tuple[float, float]] = []
    values, colours = [], []
    for side, kind, colour in zip((-1, 1), kinds, (ORANGE, BLUE), strict=False):
        line = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["parameters"])
        x = [row["parameters"] for row in line]
        mean = np.array([np.mean(row[metric]) for row in line])
        spread = np.array([_deviation(row[metric]) for row in line])
        axes.errorbar(x, mean, spread, color=colour, marker="o", capsize=4, label=kind)
        points += zip(x, mean + side * spread, strict=True)  # below for the first kind, above for the other
        values += [f"{row['value']:,}" for row in line]
        colours += [colour] * len(line)
    label_points(page, axes, values, points)
    for text, colour in zip(axes.texts, colours, strict=True):
        text.set_color(colour)


def _panel(
    page: Page, x: float, y: float, width: float, height: float, heading: str, legend: bool = True
) -> Axes:
    """A heading, room for a legend of one row if one is to come, and axes down to y + height."""
    above = LINE + 8 + 28 * legend
    page.text(x, y, heading, weight="bold")
    return page.axes(x, y + above, width, height - above)


def _legend_above(axes: Axes) -> None:
    """In one row between the panel and its heading, where no line is."""
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(handles),
        borderaxespad=0.2,
        borderpad=0,
        handlelength=1.2,
        handletextpad=0.4,
        columnspacing=1,
    )


def _accuracy_axis(axes: Axes, majority: float) -> None:
    """In percent, from a little below the majority rate to 1; a first step far below falls out."""
    room = max(1 - majority, 0.1)
    lowest = min([majority, *(np.asarray(line.get_ydata())[-1] for line in axes.lines)])
    axes.set_ylim(max(0, lowest - 0.5 * room), 1 + 0.05 * room)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _parameter_axis(axes: Axes, parameters: Sequence[int]) -> None:
    """Logarithmic, with few enough ticks whether it spans a tenth of a decade or several."""
    low, high = min(parameters) / 1.2, max(parameters) * 1.2
    axes.set_xlim(low, high)
    narrow = high < 10 * low  # LogLocator would find too few ticks or too many
    axes.xaxis.set_major_locator(MaxNLocator(4) if narrow else LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter("")


def _scores(matrix: np.ndarray) -> dict[str, float]:
    """Accuracy and F1 of the second class, from counts."""
    (_, false_alarms), (missed, found) = matrix
    wrong = false_alarms + missed
    return {"accuracy": 1 - wrong / max(matrix.sum(), 1), "f1": 2 * found / max(2 * found + wrong, 1)}


def _share(value: float) -> str:
    """Four digits without the zero before the point: five matrices stand side by side."""
    return f"{value:.4f}".removeprefix("0")


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _range(rows: Sequence[dict[str, Any]], baselines: Scores, metric: str) -> tuple[float, float]:
    """Of all error bars and baselines, with a margin, from 0 on: panels in a row share it."""
    ends = [np.mean(row[metric]) + side * _deviation(row[metric]) for row in rows for side in (-1, 1)]
    ends += [level[metric] for level in baselines.values()]
    margin = 0.12 * (max(ends) - min(ends)) or 0.01
    return max(0.0, min(ends) - margin), max(ends) + margin
