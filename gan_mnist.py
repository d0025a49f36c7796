"""A GAN learns to write digits: a generator and a discriminator, trained against each other.

    python gan_mnist.py                                      # the whole experiment, ten minutes on two cores
    python gan_mnist.py --quick                              # the same path in half a minute
    python gan_mnist.py --write "2026 11" --output note.png  # handwriting, with the weights that come along

A generator makes images of noise, a discriminator learns to tell them from real ones, and each is the other's
teacher. Neither says how far from real the images are: so an evaluator does, a digit classifier that has
never seen a generated one. Its distance stands beside real digits, blurred ones and noise, and `--balance`
shows what becomes of it when one of the two players is made stronger or weaker.

Three ways lead to a chosen character: a net that is conditioned on it (`--method conditional`), a small net
for each character (`--method 1`), or one unconditional net, and rejection sampling with a digit classifier
(`--method 2`). Expect with the default: FID-MNIST 0.2 where real digits have 0.1 and blurred ones 11, recall
0.8 of 0.9, and a class accuracy of 99.9 %.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from common.cli import TrainingFlags, UserError, check_unused, chosen_mode, launch, read_flags
from common.files import check_output, check_writable


@dataclass
class Config(TrainingFlags):
    """Generate digits with a GAN: train it, score it, write with it."""

    data: str = "auto"
    """Digits: a folder with MNIST's or EMNIST's files, `emnist` (letters too, 560 MB), `builtin`, or auto:
    data/MNIST, else a download of 12 MB, else builtin."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of the training; these nets are so small that bfloat16 makes them slower on a CPU."""
    method: Literal["conditional", "1", "2"] = "conditional"
    """How a character is chosen. conditional: one net, conditioned on it; 1: a small net for each character;
    2: one net over all characters, and rejection sampling with a digit classifier."""
    unconditional: bool = False
    """Train the classic set-up, a net without labels: the same as --method 2."""
    sample: int | None = None
    """Generate so many digits, 0 to 9 in turn, into --output, and do nothing else."""
    write: str | None = None
    """Write this text into --output, a PNG, and do nothing else."""
    output: Path | None = None
    """File of --sample: .npz with `images` and `labels`, or .png; file of --write: .png."""
    ink: str = "black"
    """Colour of --write, by name or as #rrggbb."""
    paper: str = "transparent"
    """Background of --write: a colour, or transparent."""
    balance: bool = False
    """Train small GANs in which one player is stronger or weaker, and show where it collapses."""
    compare: bool = False
    """Compare the three methods, with the newest weights of each, and save these in one file."""
    train_evaluator: bool = False
    """Train the evaluator anew, in place of the one that comes along."""

    def check(self) -> None:
        """Checks the flags before any work is done.

        Raises:
            UserError: a value that cannot be used, or a flag that would be ignored.
        """
        super().check()
        self.check_budget()
        training, output, colours = ("steps", "minutes", "preset"), ("output", "overwrite"), ("ink", "paper")
        not_trained = ("resume", "quick", "precision", *training)
        no_data = ("data", "figs", "train_evaluator")
        mode = chosen_mode(self, "sample", "write", "evaluate", "balance", "compare")
        unused = {
            "sample": (*not_trained, *no_data, *colours),
            "write": (*not_trained, *no_data),
            "evaluate": (*not_trained, *output, *colours),
            "balance": (*training, "precision", "method", "unconditional", "weights", *output, *colours),
            "compare": (*not_trained, "method", "unconditional", *output, *colours),
            "": ("weights", *output, *colours),
        }
        check_unused(self, mode, *unused[mode])
        if self.quick and self.preset != "auto":
            raise UserError(f"--preset {self.preset}: --quick has a size of its own; leave one of them out")
        if self.unconditional and self.method == "1":
            raise UserError("--unconditional is --method 2; give one of them")
        if self.sample is not None and not 1 <= self.sample <= 1_000_000:  # they are held in memory
            raise UserError(f"--sample {self.sample}: give a whole number from 1 to 1000000")
        if mode in ("sample", "write"):
            check_output(self.output, (".npz", ".png") if mode == "sample" else (".png",), self.overwrite)


