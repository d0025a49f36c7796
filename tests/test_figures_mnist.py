"""The figures of characters: markers tell the methods apart, and unusual words are explained."""

import string
from pathlib import Path

import pytest
from matplotlib.text import Text
from PIL import Image
from test_figures_page import noise, pixels_of, spy

from common.figures import handwriting, mnist
from common.inference.mnist import METHODS, Sampler
from common.models.mnist import Generator

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
SCORE = {"class_accuracy": 0.7, "merged_class_accuracy": 0.9, "distance": 0.14, "recall": 0.7}


def test_methods_can_be_told_apart_on_many_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, names = spy(monkeypatch), [*METHODS.values(), "real"]
    distances = {name: [0.5 * 4**i + 0.1 * k for k in range(62)] for i, name in enumerate(names)}
    images = {name: noise(23, 28, 28) for name in METHODS.values()}
    scores = dict.fromkeys(METHODS.values(), SCORE)
    mnist.compare(tmp_path / "m.png", images, scores, distances, CHARACTERS, "Caption.")
    pixels_of(tmp_path / "m.png")
    (axes,) = pages[0].figure.axes
    assert {str(line.get_label()): list(line.get_ydata()) for line in axes.lines} == distances
    assert len({(line.get_marker(), line.get_color()) for line in axes.lines}) == len(names)
    assert axes.get_yscale() == "log"
    texts = [*axes.get_xticklabels(), *axes.get_legend().get_texts()]  # type: ignore[union-attr]
    assert [text.get_text() for text in texts] == [*CHARACTERS, *names]
    boxes = [text.get_window_extent() for text in texts]
    assert not any(box.count_overlaps(boxes[:i]) for i, box in enumerate(boxes))


def test_the_worst_character_is_named(tmp_path: Path) -> None:
    mnist.by_class(tmp_path / "c.png", {"generated": [1, 3, 2], "real": [1, 1, 9]}, "abc", "Caption.")
    with Image.open(tmp_path / "c.png") as image:
        assert image.info["Title"].endswith("the worst is b")


def test_handwriting_says_what_methods_and_merged_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, sampler = spy(monkeypatch), Sampler("conditional", Generator(4, 4, 62, 1).eval(), CHARACTERS)
    monkeypatch.setattr(handwriting, "written", lambda *_: noise(3, 60, 900))
    handwriting.save(tmp_path / "h.png", {"conditional": sampler}, {"conditional": SCORE}, 0, "Caption.")
    pixels_of(tmp_path / "h.png")
    with Image.open(tmp_path / "h.png") as image:
        for words in ("Method 2: ", "Merged: characters of one shape"):
            assert words in image.info["Description"]
    words = "conditional: class accuracy 70.0%, merged class accuracy 90.0%, distance 0.14, recall 0.70"
    assert words in [text.get_text() for text in pages[0].figure.findobj(Text)]
