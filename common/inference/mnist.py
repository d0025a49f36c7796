"""Three ways to sample the character that is asked for: the nets of gan_mnist.py, loaded, saved, and used for
`--sample` and `--write`."""

import copy
import io
import math
import string
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.polynomial import polynomial
from PIL import Image
from torch import Tensor, nn

from common import cli, results, weights
from common.cli import UserError
from common.datasets.images import to_float, to_uint8
from common.datasets.mnist import Digits
from common.evaluation import mnist as evaluation
from common.evaluation.mnist import Evaluator, nearest_neighbour_ratio
from common.files import atomic_write, cause_of
from common.inference import handwriting
from common.models.mnist import Classifier, Generator
from common.training import distributed
from common.training.run import Run

# What `--method` takes, and its name on screen and in figures
METHODS = {"conditional": "conditional", "1": "Method 1", "2": "Method 2"}
SHIPPED = {name: evaluation.PRETRAINED / f"{name}.safetensors" for name in ("digits", "handwriting")}
BATCH = 500
# How probable the classifier of Method 2 must find a shape, to accept a sample; it is less sure of letters
THRESHOLD, THRESHOLD_OF_LETTERS = 0.99, 0.2
MAX_REJECTED = 20_000  # samples that Method 2 draws in vain before it gives up
SPREADS, SPREAD_SEEDS = np.linspace(0.85, 1.3, 7), 3  # tried for each class, and how often
AS_TRAINED = 0.8  # how much speaks for no other width than that of the training, whatever is seen of a class
SAME_STYLE = 0.6  # how near its noise lies to a given one; at 1 only one image would come of it


