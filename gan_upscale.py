"""A GAN turns small photos, 3x64x64, into 3x224x224, and stands beside the classical methods.

    python gan_upscale.py                                    # the whole experiment, some minutes
    python gan_upscale.py --quick                            # the same path in half a minute
    python gan_upscale.py --input small.png --output large.png

A net that minimises the pixel error draws the average of all the pictures it holds possible: a blur. A second
net, the discriminator, learns to tell such pictures from real ones, and the first learns to pass it: now it
must decide on one of the possible pictures. That costs fidelity (PSNR falls) and buys detail; the figures and
the table show both, beside bicubic, Lanczos and the best linear filter. Nothing brings lost information back.

Phase 1 trains the generator on fidelity, phase 2 as a GAN. Expect with `--minutes 20` on two cores, on
photos of ImageNet: fidelity weights 26.5 dB where bicubic has 24.6, GAN weights 25.7 dB with detail at -4 dB
where bicubic has -29.
"""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, results, weights
from common.cli import UserError
from common.datasets import photos
from common.evaluation import upscale as evaluation
from common.figures import page
from common.figures import training as training_figures
from common.figures import upscale as figures
from common.files import check_writable
from common.inference import upscale as inference
from common.models.upscale import LinearFilter, PatchDiscriminator, Upscaler
from common.results import table
from common.training import loop
from common.training.run import Run


@dataclass
class Config(cli.Flags):
    """Upscale photos by 3.5 with a GAN: train it, score it, use it."""

    data: str = "auto"
    """Photos: a folder, ImageNet's training archive (util/unzip_imagenet makes the index that it needs),
    `imagenette` (341 MB), `builtin`, or auto: $IMAGENET_DIR, data/ImageNet, /data/datasets/ImageNet, else
    imagenette, else builtin."""
    figs: Path = Path("figs")
    """Where figures and gan_upscale.json go."""
    runs: Path = Path("runs")
    """Where checkpoints and trained weights go."""
    seed: int = 0
    """Of weights, crops and their order."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes the fastest there is."""
    resume: bool = False
    """Go on with the run that was stopped, exactly where it was."""
    quick: bool = False
    """The same path at its smallest, under half a minute; figures go to figs/quick, weights apart."""
    preset: Literal["auto", "cpu", "gpu"] = "auto"
    """Size of nets and batches: cpu is small, for 5 minutes, gpu larger, for 30; auto follows the device."""
    minutes: float | None = None
    """Training time of both phases together; becomes a fixed number of steps that is recorded."""
    steps: int | None = None
    """Training steps of both phases together, in place of minutes."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the training; auto takes bfloat16 where a probe finds it faster and exact enough."""
    evaluate: bool = False
    """Score weights that exist, without training; figures go to figs/evaluate."""
    weights: str = "auto"
    """For --evaluate and --input: a .safetensors file, `shipped`, or auto: newest trained, else shipped."""
    input: Path | None = None
    """Upscale this picture, or all pictures of this folder, and do nothing else."""
    output: Path | None = None
    """Where the upscaled picture, or the folder of them, goes."""
    overwrite: bool = False
    """Replace output files that exist."""
    blend: float = 1.0
    """For --input: from 0, the fidelity weights, to 1, those of the GAN."""


@dataclass(frozen=True)
class Preset:
    """What differs between machines."""

    channels: int  # of the generator's body
    blocks: int  # of the generator's body
    judge: int  # channels of the discriminator
    batch: int
    crop: int  # side of the training pictures
    learning_rate: float  # of phase 1
    minutes: float | None = None
    steps: int | None = None


PRESETS = {
    "cpu": Preset(channels=48, blocks=6, judge=32, batch=8, crop=112, learning_rate=1.5e-3, minutes=5),
    "gpu": Preset(channels=64, blocks=10, judge=48, batch=16, crop=112, learning_rate=1e-3, minutes=30),
    "quick": Preset(channels=32, blocks=3, judge=16, batch=8, crop=112, learning_rate=2e-3, steps=400),
}
FIDELITY_SHARE = 0.9  # of the budget is for phase 1
SHIPPED = Path(__file__).parent / "data" / "pretrained" / "upscaler.safetensors"
GAN_LEARNING_RATE = 5e-4  # of both players


# The losses. Pictures are [N,3,h,w] in 0..1; each loss is one number.


def pixel_loss(made: Tensor, real: Tensor) -> Tensor:
    """Mean squared error: least where the net draws the mean of all pictures it holds possible."""
    return F.mse_loss(made, real)


