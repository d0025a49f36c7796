"""One look for all figures: pictures pixel for pixel, charts beside them, a gallery and README's results.

Every PNG carries its title, its caption and the command that made it, and the gallery reads them from there.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from common.figures.page import BLUE, GREEN, GREY, LINE, ORANGE, WIDTH, few_ticks, legend, new_page
from common.results import Scores, format_number

DPI = 100
# ------------------------------------------------------------------------------------ training's figure


def balance(
    path: Path,
    history: list[dict[str, Any]],
    *,
    title: str,
    caption: str,
    references: Scores | None = None,
    watched: dict[str, str] | None = None,
) -> None:
    """The whole training on one axis of steps: losses, who is winning, gradient norms, held-out scores.

    Args:
        history: rows of `training.Run.history`; a phase with `loss_discriminator` is an adversarial one.
        references: by method, scores on the same pictures, drawn as dashed lines.
        watched: the scores to draw, a heading for each; by default those of upscaling.
    """
    watched = watched or {
        "psnr": "PSNR on held-out pictures, dB (higher is nearer)",
        "detail_db": "Detail on held-out pictures, dB (0 is as sharp as real)",
    }
    starts, ends = _starts(history)
    adversarial = {row["phase"] for row in history if "loss_discriminator" in row}
    panels = 3 + len(watched)
    tall, apart = 250, 62
    with new_page(path, WIDTH, panels * (tall + apart) + 30, title, caption) as page:
        place = iter(range(panels))

        def panel(heading: str) -> Axes:
            axes = page.axes(90, 32 + next(place) * (tall + apart), 930, tall)
            axes.set_title(heading, loc="left", fontsize="medium", weight="bold")
            axes.set_xlim(0, max(ends.values()))
            _equal_widths(axes, sorted({0, *ends.values()}))
            for phase, start in starts.items():
                if start:
                    axes.axvline(start, color="black", linewidth=1, linestyle=":")
                if phase in adversarial and len(starts) > 1:
                    axes.axvspan(start, ends[phase], color="#f6f3ea", zorder=0)
            return axes

        def lines(axes: Axes, names: dict[str, tuple[str, str]], marker: str = "") -> None:
            """Draws each value that rows have, by name: label and colour."""
            for name, (label, colour) in names.items():
                points = [
                    (starts[row["phase"]] + row["step"], row[name])
                    for row in history
                    if math.isfinite(row.get(name, math.nan))
                ]
                if points:
                    axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker)

        both = ", in both phases" if len(starts) > 1 else ""
        axes = panel(f"Losses (left axis: the generator's{both}; right axis: the discriminator's)")
        lines(axes, {"loss": ("fidelity", GREEN), "loss_generator": ("generator", BLUE)})
        if all(row.get(name, 1) > 0 for row in history for name in ("loss", "loss_generator")):
            axes.set_yscale("log")
            few_ticks(axes.yaxis)
        judge = axes.twinx()
        judge.grid(False)
        judge.spines["right"].set_visible(True)
        lines(judge, {"loss_discriminator": ("discriminator", ORANGE)})
        legend(judge, axes)

        axes = panel("The discriminator is right about ...")
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.axhspan(0.97, 1.02, color=ORANGE, alpha=0.2, linewidth=0, label="over 97 %: it has won")
        axes.axhline(0.5, color=BLUE, linestyle="--", label="50 %: it guesses")
        lines(
            axes, {"accuracy_real": ("real images", GREEN), "accuracy_fake": ("generated images", "#CC79A7")}
        )
        legend(axes)

        axes = panel("Gradient norms")
        axes.set_yscale("log")
        few_ticks(axes.yaxis)
        lines(
            axes,
            {
                "grad": ("fidelity", GREEN),
                "grad_generator": ("generator", BLUE),
                "grad_discriminator": ("discriminator", ORANGE),
            },
        )
        legend(axes)

        for metric, heading in watched.items():
            axes = panel(heading)
            if metric == "distance":
                axes.set_yscale("log")
                few_ticks(axes.yaxis)
            lines(axes, {metric: ("this run", BLUE)}, marker="o")
            levels = {name: of[metric] for name, of in (references or {}).items() if metric in of}
            for level in levels.values():
                axes.axhline(level, color=GREY, linestyle="--", linewidth=1.2)
            axes.margins(y=0.12)
            _label_levels(axes, levels, metric)
        explained = " (shaded: the adversarial phase; each phase has the same width)"
        axes.set_xlabel("step" + (explained if len(starts) > 1 else ""))


def _starts(history: list[dict[str, Any]]) -> tuple[dict[str, int], dict[str, int]]:
    """Where each phase begins and ends on one axis that all phases share."""
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    for row in history:
        start = starts.setdefault(row["phase"], max(ends.values(), default=0))
        ends[row["phase"]] = start + row["step"]
    return starts, ends


def _equal_widths(axes: Axes, edges: list[int]) -> None:
    """Gives each phase the same width, however many steps it has, and ticks at its quarters."""
    places = range(len(edges))

    def to_place(steps: np.ndarray) -> np.ndarray:
        return np.interp(steps, edges, places)

    def to_steps(place: np.ndarray) -> np.ndarray:
        return np.interp(place, places, edges)

    axes.set_xscale("function", functions=(to_place, to_steps))
    axes.set_xticks(sorted({round(step) for step in to_steps(np.arange(0, len(edges) - 0.9, 0.25))}))
    axes.xaxis.set_major_formatter("{x:.0f}")


def _label_levels(axes: Axes, levels: dict[str, float], metric: str) -> None:
    """Names dashed lines at the right edge, pushed apart where they lie close."""
    axes.autoscale_view()  # matplotlib would do so later, and move the levels
    gap = LINE / axes.get_window_extent().height
    free = -math.inf
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        height = axes.transAxes.inverted().transform(axes.transData.transform((0, level)))[1]
        free = max(height, free + gap)
        axes.annotate(
            f"{name} {format_number(metric, level)}",
            (1, height),
            (1.03, free),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            arrowprops={"arrowstyle": "-", "color": GREY},
            annotation_clip=False,
        )
