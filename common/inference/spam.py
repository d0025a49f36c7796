"""What the two spam experiments share and what is not their lesson: batches, a filter to keep and use."""

import copy
import hashlib
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch import Tensor, nn

from common import weights
from common.cli import UserError
from common.datasets.sms_spam import Messages
from common.datasets.vocabulary import TOKEN, Encoded, Vocabulary, collate, thin, tokenize
from common.evaluation import spam as evaluation
from common.figures import spam as figures
from common.files import check_writable
from common.models.spam import Committee, TokenEmbedding
from common.training import loop
from common.training.run import Run

Build = Callable[[int], nn.Module]
"""Makes an untrained net for so many features."""

HIDE_TOKENS, HIDE_FEATURES = 0.25, 0.4
"""Shares of each training text that a net does not see; others in each epoch."""
PARTS = 10
"""Of the training messages; each net of a committee learns from all but one of its own."""
LONGEST = 1_000
"""Tokens of a message that are read; the longest SMS of the collection has 224."""
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
"""Control characters but the tab."""
LAST_BITS = 2e-5
"""More than the order of sums can move a logit."""
LONGEST_LINE = 1_000_000
"""Bytes of a line that are read."""
EXPLAINED = 200
"""Tokens of a message that `explain` tries."""


# ------------------------------------------------------------------------------------------- the script


