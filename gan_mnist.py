"""A GAN draws handwritten digits, and then writes with them.

    python gan_mnist.py                                      # the whole experiment, ten minutes on two cores
    python gan_mnist.py --quick                              # the same path in half a minute
    python gan_mnist.py --write "2026 11" --output note.png  # handwriting, with the weights that come along

A generator makes pictures of noise, a discriminator learns to tell them from real ones, and each is the
other's teacher. Nobody says how far from real the pictures are: so a judge does, a net that reads digits and
has never seen a drawn one. Its distance stands beside real digits, blurred ones and noise, and `--balance`
shows what becomes of it when one of the two players is made stronger or weaker.

Three ways lead to a character that was asked for: a net that is told which (`--method conditional`), a small
net for each character (`--method 1`), or one net that draws what it likes, and a reader that picks
(`--method 2`). Expect with the default: FID-MNIST 0.2 where real digits have 0.1 and blurred ones 11, recall
0.8 of 0.9, and 99.9 % read as asked.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, results
from common.cli import UserError
from common.datasets import mnist
from common.evaluation import mnist as evaluation
from common.figures import mnist as figures
from common.figures import training as training_figures
from common.files import check_writable
from common.inference import digit_uses
from common.inference import mnist as inference
from common.inference.mnist import Sampler
from common.models.mnist import Discriminator, Generator, Reader
from common.results import table
from common.studies import mnist as studies
from common.training import loop
from common.training.run import Run, checkpoint


@dataclass
class Config(cli.Flags):
    """Draw digits with a GAN: train it, score it, write with it."""

    data: str = "auto"
    """Digits: a folder with MNIST's or EMNIST's files, `emnist` (letters too, 560 MB), `builtin`, or auto:
    data/MNIST, else a download of 12 MB, else builtin."""
    figs: Path = Path("figs")
    """Where figures and gan_mnist.json go."""
    runs: Path = Path("runs")
    """Where checkpoints and trained weights go."""
    seed: int = 0
    """Of weights, batches and noise."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes the fastest there is."""
    resume: bool = False
    """Go on with the run that was stopped, exactly where it was."""
    quick: bool = False
    """The same path at its smallest, under half a minute; figures go to figs/quick, weights apart."""
    method: Literal["conditional", "1", "2"] = "conditional"
    """conditional: one net that is told the character; 1: a small net for each character; 2: one net over
    all characters, and a reader that picks."""
    unconditional: bool = False
    """The classic set-up, a net that is told nothing: the same as --method 2."""
    preset: Literal["auto", "cpu", "gpu"] = "auto"
    """Size of nets and batches; auto follows the device."""
    minutes: float | None = None
    """Training time of the GAN; becomes a fixed number of steps that is recorded."""
    steps: int | None = None
    """Training steps of the GAN, in place of minutes."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the training; auto takes bfloat16 where a probe finds it faster and exact enough."""
    sample: int | None = None
    """Draw so many digits, 0 to 9 in turn, into --output, and do nothing else."""
    write: str | None = None
    """Write this text into --output, a PNG, and do nothing else."""
    output: Path | None = None
    """Of --sample: .npz with `images` and `labels`, or .png; of --write: .png."""
    overwrite: bool = False
    """Replace an output file that exists."""
    ink: str = "black"
    """Colour of --write, by name or as #rrggbb."""
    paper: str = "transparent"
    """Background of --write: a colour, or transparent."""
    weights: str = "auto"
    """For --sample, --write and --evaluate: a .safetensors file, `shipped`, or auto: newest trained, else
    shipped."""
    evaluate: bool = False
    """Score weights that exist, without training; figures go to figs/evaluate."""
    balance: bool = False
    """Train small GANs in which one player is stronger or weaker, and draw where it collapses."""
    compare: bool = False
    """Compare the three methods, with the newest weights of each, and keep these in one file."""
    judge: bool = False
    """Train the judge anew, in place of the one that comes along."""


@dataclass(frozen=True)
class Preset:
    """What differs between machines and methods."""

    channels: int  # of the generator, of each of Method 1's
    critic: int  # channels of the discriminator
    batch: int  # pictures in a step; of each character with Method 1
    latent: int = 64  # numbers of noise
    learning_rate: float = 4e-3  # of both players
    every: tuple[int, int] = (1, 1)  # discriminator and generator take a step in each so many
    compares: bool = True  # whether the discriminator sees pictures side by side
    minutes: float | None = None
    steps: int | None = None


