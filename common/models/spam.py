"""Recurrent nets: one that goes on with a series, and those that read a message and say whether it is spam.

The batches of messages are `datasets.vocabulary.Batch`: without padding. `read` adds it and skips its states.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class TokenEmbedding(nn.Module):
    """The sum of the vectors of a token's features: the word, its pieces, its shape.

    As in fastText (Bojanowski et al. 2017, section 3.2), but divided by the root of how many there are, so
    that long words, which have many pieces, are not louder than short ones.
    """

    def __init__(self, features: int, size: int) -> None:
        """
        Args:
            features: known ones, numbered 1 to `features`.
        """
        super().__init__()
        self.vectors = nn.EmbeddingBag(features + 1, size, mode="sum")
        nn.init.normal_(self.vectors.weight, std=0.1)

    @torch.no_grad()
    def know_only(self, features: Tensor) -> None:
        """Before training: sets the vectors of all features but these to 0.

        A feature that does not occur in training would keep its random vector, and add noise wherever it
        occurs later.
        """
        unknown = torch.ones(len(self.vectors.weight), dtype=torch.bool)
        unknown[features] = False
        self.vectors.weight[unknown] = 0

    def forward(self, features: Tensor, starts: Tensor, which: Tensor) -> Tensor:
        """Of a batch all but the lengths; returns the vectors of the tokens [T,size]."""
        counts = torch.diff(starts, append=starts.new_tensor([len(features)]))  # [D]
        sums = self.vectors(features, starts)  # [D,E]
        return (sums / counts.clamp(min=1).to(sums.dtype).sqrt()[:, None])[which]


def read(onwards: nn.RNNBase, backwards: nn.RNNBase, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Runs over the tokens of each text from its beginning and from its end, and takes the largest of the
    states of each direction, number by number.

    A text's result depends on its own tokens only: padding comes after all of them in both directions, and
    the largest is over real tokens.

    Args:
        tokens: of all texts, one after the other, [T,E].
        lengths: tokens of each text, [N].

    Returns:
        [N,2H].
    """
    firsts = lengths.cumsum(0) - lengths  # [N]
    steps = torch.arange(int(lengths.max()), device=lengths.device)[:, None]  # [L,1]
    real = steps < lengths  # [L,N]
    there = (firsts + steps).where(real, 0)  # where the tokens stand, [L,N]; padding may be any token
    back = (firsts + lengths - 1 - steps).where(real, 0)
    states = torch.cat([onwards(tokens[there])[0], backwards(tokens[back])[0]], dim=2)  # [L,N,2H]
    return states.masked_fill(~real[..., None], -math.inf).amax(0)


class SpamRNN(nn.Module):
    """Embedding, stacked vanilla RNN (Elman 1990) in both directions, one linear layer."""

    def __init__(
        self, features: int, embed_size: int, hidden_size: int, num_layers: int, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(features, embed_size)  # [T,E]
        between = dropout if num_layers > 1 else 0.0
        self.onwards = nn.RNN(embed_size, hidden_size, num_layers, dropout=between)  # [T,H]
        self.backwards = nn.RNN(embed_size, hidden_size, num_layers, dropout=between)  # [T,H]
        self.classifier = nn.Linear(2 * hidden_size, 1)  # [N,1]
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, starts: Tensor, which: Tensor, lengths: Tensor) -> Tensor:
        """A batch; returns the logit of spam for each text, [N]."""
        tokens = self.dropout(self.embedding(features, starts, which))  # [T,E]
        states = read(self.onwards, self.backwards, tokens, lengths)  # [N,2H]
        return self.classifier(self.dropout(states)).squeeze(1)


class SpamLSTM(nn.Module):
    """Embedding, LSTM (Hochreiter, Schmidhuber 1997) in both directions, two fully connected layers."""

    def __init__(
        self, features: int, embed_size: int, hidden_size: int, num_layers: int, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(features, embed_size)  # [T,E]
        between = dropout if num_layers > 1 else 0.0
        self.onwards = nn.LSTM(embed_size, hidden_size, num_layers, dropout=between)  # [T,H]
        self.backwards = nn.LSTM(embed_size, hidden_size, num_layers, dropout=between)  # [T,H]
        self.classifier = nn.Sequential(
            nn.Linear(2 * hidden_size, 64),  # [N,64]
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(64, 1),  # [N,1]
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, starts: Tensor, which: Tensor, lengths: Tensor) -> Tensor:
        """A batch; returns the logit of spam for each text, [N]."""
        tokens = self.dropout(self.embedding(features, starts, which))  # [T,E]
        states = read(self.onwards, self.backwards, tokens, lengths)  # [N,2H]
        return self.classifier(self.dropout(states)).squeeze(1)


class Committee(nn.Module):
    """Several nets of one kind; their mean logit errs less often than one alone (Hansen, Salamon 1990)."""

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, features: Tensor, starts: Tensor, which: Tensor, lengths: Tensor) -> Tensor:
        """A batch; returns the mean logit, [N]."""
        return torch.stack([net(features, starts, which, lengths) for net in self.nets]).mean(0)


class PaddedNet(nn.Module):
    """The earlier set-up, kept as a warning: padding is read as if it were text.

    Messages are padded on the right to the longest one, and the state is read at the last position, some two
    hundred steps after the message has ended. The LSTM is fed the numbers of words as they are, as if word
    4,000 were twice word 2,000.
    """

    def __init__(self, kind: str, words: int, size: int = 32) -> None:
        """
        Args:
            kind: `RNN` or `LSTM`.
            words: known ones, numbered from 1; 0 is padding.
        """
        super().__init__()
        self.embedding = nn.Embedding(words + 1, size) if kind == "RNN" else None
        self.rnn: nn.RNNBase = (
            nn.RNN(size, size, batch_first=True) if kind == "RNN" else nn.LSTM(1, size, batch_first=True)
        )
        self.classifier = nn.Linear(size, 1)

    def forward(self, words: Tensor) -> Tensor:
        """Numbers of words, int64 [N,L], L that of the longest message; returns logits of spam, [N]."""
        tokens = self.embedding(words) if self.embedding else words.unsqueeze(2).float()  # [N,L,size or 1]
        states, _ = self.rnn(tokens)  # [N,L,size]
        return self.classifier(states[:, -1]).squeeze(1)
