"""A GAN turns small photos, 3x64x64, into 3x224x224, and stands beside the classical methods.

    python gan_upscale.py                                    # the whole experiment, ten minutes
    python gan_upscale.py --quick                            # the same path in half a minute
    python gan_upscale.py --input small.png --output large.png

A net that minimises the pixel error draws the average of all the images it holds possible: a blur. A second
net, the discriminator, learns to score real images above such ones, and the first learns to raise its score:
now it must decide on one of the possible images. That costs fidelity (PSNR falls) and buys detail: figures
and table show both, beside bicubic, Lanczos and the best linear filter. Nothing brings lost information back.
Phase 1 trains the generator on fidelity, phase 2 as a GAN. The weights that come along have a PSNR of 26.8
and 26.2 dB where bicubic has 24.6, and an LPIPS of 0.20 and 0.12 where it has 0.36.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from common.cli import TrainingFlags, UserError, check_range, check_unused, chosen_mode, launch, read_flags


@dataclass
class Config(TrainingFlags):
    """Upscale photos by 3.5 with a GAN: train it, score it, use it."""

    data: tuple[str, ...] = ("auto",)  # type: ignore[assignment]
    """Photos: a folder, ImageNet's training archive (util/unzip_imagenet makes the index that it needs),
    `imagenette` (341 MB), `builtin`, or auto: $IMAGENET_DIR, data/ImageNet, /data/datasets/ImageNet, else
    imagenette, else builtin. Of several places all but the first are only trained on."""
    degradation: Literal["classic", "wild"] = "classic"
    """How images to train on are made small: by many kernels; noise and JPEG spoil those of `wild`."""
    input: Path | None = None
    """Upscale this image, or all images of this folder, and do nothing else."""
    output: Path | None = None
    """File or folder for the upscaled images of --input."""
    blend: float = 1.0
    """Share of the GAN's weights for --input, from 0, the fidelity weights alone, to 1."""
    scale: float = 3.5
    """Factor for --input, from 1 to 12.25. Above 3.5 the net upscales its own result, made-up details too."""
    self_ensemble: bool = False
    """Average over eight flips and turns of --input, for a little more fidelity and eight times the time."""
    format: Literal["auto", "png", "jpg", "webp", "avif"] = "auto"
    """Format of what --input becomes; auto goes by the suffix of --output, and is PNG in a folder."""
    quality: int | None = None
    """Quality of JPEG, WebP and AVIF for --input, 1 to 100, 95 by default."""

    def check(self) -> None:
        super().check()
        self.check_budget(least=2)  # a step for each phase
        if (self.input is None) != (self.output is None):
            raise UserError("--input and --output go together; give both")
        mode = chosen_mode(self, "input", "evaluate")
        training = ("resume", "steps", "minutes", "preset", "precision", "degradation")
        check_unused(self, mode, *(training if mode else ["weights"]))
        for_input = ("blend", "overwrite", "scale", "self_ensemble", "format", "quality")
        check_unused(self, mode, *(["quick"] if mode == "input" else for_input))
        check_range(self, blend=(0, 1), scale=(1, 12.25), quality=(1, 100))


if __name__ == "__main__":
    CONFIG = read_flags(Config)  # before torch is imported, which takes seconds: --help answers at once

import copy
import itertools
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, results, weights
from common.datasets import degradation, photo_batches, photos
from common.evaluation import lpips
from common.evaluation import upscale as evaluation
from common.figures import upscale as figures
from common.files import check_writable
from common.inference import upscale as inference
from common.models.upscale import LinearFilter, PatchDiscriminator, Upscaler
from common.training import distributed, loop
from common.training.run import Run


@dataclass(frozen=True)
class Preset:
    """What differs between machines."""

    channels: int  # of the generator's body
    blocks: int  # of the generator's body
    discriminator: int  # channels
    batch: int
    crop: int = 112  # side of the training images, in pixels
    minutes: float | None = None
    steps: int | None = None


PRESETS = {
    "cpu": Preset(channels=32, blocks=8, discriminator=32, batch=16, minutes=5),
    "gpu": Preset(channels=48, blocks=12, discriminator=48, batch=16, minutes=30),
    "quick": Preset(channels=16, blocks=3, discriminator=16, batch=8, steps=300),
}
FIDELITY_SHARE = 0.85  # of the budget is for phase 1
LEARNING_RATE = 1e-3  # of phase 1
EMA, CLIP = 0.998, 0.01  # of phase 1: of its averaged weights, and the largest gradient norm
GAN_LEARNING_RATE = 5e-4  # of generator and discriminator
SHIPPED = Path(__file__).parent / "data" / "pretrained" / "upscaler.safetensors"

Pair = tuple[Tensor, Tensor]
"""hr, float [N,3,112,112] in 0..1, and the kernels, [N,32,112], by which it was made small."""
Batch = tuple[tuple[Tensor], Pair]
"""lr, float [N,3,32,32] in 0..1, the generator's condition, and what it came from."""


