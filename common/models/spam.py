"""The spam classifier: an embedding of tokens, a recurrent cell in both directions, a head; and an ensemble.

Its batches are those of `datasets.vocabulary.Batch`: without padding. `read` adds it and skips its states.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenEmbedding(nn.Module):
    """The sum of the vectors of a token's features, numbered from 1: the word, its pieces, its shape.

    As in fastText (Bojanowski et al. 2017, section 3.2), but divided by the root of how many there are, so
    that long words, which have many pieces, are not louder than short ones.
    """

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.vectors = nn.EmbeddingBag(features + 1, size, mode="sum")
        nn.init.normal_(self.vectors.weight, std=0.1)

    def forward(self, features: Tensor, starts: Tensor, which: Tensor) -> Tensor:
        """The vectors of the tokens, [T,size], from all of a batch but the lengths."""
        counts = torch.diff(starts, append=starts.new_tensor([len(features)]))  # [D]
        sums = self.vectors(features, starts)  # [D,size]
        return (sums / counts.clamp(min=1).to(sums.dtype).sqrt()[:, None])[which]


def read(forward_rnn: nn.RNNBase, backward_rnn: nn.RNNBase, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Runs over the tokens of each text from its beginning and from its end, and takes the largest of the
    states of each direction, number by number: from [T,E], all texts one after the other, to [N,2H].

    A text's result depends on its own tokens only: padding comes after all of them in both directions, and
    the largest is over real tokens.
    """
    firsts = lengths.cumsum(0) - lengths  # [N]
    steps = torch.arange(int(lengths.max()), device=lengths.device)[:, None]  # [L,1]
    real = steps < lengths  # [L,N]
    ahead = (firsts + steps).where(real, 0)  # where the tokens stand, [L,N]; padding may be any token
    back = (firsts + lengths - 1 - steps).where(real, 0)
    states = torch.cat([forward_rnn(tokens[ahead])[0], backward_rnn(tokens[back])[0]], dim=2)  # [L,N,2H]
    return states.masked_fill(~real[..., None], -math.inf).amax(0)


class SpamClassifier(nn.Module):
    """Embedding, recurrent layers in both directions, the largest of their states, and a head.

    `cell` is `nn.RNN` (Elman 1990) or `nn.LSTM` (Hochreiter, Schmidhuber 1997); `head` builds, of (size,
    dropout), what makes a logit [N,1] of states [N,size].
    """

    def __init__(
        self,
        features: int,
        embed_size: int,
        hidden_size: int,
        num_layers: int,
        dropout: float = 0.0,
        *,
        cell: type[nn.RNN] | type[nn.LSTM],
        head: Callable[[int, float], nn.Module],
    ) -> None:
        super().__init__()
        between = dropout if num_layers > 1 else 0.0
        self.embedding = TokenEmbedding(features, embed_size)  # [T,E]
        self.forward_rnn = cell(embed_size, hidden_size, num_layers, dropout=between)  # [L,N,H]
        self.backward_rnn = cell(embed_size, hidden_size, num_layers, dropout=between)  # [L,N,H]
        self.head = head(2 * hidden_size, dropout)  # [N,1]
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def zero_unseen(self, seen: Tensor) -> None:
        """Before training: sets the vectors of all features but `seen`, those of the training texts, to 0.

        A feature that does not occur in training would keep its random vector, and add noise later.
        """
        unseen = torch.ones(len(self.embedding.vectors.weight), dtype=torch.bool)
        unseen[seen] = False
        self.embedding.vectors.weight[unseen] = 0

    def forward(self, features: Tensor, starts: Tensor, which: Tensor, lengths: Tensor) -> Tensor:
        """The logit of spam for each text of a batch, [N]."""
        tokens = self.dropout(self.embedding(features, starts, which))  # [T,E]
        states = read(self.forward_rnn, self.backward_rnn, tokens, lengths)  # [N,2H]
        return self.head(self.dropout(states)).squeeze(1)


@torch.no_grad()
def draw_dropout(model: nn.Module, features: Tensor, starts: Tensor, which: Tensor, lengths: Tensor) -> None:
    """Draws the random numbers of the `forward` of a classifier and no more: another process computes it."""
    assert isinstance(model, SpamClassifier)
    like, steps, count = model.embedding.vectors.weight, int(lengths.max()), len(lengths)
    model.dropout(like.new_empty(len(which), like.shape[1]))  # [T,E]
    for rnn in (model.forward_rnn, model.backward_rnn):
        for _ in range(rnn.num_layers - 1):
            F.dropout(like.new_empty(steps, count, rnn.hidden_size), rnn.dropout)  # [L,N,H]
    model.head(model.dropout(like.new_zeros(count, 2 * model.forward_rnn.hidden_size)))  # [N,2H]


class Ensemble(nn.Module):
    """Several models; their mean logit, [N], errs less often than that of one (Hansen, Salamon 1990)."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, *batch: Tensor) -> Tensor:
        return torch.stack([model(*batch) for model in self.models]).mean(0)


def logits(
    model: nn.Module,
    to_batch: Callable[[list[Sequence[str]]], Iterable[Tensor]],
    texts: Sequence[Sequence[str]],
    size: int = 256,
    threads: int = 1,
) -> np.ndarray:
    """The logits of spam, float [N], of texts in any order; NaN for a text without tokens.

    `to_batch`, `Vocabulary.batch`, is given the tokens of texts of similar lengths: `size` of them, or fewer
    where they are so long that memory would grow.
    """
    device = next(model.parameters()).device
    result = np.full(len(texts), np.nan)
    batches: list[list[int]] = [[]]
    for i in sorted(filter(texts.__getitem__, range(len(texts))), key=lambda i: len(texts[i])):
        if len(batches[-1]) == size or (len(batches[-1]) + 1) * len(texts[i]) > 100 * size:
            batches.append([])
        batches[-1].append(i)

    @torch.inference_mode()
    def fill(index: list[int]) -> None:
        batch = [tensor.to(device) for tensor in to_batch([texts[i] for i in index])]
        result[index] = model(*batch).cpu().double().numpy()

    # each thread has its own setting of how many more it may start
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(fill, filter(None, batches)))  # the list, since an error in a thread comes up in it
    return result


class PaddedClassifier(nn.Module):
    """The earlier set-up, as a warning: padding is read as if it were text.

    Messages, int64 [N,L] of words 1 to `words`, are padded on the right with 0 to the longest one, and the
    state is read at the last position, some two hundred steps after the message has ended. The LSTM is fed
    the numbers of words as they are, as if word 4,000 were twice word 2,000.
    """

    def __init__(self, kind: str, words: int, size: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words + 1, size) if kind == "RNN" else None
        cell, inputs = (nn.RNN, size) if kind == "RNN" else (nn.LSTM, 1)
        self.rnn = cell(inputs, size, batch_first=True)
        self.head = nn.Linear(size, 1)

    def forward(self, words: Tensor) -> Tensor:
        tokens = self.embedding(words) if self.embedding else words.unsqueeze(2).float()  # [N,L,size or 1]
        states, _ = self.rnn(tokens)  # [N,L,size]
        return self.head(states[:, -1]).squeeze(1)  # logits of spam, [N]
