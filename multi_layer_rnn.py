"""Is this SMS spam? Embedding, stacked vanilla RNN, one linear layer; the twin of lstm.py.

    python multi_layer_rnn.py                          # the whole experiment on one split, about a minute
    python multi_layer_rnn.py --folds 5                # cross-validation, as in README's table
    python multi_layer_rnn.py --test-on others.csv   # on messages of another time and place, with ROC curves
    python multi_layer_rnn.py --predict messages.txt   # probability, spam or ham, message

A vanilla RNN multiplies its state by the same matrix at each token, so what it read long ago fades. Messages
are short, and the largest of all states counts, so here it does not matter: see the twin. The two scripts
differ in the model, cell and head, and in its sizes, and in nothing else.

Every accuracy stands beside the majority class, which already has 87 %, and beside naive Bayes and linear
support vector machines, which are hard to beat on messages this short. Expected, over five folds: accuracy
.992, F1 .97; naive Bayes has .985 and .94, the support vector machine on characters .990 and .96.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from common.cli import Flags, UserError, check_positive, check_unused, chosen_mode, launch, read_flags
from common.files import check_writable

SCRIPT = "multi_layer_rnn"
KIND = "RNN"
SIZES = ("embed_size", "hidden_size", "num_layers")
SHIPPED = Path(__file__).parent / "data" / "pretrained" / f"spam_{KIND.lower()}.safetensors"


@dataclass
class Config(Flags):
    """Tell spam from ham with a vanilla RNN: train it, score it, ask it."""

    data: str = "auto"
    """Messages: a file, a folder, `builtin`, or auto: data/sms, else a download of 0.2 MB, else builtin."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on; auto takes the CPU, which is as fast for models this small."""
    folds: int = 0
    """Cross-validation over so many parts; 0 tests on one fifth of the messages and saves the weights."""
    keep_duplicates: bool = False
    """Keep messages that repeat an earlier one, as classic reports do; they flatter the score."""
    embed_size: int = 32
    """Size of the vector of each token."""
    hidden_size: int = 32
    """Size of the state, in each direction."""
    num_layers: int = 2
    """Recurrent layers on top of one another."""
    n_models: int = 5
    """Models in the ensemble; each has another tenth of the training messages for validation."""
    epochs: int = 12
    """Times that each model sees its training messages."""
    batch_size: int = 64
    """Messages in a step of each model."""
    collapse: bool = False
    """Train the earlier set-up, which reads padding as text, and draw why it failed."""
    sweep: bool = False
    """Train RNNs and LSTMs of many sizes and draw how they scale; takes 16 to 36 minutes."""
    test_on: tuple[str, ...] | None = None
    """Score weights and baselines on labelled messages of these files, which none of them was trained on."""
    predict: str | None = None
    """Answer each line of this file, or of standard input for `-`, and do nothing else."""
    explain: bool = False
    """With --predict: show which words moved the probability."""
    weights: str = "auto"
    """With --predict, --test-on: a .safetensors file, `shipped`, or auto for the newest, else shipped."""

    def check(self) -> None:
        super().check()
        mode = chosen_mode(self, "predict", "collapse", "sweep", "test_on")
        train = ("data", "resume", "quick", "keep_duplicates", "epochs", "batch_size")
        unused = {
            "predict": (*train, *SIZES, "folds", "n_models", "seed", "device", "figs"),
            "collapse": ("resume", "folds", "keep_duplicates", "n_models", "explain", "weights"),
            "sweep": (*SIZES, "folds", "n_models", "explain", "weights"),
            "test_on": ("resume", *train[3:], *SIZES, "folds", "n_models", "explain"),
            "": ("explain", "weights"),
        }
        check_unused(self, mode, *unused[mode])
        check_positive(self, *SIZES, "n_models", "epochs", "batch_size")
        if self.folds < 0 or self.folds == 1:
            raise UserError(f"--folds {self.folds}: cross-validation takes 2 or more; 0 is for one split")
        if mode != "predict":
            check_writable(self.figs_dir(), self.runs)


