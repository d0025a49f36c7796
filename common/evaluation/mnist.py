"""How good drawn characters are, by a judge: a net that reads characters and has never seen a drawn one.

The Fréchet distance between the judge's features of drawn and of real characters is no FID: that name means
features of Inception on ImageNet. It is called FID-MNIST here, and only numbers of one judge can be compared.
So real digits that the judge does not compare with, blurred ones and noise stand beside it.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance


class Judge:
    """A reader, and the real characters that drawn ones are compared with.

    Args:
        read: of uint8 [N,28,28] the features [N,F] and the logits [N,classes], by a net that was trained on
            real characters only.
        real, labels: uint8 [N,28,28] and int64 [N]; none that the reader or a generator has learned from.
    """

    def __init__(self, read: Callable[[Tensor], tuple[Tensor, Tensor]], real: Tensor, labels: Tensor) -> None:
        self.read, self.labels = read, labels
        self.features, logits = read(real)
        self.classes = logits.shape[1]
        self.accuracy = (logits.argmax(1) == labels).float().mean().item()
        self._reach = reach(self.features)

    def score(self, made: Tensor, asked: Tensor | None = None) -> dict[str, float]:
        """Of drawn characters, uint8 [M,28,28], beside the real ones.

        Returns:
            distance: Fréchet distance of features (Heusel et al. 2017, section 4); 0 is best.
            precision, recall: share (0..1) of drawn characters that look real, and of real ones that could
                have been drawn (Kynkäänniemi et al. 2019, section 2, with k = 3).
            rarest: share (0..1) of the class that is drawn least often.
            asked: share (0..1) that is read as what was asked for, int64 [M]; only where it is given.
        """
        features, logits = self.read(made)
        read_as = logits.argmax(1)
        found = {
            "distance": frechet(self.features, features),
            "precision": within(features, self.features, self._reach),
            "recall": within(self.features, features, reach(features)),
            "rarest": (read_as.bincount(minlength=self.classes).min() / len(made)).item(),
        }
        if asked is not None:
            found["asked"] = (read_as == asked).float().mean().item()
        return found

    def distances(self, made: Tensor, asked: Tensor) -> list[float]:
        """For each class the Fréchet distance of what was drawn for it, as in `score`. Biased upwards where
        there are few: compare only what has as many."""
        features, _ = self.read(made)
        return [frechet(self.features[self.labels == k], features[asked == k]) for k in range(self.classes)]


class _Given(nn.Identity):
    """In place of a feature net: the features are given."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def frechet(real: Tensor, made: Tensor) -> float:
    """Fréchet distance between two sets of features, [N,F] and [M,F], taken as Gaussians."""
    metric = FrechetInceptionDistance(feature=_Given(real.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(made, real=False)
    return metric.compute().item()


def reach(features: Tensor, k: int = 3) -> Tensor:
    """How far the k-th nearest other one is, for each of [N,F]; returns [N]."""
    k = min(k, len(features) - 1)
    return torch.cat([torch.cdist(part, features).kthvalue(k + 1).values for part in features.split(1000)])


def within(some: Tensor, others: Tensor, reach: Tensor) -> float:
    """Share (0..1) of `some` [N,F] that lie in the reach [M] of any of `others` [M,F]."""
    near = [(torch.cdist(part, others) <= reach).any(1) for part in some.split(1000)]
    return torch.cat(near).float().mean().item()


def nearest(some: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Of uint8 [N,28,28] to the nearest of [M,28,28], pixel by pixel: Euclidean distance in grey values of
    0..1, [N], and which one, int64 [N]."""
    ours, theirs = some.flatten(1).float() / 255, others.flatten(1).float() / 255
    found = [torch.cdist(part, theirs).min(1) for part in ours.split(250)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def copying(made: Tensor, unseen: Tensor, train: Tensor) -> float:
    """Nearest-neighbour ratio: the median distance of drawn characters to their nearest training character,
    over that of real ones that were not trained on. About 1 or above: as new as real ones; near 0: copies.

    Args:
        made, unseen, train: uint8 [N,28,28] each.
    """
    return (nearest(made, train)[0].median() / nearest(unseen, train)[0].median()).item()


def blurred(pictures: Tensor) -> Tensor:
    """Mean over 3x3 pixels, of uint8 [N,28,28]."""
    return F.avg_pool2d(pictures[:, None].float(), 3, 1, 1)[:, 0].round().to(torch.uint8)


def noise(count: int, seed: int) -> Tensor:
    """Pictures without any sense, uint8 [count,28,28]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8)


def baselines(
    judge: Judge, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
) -> dict[str, dict[str, float]]:
    """What the numbers mean: as many real characters of the training part, blurred test ones, and noise."""
    count = len(test)
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:count]
    return {
        "real": judge.score(train[some], train_labels[some]),
        "real, blurred": judge.score(blurred(test), test_labels),
        "noise": judge.score(noise(count, 0), torch.arange(count) % judge.classes),
    }


def named(scores: dict[str, dict[str, float]], data: str, gaps: bool = False) -> dict[str, dict[str, float]]:
    """With the distance under its full name, FID-MNIST for MNIST; `gaps` fills what is missing with NaN."""
    names = {"distance": f"FID-{data.split()[0]}"}
    found = {row: {names.get(k, k): value for k, value in of.items()} for row, of in scores.items()}
    metrics = dict.fromkeys((metric for of in found.values() for metric in of), math.nan)
    return {row: metrics | of for row, of in found.items()} if gaps else found