def amplitude_loss(made: Tensor, real: Tensor) -> Tensor:
    """How much of every frequency is there, wherever it is: a blur is wrong here, a shifted texture is not.

    Fourier amplitudes of overlapping 28x28 windows (after Fuoli et al. 2021, "Fourier Space Losses for
    Efficient Perceptual Image Super-Resolution", section 3.2, who take the whole picture).
    """
    window = torch.hann_window(28, device=made.device)
    window = window[:, None] * window

    def amplitudes(x: Tensor) -> Tensor:
        windows = x.float().unfold(2, 28, 14).unfold(3, 28, 14) * window  # [N,3,rows,columns,28,28]
        return torch.fft.rfft2(windows, norm="ortho").abs()

    return F.l1_loss(amplitudes(made), amplitudes(real))


def consistency_loss(made: Tensor, small: Tensor) -> Tensor:
    """Made small again, the picture must be the input (after Lugmayr et al. 2020, SRFlow, section 5)."""
    again = F.interpolate(
        made.float(), small.shape[-2:], mode="bilinear", antialias=True, align_corners=False
    )
    return F.mse_loss(again, small)


def lattice_loss(made: Tensor) -> Tensor:
    """Fine detail must be as strong at each of the 49 places in a 7x7 block; else it is a lattice of dots.

    Our own: the variance of the log energies. PixelShuffle makes each place by other weights, and a lattice
    looks sharp to every measure of sharpness.
    """
    return (evaluation.fine_by_phase(made.float()) + 1e-8).log().var()  # flat pictures have none at all


def hinge_discriminator_loss(scores_real: Tensor, scores_made: Tensor) -> Tensor:
    """Real above 1, made below -1 (Lim and Ye 2017, "Geometric GAN", section 3)."""
    return F.relu(1 - scores_real).mean() + F.relu(1 + scores_made).mean()


def hinge_generator_loss(scores_made: Tensor) -> Tensor:
    """The higher the discriminator scores what is made, the better."""
    return -scores_made.mean()


# The two phases: which losses, with which weights.


def fidelity_losses(generator: nn.Module, batch: tuple[Tensor, Tensor], progress: float) -> loop.Losses:
    """Phase 1: pixels; towards the end amplitudes too, so that the GAN starts from sharper pictures."""
    small, real = batch
    made = generator(small)
    losses = {"pixel": pixel_loss(made, real)}
    if progress > 0.8:
        losses["amplitude"] = 0.005 * amplitude_loss(made, real)
    return losses


def discriminator_losses(
    discriminator: nn.Module, real: Tensor, made: Tensor, given: tuple[Tensor], step: int
) -> tuple[loop.Losses, Tensor, Tensor]:
    """Phase 2, the judge; also returns its scores."""
    scores_real, scores_made = discriminator(torch.cat([real, made]), torch.cat([*given, *given])).chunk(2)
    return {"judge": hinge_discriminator_loss(scores_real, scores_made)}, scores_real, scores_made


def generator_losses(
    discriminator: nn.Module, real: Tensor, made: Tensor, given: tuple[Tensor], step: int
) -> loop.Losses:
    """Phase 2, the painter."""
    (small,) = given
    return {
        "pixel": pixel_loss(made, real),
        "amplitude": 0.8 * amplitude_loss(made, real),
        "consistency": consistency_loss(made, small),
        "lattice": 0.005 * lattice_loss(made),
        "fool": 0.0012 * hinge_generator_loss(discriminator(made, small)),
    }


def cosine(progress: float) -> float:
    """A short warm-up, then half a cosine down to a hundredth (Loshchilov and Hutter 2017, SGDR)."""
    return min(1.0, progress / 0.01 + 0.01) * (0.505 + 0.495 * math.cos(math.pi * progress))


