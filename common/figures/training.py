"""The learning curves of a run of one or more phases: losses, scores; of an adversarial one, the balance."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from common.figures import page as look
from common.figures.page import BLUE, DASHES, GREEN, GREY, ORANGE, PINK, few_ticks, head
from common.results import Scores, format_number

PANEL = 312  # pixels from one row of panels to the next
UPSCALING = {
    "psnr": "PSNR of validation images, dB (higher is nearer)",
    "detail_db": "Detail of validation images, dB (0: as sharp as real)",
}
LOGARITHMIC = {"distance": (1, 3), "validation_mse": (1,)}  # and where each power of ten has ticks
FIDELITY, GENERATOR, DISCRIMINATOR = ("fidelity", GREEN), ("generator", BLUE), ("discriminator", ORANGE)


def training_curves(
    path: Path,
    history: list[dict[str, Any]],
    *,
    title: str,
    caption: str,
    references: Scores | None = None,
    metrics: dict[str, str] | None = None,
) -> None:
    """The training so far on one axis of steps: losses, who is winning, gradient norms, validation scores.

    A phase that has taken no step yet is left out, and where no phase has, nothing is drawn.

    Args:
        history: rows of `training.Run.history`; a phase with `loss_discriminator` is an adversarial one.
        references: by method, scores on the same images, drawn as dashed lines.
        metrics: the scores to draw, a heading for each; by default those of upscaling.

    Raises:
        UserError: the figure cannot be written.
    """
    if not any(row["step"] for row in history):
        return
    metrics, references = metrics or UPSCALING, references or {}
    rows = pd.DataFrame(history).replace([math.inf, -math.inf], math.nan)
    steps = rows.groupby("phase", sort=False)["step"].max()
    steps = steps[steps > 0]
    rows = rows[rows["phase"].isin(steps.index)]
    ends = steps.cumsum()  # of the phases, on one axis that all of them share
    rows = rows.assign(at=rows["step"] + rows["phase"].map(ends - steps))
    adversarial = {row["phase"] for row in history if "loss_discriminator" in row}
    several = len(ends) > 1
    names = ["losses", *["accuracies"] * bool(adversarial), "gradients", *metrics]
    lines = math.ceil(len(names) / 2)
    with look.new_page(path, look.WIDTH, PANEL * lines + 30, title, caption) as page:
        chart = page.charts()
        grid = list(chart.subplots(lines, 2, squeeze=False).flat)
        panels = dict(zip(names, grid, strict=False))
        for axes in grid:
            axes.set_visible(axes in panels.values())
            _phases(axes, ends, adversarial)
        shaded = "shaded: the adversarial phase; " if adversarial else ""
        label = f"step ({shaded}each phase has the same width)" if several else "step"
        chart.supxlabel(label, fontsize="medium")
        _balance(panels, rows)
        for metric, heading in metrics.items():
            axes = panels[metric]
            if metric in LOGARITHMIC:
                few_ticks(axes.yaxis, LOGARITHMIC[metric])
            _draw(axes, rows, "o", **{metric: ("this run", BLUE)})
            levels = {name: scores[metric] for name, scores in references.items() if metric in scores}
            for (name, level), dash in zip(levels.items(), DASHES, strict=False):
                label = f"{name} {format_number(metric, level)}"
                axes.axhline(level, color=GREY, linestyle=dash, label=label)
            axes.margins(y=0.12)
            head(axes, heading)


def _phases(axes: Axes, ends: pd.Series, adversarial: set[str]) -> None:
    """Gives each phase the same width, however many steps it has, a few round ticks, and a border."""
    edges = sorted({0, *ends})
    places = range(len(edges))
    functions = lambda at: np.interp(at, edges, places), lambda place: np.interp(place, places, edges)
    axes.set_xlim(0, edges[-1])
    axes.set_xscale("function", functions=functions)
    ticks = [0.0]
    for start, end in pairwise(edges):  # none so near to the border that numbers run into one another
        round_ones = MaxNLocator(4, steps=(1, 2, 5, 10), integer=True).tick_values(start, end)
        ticks += [tick for tick in round_ones if start + (end - start) / 8 < tick <= end]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for (phase, end), start in zip(ends.items(), [0, *ends], strict=False):
        if start:
            axes.axvline(start, color="black", linewidth=1, linestyle=":")
        if phase in adversarial and len(ends) > 1:
            axes.axvspan(start, end, color=look.SHADE, zorder=0)


def _draw(axes: Axes, rows: pd.DataFrame, marker: str = "", **columns: tuple[str, str]) -> None:
    """A line, with label and colour, through the values of each of the columns that the rows have."""
    for name, (label, colour) in columns.items():
        if name in rows and rows[name].notna().any():
            points = rows[["at", name]].dropna()
            axes.plot(points["at"], points[name], color=colour, label=label, marker=marker)


def _balance(panels: dict[str, Axes], rows: pd.DataFrame) -> None:
    """Losses and gradients; of two players, how strong each is."""
    losses, gradients = panels["losses"], panels["gradients"]
    _draw(losses, rows, loss=FIDELITY, loss_generator=GENERATOR)
    if not (rows.filter(["loss", "loss_generator"]) <= 0).any(axis=None):
        few_ticks(losses.yaxis)
    few_ticks(gradients.yaxis)
    _draw(gradients, rows, grad=FIDELITY, grad_generator=GENERATOR, grad_discriminator=DISCRIMINATOR)
    if "accuracies" not in panels:
        losses.set_title("Loss")
        gradients.set_title("Gradient norm")
        return
    right = losses.twinx()
    right.grid(False)
    right.spines["right"].set_visible(True)
    _draw(right, rows, loss_discriminator=("discriminator: right axis", ORANGE))
    head(losses, "Losses", right)

    accuracies = panels["accuracies"]
    accuracies.set_ylim(0, 1.02)
    accuracies.yaxis.set_major_formatter(PercentFormatter(1))
    accuracies.axhspan(0.97, 1.02, color=ORANGE, alpha=0.2, linewidth=0, label="97 %: has won")
    accuracies.axhline(0.5, color=BLUE, linestyle="--", label="50 %: guesses")
    _draw(accuracies, rows, accuracy_real=("real", GREEN), accuracy_fake=("generated", PINK))
    head(accuracies, "The discriminator is right about ...")
    head(gradients, "Gradient norms")
