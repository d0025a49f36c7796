"""The figure of the sine experiment: forecasts beside the truth, their errors, a score that means nothing.

Drawn on a page of `figures`, so the PNG carries its title, its caption and the command that made it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from common.evaluation.sine import Made
from common.figures.page import BLUE, GREEN, GREY, LINE, ORANGE, WIDTH, Page, new_page

PINK = "#CC79A7"  # of the same palette as the others
COLOURS = {"RNN": ORANGE, "AR(2)": PINK, "linear extrapolation": GREEN, "persistence": BLUE}
LEFT, APART, WIDE, TALL = 75, 670, 590, 230  # pixels of a panel
SHOWN = 150  # steps of the beginning and of the end of a forecast
SERIES: dict[str, dict[str, Any]] = {
    "values": {"color": "black", "marker": ".", "markersize": 4, "linestyle": ""},
    "the wave": {"color": GREY, "linewidth": 5, "alpha": 0.5},
    "one step ahead": {"color": BLUE},
    "forecast on its own output": {"color": ORANGE, "linestyle": "--", "linewidth": 2.2},
}


def report(
    path: Path,
    tests: dict[str, tuple[Tensor, Tensor, dict[str, Made]]],
    memorised: dict[str, tuple[Tensor, Tensor]],
    *,
    title: str,
    caption: str,
    note: str,
) -> None:
    """Beginning and end of a forecast, the error of all forecasts, and a net that knows one wave by heart.

    Args:
        tests: by kind (at most two, side by side): values and clean waves, both [N,prefix+horizon], and what
            each method made of them. The first wave is shown.
        memorised: by heading (two), of the net that was trained on copies: truth and prediction, both [T].
        note: what the last row shows.

    Raises:
        Refused: the figure cannot be written.
    """
    row = TALL + 3 * LINE
    tops = [2 * LINE + row * i + extra * LINE for i, extra in enumerate((0, 0, 2, 4))]
    with new_page(path, WIDTH, round(tops[-1]) + row, title, caption) as page:
        for column, (kind, (values, clean, made)) in enumerate(tests.items()):
            x, end = LEFT + column * APART, clean.shape[1]
            prefix = end - made["RNN"][0].shape[1]
            axes = _panel(page, x, tops[0], f"{kind.capitalize()} waves: the forecast begins")
            _series(axes, values, clean, made["RNN"], prefix, slice(0, prefix + SHOWN))
            axes.axvspan(0, prefix, color="#f6f3ea", zorder=0)
            axes.text(5, 1.2, "prefix")
            axes = _panel(page, x, tops[1], f"{kind.capitalize()} waves: and ends")
            _series(axes, values, clean, made["RNN"], prefix, slice(end - SHOWN, end))
            axes = _panel(page, x, tops[2], f"{kind.capitalize()} waves: error (RMSE) of all forecasts")
            _errors(axes, clean[:, prefix:], made)
        _legend(page, 0, SERIES)
        methods = {method: {"color": colour} for method, colour in COLOURS.items()}
        _legend(page, tops[2] - 2.4 * LINE, methods)
        page.text(LEFT, tops[3] - 2.4 * LINE, note, weight="bold")
        for column, (heading, (truth, predicted)) in enumerate(memorised.items()):
            axes = _panel(page, LEFT + column * APART, tops[3], heading)
            axes.plot(truth, **SERIES["the wave"])
            axes.plot(predicted, **SERIES["one step ahead"])
            axes.set_xlabel("step")


def _panel(page: Page, x: float, y: float, heading: str) -> Axes:
    axes = page.axes(x, y, WIDE, TALL)
    axes.set_title(heading, loc="left", fontsize="medium", weight="bold")
    return axes


def _series(
    axes: Axes,
    values: Tensor,
    clean: Tensor,
    made: Made,
    prefix: int,
    shown: slice,
) -> None:
    """The first wave over the steps of `shown`."""
    steps = np.arange(clean.shape[1])[shown]
    one_step, forecast = (F.pad(part[0], (prefix, 0), value=torch.nan) for part in made)
    lines = (values[0], clean[0], one_step, forecast)
    for line, style in zip(lines, SERIES.values(), strict=True):
        axes.plot(steps, line[shown], **style)
    axes.set_xlim(steps[0], steps[-1])
    axes.set_ylim(-1.5, 1.5)
    axes.set_xlabel("step")


def _errors(axes: Axes, clean: Tensor, made: dict[str, Made]) -> None:
    """Root of the mean squared error of forecasts over all waves, at each step."""
    for method, (_, forecast) in made.items():
        error = (forecast - clean).square().mean(dim=0).sqrt()
        axes.plot(np.arange(1, len(error) + 1), error, color=COLOURS[method], label=method)
    axes.set_yscale("log")
    axes.set_xlim(1, clean.shape[1])
    axes.set_xlabel("steps after the prefix")


def _legend(page: Page, y: float, styles: dict[str, dict[str, Any]]) -> None:
    """One line of all names, from the left margin at `y`."""
    page.figure.legend(
        handles=[Line2D([], [], label=name, **style) for name, style in styles.items()],
        loc="upper left",
        bbox_to_anchor=((LEFT - 10) / page.width, 1 - (page.head + y) / page.height),
        ncols=len(styles),
        borderaxespad=0,
        borderpad=0,
    )
