"""The evaluator's numbers, where the right answer is known."""

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from common.datasets import mnist
from common.evaluation import mnist as evaluation


def test_distance_of_gaussians_is_the_formula() -> None:
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(3_000, 5, generator=rng)
    fake = torch.randn(2_000, 5, generator=rng) @ torch.diag(torch.tensor([1.0, 2, 1, 0.5, 1])) + 0.5
    a, b = np.cov(real.T.numpy()), np.cov(fake.T.numpy())
    apart = (real.mean(0) - fake.mean(0)).square().sum().item()
    # Heusel et al. 2017, section 4
    expected = apart + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert evaluation.frechet(real, fake) == pytest.approx(expected, rel=1e-3)
    assert evaluation.frechet(real, real) == pytest.approx(0, abs=1e-6)


def grid_evaluator(count: int = 400) -> tuple[evaluation.Evaluator, Tensor]:
    """An evaluator whose two features are the first two pixels; real ones lie evenly in the square."""

    def predict(images: Tensor) -> tuple[Tensor, Tensor]:
        features = images[:, 0, :2].float()
        left = (features[:, :1] < 100).float()
        return features, torch.cat([left, 1 - left], 1)

    places = torch.cartesian_prod(torch.arange(0, 200, 10), torch.arange(0, 200, 10))
    real = torch.zeros(count, 28, 28, dtype=torch.uint8)
    real[:, 0, :2] = places[:count].to(torch.uint8)
    labels = (real[:, 0, 0] >= 100).long()
    digits = mnist.Digits("squares", real, labels, real, labels, "01", builtin=False, note="")
    return evaluation.Evaluator(predict, digits), real


def test_precision_recall_and_coverage() -> None:
    evaluator, real = grid_evaluator()
    assert evaluator.accuracy == 1.0
    same = evaluator.score(real, evaluator.labels)
    assert (same["precision"], same["recall"], same["min_class_share"], same["class_accuracy"]) == (
        1,
        1,
        0.5,
        1,
    )

    half = real[real[:, 0, 0] < 100]  # one class only
    one = evaluator.score(half)
    assert one["precision"] == 1 and one["min_class_share"] == 0 and "class_accuracy" not in one
    assert 0.5 <= one["recall"] <= 0.62  # those at the edge are reached too

    far = real.clone()
    far[:, 0, :2] = 255
    away = evaluator.score(far, 1 - evaluator.labels)
    assert away["precision"] == 0 and away["recall"] == 0 and away["class_accuracy"] == 0.5
    assert away["distance"] > 10 * max(same["distance"], 1)

    again = real[:1].expand(len(real), -1, -1)  # the same one again and again: collapsed
    collapsed = evaluator.score(again)
    assert collapsed["precision"] == 1 and collapsed["recall"] < 0.02


def test_distances_are_by_class() -> None:
    evaluator, real = grid_evaluator()
    moved = real.clone()
    moved[evaluator.labels == 1, 0, 1] += 30
    one, other = evaluator.distances(moved, evaluator.labels)
    assert one == pytest.approx(0, abs=1e-6) and other == pytest.approx(900, rel=0.01)


def test_copies_are_found_out() -> None:
    rng = torch.Generator().manual_seed(0)
    train, unseen, new = (
        torch.randint(256, (n, 28, 28), generator=rng, dtype=torch.uint8) for n in (200, 50, 50)
    )
    assert evaluation.nearest_neighbour_ratio(train[:50], unseen, train) == pytest.approx(0, abs=1e-3)
    assert evaluation.nearest_neighbour_ratio(new, unseen, train) == pytest.approx(1, abs=0.02)
    distance, which = evaluation.nearest(train[7:9], train)
    assert which.tolist() == [7, 8] and distance.max() < 0.05


def test_blurred_is_a_mean_of_nine_pixels() -> None:
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, 10, 10] = 90
    soft = evaluation.blurred(image)
    assert soft.dtype == torch.uint8 and (soft[0, 9:12, 9:12] == 10).all() and soft.sum() == 90


def test_names_say_which_data_the_distance_is_of() -> None:
    scores = {"GAN": {"distance": 1.0, "class_accuracy": 0.5}, "real": {"distance": 0.1}}
    named = evaluation.named(scores, "MNIST")
    assert named == {"GAN": {"FID-MNIST": 1.0, "class_accuracy": 0.5}, "real": {"FID-MNIST": 0.1}}


def test_characters_of_one_shape_count_as_one() -> None:
    assert evaluation.shapes("0123456789").tolist() == list(range(10))
    assert evaluation.shapes("0O1loLf").tolist() == [0, 0, 2, 2, 0, 5, 6]
    evaluator, real = grid_evaluator()
    data = mnist.Digits("squares", real, evaluator.labels, real, evaluator.labels, "kK", False, "")
    alike = evaluation.Evaluator(evaluator.predict, data)
    assert alike.real == {"class_accuracy": 1.0, "merged_class_accuracy": 1.0}
    score = alike.score(real, 1 - alike.labels)
    assert score["class_accuracy"] == 0 and score["merged_class_accuracy"] == 1
