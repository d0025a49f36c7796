"""The figures of upscaling: images pixel for pixel, quality by time for every method, and sheets of images
for the gallery's slider."""

import math
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from common.cli import device_name
from common.datasets.degradation import downscale
from common.datasets.images import to_float
from common.datasets.photos import Photos
from common.evaluation.lpips import Distance
from common.evaluation.upscale import SUFFIXES, finest_detail, psnr
from common.figures import page as pages
from common.figures import training
from common.figures.page import BLUE, GAP, LINE, MARGIN, WIDTH, few_ticks, label_points, new_page
from common.files import atomic_write
from common.results import HEADINGS, Scores, columns, format_number

CROP = 264  # pixels, of an image of which five stand in a row: 3 x 88
NUMBERS = {  # what a table of methods shows, and what is good
    "psnr": "higher is nearer",
    "lpips": "lower is better",
    "ssim": "up to 1",
    "detail_db": "real: 0",
    "checkerboard": "real: 1.1",
    "repeated": "real: 0.1",
    "ms": "an image",
}
CHARTS = {"psnr": "PSNR in dB (higher is nearer)", "lpips": "LPIPS (lower is better)"}
INPUT = "64×64 input"
NAMES = 188  # pixels, of the column with the names of the methods
COLUMN = 192  # pixels, of an image or window of which six stand in a row
SHOWN = "bicubic", "GAN", "original"  # where the GAN is worst


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
        full += f"Numbers: means over {len(hr)} images, made small by bilinear."
        photos(figs / f"GAN_upscaling_{name}.png", lr[shown], rows, scores, title=title, caption=full)
    save_sheets(figs / "gan_upscale", images)
    faults = f"{trained} The worst of {len(hr)} test images, made small by bilinear. {note}".strip()
    worst(figs / "GAN_upscaling_worst.png", lr, fakes, hr, lpips, caption=faults)

    detail = torch.stack([finest_detail(to_float(hr[i : i + 1])).square().mean() for i in shown])
    crops = {name: of[detail.argmax(), :, 68:156, 68:156] for name, of in images.items()}
    crops["original, whole"] = images["original"][detail.argmax()]
    title = f"Every method: means over {len(hr)} images, and the middle of one"
    caption += " Shown: the one with the most detail, made small by bilinear.\n"
    caption += "Two numbers: of images made small by bilinear / by bicubic. "
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
    path: Path,
    lr: Tensor,
    images: dict[str, Tensor],
    scores: Scores,
    texts: dict[str, list[str]] | None = None,
    *,
    height: int = 56,
    title: str,
    caption: str,
) -> None:
    """A row of inputs, uint8 [N,3,64,64], N up to 6, and one by every method, uint8 [N,3,224,224].

    Of the latter only the window, of so many pixels in `height`, in which the original has the most detail.
    Beside a row are the method's mean `scores`, and under each of its images its text, where there are any.
    """
    window = height, COLUMN // 2
    detail = finest_detail(to_float(images["original"]))  # [N,3,224,224]
    amounts = F.avg_pool2d(detail.square(), window, stride=1).mean(1)  # [N,225-height,129]
    corners = [divmod(int(amount.argmax()), amount.shape[1]) for amount in amounts]
    rows = {INPUT: lr} | {
        name: torch.stack([TF.crop(x, *corner, *window) for x, corner in zip(of, corners, strict=True)])
        for name, of in images.items()
    }
    texts = texts or {}
    heights = [COLUMN * of.shape[2] // of.shape[3] + LINE * (name in texts) for name, of in rows.items()]
    places = accumulate((each + GAP // 2 for each in heights), initial=0)
    with new_page(path, WIDTH, sum(heights) + GAP // 2 * len(images), title, caption) as page:
        for (name, of), y in zip(rows.items(), places, strict=False):
            lines = name.replace(", ", ",\n").splitlines()
            for i, line in enumerate(lines):
                page.text(MARGIN, y + i * LINE, line, weight="bold")
            for i, metric in enumerate(("psnr", "lpips") if name in scores else ()):
                text = f"{metric.upper()} {format_number(metric, scores[name][metric])}"
                page.text(MARGIN, y + (len(lines) + i) * LINE, text)
            for column, image in enumerate(of):
                x, scale = MARGIN + NAMES + column * (COLUMN + GAP // 2), COLUMN // of.shape[3]
                page.image(x, y, image, scale)
                if name in texts:
                    page.text(x, y + scale * of.shape[2] + 2, texts[name][column])


def save_sheets(folder: Path, images: dict[str, Tensor]) -> None:
    """Writes METHOD.webp for each method, its images, uint8 [N,3,224,224], one below the other."""
    for method, of in images.items():
        sheet = Image.fromarray(of.permute(0, 2, 3, 1).flatten(0, 1).contiguous().numpy())  # [N*224,224,3]
        with atomic_write(folder / f"{method}.webp") as temporary:
            sheet.save(temporary, "WEBP", quality=95, method=6)


def worst(
    path: Path, lr: Tensor, fakes: dict[str, Tensor], hr: Tensor, lpips: Distance | None, *, caption: str
) -> None:
    """The six images at which the GAN is worst by PSNR or by LPIPS, beside bicubic: faults are to be seen.

    Of `hr`, uint8 [N,3,224,224], and what was made of `lr`, uint8 [N,3,64,64].
    """

    def numbers(fake: Tensor, hr: Tensor) -> dict[str, Tensor]:  # each [N]
        return {"psnr": psnr(to_float(fake), to_float(hr))} | ({"lpips": lpips(fake, hr)} if lpips else {})

    # by each metric, the rank of each image, and the six with the lowest ranks by any
    gan = numbers(fakes["GAN"], hr)
    ranks = torch.stack([(of if metric == "psnr" else -of).argsort().argsort() for metric, of in gan.items()])
    shown = ranks.amin(0).argsort(stable=True)[:6]
    texts = {INPUT: [" / ".join(map(str, of)) for of in (ranks.T[shown] + 1).tolist()]}
    everything = fakes | {"original": hr}
    images = {name: everything[name][shown] for name in SHOWN}
    near = {"bicubic": numbers(images["bicubic"], images["original"])}
    near["GAN"] = {metric: of[shown] for metric, of in gan.items()}
    for name, of in near.items():
        rows = torch.stack([*of.values()], 1).tolist()
        texts[name] = [" / ".join(map(format_number, of, row)) for row in rows]
    by = "PSNR / LPIPS" if lpips else "PSNR"
    caption += " Below each input: where its original has the most detail, twice as large. Numbers: rank by "
    caption += f"the GAN's {by}, 1 is the worst; {by} of bicubic and GAN on the whole image."
    title = f"The GAN's worst images, by {by.replace('/', 'or')}"
    photos(path, lr[shown], images, {}, texts, height=96, title=title, caption=caption)


def methods(path: Path, images: dict[str, Tensor], scores: Scores, *, title: str, caption: str) -> None:
    """Images, uint8 [3,h,w], of each method and of the original; a table of scores; quality by time."""
    cells = columns(scores, format_number)
    headings = HEADINGS | {"ms": "ms"}  # which goes on in the line below
    numbers = ([headings.get(metric, metric), good, *cells[metric]] for metric, good in NUMBERS.items())
    table = [["", "", *scores], *numbers]
    pitch, height = CROP + LINE + GAP, 380
    top = math.ceil(len(images) / 5) * pitch + GAP
    below = top + len(table[0]) * LINE + GAP
    with new_page(path, WIDTH, below + height, title, caption) as page:
        for i, (name, image) in enumerate(images.items()):
            x, y = MARGIN + i % 5 * (CROP + GAP), i // 5 * pitch
            page.image(x, y, image, CROP // image.shape[2])
            page.text(x, y + CROP + 3, name, weight="bold")
        for column, texts in enumerate(table):
            x = MARGIN + (86 + column * 162 if column else 0)  # the names are longer than the numbers
            for row, text in enumerate(texts):
                page.text(x, top + row * LINE, text, weight="normal" if row and column else "bold")

        panels = page.charts(below, height).subplots(1, 2, sharex=True)
        points: dict[Axes, list[tuple[float, float]]] = {}
        for axes, (metric, heading) in zip(panels, CHARTS.items(), strict=True):
            if any(of[metric] is None for of in scores.values()):
                axes.set_title(f"{heading}: –")
                axes.set_axis_off()
                continue
            axes.set_title(heading)
            axes.set_xlabel("ms an image; filled: bilinear, open: bicubic")
            few_ticks(axes.xaxis)
            axes.margins(0.15, 0.2)
            points[axes] = []
            for suffix, fill in zip(SUFFIXES.values(), ("full", "none"), strict=True):
                times, values = zip(*((of["ms"], of[metric + suffix]) for of in scores.values()), strict=True)
                axes.plot(times, values, "o", color=BLUE, markersize=7, fillstyle=fill)
                points[axes] += zip(times, values, strict=True)
        for axes, places in points.items():
            label_points(page, axes, list(scores), places)
