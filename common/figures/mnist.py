"""The figures of gan_mnist.py: what was drawn, how it came about, and whether it was copied."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from common.datasets.mnist import Digits
from common.evaluation import mnist as evaluation
from common.figures.page import BLUE, GREEN, GREY, MARGIN, ORANGE, WIDTH, few_ticks, grid, legend, new_page
from common.files import atomic_write
from common.inference.mnist import Sampler
from common.results import Scores
from common.training.run import Run

WATCHED = {
    "distance": "Fréchet distance to real ones, by the judge (lower is nearer)",
    "recall": "Recall: share of real ones that could have been drawn",
    "rarest": "Class coverage: share of the class that is drawn least",
}


class Film:
    """What was drawn of the same noise at each evaluation of a run; kept on disk, so that it outlives stops.

    Args:
        folder: of the run's pictures; emptied where a run begins anew.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder = folder
        if not resume:
            for old in folder.glob("*.png"):
                old.unlink()

    def add(self, run: Run, pictures: Tensor) -> None:
        """`pictures`, uint8 [N,28,28], of the evaluation that the run is at."""
        number = sum("distance" in row for row in run.history)
        with atomic_write(self.folder / f"{number:04}.png") as beside:
            Image.fromarray(pictures.flatten(0, 1).numpy()).save(beside)  # [28N,28]

    def pictures(self) -> list[Tensor]:
        """uint8 [N,28,28] for each evaluation."""
        found = []
        for path in sorted(self.folder.glob("[0-9]*.png")):
            with Image.open(path) as image:
                found.append(torch.from_numpy(np.array(image)).reshape(-1, 28, 28))
        return found


def sheet(sampler: Sampler, rows: int, seed: int) -> Tensor:
    """Characters in turn, each of its own noise, uint8 [rows*characters,28,28]; unpicked with Method 2."""
    count, rng = rows * len(sampler.characters), torch.Generator().manual_seed(seed)
    if sampler.method == "2":
        return sampler.anything(count, rng)
    return sampler.draw(torch.arange(count) % len(sampler.characters), rng)[0]


def samples(path: Path, sampler: Sampler, caption: str, seed: int) -> None:
    """A column for each character."""
    labels = torch.arange(10 * len(sampler.characters)) % len(sampler.characters)
    pictures, _ = sampler.draw(labels, torch.Generator().manual_seed(seed))
    grid(
        path,
        _on_white(pictures),
        columns=len(sampler.characters),
        title="Drawn by the GAN, a column for each character",
        caption=f"{caption} Noise of seed {seed}: nothing was picked by hand.",
    )


def styles(path: Path, sampler: Sampler, caption: str, seed: int, steps: int = 12) -> None:
    """From one style to another, each character by the same way.

    Noise is turned, not mixed: halfway between two vectors of noise it would be too short (White 2016,
    "Sampling Generative Networks", section 2.1).
    """
    rng = torch.Generator().manual_seed(seed)
    angle = torch.linspace(0, torch.pi / 2, steps)[:, None]  # [steps,1]
    pictures = []
    for number, _ in enumerate(sampler.characters[:10]):
        one, other = torch.randn(2, sampler.generator.latent, generator=rng)
        way = one * angle.cos() + other * angle.sin()  # [steps,latent]
        pictures.append(sampler.along(way, number))
    what = "each row one net's noise" if sampler.method == "2" else "each row a character"
    grid(
        path,
        _on_white(torch.cat(pictures)),
        columns=steps,
        title="From one style to another",
        caption=f"{caption} Noise of seed {seed} is turned in even steps, {what}.",
    )


def neighbours(path: Path, made: Tensor, labels: Tensor, data: Digits, caption: str, rows: int = 6) -> None:
    """Drawn characters, and beside each the training character that is nearest, pixel by pixel."""
    chosen = torch.cat([(labels == k).nonzero()[:rows, 0] for k in range(len(data.characters))][:10])
    _, index = evaluation.nearest(made[chosen], data.train)
    pairs = torch.stack([made[chosen], data.train[index]], 1)  # [10*rows,2,28,28]
    grid(
        path,
        _on_white(pairs.transpose(1, 2).flatten(2)),
        columns=rows,
        title="Does it copy? Left drawn, right the nearest training character",
        caption=caption,
    )


