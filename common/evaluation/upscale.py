"""Scores of upscaled images, and the classical methods that stand beside every score."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from common.datasets.degradation import KERNELS, downscale, spoil
from common.datasets.images import to_float, to_uint8
from common.evaluation.lpips import Distance
from common.models.upscale import SelfEnsemble
from common.results import BICUBIC, Scores, format_number
from common.training import distributed

Method = Callable[[Tensor], Tensor]
"""From lr to upscaled images, both uint8."""
CLASSICAL = ("nearest", "bilinear", "bicubic", "Lanczos")
TRAINED = ("fidelity", "fidelity, self-ensemble", "GAN")
"""The methods that training makes; all others are what they must beat."""
SUFFIXES = dict(zip(KERNELS, ("", BICUBIC), strict=True))
"""By the kernel that made the input small: what the names of the scores then end in."""


def psnr(fake: Tensor, hr: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB; images [N,3,h,w] in 0..1, returns [N]."""
    return -10 * torch.log10((fake - hr).square().mean((1, 2, 3)).clamp_min(1e-10))


def finest_detail(images: Tensor) -> Tensor:
    """What each pixel differs by from the mean of the 3x3 around it; [N,3,h,w], as it returns."""
    return images - F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)


def detail_by_position(finest: Tensor) -> Tensor:
    """Energy by the position in the 7x7 block, of what `finest_detail` gives, [N,3,h,w]; returns [7,7]."""
    energy = finest.square().mean((0, 1))  # [h,w]
    return energy.unflatten(0, (-1, 7)).unflatten(2, (-1, 7)).mean((0, 2))


def repeated_detail(finest: Tensor) -> Tensor:
    """Share of the energy that is the same in all 7x7 blocks of an image: in the mean block.

    Of what `finest_detail` gives for images in 0..1, [N,3,h,w]; returns [N]; of noise, one over the number of
    blocks.
    """
    blocks = F.pixel_unshuffle(finest, 7)  # [N,147,h/7,w/7]
    energy = blocks.square().mean((1, 2, 3)) + 1e-6  # a flat image has none
    return blocks.mean((2, 3)).square().mean(1) / energy


def power_by_frequency(images: Tensor) -> Tensor:
    """Power of the grey images under a Hann window, in rings of 1/64 cycle a pixel; of [N,3,h,h]."""
    grey = images.mean(1)
    window = torch.hann_window(grey.shape[-1])
    centred = grey - grey.mean((1, 2), keepdim=True)
    power = torch.fft.fft2(centred * window[:, None] * window).abs().square().mean(0)  # [h,h]
    frequency = torch.fft.fftfreq(grey.shape[-1])
    ring = (torch.hypot(frequency[:, None], frequency) * 64).long().flatten()
    return torch.zeros(int(ring.max()) + 1).scatter_add(0, ring, power.flatten())


