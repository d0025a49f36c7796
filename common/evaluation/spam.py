"""Scores of a yes-or-no classifier, its calibration, and the simple text classifiers that stand beside it.

Truths and answers are bool [N], True for spam; probabilities are of spam, 0..1.

scikit-learn is imported where it is used: `--predict`, which needs none, starts a second sooner.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from common import results
from common.cli import UserError
from common.datasets.sms_spam import Messages
from common.datasets.vocabulary import Vocabulary, length
from common.models.spam import Ensemble, logits
from common.results import Scores


def score_answers(truth: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """accuracy, and of spam: f1, precision, recall; these are 0 where they would divide by 0.

    Where one class has most of the data, accuracy alone says little: answering that class to everything
    has a high one, and an F1 of 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    spam = precision_recall_fscore_support(truth, answers, labels=[True], zero_division=0)
    precision, recall, f1 = (float(score[0]) for score in spam[:3])
    accuracy = float(np.mean(truth == answers))
    return {"accuracy": accuracy, "f1": f1, "precision": precision, "recall": recall}


def confusion(truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Counts, int [2,2]: by rows what a message is, by columns the answer; ham first, then spam."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(truth, answers, labels=[False, True])


def calibration_error(truth: np.ndarray, probability: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, section 2), of the probability of spam: 0 is perfect.

    The mean over messages of |share of spam - mean probability| in their bin; bins are equally wide. It is
    small by itself where nearly all probabilities lie close to 0 or 1 and are right.
    """
    bin_of = np.minimum((probability * bins).astype(int), bins - 1)  # [N]
    return float(np.abs(np.bincount(bin_of, truth - probability)).sum() / len(truth))


def calibrate(logits: np.ndarray, lengths: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Scale, length_scale and shift that make the log-odds of spam of the logits of messages and of their
    lengths in characters, all [N]: scale * logit + length_scale * log(length) + shift.

    Platt 1999, "Probabilistic Outputs for Support Vector Machines": logistic regression on validation
    messages of both classes and never on test messages. Log-odds of 0 are the threshold; three numbers from
    all messages move less by chance than the threshold that happens to make the fewest mistakes.

    Platt has the logit alone. But a net that takes the largest of its states does not see how much there is
    of a message, and spam of other words than those that were trained on is long as well.
    """
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=1e3).fit(np.stack([logits, np.log(lengths)], 1), truth)
    scale, length_scale = map(float, regression.coef_[0])
    return scale, length_scale, float(regression.intercept_[0])


