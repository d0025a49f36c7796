"""Scores of upscaled pictures, and the classical methods that stand beside every score."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.transforms.v2 import functional as TF

from common.datasets.photos import shrink

CLASSICAL = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "Lanczos": Image.Resampling.LANCZOS,
}


def psnr(made: Tensor, real: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB; pictures [N,3,h,w] in 0..1, returns [N]."""
    return -10 * torch.log10((made - real).square().mean((1, 2, 3)).clamp_min(1e-10))


def power(pictures: Tensor) -> Tensor:
    """Mean power spectrum of the grey pictures under a Hann window; [N,3,h,h], returns [h,h]."""
    grey = pictures.mean(1)
    window = torch.hann_window(grey.shape[-1])
    centred = grey - grey.mean((1, 2), keepdim=True)
    return torch.fft.fft2(centred * window[:, None] * window).abs().square().mean(0)


def fine_by_phase(pictures: Tensor) -> Tensor:
    """Energy of the finest details by their place in the 7x7 block; [N,3,h,w] in 0..1, returns [7,7]."""
    fine = pictures - F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    energy = fine.square().mean((0, 1))  # [h,w]
    return energy.unflatten(0, (-1, 7)).unflatten(2, (-1, 7)).mean((0, 2))


def score(made8: Tensor, real8: Tensor) -> dict[str, float]:
    """How good upscaled pictures are, by five numbers.

    psnr: dB, higher is nearer to the original. ssim: structural similarity (Wang et al. 2004), up to 1.
    detail_db: power in the frequencies that 64x64 cannot hold, in dB against the original's; 0 is as sharp as
    the original. grid: finest details by row and column modulo 7, strongest over weakest; photos have about
    1.1, a dotted lattice 10. low_db: PSNR of the output made small again, against the input.

    Args:
        made8, real8: uint8 [N,3,224,224].
    """
    made, real = made8.float() / 255, real8.float() / 255
    frequency = torch.fft.fftfreq(made.shape[-1])
    # rings of 1/64 cycle a pixel; 64 of 224 pixels hold up to 64/448, so rings from 10 on are lost in them
    ring = (torch.hypot(frequency[:, None], frequency) * 64).long().flatten()
    rings = [torch.zeros(int(ring.max()) + 1).scatter_add(0, ring, power(p).flatten()) for p in (made, real)]
    phases = fine_by_phase(made)
    small, wanted = shrink(made8).float() / 255, shrink(real8).float() / 255
    similarity = structural_similarity_index_measure(made, real, data_range=1.0)
    assert isinstance(similarity, Tensor)
    return {
        "psnr": psnr(made, real).mean().item(),
        "ssim": similarity.item(),
        "detail_db": (10 * torch.log10(rings[0] / rings[1]))[10:32].mean().item(),
        "grid": (phases.max() / phases.min()).item(),
        "low_db": psnr(small, wanted).mean().item(),
    }


@torch.inference_mode()
def upscale(model: nn.Module, small: Tensor, batch: int = 16) -> Tensor:
    """`small` uint8 [N,3,h,w] through the model in float32; returns uint8 [N,3,3.5h,3.5w], on the CPU."""
    device = next(model.parameters()).device
    made = [model(part.to(device).float() / 255).cpu() for part in small.split(batch)]
    return torch.cat(made).clamp(0, 1).mul(255).round().byte()


def upscale_classical(method: str, small: Tensor) -> Tensor:
    """By Pillow; `small` uint8 [N,3,h,w], returns uint8 [N,3,3.5h,3.5w]."""
    size = (small.shape[3] * 7 // 2, small.shape[2] * 7 // 2)
    made = [TF.to_pil_image(picture).resize(size, CLASSICAL[method]) for picture in small]
    return torch.stack([TF.pil_to_tensor(picture) for picture in made])


def milliseconds(method: Callable[[Tensor], Tensor], small: Tensor, repeats: int = 10) -> float:
    """Median time for one picture, uint8 [1,3,h,w]."""
    times = []
    for _ in range(repeats + 2):
        begun = time.perf_counter()
        method(small)
        times.append(time.perf_counter() - begun)
    return 1000 * sorted(times[2:])[repeats // 2]
