"""Dead leaves: images that are generated, for training where there are no photos.

Random shapes of power-law sizes fall on each other, each with a colour, a shading and a pink-noise texture of
its own. Such images share with photos what upscaling has to learn: edges at every scale, occlusion, and the
power spectrum (about f^-2.5 for both). After Achddou, Gousseau and Ladjal, "Synthetic images as a regularity
prior for image restoration neural networks" (SSVM 2021).

One core generates some 75 a second: `python -m tests.bench_dead_leaves`.
"""

import numpy as np
from PIL import Image, ImageDraw

SIDE = 256  # pixels: as long as the shorter side of the photos that are scored
FINER = 2  # shapes are drawn at twice the size and averaged: their edges are as soft as a camera's
SHAPES = 600
GROUND = 60  # of the shapes: the large ones that fall first, so that nothing stays empty
CORNERS, OFTEN = (3, 4, 5, 24), (0.15, 0.3, 0.1, 0.45)  # 24 pass for an ellipse


def dead_leaves(seed: int) -> Image.Image:
    """One RGB image of 256x256 pixels; the same seed gives the same image."""
    random = np.random.default_rng(seed)
    shape = _fallen(random)  # [512,512], the number of the shape that lies on top

    # neighbours are often alike, and an image has its own brightness, contrast and cast
    grey = random.uniform(0.25, 0.75) + random.normal(0, random.uniform(0.1, 0.3), SHAPES)
    colour = grey[:, None] + random.normal(0, 0.06, (SHAPES, 3)) + random.normal(0, 0.06, 3)
    flat = (colour.clip(0.02, 0.98) * 255).astype(np.uint8)[shape]  # [512,512,3]
    image = np.asarray(Image.fromarray(flat).reduce(FINER)).astype(np.float32)  # [256,256,3]

    # texture and shading are faint: they need no softer edges, so one pixel in four tells the shape
    shape = shape[::FINER, ::FINER]  # [256,256]
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.int32)
    texture = _pink_noise(random)
    moved = random.integers(0, SIDE, (2, SHAPES), dtype=np.int32)
    light = random.exponential(20, SHAPES).astype(np.float32)[shape]
    light *= texture[(y + moved[0][shape]) % SIDE, (x + moved[1][shape]) % SIDE]
    slope = random.normal(0, 0.15, (2, SHAPES)).astype(np.float32)
    light += slope[0][shape] * (y - SIDE // 2) + slope[1][shape] * (x - SIDE // 2)
    image += light[..., None]
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def _fallen(random: np.random.Generator) -> np.ndarray:
    side = SIDE * FINER
    # a density of r^-3 gives every scale the same area, up to three times as wide as the image
    sizes = (60, 900, GROUND), (5, 300, SHAPES - GROUND)
    radius = np.concatenate([_power_law(random, *size) for size in sizes])
    centre = random.uniform(-0.1 * side, 1.1 * side, (SHAPES, 2))
    # half of the others fall in heaps: photos have busy and empty parts
    heap = random.uniform(0, side, (6, 2))[random.integers(0, 6, SHAPES)] + random.normal(0, 60, (SHAPES, 2))
    heaped = (np.arange(SHAPES) >= GROUND) & (random.random(SHAPES) < 0.5)
    centre = np.where(heaped[:, None], heap, centre)
    turn = np.exp(1j * random.uniform(0, 2 * np.pi, SHAPES))
    width = random.uniform(0.1, 1, SHAPES)  # of the length
    outlines = {}
    for n in CORNERS:
        angle = np.arange(n) * (2 * np.pi / n)
        # the plane of complex numbers: to multiply by `turn` is to turn
        points = (radius * turn)[:, None] * (np.cos(angle) + 1j * width[:, None] * np.sin(angle))
        outlines[n] = (np.stack([points.real, points.imag], -1) + centre[:, None]).reshape(SHAPES, 2 * n)

    canvas = Image.new("I", (side, side))
    draw = ImageDraw.Draw(canvas)
    for k, n in enumerate(random.choice(CORNERS, SHAPES, p=OFTEN)):
        draw.polygon(outlines[n][k].tolist(), fill=k)
    return np.asarray(canvas)


def _power_law(random: np.random.Generator, smallest: float, largest: float, count: int) -> np.ndarray:
    """Radii [count] with a density of r^-3."""
    return random.uniform(largest**-2, smallest**-2, count) ** -0.5


def _pink_noise(random: np.random.Generator) -> np.ndarray:
    """float32 [256,256], mean 0, deviation 1, amplitudes that fall as 1/f; it repeats without a seam."""
    f = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)).astype(np.float32)
    f[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(random.standard_normal((SIDE, SIDE), np.float32)) / f)
    return (noise / noise.std()).astype(np.float32)
