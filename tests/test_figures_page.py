"""Figures show pictures pixel for pixel and crop nothing; gallery and README say what the files say."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from PIL import Image
from torch import Tensor

from common import cli, results
from common.cli import UserError
from common.figures import page
from common.figures import training as training_figures

SCORE = {"psnr": 25.6512, "ssim": 0.7381, "detail_db": -4.52, "grid": 1.2, "low_db": 45.0}
WORDS = r"<b>costs</b> $1 & \more, in $HOME, " * 12  # as a formula it would be an error


def noise(*shape: int) -> Tensor:
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape))
    )


def pixels_of(path: Path) -> np.ndarray:
    """The PNG as [h,w,3]; its edge is checked to be white, so that nothing is cut off there."""
    with Image.open(path) as image:
        assert image.mode == "RGB"
        pixels = np.asarray(image)
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all(), "something reaches the edge of the page"
    return pixels


def find(pixels: np.ndarray, picture: Tensor, scale: int) -> tuple[int, int]:
    """Top and left of a picture that is on the page, each pixel a square of `scale`; fails if it is not."""
    wanted = picture.permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)
    height, width = wanted.shape[:2]
    room = pixels[: -height or None, : -width or None]
    for top, left in np.argwhere((room == wanted[0, 0]).all(-1)):
        if (pixels[top : top + height, left : left + width] == wanted).all():
            return int(top), int(left)
    raise AssertionError("the picture is not on the page pixel for pixel")


def test_grid_enlarges_by_a_whole_number(tmp_path: Path) -> None:
    pictures = noise(5, 3, 40, 56)
    page.grid(tmp_path / "g.png", pictures, 3, title="Grid", caption="")
    pixels = pixels_of(tmp_path / "g.png")
    scale = (page.WIDTH - 2 * page.MARGIN) // 3 // (56 + page.GAP)
    assert scale > 1
    places = [find(pixels, picture, scale) for picture in pictures]
    assert places == sorted(places) and len({top for top, _ in places}) == 2


def spy(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """Collects the charts that are drawn."""
    charts: list[Axes] = []
    original = page.Page.axes

    def axes(self: page.Page, *place: float) -> Axes:
        charts.append(original(self, *place))
        return charts[-1]

    monkeypatch.setattr(page.Page, "axes", axes)
    return charts


def history() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"phase": "fidelity", "step": 0, "psnr": 25.0, "detail_db": -20.0}]
    rows += [{"phase": "fidelity", "step": s, "loss": 1 / s, "grad": 0.1} for s in range(10, 301, 10)]
    rows += [{"phase": "gan", "step": 0, "psnr": 26.0, "detail_db": -15.0}]
    players = {
        "loss_generator": -0.2,
        "loss_discriminator": 1.8,
        "grad_generator": 1,
        "grad_discriminator": 2,
    }
    rows += [
        {"phase": "gan", "step": s, "accuracy_real": 0.7, "accuracy_fake": 0.6, **players}
        for s in range(5, 101, 5)
    ]
    rows[-1] |= {"psnr": 25.5, "detail_db": math.nan}
    return rows


def test_balance_puts_both_phases_on_one_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    charts = spy(monkeypatch)
    references = {"bicubic": {"psnr": 24.59, "detail_db": -28.7}, "Lanczos": {"psnr": 24.60}}
    training_figures.balance(tmp_path / "b.png", history(), title="T", caption="C", references=references)
    pixels_of(tmp_path / "b.png")
    _, accuracy, gradients, psnr, detail = charts
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in accuracy.lines}
    assert lines["made pictures"][0].tolist() == [305, 0.6]
    assert lines["real pictures"][-1].tolist() == [400, 0.7]
    norms = {str(line.get_label()): np.asarray(line.get_xydata()) for line in gradients.lines}
    assert norms["fidelity"][-1].tolist() == [300, 0.1] and norms["generator"][0].tolist() == [305, 1]
    run = next(line for line in psnr.lines if line.get_label() == "this run")
    assert np.asarray(run.get_xydata()).tolist() == [[0, 25], [300, 26], [400, 25.5]]
    levels = [np.asarray(line.get_ydata())[0] for line in psnr.lines if line.get_linestyle() == "--"]
    assert levels == [24.59, 24.60]
    assert [text.get_text() for text in psnr.texts] == ["bicubic 24.59", "Lanczos 24.60"]
    bicubic, lanczos = (super(Annotation, text).get_window_extent() for text in psnr.texts)
    assert bicubic.y1 <= lanczos.y0
    assert [text.get_text() for text in detail.texts] == ["bicubic −28.7"]


def test_balance_of_one_phase_alone(tmp_path: Path) -> None:
    rows = [row for row in history() if row["phase"] == "gan"]
    training_figures.balance(tmp_path / "b.png", rows, title="T", caption="")
    pixels_of(tmp_path / "b.png")


def test_a_figure_carries_its_texts_and_changes_no_settings(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    page.grid(tmp_path / "g.png", noise(1, 3, 9, 9), 1, title="«Title»", caption=WORDS)
    assert dict(matplotlib.rcParams) == before
    with Image.open(tmp_path / "g.png") as image:
        texts = (image.info["Title"], image.info["Description"], image.info["Source"])
    assert texts == ("«Title»", WORDS, cli.command())


def test_a_figure_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "g.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError):
        page.grid(path, noise(3, 9, 9), 1, title="", caption="")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        page.grid(tmp_path / "file" / "g.png", noise(1, 3, 9, 9), 1, title="", caption="")


# ------------------------------------------------------------------------------ gallery and results table

UPSCALE = {
    "script": "gan_upscale",
    "command": "python gan_upscale.py --minutes 20",
    "data": {"name": "<photos|mine>", "count": 1234, "builtin": False, "note": "R&D"},
    "metrics": {"GAN": SCORE | {"ms": 9.51}},
    "baselines": {
        "nearest": SCORE | {"grid": math.inf, "ms": 0.11},
        "bicubic": {"psnr": 24.59, "ssim": math.nan},
    },
    "seconds": 312.0,
    "device": "cpu, 2 threads",
    "commit": "abc",
}
SPAM = UPSCALE | {
    "script": "lstm",
    "data": {"name": "SMS", "count": 5, "builtin": True},
    "metrics": {"accuracy": 0.99123},
    "baselines": {"majority class": {"accuracy": 0.87, "accuracy_sd": 0.01, "f1": 0}},
}


@pytest.fixture
def figs(tmp_path: Path) -> Path:
    folder = tmp_path / "figs"
    folder.mkdir()
    (folder / "gan_upscale.json").write_text(json.dumps(UPSCALE))
    (folder / "lstm.json").write_text(json.dumps(SPAM))
    page.grid(folder / "a & b.png", noise(1, 3, 9, 9), 1, title='"Quoted"', caption="if a < b & c")
    return folder


def test_results_table_has_metrics_beside_baselines(figs: Path) -> None:
    lines = results.results_table(figs).splitlines()
    assert "| method | PSNR, dB | SSIM | detail, dB | grid | low, dB | ms a picture |" in lines
    assert "| GAN | 25.65 | 0.738 | −4.5 | 1.2 | 45.0 | 9.51 |" in lines
    assert "| nearest | 25.65 | 0.738 | −4.5 | – | 45.0 | 0.11 |" in lines
    assert "| bicubic | 24.59 | – | – | – | – | – |" in lines
    assert "| this run | 0.9912 | – |" in lines and "| majority class | 0.8700 ± 0.0100 | 0.000 |" in lines
    assert "1,234" in lines[0] and "5.2 minutes" in lines[0] and "--minutes 20" in lines[0]
    assert "stand-in" not in lines[0]
    assert any("**lstm**" in line and "built-in stand-in" in line for line in lines)


def test_publish_writes_between_the_markers_only(figs: Path) -> None:
    readme = figs.parent / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    results.publish(figs)
    once = readme.read_text(), (figs / "index.html").read_text()
    table = results.results_table(figs)
    assert once[0] == f"before\n<!-- results -->\n{table}<!-- /results -->\nafter\n"
    results.publish(figs)
    assert (readme.read_text(), (figs / "index.html").read_text()) == once


@pytest.mark.parametrize("text", ["no markers\n", "<!-- results -->\nno end\n"])
def test_publish_leaves_a_readme_without_markers_alone(figs: Path, text: str) -> None:
    readme = figs.parent / "README.md"
    readme.write_text(text)
    results.publish(figs)
    assert readme.read_text() == text


def test_gallery_shows_every_figure_and_escapes_text(figs: Path) -> None:
    results.publish(figs)
    page = (figs / "index.html").read_text(encoding="utf-8")
    assert 'src="a &amp; b.png"' in page and "if a &lt; b &amp; c" in page and "&quot;Quoted&quot;" in page
    assert "&lt;photos|mine&gt;" in page and "R&amp;D" in page and "<photos" not in page
    assert "<td>25.65</td>" in page and "python gan_upscale.py --minutes 20" in page
    assert "http" not in page  # nothing is fetched from elsewhere


@pytest.mark.parametrize("text", ["{", "[]", '{"script": "x"}', '{"metrics": 1}'])
def test_publish_refuses_a_file_that_is_no_result(figs: Path, text: str) -> None:
    (figs / "bad.json").write_text(text)
    with pytest.raises(UserError, match=r"bad\.json"):
        results.publish(figs)
    assert not (figs / "index.html").exists()
