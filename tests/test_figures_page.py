"""Figures show images pixel for pixel and crop nothing; charts put names and levels where they belong."""

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from common import cli
from common.cli import UserError
from common.figures import page, sine
from common.figures import training as training_figures

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


def find(pixels: np.ndarray, image: Tensor, scale: int) -> tuple[int, int]:
    """Top and left of an image that is on the page, each pixel a square of `scale`; fails if it is not."""
    wanted = image.permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)
    height, width = wanted.shape[:2]
    room = pixels[: -height or None, : -width or None]
    for top, left in np.argwhere((room == wanted[0, 0]).all(-1)):
        if (pixels[top : top + height, left : left + width] == wanted).all():
            return int(top), int(left)
    raise AssertionError("the image is not on the page pixel for pixel")


def test_grid_enlarges_by_a_whole_number(tmp_path: Path) -> None:
    images = noise(5, 3, 40, 56)
    page.grid(tmp_path / "g.png", images, 3, title="Grid", caption="")
    pixels = pixels_of(tmp_path / "g.png")
    scale = (page.WIDTH - 2 * page.MARGIN) // 3 // (56 + page.GAP)
    assert scale > 1
    places = [find(pixels, image, scale) for image in images]
    assert places == sorted(places) and len({top for top, _ in places}) == 2


def spy(monkeypatch: pytest.MonkeyPatch) -> list[page.Page]:
    """Collects the pages that are drawn."""
    drawn: list[page.Page] = []
    original = page.Page.__init__

    def init(self: page.Page, *arguments: Any) -> None:
        original(self, *arguments)
        drawn.append(self)

    monkeypatch.setattr(page.Page, "__init__", init)
    return drawn


def names_of(axes: Axes) -> list[Text]:
    """What the legend says."""
    legend = axes.get_legend()
    return legend.get_texts() if legend else []


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


def test_training_curves_put_both_phases_on_one_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = spy(monkeypatch)
    references = {"bicubic": {"psnr": 24.59, "detail_db": -28.7}, "Lanczos": {"psnr": 24.60}}
    training_figures.training_curves(
        tmp_path / "b.png", history(), title="T", caption="C", references=references
    )
    pixels_of(tmp_path / "b.png")
    loss, accuracy, gradients, psnr, detail, empty, _ = pages[0].figure.axes
    assert not empty.get_visible() and pages[0].height < pages[0].width, "a page, that a README can show"
    assert loss.get_xticks().tolist() == [0, 100, 200, 300, 350, 400]
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in accuracy.lines}
    assert lines["generated"][0].tolist() == [305, 0.6]
    assert lines["real"][-1].tolist() == [400, 0.7]
    assert gradients.get_yscale() == "log"
    norms = {str(line.get_label()): np.asarray(line.get_xydata()) for line in gradients.lines}
    assert norms["fidelity"][-1].tolist() == [300, 0.1] and norms["generator"][0].tolist() == [305, 1]
    run = next(line for line in psnr.lines if line.get_label() == "this run")
    assert np.asarray(run.get_xydata()).tolist() == [[0, 25], [300, 26], [400, 25.5]]
    levels = {str(line.get_label()): line for line in psnr.lines[-2:]}
    assert {name: line.get_ydata()[0] for name, line in levels.items()} == {  # type: ignore[index]
        "bicubic 24.59": 24.59,
        "Lanczos 24.60": 24.60,
    }
    assert len({line.get_linestyle() for line in levels.values()}) == 2, "levels can be told apart"
    assert [text.get_text() for text in names_of(detail)] == ["this run", "bicubic −28.7"]
    for axes in (loss, accuracy, gradients, psnr, detail):
        boxes = [text.get_window_extent() for text in (*axes.get_xticklabels(), *names_of(axes))]
        for i, box in enumerate(boxes):
            assert not box.count_overlaps(boxes[:i]) and box.x1 <= page.WIDTH


@pytest.mark.parametrize("history", [[], [{"phase": "gan", "step": 0, "recall": 0.1}]])
def test_before_the_first_step_no_curves_are_drawn(tmp_path: Path, history: list[dict[str, Any]]) -> None:
    """As while the classifier of Method 2 trains, whose rows are left out."""
    training_figures.training_curves(tmp_path / "c.png", history, title="T", caption="")
    assert not list(tmp_path.iterdir())


def test_training_curves_of_one_phase_alone(tmp_path: Path) -> None:
    rows = [row for row in history() if row["phase"] == "gan"]
    training_figures.training_curves(tmp_path / "b.png", rows, title="T", caption="")
    pixels_of(tmp_path / "b.png")