def pairs(crops: Callable[[int], Iterator[Tensor]]) -> loop.Batches:
    """Turns batches of uint8 pictures into (small, real), float in 0..1."""

    def start(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for real in crops(first):
            yield photos.shrink(real).float() / 255, real.float() / 255

    return start


# The experiment.


def train(
    config: Config, preset: Preset, data: photos.Photos, watched: Tensor, device: torch.device
) -> tuple[dict[str, nn.Module], dict[str, Any], Run]:
    """The linear filter is fitted, then the generator is trained on fidelity, then as a GAN.

    Returns the three nets, what is known of them, and the run.
    """
    settings = {
        "data": data.name,
        "list of pictures": data.train.fingerprint()[:16],
        "seed": config.seed,
        "share": FIDELITY_SHARE,
    }
    asked = {name: getattr(config, name) for name in ("minutes", "steps", "precision")}
    run = Run(
        folder(config),
        settings=settings | asdict(preset) | asked,
        device=device,
        resume=config.resume,
        precision=config.precision if config.precision != "auto" or not config.quick else "float32",
    )
    batches = pairs(photos.batches(data.train, size=preset.crop, batch=preset.batch, seed=config.seed))

    # Model: it begins as the linear filter
    linear = LinearFilter()
    linear.fit(itertools.islice(batches(0), 100 if not config.quick else 20))
    generator = Upscaler(preset.channels, preset.blocks)
    generator.skip.load_state_dict(linear.state_dict())
    discriminator = PatchDiscriminator(preset.judge)
    for net in (linear, generator, discriminator):
        net.to(device).to(memory_format=torch.channels_last)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return evaluation.score(evaluation.upscale(model, photos.shrink(watched)), watched)

    steps, minutes = config.steps, config.minutes
    if steps is None and minutes is None:
        steps, minutes = preset.steps, preset.minutes

    budgets: tuple[dict[str, Any], dict[str, Any]]
    if steps is not None:
        first = min(max(1, round(FIDELITY_SHARE * steps)), steps - 1)
        budgets = {"steps": first}, {"steps": steps - first}
    else:
        assert minutes is not None
        budgets = {"minutes": FIDELITY_SHARE * minutes}, {"minutes": (1 - FIDELITY_SHARE) * minutes}

    evaluations = 2 if config.quick else 6

    def adam(learning_rate: float, beta: float) -> torch.optim.Adam:
        """For the generator. All inputs of the linear filter move together, so it takes far smaller steps."""
        skip = list(generator.skip.parameters())
        body = [weight for name, weight in generator.named_parameters() if not name.startswith("skip")]
        groups: list[dict[str, Any]] = [{"params": body}, {"params": skip, "lr": 0.01 * learning_rate}]
        return torch.optim.Adam(groups, learning_rate, betas=(beta, 0.99))

    # Phase 1: fidelity
    fidelity = copy.deepcopy(
        loop.supervised(
            run,
            "fidelity",
            generator,
            adam(preset.learning_rate, beta=0.9),
            fidelity_losses,
            batches,
            schedule=cosine,
            ema=0.998,
            clip=0.01,  # four times the usual norm: without it one bad batch once undid 3,600 steps
            evaluate=evaluate,
            evaluations=evaluations,
            **budgets[0],
        )
    )

    # Phase 2: adversarial, from the fidelity weights and the next pictures on
    seen = run.record["fidelity"]["steps"]
    judges = torch.optim.Adam(discriminator.parameters(), GAN_LEARNING_RATE, betas=(0.5, 0.99))
    gan = loop.adversarial(
        run,
        "gan",
        generator,
        discriminator,
        (adam(GAN_LEARNING_RATE, beta=0.5), judges),
        generator_losses,
        discriminator_losses,
        lambda first: (((small,), real) for small, real in batches(seen + first)),
        schedule=cosine,
        ema=0.995,
        evaluate=evaluate,
        evaluations=evaluations,
        **budgets[1],
    )
    about = {
        "channels": preset.channels,
        "blocks": preset.blocks,
        "data": data.name,
        "pictures": len(data.train),
        "phases": run.record,
        "command": cli.command(),
        "commit": cli.commit(),
        "device": cli.device_name(device),
    }
    return {"linear": linear, "fidelity": fidelity, "gan": gan}, about, run


def refuse_bad_flags(config: Config) -> None:
    """Before any work is done: budgets that are none, and flags that would be ignored."""
    training_flags = ("resume", "steps", "minutes", "preset", "precision")
    idle = {
        "--input": ("quick", "evaluate", *training_flags),
        "--evaluate": (*training_flags, "blend", "overwrite"),
        "training": ("weights", "blend", "overwrite"),
    }
    mode = "--input" if config.input or config.output else "--evaluate" if config.evaluate else "training"
    for name in idle[mode]:
        if getattr(config, name) != getattr(Config, name):
            raise UserError(f"--{name} means nothing with {mode}; leave it out")
    if config.steps is not None and config.minutes is not None:
        raise UserError("--steps and --minutes are two budgets for one run; give one of them")
    if config.steps is not None and config.steps < 2:
        raise UserError(f"--steps {config.steps}: two phases need at least 2 steps")
    if config.minutes is not None and not 0 < config.minutes < math.inf:
        raise UserError(f"--minutes {config.minutes}: give a time above 0")


def folder(config: Config) -> Path:
    """Of the run; quick ones are kept apart, so that they never stand in for a real one."""
    return config.runs / ("gan_upscale-quick" if config.quick else "gan_upscale")


def load(config: Config, device: torch.device) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """The nets that --weights names, and what is known of them."""
    newest = folder(config) / "weights.safetensors"
    usual = {"shipped": SHIPPED, "auto": newest if newest.exists() else SHIPPED}
    path = usual.get(config.weights, Path(config.weights))
    states, about = weights.load(path)
    try:
        size = int(about["channels"]), int(about["blocks"])
        nets = {"linear": LinearFilter(), "fidelity": Upscaler(*size), "gan": Upscaler(*size)}
        for name, net in nets.items():
            net.load_state_dict(states[name])
        print(f"Weights: {path}, trained on {about['data']}")
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError):
        raise UserError(f"--weights: {path} holds no weights of this script; name another file") from None
    for net in nets.values():
        net.to(device).to(memory_format=torch.channels_last).eval()
    return nets, about