def score(
    fake8: Tensor, hr8: Tensor, kernel: str = "bilinear", lpips: Distance | None = None
) -> dict[str, float]:
    """How good upscaled images, uint8 [N,3,224,224], are, whose input `kernel` made small; by seven numbers.

    psnr: dB, higher is nearer to the original. lpips: how different both look, where it can be had; lower is
    better. ssim: structural similarity (Wang et al. 2004), up to 1. detail_db: power in the frequencies that
    64x64 cannot hold, in dB against the original's; 0 is as sharp as the original. checkerboard: finest
    details by row and column modulo 7, strongest over weakest; photos have about 1.1, a pattern of dots 10.
    repeated: percent of the finest details that are the same in all 7x7 blocks; photos have 0.1, rings 3.
    lr_psnr: PSNR of the output, downscaled again, against the input.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # seconds; not for --input

    fake, hr = to_float(fake8), to_float(hr8)
    # 64 of 224 pixels hold up to 64/448 cycles a pixel, so rings from 10 on are lost in them
    power = 10 * torch.log10(power_by_frequency(fake) / power_by_frequency(hr))
    finest = finest_detail(fake)
    detail = detail_by_position(finest)
    return {
        "psnr": psnr(fake, hr).mean().item(),
        **({"lpips": lpips(fake8, hr8).mean().item()} if lpips else {}),
        "ssim": structural_similarity_index_measure(fake, hr, data_range=1.0).item(),
        "detail_db": power[10:32].mean().item(),
        "checkerboard": (detail.max() / detail.min()).item(),
        "repeated": 100 * repeated_detail(finest).mean().item(),
        "lr_psnr": psnr(*(to_float(downscale(x, kernel)) for x in (fake8, hr8))).mean().item(),
    }


@torch.inference_mode()
def upscale(model: nn.Module, lr: Tensor, batch: int = 16) -> Tensor:
    """`lr` uint8 [N,3,h,w] through the model in float32; returns uint8 [N,3,3.5h,3.5w], on the CPU."""
    device = next(model.parameters()).device

    def upscaled(lr: Tensor) -> Tensor:
        return to_uint8(torch.cat([model(to_float(part.to(device))).cpu() for part in lr.split(batch)]))

    return distributed.in_shares(upscaled, lr)


def upscale_classical(method: str, lr: Tensor) -> Tensor:
    """By Pillow; `lr` uint8 [N,3,h,w], returns uint8 [N,3,3.5h,3.5w]."""
    size = (lr.shape[3] * 7 // 2, lr.shape[2] * 7 // 2)
    fakes = [TF.to_pil_image(image).resize(size, Image.Resampling[method.upper()]) for image in lr]
    return torch.stack([TF.pil_to_tensor(fake) for fake in fakes])


def methods(nets: dict[str, nn.Module]) -> dict[str, Method]:
    """Every method by name, the classical ones first."""
    of_nets = (nets["fidelity"], SelfEnsemble(nets["fidelity"]), nets["gan"])
    by_name = {"linear filter": nets["linear"], **dict(zip(TRAINED, of_nets, strict=True))}
    classical: dict[str, Method] = {name: partial(upscale_classical, name) for name in CLASSICAL}
    return classical | {name: partial(upscale, net) for name, net in by_name.items()}


def split(scores: Scores) -> tuple[Scores, Scores]:
    """The scores of what was trained, and of what it must beat."""
    trained = {name: values for name, values in scores.items() if name in TRAINED}
    return trained, {name: values for name, values in scores.items() if name not in trained}


def compare(
    methods: dict[str, Method], hr: Tensor, lpips: Distance | None
) -> tuple[dict[str, Tensor], Scores]:
    """Makes `hr`, uint8 [N,3,224,224], small by each kernel and large again by every method.

    Returns:
        by method, the upscaled images of bilinear's; and the scores of both: those of bicubic's end in
        `_bicubic`, `lpips` is None where it cannot be had, and `ms` is the median for one image.
    """
    fakes: dict[str, Tensor] = {}
    scores: Scores = {name: {} for name in methods}
    for kernel, suffix in SUFFIXES.items():
        lr = downscale(hr, kernel)
        for name, method in methods.items():
            fake = method(lr)
            of = {"psnr": None, "lpips": None} | score(fake, hr, kernel, lpips)
            scores[name] |= {metric + suffix: value for metric, value in of.items()}
            fakes.setdefault(name, fake)
    for name, method in methods.items():
        times = []
        for _ in range(12):
            start = time.perf_counter()
            method(lr[:1])
            times.append(time.perf_counter() - start)
        scores[name]["ms"] = 1000 * sorted(times[2:])[5]  # the first ones are slower
    return fakes, scores


def score_spoiled(method: Method, hr: Tensor, lpips: Distance | None) -> dict[str, float]:
    """`score` where cameras and the web had the small images between; the same noise and JPEG for all."""
    lr = spoil(downscale(hr), np.random.default_rng(0))
    return score(method(lr), hr, lpips=lpips)


def nothing_learned(scores: Scores) -> list[str]:
    """A line for each kernel on whose images the fidelity net is no better than what it began as."""
    line = "On {} LR the net is no better than the linear filter that it began as: it has learned nothing."
    net, start = scores["fidelity"], scores["linear filter"]
    psnr = {kernel: f"psnr{suffix}" for kernel, suffix in SUFFIXES.items()}
    return [line.format(kernel) for kernel, metric in psnr.items() if net[metric] <= start[metric]]


def summary(scores: Scores) -> str:
    """The GAN beside bicubic, in one line."""
    metrics = ("psnr", "lpips", "detail_db")
    gan, cubic = ([format_number(m, scores[name][m]) for m in metrics] for name in ("GAN", "bicubic"))
    return "GAN: {} dB PSNR, LPIPS {}, detail {} dB (bicubic: {}, {} and {})".format(*gan, *cubic)
