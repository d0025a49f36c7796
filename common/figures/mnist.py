"""The figures of gan_mnist.py: what was generated, how it came about, and whether it was copied."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from common.datasets.mnist import Digits
from common.evaluation import mnist as evaluation
from common.figures import page as look
from common.figures.page import BLUE, GREEN, GREY, MARGIN, ORANGE, few_ticks, grid, legend, new_page
from common.figures.training import training_curves
from common.files import atomic_write
from common.inference.mnist import Sampler, tiled
from common.results import Scores
from common.training.run import Run

VALIDATION = {
    "distance": "Fréchet distance to real ones, by the evaluator (lower is nearer)",
    "recall": "Recall: share of real ones that could have been generated",
    "min_class_share": "Class coverage: share of the class that is generated least",
}


class Progress:
    """What the validation part shows while a GAN trains: scores, and samples of the same noise at each
    evaluation; they are files, so that they outlive stops.

    Args:
        split: whose test part is for validation.
        evaluator: that of the test part.
    """

    def __init__(self, run: Run, split: Digits, evaluator: evaluation.Evaluator, method: str) -> None:
        self.run, self.method, self.characters = run, method, split.characters
        self.evaluator = evaluation.Evaluator(evaluator.predict, split.test, split.test_labels)
        self.folder = run.path.parent / "film"
        if not run.history:  # it does not go on
            for old in self.folder.glob("*.png"):
                old.unlink()

    def validate(self, generator: Any) -> dict[str, float]:
        """Scores a generator, and adds ten rows of samples, a column for each character, to the film."""
        sampler = Sampler(self.method, generator, self.characters)
        columns, count = len(self.characters), len(self.evaluator.labels)

        def sample(count: int, seed: int) -> tuple[Tensor, Tensor | None]:
            rng, labels = torch.Generator().manual_seed(seed), torch.arange(count) % columns
            if self.method == "2":
                return sampler.sample_unconditional(count, rng), None
            return sampler.sample(labels, rng)[0], labels

        number = sum("distance" in row for row in self.run.history)
        with atomic_write(self.folder / f"{number:04}.png") as temporary:
            Image.fromarray(tiled(sample(10 * columns, seed=2)[0], columns)).save(temporary)
        return self.evaluator.score(*sample(count, seed=1))

    def seconds(self) -> float:
        """How long the run's phases took, those before a stop too."""
        return sum(phase["seconds"] for phase in self.run.record.values())

    def save_film(self, path: Path) -> None:
        """Writes the samples as an animated GIF."""
        font, frames = ImageFont.load_default(20), []
        steps = [row["step"] for row in self.run.history if "distance" in row]
        for file, step in zip(sorted(self.folder.glob("[0-9]*.png")), steps, strict=False):
            with Image.open(file) as image:
                large = Image.fromarray(255 - np.asarray(image)).resize((2 * image.width, 2 * image.height))
            frame = Image.new("L", (large.width + 16, large.height + 48), 255)
            frame.paste(large, (8, 40))
            ImageDraw.Draw(frame).text((8, 8), f"step {step:,}", fill=0, font=font)
            frames.append(frame.quantize(16))
        times = [350] * (len(frames) - 1) + [2_500]
        with atomic_write(path) as temporary:
            frames[0].save(
                temporary, save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True
            )

    def save_curves(self, path: Path, data: Digits, caption: str) -> None:
        """Draws the whole training, beside as many real characters as the validation part has: a distance
        depends on how many are compared."""
        training_curves(
            path,
            [row for row in self.run.history if row["phase"] == "gan"],  # not Method 2's classifier
            title="The balance of the two players",
            caption=f"{caption} Scored on validation characters, by the evaluator.",
            references={"real": self.evaluator.score(data.train[: len(self.evaluator.labels)])},
            metrics=VALIDATION,
        )


def save_all(
    figs: Path,
    script: str,
    sampler: Sampler,
    fake: Tensor,
    labels: Tensor,
    data: Digits,
    seed: int,
    progress: Progress | None,
) -> Path:
    """Writes all figures of a run, those of the training only after one; returns the first one's path.

    Args:
        fake, labels: what was sampled for the scores, uint8 [N,28,28] and int64 [N].
    """
    name = script.replace("gan", "GAN")
    caption = f"Trained on {sampler.about['data']}. {data.note.partition(chr(10))[0]}".strip()
    samples(figs / f"{name}.png", sampler, caption, seed)
    styles(figs / f"{name}_styles.png", sampler, caption, seed)
    neighbours(figs / f"{name}_neighbours.png", fake, labels, data, caption)
    if progress:
        progress.save_film(figs / f"{name}_training.gif")
        progress.save_curves(figs / f"{name}_training.png", data, caption)
    return figs / f"{name}.png"


def samples(path: Path, sampler: Sampler, caption: str, seed: int) -> None:
    """A column for each character."""
    count = len(sampler.characters)
    images, _ = sampler.sample(torch.arange(10 * count) % count, torch.Generator().manual_seed(seed))
    caption = f"{caption} Noise of seed {seed}: nothing was selected by hand."
    title = "Generated by the GAN, a column for each character"
    grid(path, _on_white(images), columns=count, title=title, caption=caption)


