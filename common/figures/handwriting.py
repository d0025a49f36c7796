"""The figure of handwriting: a sentence by every method and in five hands, and a way from hand to hand."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.datasets.images import to_float
from common.figures import page as look
from common.figures.mnist import METHODS_EXPLAINED
from common.figures.page import GAP, LINE, MARGIN, new_page
from common.inference import handwriting
from common.inference.mnist import Sampler
from common.results import Scores

SENTENCE = "Pack my box with five dozen liquor jugs!"  # has every letter
HEIGHT, STYLES, STEPS = 88, 5, 16  # pixels of a line; hands; letters on the way from one to another
LETTER = "a"


def save(path: Path, samplers: dict[str, Sampler], scores: Scores, seed: int, caption: str) -> None:
    """Writes `SENTENCE` by each method, its scores beside it; by the first one also in other hands."""
    best = next(iter(samplers.values()))
    angle = torch.linspace(0, torch.pi / 2, STEPS)[:, None]
    start, end = (
        torch.randn(best.generator.latent, generator=torch.Generator().manual_seed(k)) for k in (0, 1)
    )
    way = handwriting.TRUNCATION * (angle.cos() * start + angle.sin() * end)  # turned, as long as before
    parts = []
    for name, sampler in samplers.items():
        accuracies = {of: value for of, value in scores[name].items() if of.endswith("class_accuracy")}
        facts = [f"{of.replace('_', ' ')} {value:.1%}" for of, value in accuracies.items()]
        facts += [
            "distance {distance:.2f}".format(**scores[name]),
            "recall {recall:.2f}".format(**scores[name]),
        ]
        parts.append((f"{name}: {', '.join(facts)}", [written(sampler, SENTENCE, 0, seed)]))
    parts.append(("Other hands (--style)", [written(best, SENTENCE, k, seed) for k in range(1, STYLES)]))
    letters = written(best, " ".join(LETTER * STEPS), 0, seed, way)
    parts.append((f"From hand 0 to hand 1, by the same letter {LETTER}", [letters]))
    caption += f" {METHODS_EXPLAINED} Merged: characters of one shape, as 0Oo, count as one."
    height = sum(LINE + sum(image.shape[1] + GAP for image in images) for _, images in parts)
    with new_page(path, look.WIDTH, height, "Handwriting that nobody has", caption) as page:
        y = 0
        for title, images in parts:
            page.text(MARGIN, y, title, weight="bold")
            y += LINE
            for image in images:
                page.image(MARGIN, y, image, 1)
                y += image.shape[1] + GAP


def written(sampler: Sampler, text: str, style: int, seed: int, way: Tensor | None = None) -> Tensor:
    """A text in one hand, or each of its characters of another noise, `way` [N,latent]: uint8 [3,h,w],
    with `GAP` rows above and below the ink."""
    rng = torch.Generator().manual_seed(seed)

    def generate(labels: Tensor, noise: Tensor) -> Tensor:
        return to_float(sampler.sample(labels, rng, noise if way is None else way)[0])

    size = {"width": look.WIDTH - 2 * MARGIN, "height": HEIGHT, "style": style, "seed": seed}
    page = handwriting.compose(text, sampler.characters, generate, sampler.generator.latent, **size)
    image = Image.open(io.BytesIO(handwriting.render(page, "png", ink="#1a2b6c", paper="white")))
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    rows = (pixels < 255).any(0).any(1).nonzero()
    return pixels[:, max(0, int(rows[0]) - GAP) : int(rows[-1]) + GAP]