if __name__ == "__main__":
    CONFIG = read_flags(Config)  # before torch is imported, which takes seconds: --help answers at once

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import results, weights
from common.cli import command, commit, is_first, is_given, pick_device, seed_everything
from common.datasets import sms_spam
from common.datasets.vocabulary import Batch, Vocabulary, ensemble_batches, steps_per_epoch, tokenize
from common.evaluation import spam as evaluation
from common.inference import spam
from common.models.spam import Ensemble, SpamClassifier, draw_dropout
from common.training import distributed, loop
from common.training.run import Run

LEARNING_RATE = 3e-3
DROPOUT = 0.3  # share of a vector's or state's numbers
TOKEN_DROPOUT = 0.25  # share of a training message's tokens that a model does not see, others in each epoch,
FEATURE_DROPOUT = 0.4  # and of the features, such as pieces of words, of those that it sees
VALIDATION_PARTS = 10  # of the training messages; each model is validated on another one of them


# The lesson: model, loss, schedule, and what is chosen on messages that a model was not trained on.


def head(size: int, dropout: float) -> nn.Module:
    """One linear layer makes a logit, [N,1], of the largest states of a message, [N,size]."""
    return nn.Linear(size, 1)  # [N,1]


build = partial(SpamClassifier, cell=nn.RNN, head=head)


def losses(ensemble: nn.Module, batches: list[tuple[Batch, Tensor]], progress: float) -> loop.Losses:
    """Binary cross entropy of each model, in nats, on a batch of its own training messages."""
    assert isinstance(ensemble, Ensemble)

    def loss(model: nn.Module, batch: Batch, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(*batch), labels)

    return distributed.loss_of_each(ensemble.models, batches, loss, draw_dropout)


def fit(
    config: Config, build: partial[SpamClassifier], data: sms_spam.Messages, run: Run, phase: str
) -> spam.SpamFilter:
    """Trains an ensemble on messages, none of which is of the test part.

    Args:
        build: builds a model of (features, embed_size, hidden_size, num_layers, dropout).
    """
    # Data: each model has a validation part of its own
    vocabulary = Vocabulary.from_texts(data.texts)
    tokens = [tokenize(text) for text in data.texts]
    texts = [vocabulary.encode(text) for text in tokens]
    parts = max(config.n_models, VALIDATION_PARTS)
    splits = sms_spam.folds(data.labels, parts, config.seed)[: config.n_models]
    train = [index for index, _ in splits]
    validation = evaluation.Validation(vocabulary, tokens, data.labels, splits)
    batches = ensemble_batches(
        texts, data.labels, train, config.batch_size, config.seed, TOKEN_DROPOUT, FEATURE_DROPOUT
    )

    # Model
    sizes = {name: getattr(config, name) for name in SIZES}
    models = [build(len(vocabulary), **sizes, dropout=DROPOUT) for _ in splits]
    for model, index in zip(models, train, strict=True):
        model.zero_unseen(torch.cat([torch.from_numpy(texts[i][0]) for i in index]))
    ensemble = Ensemble(models).to(run.device)
    optimizer = torch.optim.AdamW(ensemble.parameters(), LEARNING_RATE, weight_decay=0.01, fused=True)

    # Train
    trained = loop.supervised(
        run,
        phase,
        ensemble,
        optimizer,
        losses,
        batches,
        steps=config.epochs * steps_per_epoch(train, config.batch_size),
        schedule=loop.cosine_schedule(warm_up=0.1),
        ema=0.99,
        clip=2.0,
        evaluate=validation.scores,
        evaluations=config.epochs,
    )
    assert isinstance(trained, Ensemble)

    # Choose what makes a probability of logit and length, so also the threshold, by the validation messages
    calibration = evaluation.calibrate(*validation.out_of_fold(trained))
    about = {"kind": KIND, **sizes, "data": data.name, "messages": len(data)}
    return spam.SpamFilter(trained, vocabulary, *calibration, about)


