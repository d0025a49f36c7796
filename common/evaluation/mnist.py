"""How good generated characters are, by an evaluator: a classifier that has never seen a generated one.

The Fréchet distance between its features of generated and of real characters is no FID: that name means
features of Inception on ImageNet. It is called FID-MNIST here, and only numbers of one evaluator can be
compared. So real digits that it does not compare with, blurred ones and noise stand beside it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, weights
from common.cli import UserError
from common.datasets.epochs import shuffled_batches
from common.datasets.images import to_float
from common.datasets.mnist import Digits
from common.files import cause_of
from common.models.mnist import Classifier
from common.results import Scores
from common.training import distributed, loop
from common.training.run import Run, checkpoint

PRETRAINED = Path(__file__).parents[2] / "data" / "pretrained"
SHIPPED = [PRETRAINED / "digits_evaluator.safetensors", PRETRAINED / "handwriting_evaluator.safetensors"]
MERGED = ("0Oo", "1Iil", *("Cc", "Ff", "Jj", "Kk", "Mm", "Pp", "Ss", "Uu", "Vv", "Ww", "Xx", "Yy", "Zz"))
"""Characters that a reader cannot distinguish, since each is cut out and scaled to one size. The letters are
those that EMNIST's own split ByMerge merges (Cohen et al. 2017, section II), without L, which is no stroke as
l is, and with F: the evaluator of letters reads 56 of 57 real f as F. 0 and 1 have the shapes of O and I."""
RECALL_COUNTS = 1.3  # beside accuracy, where more of one costs some of the other


class Evaluator:
    """A classifier, and the real characters, uint8 [N,28,28] and int64 [N], that generated ones stand beside.

    `predict` gives features [N,F] and logits [N,classes], by a net that was trained on real characters only,
    and on none of these.
    """

    def __init__(self, predict: Callable[[Tensor], tuple[Tensor, Tensor]], data: Digits) -> None:
        self.predict, self.labels = predict, data.test_labels
        self.features, logits = predict(data.test)
        self.classes, self._shape = logits.shape[1], shapes(data.characters)
        self.real = self._accuracies(logits.argmax(1), self.labels)
        self.accuracy = self.real["class_accuracy"]
        self._reach = reach(self.features)

    def score(self, fake: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """Scores generated characters, uint8 [M,28,28], beside the real ones.

        Returns:
            distance: Fréchet distance of features (Heusel et al. 2017, section 4); 0 is best.
            precision, recall: share (0..1) of generated characters that look real, and of real ones that
                could have been generated (Kynkäänniemi et al. 2019, section 2, with k = 3).
            min_class_share: share (0..1) of the class that is generated least often.
            class_accuracy: share (0..1) that the evaluator gives `labels`, int64 [M], where there are any.
            merged_class_accuracy: the same where those of `MERGED` count as one, if the set has letters.
        """
        both = distributed.in_shares(lambda part: torch.cat(self.predict(part), 1), fake)
        features, logits = both.tensor_split([self.features.shape[1]], 1)
        predicted = logits.argmax(1)
        score = {
            "distance": frechet(self.features, features),
            "precision": within(features, self.features, self._reach).mean().item(),
            "recall": within(self.features, features, reach(features)).mean().item(),
            "min_class_share": (predicted.bincount(minlength=self.classes).min() / len(fake)).item(),
        }
        return score if labels is None else score | self._accuracies(predicted, labels)

    def _accuracies(self, predicted: Tensor, labels: Tensor) -> dict[str, float]:
        """Of classes, int64 [M] each."""
        right = {"class_accuracy": predicted == labels}
        if len(self._shape.unique()) < len(self._shape):
            right["merged_class_accuracy"] = self._shape[predicted] == self._shape[labels]
        return {name: of.float().mean().item() for name, of in right.items()}

    def worth(self, fake: Tensor, labels: Tensor) -> Tensor:
        """Of what was generated for each class, [classes]: its merged accuracy, and `RECALL_COUNTS` times the
        recall of the real ones of the class."""
        features, logits = self.predict(fake)
        right = (self._shape[logits.argmax(1)] == self._shape[labels]).float()
        recall = within(self.features, features, reach(features))

        def by_class(values: Tensor, labels: Tensor) -> Tensor:
            return torch.stack([values[labels == k].mean() for k in range(self.classes)])

        return by_class(right, labels) + RECALL_COUNTS * by_class(recall, self.labels)

    def distances(self, fake: Tensor, labels: Tensor) -> list[float]:
        """For each class the distance of what was generated for it; biased upwards where there are few, so
        compare only what has as many."""
        features, _ = self.predict(fake)
        return [frechet(self.features[self.labels == k], features[labels == k]) for k in range(self.classes)]


def shapes(characters: str) -> Tensor:
    """For each character the first one that has its shape by `MERGED`, int64 [classes]."""
    groups = [next((of for of in MERGED if character in of), character) for character in characters]
    return torch.tensor([groups.index(group) for group in groups])


class _Features(nn.Identity):
    """In place of torchmetrics' feature net: what it gets are features."""

    num_features = 0


