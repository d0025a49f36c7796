"""Scores of a yes-or-no classifier, its calibration, and the simple text classifiers that stand beside it.

Truths and answers are bool [N], True for spam; probabilities are of spam, 0..1. A message counts as spam
where its probability is at or above the threshold.
"""

from collections.abc import Sequence

import numpy as np
from sklearn import metrics
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from common.cli import UserError


def score(truth: np.ndarray, probability: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """`score_answers` of the answers, and how far the probabilities themselves can be trusted.

    log_loss: in nats; a guess of 50 % for everything has 0.693. ece: see `calibration_error`.

    Args:
        truth, probability: [N].
    """
    truth, probability = np.asarray(truth, bool), np.asarray(probability, float)
    return {
        **score_answers(truth, probability >= threshold),
        "log_loss": float(metrics.log_loss(truth, probability, labels=[False, True])),
        "ece": calibration_error(truth, probability),
    }


def score_answers(truth: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """accuracy, and of spam: f1, precision, recall; these are 0 where they would divide by 0.

    Where one class has most of the data, accuracy alone says little: answering that class to everything
    has a high one, and an F1 of 0.
    """
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        truth, answers, labels=[False, True], zero_division=0
    )
    return {
        "accuracy": float(metrics.accuracy_score(truth, answers)),
        "f1": float(f1[1]),
        "precision": float(precision[1]),
        "recall": float(recall[1]),
    }


def confusion(truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Counts, int [2,2]: by rows what a message is, by columns the answer; ham first, then spam."""
    return metrics.confusion_matrix(truth, answers, labels=[False, True])


def reliability(
    truth: np.ndarray, probability: np.ndarray, bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share of spam, and count of the messages in each bin: three times [bins].

    Bins of probability are equally wide; the first two are NaN in a bin without messages.
    """
    # scikit-learn's calibration_curve drops the empty bins and does not say how many the others hold
    bin_of = np.minimum((probability * bins).astype(int), bins - 1)  # [N]
    counts, sums, spam = (
        np.bincount(bin_of, weights, minlength=bins) for weights in (None, probability, truth)
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN
        return sums / counts, spam / counts, counts


def calibration_error(truth: np.ndarray, probability: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, section 2), of the probability of spam: 0 is perfect.

    The mean over messages of |share of spam - mean probability| in their bin. It is small by itself where
    nearly all probabilities lie close to 0 or 1 and are right.
    """
    mean, share, counts = reliability(truth, probability, bins)
    return float(np.nansum(counts * np.abs(share - mean)) / counts.sum())


def calibrate(truth: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """Scale and shift that make a probability of a logit: 1 / (1 + exp(-(scale * logit + shift))).

    Platt 1999, "Probabilistic Outputs for Support Vector Machines": logistic regression with the logit as
    its only feature. Where the calibrated probability is 0.5 is the threshold; two numbers from all messages
    move less by chance than the threshold that happens to make the fewest mistakes.

    Args:
        truth, logits: [N], of a validation part with both classes; never of the test part.
    """
    fitted = LogisticRegression(C=1e3).fit(logits[:, None], truth)
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def baselines(
    texts: Sequence[str], labels: np.ndarray, test_texts: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
    """What classifiers without a neural net answer to `test_texts`, bool [M], by name.

    All with scikit-learn's own settings, so nothing is chosen and they need no validation part: give them
    training and validation texts.

    Args:
        texts, labels: the N texts to learn from, and bool [N].
        seed: of the solver of the support vector machines.

    Raises:
        Refused: there are too few texts: one class only, or no words.
    """
    classifiers = {
        "majority class": DummyClassifier(strategy="most_frequent"),
        "naive Bayes": make_pipeline(CountVectorizer(), MultinomialNB()),
        "SVM on words": make_pipeline(TfidfVectorizer(), LinearSVC(random_state=seed)),
        "SVM on characters": make_pipeline(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5)),  # 2 to 5, within words
            LinearSVC(random_state=seed),
        ),
    }
    answers = {}
    for name, classifier in classifiers.items():
        try:
            answers[name] = classifier.fit(texts, labels).predict(test_texts)
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"the baseline {name} cannot learn from these {len(labels)} messages ({reason}); give more"
            ) from None
    return answers


def mean_and_deviation(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each metric its mean over folds or seeds and, as `NAME_sd`, its sample standard deviation.

    The deviation of a single row is 0.
    """
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        found[name] = float(np.mean(values))
        found[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return found
