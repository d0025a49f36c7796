"""The figure of the sine experiment: forecasts beside the truth, their errors, a score that means nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from common.evaluation.sine import Predictions
from common.figures.page import BLUE, GREEN, GREY, MARGIN, ORANGE, PINK, SHADE, WIDTH, new_page

EARLIER = "The earlier set-up: 1,000 copies of one period, to train and to test on: memory poses as skill"
EXPLAINED = """Shown: the first test wave; errors: over all {count}.
AR(2) is exact on clean sines, which obey x[t+1] = a x[t] + b x[t-1]. In noise no method knows the frequency \
exactly, so all lose the phase."""
ROW = 320  # pixels from one row of panels to the next
SHOWN = 150  # steps of the beginning and of the end of a forecast
COLOURS = {"RNN": ORANGE, "AR(2)": PINK, "linear extrapolation": GREEN, "persistence": BLUE}
SERIES: dict[str, dict[str, Any]] = {
    "values": {"color": "black", "marker": ".", "markersize": 4, "linestyle": ""},
    "the wave": {"color": GREY, "linewidth": 5, "alpha": 0.5},
    "one step ahead": {"color": BLUE},
    "forecast on its own output": {"color": ORANGE, "linestyle": "--", "linewidth": 2.2},
}


def report(
    path: Path,
    tests: dict[str, tuple[Tensor, Tensor, dict[str, Predictions]]],
    memorised: dict[str, tuple[Tensor, Tensor]],
    *,
    title: str,
    caption: str,
) -> None:
    """Beginning and end of a forecast, the error of all forecasts, and a net that knows one wave by heart.

    Args:
        tests: by kind (at most two, side by side): values and clean waves, both [N,prefix+horizon], and what
            each method predicts. The first wave is shown.
        memorised: by heading (two), of the net that was trained on copies: truth and prediction, both [T].

    Raises:
        UserError: the figure cannot be written.
    """
    caption += " " + EXPLAINED.format(count=len(next(iter(tests.values()))[0]))
    with new_page(path, WIDTH, 4 * ROW + 60, title, caption) as page:
        rows: Any = page.charts().subfigures(3, height_ratios=(2 * ROW, ROW + 30, ROW + 30))
        forecasts = rows[0].subplots(2, len(tests), squeeze=False)
        errors = rows[1].subplots(1, len(tests), squeeze=False)[0]
        memory = rows[2].subplots(1, 2)
        rows[2].suptitle(EARLIER, x=MARGIN / WIDTH, ha="left", fontsize="medium", weight="bold")
        for column, (kind, (values, clean, predictions)) in enumerate(tests.items()):
            end = clean.shape[1]
            prefix = end - predictions["RNN"][0].shape[1]
            begins, ends = forecasts[:, column]
            begins.set_title(f"{kind.capitalize()} waves: the forecast begins")
            _series(begins, values, clean, predictions["RNN"], slice(0, prefix + SHOWN))
            begins.axvspan(0, prefix, color=SHADE, zorder=0)
            begins.text(5, 1.2, "prefix")
            ends.set_title(f"{kind.capitalize()} waves: and ends")
            _series(ends, values, clean, predictions["RNN"], slice(end - SHOWN, end))
            errors[column].set_title(f"{kind.capitalize()} waves: error (RMSE) of all forecasts")
            _errors(errors[column], clean[:, prefix:], predictions)
        for row, axes in zip(rows[:2], (forecasts[0, 0], errors[0]), strict=True):
            handles, labels = axes.get_legend_handles_labels()
            row.legend(handles, labels, loc="outside upper left", ncols=len(labels), borderaxespad=0)
        for axes, (heading, (truth, predicted)) in zip(memory, memorised.items(), strict=True):
            axes.set_title(heading)
            axes.plot(truth, **SERIES["the wave"])
            axes.plot(predicted, **SERIES["one step ahead"])
            axes.set_xlabel("step")


def _series(axes: Axes, values: Tensor, clean: Tensor, predictions: Predictions, shown: slice) -> None:
    """The first wave over the steps of `shown`."""
    steps = np.arange(clean.shape[1])[shown]
    one_step, forecast = (
        F.pad(part[0], (clean.shape[1] - part.shape[1], 0), value=torch.nan) for part in predictions
    )
    lines = (values[0], clean[0], one_step, forecast)
    for line, (name, style) in zip(lines, SERIES.items(), strict=True):
        axes.plot(steps, line[shown], label=name, **style)
    axes.set_xlim(steps[0], steps[-1])
    axes.set_ylim(-1.5, 1.5)
    axes.set_xlabel("step")


def _errors(axes: Axes, clean: Tensor, predictions: dict[str, Predictions]) -> None:
    """Root of the mean squared error of forecasts over all waves, at each step."""
    for method, (_, forecast) in predictions.items():
        error = (forecast - clean).square().mean(dim=0).sqrt()
        axes.plot(np.arange(1, len(error) + 1), error, color=COLOURS[method], label=method)
    axes.set_yscale("log")
    axes.set_xlim(1, clean.shape[1])
    axes.set_xlabel("steps after the prefix")
