"""The figures of upscaling: images pixel for pixel, quality by time for every method, and sheets of images
for the gallery's slider."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from common.cli import device_name
from common.datasets.degradation import downscale
from common.datasets.images import to_float
from common.datasets.photos import Photos
from common.evaluation.lpips import Distance
from common.evaluation.upscale import SUFFIXES, detail_by_position, psnr
from common.figures import page as pages
from common.figures import training
from common.figures.page import BLUE, GAP, LINE, MARGIN, SIDE, WIDTH, few_ticks, label_points, new_page
from common.files import atomic_write
from common.results import Scores, columns, format_number

CELL = SIDE + 4 * LINE + 2 * GAP  # an image with four lines of text under it
NUMBERS = {  # under an image, two in a line
    "psnr": "PSNR {}",
    "lpips": "LPIPS {}",
    "ssim": "SSIM {}",
    "detail_db": "detail {}",
    "checkerboard": "checkerboard {}",
}
CHARTS = {"psnr": "PSNR in dB (higher is nearer)", "lpips": "LPIPS (lower is better)"}
WORST = 3
NAMES = 188  # pixels, of the column with the names of the methods
WINDOW = 64, 96  # pixels of a photo of which six stand in a row, doubled


def save_all(
    figs: Path,
    data: Photos,
    fakes: dict[str, Tensor],
    hr: Tensor,
    scores: Scores,
    lpips: Distance | None,
    *,
    trained_on: str,
    device: torch.device,
) -> None:
    """Draws the test images before and after training and by every method, the GAN's worst, and the stand-in.

    Of `hr`, uint8 [N,3,224,224], and what `evaluation.compare` made of them; with weights trained on the data
    `trained_on`, timed on `device`. `lpips` is None where it cannot be had: a dash stands for it then.

    Raises:
        UserError: a figure cannot be written; so do all functions here.
    """
    lr = downscale(hr)  # uint8 [N,3,64,64]
    shown = torch.linspace(0, len(hr) - 1, min(6, len(hr))).long()  # six that nobody chose
    note = data.note.partition("\n")[0]
    trained = f"Weights trained on {trained_on}."
    caption = f"{trained} Test images, evenly spaced over the list. {note}".strip()
    images = {name: of[shown] for name, of in (fakes | {"original": hr}).items()}
    for name, title, of in (
        ("initial", "Before training: the generator begins as the fitted linear filter", ["linear filter"]),
        ("final", "After training: every method on the same photos", list(fakes)),
    ):
        rows = {method: images[method] for method in (*of, "original")}
        full = f"{caption} Below each input: where its original has the most detail, twice as large. "
        full += f"Numbers: means over {len(hr)} images, by bilinear LR."
        photos(figs / f"GAN_upscaling_{name}.png", lr[shown], rows, scores, title=title, caption=full)
    save_sheets(figs / "gan_upscale", images)
    faults = f"{trained} The worst of {len(hr)} test images, from bilinear LR. {note}".strip()
    worst(figs / "GAN_upscaling_worst.png", lr, fakes, hr, lpips, caption=faults)

    detail = torch.stack([detail_by_position(to_float(hr[i : i + 1])).sum() for i in shown])
    crops = {name: of[detail.argmax(), :, 56:168, 56:168] for name, of in images.items()}
    title = f"Every method: means over {len(hr)} images, and the middle of one"
    caption += " Shown: the one with the most detail; nearest repeats the pixels of its LR, by bilinear.\n"
    caption += "Two numbers, PSNR and detail in dB: on bilinear LR / on bicubic LR. "
    caption += f"Times: nets on {device_name(device)}, nearest to Lanczos by Pillow on one thread."
    methods(figs / "GAN_upscaling_methods.png", crops, scores, title=title, caption=caption)

    path = figs / "GAN_upscaling_standin.png"
    path.unlink(missing_ok=True)  # of an earlier run
    if data.builtin:
        leaves = data.train.first(24).standard_images()  # uint8 [24,3,224,224]
        title, caption = "The stand-in for photos: dead leaves", "Generated, for machines without photos."
        pages.grid(path, leaves, columns=8, title=title, caption=caption)


def save_training(figs: Path, data: Photos, history: list[dict[str, Any]], references: Scores) -> None:
    """Draws the curves of a run, beside what simple methods score on the same validation images."""
    training.training_curves(
        figs / "GAN_upscaling_training.png",
        history,
        title="The balance of the two players",
        caption=f"Trained on {data.name}; scored on {len(data.validation)} images held out of training.",
        references=references,
    )


def photos(
    path: Path, lr: Tensor, images: dict[str, Tensor], scores: Scores, *, title: str, caption: str
) -> None:
    """A row of inputs, uint8 [N,3,64,64], N up to 6, and one by every method, uint8 [N,3,224,224].

    Of the latter only the window in which the original has the most detail, and the method's mean scores.
    """
    height, width = WINDOW
    hr = to_float(images["original"])
    detail = hr - F.avg_pool2d(hr, 3, stride=1, padding=1, count_include_pad=False)  # [N,3,224,224]
    amounts = F.avg_pool2d(detail.square(), WINDOW, stride=1).mean(1)  # [N,161,129]
    windows = [divmod(int(amount.argmax()), amount.shape[1]) for amount in amounts]

    across, down, first = 2 * width + GAP // 2, 2 * height + GAP // 2, 3 * lr.shape[2] + GAP
    with new_page(path, WIDTH, first + len(images) * down - GAP // 2, title, caption) as page:
        page.text(MARGIN, 0, "input, 64×64", weight="bold")
        for column, image in enumerate(lr):
            page.image(MARGIN + NAMES + column * across, 0, image, 3)
        for row, (name, of) in enumerate(images.items()):
            y = first + row * down
            lines = name.replace(", ", ",\n").splitlines()
            for i, line in enumerate(lines):
                page.text(MARGIN, y + i * LINE, line, weight="bold")
            for i, metric in enumerate(("psnr", "lpips") if name in scores else ()):
                text = NUMBERS[metric].format(format_number(metric, scores[name][metric]))
                page.text(MARGIN, y + (len(lines) + i) * LINE, text)
            for column, (image, (top, left)) in enumerate(zip(of, windows, strict=True)):
                window = image[:, top : top + height, left : left + width]
                page.image(MARGIN + NAMES + column * across, y, window, 2)


def save_sheets(folder: Path, images: dict[str, Tensor]) -> None:
    """Writes METHOD.webp for each method, its images, uint8 [N,3,224,224], one below the other."""
    for method, of in images.items():
        sheet = Image.fromarray(of.permute(0, 2, 3, 1).flatten(0, 1).contiguous().numpy())  # [N*224,224,3]
        with atomic_write(folder / f"{method}.webp") as temporary:
            sheet.save(temporary, "WEBP", quality=95, method=6)


def triples(
    path: Path,
    columns: dict[str, Tensor],
    texts: list[tuple[str, ...]] | None = None,
    *,
    title: str,
    caption: str,
) -> None:
    """Rows of three images at one size, uint8 [N,3,64,64] or [N,3,224,224] by heading of the column.

    Args:
        texts: for each row, what stands under each of its images.
    """
    rows = len(next(iter(columns.values())))
    height = SIDE + GAP + (LINE + GAP if texts else 0)
    with new_page(path, WIDTH, LINE + rows * height - GAP, title, caption) as page:
        for column, (heading, images) in enumerate(columns.items()):
            x = MARGIN + column * (SIDE + GAP)
            page.text(x, 0, heading, weight="bold")
            for row, image in enumerate(images):
                page.image(x, LINE + row * height, image)
                if texts:
                    page.text(x, LINE + row * height + SIDE + 3, texts[row][column])


def worst(
    path: Path, lr: Tensor, fakes: dict[str, Tensor], hr: Tensor, lpips: Distance | None, *, caption: str
) -> None:
    """The three images at which the GAN is worst by PSNR, and those by LPIPS: faults are to be seen, too.

    Under each input stands what bicubic has there, from the same `lr`, uint8 [N,3,64,64].
    """
    gan = fakes["GAN"]
    orders = {"PSNR": psnr(to_float(gan), to_float(hr)).argsort()}
    if lpips:
        orders["LPIPS"] = lpips(gan, hr).argsort(descending=True)
    shown = torch.cat([order[:WORST] for order in orders.values()])
    ranks = [f"worst by {name}: {i + 1}" for name, order in orders.items() for i in range(len(order[:WORST]))]

    def numbers(method: str) -> list[str]:
        fake = fakes[method][shown]
        near = psnr(to_float(fake), to_float(hr[shown])).tolist()
        far = lpips(fake, hr[shown]).tolist() if lpips else [None] * len(fake)
        of = [(format_number("psnr", a), format_number("lpips", b)) for a, b in zip(near, far, strict=True)]
        return [f"{method}: PSNR {psnr} dB, LPIPS {lpips}" for psnr, lpips in of]

    columns = {"64×64 input": lr, "GAN 224×224": gan, "original 224×224": hr}
    columns = {heading: images[shown] for heading, images in columns.items()}
    texts = zip(numbers("bicubic"), numbers("GAN"), ranks, strict=True)
    title = "The GAN's worst images, by PSNR and by LPIPS" if lpips else "The GAN's worst images, by PSNR"
    triples(path, columns, list(texts), title=title, caption=caption)


def methods(path: Path, images: dict[str, Tensor], scores: Scores, *, title: str, caption: str) -> None:
    """Crops, uint8 [3,h,w], by method with its scores (the original has none); quality by time."""
    below, height = math.ceil(len(images) / 3) * CELL + GAP, 470
    cells = columns(scores, format_number)
    with new_page(path, WIDTH, below + height, title, caption) as page:
        for i, (name, image) in enumerate(images.items()):
            x, y = MARGIN + i % 3 * (SIDE + GAP), i // 3 * CELL
            page.image(x, y, image)
            y += SIDE + 3
            page.text(x, y, name, weight="bold")
            for at, (metric, text) in enumerate(NUMBERS.items() if name in scores else ()):
                number = cells[metric][list(scores).index(name)]
                page.text(x + at % 2 * SIDE // 2, y + (1 + at // 2) * LINE, text.format(number))

        panels = page.charts(below, height).subplots(1, 2, sharex=True)
        points: dict[Axes, list[tuple[float, float]]] = {}
        for axes, (metric, heading) in zip(panels, CHARTS.items(), strict=True):
            if any(of[metric] is None for of in scores.values()):
                axes.set_title(f"{heading}: –")
                axes.set_axis_off()
                continue
            axes.set_title(heading)
            axes.set_xlabel("ms for one image (filled: bilinear LR, open: bicubic)")
            few_ticks(axes.xaxis)
            axes.margins(0.15, 0.12)
            points[axes] = []
            for suffix, fill in zip(SUFFIXES.values(), ("full", "none"), strict=True):
                times, values = zip(*((of["ms"], of[metric + suffix]) for of in scores.values()), strict=True)
                axes.plot(times, values, "o", color=BLUE, markersize=7, fillstyle=fill)
                points[axes] += zip(times, values, strict=True)
        for axes, places in points.items():
            label_points(page, axes, list(scores), places)