@dataclass
class Sampler:
    """A trained generator, and all it takes to sample characters with it."""

    # conditional: one net, conditioned on the character; 1: a net for each character; 2: one unconditional
    # net, and rejection sampling with a classifier
    method: str
    generator: Generator
    characters: str  # label k is character k
    classifier: Classifier | None = None  # of Method 2; without it no character can be asked for
    about: dict[str, Any] = field(default_factory=dict)
    spread: Tensor | None = None  # of the noise that a conditional net draws for each class, [classes]

    def parameters(self) -> int:
        """How many weights all its nets have."""
        nets = [net for net in (self.generator, self.classifier) if net is not None]
        return sum(p.numel() for net in nets for p in net.parameters())

    @torch.inference_mode()
    def sample(
        self, labels: Tensor, rng: torch.Generator, noise: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Samples the characters of `labels`, int64 [N], each of its noise, [N,latent], which by default is
        drawn by `rng`, on the CPU; Method 2 can only stay near a given noise. Returns uint8 [N,28,28], 255
        for ink; and by character how many samples one cost.

        Raises:
            UserError: `MAX_REJECTED` samples in vain, and Method 2 still lacks a character.
        """
        if self.method == "2":
            return self._rejection_sampling(labels, rng, noise)
        parts = torch.arange(len(labels)).split(BATCH)
        fake = torch.cat(
            [self._sample_batch(labels[i], rng, noise if noise is None else noise[i]) for i in parts]
        )
        return fake, {self.characters[k]: 1.0 for k in labels.unique().tolist()}

    @torch.inference_mode()
    def sample_unconditional(self, count: int, rng: torch.Generator) -> Tensor:
        """Samples of a net without labels, none rejected: uint8 [count,28,28]."""
        parts = torch.arange(count).split(BATCH)
        return torch.cat([self._generate(self._noise(rng, len(part), 1))[:, 0] for part in parts])

    @torch.inference_mode()
    def interpolate(self, noise: Tensor, label: int) -> Tensor:
        """Character `label` of each noise on a path, [N,latent], none rejected: uint8 [N,28,28]."""
        labels = (torch.full((len(noise),), label),) if self.method == "conditional" else ()
        fake = self._generate(noise[:, None].expand(-1, self.generator.nets, -1), *labels)
        return fake[:, label if self.method == "1" else 0]

    def _noise(self, rng: torch.Generator, *size: int) -> Tensor:
        """[*size,latent]"""
        return torch.randn(*size, self.generator.latent, generator=rng)

    def _generate(self, noise: Tensor, *label: Tensor) -> Tensor:
        """Noise [N,nets,latent] to uint8 [N,nets,28,28]."""
        device = next(self.generator.parameters()).device

        def generated(*inputs: Tensor) -> Tensor:
            return to_uint8(self.generator(*(x.to(device) for x in inputs))).cpu()

        return distributed.in_shares(generated, noise, *label)

    def _sample_batch(self, labels: Tensor, rng: torch.Generator, noise: Tensor | None) -> Tensor:
        """One sample for each label [N], by a conditional net or by nets side by side."""
        if self.method == "conditional":
            if noise is None:
                noise = self._noise(rng, len(labels))
                noise = noise if self.spread is None else noise * self.spread[labels][:, None]
            return self._generate(noise[:, None], labels)[:, 0]
        # all nets run at once: labels are dealt out to rows in which no character comes twice
        row = (labels[:, None] == labels).tril(-1).sum(1)
        dealt = self._noise(rng, int(row.max()) + 1, self.generator.nets)
        if noise is not None:
            dealt[row, labels] = noise
        return self._generate(dealt)[row, labels]

    def _rejection_sampling(
        self, labels: Tensor, rng: torch.Generator, noise: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Samples until the classifier is sure of every character, and counts."""
        assert self.classifier is not None
        device = next(self.classifier.parameters()).device
        shape = evaluation.shapes(self.characters)
        alike = len(shape.unique()) < len(shape)
        threshold = THRESHOLD_OF_LETTERS if alike else THRESHOLD
        wanted = {k: (labels == k).nonzero()[:, 0].tolist() for k in labels.unique().tolist()}
        images = torch.zeros(len(labels), 28, 28, dtype=torch.uint8)
        accepted, drawn, vain = torch.zeros(len(self.characters)), 0, 0
        while any(wanted.values()):
            if vain >= MAX_REJECTED:
                missing = ", ".join(self.characters[k] for k, places in wanted.items() if places)
                drew = f"Method 2 has drawn {drawn:,} samples, the last {vain:,} in vain"
                raise UserError(f"{drew}: no more of {missing}; train it longer, or take another --method")
            near = self._noise(rng, BATCH)
            if noise is not None:
                some = noise[torch.randint(len(noise), (BATCH,), generator=rng)]
                near = SAME_STYLE * some + math.sqrt(1 - SAME_STYLE**2) * near
            fake = self._generate(near[:, None])[:, 0]  # [BATCH,28,28]
            probability = self.classifier(to_float(fake[:, None].to(device))).softmax(1).cpu()
            of_shape = torch.zeros_like(probability).index_add(1, shape, probability)
            label = probability.argmax(1)
            if alike:  # nobody can be sure which of the same shape it is: by its probability, then
                label = torch.multinomial(probability, 1, generator=rng)[:, 0]
            sure = of_shape.gather(1, shape[label][:, None])[:, 0] >= threshold
            drawn, vain = drawn + BATCH, vain + BATCH
            for i in sure.nonzero()[:, 0].tolist():
                k = int(label[i])
                accepted[k] += 1
                if wanted.get(k):
                    images[wanted[k].pop(0)] = fake[i]
                    vain = 0
        return images, {self.characters[k]: drawn / accepted[k].item() for k in wanted}


def name_of(characters: str, method: str, between: str = "-") -> str:
    """What runs and results of a method are called: those of letters are none of digits."""
    name = "gan_mnist" if len(characters) <= len(string.digits) else "gan_letters"
    return name if method == "conditional" else f"{name}{between}{method}"


def open_run(
    config: Any, preset: dict[str, Any], budget: dict[str, Any], data: Digits, device: torch.device
) -> Run:
    """The run of --method; it goes on only with the same flags, preset and data, and as large a budget."""
    settings = {name: getattr(config, name) for name in ("method", "seed", "precision")} | preset
    settings |= {"data": data.name, "digits": data.fingerprint()[:16]}
    more: dict[str, Any] = {"budget": budget, "resume": config.resume, "precision": config.run_precision()}
    path = config.run_dir(name_of(data.characters, config.method), data.builtin)
    return Run(path, settings=settings, device=device, **more)


def origin(data: Digits, run: Run) -> dict[str, Any]:
    """Where weights come from, for those who find them in a file."""
    about = {"data": data.name, "phases": run.record, "device": cli.device_name(run.device)}
    return about | {"command": cli.command(), "commit": cli.commit()}


def save(path: Path, samplers: Iterable[Sampler], *, half: bool = False) -> None:
    """Writes samplers into one .safetensors file; `half`: in half precision, which halves it."""
    modules: dict[str, nn.Module] = {}
    about: dict[str, Any] = {}
    for sampler in samplers:
        modules[sampler.method] = sampler.generator
        known: dict[str, Any] = {"characters": sampler.characters, "size": sampler.generator.size}
        if sampler.spread is not None:
            known["spread"] = sampler.spread.tolist()
        if sampler.classifier:
            modules["classifier"] = sampler.classifier
            known["classifier"] = sampler.classifier.size
        about[sampler.method] = sampler.about | known
    if half:
        modules = {name: copy.deepcopy(module).half() for name, module in modules.items()}
    weights.save(path, modules, about)


def load(path: Path, method: str, device: torch.device) -> Sampler:
    """Reads one of those that `save` wrote.

    Raises:
        UserError: no such file, or it does not hold the method.
    """
    states, about = weights.load(path)
    try:
        known, classifier = about[method], None
        generator = weights.build(Generator, known["size"], states[method])
        if "classifier" in known:
            classifier = weights.build(Classifier, known["classifier"], states["classifier"])
        characters = str(known["characters"])
        spread = torch.tensor(known["spread"]).expand(len(characters)) if "spread" in known else None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        why = f"holds no weights of --method {method} ({cause_of(error):.150})"
        raise UserError(f"--weights: {path} {why}") from None
    classifier = classifier and classifier.to(device).eval()
    return Sampler(method, generator.to(device).eval(), characters, classifier, known, spread)


def load_chosen(
    config: Any, method: str, device: torch.device, data: Digits | None = None, text: str = ""
) -> Sampler:
    """The weights that --weights names. `auto` and `shipped` take the first that know the characters of
    `data`, or the letters and digits of `text`: of digits the newest trained, then those that come along;
    then the same of letters.

    Raises:
        UserError: as `load`, or they are of other characters than those of `data`.
    """
    candidates = []
    for (name, shipped), characters in zip(
        SHIPPED.items(), (string.digits, string.ascii_letters), strict=True
    ):
        folder = config.run_dir(name_of(characters, method), data is not None and data.builtin)
        newest = folder / "weights.safetensors"
        if config.weights == "auto" and newest.exists():
            candidates.append(newest)
        if config.weights in ("auto", "shipped", name):
            candidates.append(shipped)
    needed = {of for of in text if of.isascii() and of.isalnum()}
    for path in candidates or [cli.user_path("weights", config.weights)]:
        sampler = load(path, method, device)
        if sampler.characters == data.characters if data else needed <= set(sampler.characters):
            break
    if data and sampler.characters != data.characters:
        theirs = f"the weights in {path} have {sampler.characters}"
        raise UserError(f"--data: {data.name} has {data.characters}, but {theirs}")
    print(f"Weights: {path}, trained on {sampler.about['data']}")
    return sampler


def choose_spread(sampler: Sampler, evaluator: Evaluator, data: Digits) -> Tensor:
    """How wide the noise of each class of a conditional net should be, [classes]; it was trained with 1.

    Of narrower noise come characters that are read right more often, of wider noise more kinds of them (the
    truncation trick: Brock et al. 2019, "Large Scale GAN Training for High Fidelity Natural Image Synthesis",
    section 3.1). What is best differs from class to class: where a parabola through `Evaluator.worth`, beside
    real characters of the training part, less one that holds it near 1, is highest.
    """
    images, labels = data.training_sample(len(data.test))
    train = Evaluator(evaluator.predict, replace(data, test=images, test_labels=labels))

    def worth(spread: float) -> Tensor:
        wide = replace(sampler, spread=torch.full((len(data.characters),), spread))
        rngs = (torch.Generator().manual_seed(seed) for seed in range(SPREAD_SEEDS))
        return torch.stack([train.worth(wide.sample(labels, rng)[0], labels) for rng in rngs]).mean(0)

    worths = torch.stack([worth(spread) for spread in SPREADS]).numpy()  # [7,classes]
    there = np.isfinite(worths).all(0)  # a rare class may not be among them
    parabolas = polynomial.polyfit(SPREADS, worths[:, there], 2)
    fine, best = np.linspace(SPREADS[0], SPREADS[-1], 91), np.ones(len(there))
    best[there] = fine[(polynomial.polyval(fine, parabolas) - AS_TRAINED * (fine - 1) ** 2).argmax(1)]
    return torch.from_numpy(best).float()


def evaluate(
    sampler: Sampler, evaluator: Evaluator, data: Digits, seed: int
) -> tuple[Tensor, Tensor, str, dict[str, Any]]:
    """Scores as many characters as the test part has, with Method 2 also without rejection, beside real and
    useless ones, and says what they cost. Returns these, uint8 [N,28,28]; their labels, int64 [N]; one line
    that says how good they are; and all that was measured, for the results file."""
    rng, labels = torch.Generator().manual_seed(seed), data.labels_to_sample(len(data.test))
    start = time.monotonic()
    fake, cost = sampler.sample(labels, rng)
    rate = len(fake) / (time.monotonic() - start)
    scores = {"GAN": evaluator.score(fake, labels)}
    if sampler.method == "2":
        unconditional = evaluator.score(sampler.sample_unconditional(len(labels), rng))
        scores = {"GAN, rejection sampling": scores["GAN"], "GAN": unconditional}
        print("Samples that one character cost: " + ", ".join(f"{of} {n:.0f}" for of, n in cost.items()))
    ratio = nearest_neighbour_ratio(fake[:1_000], data.test[:1_000], data.train)
    print(f"Nearest-neighbour ratio {ratio:.2f} (1: as new as real ones; near 0: copies)")
    print(f"{rate:,.0f} samples a second")
    baselines = evaluation.baselines(evaluator, data)
    metrics, references = (evaluation.named(rows, data.name) for rows in (scores, baselines))
    print(results.table(metrics | references))
    sampler.about |= {"scores": scores, "evaluator_accuracy": evaluator.accuracy}
    facts = {"count": len(labels), "metrics": metrics, "baselines": references}
    facts |= {"evaluator_accuracy": evaluator.accuracy, "nearest_neighbour_ratio": ratio}
    facts |= {"samples_per_second": rate, "samples_per_character": cost}
    return fake, labels, evaluation.verdict(scores["GAN"], baselines, data.name), facts


def run_inference(config: Any, device: torch.device) -> int:
    """Samples digits (--sample), or writes a text in one hand (--write), into --output.

    Raises:
        UserError: the weights, the text or a colour cannot be used, or the file cannot be written.
    """
    sampler = load_chosen(config, config.method, device, text=config.write or "")
    rng, suffix = torch.Generator().manual_seed(config.seed), config.output.suffix.lower()
    cost: dict[str, float] = {}

    def sample(labels: Tensor, noise: Tensor | None = None) -> Tensor:
        images, used = sampler.sample(labels, rng, noise)
        cost.update(used)
        return images

    if config.write is not None:
        content = handwriting.write(
            config, sampler.characters, lambda *of: to_float(sample(*of)), sampler.generator.latent
        )
    else:
        labels, buffer = torch.arange(config.sample) % len(sampler.characters), io.BytesIO()
        images = sample(labels)
        if suffix == ".npz":
            np.savez_compressed(buffer, images=images.numpy(), labels=labels.numpy())
        else:
            Image.fromarray(tiled(images, len(sampler.characters))).save(buffer, "PNG")
        content = buffer.getvalue()
    with atomic_write(config.output) as temporary:  # at once: encoders tell a full disk in words of their own
        temporary.write_bytes(content)
    print(f"Written: {config.output}")
    if config.method == "2":
        each = ", ".join(f"{of} {samples:.0f}" for of, samples in sorted(cost.items()))
        print(f"Samples that one character cost: {each}")
    return 0


def tiled(images: Tensor, columns: int) -> np.ndarray:
    """Images, uint8 [N,28,28], in rows of `columns`, the last one filled up with black: uint8 [28R,28C]."""
    full = torch.cat([images, images.new_zeros(-len(images) % columns, 28, 28)])
    return full.unflatten(0, (-1, columns)).transpose(1, 2).flatten(0, 1).flatten(1).numpy()
