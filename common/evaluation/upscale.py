"""Scores of upscaled images, and the classical methods that stand beside every score."""

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.transforms.v2 import functional as TF

from common.datasets.degradation import downscale
from common.datasets.images import to_float, to_uint8
from common.results import Scores

Method = Callable[[Tensor], Tensor]
"""From lr to upscaled images, both uint8."""
CLASSICAL = ("nearest", "bilinear", "bicubic", "Lanczos")
NETS = {"linear filter": "linear", "fidelity": "fidelity", "GAN": "gan"}
"""By the name of the method: the name of its net in a weights file."""


def psnr(fake: Tensor, hr: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB; images [N,3,h,w] in 0..1, returns [N]."""
    return -10 * torch.log10((fake - hr).square().mean((1, 2, 3)).clamp_min(1e-10))


def detail_by_position(images: Tensor) -> Tensor:
    """Energy of the finest details by their position in the 7x7 block; [N,3,h,w] in 0..1, returns [7,7]."""
    detail = images - F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    energy = detail.square().mean((0, 1))  # [h,w]
    return energy.unflatten(0, (-1, 7)).unflatten(2, (-1, 7)).mean((0, 2))


def power_by_frequency(images: Tensor) -> Tensor:
    """Power of the grey images under a Hann window, in rings of 1/64 cycle a pixel; of [N,3,h,h]."""
    grey = images.mean(1)
    window = torch.hann_window(grey.shape[-1])
    centred = grey - grey.mean((1, 2), keepdim=True)
    power = torch.fft.fft2(centred * window[:, None] * window).abs().square().mean(0)  # [h,h]
    frequency = torch.fft.fftfreq(grey.shape[-1])
    ring = (torch.hypot(frequency[:, None], frequency) * 64).long().flatten()
    return torch.zeros(int(ring.max()) + 1).scatter_add(0, ring, power.flatten())


def score(fake8: Tensor, hr8: Tensor) -> dict[str, float]:
    """How good upscaled images, uint8 [N,3,224,224], are, by five numbers.

    psnr: dB, higher is nearer to the original. ssim: structural similarity (Wang et al. 2004), up to 1.
    detail_db: power in the frequencies that 64x64 cannot hold, in dB against the original's; 0 is as sharp as
    the original. checkerboard: finest details by row and column modulo 7, strongest over weakest; photos have
    about 1.1, a pattern of dots 10. lr_psnr: PSNR of the output, downscaled again, against the input.
    """
    fake, hr = to_float(fake8), to_float(hr8)
    # 64 of 224 pixels hold up to 64/448 cycles a pixel, so rings from 10 on are lost in them
    power = 10 * torch.log10(power_by_frequency(fake) / power_by_frequency(hr))
    detail = detail_by_position(fake)
    return {
        "psnr": psnr(fake, hr).mean().item(),
        "ssim": structural_similarity_index_measure(fake, hr, data_range=1.0).item(),
        "detail_db": power[10:32].mean().item(),
        "checkerboard": (detail.max() / detail.min()).item(),
        "lr_psnr": psnr(to_float(downscale(fake8)), to_float(downscale(hr8))).mean().item(),
    }


@torch.inference_mode()
def upscale(model: nn.Module, lr: Tensor, batch: int = 16) -> Tensor:
    """`lr` uint8 [N,3,h,w] through the model in float32; returns uint8 [N,3,3.5h,3.5w], on the CPU."""
    device = next(model.parameters()).device
    return to_uint8(torch.cat([model(to_float(part.to(device))).cpu() for part in lr.split(batch)]))


def upscale_classical(method: str, lr: Tensor) -> Tensor:
    """By Pillow; `lr` uint8 [N,3,h,w], returns uint8 [N,3,3.5h,3.5w]."""
    size = (lr.shape[3] * 7 // 2, lr.shape[2] * 7 // 2)
    fakes = [TF.to_pil_image(image).resize(size, Image.Resampling[method.upper()]) for image in lr]
    return torch.stack([TF.pil_to_tensor(fake) for fake in fakes])


def methods(nets: dict[str, nn.Module]) -> dict[str, Method]:
    """Every method by name, the classical ones first."""
    classical: dict[str, Method] = {name: partial(upscale_classical, name) for name in CLASSICAL}
    return classical | {name: partial(upscale, nets[net]) for name, net in NETS.items()}


def compare(methods: dict[str, Method], lr: Tensor, hr: Tensor) -> tuple[dict[str, Tensor], Scores]:
    """Upscales `lr`, uint8 [N,3,64,64], by every method; `ms` of the scores is the median for one image."""
    fakes = {name: method(lr) for name, method in methods.items()}
    scores = {name: score(fake, hr) for name, fake in fakes.items()}
    for name, method in methods.items():
        times = []
        for _ in range(12):
            start = time.perf_counter()
            method(lr[:1])
            times.append(time.perf_counter() - start)
        scores[name]["ms"] = 1000 * sorted(times[2:])[5]  # the first ones are slower
    return fakes, scores
