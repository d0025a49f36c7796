"""One look for all figures: pictures pixel for pixel, charts beside them, a gallery and README's results.

Every PNG carries its title, its caption and the command that made it, and the gallery reads them from there.
"""

import html
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import LogLocator, PercentFormatter
from matplotlib.transforms import Bbox
from PIL import Image, PngImagePlugin
from torch import Tensor

from common import runs

Scores = dict[str, dict[str, float]]

DPI = 100
WIDTH = 1376  # of a page: three pictures of 448 pixels, gaps and margins
MARGIN, GAP = 8, 8
SIDE = 448  # of a picture in a page of three columns: 2 x 224 and 7 x 64
TEXT, TITLE = 19, 27  # pixels: still legible when a README shows the page at 60 % of its size
LINE = 26

# Okabe and Ito's colours, which the colour-blind can tell apart
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
STYLE: dict[Any, Any] = {
    "font.size": 72 / DPI * TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}

COLUMNS = {  # heading and digits of the metrics that have a usual form
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "detail_db": ("detail, dB", 1),
    "grid": ("grid", 1),
    "low_db": ("low, dB", 1),
    "ms": ("ms a picture", 2),
    "accuracy": ("accuracy", 4),
    "f1": ("F1", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "parameters": ("parameters", 0),
    "FID-MNIST": ("FID-MNIST", 2),
    "rarest": ("rarest class", 3),
    "asked": ("read as asked", 4),
    "training, minutes": ("training, minutes", 1),
    "writing, ms a character": ("writing, ms a character", 2),
    "million parameters": ("million parameters", 2),
}
DEVIATION = "_sd"
"""Ends the name of a metric's standard deviation, which is shown beside it."""


# ---------------------------------------------------------------------------------- pages of pictures


def triples(
    path: Path,
    small: Tensor,
    made: Tensor,
    real: Tensor,
    *,
    title: str,
    caption: str,
    headings: tuple[str, str, str] = ("64×64 input", "GAN 224×224", "original 224×224"),
) -> None:
    """Rows of three: the small picture with its pixels visible, the made one, the original, at one size.

    Args:
        path: of the PNG, as in all functions here.
        small, made, real: uint8 [N,3,64,64], [N,3,224,224], [N,3,224,224]; six rows make a good page.

    Raises:
        Refused: the figure cannot be written; so do all functions here.
    """
    with new_page(path, WIDTH, LINE + len(small) * (SIDE + GAP) - GAP, title, caption) as page:
        for column, (heading, pictures) in enumerate(zip(headings, (small, made, real), strict=True)):
            x = MARGIN + column * (SIDE + GAP)
            page.text(x, 0, heading, weight="bold")
            for row, picture in enumerate(pictures):
                page.picture(x, LINE + row * (SIDE + GAP), picture)


def methods(
    path: Path,
    pictures: dict[str, Tensor],
    scores: Scores,
    milliseconds: dict[str, float],
    *,
    title: str,
    caption: str,
) -> None:
    """One crop by every method with its numbers under it, then quality against time.

    Args:
        pictures: by method, uint8 [3,h,w]; input and original are among them and need no scores.
        scores: by method, `psnr`, `ssim`, `detail_db`, `grid`, `low_db`; see `evaluation.upscaling.score`.
        milliseconds: by method, for one picture; those that are also in `scores` are in the chart.
    """
    columns, chart = 3, 470
    cell = SIDE + 3 * LINE + 2 * GAP
    rows = math.ceil(len(pictures) / columns)
    with new_page(path, WIDTH, rows * cell + chart + 60, title, caption) as page:
        for i, (name, picture) in enumerate(pictures.items()):
            x, y = MARGIN + i % columns * (SIDE + GAP), i // columns * cell
            page.picture(x, y, picture)
            page.text(x, y + SIDE + 3, name, weight="bold")
            if name in scores:
                of = {metric: _number(metric, value) for metric, value in scores[name].items()}
                page.text(x, y + SIDE + 3 + LINE, f"PSNR {of['psnr']} dB   SSIM {of['ssim']}")
                rest = f"detail {of['detail_db']} dB   grid {of['grid']}   low {of['low_db']} dB"
                page.text(x, y + SIDE + 3 + 2 * LINE, rest)

        timed = [name for name in milliseconds if name in scores]
        for i, (metric, label) in enumerate(
            [("psnr", "PSNR in dB (higher is nearer)"), ("detail_db", "detail in dB (0 is as sharp as real)")]
        ):
            axes = page.axes(75 + i * 690, rows * cell + 45, 590, chart - 65)
            axes.set_title(label, loc="left", fontsize="medium")
            axes.set_xlabel("milliseconds for one picture")
            axes.set_xscale("log")
            few_ticks(axes.xaxis)
            axes.margins(0.15, 0.12)
            xy = [(milliseconds[name], scores[name][metric]) for name in timed]
            axes.plot(*zip(*xy, strict=True), "o", color=BLUE, markersize=7)
            label_points(page, axes, timed, xy)


def grid(path: Path, pictures: Tensor, columns: int, *, title: str, caption: str) -> None:
    """Pictures, uint8 [N,3,h,w], in rows of `columns`, enlarged by a whole number to fill the page."""
    count, _, height, width = pictures.shape
    scale = max(1, (WIDTH - 2 * MARGIN + GAP) // columns // (width + GAP))
    across, down = scale * width + GAP, scale * height + GAP
    rows = math.ceil(count / columns)
    page_width = max(WIDTH // 2, 2 * MARGIN + columns * across - GAP)
    with new_page(path, page_width, rows * down - GAP, title, caption) as page:
        for i, picture in enumerate(pictures):
            page.picture(MARGIN + i % columns * across, i // columns * down, picture, scale)


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
        lines(axes, {"real": ("real pictures", GREEN), "made": ("made pictures", "#CC79A7")})
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


def few_ticks(axis: Axis) -> None:
    """1, 3, 10, 30, ... on a logarithmic axis, in plain numbers; more would run into one another."""
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


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


# ------------------------------------------------------------------------------------------- the page


class Page:
    """A figure laid out in pixels, from the top left corner of what is below title and caption."""

    def __init__(self, width: int, height: int, title: str, caption: str) -> None:
        self.figure = Figure(dpi=DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        heading = self._wrapped(title, width - 2 * MARGIN, size=72 / DPI * TITLE, weight="bold")
        lines = self._wrapped(caption, width - 2 * MARGIN)
        below = 10 + 36 * len(heading)
        self.head = below + LINE * len(lines) + 10
        self.width, self.height = width, self.head + height + MARGIN
        self.figure.set_size_inches(self.width / DPI, self.height / DPI)
        for i, line in enumerate(heading):
            self.text(MARGIN, 8 + 36 * i - self.head, line, size=72 / DPI * TITLE, weight="bold")
        for i, line in enumerate(lines):
            self.text(MARGIN, below + LINE * i - self.head, line, color="#444444")

    def size(self, text: str, **style: Any) -> tuple[float, float]:
        """Width and height of a line of text."""
        font = FontProperties(**{"size": STYLE["font.size"], **style})
        return self.canvas.get_renderer().get_text_width_height_descent(text, font, False)[:2]

    def _wrapped(self, text: str, width: int, **style: Any) -> list[str]:
        """`text` in lines of at most `width` pixels."""
        lines: list[str] = []
        for paragraph in text.splitlines():
            line = ""
            for word in paragraph.split():
                longer = f"{line} {word}" if line else word
                if line and self.size(longer, **style)[0] > width:
                    lines.append(line)
                    longer = word
                line = longer
            lines.append(line)
        return lines

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Writes a line whose top left corner is at x, y."""
        # parse_math: a $ in a caption is a dollar
        at = x / self.width, 1 - (self.head + y) / self.height
        self.figure.text(*at, text, va="top", ha="left", parse_math=False, **style)

    def picture(self, x: int, y: int, picture: Tensor, scale: int | None = None) -> None:
        """Puts uint8 [3,h,w] at x, y, each pixel a square of `scale` pixels; by default of about `SIDE`."""
        scale = scale or max(1, SIDE // max(picture.shape[-2:]))
        pixels = picture.cpu().permute(1, 2, 0).numpy()  # [h,w,3]
        pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)  # [scale*h,scale*w,3]
        self.figure.figimage(pixels, x, self.height - self.head - y - pixels.shape[0], origin="upper")

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        bottom = self.height - self.head - y - height
        place = (x / self.width, bottom / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(place)
        axes.set_axisbelow(True)
        return axes


@contextmanager
def new_page(path: Path, width: int, height: int, title: str, caption: str) -> Iterator[Page]:
    """A page to draw on; at the end it is written to `path` as a PNG with its texts in it."""
    with matplotlib.rc_context(STYLE):
        page = Page(width, height, title, caption)
        yield page
        page.canvas.draw()
        texts = PngImagePlugin.PngInfo()
        for key, text in {"Title": title, "Description": caption, "Source": runs.command()}.items():
            texts.add_itxt(key, text)
        with runs.whole(path) as beside:
            # without the alpha channel, which matplotlib's own writer would add
            Image.fromarray(np.asarray(page.canvas.buffer_rgba())[..., :3]).save(
                beside, "PNG", pnginfo=texts, compress_level=6
            )


def legend(axes: Axes, also: Axes | None = None) -> None:
    """To the right of the panel, where no line is."""
    found = [a.get_legend_handles_labels() for a in (also, axes) if a]
    handles, labels = ([item for part in parts for item in part] for parts in zip(*found, strict=True))
    axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.07, 0.5), borderaxespad=0)


def label_points(page: Page, axes: Axes, names: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
    """Writes each name beside its point, where it hides neither a point nor another name."""
    axes.autoscale_view()  # matplotlib would do so later, and move the points
    at = [axes.transData.transform(point) for point in points]  # pixels
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in at]
    inside = axes.get_window_extent()
    around = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    for name, (x, y), point in zip(names, at, points, strict=True):
        width, height = page.size(name)[0], TEXT + 3
        boxes = [
            Bbox.from_bounds(
                x + (dx - 1) / 2 * width + dx * far, y + (dy - 1) / 2 * height + dy * far, width, height
            )
            for far in (10, 18, 36, 54, 72, 90)
            for dx, dy in around
        ]
        fits = [
            box
            for box in boxes
            if inside.x0 < box.x0
            and box.x1 < inside.x1
            and inside.y0 < box.y0
            and box.y1 < inside.y1
            and not box.count_overlaps(taken)
        ]
        box = (fits or boxes)[0]
        taken.append(box)
        line = {"arrowstyle": "-", "color": GREY, "shrinkA": 0, "shrinkB": 3}
        far_off = boxes.index(box) >= 2 * len(around)
        axes.annotate(
            name,
            point,
            (box.x0, box.y0),
            textcoords="figure pixels",
            va="bottom",
            arrowprops=line if far_off else None,
        )


def _label_levels(axes: Axes, levels: dict[str, float], metric: str) -> None:
    """Names dashed lines at the right edge, pushed apart where they lie close."""
    axes.autoscale_view()  # matplotlib would do so later, and move the levels
    gap = LINE / axes.get_window_extent().height
    free = -math.inf
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        height = axes.transAxes.inverted().transform(axes.transData.transform((0, level)))[1]
        free = max(height, free + gap)
        axes.annotate(
            f"{name} {_number(metric, level)}",
            (1, height),
            (1.03, free),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            arrowprops={"arrowstyle": "-", "color": GREY},
            annotation_clip=False,
        )


# ------------------------------------------------------------------------------ gallery and results table


def publish(figs: Path) -> None:
    """Writes the gallery `figs/index.html`, and the results into the README.md beside `figs`.

    The README keeps all but what stands between its lines `<!-- results -->` and `<!-- /results -->`; one
    without them, or none, is left alone. Both texts follow from `figs/*.json` and the PNGs alone.

    Raises:
        Refused: a .json in `figs` is not a results file; a file cannot be written.
    """
    results = _results(figs)
    with runs.whole(figs / "index.html") as beside:
        beside.write_text(_gallery(figs, results), encoding="utf-8")
    readme = figs.resolve().parent / "README.md"
    if not readme.is_file():
        return
    before, begin, rest = readme.read_text(encoding="utf-8").partition("<!-- results -->\n")
    _, end, after = rest.partition("<!-- /results -->")
    if begin and end:
        with runs.whole(readme) as beside:
            beside.write_text(before + begin + results_table(figs) + end + after, encoding="utf-8")


def results_table(figs: Path) -> str:
    """What `figs/*.json` say, as Markdown: for each script its run, and its metrics beside the baselines."""
    parts = []
    for result in _results(figs):
        head, *rows = _table(result)
        lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
        facts = " · ".join(_facts(result))
        table = "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
        parts.append(f"**{result['script']}** · {facts} · `{result['command']}`\n\n{table}\n")
    return "\n".join(parts) or "No script has been run yet.\n"


def _results(figs: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(figs.glob("[!.]*.json")):  # a name with a dot is left over from a killed run
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            _table(result), _facts(result), result["command"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise runs.Refused(f"{path} is no results file ({error}); remove it") from None
        found.append(result)
    return found


def _facts(result: dict[str, Any]) -> list[str]:
    data = result["data"]
    stand_in = ", built-in stand-in" if data["builtin"] else ""
    return [
        f"{data['name']} ({data['count']:,}{stand_in})",
        f"{result['seconds'] / 60:.1f} minutes",
        str(result["device"]),
        f"commit {result['commit']}",
    ]


def _table(result: dict[str, Any]) -> list[list[str]]:
    """Heading, metrics, baselines. A script with one result may leave its name out: {"accuracy": 0.99}."""
    scores = result["metrics"]
    if not all(isinstance(values, dict) for values in scores.values()):
        scores = {"this run": scores}
    rows: Scores = {**scores, **result["baselines"]}
    found = dict.fromkeys(metric for values in rows.values() for metric in values)
    metrics = [metric for metric in found if not metric.endswith(DEVIATION)]
    table = [["method", *(COLUMNS.get(metric, (metric, 0))[0] for metric in metrics)]]
    for name, values in rows.items():
        cells = []
        for metric in metrics:
            deviation = values.get(metric + DEVIATION)
            beside = f" ± {_number(metric, deviation)}" if deviation else ""
            cells.append(_number(metric, values.get(metric)) + beside)
        table.append([name, *cells])
    return table


def _number(metric: str, value: float | None) -> str:
    """As the metric is usually written; a dash for what is missing or has no meaning."""
    # nearest's `grid` is a division by (nearly) zero
    if value is None or not math.isfinite(value) or abs(value) > 1e6:
        return "–"
    text = f"{value:.{COLUMNS[metric][1]}f}" if metric in COLUMNS else f"{value:.4g}"
    return text.replace("-", "−")


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Figures and results</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1400px; margin: 2em auto; padding: 0 1em; }}
img {{ max-width: 100%; }}
figure {{ margin: 2.5em 0; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; }}
td:first-child, th:first-child {{ text-align: left; }}
</style>
<h1>Figures and results</h1>
{results}
{figures}
</html>
"""


def _gallery(figs: Path, results: list[dict[str, Any]]) -> str:
    sections = []
    for result in results:
        head, *rows = _table(result)
        cells = [
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
            for tag, row in [("th", head), *(("td", row) for row in rows)]
        ]
        note = result["data"].get("note") or ""
        sections.append(
            f"<h2>{html.escape(str(result['script']))}</h2>\n"
            f"<p>{html.escape(' · '.join(_facts(result)))}<br>{html.escape(note)}</p>\n"
            f"<p><code>{html.escape(result['command'])}</code></p>\n"
            "<table>\n" + "\n".join(cells) + "\n</table>"
        )
    figures = []
    for path in sorted(figs.glob("[!.]*.png")):
        with Image.open(path) as image:
            texts = {
                key: html.escape(str(image.info.get(key, ""))) for key in ("Title", "Description", "Source")
            }
        name = html.escape(path.name)
        figures.append(
            f'<figure id="{name}">\n<a href="{name}"><img src="{name}" alt="{texts["Title"]}"></a>\n'
            f"<figcaption>{texts['Description']}<br><code>{texts['Source']}</code></figcaption>\n</figure>"
        )
    return PAGE.format(results="\n".join(sections), figures="\n".join(figures))
