"""Texts as numbers: tokens, what is known of each token (its features), and the numbers of the features."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

TOKEN = re.compile(r"\w+|[^\w\s]")

Encoded = tuple[np.ndarray, np.ndarray]
"""One text: the numbers of all features of all its tokens, int64 [F]; how many each token has, int64 [T]."""
Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Several texts, one after the other; all int64: numbers of features [F]; where each token's begin [D]; which
of these tokens stands at each place [T]; places in each text [N]. No padding: all in it are real tokens."""


def tokenize(text: str) -> list[str]:
    """Words, numbers, and each other visible character by itself."""
    return TOKEN.findall(text)


def features(token: str) -> list[str]:
    """What is known of a token: the word, with each digit as 0; its pieces of 2 to 5 letters; its shape.

    Pieces let a net know words that it has never seen whole (Bojanowski et al. 2017, "Enriching Word Vectors
    with Subword Information", section 3.2); `<` and `>` mark where a word begins and ends.
    """
    lower = token.lower()
    marked = f"<{lower}>"
    pieces = [marked[i : i + n] for n in (2, 3, 4, 5) for i in range(len(marked) - n + 1)]
    return ["word " + re.sub(r"\d", "0", lower), *pieces, "shape " + _shape(token)]


def _shape(token: str) -> str:
    """Numbers by their length, words by their capitals; other signs count as lower case."""
    if token.isdigit():
        return f"{min(len(token), 12)} digits"
    if token.isupper() and len(token) > 1:
        return "CAPITALS"
    if token[0].isupper():
        return "Capital"
    return "mixed" if any(map(str.isdigit, token)) else "lower"


class Vocabulary:
    """The features that occur often enough in the training texts, numbered from 1."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._numbers = {name: number for number, name in enumerate(self.names, start=1)}
        # most tokens are among a few thousand; the limit keeps memory flat over endless input
        self._of_token = lru_cache(maxsize=20_000)(self._look_up)

    @classmethod
    def of(cls, texts: Iterable[str], least: int = 3) -> "Vocabulary":
        """Built from the texts to train on, and no others.

        Args:
            least: how often a feature must occur to be known.
        """
        tokens = Counter(token for text in texts for token in tokenize(text))
        counts: Counter[str] = Counter()
        for token, count in tokens.items():
            for name in features(token):
                counts[name] += count
        return cls(sorted(name for name, count in counts.items() if count >= least))

    def __len__(self) -> int:
        return len(self.names)

    def _look_up(self, token: str) -> np.ndarray:
        return np.array([self._numbers[name] for name in features(token) if name in self._numbers], np.int64)

    def encode(self, tokens: Sequence[str]) -> Encoded:
        """A text's tokens as numbers. A token of which nothing is known has no features."""
        found = [self._of_token(token) for token in tokens]
        counts = np.array([len(numbers) for numbers in found], np.int64)
        return np.concatenate([np.empty(0, np.int64), *found]), counts

    def batch(self, texts: Sequence[Sequence[str]]) -> Batch:
        """The tokens of several texts. A token that occurs again is not looked up, nor summed, again."""
        numbers: dict[str, int] = {}
        which = [numbers.setdefault(token, len(numbers)) for tokens in texts for token in tokens]
        features, counts = self.encode(list(numbers))
        return (
            torch.from_numpy(features),
            torch.from_numpy(np.cumsum(counts) - counts),
            torch.tensor(which),
            torch.tensor([len(tokens) for tokens in texts]),
        )


def thin(text: Encoded, rng: np.random.Generator, hide_tokens: float, hide_features: float) -> Encoded:
    """Leaves out tokens, and features of those that stay, at random: no net can rely on a single one.

    Args:
        hide_tokens, hide_features: shares, 0..1.
    """
    numbers, counts = text
    kept = rng.random(len(counts)) >= hide_tokens  # [T]
    if not kept.any():
        kept[:] = True
    numbers, counts = numbers[np.repeat(kept, counts)], counts[kept]
    seen = rng.random(len(numbers)) >= hide_features  # [F]
    tokens = np.repeat(np.arange(len(counts)), counts)  # [F]
    return numbers[seen], np.bincount(tokens[seen], minlength=len(counts))


def collate(texts: Sequence[Encoded]) -> Batch:
    """Puts texts one after the other; each needs at least one token. Each place has a token of its own."""
    counts = np.concatenate([counts for _, counts in texts])  # [T]
    starts = np.cumsum(counts) - counts  # [T]
    return (
        torch.from_numpy(np.concatenate([numbers for numbers, _ in texts])),
        torch.from_numpy(starts),
        torch.arange(len(starts)),
        torch.tensor([len(counts) for _, counts in texts]),
    )
