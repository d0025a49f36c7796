"""Is this SMS spam? Embedding, LSTM, two fully connected layers; the twin of multi_layer_rnn.py.

    python lstm.py                              # the whole experiment on one split, about a minute
    python lstm.py --folds 5                    # cross-validation, as in README's table
    python lstm.py --predict messages.txt       # probability, spam or ham, message

An LSTM carries a second state through time that is added to and gated, not multiplied at each step, so what
it read at the beginning of a message is still there at its end. Compare with the vanilla RNN: the two
scripts differ in the model and its options, and in nothing else.

Every accuracy stands beside the majority class, which already has 87 %, and beside naive Bayes and linear
support vector machines, which are hard to beat on messages this short.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, results
from common.datasets import sms_spam
from common.datasets.vocabulary import Vocabulary, tokenize
from common.evaluation import spam as evaluation
from common.inference import spam
from common.models.spam import Committee, SpamLSTM
from common.results import table
from common.studies import spam as studies
from common.training import loop
from common.training.run import Run

SCRIPT = "lstm"
KIND = "LSTM"


@dataclass
class Config(cli.Flags):
    """Tell spam from ham with an LSTM: train it, score it, ask it."""

    data: str = "auto"
    """Messages: a file, a folder, `builtin`, or auto: data/sms, else a download of 0.2 MB, else builtin."""
    figs: Path = Path("figs")
    """Where figures and lstm.json go."""
    runs: Path = Path("runs")
    """Where checkpoints and trained weights go."""
    seed: int = 0
    """Of the split, weights and batches."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes the CPU, which is as fast for nets this small."""
    resume: bool = False
    """Go on with the run that was stopped, exactly where it was."""
    quick: bool = False
    """The same path at its smallest, under half a minute; figures go to figs/quick, weights apart."""
    folds: int = 0
    """Cross-validation over so many parts; 0 tests on one fifth of the messages and keeps the weights."""
    keep_duplicates: bool = False
    """Keep messages that repeat an earlier one, as classic reports do; they flatter the score."""
    embed_size: int = 32
    """Numbers for each token."""
    hidden_size: int = 48
    """Numbers in the state, in each direction."""
    num_layers: int = 1
    """LSTMs on top of one another."""
    members: int = 5
    """Nets that vote; each keeps another tenth of the training messages for validation."""
    epochs: int = 12
    """Times that each net sees its training messages."""
    batch_size: int = 64
    """Messages in a step of each net."""
    collapse: bool = False
    """Train the earlier set-up, which reads padding as text, and draw why it failed."""
    sweep: bool = False
    """Train RNNs and LSTMs of many sizes and draw how they scale; takes half an hour."""
    predict: str | None = None
    """Answer each line of this file, or of standard input for `-`, and do nothing else."""
    explain: bool = False
    """For --predict: show which words moved the probability."""
    weights: str = "auto"
    """For --predict: a .safetensors file, `shipped`, or auto: newest trained, else shipped."""


LEARNING_RATE = 3e-3
SHIPPED = Path(__file__).parent / "data" / "pretrained" / "spam_lstm.safetensors"


# The lesson: loss, schedule, and what is chosen on messages that the net has not learned from.


def losses(committee: nn.Module, batches: list[tuple[Any, Tensor]], progress: float) -> dict[str, Tensor]:
    """Binary cross entropy in nats of each net, on a batch of its own training messages."""
    assert isinstance(committee, Committee)
    return {
        f"net {number}": F.binary_cross_entropy_with_logits(net(*batch), label)
        for number, (net, (batch, label)) in enumerate(zip(committee.nets, batches, strict=True), 1)
    }


def cosine(progress: float) -> float:
    """Learning rate: up over a tenth, then along a cosine to a hundredth (Loshchilov, Hutter 2017, SGDR)."""
    return min(1.0, progress / 0.1 + 0.01) * (0.505 + 0.495 * math.cos(math.pi * progress))