if __name__ == "__main__":
    CONFIG = read_flags(Config)  # before torch is imported, which takes seconds: --help answers at once

import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, results
from common.datasets import mnist
from common.evaluation import mnist as evaluation
from common.evaluation.mnist import Evaluator
from common.figures import mnist as figures
from common.inference import mnist as inference
from common.inference.mnist import Sampler
from common.models.mnist import Classifier, Discriminator, Generator
from common.results import table
from common.studies import mnist as studies
from common.training import loop
from common.training.run import Run


@dataclass(frozen=True)
class Preset:
    """What differs between machines and methods."""

    g_channels: int  # of the generator, of each of Method 1's
    d_channels: int  # of the discriminator
    batch: int  # images in a step; of each character with Method 1
    latent: int = 64  # numbers of noise
    learning_rate: float = 4e-3  # of both players
    d_every: int = 1  # the discriminator takes a step in each so many
    g_every: int = 1
    minibatch_std: bool = True  # whether the discriminator sees how much images differ
    minutes: float | None = None
    steps: int | None = None


PRESETS = {
    "cpu": Preset(g_channels=32, d_channels=24, batch=24, learning_rate=2.5e-3, minutes=8),
    "gpu": Preset(g_channels=64, d_channels=48, batch=64, minutes=8),
    "quick": Preset(g_channels=24, d_channels=16, batch=16, steps=250),
}
SIDE_BY_SIDE = {  # for Method 1
    "cpu": Preset(g_channels=16, d_channels=12, batch=12, latent=32, minutes=8),
    "gpu": Preset(g_channels=24, d_channels=16, batch=32, latent=32, minutes=8),
    "quick": Preset(g_channels=8, d_channels=8, batch=8, latent=32, steps=120),
}
GRADIENT_PENALTY, PENALTY_EVERY = 0.1, 8
AUXILIARY_CLASSIFICATION = 0.03
EMA = 0.998


# The losses. Images are [N,nets,28,28] in 0..1, scores [N,nets], `condition` is (noise, label) or (noise,).


def relativistic_loss(better: Tensor, worse: Tensor) -> Tensor:
    """What should look more real must score higher than what should not: only the difference counts
    (Jolicoeur-Martineau 2019, "The relativistic discriminator", section 4)."""
    return F.softplus(worse - better).mean()