def frechet(real: Tensor, fake: Tensor) -> float:
    """Fréchet distance between two sets of features, [N,F] and [M,F], taken as Gaussians."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # it takes seconds that --write need not wait

    net = _Features()
    net.num_features = real.shape[1]
    # else it would meet other processes, which have nothing to add, and wait
    metric = FrechetInceptionDistance(feature=net, sync_on_compute=False).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric.compute().item()


def reach(features: Tensor, k: int = 3) -> Tensor:
    """How far the k-th nearest other one is, for each of [N,F]; returns [N]."""
    k = min(k, len(features) - 1)
    return torch.cat([torch.cdist(part, features).kthvalue(k + 1).values for part in features.split(1000)])


def within(some: Tensor, others: Tensor, reach: Tensor) -> Tensor:
    """1 for each of `some` [N,F] that lies in the reach [M] of any of `others` [M,F], else 0; [N]."""
    near = [(torch.cdist(part, others) <= reach).any(1) for part in some.split(1000)]
    return torch.cat(near).float()


def nearest(some: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Of uint8 [N,28,28] to the nearest of [M,28,28], pixel by pixel: Euclidean distance in grey values of
    0..1, [N], and which one, int64 [N]."""
    ours, theirs = to_float(some.flatten(1)), to_float(others.flatten(1))
    minima = [torch.cdist(part, theirs).min(1) for part in ours.split(250)]
    return torch.cat([of.values for of in minima]), torch.cat([of.indices for of in minima])


def nearest_neighbour_ratio(fake: Tensor, unseen: Tensor, train: Tensor) -> float:
    """Median distance of generated characters to their nearest training character, over that of real ones
    that were not trained on, uint8 [N,28,28] each: about 1, they are as new as these; near 0, copies."""
    return (nearest(fake, train)[0].median() / nearest(unseen, train)[0].median()).item()


def blurred(images: Tensor) -> Tensor:
    """Mean over 3x3 pixels, of uint8 [N,28,28]."""
    return F.avg_pool2d(images[:, None].float(), 3, 1, 1)[:, 0].round().to(torch.uint8)


def baselines(evaluator: Evaluator, data: Digits) -> Scores:
    """What the numbers mean: as many real characters of the training part, blurred test ones, and noise; and
    how the evaluator reads the test part, which it was not trained on."""
    count, rng = len(data.test), torch.Generator().manual_seed(0)
    noise = torch.randint(256, (count, 28, 28), generator=rng, dtype=torch.uint8)
    return {
        "real": evaluator.score(*data.training_sample(count)),
        "real, test part": evaluator.real,
        "real, blurred": evaluator.score(blurred(data.test), data.test_labels),
        "noise": evaluator.score(noise, torch.arange(count) % evaluator.classes),
    }


def named(scores: Scores, data: str) -> Scores:
    """The scores with the distance under its full name, FID-MNIST for MNIST."""
    names = {"distance": f"FID-{data.split()[0]}"}
    return {row: {names.get(k, k): value for k, value in score.items()} for row, score in scores.items()}