def amplitude_loss(fake: Tensor, hr: Tensor) -> Tensor:
    """How much of every frequency is there, wherever it is: a blur is wrong here, a shifted texture is not.
    In 28x28 windows of [N,3,h,w] (after Fuoli et al. 2021, "Fourier Space Losses", section 3.2)."""
    window = torch.hann_window(28, device=fake.device)
    window = window[:, None] * window  # [28,28]
    windows = [x.float().unfold(2, 28, 14).unfold(3, 28, 14) * window for x in (fake, hr)]
    return F.l1_loss(*(torch.fft.rfft2(x, norm="ortho").abs() for x in windows))  # [N,3,rows,columns,28,15]


def fidelity_losses(generator: nn.Module, batch: Batch, progress: float) -> loop.Losses:
    """Phase 1: the squared error, which is PSNR, and nothing beside it: the GAN sharpens within 500 steps."""
    condition, (hr, _) = batch  # [N,3,32,32], [N,3,112,112]
    return {"pixel": F.mse_loss(generator(*condition), hr)}


def discriminator_losses(
    discriminator: nn.Module, real: Pair, fake: Tensor, condition: tuple[Tensor], step: int
) -> tuple[loop.Losses, Tensor, Tensor]:
    """Phase 2: real above 1, fake below -1 (hinge loss; Lim and Ye 2017, "Geometric GAN", section 3)."""
    scores = discriminator(torch.cat([real[0], fake]), torch.cat([*condition, *condition]))  # [2N,1,28,28]
    of_real, of_fake = scores.chunk(2)
    return {"discriminator": F.relu(1 - of_real).mean() + F.relu(1 + of_fake).mean()}, of_real, of_fake


def generator_losses(
    discriminator: nn.Module, real: Pair, fake: Tensor, condition: tuple[Tensor], step: int
) -> loop.Losses:
    """Phase 2: besides the adversarial loss, what keeps images true to their input and free of a grid."""
    hr, kernels = real
    finest, finest_hr = map(evaluation.finest_detail, (fake.float(), hr))  # [N,3,112,112] each
    detail = distributed.mean(evaluation.detail_by_position(finest))  # [7,7], of the whole batch
    more = evaluation.repeated_detail(finest) - evaluation.repeated_detail(finest_hr)  # [N]
    return {
        "pixel": F.mse_loss(fake, hr),
        "amplitude": 0.8 * amplitude_loss(fake, hr),
        # made small again, both must be the same (after Lugmayr et al. 2020, SRFlow, section 5)
        "consistency": degradation.shrink(fake - hr, kernels).square().mean(),
        # our own: PixelShuffle fills each place of a 7x7 block by other weights, and dots and rings look
        # sharp to every measure. As much fine detail at each place; no more in all blocks alike than in `hr`
        "checkerboard_loss": 0.005 * (detail + 1e-8).log().var(),  # a flat image has no detail at all
        "repeated_loss": 0.005 * F.relu(more).mean(),
        "adversarial": 0.0012 * -discriminator(fake, *condition).mean(),
    }


def optimizers(generator: Upscaler, learning_rate: float, beta: float) -> list[torch.optim.Optimizer]:
    """For the generator. Muon makes all directions of a weight matrix step alike (Jordan et al. 2024,
    "Muon"): 240 steps bring the net as far as 600 of Adam. The rest is for Adam, with far smaller steps for
    the linear filter, since all its inputs move together."""
    matrices = [weight for weight in generator.body.parameters() if weight.ndim == 2]
    biases = [bias for bias in generator.body.parameters() if bias.ndim == 1]
    ends = [*generator.head.parameters(), *generator.tail.parameters(), *biases]
    skip: dict[str, Any] = {"params": list(generator.skip.parameters()), "lr": 0.01 * learning_rate}
    adam = torch.optim.Adam([{"params": ends}, skip], learning_rate, betas=(beta, 0.99))
    like_adam: dict[str, Any] = {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0}
    return [torch.optim.Muon(matrices, 2 * learning_rate, **like_adam), adam]