PRESETS = {
    "cpu": Preset(channels=32, critic=24, batch=24, learning_rate=2.5e-3, minutes=8),
    "gpu": Preset(channels=64, critic=48, batch=64, minutes=8),
    "quick": Preset(channels=24, critic=16, batch=16, steps=250),
}
SIDE_BY_SIDE = {  # for Method 1
    "cpu": Preset(channels=16, critic=12, batch=12, latent=32, minutes=8),
    "gpu": Preset(channels=24, critic=16, batch=32, latent=32, minutes=8),
    "quick": Preset(channels=8, critic=8, batch=8, latent=32, steps=120),
}
GRADIENT_PENALTY, PENALTY_EVERY = 0.1, 8
TELL_APART = 0.03
EMA = 0.998
SHIPPED = Path(__file__).parent / "data" / "pretrained" / "digits.safetensors"
JUDGE = SHIPPED.with_name("digits_judge.safetensors")
KEPT = 2_000  # characters of the training part, for the curves


# The losses. Pictures are [N,nets,28,28] in 0..1, scores [N,nets]; each loss is one number.


def relativistic_loss(better: Tensor, worse: Tensor) -> Tensor:
    """What should look more real must score higher than what should not: only the difference counts
    (Jolicoeur-Martineau 2019, "The relativistic discriminator", section 4)."""
    return F.softplus(worse - better).mean()