def refuse_bad_flags(config: Any) -> None:
    """Before any work is done: flags that would be ignored, and numbers that no net can have."""
    modes = [name for name in ("predict", "collapse", "sweep") if getattr(config, name) not in (None, False)]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]} are two things to do; give one of them")
    mode = f"--{modes[0]}" if modes else "training"
    trains = ("data", "resume", "quick", "keep_duplicates", "epochs", "batch_size")
    sizes = ("embed_size", "hidden_size", "num_layers")
    idle = {
        "--predict": (*trains, *sizes, "folds", "members", "seed", "device", "figs"),
        "--collapse": ("resume", "folds", "keep_duplicates", "members", "explain", "weights"),
        "--sweep": (*sizes, "folds", "members", "explain", "weights"),
        "training": ("explain", "weights"),
    }
    for name in idle[mode]:
        if getattr(config, name) != getattr(type(config), name):
            raise UserError(f"--{name.replace('_', '-')} means nothing with {mode}; leave it out")
    for name in (*sizes, "members", "epochs", "batch_size"):
        if getattr(config, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {getattr(config, name)}: give a whole number above 0")
    if config.folds < 0 or config.folds == 1:
        raise UserError(f"--folds {config.folds}: cross-validation takes 2 or more; 0 is for one split")


def places(config: Any, script: str) -> tuple[Path, Path]:
    """Where figures go, and the run; those of quick trials are kept apart from those of real runs."""
    figs = config.figs
    if figs == type(config).figs and config.quick:
        figs = figs / "quick"
    if config.predict is None:
        for place in (figs, config.runs):
            check_writable(place)
    return figs, config.runs / (f"{script}-quick" if config.quick else script)


def unless_given(config: Any, **values: Any) -> dict[str, Any]:
    """Of `values` those that the user has left at their defaults."""
    return {name: v for name, v in values.items() if getattr(config, name) == getattr(type(config), name)}


def smaller(messages: Messages, count: int, seed: int) -> Messages:
    """`count` messages drawn at random, with the same share of spam; all where there are no more."""
    if len(messages) <= count:
        return messages
    chosen, _ = train_test_split(
        np.arange(len(messages)), train_size=count, stratify=messages.labels, random_state=seed
    )
    return messages.part(np.sort(chosen))


def start(config: Any, messages: Messages, folder: Path, device: torch.device) -> Run:
    """Opens the run; `--resume` demands the same messages and settings as before."""
    texts = hashlib.sha256("\n".join(messages.texts).encode(errors="surrogateescape")).hexdigest()
    names = ("seed", "folds", "embed_size", "hidden_size", "num_layers", "members", "epochs", "batch_size")
    settings = {"data": messages.name, "texts": texts[:16]} | {name: getattr(config, name) for name in names}
    return Run(folder, settings=settings, device=device, resume=config.resume, precision="float32")


# ------------------------------------------------------------------------------------------- training


def parts(labels: np.ndarray, members: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each member of a committee, what it learns from, and what it keeps for validation.

    The validation parts are tenths that do not overlap, so with ten members all messages together are
    validated on, with five half of them.

    Args:
        labels: bool [N].

    Returns:
        pairs of indices.

    Raises:
        Refused: too few messages of one class.
    """
    count = max(members, PARTS)
    fewest = int(min(labels.sum(), (~labels).sum()))
    if fewest < count:
        raise UserError(f"one class has only {fewest} messages to train on, {count} are needed")
    splits = StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels)
    return list(itertools.islice(splits, members))


def batches(
    texts: Sequence[Encoded], labels: np.ndarray, learn: Sequence[np.ndarray], size: int, seed: int
) -> loop.Batches:
    """A batch for each member at once; each yields `(batch, labels [N])` in a list.

    Texts of a batch have similar lengths, since a batch takes as many steps in time as its longest text:
    each epoch is shuffled, sorted within every 8 batches, and the batches are shuffled.

    Args:
        learn: for each member, the indices that it learns from.
    """
    per_epoch = steps_per_epoch(learn, size)

    def chosen(member: int, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((seed, member, epoch))
        order = rng.permutation(learn[member])
        chunks = [order[i : i + 8 * size] for i in range(0, len(order), 8 * size)]
        ordered = [sorted(chunk, key=lambda i: len(texts[i][1])) for chunk in chunks]
        found = [chunk[i : i + size] for chunk in ordered for i in range(0, len(chunk), size)]
        return [found[i] for i in rng.permutation(len(found))]

    def stream(member: int, first: int) -> Iterator[tuple[Any, Tensor]]:
        for epoch in itertools.count(first // per_epoch):
            begin = max(0, first - epoch * per_epoch)
            for step, index in list(enumerate(chosen(member, epoch)))[begin:per_epoch]:
                rng = np.random.default_rng((seed, member, epoch, step))
                thinned = [thin(texts[i], rng, HIDE_TOKENS, HIDE_FEATURES) for i in index]
                yield collate(thinned), torch.from_numpy(labels[index].astype(np.float32))

    return lambda first: map(list, zip(*(stream(m, first) for m in range(len(learn))), strict=True))


def know_only_learned(committee: Committee, texts: Sequence[Encoded], learn: Sequence[np.ndarray]) -> None:
    """Each net knows the features of its own training texts; the vocabulary has those of all of them."""
    for net, part in zip(committee.nets, learn, strict=True):
        seen = np.unique(np.concatenate([texts[i][0] for i in part]))
        embedding = net.get_submodule("embedding")
        assert isinstance(embedding, TokenEmbedding)
        embedding.know_only(torch.from_numpy(seen))


def steps_per_epoch(learn: Sequence[np.ndarray], size: int) -> int:
    """The same for all members."""
    return min(math.ceil(len(part) / size) for part in learn)


def logits(
    net: nn.Module, vocabulary: Vocabulary, texts: Sequence[Sequence[str]], size: int = 256, threads: int = 1
) -> np.ndarray:
    """Of spam, float [N], in the order given; NaN for a text without tokens.

    A batch has texts of similar lengths: `size`, or fewer where they are so long that memory would grow.
    """
    device = next(net.parameters()).device
    found = np.full(len(texts), np.nan)
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        if len(batches[-1]) == size or (len(batches[-1]) + 1) * len(texts[i]) > 100 * size:
            batches.append([])
        if texts[i]:
            batches[-1].append(i)

    @torch.inference_mode()
    def answer(chosen: list[int]) -> None:
        batch = [tensor.to(device) for tensor in vocabulary.batch([texts[i] for i in chosen])]
        found[chosen] = net(*batch).cpu().double().numpy()

    # each thread has its own setting of how many more it may start
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done in pool.map(answer, filter(None, batches)):
            assert done is None  # an error in a thread comes up here
    return found


def out_of_fold(
    committee: Committee,
    vocabulary: Vocabulary,
    texts: Sequence[Sequence[str]],
    labels: np.ndarray,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Each net's logits for its own validation part, one after the other, [M], and their labels, bool [M]."""
    answers = [
        logits(net, vocabulary, [texts[i] for i in kept])
        for net, (_, kept) in zip(committee.nets, parts, strict=True)
    ]
    return np.concatenate(answers), labels[np.concatenate([kept for _, kept in parts])]


def watch(
    committee: Committee,
    vocabulary: Vocabulary,
    texts: Sequence[Sequence[str]],
    labels: np.ndarray,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
) -> dict[str, float]:
    """For the learning curves: loss (nats), accuracy and F1 on what each net learned from and on
    what it kept. Of the former as many messages are taken as of the latter.
    """
    seen = [(train, train[:: max(1, len(train) // len(kept))]) for train, kept in parts]
    found: dict[str, float] = {}
    for name, which in (("train", seen), ("validation", parts)):
        answers, truth = out_of_fold(committee, vocabulary, texts, labels, which)
        score = evaluation.score(truth, 1 / (1 + np.exp(-answers)))
        found |= {f"{name}_{key}": score[key] for key in ("accuracy", "f1")}
        found[f"{name}_loss"] = score["log_loss"]
    return found


# -------------------------------------------------------------------------------------- the filter


@dataclass
class SpamFilter:
    """A trained committee, and all it takes to ask it."""

    net: Committee
    vocabulary: Vocabulary
    scale: float
    """With `shift`, from a logit to a calibrated one, by validation messages."""
    shift: float
    about: dict[str, Any]

    def probabilities(self, messages: Sequence[str], threads: int = 1) -> np.ndarray:
        """Of spam, float [N], to four places; NaN for messages without a token. Spam is what has 0.5 or more.

        In what order a sum is taken depends on the other messages in a batch, and moves its last bits. Where
        these could change the fourth place, a message is asked again in double precision, whose last bits are
        a billion times smaller: so its answer depends on nothing but itself.
        """
        texts = [tokenize(text)[:LONGEST] for text in messages]
        found = self.calibrated(logits(self.net, self.vocabulary, texts, threads=threads))
        places, moved = 1e4 * found, 1e4 * found * (1 - found) * LAST_BITS
        with np.errstate(invalid="ignore"):  # NaN is near nothing
            near = (np.abs(places - np.floor(places) - 0.5) < moved) | (np.abs(places - 0.5e4) < moved)
        again = [texts[i] for i in np.flatnonzero(near)]
        found[near] = self.calibrated(logits(self.exact, self.vocabulary, again, threads=threads))
        return np.where(found >= 0.5, np.maximum(found.round(4), 0.5), np.minimum(found.round(4), 0.4999))

    @cached_property
    def exact(self) -> Committee:
        """The net in double precision."""
        return copy.deepcopy(self.net).double()

    def calibrated(self, logit: np.ndarray) -> np.ndarray:
        """Logits to probabilities."""
        return 1 / (1 + np.exp(-(self.scale * logit + self.shift)))

    def save(self, path: Path) -> None:
        """Writes the filter with its vocabulary; numbers in half precision, which halves the file."""
        about = {
            "features": self.vocabulary.names,
            "scale": self.scale,
            "shift": self.shift,
            "members": len(self.net.nets),
        }
        weights.save(path, {"net": copy.deepcopy(self.net).half()}, self.about | about)


def choose_weights(name: str, folder: Path, shipped: Path) -> Path:
    """The file that `--weights` means."""
    newest = folder / "weights.safetensors"
    usual = {"shipped": shipped, "auto": newest if newest.exists() else shipped}
    return usual.get(name, Path(name))


def load(path: Path, kind: str, build: Callable[..., nn.Module]) -> SpamFilter:
    """Reads what `SpamFilter.save` wrote.

    Args:
        kind: of net, as in `about`.
        build: makes a net of `features, embed_size, hidden_size, num_layers`.

    Raises:
        Refused: no such file, or not such a filter.
    """
    modules, about = weights.load(path)
    try:
        if about["kind"] != kind:
            raise ValueError(f"it holds an {about['kind']}")
        vocabulary = Vocabulary(about.pop("features"))
        sizes = [int(about[name]) for name in ("embed_size", "hidden_size", "num_layers")]
        net = Committee(build(len(vocabulary), *sizes) for _ in range(int(about["members"])))
        net.load_state_dict({name: tensor.float() for name, tensor in modules["net"].items()})
        return SpamFilter(net.eval(), vocabulary, float(about["scale"]), float(about["shift"]), about)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"--weights: {path} holds no {kind} of this script ({why})") from None


# ------------------------------------------------------------------------------------------- testing


@dataclass
class Test:
    """Messages that a filter has not learned from, and what it and the baselines say of them."""

    messages: Messages
    probability: np.ndarray
    """Of spam, by the filter, float [N]."""
    answers: dict[str, list[np.ndarray]]
    """By method, bool [N]; several where a method has several nets that answer each for itself."""


def test(spam_filter: SpamFilter, kind: str, known: Messages, unknown: Messages, seed: int) -> Test:
    """The filter and its nets one by one, beside the baselines, which learn from all of `known`."""
    probability = spam_filter.probabilities(unknown.texts)
    baselines = evaluation.baselines(known.texts, known.labels, unknown.texts, seed)
    answers = {kind: [probability >= 0.5]}
    if len(spam_filter.net.nets) > 1:
        texts = [tokenize(text) for text in unknown.texts]
        each = [
            spam_filter.calibrated(logits(net, spam_filter.vocabulary, texts)) >= 0.5
            for net in spam_filter.net.nets
        ]
        answers[f"{kind}, one alone"] = each
    return Test(unknown, probability, answers | {name: [answer] for name, answer in baselines.items()})


def scores(tests: Sequence[Test]) -> dict[str, dict[str, float]]:
    """By method, accuracy, F1, precision and recall: mean and deviation over the tests."""
    found = {}
    for name in tests[0].answers:
        rows = []
        for of in tests:
            each = [evaluation.score_answers(of.messages.labels, a) for a in of.answers[name]]
            rows.append({metric: float(np.mean([row[metric] for row in each])) for metric in each[0]})
        found[name] = evaluation.mean_and_deviation(rows)
    return found


def shown(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """What the screen has room for."""
    metrics = {"accuracy": "accuracy", "accuracy_sd": "± accuracy", "f1": "F1", "f1_sd": "± F1"}
    return {
        name: {heading: row[metric] for metric, heading in metrics.items()} for name, row in scores.items()
    }


def mistakes(tests: Sequence[Test]) -> list[dict[str, Any]]:
    """The messages that the filter is wrong about, by their line in the file and never by their text."""
    return [
        {"line": int(line), "is": "spam" if spam else "ham", "probability": round(float(p), 4), "fold": fold}
        for fold, of in enumerate(tests, 1)
        for line, spam, p in zip(of.messages.lines, of.messages.labels, of.probability, strict=True)
        if spam != (p >= 0.5)
    ]


def report(
    path: Path,
    kind: str,
    tests: Sequence[Test],
    scores: dict[str, dict[str, float]],
    run: Run,
    *,
    title: str,
    caption: str,
) -> None:
    """Draws learning curves, confusion matrices beside the baselines', and calibration, over all tests."""
    truth = np.concatenate([of.messages.labels for of in tests])
    nets = len(tests[0].answers.get(f"{kind}, one alone", [None]))
    histories: dict[str, list[dict[str, Any]]] = {}
    for row in run.history:
        mean = {"loss": row["loss"] / nets} if "loss" in row else {}  # the loss is the sum over the nets
        histories.setdefault(row["phase"], []).append(row | mean)
    methods = [name for name, answers in tests[0].answers.items() if len(answers) == 1]
    matrices = {
        name: evaluation.confusion(truth, np.concatenate([of.answers[name][0] for of in tests]))
        for name in methods
    }
    figures.report(
        path,
        histories,
        matrices,
        scores,
        truth,
        np.concatenate([of.probability for of in tests]),
        scores["majority class"]["accuracy"],
        title=title,
        caption=caption,
    )


# ------------------------------------------------------------------------------------ --predict, --explain


def predict(spam_filter: SpamFilter, source: str, explained: bool) -> int:
    """Answers each line of a file, or of standard input for `-`: probability, tab, spam or ham, tab, message.

    Lines are answered as they come. Memory does not grow with the input. An empty line has no answer,
    `-` and `empty`. Bytes that are no UTF-8, and control characters, are shown and read as U+FFFD.

    Returns:
        the exit code.

    Raises:
        Refused: the file cannot be read.
    """
    out = sys.stdout.buffer
    coloured = explained and sys.stdout.isatty()
    counts = dict.fromkeys(("spam", "ham", "empty"), 0)
    number = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # batches side by side are faster than a small batch on all cores
    try:
        for lines in _lines(source):
            messages = [_clean(line) for line in lines]
            probabilities = spam_filter.probabilities(messages, threads)
            for message, probability in zip(messages, probabilities, strict=True):
                number += 1
                answer = "empty" if np.isnan(probability) else "spam" if probability >= 0.5 else "ham"
                counts[answer] += 1
                if len(message) > LONGEST and (length := len(tokenize(message))) > LONGEST:
                    _say(f"line {number}: of {length:,} words and signs the first {LONGEST:,} were read")
                shown = "-" if answer == "empty" else f"{probability:.4f}"
                moved = explain(spam_filter, message) if explained and answer != "empty" else []
                text = _in_colours(message, moved) if coloured else message
                out.write(f"{shown}\t{answer}\t{text}\n".encode())
                if moved:
                    out.write(f"\t{_strongest(message, moved)}\n".encode())
            out.flush()
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        torch.set_num_threads(threads)
    if number == 0:
        _say(f"{source} has no lines")
    elif counts["empty"]:
        _say(f"{counts['empty']:,} of {number:,} lines are empty and have no answer")
    return 0


def explain(spam_filter: SpamFilter, message: str) -> list[tuple[int, int, float]]:
    """How much each token speaks for spam: the change of the logit when it alone is left out (occlusion;
    Zeiler, Fergus 2014, section 4.2).

    Returns:
        for each of the first `EXPLAINED` tokens: where it begins and ends, and the change; above 0 for spam.
    """
    spans = [match.span() for match in itertools.islice(TOKEN.finditer(message), EXPLAINED)]
    tokens = [message[begin:end] for begin, end in spans]
    without = [tokens[:i] + tokens[i + 1 :] for i in range(len(tokens))]
    whole, *others = logits(spam_filter.exact, spam_filter.vocabulary, [tokens, *without])
    # a message of one token says all by it
    return [
        (*span, spam_filter.scale * float(whole - (0 if np.isnan(other) else other)))
        for span, other in zip(spans, others, strict=True)
    ]


def _strongest(message: str, moved: list[tuple[int, int, float]], count: int = 8) -> str:
    """The tokens that moved the logit most, the strongest first."""
    chosen = sorted(moved, key=lambda span: -abs(span[2]))[:count]
    return "  ".join(f"{change:+.2f} {message[begin:end]}" for begin, end, change in chosen)


def _in_colours(message: str, moved: list[tuple[int, int, float]]) -> str:
    """For a terminal: orange speaks for spam, blue for ham; the darker, the more."""
    strongest = max(abs(change) for _, _, change in moved)
    shades = {True: (230, 223, 216, 208), False: (195, 153, 111, 69)}  # of the 256 colours of terminals
    text, at = "", 0
    for begin, end, change in moved:
        text += message[at:begin]
        shade = min(3, int(4 * abs(change) / (strongest or 1)))
        coloured = f"\033[30;48;5;{shades[change > 0][shade]}m{message[begin:end]}\033[0m"
        text += coloured if abs(change) > 0.1 * strongest else message[begin:end]
        at = end
    return text + message[at:]


def _clean(line: bytes) -> str:
    """As text; what is no UTF-8, and control characters, which could steer a terminal, become U+FFFD."""
    text = line.decode("utf-8", errors="replace")
    return CONTROL.sub("\ufffd", text)


def _lines(source: str) -> Iterator[list[bytes]]:
    """Whole lines without their ends, as many at once as have come; of a huge one the beginning."""
    number = 0

    def ended(line: bytes) -> bytes:
        nonlocal number
        number += 1
        if len(line) > LONGEST_LINE:
            _say(f"line {number} is longer than {LONGEST_LINE:,} bytes: its beginning was read")
        return line[:LONGEST_LINE].removesuffix(b"\r")

    try:
        handle = sys.stdin.fileno() if source == "-" else os.open(source, os.O_RDONLY)
        rest, skipping = b"", False  # skipping: the rest of a line whose beginning was given
        while block := os.read(handle, 1 << 20):
            *lines, rest = (rest + block).split(b"\n")
            if skipping and lines:
                lines, skipping = lines[1:], False
            if skipping:
                rest = b""
            elif len(rest) > LONGEST_LINE:
                lines, rest, skipping = [*lines, rest], b"", True
            if lines:
                yield [ended(line) for line in lines]
        if rest:
            yield [ended(rest)]
    except OSError as error:
        raise UserError(f"--predict: cannot read {source}: {error.strerror}; name a text file") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr)