def blend(fidelity: nn.Module, gan: nn.Module, share: float) -> nn.Module:
    """(1 - share) fidelity + share GAN, weight by weight (Wang et al. 2018, "ESRGAN", section 3.4)."""
    mixed = copy.deepcopy(fidelity)
    with torch.no_grad():
        for weight, other in zip(mixed.parameters(), gan.parameters(), strict=True):
            weight.lerp_(other, share)
    return mixed


def use(config: Config, device: torch.device) -> int:
    """Upscales the user's own pictures; returns the exit code."""
    if config.input is None or config.output is None:
        raise UserError("--input and --output go together; give both")
    if not 0 <= config.blend <= 1:
        raise UserError(f"--blend {config.blend}: give a number from 0, fidelity, to 1, GAN")
    nets, _ = load(config, device)
    net = blend(nets["fidelity"], nets["gan"], config.blend)
    return inference.enlarge_files(net, config.input, config.output, overwrite=config.overwrite)


def shown(data: photos.Photos, real: Tensor, trained_on: str) -> tuple[Tensor, str]:
    """Which pictures are shown, six that nobody chose, and the caption that says so."""
    first_line = data.note.partition("\n")[0]
    return (
        torch.linspace(0, len(real) - 1, min(6, len(real))).long(),
        f"Weights trained on {trained_on}. Test pictures, evenly spaced over the list. {first_line}".strip(),
    )


def draw(
    figs: Path, data: photos.Photos, small: Tensor, real: Tensor, made: dict[str, Tensor], trained_on: str
) -> None:
    """Rows of small, made, original: before and after training; and the stand-in for photos."""
    which, caption = shown(data, real, trained_on)
    for name, method, title in (
        ("initial", "linear filter", "Before training: the generator begins as the fitted linear filter"),
        ("final", "GAN", "After training: small picture, the GAN's, original"),
    ):
        figures.triples(
            figs / f"GAN_upscaling_{name}.png",
            small[which],
            made[method][which],
            real[which],
            title=title,
            caption=caption,
            headings=("64×64 input", f"{method} 224×224", "original 224×224"),
        )
    if data.builtin:
        page.grid(
            figs / "GAN_upscaling_standin.png",
            data.train.first(24).standard_pictures()[0],
            columns=8,
            title="The stand-in for photos: dead leaves",
            caption="Made by the program, for machines without photos.",
        )
    else:
        (figs / "GAN_upscaling_standin.png").unlink(missing_ok=True)  # of an earlier run


def draw_methods(
    figs: Path,
    data: photos.Photos,
    small: Tensor,
    real: Tensor,
    made: dict[str, Tensor],
    scores: dict[str, dict[str, float]],
    milliseconds: dict[str, float],
    trained_on: str,
    device: torch.device,
) -> None:
    """The middle of one picture by every method: of those shown, the one with the most detail."""
    which, caption = shown(data, real, trained_on)
    detail = [evaluation.fine_by_phase(real[i : i + 1] / 255).sum() for i in which]
    i = which[int(torch.stack(detail).argmax())]
    crops = {"input": small[i, :, 16:48, 16:48]}
    crops |= {name: pictures[i, :, 56:168, 56:168] for name, pictures in made.items()}
    crops["original"] = real[i, :, 56:168, 56:168]
    figures.methods(
        figs / "GAN_upscaling_methods.png",
        crops,
        scores,
        milliseconds,
        title=f"Every method: means over {len(real)} pictures, and the middle of one",
        caption=f"{caption} Shown: the one with the most detail.\nTimes: nets on {cli.device_name(device)}; "
        "nearest to Lanczos by Pillow, on one thread.",
    )


