"""The text experiments' figures draw the numbers they are given, and no text hides or leaves the page."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text
from PIL import Image

from common.datasets.sms_spam import Messages
from common.evaluation.spam import Fold
from common.figures import page
from common.figures import spam as figures

METHODS = ("stacked RNN", "majority class", "naive Bayes", "SVM on words", "SVM on characters")


class Drawn:
    """The charts of one page, and every text that was drawn on it."""

    def __init__(self) -> None:
        self.charts: list[Axes] = []
        self.texts: list[Text] = []

    def words(self) -> list[str]:
        return [text.get_text() for text in self.texts]

    def check(self, path: Path) -> None:
        """Nothing reaches the edge of the page, no text lies on another one."""
        with Image.open(path) as image:
            pixels = np.asarray(image)
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (edge == 255).all(), "something reaches the edge of the page"
        height, width = pixels.shape[:2]
        # of the text alone, without the arrow of an annotation
        boxes = [Text.get_window_extent(text).padded(-1.5) for text in self.texts]
        for i, (box, words) in enumerate(zip(boxes, self.words(), strict=True)):
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, words
            hit = [self.words()[j] for j in range(i) if box.overlaps(boxes[j])]
            assert not hit, f"{words!r} lies on {hit}"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drawn]:
    result = Drawn()
    draw = Text.draw

    @contextmanager
    def new_page(*arguments: Any, **heading: str) -> Iterator[page.Page]:
        with page.new_page(*arguments, **heading) as whole:
            yield whole
            result.texts.clear()  # of a drawing that only finds places
        result.charts = [axes for axes in whole.figure.axes if axes.get_visible()]

    def record(self: Text, renderer: Any) -> None:
        if self.get_visible() and self.get_text():
            result.texts.append(self)
        draw(self, renderer)

    monkeypatch.setattr(figures, "new_page", new_page)
    monkeypatch.setattr(Text, "draw", record)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield result


def lines(axes: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}


def history(steps: int, level: float, shift: int = 0, phase: str = "fit") -> list[dict[str, Any]]:
    """Evaluations at the start and ten times after; training batches between them."""
    rows: list[dict[str, Any]] = []
    for step in range(0, steps + 1, steps // 10):
        done = step / steps
        rows.append({"phase": phase, "step": step, "train_loss": 0.7 - 0.65 * done})
        rows[-1] |= {"validation_loss": 0.7 - 0.6 * done, "train_accuracy": 0.13 + 0.86 * done}
        rows[-1] |= {"validation_accuracy": level * (0.1 + 0.9 * done), "validation_f1": 0.9 * done}
        rows.append({"phase": phase, "step": step + 1 + shift, "loss": 0.8 - 0.7 * done, "grad": 1.0})
    return rows


def fold(truth: np.ndarray, probability: np.ndarray, matrices: dict[str, Any], models: int = 1) -> Fold:
    """A fold whose answers to `truth` have these confusion matrices."""
    answers = {}
    for name, ((ham, _), (missed, _)) in matrices.items():
        answers[name] = [np.empty(len(truth), bool)]
        answers[name][0][~truth] = np.arange((~truth).sum()) >= ham
        answers[name][0][truth] = np.arange(truth.sum()) >= missed
    if models > 1:
        answers["net, single model"] = [next(iter(answers.values()))[0]] * models
    lines = np.arange(len(truth))
    return Fold(Messages("", [""] * len(truth), truth, lines), probability, answers)


def report(
    path: Path,
    rows: list[dict[str, Any]],
    matrices: dict[str, Any],
    scores: dict[str, dict[str, float]],
    probability: np.ndarray | None = None,
    majority: float = 0.5,
    models: int = 1,
    title: str = "T",
    caption: str = "",
) -> None:
    ((ham, alarms), (missed, spam)) = next(iter(matrices.values()))
    truth = np.arange(ham + alarms + missed + spam) >= ham + alarms
    probability = truth * 1.0 if probability is None else probability
    scores = {"majority class": {"accuracy": majority}} | scores
    folds = [fold(truth, probability, matrices, models)]
    figures.report(path, "net", folds, scores, rows, title=title, caption=caption)


def test_report_draws_curves_matrices_and_calibration(tmp_path: Path, drawn: Drawn) -> None:
    rows = [row for i in range(5) for row in history(1000 + 10 * (i % 2), 0.9 + 0.02 * i, phase=f"fold {i}")]
    for row in rows:
        row |= {"loss": 5 * row["loss"]} if "loss" in row else {}  # the sum over five models
    matrices = {name: [[4500 + i, 18 - i], [20 + i, 633 - i]] for i, name in enumerate(METHODS)}
    scores = {
        name: {"accuracy": 0.99 + 0.001 * i, "accuracy_sd": 0.0031, "f1": 0.96, "f1_sd": 0.0123}
        for i, name in enumerate(METHODS)
    }
    scores["majority class"]["accuracy"] = 0.8737
    logit = np.where(np.arange(5171) >= 4518, 4, -5) + 2.5 * np.random.default_rng(0).standard_normal(5171)
    truth, probability = np.arange(5171) >= 4518, 1 / (1 + np.exp(-logit))
    path = tmp_path / "r.png"
    report(
        path,
        rows,
        matrices,
        scores,
        probability,
        models=5,
        title="A net on messages, with a long title that says the result " * 2,
        caption="Caption $1 & more. " * 12,
    )
    drawn.check(path)
    loss, accuracy, f1, *squares, diagram, bins = drawn.charts

    assert lines(loss)["batches"][:, 1] == pytest.approx(0.8 - 0.7 * np.arange(11) / 10, abs=4e-3)
    assert lines(accuracy)["validation"][-1] == pytest.approx([1000, 0.94], abs=5e-3), "the mean of folds"
    assert lines(accuracy)["majority"][:, 1] == pytest.approx(0.8737)
    assert lines(f1)["validation"][:, 0].tolist() == list(range(0, 1001, 100))
    assert len(loss.lines) == 1 + 2 * (5 + 1) and len(f1.lines) == 5 + 1, "thin lines for the folds"

    assert len(squares) == len(METHODS)
    for i, square in enumerate(squares):
        cells = [text.get_text() for text in square.texts]
        assert cells[0] == f"{4500 + i:,}\n{(4500 + i) / 4518:.1%}"
        assert [cell.partition("\n")[0] for cell in cells[1:]] == [str(18 - i), str(20 + i), str(633 - i)]
    positions = [square.get_window_extent().x0 for square in squares]
    assert positions == sorted(positions) and [w for w in drawn.words() if w in METHODS] == list(METHODS)
    assert "accuracy .9900 ± .0031\nF1 .9600 ± .0123" in drawn.words()

    counts = np.histogram(probability, np.linspace(0, 1, 11))[0]
    assert [text.get_text() for text in bins.texts] == [f"{count:,}" for count in counts]
    assert sum(bar.get_height() for bar in bins.patches) == len(truth)
    points = lines(diagram)["messages, in ten bins"]
    assert points[-1] == pytest.approx(
        [probability[probability >= 0.9].mean(), truth[probability >= 0.9].mean()]
    )
    assert any("(ECE) 0.0" in words for words in drawn.words())


def test_while_it_trains_its_curves_are_drawn_as_far_as_they_are(tmp_path: Path, drawn: Drawn) -> None:
    rows = history(1000, 0.9, phase="fold 1") + history(1000, 0.98, phase="fold 2")[:9]
    labels = np.arange(100) < 13
    figures.save_training(tmp_path / "r.png", "net", rows[:1], 5, labels)
    assert not list(tmp_path.iterdir()), "before the first step there is nothing to see"
    figures.save_training(tmp_path / "r.png", "net", rows, 5, labels)
    drawn.check(tmp_path / "r_training.png")
    assert "net, while it trains: fold 2, step 400" in drawn.words()
    loss, accuracy, _ = (lines(axes) for axes in drawn.charts)
    assert loss["batches"][0, 1] == pytest.approx(0.8 / 5) and accuracy["majority"][0, 1] == 0.87
    means = accuracy["validation"][:, 1]  # of those that came so far
    assert means[4] == pytest.approx(0.94 * 0.46) and means[5] == pytest.approx(0.9 * 0.55)


def test_report_of_one_fold_that_answers_ham_to_everything(tmp_path: Path, drawn: Drawn) -> None:
    rows = history(20, 1)
    for row in rows:
        if "train_loss" in row:
            row |= {"validation_accuracy": 0.8737, "train_accuracy": 0.8737, "validation_f1": 0.0}
    matrices = {"net": [[904, 0], [131, 0]], "majority class": [[904, 0], [131, 0]]}
    scores = {name: {"accuracy": 0.8734, "f1": 0.0} for name in matrices}
    path = tmp_path / "r.png"
    (tmp_path / "r_training.png").touch()
    report(path, rows, matrices, scores, np.full(1035, 0.12))
    drawn.check(path)
    assert [each.name for each in tmp_path.iterdir()] == ["r.png"], "the report has the curves"
    bottom, top = drawn.charts[1].get_ylim()
    assert bottom < 0.8737 < top, "the flat line is on the chart"
    assert "131\n100.0%" in drawn.words() and "accuracy .8734\nF1 .0000" in drawn.words()


@pytest.mark.parametrize("spam", [False, True])
def test_report_of_a_test_part_with_one_class(tmp_path: Path, drawn: Drawn, spam: bool) -> None:
    name = "a net with quite a long name of its own"
    scores = {name: {"accuracy": 2 / 3, "f1": 0.8, "accuracy_sd": 0.0}}
    path = tmp_path / "r.png"
    report(path, history(10, 0.1), {name: [[0, 0], [1, 2]] if spam else [[2, 1], [0, 0]]}, scores, majority=1)
    drawn.check(path)
    assert f"1\n{1 / 3:.1%}" in drawn.words() and "0\n0.0%" in drawn.words()
    assert drawn.charts[1].get_ylim()[0] < 0.1, "a net that stays far below the majority rate is still shown"


def test_report_has_rows_of_five_matrices(tmp_path: Path, drawn: Drawn) -> None:
    matrices = {f"method {i}": [[100, 2], [3, 95]] for i in range(7)}
    scores = {name: {"accuracy": 0.975, "f1": 0.97} for name in matrices}
    path = tmp_path / "r.png"
    report(path, history(10, 0.9), matrices, scores, np.linspace(0, 1, 200), caption="C")
    drawn.check(path)
    tops = [axes.get_window_extent().y1 for axes in drawn.charts[3:-2]]
    assert len(tops) == 7 and len(set(np.round(tops))) == 2


def test_collapse_shows_padding_and_the_flat_line(tmp_path: Path, drawn: Drawn) -> None:
    lengths = np.arange(1, 172)[np.random.default_rng(0).permutation(171)]
    steps = np.arange(0, 600, 30)
    flat, learned = np.where(steps > 0, 0.8737, 0.13), 0.99 - 0.86 * np.exp(-steps / 50)
    matrices = {"collapsed": [[904, 0], [131, 0]], "repaired": [[902, 2], [9, 122]]}
    truth = np.arange(1035) >= 904
    path = tmp_path / "c.png"
    figures.collapse(
        path,
        lengths,
        {"collapsed": np.stack([steps, flat]), "repaired": np.stack([steps, learned])},
        truth,
        {name: answers for name, (answers,) in fold(truth, truth * 1.0, matrices).answers.items()},
        title="86.64 % was the share of ham",
        caption="Caption.",
    )
    drawn.check(path)
    rows, curves, *squares = drawn.charts
    words, padding = ([bar.get_width() for bar in bars] for bars in rows.containers)
    assert words == sorted(words) and words[0] == 1 and words[-1] == 171
    assert {word + pad for word, pad in zip(words, padding, strict=True)} == {171}
    assert "median message: 86 tokens, then 85 of padding" in drawn.words()
    (read,) = rows.lines
    assert np.asarray(read.get_xdata())[0] == 171
    assert lines(curves)["collapsed"].tolist() == np.stack([steps, flat], 1).tolist()
    assert lines(curves)["repaired"][-1, 1] == learned[-1]
    bottom, top = curves.get_ylim()
    assert 0.5 < bottom < 0.87 and top > 0.99
    assert [square.texts[2].get_text() for square in squares] == ["131\n100.0%", "9\n6.9%"]
    for score in ("accuracy .8734\nF1 .0000", "accuracy .9894\nF1 .9569"):
        assert score in drawn.words()


def sweep(seeds: int, sizes: tuple[int, ...] = (8, 16, 32, 64)) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    rows = []
    for gates, kind in ((1, "RNN"), (4, "LSTM")):
        for vary in ("embedding size", "hidden size", "depth"):
            for value in sizes if vary != "depth" else (1, 2, 3):
                accuracy = 0.985 + 0.001 * gates + 0.001 * random.standard_normal(seeds)
                parameters = 900 * gates * value
                point = {"kind": kind, "vary": vary, "value": value, "parameters": parameters}
                rows.append(point | {"accuracy": accuracy.tolist(), "f1": (1 - 4 * (1 - accuracy)).tolist()})
    return rows


def test_scaling_draws_means_and_deviations_beside_baselines(tmp_path: Path, drawn: Drawn) -> None:
    rows = sweep(seeds=4)
    baselines = {
        name: {"accuracy": 0.984 + 0.003 * i, "f1": 0.935 + 0.01 * i} for i, name in enumerate(METHODS[2:])
    }
    path = tmp_path / "s.png"
    figures.scaling(path, rows, baselines, title="T", caption="C")
    drawn.check(path)
    assert len(drawn.charts) == 6
    for i, axes in enumerate(drawn.charts):
        metric, vary = ("accuracy", "f1")[i // 3], ("embedding size", "hidden size", "depth")[i % 3]
        assert axes.get_xscale() == "log" and axes.get_ylim() == drawn.charts[i // 3 * 3].get_ylim()
        bars = [found for found in axes.containers if isinstance(found, ErrorbarContainer)]
        assert [found.get_label() for found in bars] == ["RNN", "LSTM"]
        for found in bars:
            mine = [row for row in rows if (row["kind"], row["vary"]) == (found.get_label(), vary)]
            line, _, (spread,) = found.lines
            assert np.asarray(line.get_xydata()) == pytest.approx(
                np.array([(row["parameters"], np.mean(row[metric])) for row in mine])
            )
            for row, (low, high) in zip(mine, spread.get_segments(), strict=True):
                assert high[1] - low[1] == pytest.approx(2 * np.std(row[metric], ddof=1))
        values = [f"{row['value']}" for kind in ("RNN", "LSTM") for row in rows if row["kind"] == kind]
        assert {text.get_text() for text in axes.texts} <= set(values)
        for found in bars:  # beside each point its value, in the colour of its kind
            colour, height = found.lines[0].get_color(), axes.get_window_extent().height
            labels = [text for text in axes.texts if text.get_color() == colour]
            for label, point in zip(labels, found.lines[0].get_xydata(), strict=True):
                away = Text.get_window_extent(label).get_points().mean(0) - axes.transData.transform(point)
                assert np.hypot(*away) < 0.45 * height
        levels = {name: level[0, 1] for name, level in lines(axes).items() if name in baselines}
        assert levels == {name: level[metric] for name, level in baselines.items()}
    assert [word for word in drawn.words() if word in ("RNN", "LSTM", *baselines)] == [
        "RNN",
        "LSTM",
        *baselines,
    ]


@pytest.mark.parametrize("spread", [20, 300, 30_000])
def test_scaling_has_ticks_that_can_be_read(tmp_path: Path, drawn: Drawn, spread: int) -> None:
    """Whether the nets differ little in size (the embedding table hides the rest) or a thousandfold."""
    rows = sweep(seeds=2)
    for row in rows:
        row["parameters"] = 20_000 + spread * row["value"] * (4 if row["kind"] == "LSTM" else 1)
    path = tmp_path / "s.png"
    figures.scaling(path, rows, {}, title="T", caption="")
    with Image.open(path) as image:
        assert image.width == page.WIDTH
    for axes in drawn.charts:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert 2 <= len(ticks) <= 7
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label in drawn.texts]
        assert not any(box.overlaps(before) for i, box in enumerate(boxes) for before in boxes[:i])


@pytest.mark.parametrize("f1", [0.0, 0.5])
def test_scaling_of_one_net_and_one_seed(tmp_path: Path, drawn: Drawn, f1: float) -> None:
    row = {"kind": "RNN", "vary": "depth", "value": 2, "parameters": 1_234_567, "accuracy": [0.9], "f1": [f1]}
    path = tmp_path / "s.png"
    figures.scaling(path, [row], {}, title="T", caption="")
    drawn.check(path)
    assert len(drawn.charts) == 2
    for axes, value in zip(drawn.charts, (0.9, f1), strict=True):
        bottom, top = axes.get_ylim()
        assert 0 <= bottom <= value < top and math.isfinite(top)