def test_training_curves_without_a_discriminator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = spy(monkeypatch)
    rows = [
        {"phase": phase, "step": step, "loss": -step / 10, "grad": 0.1, "validation_mse": 0.1 ** (step / 4)}
        for phase in ("clean", "noisy")
        for step in range(0, 41, 10)
    ]
    sine.save_training(tmp_path, rows, noise=0.1)
    pixels_of(tmp_path / "single_layer_rnn_training.png")
    loss, gradient, mse, _ = pages[0].figure.axes
    assert [axes.get_title(loc="left").split()[0] for axes in (loss, gradient, mse)] == [
        "Loss",
        "Gradient",
        "Squared",
    ]
    assert np.asarray(loss.lines[-1].get_xydata())[-1].tolist() == [80, -4] and mse.get_yscale() == "log"
    assert [text.get_text() for text in names_of(mse)] == ["this run", "noise floor 0.01"]
    low, high = mse.get_ylim()
    assert sum(low < tick < high for tick in mse.get_yticks()) >= 3, "over ten powers of ten, too"


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


def test_an_unwritable_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        page.grid(tmp_path / "file" / "g.png", noise(1, 3, 9, 9), 1, title="", caption="")


def test_charts_keep_to_their_part_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = spy(monkeypatch)
    with page.new_page(tmp_path / "c.png", 900, 600, "T", "C") as drawn:
        drawn.charts(0, 300).subplots(1, 2)[0].set_title("A heading")
        drawn.charts(300, 300, x=450).subplots().set_ylabel("a name")
    pixels_of(tmp_path / "c.png")
    left, right, below = (axes.get_tightbbox() for axes in pages[0].figure.axes)
    top, middle = (drawn.height - drawn.head - y for y in (0, 300))
    for box in (left, right, below):
        assert box
        assert box.x1 <= 900 and box.y1 <= top, "in the page, below the caption"
    assert left and right and below
    assert min(left.y0, right.y0) >= middle >= below.y1 and left.x1 < right.x0 and below.x0 >= 450


HOSTILE = b"""text.usetex: true
font.family: No Such Font
font.size: 30
figure.dpi: 33
axes.facecolor: red
axes.formatter.use_locale: true
lines.antialiased: false
nonsense
"""
DRAW = """if True:
    import sys
    from pathlib import Path
    {}
    from common.figures import page
    sys.argv = ["script.py"]
    with page.new_page(Path("figure.png"), 600, 300, "Title", "A caption") as drawn:
        axes = drawn.charts().subplots()
        axes.plot([1, 2], [1e-4, 1], label="a line")
        page.few_ticks(axes.yaxis)
        axes.legend()
"""
AS_SCRIPTS_DO = "from common.cli import free_matplotlib; free_matplotlib()"


@pytest.mark.parametrize(
    ("start", "inherited"),
    [
        (AS_SCRIPTS_DO, ("MPLBACKEND", "MATPLOTLIBRC", "MPLCONFIGDIR", "matplotlibrc")),
        ("", ("MATPLOTLIBRC",)),
        ("", ("MPLBACKEND",)),
    ],
)
def test_figures_depend_on_nothing_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, inherited: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py"])
    exec(DRAW.format(""))
    here = Path("figure.png").read_bytes()
    Path("hostile").write_bytes(HOSTILE)
    if "matplotlibrc" in inherited:
        Path("matplotlibrc").write_bytes(b"font.size: \xff")
    tests = Path(__file__).parent
    hostile = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MATPLOTLIBRC": str(tmp_path / "hostile"),
        "MPLCONFIGDIR": str(tmp_path / "hostile"),  # no folder can be made there
    }
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    environment |= {key: value for key, value in hostile.items() if key in inherited}
    environment["PYTHONPATH"] = os.pathsep.join([str(tests.parent), str(tests)])
    words = [sys.executable, "-c", DRAW.format(start)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("figure.png").read_bytes() == here
    if start:
        assert done.stdout + done.stderr == ""


def test_names_that_cannot_be_shown_become_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, name = spy(monkeypatch), "$é $α 写真 \U0001f980 \x1b[1m \udcff \u202e"
    escaped = r"$é $α \u5199\u771f \U0001f980 \x1b[1m \udcff \u202e"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with page.new_page(tmp_path / "n.png", 900, 300, name, f"{name}\n{name}") as drawn:
            axes = drawn.charts().subplots()
            axes.plot([0, 1], label=name)
            page.head(axes, name)
            page.label_points(drawn, axes, [name], [(0, 0)])
    texts = [text.get_text() for text in pages[0].figure.findobj(Text) if "$" in text.get_text()]
    assert [text.rstrip() for text in texts] == [escaped] * 6
    with Image.open(tmp_path / "n.png") as image:
        assert image.info["Title"] == "$é $α 写真 \U0001f980 " + r"\x1b[1m \udcff \u202e"
        assert image.info["Description"].count("\n") == 1


def test_a_long_path_stays_on_the_page(tmp_path: Path) -> None:
    page.grid(tmp_path / "g.png", noise(1, 3, 9, 9), 1, title="/W" * 120, caption="W" * 400)
    pixels_of(tmp_path / "g.png")
