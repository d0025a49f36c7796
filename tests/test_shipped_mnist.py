"""The digits' nets that come with the repository: small, described by their card, and as good as it says."""

from pathlib import Path

import pytest
import torch

import gan_mnist
from common import weights
from common.datasets import mnist
from common.evaluation import mnist as evaluation
from common.inference import mnist as inference

REAL = Path(__file__).parents[2] / "shared" / "data" / "MNIST"
CPU = torch.device("cpu")
ASKED = {"conditional": 0.992, "1": 0.985, "2": 0.995}
"""The least share of characters that the judge must read as asked for."""


def test_they_are_small_and_the_card_says_what_they_are() -> None:
    assert gan_mnist.SHIPPED.stat().st_size <= 5e6
    _, about = weights.load(gan_mnist.SHIPPED)
    card = gan_mnist.SHIPPED.with_suffix(".md").read_text(encoding="utf-8")
    for method in inference.METHODS:
        made, score = about[method], about[method]["written"]
        assert made["command"] in card and made["commit"] in card
        numbers = f"{score['asked']:.4f} | {score['distance']:.2f} | {score['recall']:.2f} |"
        assert numbers in card, numbers
    _, judge = weights.load(gan_mnist.JUDGE)
    assert judge["accuracy"] >= 0.993 and f"{judge['accuracy']:.2%}" in card


@pytest.mark.parametrize("method", inference.METHODS)
def test_what_they_write_is_read_as_asked(method: str) -> None:
    sampler = inference.load(gan_mnist.SHIPPED, method, CPU)
    reader, _ = inference.load_reader(gan_mnist.JUDGE)
    asked = torch.arange(1_000) % 10
    made, _ = sampler.draw(asked, torch.Generator().manual_seed(7))
    read_as = reader.read(made)[1].argmax(1)
    assert (read_as == asked).float().mean() >= ASKED[method]


@pytest.mark.skipif(not REAL.exists(), reason="MNIST is not at hand")
def test_they_are_as_good_as_promised() -> None:
    data = mnist.find(str(REAL.parent))
    reader, about = inference.load_reader(gan_mnist.JUDGE)
    assert about["fingerprint"] == data.fingerprint()[:16]
    judge = evaluation.Judge(reader.read, data.test, data.test_labels)
    labels = torch.arange(len(data.test)) % 10
    for method, distance, recall in (("conditional", 0.30, 0.80), ("1", 0.50, 0.74)):
        sampler = inference.load(gan_mnist.SHIPPED, method, CPU)
        score = judge.score(sampler.draw(labels, torch.Generator().manual_seed(7))[0], labels)
        assert score["distance"] <= distance and score["recall"] >= recall, (method, score)
        assert score["rarest"] >= 0.08