def gradient_penalty(discriminator: nn.Module, real: Tensor, *label: Tensor) -> Tensor:
    """R1: around real images the score must be flat, else the two never come to rest (Mescheder et al. 2018,
    "Which Training Methods for GANs do actually Converge?", section 4.1)."""
    with torch.autocast(real.device.type, enabled=False):  # a gradient of a gradient needs the digits
        real = real.detach().requires_grad_(True)
        scores, _ = score(discriminator, real, *label)
        (gradient,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
        return gradient.square().sum((2, 3)).mean() / 2


def score(discriminator: nn.Module, images: Tensor, *label: Tensor) -> tuple[Tensor, Tensor | None]:
    """How real the images are, as the class they should be, [N,nets]; and how well each class would fit."""
    scores, match = discriminator(images)
    return (scores + match.gather(1, label[0][:, None]) if label else scores), match


def discriminator_losses(
    discriminator: nn.Module, real: Tensor, fake: Tensor, condition: tuple[Tensor, ...], step: int
) -> tuple[loop.Losses, Tensor, Tensor]:
    """Real must score higher than fake. Also returns the scores, centred: only differences mean something."""
    _, *label = condition
    scores_real, match = score(discriminator, real, *label)
    scores_fake, _ = score(discriminator, fake, *label)
    losses = {"adversarial_d": relativistic_loss(scores_real, scores_fake)}
    if match is not None:  # without it the net is less strict about the class than about the looks
        losses["auxiliary_classification"] = AUXILIARY_CLASSIFICATION * F.cross_entropy(match, label[0])
    if step % PENALTY_EVERY == 0:  # seldom, but as many times stronger (Karras et al. 2020, section 2.3)
        weight = GRADIENT_PENALTY * PENALTY_EVERY
        losses["gradient_penalty"] = weight * gradient_penalty(discriminator, real, *label)
    return losses, scores_real - scores_fake.mean(), scores_fake - scores_real.mean()


def generator_losses(
    discriminator: nn.Module, real: Tensor, fake: Tensor, condition: tuple[Tensor, ...], step: int
) -> loop.Losses:
    """Fake must score higher than real."""
    _, *label = condition
    with torch.no_grad():
        scores_real, _ = score(discriminator, real, *label)
    scores_fake, _ = score(discriminator, fake, *label)
    return {"adversarial": relativistic_loss(scores_fake, scores_real)}


def train(
    config: Config, preset: Preset, data: mnist.Digits, classifier: Classifier, device: torch.device
) -> tuple[Sampler, Run, figures.Progress]:
    """Trains what --method names; `classifier` is the evaluator's. Returns what samples, its run, and what
    the validation showed on the way."""
    run_dir = inference.run_dir(config, config.method)
    flags = {name: getattr(config, name) for name in ("method", "seed", "minutes", "steps", "precision")}
    settings = {"data": data.name, "digits": data.fingerprint()[:16]} | asdict(preset) | flags
    precision = config.run_precision()
    run = Run(run_dir, settings=settings, device=device, resume=config.resume, precision=precision)
    split = data.validation_split()
    progress = figures.Progress(
        run, Evaluator(classifier.predict, split.test, split.test_labels), config.resume
    )

    # Models and their optimizers
    conditional, count = config.method == "conditional", len(data.characters)
    classes, nets = count if conditional else 0, count if config.method == "1" else 1
    torch.manual_seed(config.seed)
    generator = Generator(preset.latent, preset.g_channels, classes, nets)
    discriminator = Discriminator(preset.d_channels, classes, nets, preset.minibatch_std)

    def adam(net: nn.Module) -> torch.optim.Adam:
        """Without momentum: the other player's next move changes the way."""
        net.to(device).to(memory_format=torch.channels_last)
        return torch.optim.Adam(net.parameters(), preset.learning_rate, betas=(0.0, 0.99), fused=True)

    def validate(average: Any) -> dict[str, float]:
        return progress.validate(Sampler(config.method, average, data.characters))

    # Train
    loop.adversarial(
        run,
        "gan",
        generator,
        discriminator,
        (adam(generator), adam(discriminator)),
        generator_losses,
        discriminator_losses,
        mnist.gan_batches(split, preset.batch, preset.latent, config.seed, bool(classes), nets > 1),
        **config.budget(preset.steps, preset.minutes),
        schedule=loop.cosine_schedule(floor=0.1),
        ema=EMA,
        d_every=preset.d_every,
        g_every=preset.g_every,
        evaluate=validate,
        evaluations=4 if config.quick else 24,
    )

    # Method 2 also needs a classifier; it is not the evaluator's
    sampler = Sampler(config.method, generator, data.characters)
    if config.method == "2":
        sampler.classifier = Classifier(8, 32, count).to(device)
        epochs = 1 if len(split.train) > 10_000 else 20
        evaluation.train_classifier(run, "classifier", sampler.classifier, split, epochs, config.seed + 2)
    sampler.about = {
        "data": data.name,
        "phases": run.record,
        "command": cli.command(),
        "commit": cli.commit(),
    }
    return sampler, run, progress


def main(config: Config) -> int:
    # Set up
    config.check()
    start = time.monotonic()
    cli.seed_everything(config.seed)
    device = cli.pick_device(config.device)
    if config.unconditional:
        config = replace(config, method="2")
    if config.sample is not None or config.write is not None:
        return inference.run_inference(config, device)
    figs = config.figs_dir()
    check_writable(figs, config.runs)
    size = config.preset if config.preset != "auto" else "gpu" if device.type == "cuda" else "cpu"
    preset = (SIDE_BY_SIDE if config.method == "1" else PRESETS)["quick" if config.quick else size]

    # Data, and the evaluator
    data = mnist.find(config.data, download=not config.quick)
    if config.quick:
        data = replace(data, test=data.test[:1_000], test_labels=data.test_labels[:1_000])
    print(f"Data: {data.name}; {len(data.train):,} characters to train on, on {cli.device_name(device)}")
    if data.note:
        print(data.note)
    classifier, was_stopped = evaluation.find_evaluator(config, data, device)
    if was_stopped:  # before the GAN began
        config = replace(config, resume=False)
    evaluator = Evaluator(classifier.predict, data.test, data.test_labels)

    # Studies
    load = partial(inference.load_chosen, config, device=device, data=data)
    if config.balance:
        train_variant = partial(train, data=data, classifier=classifier, device=device)
        return studies.balance(config, preset, data, evaluator, train_variant, figs)
    if config.compare:
        return studies.compare(config, data, evaluator, load, figs)

    # Train, or take what was trained
    run = progress = None
    if config.evaluate:
        sampler = load(config.method)
    else:
        sampler, run, progress = train(config, preset, data, classifier, device)
        inference.save(run.path.with_name("weights.safetensors"), [sampler])
        # a resumed run counts from its first start on
        start = time.monotonic() - sum(phase["seconds"] for phase in run.record.values())

    # Evaluate beside real characters, blurred ones and noise
    rng = torch.Generator().manual_seed(config.seed)
    labels = torch.arange(len(data.test)) % len(data.characters)
    sampling_start = time.monotonic()
    fake, cost = sampler.sample(labels, rng)
    rate = len(fake) / (time.monotonic() - sampling_start)
    scores = {"GAN": evaluator.score(fake, labels)}
    if config.method == "2":
        scores["GAN, rejection sampling"] = scores["GAN"]
        scores["GAN"] = evaluator.score(sampler.sample_unconditional(len(labels), rng))
        print("Samples that one character cost: " + ", ".join(f"{of} {n:.0f}" for of, n in cost.items()))
    baselines = evaluation.baselines(evaluator, data)
    ratio = evaluation.nearest_neighbour_ratio(fake[:1_000], data.test[:1_000], data.train)
    print(table(evaluation.named(scores | baselines, data.name, gaps=True)))
    print(f"Nearest-neighbour ratio {ratio:.2f} (1: as new as real ones; near 0: copies)")
    print(f"{rate:,.0f} samples a second")
    if run:
        sampler.about |= {"scores": scores, "evaluator_accuracy": evaluator.accuracy}
        inference.save(run.path.with_name("weights.safetensors"), [sampler])
        run.finish()

    # Figures and results
    name = "gan_mnist" if config.method == "conditional" else f"gan_mnist_method_{config.method}"
    path = figures.save_all(figs, name, sampler, fake, labels, data, config.seed, progress)
    results.save(
        figs,
        name,
        config,
        data=data,
        count=len(data.test),
        metrics=evaluation.named(scores, data.name),
        baselines=evaluation.named(baselines, data.name),
        seconds=time.monotonic() - start,
        device=device,
        trained=sampler.about,
        evaluator_accuracy=evaluator.accuracy,
        nearest_neighbour_ratio=ratio,
        samples_per_second=rate,
        samples_per_character=cost,
    )
    gan, real, noise = (row["distance"] for row in (scores["GAN"], baselines["real"], baselines["noise"]))
    if gan > noise / 2:
        print("The GAN is hardly better than noise: it has learned nothing.")
    print(
        f"GAN: FID-{data.name.split()[0]} {gan:.2f} (real {real:.2f}, noise {noise:.0f}), recall "
        f"{scores['GAN']['recall']:.2f}. Images: {path}"
    )
    return 0


if __name__ == "__main__":
    launch(main, CONFIG)
