"""The digits' nets that come with the repository: small, described by their card, and as good as it says."""

from pathlib import Path

import pytest
import torch

from common import weights
from common.datasets import mnist
from common.evaluation import mnist as evaluation
from common.inference import mnist as inference

REAL = Path(__file__).parents[2] / "shared" / "data" / "MNIST"
CPU = torch.device("cpu")
CLASS_ACCURACY = {"conditional": 0.992, "1": 0.985, "2": 0.995}
"""The least share of characters that the evaluator must give the label that was asked for."""


def test_they_are_small_and_the_card_says_what_they_are() -> None:
    assert inference.SHIPPED.stat().st_size <= 5e6
    _, about = weights.load(inference.SHIPPED)
    card = inference.SHIPPED.with_suffix(".md").read_text(encoding="utf-8")
    for method in inference.METHODS:
        known, score = about[method], about[method]["written"]
        assert known["command"] in card and known["commit"] in card
        numbers = f"{score['class_accuracy']:.4f} | {score['distance']:.2f} | {score['recall']:.2f} |"
        assert numbers in card, numbers
    _, evaluator = weights.load(evaluation.SHIPPED)
    assert evaluator["accuracy"] >= 0.993 and f"{evaluator['accuracy']:.2%}" in card


@pytest.mark.parametrize("method", inference.METHODS)
def test_what_they_write_has_the_class_that_was_asked_for(method: str) -> None:
    sampler = inference.load(inference.SHIPPED, method, CPU)
    classifier, _ = evaluation.load_classifier(evaluation.SHIPPED)
    labels = torch.arange(1_000) % 10
    fake, _ = sampler.sample(labels, torch.Generator().manual_seed(7))
    predicted = classifier.predict(fake)[1].argmax(1)
    assert (predicted == labels).float().mean() >= CLASS_ACCURACY[method]


@pytest.mark.skipif(not REAL.exists(), reason="MNIST is not at hand")
def test_they_are_as_good_as_promised() -> None:
    data = mnist.find(str(REAL.parent))
    classifier, about = evaluation.load_classifier(evaluation.SHIPPED)
    assert about["fingerprint"] == data.fingerprint()[:16]
    evaluator = evaluation.Evaluator(classifier.predict, data)
    labels = torch.arange(len(data.test)) % 10
    for method, distance, recall in (("conditional", 0.30, 0.80), ("1", 0.50, 0.74)):
        sampler = inference.load(inference.SHIPPED, method, CPU)
        score = evaluator.score(sampler.sample(labels, torch.Generator().manual_seed(7))[0], labels)
        assert score["distance"] <= distance and score["recall"] >= recall, (method, score)
        assert score["min_class_share"] >= 0.08