def baselines(
    texts: Sequence[str], labels: np.ndarray, test_texts: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
    """What the classifiers of `simple_log_odds` answer to `test_texts`, bool [M], by name."""
    odds = simple_log_odds(texts, labels, test_texts, seed)
    return {name: values > 0 for name, values in odds.items()}


def simple_log_odds(
    texts: Sequence[str], labels: np.ndarray, test_texts: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
    """How sure classifiers without a neural net are that `test_texts` are spam, float [M], by name: log-odds,
    or of support vector machines the distance from their border. Spam is what is above 0.

    All with scikit-learn's own settings, so nothing is chosen and they need no validation part: give them
    training and validation texts. `seed` is that of the support vector machines' solver.

    Raises:
        UserError: there are too few texts: one class only, or no words.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5))  # 2 to 5, within words
    classifiers = {
        "majority class": DummyClassifier(strategy="most_frequent"),
        "naive Bayes": make_pipeline(CountVectorizer(), MultinomialNB()),
        "SVM on words": make_pipeline(TfidfVectorizer(), LinearSVC(random_state=seed)),
        "SVM on characters": make_pipeline(characters, LinearSVC(random_state=seed)),
    }

    def log_odds(classifier: Any) -> np.ndarray:
        if hasattr(classifier, "decision_function"):
            return classifier.decision_function(test_texts)
        with np.errstate(divide="ignore"):  # the majority class is sure
            ham, spam = classifier.predict_log_proba(test_texts).T
        return np.clip(spam - ham, -1e3, 1e3)

    try:
        fitted = {name: each.fit(texts, labels) for name, each in classifiers.items()}
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"no baseline can learn from these {len(labels)} messages ({reason}); give more"
        ) from None
    return {name: log_odds(each) for name, each in fitted.items()}


def score_ranking(truth: np.ndarray, log_odds: np.ndarray) -> dict[str, float]:
    """What a threshold can feign, and what it cannot: recall and false alarms, the share of ham that is
    called spam, at the classifier's own threshold, 0; then at equal false alarms, at equal recall, and over
    all thresholds: the area under the ROC curve (Fawcett 2006, "An introduction to ROC analysis", section 7).

    Args:
        truth, log_odds: bool and float [N], of both classes.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    false_alarms, recall, _ = roc_curve(truth, log_odds, drop_intermediate=False)
    answers = log_odds >= 0
    return {
        "recall": float(answers[truth].mean()),
        "false_alarms": float(answers[~truth].mean()),
        "recall at 1 % false alarms": float(recall[false_alarms <= 0.01].max()),
        "false alarms at 90 % recall": float(false_alarms[recall >= 0.9].min()),
        "AUC": float(roc_auc_score(truth, log_odds)),
    }


@dataclass
class Validation:
    """What the models of an ensemble are scored on while they are trained."""

    vocabulary: Vocabulary
    texts: Sequence[Sequence[str]]
    """The tokens of each message that may be trained on, N of them."""
    labels: np.ndarray
    """bool [N]."""
    splits: Sequence[tuple[np.ndarray, np.ndarray]]
    """For each model of an ensemble, the indices of its training and of its validation messages."""

    @cached_property
    def lengths(self) -> np.ndarray:
        """Of the messages in characters, int64 [N]: the same at every evaluation."""
        return np.array([length(tokens) for tokens in self.texts])

    def out_of_fold(
        self, ensemble: nn.Module, parts: Sequence[np.ndarray] = ()
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each model's logits of its own part, by default its validation messages, one after the other; their
        lengths in characters; their labels; all [M].
        """
        assert isinstance(ensemble, Ensemble)
        parts = parts or [validation for _, validation in self.splits]
        answers = [
            logits(model, self.vocabulary.batch, [self.texts[i] for i in part])
            for model, part in zip(ensemble.models, parts, strict=True)
        ]
        index = np.concatenate(parts)
        return np.concatenate(answers), self.lengths[index], self.labels[index]

    def scores(self, ensemble: nn.Module) -> dict[str, float]:
        """For the learning curves, `train_loss` (nats), `validation_f1` and so on: scores on the training and
        on the validation messages of each model. Of the former as many are taken as of the latter.
        """
        from sklearn.metrics import log_loss

        train = [part[:: max(1, len(part) // len(validation))] for part, validation in self.splits]
        result: dict[str, float] = {}
        for name, parts in (("train", train), ("validation", [])):
            answers, _, truth = self.out_of_fold(ensemble, parts)
            scores = score_answers(truth, answers >= 0)
            result |= {f"{name}_{metric}": scores[metric] for metric in ("accuracy", "f1")}
            result[f"{name}_loss"] = float(log_loss(truth, 1 / (1 + np.exp(-answers)), labels=[False, True]))
        return result


@dataclass
class Fold:
    """The test messages of a fold, and what the ensemble and the other methods say of them."""

    messages: Messages
    probability: np.ndarray
    """Of spam, by the ensemble, float [N]."""
    answers: dict[str, list[np.ndarray]]
    """By method, bool [N]; several where each model of the ensemble answers by itself."""


def test_fold(
    kind: str, train: Messages, test: Messages, probability: np.ndarray, single: list[np.ndarray], seed: int
) -> Fold:
    """The ensemble and its models one by one, by their probabilities for `test`, beside baselines that learn
    from all of `train`.
    """
    answers = {kind: [probability >= 0.5]}
    if len(single) > 1:
        answers[f"{kind}, single model"] = [each >= 0.5 for each in single]
    simple = baselines(train.texts, train.labels, test.texts, seed)
    return Fold(test, probability, answers | {name: [answer] for name, answer in simple.items()})


def scores(folds: Sequence[Fold]) -> Scores:
    """By method, accuracy, F1, precision and recall: mean and deviation over the folds."""

    def of_fold(fold: Fold, method: str) -> dict[str, float]:
        rows = [score_answers(fold.messages.labels, answer) for answer in fold.answers[method]]
        return pd.DataFrame(rows).mean().to_dict()

    return {name: mean_and_deviation([of_fold(fold, name) for fold in folds]) for name in folds[0].answers}


def mean_and_deviation(rows: Sequence[dict[str, float]] | dict[str, list[float]]) -> dict[str, float]:
    """Of each metric its mean over folds or seeds, a row for each or a list by metric, and as `NAME_sd` its
    sample standard deviation, 0 where there is only one.
    """
    table = pd.DataFrame(rows)
    return table.mean().to_dict() | table.std().fillna(0.0).add_suffix("_sd").to_dict()


def table(scores: Scores) -> str:
    """Accuracy and F1 for the screen, and their deviations."""
    columns = {"accuracy": "accuracy", "accuracy_sd": "± accuracy", "f1": "F1", "f1_sd": "± F1"}
    chosen = {name: {columns[metric]: row[metric] for metric in columns} for name, row in scores.items()}
    return results.table(chosen, digits=4)


def summary(kind: str, scores: Scores) -> str:
    """The ensemble beside what it has to beat, in one line."""
    best, majority, svm = (scores[name] for name in (kind, "majority class", "SVM on characters"))
    return (
        f"{kind}: accuracy {best['accuracy']:.2%}, F1 {best['f1']:.3f} (majority {majority['accuracy']:.2%}; "
        f"SVM on characters {svm['accuracy']:.2%}, {svm['f1']:.3f})"
    )


def numbers(kind: str, folds: Sequence[Fold], scores: Scores, record: dict[str, Any]) -> dict[str, Any]:
    """For the results file; `wrong` are the ensemble's mistakes, by their line and never by their text."""
    names = {False: "ham", True: "spam"}
    return {
        "metrics": {name: row for name, row in scores.items() if name.startswith(kind)},
        "baselines": {name: row for name, row in scores.items() if not name.startswith(kind)},
        "seconds": sum(phase["seconds"] for phase in record.values()),
        "trained": record,
        "wrong": [
            {"line": int(line), "is": names[spam], "probability": round(float(p), 4), "fold": number}
            for number, fold in enumerate(folds, 1)
            for line, spam, p in zip(fold.messages.lines, fold.messages.labels, fold.probability, strict=True)
            if spam != (p >= 0.5)
        ],
    }