def styles(path: Path, sampler: Sampler, caption: str, seed: int, steps: int = 12) -> None:
    """From one style to another, each character by the same way.

    Noise is turned, not mixed: halfway between two vectors of noise it would be too short (White 2016,
    "Sampling Generative Networks", section 2.1).
    """
    rng = torch.Generator().manual_seed(seed)
    angle = torch.linspace(0, torch.pi / 2, steps)[:, None]  # [steps,1]
    images = []
    for label in range(min(10, len(sampler.characters))):
        start, end = torch.randn(2, sampler.generator.latent, generator=rng)
        images.append(sampler.interpolate(start * angle.cos() + end * angle.sin(), label))
    what = "each row one net's noise" if sampler.method == "2" else "each row a character"
    caption = f"{caption} Noise of seed {seed} is turned in even steps, {what}."
    grid(
        path, _on_white(torch.cat(images)), columns=steps, title="From one style to another", caption=caption
    )


def neighbours(path: Path, fake: Tensor, labels: Tensor, data: Digits, caption: str, rows: int = 6) -> None:
    """Generated characters, and beside each the training character that is nearest, pixel by pixel."""
    index = torch.cat([(labels == k).nonzero()[:rows, 0] for k in range(len(data.characters))][:10])
    _, nearest = evaluation.nearest(fake[index], data.train)
    pairs = _on_white(torch.cat([fake[index], data.train[nearest]], 2))  # [10*rows,3,28,56]
    title = "Does it copy? Left generated, right the nearest training character"
    grid(path, pairs, columns=rows, title=title, caption=caption)


def _on_white(images: Tensor) -> Tensor:
    """uint8 [N,h,w], 255 for ink, to [N,3,h,w], black on white."""
    return (255 - images)[:, None].expand(-1, 3, -1, -1)


# ------------------------------------------------------------------------------------------- the studies


def balance(path: Path, rows: list[dict[str, Any]], real: dict[str, float], caption: str) -> None:
    """Where the balance is lost: scores against the discriminator's strength, and samples of each GAN.

    Args:
        rows: of each GAN `ways` (`width`, `steps` or another), `strength`, `name`, `distance`,
            `recall`, `real`, `fake`, and `images`, uint8 [N,28,28].
        real: scores of real digits.
    """
    chart, row_height = 330, 2 * 28 + 34
    title = "Where the balance of the two players is lost"
    with new_page(path, look.WIDTH, chart + 20 + len(rows) * row_height, title, caption) as page:
        distance, recall = page.charts(0, chart).subplots(1, 2)
        distance.set_title("Distance to real digits (lower is nearer)")
        distance.set_yscale("log")
        few_ticks(distance.yaxis)
        recall.set_title("Recall (higher is more varied)")
        recall.set_ylim(0, 1)
        lines = (
            ("width", "o-", BLUE, "by its width"),
            ("steps", "o-", ORANGE, "by its share of the steps,\nwhich are more in all"),
            ("minibatch_std", "X", "black", "without minibatch\nstandard deviation"),
        )
        for axes, metric in ((distance, "distance"), (recall, "recall")):
            for way, style, colour, label in lines:
                points = sorted((row["strength"], row[metric]) for row in rows if way in row["ways"])
                if points:
                    axes.plot(*zip(*points, strict=True), style, color=colour, label=label)
            axes.axhline(real[metric], color=GREY, linestyle="--", label="real digits")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel("strength of the discriminator")
        legend(recall)
        for i, row in enumerate(rows):
            facts = (
                f"distance {row['distance']:.1f}, recall {row['recall']:.2f}; discriminator right about "
                f"{row['real']:.0%} of real, {row['fake']:.0%} of fake"
            )
            _strip(page, chart + 20 + i * row_height, row["name"], 470, facts, row["images"])


def compare(
    path: Path,
    images: dict[str, Tensor],
    scores: Scores,
    distances: dict[str, list[float]],
    characters: str,
    caption: str,
) -> None:
    """What each method writes, its scores beside, and how near each character comes to real ones.

    Args:
        images: by method, uint8 [N,28,28].
        scores: by method, `class_accuracy`, `distance` and `recall`.
        distances: by method, and for real characters, the distance of each character.
    """
    row_height, chart = 110, 370
    title = "Three ways to write a character"
    with new_page(path, look.WIDTH, len(images) * row_height + chart, title, caption) as page:
        for i, (name, written) in enumerate(images.items()):
            facts = "class accuracy {class_accuracy:.1%}, distance {distance:.2f}, recall {recall:.2f}"
            _strip(page, i * row_height, name, 200, facts.format(**scores[name]), written)
        axes = page.charts(len(images) * row_height, chart).subplots()
        bars = pd.DataFrame(distances, index=list(characters))
        bars.plot.bar(ax=axes, width=0.8, rot=0, color=[BLUE, ORANGE, GREEN, GREY])
        axes.set_title("Distance of each character to real ones (lower is nearer)")
        legend(axes)


def _strip(page: look.Page, y: int, name: str, x: int, facts: str, images: Tensor) -> None:
    """A name, at `x` facts beside it, and up to 24 characters, uint8 [N,28,28], below."""
    page.text(MARGIN, y, name, weight="bold")
    page.text(MARGIN + x, y, facts, color="#444444")
    for k, image in enumerate(_on_white(images[:24])):
        page.image(MARGIN + k * 58, y + 26, image, 2)
