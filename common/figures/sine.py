"""The figure of the sine experiment: forecasts beside the truth, their errors, a score that means nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.evaluation.sine import Predictions
from common.figures import training
from common.figures.page import BLUE, GREEN, GREY, MARGIN, ORANGE, PINK, SHADE, WIDTH, new_page

EARLIER = "The earlier set-up: 1,000 copies of one period, to train and to test on: memory poses as skill"
EXPLAINED = """Shown: the first test wave; errors: over all {}.
AR(2) is exact on clean sines, which obey x[t+1] = a x[t] + b x[t-1]. In noise no method knows the frequency \
exactly, so all lose the phase."""
TRAINING = "single_layer_rnn_training.png"
ROW = 298  # pixels from one row of panels to the next
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
    tests: dict[str, tuple[Tensor, Tensor]],
    predictions: dict[str, dict[str, Predictions]],
    memorised: dict[str, tuple[Tensor, Tensor]],
    caption: str,
) -> None:
    """Beginning and end of a forecast, the error of all forecasts, and a net that knows one wave by heart;
    what was drawn while they trained goes.

    Args:
        tests: by kind (at most two, side by side): values and clean waves, both [N,prefix+horizon].
        predictions: by kind and method.
        memorised: by heading (two), of the net that was trained on copies: truth and prediction, both [T].

    Raises:
        UserError: the figure cannot be written.
    """
    count, steps = tests["clean"][0].shape
    horizon = predictions["clean"]["RNN"][0].shape[1]
    title = f"A vanilla RNN reads {steps - horizon} steps of a sine wave and goes on for {horizon:,}"
    with new_page(path, WIDTH, 4 * ROW + 60, title, f"{caption} {EXPLAINED.format(count)}") as page:
        rows: Any = page.charts().subfigures(3, height_ratios=(2 * ROW, ROW + 30, ROW + 30))
        forecasts = rows[0].subplots(2, len(tests), squeeze=False)
        errors = rows[1].subplots(1, len(tests), squeeze=False)
        for i, kind in enumerate(tests):
            _forecast(forecasts[:, i], *tests[kind], predictions[kind]["RNN"])
            forecasts[0, i].set_title(f"{kind.capitalize()} waves: the forecast begins")
            forecasts[1, i].set_title(f"{kind.capitalize()} waves: the forecast ends")
            for method, (_, forecast) in predictions[kind].items():
                error = (forecast - tests[kind][1][:, -horizon:]).square().mean(dim=0).sqrt()
                errors[0, i].plot(range(1, horizon + 1), error, color=COLOURS[method], label=method)
            heading = f"{kind.capitalize()} waves: error (RMSE) of all forecasts"
            errors[0, i].set(title=heading, xlabel="steps after the prefix", yscale="log", xlim=(1, horizon))
            errors[0, i].yaxis.set_major_formatter("{x:g}")
            errors[0, i].yaxis.set_minor_formatter("")
        for row, panels in zip(rows[:2], (forecasts, errors), strict=True):
            handles, labels = panels[0, 0].get_legend_handles_labels()
            row.legend(handles, labels, loc="outside upper left", ncols=len(labels), borderaxespad=0)
        rows[2].suptitle(EARLIER, x=MARGIN / WIDTH, ha="left", fontsize="medium", weight="bold")
        for axes, (heading, (truth, predicted)) in zip(
            rows[2].subplots(1, 2), memorised.items(), strict=True
        ):
            axes.plot(truth, **SERIES["the wave"])
            axes.plot(predicted, **SERIES["one step ahead"])
            axes.set(title=heading, xlabel="step")
    (path.parent / TRAINING).unlink(missing_ok=True)


def save_training(figs: Path, history: list[dict[str, Any]], noise: float) -> None:
    """Draws the curves so far, beside the floor of `noise`, its standard deviation.

    Raises:
        UserError: the figure cannot be written.
    """
    phases = ", ".join(dict.fromkeys(row["phase"] for row in history))
    training.training_curves(
        figs / TRAINING,
        history,
        title="While it trains",
        caption=f"Phases so far: {phases}. The loss is the logarithm of the mean squared error.",
        references={"noise floor": {"validation_mse": noise**2}} if noise else {},
        metrics={"validation_mse": "Squared error one step ahead, validation waves"},
    )


def _forecast(panels: np.ndarray, values: Tensor, clean: Tensor, predictions: Predictions) -> None:
    """Both ends of the first wave, and what was predicted of it."""
    steps, prefix = len(clean[0]), len(clean[0]) - predictions[0].shape[1]
    padded = [F.pad(part[0], (prefix, 0), value=torch.nan) for part in predictions]
    for axes, start, end in zip(panels, (0, steps - SHOWN), (prefix + SHOWN, steps), strict=True):
        for line, (name, style) in zip([values[0], clean[0], *padded], SERIES.items(), strict=True):
            axes.plot(range(start, end), line[start:end], label=name, **style)
        axes.set(xlabel="step", xlim=(start, end - 1), ylim=(-1.5, 1.5))
    panels[0].axvspan(0, prefix, color=SHADE, zorder=0)
    panels[0].text(5, 1.2, "prefix")