def verdict(gan: dict[str, float], baselines: Scores, data: str) -> str:
    """One line that says how good a GAN is."""
    distance, real, noise = (score["distance"] for score in (gan, baselines["real"], baselines["noise"]))
    useless = "hardly better than noise, it has learned nothing; " if distance > noise / 2 else ""
    beside = f"(real {real:.2f}, noise {noise:.0f}), recall {gan['recall']:.2f}"
    return f"GAN: {useless}FID-{data.split()[0]} {distance:.2f} {beside}"


def train_classifier(
    run: Run, phase: str, classifier: Classifier, data: Digits, epochs: int, seed: int
) -> Classifier:
    """Trains `classifier` in place to name the characters of the training part, and returns it."""
    count, size = len(data.train), 100

    def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index in map(torch.tensor, shuffled_batches(count, size, seed, first)):
            yield to_float(data.train[index][:, None]), data.train_labels[index]

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor], progress: float) -> loop.Losses:
        images, labels = batch
        return {"cross_entropy": F.cross_entropy(net(images), labels)}

    optimizer = torch.optim.AdamW(classifier.parameters(), 4e-3, weight_decay=0.02)
    schedule, steps = loop.cosine_schedule(warm_up=0.2, floor=0.0), epochs * max(1, count // size)
    loop.supervised(
        run, phase, classifier, optimizer, loss, batches, steps=steps, schedule=schedule, ema=0.98
    )
    return classifier


def train_small_classifier(run: Run, data: Digits, device: torch.device, seed: int) -> Classifier:
    """Trains the classifier for rejection sampling: it must not be the evaluator."""
    classifier = Classifier(8, 32, len(data.characters)).to(device)
    epochs = 1 if len(data.train) > 10_000 else 20
    return train_classifier(run, "classifier", classifier, data, epochs, seed)


def find_evaluator(config: Any, data: Digits, device: torch.device) -> tuple[Evaluator, bool]:
    """The evaluator of these characters, by a classifier: one trained before, the shipped one, or a new one.

    With --train-evaluator a new one is trained though there is one; with --resume a training that was stopped
    goes on. Returns the evaluator, which compares with the test part, and whether it had been stopped.
    """
    folder = config.runs / "gan_mnist-evaluator"
    trained, fingerprint = folder / "evaluator.safetensors", data.fingerprint()[:16]
    stopped = config.resume and checkpoint(folder).exists()
    if not config.train_evaluator or (config.resume and not stopped):
        for path in (path for path in (trained, *SHIPPED) if path.exists()):
            classifier, about = load_classifier(path)
            if about.get("fingerprint") == fingerprint:
                print(f"Evaluator: {path}, accuracy {about['accuracy']:.2%} on {about['data']}")
                return Evaluator(classifier.to(device).predict, data), False
    print(f"Evaluator: trained now, on {data.name}")
    split = data.validation_split()
    epochs = 10 if len(split.train) <= 10_000 else max(1, min(5, 400_000 // len(split.train)))
    about = {"fingerprint": fingerprint, "epochs": epochs}
    run = Run(folder, settings=about, device=device, resume=stopped, precision="float32")
    torch.manual_seed(1)  # the same evaluator whatever the seed of what it scores
    classifier = Classifier(16, 64, len(data.characters)).to(device)
    train_classifier(run, "evaluator", classifier, split, epochs, seed=1).normalise(split.train[:5_000])
    evaluator = Evaluator(classifier.predict, data)
    about |= {"data": data.name, "accuracy": evaluator.accuracy, "size": classifier.size}
    weights.save(
        trained, {"classifier": classifier}, about | {"command": cli.command(), "commit": cli.commit()}
    )
    for path in (run.path, run.before):  # they are there only while a training was stopped
        path.unlink(missing_ok=True)
    print(f"Evaluator: accuracy {evaluator.accuracy:.2%} on {len(data.test):,} test characters")
    return evaluator, stopped


def load_classifier(path: Path) -> tuple[Classifier, dict[str, Any]]:
    """An evaluator's classifier, and what is known about it.

    Raises:
        UserError: no such file, or not such a classifier.
    """
    try:
        states, about = weights.load(path)
        return weights.build(Classifier, about["size"], states["classifier"]).eval(), about
    except (UserError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        cause = f"{cause_of(error):.150}".partition("; ")[0]
        raise UserError(f"{path} holds no evaluator ({cause}); remove it, and a new one is trained") from None