def train(config: Config, data: photos.Photos, device: torch.device) -> tuple[dict[str, nn.Module], Run]:
    """The linear filter is fitted, then the generator is trained on fidelity, then as a GAN."""
    name = config.preset if config.preset != "auto" else "gpu" if device.type == "cuda" else "cpu"
    preset = PRESETS["quick" if config.quick else name]
    settings = asdict(preset) | {"share": FIDELITY_SHARE, "data": data.name}
    settings |= {name: getattr(config, name) for name in ("seed", "precision", "degradation")}
    settings["list of images"] = data.train.fingerprint()[:16]
    budget = config.budget(settings.pop("steps"), settings.pop("minutes"))  # may grow when a run goes on
    how: dict[str, Any] = {"budget": budget, "resume": config.resume, "precision": config.run_precision()}
    run = Run(config.run_dir("gan_upscale", data.builtin), settings=settings, device=device, **how)
    crops = photo_batches.batches(data.train, size=preset.crop, batch=preset.batch, seed=config.seed)
    batches = degradation.pairs(crops, config.seed, config.degradation)

    # Models: the generator begins as the linear filter
    linear = LinearFilter()
    linear.fit((lr, hr) for (lr,), (hr, _) in itertools.islice(batches(0), 20 if config.quick else 100))
    generator = Upscaler(preset.channels, preset.blocks)
    generator.skip.load_state_dict(linear.state_dict())
    discriminator = PatchDiscriminator(preset.discriminator)
    for net in (linear, generator, discriminator):
        net.to(device).to(memory_format=torch.channels_last)

    # What both phases share, and the budget, in steps or minutes, that they divide
    hr = data.validation.standard_images()  # uint8 [N,3,224,224]
    lr = degradation.downscale(hr)  # uint8 [N,3,64,64]
    shared: dict[str, Any] = {
        "schedule": loop.cosine_schedule(warm_up=0.01),
        "evaluate": lambda model: evaluation.score(evaluation.upscale(model, lr), hr),
        "evaluations": 2 if config.quick else 6,
    }
    bicubic, filtered = evaluation.upscale_classical("bicubic", lr), evaluation.upscale(linear, lr)
    references = {"bicubic": evaluation.score(bicubic, hr), "linear filter": evaluation.score(filtered, hr)}
    run.draw = lambda: figures.save_training(config.figs_dir(data.builtin), data, run.history, references)
    ((unit, whole),) = budget.items()
    first = FIDELITY_SHARE * whole if unit == "minutes" else max(1, int(FIDELITY_SHARE * whole))

    # Phase 1: fidelity, its gradients clipped at four times their usual norm: one bad batch undid 3,600 steps
    shared |= {unit: first, "ema": EMA}
    players = generator, optimizers(generator, LEARNING_RATE, beta=0.9)
    fidelity = loop.supervised(run, "fidelity", *players, fidelity_losses, batches, clip=CLIP, **shared)
    nets = {"linear": linear, "fidelity": copy.deepcopy(fidelity)}

    # Phase 2: adversarial, from the fidelity weights and the next images on, with the budget that is left
    done = run.record["fidelity"]
    optimizer_d = torch.optim.Adam(discriminator.parameters(), GAN_LEARNING_RATE, betas=(0.5, 0.99))
    both = optimizers(generator, GAN_LEARNING_RATE, beta=0.5), optimizer_d
    losses = generator_losses, discriminator_losses
    later = lambda step: batches(done["steps"] + step)  # noqa: E731
    shared |= {unit: whole - done[unit], "ema": 0.995}
    nets["gan"] = loop.adversarial(run, "gan", generator, discriminator, both, *losses, later, **shared)
    return nets, run


def main(config: Config) -> int:
    # Set up
    start = time.monotonic()
    config.check()
    cli.seed_everything(config.seed)
    device = cli.pick_device(config.device)
    newest = config.run_dir("gan_upscale") / "weights.safetensors"
    chosen = weights.choose(config.weights, newest, SHIPPED)
    if config.input and config.output:
        return inference.run(config, chosen, device)
    check_writable(config.figs_dir(), config.runs)

    # Data
    with distributed.first_alone():
        data = photos.find(*config.data, limit=6 if config.quick else 100, download=not config.quick)
    if config.quick:
        data.shorten(train=64, validation=8)
    facts = f"{len(data.train):,} images to train on, on {cli.device_name(device)}"
    print(f"Data: {data.name}; {facts}\n{data.note}".strip())
    figs, hr = config.figs_dir(data.builtin), data.test.standard_images()  # hr: uint8 [N,3,224,224]

    # Train, or take what was trained
    run = None
    if config.evaluate:
        nets, about = inference.load(chosen, device)
    else:
        nets, run = train(config, data, device)
        start = time.monotonic() - sum(phase["seconds"] for phase in run.record.values())  # if it was resumed
    if not cli.is_first():
        return 0  # of several processes, one evaluates and draws

    # Evaluate beside the classical methods
    methods = evaluation.methods(nets)
    perceptual = lpips.load(download=not config.quick)
    fakes, scores = evaluation.compare(methods, hr, perceptual)
    metrics, baselines = evaluation.split(scores)
    if run:
        about = {"device": cli.device_name(device), "scores": {"images": len(hr)} | metrics}
        about |= {"data": data.name, "images": len(data.train), "phases": run.record}
        about = inference.save(run.path.with_name("weights.safetensors"), nets, about)
        run.finish()
    print(results.table(scores), *evaluation.nothing_learned(scores), sep="\n")

    # Figures and results
    figures.save_all(figs, data, fakes, hr, scores, perceptual, trained_on=about["data"], device=device)
    if run:
        run.draw()
    more: dict[str, Any] = {"seconds": time.monotonic() - start, "device": device, "count": len(hr)}
    more |= {"trained": about, "skipped": data.skipped()}
    results.save(figs, "gan_upscale", config, data=data, metrics=metrics, baselines=baselines, **more)
    print(f"{evaluation.summary(scores)}. Images: {results.where(figs / 'GAN_upscaling_final.png', data)}")
    return 0


if __name__ == "__main__":
    launch(main, CONFIG)
