"""The figures of upscaling show images pixel for pixel and label every point."""

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from test_figures_page import WORDS, find, noise, pixels_of

from common.figures import page
from common.figures import upscale as figures

SCORE = {"psnr": 25.6512, "ssim": 0.7381, "detail_db": -4.52, "checkerboard": 1.2, "lr_psnr": 45.0}


def test_triples_stand_in_rows_of_three_at_one_size(tmp_path: Path) -> None:
    lr, fake, hr = noise(2, 3, 64, 64), noise(2, 3, 224, 224), noise(2, 3, 224, 224) // 2
    columns = {"input": lr, "GAN": fake, "original": hr}
    figures.triples(tmp_path / "t.png", columns, title="A title " * 20, caption=WORDS)
    pixels = pixels_of(tmp_path / "t.png")
    positions = [
        [find(pixels, lr[row], 7), find(pixels, fake[row], 2), find(pixels, hr[row], 2)] for row in range(2)
    ]
    for row in positions:
        assert len({top for top, _ in row}) == 1
        assert row[0][1] + 448 < row[1][1] and row[1][1] + 448 < row[2][1]
    assert positions[0][0][0] + 448 < positions[1][0][0]


def test_methods_shows_every_image_and_labels_every_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    charts = page.Page.charts
    monkeypatch.setattr(page.Page, "charts", lambda *args: drawn.append(charts(*args)) or drawn[-1])
    names = ["nearest", "bilinear", "bicubic", "Lanczos", "linear filter", "fidelity", "GAN"]
    milliseconds = (0.1, 0.1, 0.1, 0.1, 0.9, 9.5, 9.5)
    scores = {  # some points coincide
        name: SCORE | {"psnr": 24 + i // 2, "ms": milliseconds[i]} for i, name in enumerate(names)
    }
    scores["nearest"]["checkerboard"] = math.inf
    images = {name: noise(3, 112, 112) // (i + 1) for i, name in enumerate(names)}
    images |= {"input": noise(3, 32, 32), "original": noise(3, 112, 112) // 9}
    figures.methods(tmp_path / "m.png", images, scores, title="T", caption=WORDS)

    pixels = pixels_of(tmp_path / "m.png")
    for name, image in images.items():
        find(pixels, image, 14 if name == "input" else 4)
    (figure,) = drawn
    assert len(figure.axes) == 2
    for axes in figure.axes:
        labels = [text for text in axes.texts if isinstance(text, Annotation)]
        assert [label.get_text() for label in labels] == names
        # of the text alone, without the line that leads to its point
        boxes = [super(Annotation, label).get_window_extent() for label in labels]
        for i, box in enumerate(boxes):
            assert not box.count_overlaps(boxes[:i]), labels[i].get_text()