def fit(
    config: Config,
    build: Callable[..., nn.Module],
    messages: sms_spam.Messages,
    run: Run,
    phase: str,
) -> spam.SpamFilter:
    """Trains a committee on messages, none of which is of the test part.

    Args:
        build: makes a net of (features, embed_size, hidden_size, num_layers).
    """
    labels = messages.labels
    vocabulary = Vocabulary.of(messages.texts)
    tokens = [tokenize(text) for text in messages.texts]
    texts = [vocabulary.encode(text) for text in tokens]
    parts = spam.parts(labels, config.members, config.seed)
    learn = [train for train, _ in parts]

    # Model
    sizes = {name: getattr(config, name) for name in ("embed_size", "hidden_size", "num_layers")}
    committee = Committee(build(len(vocabulary), *sizes.values()) for _ in parts).to(run.device)
    spam.know_only_learned(committee, texts, learn)
    optimizer = torch.optim.AdamW(committee.parameters(), LEARNING_RATE, weight_decay=0.01, fused=True)

    def evaluate(averaged: nn.Module) -> dict[str, float]:
        assert isinstance(averaged, Committee)
        return spam.watch(averaged, vocabulary, tokens, labels, parts)

    # Train
    trained = loop.supervised(
        run,
        phase,
        committee,
        optimizer,
        losses,
        spam.batches(texts, labels, learn, config.batch_size, config.seed),
        steps=config.epochs * spam.steps_per_epoch(learn, config.batch_size),
        schedule=cosine,
        ema=0.99,
        clip=2.0,
        evaluate=evaluate,
        evaluations=config.epochs,
    )
    assert isinstance(trained, Committee)

    # Choose what makes a probability of a logit, so also the threshold, by the validation messages
    answers, truth = spam.out_of_fold(trained, vocabulary, tokens, labels, parts)
    scale, shift = evaluation.calibrate(truth, answers)
    about = {"kind": KIND, **sizes, "data": messages.name, "messages": len(messages)}
    return spam.SpamFilter(trained, vocabulary, scale, shift, about)


def main(config: Config) -> int:
    # Set up
    config.check()
    cli.seed_everything(config.seed)
    device = cli.pick_device("cpu" if config.device == "auto" else config.device)
    spam.refuse_bad_flags(config)
    figs, folder = spam.places(config, SCRIPT)
    if config.predict is not None:
        path = spam.choose_weights(config.weights, folder, SHIPPED)
        return spam.predict(spam.load(path, KIND, SpamLSTM), config.predict, config.explain)
    torch.set_num_threads(1)  # the steps are so small that more would only wait for one another

    # Data
    data = sms_spam.find(
        config.data, keep_duplicates=config.keep_duplicates or config.collapse, download=not config.quick
    )
    if config.quick:
        data = spam.smaller(data, 1_000, config.seed)
        config = replace(config, **spam.unless_given(config, members=2, batch_size=16))
    print(f"Data: {data.name}; {len(data):,} messages, {data.labels.mean():.2%} of them spam")
    if data.note:
        print(data.note)
    if config.collapse:
        return studies.collapse(config, SCRIPT, KIND, fit, SpamLSTM, data, figs, folder, device)
    if config.sweep:
        return studies.sweep(config, fit, data, figs, folder, device)

    # Train, and test each fold beside the baselines
    run = spam.start(config, data, folder, device)
    tests = []
    for fold, (rest, test) in enumerate(sms_spam.folds(data.labels, config.folds or 5, config.seed), 1):
        known, unknown = data.part(rest), data.part(test)
        spam_filter = fit(config, SpamLSTM, known, run, f"fold {fold}")
        tests.append(spam.test(spam_filter, KIND, known, unknown, config.seed))
        if not config.folds:
            break
    scores = spam.scores(tests)
    print(table(spam.shown(scores), digits=4))
    if scores[KIND]["accuracy"] <= scores["majority class"]["accuracy"]:
        print("The net is no better than answering ham to everything: it has learned nothing.")
    if not config.folds:
        source = {"command": cli.command(), "commit": cli.commit()}
        spam_filter.about |= source | {"scores": scores[KIND], "test messages": len(unknown)}
        spam_filter.save(folder / "weights.safetensors")
    run.finish()

    # Figures
    repeats = f"{config.folds} folds" if config.folds else f"one split, seed {config.seed}"
    spam.report(
        figs / f"{SCRIPT}.png",
        KIND,
        tests,
        scores,
        run,
        title=f"Is this SMS spam? The vote of {config.members} nets with an {KIND}",
        caption=f"{data.name}, {len(data):,} messages, {repeats}. {data.note.partition(chr(10))[0]}".strip(),
    )
    net = {name: scores.pop(name) for name in list(scores) if name.startswith(KIND)}
    results.save(
        figs,
        SCRIPT,
        config,
        data=data,
        count=len(data),
        metrics=net,
        baselines=scores,
        seconds=sum(phase["seconds"] for phase in run.record.values()),
        device=device,
        trained=run.record,
        wrong=spam.mistakes(tests),
    )
    best, simple = net[KIND], scores["SVM on characters"]
    print(
        f"{KIND}: accuracy {best['accuracy']:.2%}, F1 {best['f1']:.3f} (majority "
        f"{scores['majority class']['accuracy']:.2%}; SVM on characters {simple['accuracy']:.2%}, "
        f"{simple['f1']:.3f}). Pictures: {figs}/{SCRIPT}.png"
    )
    return 0


if __name__ == "__main__":
    cli.launch(main, cli.read_flags(Config))