def main(config: Config) -> int:
    # Set up
    begun = time.monotonic()
    config.check()
    cli.seed_everything(config.seed)
    device = cli.pick_device(config.device)
    refuse_bad_flags(config)
    if config.input or config.output:
        return use(config, device)
    name = config.preset if config.preset != "auto" else "gpu" if device.type == "cuda" else "cpu"
    preset = PRESETS["quick" if config.quick else name]

    figs = config.figs
    if figs == Config.figs and (config.quick or config.evaluate):  # keep those of the last real run
        figs = figs / ("quick" if config.quick else "evaluate")
    for place in (figs, config.runs):
        check_writable(place)

    # Data
    data = photos.find(config.data, limit=12 if config.quick else 100, download=not config.quick)
    if config.quick:
        data = replace(data, train=data.train.first(64), watch=data.watch.first(8))
    print(f"Data: {data.name}; {len(data.train):,} pictures to train on, on {cli.device_name(device)}")
    if data.note:
        print(data.note)
    real, _ = data.test.standard_pictures()  # uint8 [N,3,224,224]
    small = photos.shrink(real)  # uint8 [N,3,64,64]

    # Train, or take what was trained
    history: list[dict[str, Any]] = []
    if config.evaluate:
        nets, about = load(config, device)
    else:
        watched, _ = data.watch.standard_pictures()  # uint8 [N,3,224,224]
        nets, about, run = train(config, preset, data, watched, device)
        history = run.history
        # a resumed run counts from its first start on
        begun = time.monotonic() - sum(phase["seconds"] for phase in about["phases"].values())

    # Evaluate beside the classical methods
    methods: dict[str, Callable[[Tensor], Tensor]] = {
        method: partial(evaluation.upscale_classical, method) for method in evaluation.CLASSICAL
    }
    for method, net in (("linear filter", "linear"), ("fidelity", "fidelity"), ("GAN", "gan")):
        methods[method] = partial(evaluation.upscale, nets[net])
    made = {name: method(small) for name, method in methods.items()}
    scores = {name: evaluation.score(made[name], real) for name in methods}
    milliseconds = {name: evaluation.milliseconds(method, small[:1]) for name, method in methods.items()}
    print(table(scores))
    if scores["fidelity"]["psnr"] <= scores["linear filter"]["psnr"]:
        print("The net is no better than the linear filter that it began as: it has learned nothing.")
    if not config.evaluate:
        about["scores"] = {"pictures": len(real), "fidelity": scores["fidelity"], "GAN": scores["GAN"]}
        weights.save(folder(config) / "weights.safetensors", nets, about)
        run.finish()

    # Figures
    draw(figs, data, small, real, made, about["data"])
    draw_methods(figs, data, small, real, made, scores, milliseconds, about["data"], device)
    if history:
        references = {
            name: evaluation.score(methods[name](photos.shrink(watched)), watched)
            for name in ("bicubic", "linear filter")
        }
        training_figures.balance(
            figs / "GAN_upscaling_training.png",
            history,
            title="The balance of the two players",
            caption=f"Trained on {data.name}; scored on {len(watched)} pictures kept out of training.",
            references=references,
        )
    parts = (data.train, data.watch, data.test)
    timed = {name: scores[name] | {"ms": milliseconds[name]} for name in methods}
    trained = {name: timed.pop(name) for name in ("fidelity", "GAN")}
    results.save(
        figs,
        "gan_upscale",
        config,
        data=data,
        count=len(real),
        metrics=trained,
        baselines=timed,
        seconds=time.monotonic() - begun,
        device=device,
        trained=about,
        skipped=sorted(Path(name).name for part in parts for name in part.skipped),
    )
    gan, cubic = scores["GAN"], scores["bicubic"]
    print(
        f"GAN: {gan['psnr']:.2f} dB PSNR, detail {gan['detail_db']:.1f} dB of the originals' (bicubic: "
        f"{cubic['psnr']:.2f} and {cubic['detail_db']:.1f}). Pictures: {figs}/GAN_upscaling_final.png"
    )
    return 0


if __name__ == "__main__":
    cli.launch(main, cli.read_flags(Config))
