"""Scores by hand-counted answers, a threshold that tells what it must, baselines at their known level."""

import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from common.cli import UserError
from common.evaluation import spam as evaluation

SMS = Path(__file__).parents[2] / "shared" / "data" / "sms" / "SMSSpamCollection"


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_scores_of_answers_counted_by_hand() -> None:
    truth = np.array([True, True, True, False, False, False, False, False])
    answers = np.array([True, True, False, True, False, False, False, False])
    scores = evaluation.score_answers(truth, answers)
    assert scores == pytest.approx({"accuracy": 6 / 8, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})
    assert evaluation.confusion(truth, answers).tolist() == [[4, 1], [1, 2]]


def test_ham_to_everything_has_the_majority_rate_and_no_f1() -> None:
    truth = np.arange(100) < 13
    scores = evaluation.score_answers(truth, truth & False)
    assert scores["accuracy"] == 0.87 and scores["f1"] == scores["precision"] == scores["recall"] == 0
    assert evaluation.calibration_error(truth, np.zeros(100, np.float32)) == pytest.approx(0.13)
    assert evaluation.confusion(truth, truth & False).tolist() == [[87, 0], [13, 0]]


@pytest.mark.parametrize("spam", [False, True])
def test_one_class_alone_is_scored(spam: bool) -> None:
    truth = np.full(5, spam)
    scores = evaluation.score_answers(truth, truth)
    assert scores["accuracy"] == 1 and scores["f1"] == spam
    assert all(math.isfinite(value) for value in scores.values())
    assert evaluation.calibration_error(truth, truth * 0.8 + 0.1) == pytest.approx(0.1)
    assert evaluation.confusion(truth, truth).sum() == 5


def test_calibration_error_of_two_bins() -> None:
    truth = np.array([False, False, False, True, True, True])
    probability = np.array([0.02, 0.04, 0.06, 0.08, 0.9, 1.0])  # 1.0 is in the last bin
    assert evaluation.calibration_error(truth, probability) == pytest.approx((4 * 0.2 + 2 * 0.05) / 6)


def test_probabilities_that_are_right_are_calibrated_and_confident_ones_are_not() -> None:
    probability = np.random.default_rng(0).random(20_000)
    truth = np.random.default_rng(1).random(20_000) < probability
    assert evaluation.calibration_error(truth, probability) < 0.02
    assert evaluation.calibration_error(truth, (probability > 0.5) * 1.0) == pytest.approx(0.25, abs=0.02)


def test_calibration_finds_scales_and_shift_again() -> None:
    random = np.random.default_rng(0)
    true_logit = 3 * random.standard_normal(20_000) - 2
    lengths = random.integers(1, 160, 20_000)
    truth = random.random(20_000) < 1 / (1 + np.exp(-(true_logit + 0.8 * np.log(lengths / 50))))
    # a net that is twice too sure of itself, leans towards spam, and does not see how long a message is
    scale, length_scale, shift = evaluation.calibrate(2 * true_logit + 3, lengths, truth)
    assert scale == pytest.approx(0.5, rel=0.05) and length_scale == pytest.approx(0.8, rel=0.1)
    assert shift == pytest.approx(-1.5 - 0.8 * np.log(50), rel=0.1)


def test_a_ranking_counted_by_hand() -> None:
    truth = np.array([True, True, True, True, False, False, False, False])
    odds = np.array([3.0, 2.0, -1.0, -2.0, 1.0, -1.5, -3.0, -4.0])
    assert evaluation.score_ranking(truth, odds) == pytest.approx(
        {
            "recall": 2 / 4,
            "false_alarms": 1 / 4,
            "recall at 1 % false alarms": 2 / 4,
            "false alarms at 90 % recall": 2 / 4,
            "AUC": (4 + 4 + 3 + 2) / 16,
        }
    )
    # a threshold that is moved changes its own answers, and not the rest
    moved = evaluation.score_ranking(truth, odds + 1.7)
    assert moved["recall"] == 3 / 4 and moved["false_alarms"] == 2 / 4
    assert moved["AUC"] == evaluation.score_ranking(truth, odds)["AUC"]


TEXTS = [
    "win cash now call",
    "free prize call now",
    "see you at home",
    "home for lunch then",
    "lunch at home ok",
]
LABELS = np.array([True, True, False, False, False])


def test_baselines_learn_what_is_plain() -> None:
    answers = evaluation.baselines(TEXTS, LABELS, ["call now for cash", "lunch at home", ""], seed=0)
    assert answers.pop("majority class").tolist() == [False, False, False]
    assert list(answers) == ["naive Bayes", "SVM on words", "SVM on characters"]
    for name, answer in answers.items():
        assert answer.dtype == bool and answer[:2].tolist() == [True, False], name


@pytest.mark.parametrize(
    ("texts", "labels", "reason"),
    [(TEXTS, LABELS & False, "class"), (["!!", "??"], np.array([True, False]), "vocabulary")],
)
def test_baselines_refuse_what_nothing_can_be_learned_from(
    texts: list[str], labels: np.ndarray, reason: str
) -> None:
    with pytest.raises(UserError, match=reason) as refusal:
        evaluation.baselines(texts, labels, texts, seed=0)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(not SMS.exists(), reason="the messages are not at hand")
def test_baselines_reach_their_known_scores_in_five_folds() -> None:
    rows = [line.split("\t", 1) for line in SMS.read_text(encoding="utf-8").split("\n") if line]
    kind_of = {text: kind for kind, text in rows}  # without duplicates, in the order of the file
    texts = np.array(list(kind_of), dtype=object)
    labels = np.array([kind == "spam" for kind in kind_of.values()])
    assert len(texts) == 5171
    scores: dict[str, list[dict[str, float]]] = {}
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(texts, labels):
        answers = evaluation.baselines(texts[train], labels[train], texts[test], seed=0)
        for name, answer in answers.items():
            scores.setdefault(name, []).append(evaluation.score_answers(labels[test], answer))
    known = {
        "majority class": (0.8737, 0),
        "naive Bayes": (0.9847, 0.938),
        "SVM on words": (0.9843, 0.935),
        "SVM on characters": (0.9903, 0.960),
    }
    for name, (accuracy, f1) in known.items():
        mean = evaluation.mean_and_deviation(scores[name])
        assert mean["accuracy"] == pytest.approx(accuracy, abs=0.001), name
        assert mean["f1"] == pytest.approx(f1, abs=0.004), name


def test_mean_and_sample_deviation() -> None:
    rows = [{"accuracy": 0.9, "f1": 0.5}, {"accuracy": 0.8, "f1": 0.5}]
    means = evaluation.mean_and_deviation(rows)
    assert means == pytest.approx({"accuracy": 0.85, "accuracy_sd": 0.1 / 2**0.5, "f1": 0.5, "f1_sd": 0})
    alone = evaluation.mean_and_deviation(rows[:1])
    assert alone == {"accuracy": 0.9, "accuracy_sd": 0, "f1": 0.5, "f1_sd": 0}


def test_neither_scores_nor_charts_need_torchvision() -> None:
    code = "import sys; import common.figures.spam; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
