"""One look for all figures: images pixel for pixel, charts beside them, title and caption above.

Every PNG carries its title, its caption and the command that made it; the gallery reads them from there.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox
from PIL import Image, PngImagePlugin
from torch import Tensor

from common import results
from common.cli import command
from common.files import atomic_write

DPI = 100
WIDTH = 1376  # pixels, of a page: a README shows it at about 900
MARGIN, GAP = 8, 8
TEXT, TITLE = 19, 27  # pixels: still legible when a README shows the page at 60 % of its size
LINE = 26

FONT = "DejaVu Sans"  # comes with matplotlib

# Okabe and Ito's colours, which the colour-blind can distinguish
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"
DASHES = "--", ":", "-.", (0, (8, 2, 1, 2, 1, 2))  # of levels to compare with
SHADE = "#f6f3ea"  # of a part of a chart
LEGEND = {"borderaxespad": 0.2, "borderpad": 0, "handlelength": 1.2, "handletextpad": 0.4, "columnspacing": 1}
STYLE: dict[str, Any] = {  # over matplotlib's own defaults, whatever settings were inherited
    "font.family": FONT,
    "text.parse_math": False,  # a $ is a dollar
    "font.size": 72 / DPI * TEXT,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}


def printable(text: str) -> str:
    """`text` with escapes for all that the font cannot show, except line breaks."""
    return results.printable(text, _characters())


@cache
def _characters() -> frozenset[int]:
    """Those that the font has, regular and bold."""
    fonts = [get_font(findfont(FontProperties(family=FONT, weight=weight))) for weight in ("normal", "bold")]
    return frozenset.intersection(*(frozenset(font.get_charmap()) for font in fonts))


class Page:
    """A figure laid out in pixels, from the top left corner of what is below title and caption."""

    def __init__(self, width: int, height: int, title: str, caption: str) -> None:
        self.figure = Figure(dpi=DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        bold: dict[str, Any] = {"size": 72 / DPI * TITLE, "weight": "bold"}
        heading = self._wrapped(printable(title), width, **bold)
        lines = self._wrapped(printable(caption), width)
        below = 8 + 36 * len(heading)
        self.width, self.head = width, below + LINE * len(lines) + 12
        self.height = self.head + height + MARGIN
        self.figure.set_size_inches(self.width / DPI, self.height / DPI)
        for i, line in enumerate(heading):
            self.text(MARGIN, 8 + 36 * i - self.head, line, **bold)
        for i, line in enumerate(lines):
            self.text(MARGIN, below + LINE * i - self.head, line, color="#444444")

    def width_of(self, text: str, **font: Any) -> float:
        """Pixels that a line of text takes."""
        measure = self.canvas.get_renderer().get_text_width_height_descent
        return measure(printable(text), FontProperties(**font), False)[0]

    def _wrapped(self, text: str, width: int, **font: Any) -> list[str]:
        """`text` in lines that fit a page; words as long as paths can be are cut."""
        lines: list[str] = []
        for paragraph in text.splitlines():
            lines.append("")
            for part in re.findall(r"\S{1,25}\s?", paragraph):
                if self.width_of(lines[-1] + part.rstrip(), **font) > width - 2 * MARGIN:
                    lines.append("")
                lines[-1] += part
        return lines

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Writes a line whose top left corner is at x, y."""
        at = x / self.width, 1 - (self.head + y) / self.height
        self.figure.text(*at, text, va="top", ha="left", **style)

    def image(self, x: int, y: int, image: Tensor, scale: int) -> None:
        """Puts uint8 [3,h,w] at x, y, each pixel a square of `scale` pixels."""
        pixels = image.cpu().permute(1, 2, 0).numpy()  # [h,w,3]
        pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)  # [scale*h,scale*w,3]
        self.figure.figimage(pixels, x, self.height - self.head - y - pixels.shape[0], origin="upper")

    def charts(
        self, y: float = 0, height: float | None = None, x: float = 0, width: float | None = None
    ) -> SubFigure:
        """A part of the page, in pixels, in which matplotlib's constrained layout finds places for subplots.

        By default all below title and caption, from edge to edge. A page can have several; each has
        matplotlib's own `subplots`, `subfigures`, `suptitle` and `legend(loc="outside upper left")`.
        """
        above = self.head + y
        height = self.height - above if height is None else height
        width = self.width - x if width is None else width
        sizes = (above, height, self.height - above - height), (x, width, self.width - x - width)
        rows, columns = np.maximum(sizes, 1e-3)  # a grid needs some size everywhere
        self.figure.set_layout_engine("constrained", w_pad=MARGIN / DPI, h_pad=MARGIN / DPI)
        cells = self.figure.add_gridspec(3, 3, height_ratios=rows, width_ratios=columns)
        return self.figure.add_subfigure(cells[1, 1])

    def settle(self) -> None:
        """Gives all charts their final places, for what is then put beside their points in pixels."""
        for text in self.figure.findobj(Text):
            text.set_text(printable(text.get_text()))
        for axes in self.figure.axes:
            axes.autoscale_view()  # matplotlib would do so later, and move the points
        if engine := self.figure.get_layout_engine():
            engine.execute(self.figure)


