"""One look for all figures: pictures pixel for pixel, charts beside them, a gallery and README's results.

Every PNG carries its title, its caption and the command that made it, and the gallery reads them from there.
"""

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
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox
from PIL import Image, PngImagePlugin
from torch import Tensor

from common.cli import command
from common.files import atomic_write

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


def few_ticks(axis: Axis) -> None:
    """1, 3, 10, 30, ... on a logarithmic axis, in plain numbers; more would run into one another."""
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


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

    def charts(self, y: float = 0, height: float | None = None) -> Figure:
        """The figure, whose own subplots find their places from `y` down (matplotlib's constrained layout).

        Args:
            y, height: of the part of the page for charts, in pixels; by default all below title and caption.
        """
        down = self.height - self.head - y if height is None else height
        rect = (0, 1 - (self.head + y + down) / self.height, 1, down / self.height)
        self.figure.set_layout_engine("constrained", rect=rect, w_pad=0.08, h_pad=0.08)
        return self.figure

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
        for key, text in {"Title": title, "Description": caption, "Source": command()}.items():
            texts.add_itxt(key, text)
        with atomic_write(path) as temporary:
            # without the alpha channel, which matplotlib's own writer would add
            Image.fromarray(np.asarray(page.canvas.buffer_rgba())[..., :3]).save(
                temporary, "PNG", pnginfo=texts, compress_level=6
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
