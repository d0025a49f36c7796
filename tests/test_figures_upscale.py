"""The figures of upscaling show images pixel for pixel and label every point."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image
from test_figures_page import WORDS, find, noise, pixels_of
from torch import Tensor

from common.datasets.images import to_float
from common.evaluation.upscale import psnr
from common.figures import page
from common.figures import upscale as figures

SCORE = {"psnr": 25.6512, "lpips": 0.1223, "ssim": 0.7381, "detail_db": -4.52, "checkerboard": 1.2}
SCORE["repeated"] = 2.9
SCORE |= {f"{name}_bicubic": 0.99 * value for name, value in SCORE.items()}
NAMES = ["nearest", "bilinear", "bicubic", "Lanczos", "linear filter"]
NAMES += ["fidelity", "fidelity, self-ensemble", "GAN"]
MILLISECONDS = (0.1, 0.1, 0.1, 0.1, 0.9, 9.5, 76.0, 9.5)


def test_photos_stand_in_columns_under_their_input_and_every_method_in_a_row(tmp_path: Path) -> None:
    lr, hr = noise(2, 3, 64, 64), noise(2, 3, 224, 224) // 9
    for i in range(2):  # where the detail is
        hr[i, :, 10 + i : 66 + i, 20 * i : 20 * i + 96] *= 9
    images = {name: noise(2, 3, 224, 224) // (i + 2) for i, name in enumerate(NAMES)} | {"original": hr}
    figures.photos(tmp_path / "p.png", lr, images, dict.fromkeys(NAMES, SCORE), title="T", caption=WORDS)
    pixels = pixels_of(tmp_path / "p.png")
    assert pixels.shape[0] < 1.3 * pixels.shape[1], "a page, that a README can show"
    for i in range(2):
        top, left = find(pixels, lr[i], 3)
        column = pixels[top + 3 * 64 + 4 :, left : left + 2 * 96]
        for row, of in enumerate(images.values()):  # each pixel a square of two
            shown = column[row * (2 * 56 + 4) :][: 2 * 56 : 2, ::2]
            assert (shown == of[i, :, 10 + i : 66 + i, 20 * i : 20 * i + 96].permute(1, 2, 0).numpy()).all()


def test_a_sheet_for_each_method_has_its_images_one_below_the_other(tmp_path: Path) -> None:
    flat = torch.arange(0, 240, 40, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 224, 224)
    figures.save_sheets(tmp_path / "gan_upscale", {"GAN": flat, "fidelity, self-ensemble": 255 - flat})
    assert {path.name for path in (tmp_path / "gan_upscale").iterdir()} == {
        "GAN.webp",
        "fidelity, self-ensemble.webp",
    }
    with Image.open(tmp_path / "gan_upscale" / "GAN.webp") as sheet:
        assert sheet.size == (224, 6 * 224)
        shown = [sheet.getpixel((112, 112 + 224 * i))[0] for i in range(6)]
    assert all(abs(of - wanted) <= 2 for of, wanted in zip(shown, range(0, 240, 40), strict=True))


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on pages."""
    written: list[str] = []
    text = page.Page.text
    monkeypatch.setattr(
        page.Page,
        "text",
        lambda self, x, y, line, **style: (written.append(line), text(self, x, y, line, **style)),
    )
    return written


@pytest.mark.parametrize("measured", [True, False])
def test_methods_shows_every_image_and_labels_every_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], measured: bool
) -> None:
    drawn: list[Figure] = []
    charts = page.Page.charts
    monkeypatch.setattr(page.Page, "charts", lambda *args: drawn.append(charts(*args)) or drawn[-1])
    scores = {  # some points coincide
        name: SCORE | {"psnr": 24 + i // 2, "ms": MILLISECONDS[i]} for i, name in enumerate(NAMES)
    }
    scores["nearest"]["checkerboard"] = math.inf
    for of in scores.values():
        of |= {} if measured else {"lpips": None, "lpips_bicubic": None}
    images = {name: noise(3, 88, 88) // (i + 1) for i, name in enumerate([*NAMES, "original"])}
    images["whole"] = noise(3, 224, 224)
    figures.methods(tmp_path / "m.png", images, scores, title="T", caption=WORDS)

    pixels = pixels_of(tmp_path / "m.png")
    assert pixels.shape[0] < 1.3 * pixels.shape[1], "a page, that a README can show"
    for name, image in images.items():
        find(pixels, image, 1 if name == "whole" else 3)
    start = texts.index("checkerboard")
    assert texts[start : start + 4] == ["checkerboard", "real: 1.1", "– / 1.19", "1.20 / 1.19"]
    assert texts.count("0.738 / 0.731") == len(NAMES) and "76.00" in texts
    assert texts.count("0.122 / 0.121" if measured else "– / –") == len(NAMES)
    (figure,) = drawn
    nearness, lpips = figure.axes
    assert lpips.get_title(loc="left") == "LPIPS (lower is better)" + ": –" * (not measured)
    assert lpips.axison == measured
    for axes in (nearness, lpips)[: 1 + measured]:
        labels = [text for text in axes.texts if isinstance(text, Annotation)]
        assert [label.get_text() for label in labels] == NAMES
        # of the text alone, without the line that leads to its point
        boxes = [super(Annotation, label).get_window_extent() for label in labels]
        for i, box in enumerate(boxes):
            assert not box.count_overlaps(boxes[:i]), labels[i].get_text()
        filled, open_ = axes.lines
        metric = "psnr" if axes is nearness else "lpips"
        assert list(filled.get_ydata()) == [of[metric] for of in scores.values()]
        assert list(open_.get_ydata()) == [of[f"{metric}_bicubic"] for of in scores.values()]


@pytest.mark.parametrize("measured", [True, False])
def test_the_worst_stand_first_with_their_ranks_and_numbers(
    tmp_path: Path, texts: list[str], measured: bool
) -> None:
    lr, hr = noise(8, 3, 64, 64), noise(8, 3, 224, 224)
    gan = hr.clone()
    for i in range(8):  # the last is the worst by PSNR
        gan[i, :, :, : 8 * i + 8] //= 2

    def brightness(fake: Tensor, hr: Tensor) -> Tensor:
        return fake.float().mean((1, 2, 3)) / 255  # by this the first is the worst

    fakes, lpips = {"fidelity": hr, "GAN": gan, "bicubic": hr // 2}, brightness if measured else None
    figures.worst(tmp_path / "w.png", lr, fakes, hr, lpips, caption="")
    pixels = pixels_of(tmp_path / "w.png")
    assert pixels.shape[0] < 1.3 * pixels.shape[1], "a page, that a README can show"
    shown = [0, 7, 1, 6, 2, 5] if measured else [7, 6, 5, 4, 3, 2]
    places = [find(pixels, lr[i], 3) for i in shown]
    assert len({top for top, _ in places}) == 1
    lefts = [left for _, left in places]
    assert min(b - a for a, b in itertools.pairwise(lefts)) >= 192
    ranks = [f"{8 - i} / {i + 1}" if measured else f"{8 - i}" for i in shown]
    rows = [texts[i + 1 : i + 7] for i, text in enumerate(texts) if text in ("64×64 input", "bicubic", "GAN")]
    assert rows[0] == ranks
    for row, fake in zip(rows[1:], (hr // 2, gan), strict=True):
        near, far = psnr(to_float(fake), to_float(hr)), brightness(fake, hr)
        assert row == [f"{near[i]:.2f}" + f" / {far[i]:.3f}" * measured for i in shown]