@contextmanager
def new_page(path: Path, width: int, height: int, title: str, caption: str) -> Iterator[Page]:
    """A page to draw on; at the end it is written to `path` as a PNG with its texts in it.

    Raises:
        UserError: the file cannot be written.
    """
    with matplotlib.style.context(["default", STYLE]):
        page = Page(width, height, title, caption)
        yield page
        page.settle()
        page.canvas.draw()
        texts = PngImagePlugin.PngInfo()
        for key, text in {"Title": title, "Description": caption, "Source": command()}.items():
            texts.add_itxt(key, results.printable(text))
        # without the alpha channel, which matplotlib's own writer would add
        image = Image.fromarray(np.asarray(page.canvas.buffer_rgba())[..., :3])
        with atomic_write(path) as temporary:
            image.save(temporary, "PNG", pnginfo=texts, compress_level=6)


def grid(path: Path, images: Tensor, columns: int, *, title: str, caption: str) -> None:
    """Images, uint8 [N,3,h,w], in rows of `columns`, enlarged by a whole number to fill the page."""
    count, _, height, width = images.shape
    scale = max(1, (WIDTH - 2 * MARGIN + GAP) // columns // (width + GAP))
    across, down = scale * width + GAP, scale * height + GAP
    page_width = max(WIDTH // 2, 2 * MARGIN + columns * across - GAP)
    with new_page(path, page_width, -(-count // columns) * down - GAP, title, caption) as page:
        for i, image in enumerate(images):
            page.image(MARGIN + i % columns * across, i // columns * down, image, scale)


def few_ticks(axis: XAxis | YAxis, within: tuple[int, ...] = (1, 3)) -> None:
    """Makes an axis logarithmic, with plain numbers at 1, 3, 10, 30; more would run into one another.

    Over many powers of ten all but the first `within` each must be left out, else matplotlib finds none.
    """
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=within))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def head(axes: Axes, heading: str, also: Axes | None = None) -> None:
    """A heading, and under it the names of the lines of one or two axes in a row, where no line is."""
    axes.set_title(heading, pad=34)
    handles = [handle for part in (axes, also) if part for handle in part.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=9, **LEGEND)


AROUND = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)])
PLACES = [(distance, side) for distance in (10, 18, 36, 54, 72, 90) for side in AROUND]


def label_points(page: Page, axes: Axes, names: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
    """Writes each name beside its point, where it hides neither a point nor another name; there may be more
    points than names.

    Call it when the charts of the page are complete: what moves them later moves the points away.
    """
    page.settle()
    inside = axes.get_window_extent()
    at = axes.transData.transform(points)  # [N,2], pixels
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in at]
    for name, centre, point in zip(names, at, points, strict=False):
        size = np.array([page.width_of(name), TEXT + 3])
        for distance, side in (*PLACES, PLACES[0]):  # the first is the last resort
            corner = centre + (side - 1) / 2 * size + side * distance
            box = Bbox.from_bounds(*corner, *size)
            if inside.contains(*box.p0) and inside.contains(*box.p1) and not box.count_overlaps(taken):
                break
        taken.append(box)
        line = {"arrowstyle": "-", "color": GREY, "shrinkA": 0, "shrinkB": 3} if distance > 18 else None
        label = axes.annotate(name, point, corner, textcoords="figure pixels", va="bottom", arrowprops=line)
        label.set_in_layout(False)
