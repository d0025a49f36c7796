"""A trained spam filter: kept in a file, asked for probabilities, and explained word by word."""

import copy
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common import weights
from common.cli import UserError, user_path
from common.datasets.text import decode_line, to_utf8
from common.datasets.vocabulary import TOKEN, Vocabulary, length, tokenize
from common.files import cause_of
from common.models.spam import Ensemble, logits

LONGEST = 1_000  # tokens of a message that are read; the longest SMS of the collection has 224
LONGEST_LINE = 1_000_000  # bytes of a line that are read
EXPLAINED = 200  # tokens of a message that `explain` tries
CALIBRATION = "scale", "length_scale", "shift"
LAST_BITS = 2e-5  # more than the order of sums can move a logit
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")  # but the tab; they could steer a terminal


@dataclass
class SpamFilter:
    """A trained ensemble, and all it takes to ask it."""

    ensemble: Ensemble
    vocabulary: Vocabulary
    scale: float
    """With the two others, from logit and length to log-odds; see `calibrate` in evaluation.spam."""
    length_scale: float
    shift: float
    about: dict[str, Any]

    def probabilities(self, messages: Sequence[str], threads: int = 1) -> np.ndarray:
        """Of spam, float [N], to four places; NaN for messages without a token. Spam is what has 0.5 or more.

        In what order a sum is taken depends on the other messages in a batch, and moves its last bits. Where
        these could change the fourth place, a message is asked again in double precision, whose last bits are
        a billion times smaller: so its answer depends on nothing but itself.
        """
        texts = [tokenize(text)[:LONGEST] for text in messages]
        result = _probability(self.calibrated(self.ensemble, texts, threads))
        scaled, moved = 1e4 * result, 1e4 * result * (1 - result) * LAST_BITS
        with np.errstate(invalid="ignore"):  # NaN is near nothing
            near = (np.abs(scaled - np.floor(scaled) - 0.5) < moved) | (np.abs(scaled - 0.5e4) < moved)
        again = [texts[i] for i in np.flatnonzero(near)]
        result[near] = _probability(self.calibrated(self.exact, again, threads))
        return np.where(result >= 0.5, np.maximum(result.round(4), 0.5), np.minimum(result.round(4), 0.4999))

    def log_odds(self, messages: Sequence[str]) -> np.ndarray:
        """Of spam, float [N], which say more of the sure ones than probabilities; spam is what has 0 or more,
        and a message without a token has -1,000."""
        texts = [tokenize(text)[:LONGEST] for text in messages]
        return np.nan_to_num(self.calibrated(self.ensemble, texts), nan=-1e3)

    def single_models(self, messages: Sequence[str]) -> list[np.ndarray]:
        """The probabilities of each model by itself."""
        texts = [tokenize(text) for text in messages]
        return [_probability(self.calibrated(model, texts)) for model in self.ensemble.models]

    @cached_property
    def exact(self) -> Ensemble:
        """The ensemble in double precision."""
        return copy.deepcopy(self.ensemble).double()

    def calibrated(self, model: nn.Module, texts: Sequence[Sequence[str]], threads: int = 1) -> np.ndarray:
        """A model's log-odds of spam, float [N], of texts, each a list of tokens; NaN where there is none."""
        logit = logits(model, self.vocabulary.batch, texts, threads=threads)
        longer = np.log([length(tokens) for tokens in texts])
        return self.scale * logit + self.length_scale * longer + self.shift

    def save(self, path: Path) -> None:
        """Writes the filter with its vocabulary; numbers in half precision, which halves the file."""
        about = self.about | {name: getattr(self, name) for name in CALIBRATION}
        about |= {"features": self.vocabulary.names, "n_models": len(self.ensemble.models)}
        weights.save(path, {"ensemble": copy.deepcopy(self.ensemble).half()}, about)


def _probability(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))


def load(path: Path, kind: str, build: Callable[..., nn.Module]) -> SpamFilter:
    """Reads what `SpamFilter.save` wrote; `build` makes a model of the number of features and the sizes.

    Raises:
        UserError: no such file, or not such a filter of this `kind` of model.
    """
    modules, about = weights.load(path)
    try:
        if about["kind"] != kind:
            raise ValueError(f"it holds an {about['kind']}")
        vocabulary = Vocabulary(about.pop("features"))
        sizes = [about[name] for name in ("n_models", "embed_size", "hidden_size", "num_layers")]

        def make(n_models: int, *sizes: int) -> Ensemble:
            return Ensemble(build(len(vocabulary), *sizes) for _ in range(n_models))

        ensemble = weights.build(make, sizes, modules["ensemble"])
        known = {"length_scale": 0.0} | about  # weights of before November 2026 have none
        scale, length_scale, shift = (float(known[name]) for name in CALIBRATION)
        return SpamFilter(ensemble.eval(), vocabulary, scale, length_scale, shift, about)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"--weights: {path} holds no {kind} of this script ({why})") from None


# ------------------------------------------------------------------------------------ --predict, --explain


