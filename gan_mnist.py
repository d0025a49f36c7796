"""A GAN learns to write digits and letters: a generator and a discriminator, trained against each other.

    python gan_mnist.py                                             # digits, ten minutes on two cores
    python gan_mnist.py --data emnist --minutes 40                  # 62 characters, 0-9A-Za-z
    python gan_mnist.py --write "Hello World 2026" --output note.png  # with the weights that come along

A generator makes images of noise, a discriminator learns to know them from real ones, and each is the other's
teacher. How far from real the images are says an evaluator, a classifier that has never seen a generated one.
Three ways lead to a chosen character: one net, conditioned on it (`--method conditional`), a small net for
each (`--method 1`), or one unconditional net and rejection sampling with a classifier (`--method 2`).
Expect of digits FID-MNIST 0.2 (real 0.1, blurred 11), recall 0.8 (0.9), and a class accuracy of 99.9 %.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from common.cli import UserError, check_range, check_unused, chosen_mode, launch, read_flags, user_path
from common.files import check_output, check_writable
from common.inference.page import PAGE, PageFlags


@dataclass
class Config(PageFlags):
    """Generate digits and letters with a GAN: train it, score it, write with it."""

    data: str = "auto"
    """Characters: MNIST's or EMNIST's files in a folder or .zip, mnist.npz, .csv, `emnist` (letters too,
    560 MB) or `emnist:balanced`, `builtin`, or auto: data/MNIST, else a download of 12 MB, else builtin."""
    method: Literal["conditional", "1", "2"] = "conditional"
    """The way to a character: one conditional net, a net for each (1), or one and rejection sampling (2)."""
    unconditional: bool = False
    """Train the classic set-up, a net without labels: the same as --method 2."""
    sample: int | None = None
    """Generate so many characters, each in turn, into --output, and do nothing else."""
    write: str | None = None
    """Write this text in one hand into --output, and do nothing else."""
    output: Path | None = None
    """File of --sample: .npz with `images` and `labels`, or .png; file of --write: .png or .svg."""
    balance: bool = False
    """Train small GANs in which one player is stronger or weaker, and show where it collapses."""
    compare: bool = False
    """Compare the three methods, with the newest weights of each, and save these in one file."""
    weights: str = "auto"
    """Weights where nothing is trained: a .safetensors file; `digits`, `handwriting`, or `shipped` for the
    fitting ones of these; or auto: the newest trained that know the characters asked for, else shipped."""
    train_evaluator: bool = False
    """Train the evaluator anew, in place of the one that comes along."""

    def check(self) -> None:
        """Refuses, with a UserError, values that cannot be used and flags that would be ignored."""
        super().check()
        self.check_budget()
        mode = chosen_mode(self, "sample", "write", "evaluate", "balance", "compare")
        budget, output = ("steps", "minutes", "preset", "precision"), ("output", "overwrite", *PAGE)
        training, scoring = ("resume", "quick", *budget), ("data", "figs", "train_evaluator")
        unused = {
            "sample": (*training, *scoring, *PAGE),
            "write": (*training, *scoring),
            "evaluate": (*training, *output),
            "balance": (*budget, *output, "method", "unconditional", "weights"),
            "compare": (*training, *output, "method", "unconditional"),
            "": (*output, "weights"),
        }
        check_unused(self, mode, *unused[mode])
        if self.quick and self.preset != "auto":
            raise UserError(f"--preset {self.preset}: --quick has a size of its own; leave one of them out")
        if self.unconditional and self.method == "1":
            raise UserError("--unconditional is --method 2; give one of them")
        check_range(self, sample=(1, 1_000_000))  # they are held in memory
        if mode in ("sample", "write"):
            self.output = self.output and user_path("output", self.output)
            check_output(self.output, (".png", {"sample": ".npz", "write": ".svg"}[mode]), self.overwrite)


if __name__ == "__main__":
    CONFIG = read_flags(Config)  # before torch is imported, which takes seconds: --help answers at once

import math
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, results
from common.datasets import mnist
from common.evaluation import mnist as evaluation
from common.figures import mnist as figures
from common.inference import mnist as inference
from common.models.mnist import Discriminator, Generator
from common.studies import mnist as studies
from common.training import distributed, loop


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
    group: int = 4  # images of which the discriminator sees how much they differ, 0 for none
    classification: float = 0.07  # weight of its loss by the class
    r2: bool = False  # whether its gradient is penalised at fake images, too
    shift: bool = False  # whether it sees each image a pixel off, so that it learns no few by heart
    spread: bool = False  # whether each class has the width of its noise chosen at the end
    steps: int | None = None  # in place of MINUTES


PRESETS = {
    "cpu": Preset(g_channels=32, d_channels=24, batch=24, learning_rate=2.5e-3),
    "letters": Preset(32, 24, 64, 64, 2.5e-3, group=8, classification=0.05, r2=True, shift=True, spread=True),
    "gpu": Preset(g_channels=64, d_channels=48, batch=64),
    "quick": Preset(g_channels=24, d_channels=16, batch=16, steps=250),
}
SIDE_BY_SIDE = {  # for Method 1
    "cpu": Preset(g_channels=16, d_channels=12, batch=12, latent=32),
    "letters": Preset(g_channels=8, d_channels=8, batch=8, latent=16, d_every=2),
    "gpu": Preset(g_channels=24, d_channels=16, batch=32, latent=32),
    "quick": Preset(g_channels=8, d_channels=8, batch=8, latent=32, steps=120),
}
R1_WEIGHT, R1_EVERY, EMA, MINUTES = 0.1, 8, 0.998, 8
Condition = tuple[Tensor, ...]  # noise [N,nets,latent], and labels [N] of a conditional GAN


# The losses of images [N,nets,28,28] in 0..1, by their scores [N,nets]
def relativistic_loss(better: Tensor, worse: Tensor) -> Tensor:
    """What should look more real must score higher than what should not: only the difference counts
    (Jolicoeur-Martineau 2019, "The relativistic discriminator", section 4)."""
    return F.softplus(worse - better).mean()


def gradient_penalty(discriminator: nn.Module, images: Tensor, condition: Condition) -> Tensor:
    """R1: around real images the score must be flat, else the two never come to rest; R2: around fake ones
    (Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", section 4.1)."""
    with torch.autocast(images.device.type, enabled=False):  # a gradient of a gradient needs the digits
        images = images.detach().requires_grad_(True)
        scores, _ = score(discriminator, images, condition)
        (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
        return gradient.square().sum((2, 3)).mean() / 2


def score(discriminator: nn.Module, images: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
    """How real the images are, as the class they should be, [N,nets]; and how well each class would fit."""
    scores, match = discriminator(images)
    return (scores if match is None else scores + match.gather(1, condition[1][:, None])), match


def discriminator_losses(
    preset: Preset, discriminator: nn.Module, real: Tensor, fake: Tensor, condition: Condition, step: int
) -> tuple[loop.Losses, Tensor, Tensor]:
    """Real must score higher than fake. Also returns the scores, centred: only differences mean something."""
    scores_real, match = score(discriminator, real, condition)
    scores_fake, _ = score(discriminator, fake, condition)
    losses = {"adversarial_d": relativistic_loss(scores_real, scores_fake)}
    if match is not None:  # without it the net is less strict about the class than about the looks
        weight = preset.classification / math.log(max(2, match.shape[1]))  # a guess always costs the same
        losses["auxiliary_classification"] = weight * F.cross_entropy(match, condition[1])
    if step % R1_EVERY == 0:  # seldom, but as many times stronger (Karras et al. 2020, section 2.3)
        flat = [gradient_penalty(discriminator, x, condition) for x in (real, fake)[: 1 + preset.r2]]
        losses["gradient_penalty"] = R1_EVERY * R1_WEIGHT * torch.stack(flat).sum()
    mean_real, mean_fake = distributed.mean(torch.stack([scores_real.mean(), scores_fake.mean()]))
    return losses, scores_real - mean_fake, scores_fake - mean_real


def generator_losses(
    discriminator: nn.Module, real: Tensor, fake: Tensor, condition: Condition, step: int
) -> loop.Losses:
    """Fake must score higher than real."""
    with torch.no_grad():
        scores_real, _ = score(discriminator, real, condition)
    scores_fake, _ = score(discriminator, fake, condition)
    return {"adversarial": relativistic_loss(scores_fake, scores_real)}


def train(
    config: Config, preset: Preset, data: mnist.Digits, evaluator: evaluation.Evaluator, device: torch.device
) -> tuple[inference.Sampler, figures.Progress]:
    """Trains what --method names, and shows its progress to the evaluator on validation characters."""
    distributed.check_share(preset.batch, preset.group or 1)
    budget = config.budget(preset.steps, MINUTES)
    run = inference.open_run(config, asdict(replace(preset, steps=None)), budget, data, device)
    split = data.validation_split()
    progress = figures.Progress(run, split, evaluator, config)

    # Models and their optimizers
    count = len(data.characters)
    classes, nets = {"conditional": (count, 1), "1": (0, count), "2": (0, 1)}[config.method]
    torch.manual_seed(config.seed)
    generator = Generator(preset.latent, preset.g_channels, classes, nets)
    discriminator = Discriminator(preset.d_channels, classes, nets, preset.group, preset.shift)
    nn.ModuleList([generator, discriminator]).to(device).to(memory_format=torch.channels_last)
    # without momentum: the other player's next move changes the way
    adam = partial(torch.optim.Adam, lr=preset.learning_rate, betas=(0.0, 0.99), fused=True)
    optimizers = adam(generator.parameters()), adam(discriminator.parameters())

    # Train; Method 2's classifier first, since only the last phase of a run can be trained for longer later
    classifier = None
    if config.method == "2":
        classifier = evaluation.train_small_classifier(run, split, device, config.seed + 2)
    players = generator, discriminator, optimizers, generator_losses, partial(discriminator_losses, preset)
    loop.adversarial(
        run,
        "gan",
        *players,
        mnist.gan_batches(split, preset.batch, preset.latent, config.seed, discriminator.alike, nets > 1),
        **budget,
        schedule=loop.cosine_schedule(floor=0.1),
        ema=EMA,
        d_every=preset.d_every,
        g_every=preset.g_every,
        evaluate=progress.validate,
        evaluations=4 if config.quick else 24,
    )
    about = inference.origin(data, run)
    sampler = inference.Sampler(config.method, generator, data.characters, classifier, about)
    if preset.spread and config.method == "conditional":
        sampler.spread = inference.choose_spread(sampler, evaluator, data)
    return sampler, progress


def main(config: Config) -> int:
    # Set up
    config.check()
    start = time.monotonic()
    cli.seed_everything(config.seed)
    device = cli.pick_device(config.device)
    config = replace(config, method="2" if config.unconditional else config.method)
    if config.sample is not None or config.write is not None:
        return inference.run_inference(config, device)
    check_writable(config.figs_dir(), config.runs)

    # Data, and the evaluator
    with distributed.first_alone():
        data = mnist.find(config.data, download=not config.quick)
    data = data.trial() if config.quick else data
    print(f"Data: {data.name}, {len(data.train):,} to train on, {cli.device_name(device)}.", data.note)
    auto = "gpu" if device.type == "cuda" else "letters" if len(data.characters) > 10 else "cpu"
    size = "quick" if config.quick else auto if config.preset == "auto" else config.preset
    preset = (SIDE_BY_SIDE if config.method == "1" else PRESETS)[size]
    evaluator, was_stopped = evaluation.find_evaluator(config, data, device)
    config = replace(config, resume=config.resume and not was_stopped)  # stopped before the GAN began
    if config.balance:
        return studies.balance(config, preset, data, evaluator, device, train)
    if config.compare:
        return studies.compare(config, data, evaluator, device)

    # Train, or take what was trained
    if config.evaluate:
        sampler, progress = inference.load_chosen(config, config.method, device, data), None
    else:
        sampler, progress = train(config, preset, data, evaluator, device)
        inference.save(progress.run.path.with_name("weights.safetensors"), [sampler])
        start = time.monotonic() - progress.seconds()  # a resumed run counts from its first start on
    if not cli.is_first():
        return 0  # of several processes, one evaluates and draws

    # Evaluate beside real characters, blurred ones and noise
    fake, labels, verdict, scores = inference.evaluate(sampler, evaluator, data, config.seed)
    if progress:
        inference.save(progress.run.path.with_name("weights.safetensors"), [sampler])
        progress.run.finish()

    # Figures and results
    name, figs = inference.name_of(data.characters, config.method, "_method_"), config.figs_dir(data.builtin)
    path = figures.save_all(figs, name, sampler, evaluator, fake, labels, data, config.seed, progress)
    scores |= {"seconds": time.monotonic() - start, "device": device, "trained": sampler.about}
    results.save(figs, name, config, data=data, **scores)
    print(f"{verdict}. Images: {results.where(path, data)}")
    return 0


if __name__ == "__main__":
    launch(main, CONFIG)
