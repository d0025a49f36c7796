"""One look for all figures: pictures pixel for pixel, charts beside them, a gallery and README's results.

Every PNG carries its title, its caption and the command that made it, and the gallery reads them from there.
"""

import math
from pathlib import Path

from torch import Tensor

from common.figures.page import BLUE, GAP, LINE, MARGIN, SIDE, WIDTH, few_ticks, label_points, new_page
from common.results import Scores, format_number

DPI = 100
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
                of = {metric: format_number(metric, value) for metric, value in scores[name].items()}
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