def gradient_penalty(discriminator: nn.Module, real: Tensor, label: Tensor | None) -> Tensor:
    """R1: around real pictures the score must be flat, else the two never come to rest (Mescheder et al.
    2018, "Which Training Methods for GANs do actually Converge?", section 4.1)."""
    with torch.autocast(real.device.type, enabled=False):  # a gradient of a gradient needs the digits
        real = real.detach().requires_grad_(True)
        scores, _ = judged(discriminator, real, label)
        (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
        return slope.square().sum((2, 3)).mean() / 2


def judged(discriminator: nn.Module, pictures: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """How real the pictures are, as what they should be: [N,nets]; and how well each class would fit."""
    scores, match = discriminator(pictures)
    if label is None:
        return scores, match
    return scores + match.gather(1, label[:, None]), match


def discriminator_losses(
    discriminator: nn.Module, real: Tensor, made: Tensor, given: tuple[Tensor, ...], step: int
) -> tuple[loop.Losses, Tensor, Tensor]:
    """The critic; also returns its scores, centred, since only differences mean something."""
    label = given[1] if len(given) > 1 else None
    scores_real, match = judged(discriminator, real, label)
    scores_made, _ = judged(discriminator, made, label)
    losses = {"judge": relativistic_loss(scores_real, scores_made)}
    if label is not None and match is not None:
        # without it the net is less strict about the class than about the looks
        losses["tell apart"] = TELL_APART * F.cross_entropy(match, label)
    if step % PENALTY_EVERY == 0:  # seldom, but as many times stronger (Karras et al. 2020, section 2.3)
        weight = GRADIENT_PENALTY * PENALTY_EVERY
        losses["penalty"] = weight * gradient_penalty(discriminator, real, label)
    return losses, scores_real - scores_made.mean(), scores_made - scores_real.mean()


def generator_losses(
    discriminator: nn.Module, real: Tensor, made: Tensor, given: tuple[Tensor, ...], step: int
) -> loop.Losses:
    """The painter: what it makes must score higher than what is real."""
    label = given[1] if len(given) > 1 else None
    with torch.no_grad():
        scores_real, _ = judged(discriminator, real, label)
    scores_made, _ = judged(discriminator, made, label)
    return {"fool": relativistic_loss(scores_made, scores_real)}


def cosine(progress: float) -> float:
    """Half a cosine down to a tenth (Loshchilov and Hutter 2017, SGDR)."""
    return 0.55 + 0.45 * math.cos(math.pi * progress)


def batches(data: mnist.Digits, method: str, preset: Preset, seed: int) -> loop.Batches:
    """Noise, with labels if the net is told them, and real pictures: ((noise, label), real).

    With Method 1 a real "picture" is one of each character, [N,characters,28,28].
    """
    classes = [(data.train_labels == k).nonzero()[:, 0] for k in range(len(data.characters))]
    fewest = min(len(members) for members in classes)
    if fewest < 2:
        raise UserError(f"--data: a character has {fewest} pictures to learn from; take larger data")

    def start(first: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        step, size = first, preset.batch
        per_epoch = max(1, len(data.train) // size)
        while True:
            rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
            if method == "1":
                chosen = [of[torch.randint(len(of), (size,), generator=rng)] for of in classes]
                real = data.train[torch.stack(chosen, 1)]  # [N,characters,28,28]
            else:
                if step == first or step % per_epoch == 0:
                    shuffled = torch.Generator().manual_seed(seed * 1_000_003 + step // per_epoch)
                    order = torch.randperm(len(data.train), generator=shuffled)
                at = step % per_epoch * size
                index = order[at : at + size]
                real = data.train[index][:, None]  # [N,1,28,28]
            noise = torch.randn(len(real), real.shape[1], preset.latent, generator=rng)
            label = (data.train_labels[index],) if method == "conditional" else ()
            yield (noise, *label), real.float() / 255
            step += 1

    return start


# Reading, for the judge and for Method 2's picker.


def train_reader(run: Run, phase: str, reader: Reader, data: mnist.Digits, epochs: int, seed: int) -> Reader:
    """Trains `reader` to name the characters of the training part."""
    size = min(100, len(data.train))
    per_epoch = len(data.train) // size

    def pairs(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        step = first
        while True:
            rng = torch.Generator().manual_seed(seed * 1_000_003 + step // per_epoch)
            order = torch.randperm(len(data.train), generator=rng)
            for index in order.split(size)[step % per_epoch : per_epoch]:
                yield data.train[index][:, None].float() / 255, data.train_labels[index]
                step += 1

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor], progress: float) -> loop.Losses:
        pictures, labels = batch
        return {"reading": F.cross_entropy(net(pictures), labels)}

    trained = loop.supervised(
        run,
        phase,
        reader,
        torch.optim.AdamW(reader.parameters(), 4e-3, weight_decay=0.02),
        loss,
        pairs,
        steps=epochs * per_epoch,
        schedule=lambda progress: (
            min(1.0, progress / 0.2 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * progress))
        ),
        ema=0.98,
    )
    assert isinstance(trained, Reader)
    return trained


def judge_stopped(config: Config) -> bool:
    """Whether the run to go on with was stopped while its judge learned."""
    return config.resume and checkpoint(config.runs / "gan_mnist-judge").exists()


def find_judge(config: Config, data: mnist.Digits, device: torch.device) -> Reader:
    """The judge that has learned from these characters: one trained before, the one that comes along, or a
    new one."""
    place = config.runs / "gan_mnist-judge"
    kept = place / "judge.safetensors"
    learned = data.fingerprint()[:16]
    stopped = judge_stopped(config)
    if not config.judge or (config.resume and not stopped):
        for path in (kept, JUDGE):
            if path.exists():
                reader, about = inference.load_reader(path)
                if about.get("fingerprint") == learned:
                    print(f"Judge: {path}, trained on {about['data']}, reads {about['accuracy']:.2%} rightly")
                    return reader.to(device)
    print(f"Judge: trained now, on {data.name}")
    learn, _ = set_aside(data)
    epochs = 5 if len(learn.train) > 10_000 else 10
    settings = {"fingerprint": learned, "epochs": epochs}
    run = Run(place, settings=settings, device=device, resume=stopped, precision="float32")
    torch.manual_seed(1)  # the same judge whatever the seed of what it judges
    reader = Reader(16, 64, len(data.characters)).to(device)
    train_reader(run, "judge", reader, learn, epochs, seed=1)
    reader.normalise(learn.train[:5_000])
    accuracy = evaluation.Judge(reader.read, data.test, data.test_labels).accuracy
    about = {"fingerprint": learned, "data": data.name, "accuracy": accuracy, "epochs": epochs}
    source = {"command": cli.command(), "commit": cli.commit()}
    inference.save_reader(kept, reader, about | source)
    run.path.unlink()  # a checkpoint is there only while its training was stopped
    print(f"Judge: reads {accuracy:.2%} of {len(data.test):,} test characters rightly")
    return reader


# The experiment.


def train(
    config: Config, preset: Preset, data: mnist.Digits, watcher: evaluation.Judge, device: torch.device
) -> tuple[Sampler, Run, figures.Film]:
    """Trains what --method names; returns the sampler, the run, and what was drawn on the way.

    Args:
        watcher: of `watch`.
    """
    asked = {name: getattr(config, name) for name in ("method", "seed", "minutes", "steps", "precision")}
    place = digit_uses.folder(config, config.method)
    run = Run(
        place,
        settings={"data": data.name, "digits": data.fingerprint()[:16]} | asdict(preset) | asked,
        device=device,
        resume=config.resume,
        precision=config.precision if config.precision != "auto" or not config.quick else "float32",
    )
    learn, _ = set_aside(data)
    film = figures.Film(place / "film", resume=config.resume)
    labels = torch.arange(len(watcher.labels)) % len(data.characters)

    # Model
    torch.manual_seed(config.seed)
    count = len(data.characters)
    classes, nets = count if config.method == "conditional" else 0, count if config.method == "1" else 1
    generator = Generator(preset.latent, preset.channels, classes, nets)
    discriminator = Discriminator(preset.critic, classes, nets, preset.compares)
    for net in (generator, discriminator):
        net.to(device).to(memory_format=torch.channels_last)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Generator)
        sampler, rng = Sampler(config.method, model, data.characters), torch.Generator().manual_seed(1)
        film.add(run, figures.sheet(sampler, rows=10, seed=2))
        if config.method == "2":
            return watcher.score(sampler.anything(len(labels), rng))
        return watcher.score(sampler.draw(labels, rng)[0], labels)

    steps, minutes = config.steps, config.minutes
    if steps is None and minutes is None:
        steps, minutes = preset.steps, preset.minutes

    def adam(net: nn.Module) -> torch.optim.Adam:
        """Without momentum: the other player's next move changes the way."""
        return torch.optim.Adam(net.parameters(), preset.learning_rate, betas=(0.0, 0.99), fused=True)

    # Train
    trained = loop.adversarial(
        run,
        "gan",
        generator,
        discriminator,
        (adam(generator), adam(discriminator)),
        generator_losses,
        discriminator_losses,
        batches(learn, config.method, preset, config.seed),
        steps=steps,
        minutes=minutes,
        schedule=cosine,
        ema=EMA,
        d_every=preset.every[0],
        g_every=preset.every[1],
        evaluate=evaluate,
        evaluations=4 if config.quick else 24,
    )
    assert isinstance(trained, Generator)

    # Method 2 also needs one who picks; it is not the judge
    picker = None
    if config.method == "2":
        epochs = 1 if len(learn.train) > 10_000 else 20
        picker = train_reader(run, "picker", Reader(8, 32, count).to(device), learn, epochs, config.seed + 2)
    about = {
        "data": data.name,
        "phases": run.record,
        "command": cli.command(),
        "commit": cli.commit(),
        "device": cli.device_name(device),
    }
    return Sampler(config.method, trained, data.characters, picker, about), run, film


def set_aside(data: mnist.Digits) -> tuple[mnist.Digits, mnist.Digits]:
    """The training part without its last characters, and these, for the curves during training."""
    kept = min(KEPT, len(data.train) // 5)
    learn = replace(data, train=data.train[:-kept], train_labels=data.train_labels[:-kept])
    return learn, replace(data, train=data.train[-kept:], train_labels=data.train_labels[-kept:])


def watch(data: mnist.Digits, reader: Reader) -> evaluation.Judge:
    """The judge of the curves: it compares with characters that were set aside."""
    _, kept = set_aside(data)
    return evaluation.Judge(reader.read, kept.train, kept.train_labels)


def main(config: Config) -> int:
    # Set up
    begun = time.monotonic()
    config.check()
    cli.seed_everything(config.seed)
    device = cli.pick_device(config.device)
    digit_uses.refuse_bad_flags(config)
    if config.unconditional:
        config = replace(config, method="2")
    if config.sample is not None or config.write is not None:
        return digit_uses.use(config, SHIPPED, device)
    figs = config.figs
    if figs == Config.figs and (config.quick or config.evaluate):  # keep those of the last real run
        figs = figs / ("quick" if config.quick else "evaluate")
    for place in (figs, config.runs):
        check_writable(place)
    size = config.preset if config.preset != "auto" else "gpu" if device.type == "cuda" else "cpu"
    preset = (SIDE_BY_SIDE if config.method == "1" else PRESETS)["quick" if config.quick else size]

    # Data, and who judges
    data = mnist.find(config.data, download=not config.quick)
    if config.quick:
        data = replace(data, test=data.test[:1_000], test_labels=data.test_labels[:1_000])
    print(f"Data: {data.name}; {len(data.train):,} characters to train on, on {cli.device_name(device)}")
    if data.note:
        print(data.note)
    stopped = judge_stopped(config)
    reader = find_judge(config, data, device)
    if stopped and not judge_stopped(config):  # it was stopped before the GAN began
        config = replace(config, resume=False)
    judge = evaluation.Judge(reader.read, data.test, data.test_labels)
    if config.balance:
        watcher = watch(data, reader)

        def player(config: Config, preset: Preset) -> tuple[Sampler, Run]:
            return train(config, preset, data, watcher, device)[:2]

        return studies.balance(config, preset, data, judge, player, figs)

    def load(method: str) -> Sampler:
        return digit_uses.load(config, SHIPPED, method, device, data)

    if config.compare:
        return studies.compare(config, data, judge, load, figs)

    # Train, or take what was trained
    if config.evaluate:
        sampler, history = load(config.method), []
    else:
        watcher = watch(data, reader)
        sampler, run, film = train(config, preset, data, watcher, device)
        history = run.history
        inference.save(digit_uses.folder(config, config.method) / "weights.safetensors", [sampler])
        # a resumed run counts from its first start on
        begun = time.monotonic() - sum(phase["seconds"] for phase in run.record.values())

    # Evaluate beside real characters, blurred ones and noise
    rng = torch.Generator().manual_seed(config.seed)
    labels = torch.arange(len(data.test)) % len(data.characters)
    drawing_began = time.monotonic()
    made, cost = sampler.draw(labels, rng)
    rate = len(made) / (time.monotonic() - drawing_began)
    scores = {"GAN": judge.score(made, labels)}
    if config.method == "2":
        scores = {"GAN, picked": scores["GAN"], "GAN": judge.score(sampler.anything(len(labels), rng))}
    baselines = evaluation.baselines(judge, data.train, data.train_labels, data.test, data.test_labels)
    print(table(evaluation.named(scores | baselines, data.name, gaps=True)))
    ratio = evaluation.copying(made[:1_000], data.test[:1_000], data.train)
    print(
        f"Nearest-neighbour ratio {ratio:.2f} (1: as new as real ones; near 0: copies); "
        f"{rate:,.0f} drawn a second"
    )
    if config.method == "2":
        print("Samples that one character cost: " + ", ".join(f"{of} {n:.0f}" for of, n in cost.items()))
    if not config.evaluate:
        sampler.about |= {"scores": scores, "test accuracy of the judge": judge.accuracy}
        inference.save(digit_uses.folder(config, config.method) / "weights.safetensors", [sampler])
        run.finish()

    # Figures
    name = "GAN_mnist" if config.method == "conditional" else f"GAN_mnist_method_{config.method}"
    caption = f"Trained on {sampler.about['data']}. {data.note.partition(chr(10))[0]}".strip()
    figures.samples(figs / f"{name}.png", sampler, caption, config.seed)
    figures.styles(figs / f"{name}_styles.png", sampler, caption, config.seed)
    figures.neighbours(figs / f"{name}_neighbours.png", made, labels, data, caption)
    if history:
        steps = [row["step"] for row in history if "distance" in row]
        # a distance hangs on how many are compared: as many real ones, of those that it does not compare with
        known = {"real": watcher.score(data.train[: len(watcher.labels)])}
        history = [row for row in history if row["phase"] == "gan"]  # not the picker's
        figures.animation(figs / f"{name}_training.gif", film, steps, len(data.characters))
        training_figures.balance(
            figs / f"{name}_training.png",
            history,
            title="The balance of the two players",
            caption=f"{caption} Scored on characters kept out of training, by the judge.",
            references=known,
            watched=figures.WATCHED,
        )
    results.save(
        figs,
        "gan_mnist" if config.method == "conditional" else f"gan_mnist_method_{config.method}",
        config,
        data=data,
        count=len(data.test),
        metrics=evaluation.named(scores, data.name),
        baselines=evaluation.named(baselines, data.name),
        seconds=time.monotonic() - begun,
        device=device,
        trained=sampler.about,
        judge_accuracy=judge.accuracy,
        nearest_neighbour_ratio=ratio,
        drawn_per_second=rate,
        samples_per_character=cost,
    )
    best, real, noise = (rows["distance"] for rows in (scores["GAN"], baselines["real"], baselines["noise"]))
    if best > noise / 2:
        print("The GAN draws hardly better than noise: it has learned nothing.")
    print(
        f"GAN: FID-{data.name.split()[0]} {best:.2f} (real {real:.2f}, noise {noise:.0f}), recall "
        f"{scores['GAN']['recall']:.2f}. Pictures: {figs}/{name}.png"
    )
    return 0


if __name__ == "__main__":
    cli.launch(main, cli.read_flags(Config))
