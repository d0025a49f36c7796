"""The figures of upscaling: images pixel for pixel at one size, and quality by time for every method."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.cli import device_name
from common.datasets.degradation import downscale
from common.datasets.images import to_float
from common.datasets.photos import Photos
from common.evaluation.upscale import Method, detail_by_position, score
from common.figures import page as pages
from common.figures import training
from common.figures.page import BLUE, GAP, LINE, MARGIN, SIDE, WIDTH, few_ticks, label_points, new_page
from common.results import Scores, format_number

CELL = SIDE + 3 * LINE + 2 * GAP  # an image with three lines of text under it
CHARTS = {"psnr": "PSNR in dB (higher is nearer)", "detail_db": "detail in dB (0 is as sharp as real)"}


def save_all(
    figs: Path,
    data: Photos,
    lr: Tensor,
    fakes: dict[str, Tensor],
    hr: Tensor,
    scores: Scores,
    *,
    trained_on: str,
    device: torch.device,
) -> None:
    """Draws the test images before and after training and by every method, and the stand-in for photos.

    Of `lr` and `hr`, uint8 [N,3,64,64] and [N,3,224,224], and what `evaluation.compare` made of them; with
    weights trained on the data `trained_on`, timed on `device`.

    Raises:
        UserError: a figure cannot be written; so do all functions here.
    """
    shown = torch.linspace(0, len(hr) - 1, min(6, len(hr))).long()  # six that nobody chose
    note = data.note.partition("\n")[0]
    caption = f"Weights trained on {trained_on}. Test images, evenly spaced over the list. {note}".strip()
    for name, method, title in (
        ("initial", "linear filter", "Before training: the generator begins as the fitted linear filter"),
        ("final", "GAN", "After training: low resolution, the GAN's, original"),
    ):
        columns = {"64×64 input": lr, f"{method} 224×224": fakes[method], "original 224×224": hr}
        columns = {heading: images[shown] for heading, images in columns.items()}
        triples(figs / f"GAN_upscaling_{name}.png", columns, title=title, caption=caption)

    detail = torch.stack([detail_by_position(to_float(hr[i : i + 1])).sum() for i in shown])
    i = shown[detail.argmax()]
    crops = {"input": lr[i, :, 16:48, 16:48]}
    crops |= {name: images[i, :, 56:168, 56:168] for name, images in (fakes | {"original": hr}).items()}
    title = f"Every method: means over {len(hr)} images, and the middle of one"
    caption += f" Shown: the one with the most detail.\nTimes: nets on {device_name(device)}; "
    caption += "nearest to Lanczos by Pillow, on one thread."
    methods(figs / "GAN_upscaling_methods.png", crops, scores, title=title, caption=caption)

    path = figs / "GAN_upscaling_standin.png"
    path.unlink(missing_ok=True)  # of an earlier run
    if data.builtin:
        images = data.train.first(24).standard_images()  # uint8 [24,3,224,224]
        title, caption = "The stand-in for photos: dead leaves", "Generated, for machines without photos."
        pages.grid(path, images, columns=8, title=title, caption=caption)


def save_training(
    figs: Path, data: Photos, history: list[dict[str, Any]], methods: dict[str, Method]
) -> None:
    """Draws the curves of a run, beside two methods on the same validation images."""
    hr = data.validation.standard_images()  # uint8 [N,3,224,224]
    training.training_curves(
        figs / "GAN_upscaling_training.png",
        history,
        title="The balance of the two players",
        caption=f"Trained on {data.name}; scored on {len(hr)} images held out of training.",
        references={name: score(methods[name](downscale(hr)), hr) for name in ("bicubic", "linear filter")},
    )


def triples(path: Path, columns: dict[str, Tensor], *, title: str, caption: str) -> None:
    """Rows of three images at one size, uint8 [N,3,64,64] or [N,3,224,224] by heading of the column."""
    rows = len(next(iter(columns.values())))
    with new_page(path, WIDTH, LINE + rows * (SIDE + GAP) - GAP, title, caption) as page:
        for column, (heading, images) in enumerate(columns.items()):
            x = MARGIN + column * (SIDE + GAP)
            page.text(x, 0, heading, weight="bold")
            for row, image in enumerate(images):
                page.image(x, LINE + row * (SIDE + GAP), image)


def methods(path: Path, images: dict[str, Tensor], scores: Scores, *, title: str, caption: str) -> None:
    """Crops, uint8 [3,h,w], by method with its scores (input and original have none); quality by time."""
    below, height = math.ceil(len(images) / 3) * CELL + GAP, 470
    with new_page(path, WIDTH, below + height, title, caption) as page:
        for i, (name, image) in enumerate(images.items()):
            x, y = MARGIN + i % 3 * (SIDE + GAP), i // 3 * CELL
            page.image(x, y, image)
            page.text(x, y + SIDE + 3, name, weight="bold")
            if name in scores:
                of = {metric: format_number(metric, value) for metric, value in scores[name].items()}
                line = f"PSNR {of['psnr']} dB   SSIM {of['ssim']}   detail {of['detail_db']} dB"
                page.text(x, y + SIDE + 3 + LINE, line)
                line = f"checkerboard {of['checkerboard']}   LR PSNR {of['lr_psnr']} dB"
                page.text(x, y + SIDE + 3 + 2 * LINE, line)

        panels = page.charts(below, height).subplots(1, 2)
        points = [[(of["ms"], of[metric]) for of in scores.values()] for metric in CHARTS]
        for axes, at, label in zip(panels, points, CHARTS.values(), strict=True):
            axes.set_title(label)
            axes.set_xlabel("milliseconds for one image")
            axes.set_xscale("log")
            few_ticks(axes.xaxis)
            axes.margins(0.15, 0.12)
            axes.plot(*zip(*at, strict=True), "o", color=BLUE, markersize=7)
        for axes, at in zip(panels, points, strict=True):
            label_points(page, axes, list(scores), at)