def main(config: Config) -> int:
    # Set up
    config.check()
    chosen = weights.choose(config.weights, config.run_dir(SCRIPT) / "weights.safetensors", SHIPPED)
    if config.predict is not None:
        return spam.predict(spam.load(chosen, KIND, build), config.predict, config.explain)
    from common.figures import spam as figures  # not above: --predict answers sooner without matplotlib
    from common.studies import spam as studies

    seed_everything(config.seed)
    device = pick_device("cpu" if config.device == "auto" else config.device)
    torch.set_num_threads(1)  # the steps are so small that more would only wait for one another

    # Data
    keep_duplicates = config.keep_duplicates or config.collapse
    with distributed.first_alone():
        data = sms_spam.find(config.data, keep_duplicates=keep_duplicates, download=not config.quick)
    if config.quick:
        data = data.sample(1_000, config.seed)
        small: dict[str, Any] = {"n_models": 2, "batch_size": 16}
        config = replace(config, **{name: small[name] for name in small if not is_given(config, name)})
    print(f"Data: {data.name}; {len(data):,} messages, {data.labels.mean():.2%} of them spam")
    if data.note:
        print(data.note)
    if config.collapse:
        return studies.collapse(config, SCRIPT, KIND, fit, build, data, device)
    if config.sweep:
        return studies.sweep(config, fit, data, device)
    if config.test_on is not None:
        return studies.elsewhere(config, SCRIPT, spam.load(chosen, KIND, build), data, device)

    # Train, and test each fold beside the baselines
    names = ("seed", "folds", *SIZES, "n_models", "batch_size")
    settings = {"data": data.name, "texts": data.digest()} | {name: getattr(config, name) for name in names}
    settings |= {"epochs of each fold": config.epochs} if config.folds else {}  # all are trained alike
    where: dict[str, Any] = {"device": device, "precision": "float32", "budget": {"epochs": config.epochs}}
    run = Run(config.run_dir(SCRIPT, data.builtin), settings=settings, resume=config.resume, **where)
    figs = config.figs_dir(data.builtin)
    path = figs / f"{SCRIPT}.png"
    run.draw = lambda: figures.save_training(path, KIND, run.history, config.n_models, data.labels)
    folds = []
    splits = sms_spam.folds(data.labels, config.folds or 5, config.seed)[: config.folds or 1]
    for number, (index, test_index) in enumerate(splits, 1):
        train, test = data.part(index), data.part(test_index)
        spam_filter = fit(config, build, train, run, f"fold {number}")
        probability, single = spam_filter.probabilities(test.texts), spam_filter.single_models(test.texts)
        folds.append(evaluation.test_fold(KIND, train, test, probability, single, config.seed))
    scores = evaluation.scores(folds)
    if not config.folds:
        source = {"command": command(), "commit": commit()}
        spam_filter.about |= source | {"scores": scores[KIND], "test messages": len(test)}
        spam_filter.save(run.path.with_name("weights.safetensors"))
    run.finish()
    if not is_first():
        return 0  # of several processes, one draws
    print(evaluation.table(scores))
    if scores[KIND]["accuracy"] <= scores["majority class"]["accuracy"]:
        print("The net is no better than answering ham to everything: it has learned nothing.")

    # Figures
    repeats = f"{config.folds} folds" if config.folds else f"one split, seed {config.seed}"
    title = f"Is this SMS spam? The mean logit of {config.n_models} models with an {KIND}"
    caption = f"{data.name}, {len(data):,} messages, {repeats}. {data.note.partition(chr(10))[0]}".strip()
    figures.report(path, KIND, folds, scores, run.history, title=title, caption=caption)
    numbers = evaluation.numbers(KIND, folds, scores, run.record)
    results.save(figs, SCRIPT, config, data=data, count=len(data), device=device, **numbers)
    print(f"{evaluation.summary(KIND, scores)}. Figure: {results.where(path, data)}")
    return 0


if __name__ == "__main__":
    launch(main, CONFIG)