def predict(spam_filter: SpamFilter, source: str, explained: bool) -> int:
    """Answers each line of a file, or of standard input for `-`: probability, tab, spam or ham, tab, message.

    Lines are read as in training and answered as they come. Memory does not grow with the input. An empty
    line has no answer, `-` and `empty`. Control characters are shown as U+FFFD. `explained` adds to each
    answer the words that moved it most; on a terminal that shows colours, in colours.

    Raises:
        UserError: the file cannot be read, or holds no text; the answers cannot be written.
    """
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    coloured = explained and sys.stdout.isatty() and not plain
    number = empty = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # batches side by side are faster than a small batch on all cores
    for messages in _lines(source):
        answers = []
        for message, probability in zip(messages, spam_filter.probabilities(messages, threads), strict=True):
            number, empty = number + 1, empty + bool(np.isnan(probability))
            if len(message) > LONGEST and (length := len(tokenize(message))) > LONGEST:
                _say(f"line {number}: of {length:,} words and signs the first {LONGEST:,} were read")
            moved = explain(spam_filter, message) if explained and not np.isnan(probability) else []
            answers.append(_answer(CONTROL.sub("\ufffd", message), probability, moved, coloured))
        try:
            sys.stdout.buffer.write("".join(answers).encode())
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise  # the reader has seen enough; `launch` ends quietly
        except OSError as error:
            raise UserError(f"--predict: cannot write the answers: {cause_of(error)}") from None
    if number == 0:
        _say(f"{source} has no lines")
    elif empty:
        _say(f"{empty:,} of {number:,} lines are empty and have no answer")
    return 0


Moved = list[tuple[int, int, float]]
"""For each token of a message: where it begins and ends, and how much it moves the logit; above 0 to spam."""


def explain(spam_filter: SpamFilter, message: str) -> Moved:
    """How much each of the first `EXPLAINED` tokens speaks for spam: the change of the logit when it alone is
    left out (occlusion; Zeiler, Fergus 2014, section 4.2).
    """
    spans = [match.span() for match in itertools.islice(TOKEN.finditer(message), EXPLAINED)]
    tokens = [message[start:end] for start, end in spans]
    without = [tokens[:i] + tokens[i + 1 :] for i in range(len(tokens))]
    whole, *others = logits(spam_filter.exact, spam_filter.vocabulary.batch, [tokens, *without])
    # without its only token a message has no logit: all it says is said by it
    changes = whole - np.nan_to_num(others)
    return [(*span, spam_filter.scale * float(change)) for span, change in zip(spans, changes, strict=True)]


def _answer(message: str, probability: float, moved: Moved, coloured: bool) -> str:
    """One line for a message, and another one with its strongest tokens where it is explained."""
    if np.isnan(probability):
        return f"-\tempty\t{message}\n"
    text = _in_colours(message, moved) if coloured else message
    line = f"{probability:.4f}\t{'spam' if probability >= 0.5 else 'ham'}\t{text}\n"
    strongest = sorted(moved, key=lambda token: -abs(token[2]))[:8]
    reasons = "  ".join(f"{change:+.2f} {message[start:end]}" for start, end, change in strongest)
    return f"{line}\t{reasons}\n" if moved else line


def _in_colours(message: str, moved: Moved) -> str:
    """For a terminal: orange speaks for spam, blue for ham; the darker, the more."""
    strongest = max(abs(change) for _, _, change in moved)
    shades = {True: (230, 223, 216, 208), False: (195, 153, 111, 69)}  # of the 256 colours of terminals
    text, position = "", 0
    for start, end, change in moved:
        shade = min(3, int(4 * abs(change) / (strongest or 1)))
        token = f"\033[30;48;5;{shades[change > 0][shade]}m{message[start:end]}\033[0m"
        text += message[position:start] + (token if abs(change) > 0.1 * strongest else message[start:end])
        position = end
    return text + message[position:]


def _lines(source: str) -> Iterator[list[str]]:
    """Whole lines without their ends, as many at once as have come; of a huge one the beginning."""
    number = 0

    def ended(line: bytes) -> str:
        nonlocal number
        number += 1
        if len(line) > LONGEST_LINE:
            _say(f"line {number} is longer than {LONGEST_LINE:,} bytes: its beginning was read")
        return decode_line(line[:LONGEST_LINE].removesuffix(b"\r"), len(line) <= LONGEST_LINE)

    rest = b""
    for block in to_utf8(_blocks(source), f"--predict: {source}"):
        *lines, rest = (rest + block).split(b"\n")
        rest = rest[: LONGEST_LINE + 1]  # so that memory does not grow with a line
        if lines:
            yield [ended(line) for line in lines]
    if rest:
        yield [ended(rest)]


def _blocks(source: str) -> Iterator[bytes]:
    """The bytes that have come, as soon as they come."""
    if source == "-" and sys.stdin is None:
        raise UserError("--predict -: standard input is closed; name a file, or pipe lines into it")
    try:
        handle = sys.stdin.fileno() if source == "-" else os.open(user_path("predict", source), os.O_RDONLY)
        while block := os.read(handle, 1 << 20):
            yield block
    except OSError as error:
        raise UserError(f"--predict: cannot read {source}: {cause_of(error)}; name a text file") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr)
