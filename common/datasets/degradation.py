"""How small images are made from large ones: one function for the images that are scored, one for training.

Programs differ in the kernel by which they make a photo small, and a net that has seen one alone is lost with
the others: so training draws the kernel anew for every image. An image that is made small is always 8-bit.
"""

import io
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from common.datasets.images import to_float, to_uint8

KERNELS = ("bilinear", "bicubic")
"""By which the images that are scored are made small: torchvision's default, and the field's usual one."""
DRAWN = ("bilinear", "bicubic", "lanczos", "area")
SHARES = (0.5, 0.15, 0.1, 0.05)  # of each alone; what is left to 1 are blends of all four


def lr_side(side: int) -> int:
    """What a side of `side` pixels, a multiple of 7, becomes."""
    return side * 2 // 7


def downscale(hr: Tensor, kernel: str = "bilinear") -> Tensor:
    """The low-resolution version by torchvision's resize, antialiased, uint8 like `hr`.

    uint8 [N,3,h,w] or [3,h,w], both sides multiples of 7, becomes [N,3,h*2/7,w*2/7] or [3,h*2/7,w*2/7].
    Three times as fast on channels-last memory, which batches have, as on contiguous; same result.
    """
    height, width = hr.shape[-2:]
    if hr.dtype != torch.uint8 or height % 7 or width % 7:
        raise ValueError(f"downscale takes uint8, sides in multiples of 7, not {hr.dtype} {height}x{width}")
    return TF.resize(hr, [lr_side(height), lr_side(width)], InterpolationMode(kernel), antialias=True)


def draw_kernels(rng: np.random.Generator, count: int, side: int) -> Tensor:
    """A kernel for each of `count` square images, as the matrix that makes their rows and columns small.

    Half are torchvision's bilinear; the others bicubic, Lanczos, area (the mean of what a pixel covers) or a
    blend of these; one in ten blurs first. Returns [count,2/7 side,side], whose rows have the sum 1.
    """
    shares = rng.dirichlet(np.ones(len(DRAWN)), count)  # [count,4]
    alone = rng.choice(len(DRAWN) + 1, count, p=(*SHARES, 1 - sum(SHARES)))
    shares[alone < len(DRAWN)] = np.eye(len(DRAWN))[alone[alone < len(DRAWN)]]
    kernels = torch.einsum("nk,kab->nab", torch.from_numpy(shares).float(), _basis(side))

    blurred = torch.from_numpy(rng.random(count) < 0.1)
    sigma = torch.from_numpy(rng.uniform(0.4, 1.6, count)).float()[blurred, None, None]  # large pixels
    distance = torch.arange(side)[:, None] - torch.arange(side)
    blur = torch.exp(-0.5 * (distance / sigma) ** 2)
    kernels[blurred] @= blur / blur.sum(2, keepdim=True)
    return kernels


@cache
def _basis(side: int) -> Tensor:
    """The matrices of `DRAWN`, [4,2/7 side,side]: the same in every step."""
    identity, size = torch.eye(side)[None, None], (lr_side(side), side)
    basis = [F.interpolate(identity, size, mode=name, antialias=name != "area")[0, 0] for name in DRAWN]
    return torch.stack(basis)


def shrink(hr: Tensor, kernels: Tensor) -> Tensor:
    """Makes square images small by the kernel of each: float [N,3,s,s] and [N,2/7 s,s] to [N,3,2/7 s,2/7 s].

    Unlike `downscale` it can be differentiated, and does not round.
    """
    kernels = kernels[:, None]  # [N,1,2/7 s,s]
    with torch.autocast(hr.device.type, enabled=False):
        return kernels @ hr.float() @ kernels.mT


def spoil(lr: Tensor, rng: np.random.Generator) -> Tensor:
    """What cameras and the web do to images, uint8 [N,3,h,w]: noise to a third, JPEG to a half of them.

    The noise has a deviation of up to 6 of 255 levels, the JPEGs have quality 70 to 95.
    """
    images = []
    for image in lr.permute(0, 2, 3, 1).numpy():  # [h,w,3]
        if rng.random() < 1 / 3:
            noise = rng.normal(0, rng.uniform(1, 6), image.shape)
            image = (image + noise).round().clip(0, 255).astype(np.uint8)
        if rng.random() < 0.5:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=int(rng.integers(70, 96)))
            image = np.asarray(Image.open(file))
        images.append(torch.from_numpy(np.array(image)))
    return torch.stack(images).permute(0, 3, 1, 2)


def draw_pairs(hr: Tensor, rng: np.random.Generator, kind: str = "classic") -> tuple[Tensor, Tensor]:
    """Small versions of square images to train on, uint8 [N,3,s,s], each by a kernel of its own.

    Args:
        kind: `classic`, or `wild`, where noise and JPEG spoil what was made small.

    Returns:
        lr, uint8 [N,3,2/7 s,2/7 s], and the kernels, [N,2/7 s,s].
    """
    kernels = draw_kernels(rng, len(hr), hr.shape[-1])
    lr = to_uint8(shrink(to_float(hr), kernels))
    return (spoil(lr, rng) if kind == "wild" else lr), kernels


def pairs(
    crops: Callable[[int], Iterator[Tensor]], seed: int, kind: str = "classic"
) -> Callable[[int], Iterator[tuple[tuple[Tensor], tuple[Tensor, Tensor]]]]:
    """Makes batches of images, `crops(first)` as of `photo_batches`, into what an upscaler is trained on.

    Returns:
        `start(first)`, without end: ((lr,), (hr, kernels)), floats, the images in 0..1; what a step has
        follows from the seed and the step alone.
    """

    def start(first: int) -> Iterator[tuple[tuple[Tensor], tuple[Tensor, Tensor]]]:
        for step, hr in enumerate(crops(first), first):
            lr, kernels = draw_pairs(hr, np.random.default_rng([seed, 2, step]), kind)
            yield (to_float(lr),), (to_float(hr), kernels)

    return start