def animation(path: Path, film: Film, steps: list[int], columns: int) -> None:
    """What was drawn of the same noise through training; `steps` of each picture."""
    frames = []
    font = ImageFont.load_default(20)
    for pictures, step in zip(film.pictures(), steps, strict=False):
        count = len(pictures) // columns * columns
        page = pictures[:count].unflatten(0, (-1, columns)).transpose(1, 2).flatten(0, 1).flatten(1)
        large = Image.fromarray(255 - page.numpy()).resize((56 * columns, 56 * count // columns))
        frame = Image.new("L", (large.width + 16, large.height + 48), 255)
        frame.paste(large, (8, 40))
        ImageDraw.Draw(frame).text((8, 8), f"step {step:,}", fill=0, font=font)
        frames.append(frame.quantize(16))
    last = [2_500 if i == len(frames) - 1 else 350 for i in range(len(frames))]
    with atomic_write(path) as beside:
        frames[0].save(beside, save_all=True, append_images=frames[1:], duration=last, loop=0, optimize=True)


def keep(path: Path, pictures: Tensor, labels: Tensor, columns: int) -> None:
    """Writes drawn characters, uint8 [N,28,28], as .npz with `images` and `labels`, or as one .png, white on
    black."""
    if path.suffix.lower() == ".npz":
        with path.open("wb") as file:  # to a name in capitals numpy would add its own .npz
            np.savez_compressed(file, images=pictures.numpy(), labels=labels.numpy())
    else:
        missing = -len(pictures) % columns
        full = torch.cat([pictures, pictures.new_zeros(missing, 28, 28)])
        page = full.unflatten(0, (-1, columns)).transpose(1, 2).flatten(0, 1).flatten(1)  # [28R,28C]
        Image.fromarray(page.numpy()).save(path)


def _on_white(pictures: Tensor) -> Tensor:
    """uint8 [N,h,w], 255 for ink, to [N,3,h,w], black on white."""
    return (255 - pictures)[:, None].expand(-1, 3, -1, -1)


def balance(
    path: Path,
    rows: list[dict[str, Any]],
    references: Scores,
    *,
    title: str,
    caption: str,
    columns: int,
) -> None:
    """Where it collapses: scores against the discriminator's strength, and what each pair of players drew.

    Args:
        rows: of each GAN `way` (`width`, `steps` or another), `factor` of its strength, `name`, `distance`,
            `recall`, `real`, `made`, and `pictures`, uint8 [N,28,28] with N at least twice `columns`.
        references: by name, scores of real digits and others.
        columns: characters; each row shows each of them twice.
    """
    chart, tall = 330, 2 * 28 + 34
    shown = min(2 * columns, 24)
    with new_page(path, WIDTH, chart + 80 + len(rows) * tall, title, caption) as page:
        # Scores against strength
        for i, (metric, heading) in enumerate(
            [
                ("distance", "Distance to real digits (lower is nearer)"),
                ("recall", "Recall (higher is more varied)"),
            ]
        ):
            axes = page.axes(75 + i * 690, 40, 570, chart - 90)
            axes.set_title(heading, loc="left", fontsize="medium")
            for way, label, colour in (
                ("width", "by its width", BLUE),
                ("steps", "by its share of the steps, which are more in all", ORANGE),
            ):
                middle = [row for row in rows if row["factor"] == 1 and row["way"] == "width"]
                line = [row for row in rows if row["way"] == way] + (middle if way == "steps" else [])
                line.sort(key=lambda row: row["factor"])
                if line:
                    axes.plot(
                        [row["factor"] for row in line],
                        [row[metric] for row in line],
                        "o-",
                        color=colour,
                        label=label,
                    )
            without = [row for row in rows if row["way"] == "eye"]
            if without:
                axes.plot(
                    [1],
                    [without[0][metric]],
                    "X",
                    color="black",
                    markersize=10,
                    label="sees single pictures only",
                )
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel("strength of the discriminator")
            if metric == "distance":
                axes.set_yscale("log")
                few_ticks(axes.yaxis)
            else:
                axes.set_ylim(0, 1)
            axes.axhline(references["real"][metric], color=GREY, linestyle="--", label="real digits")
        axes.legend(loc="upper left", bbox_to_anchor=(-1.21, -0.22), ncols=4, borderaxespad=0, frameon=False)

        # What each drew
        for i, row in enumerate(rows):
            y = chart + 70 + i * tall
            page.text(MARGIN, y, row["name"], weight="bold")
            facts = (
                f"distance {row['distance']:.1f}, recall {row['recall']:.2f}; discriminator right about "
                f"{row['real']:.0%} of real, {row['fake']:.0%} of made"
            )
            page.text(MARGIN + 470, y, facts, color="#444444")
            for k, picture in enumerate(_on_white(row["pictures"][:shown])):
                page.image(MARGIN + k * 58, y + 26, picture, 2)


def compare(
    path: Path,
    strips: dict[str, Tensor],
    scores: Scores,
    by_class: dict[str, list[float]],
    characters: str,
    *,
    title: str,
    caption: str,
) -> None:
    """What each method writes, its scores beside, and how near each character comes to real ones.

    Args:
        strips: by method, uint8 [N,28,28].
        scores: by method, `asked`, `distance` and `recall`.
        by_class: by method, and for real characters, the distance of each character.
    """
    tall, chart = 140, 330
    shown = min(len(next(iter(strips.values()))), 24)
    with new_page(path, WIDTH, len(strips) * tall + chart + 80, title, caption) as page:
        for i, (name, pictures) in enumerate(strips.items()):
            of = scores[name]
            page.text(MARGIN, i * tall, name, weight="bold")
            facts = (
                f"read as asked {of['asked']:.1%}, distance {of['distance']:.2f}, recall {of['recall']:.2f}"
            )
            page.text(MARGIN + 200, i * tall, facts, color="#444444")
            for k, picture in enumerate(_on_white(pictures[:shown])):
                page.image(MARGIN + k * 58, i * tall + 34, picture, 2)
        y = len(strips) * tall
        page.text(MARGIN, y, "Distance of each character to real ones (lower is nearer)", weight="bold")
        axes = page.axes(75, y + 40, WIDTH - 330, chart - 30)
        width = 0.8 / len(by_class)
        colours = (BLUE, ORANGE, GREEN, GREY)
        for i, ((name, distances), colour) in enumerate(zip(by_class.items(), colours, strict=False)):
            places = [k + (i - (len(by_class) - 1) / 2) * width for k in range(len(distances))]
            axes.bar(places, distances, 0.92 * width, color=colour, label=name)
        axes.set_xticks(range(len(characters)), list(characters))
        legend(axes)
