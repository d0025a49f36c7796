"""Our generator beside SRResNet and EDSR: quality after equal minutes of training, and time of an image.

    python tests/bench_upscaler.py --minutes 20 --data PHOTOS    # two hours: six trainings, one by one
    python tests/bench_upscaler.py --minutes 0.05 --rates 1e-3 --data builtin    # the same path in a minute

All are trained by one loop on the same batches, with the warm-up, cosine schedule and averaged weights of
phase 1 of gan_upscale.py. A peer has its paper's loss and Adam. The paper's rate, 1e-4, is meant for 300,000
steps (EDSR) or a million (SRResNet): as minutes hold some hundred, each is also trained at 1e-3, the rate of
our generator. Every rate is a row, nothing is chosen by the test images. Peers train as much longer as it
takes to fit the linear filter that ours begins as. An idle machine is needed: the first steps set the pace.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, results
from common.datasets import degradation, photo_batches, photos
from common.datasets.images import to_float, to_uint8
from common.evaluation import lpips
from common.evaluation import upscale as evaluation
from common.models.upscale import LinearFilter, Upscaler, bicubic, upscaled_size
from common.training import loop
from common.training.run import Run
from gan_upscale import CLIP, EMA, LEARNING_RATE, PRESETS, fidelity_losses, optimizers


def conv(before: int, after: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, padding=size // 2)


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def srresnet() -> nn.Sequential:
    """From [N,3,h,w] to [N,3,4h,4w]: Ledig et al. 2017, "SRGAN", figure 4, 16 blocks of 64 channels."""
    normed = lambda: (conv(64, 64), nn.BatchNorm2d(64))  # noqa: E731
    blocks = [Residual(*normed(), nn.PReLU(), *normed()) for _ in range(16)]
    up = [layer for _ in range(2) for layer in (conv(64, 256), nn.PixelShuffle(2), nn.PReLU())]
    return nn.Sequential(conv(3, 64, 9), nn.PReLU(), Residual(*blocks, *normed()), *up, conv(64, 3, 9))


def edsr() -> nn.Sequential:
    """From [N,3,h,w] to [N,3,4h,4w]: Lim et al. 2017, "EDSR", table 1, baseline, 16 blocks of 64 channels."""
    blocks = [Residual(conv(64, 64), nn.ReLU(), conv(64, 64)) for _ in range(16)]
    up = [layer for _ in range(2) for layer in (conv(64, 256), nn.PixelShuffle(2))]
    return nn.Sequential(conv(3, 64), Residual(*blocks, conv(64, 64)), *up, conv(64, 3))


class Reduced(nn.Module):
    """A net for x4 as one for x3.5, trained on what is scored; in it black and white are `levels` apart."""

    def __init__(self, net: nn.Module, levels: float) -> None:
        super().__init__()
        self.net, self.levels = net, levels

    def forward(self, lr: Tensor) -> Tensor:
        """`lr` [N,3,h,w] in 0..1; returns float [N,3,3.5h,3.5w], about 0..1."""
        large = 0.5 + self.net((lr - 0.5) * self.levels).float() / self.levels  # [N,3,4h,4w]
        return self.reduce(large, *map(upscaled_size, lr.shape[-2:]))

    def reduce(self, large: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(large, (height, width), mode="bicubic", antialias=True)


class Cropped(Reduced):
    """As the earlier version of this experiment came from x4 to x3.5: its images show too small a part."""

    def reduce(self, large: Tensor, height: int, width: int) -> Tensor:
        top, left = (large.shape[2] - height) // 2, (large.shape[3] - width) // 2
        return large[..., top : top + height, left : left + width]


PEERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor, Tensor], Tensor]]] = {
    # each with the loss of its paper
    "SRResNet": (lambda: Reduced(srresnet(), levels=2), F.mse_loss),
    "EDSR-M": (lambda: Reduced(edsr(), levels=255), F.l1_loss),
}


def train(data: photos.Photos, minutes: float, rates: list[float]) -> tuple[dict[str, nn.Module], Any]:
    """The linear filter, our generator in both sizes, and each peer at each rate; and the run's record."""
    preset = PRESETS["cpu"]
    crops = photo_batches.batches(data.train, size=preset.crop, batch=preset.batch, seed=0)
    batches = degradation.pairs(crops, seed=0)
    start, linear = time.monotonic(), LinearFilter()
    linear.fit((lr, hr) for (lr,), (hr, _) in itertools.islice(batches(0), 100))
    longer = minutes + (time.monotonic() - start) / 60
    nets: dict[str, nn.Module] = {"linear filter": linear}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), settings={}, device=torch.device("cpu"))

        def fit(name: str, net: nn.Module, optimizer: loop.Optimizers, loss: Any, **more: Any) -> None:
            more |= {"schedule": loop.cosine_schedule(warm_up=0.01), "ema": EMA, "evaluations": 1}
            net.to(memory_format=torch.channels_last)
            nets[name] = loop.supervised(run, name, net, optimizer, loss, batches, **more)

        for size in ("cpu", "gpu"):
            cli.seed_everything(0)
            ours = Upscaler(PRESETS[size].channels, PRESETS[size].blocks)
            ours.skip.load_state_dict(linear.state_dict())
            adam_and_muon = optimizers(ours, LEARNING_RATE, beta=0.9)
            fit(f"ours, preset {size}", ours, adam_and_muon, fidelity_losses, minutes=minutes, clip=CLIP)
        for rate, (name, (make, distance)) in itertools.product(rates, PEERS.items()):
            cli.seed_everything(0)
            peer = make()
            loss = lambda net, batch, _, by=distance: {"pixel": by(net(*batch[0]), batch[1][0])}  # noqa: E731
            fit(f"{name}, {rate:g}", peer, torch.optim.Adam(peer.parameters(), rate), loss, minutes=longer)
        return nets, run.record


@torch.inference_mode()
def milliseconds(function: Callable[[Tensor], Tensor]) -> float:
    """Of the processor for one 64x64 image, whatever else it does: the median of the calls in a second."""
    lr, times = torch.rand(1, 3, 64, 64), list[float]()
    while sum(times) < 1 or len(times) < 5:
        start = time.thread_time()
        function(lr)
        times.append(time.thread_time() - start)
    return 1000 * sorted(times)[len(times) // 2]


def compare(data: photos.Photos, minutes: float, rates: list[float]) -> results.Scores:
    """By net: what its training was, how good its images of the test are, and how long one of them takes."""
    hr, perceptual = data.test.standard_images(), lpips.load(download=not data.builtin)
    nets, record = train(data, minutes, rates)
    methods: dict[str, evaluation.Method] = {"torch bicubic": lambda lr: to_uint8(bicubic(to_float(lr)))}
    methods |= {name: partial(evaluation.upscale, net) for name, net in nets.items()}
    _, quality = evaluation.compare(methods, hr, perceptual)
    timed: dict[str, Callable[[Tensor], Tensor]] = {"torch bicubic": bicubic, **nets}
    timed["SRResNet, cropped"] = Cropped(srresnet(), levels=2).eval()  # no training changes its time
    torch.set_num_threads(1)
    ms = {name: milliseconds(function) for name, function in timed.items()}
    scores: results.Scores = {}
    for name, function in timed.items():
        phase = record.get(name)
        weights = list(function.parameters()) if isinstance(function, nn.Module) else []
        scores[name] = {
            "minutes": phase and phase["seconds"] / 60,
            "thousand steps": phase and phase["steps"] / 1000,
            "million parameters": sum(weight.numel() for weight in weights) / 1e6,
            "ms, one thread": ms[name],
            "x bicubic": ms[name] / ms["torch bicubic"],
            **{k: v for k, v in quality.get(name, {}).items() if k.startswith(("psnr", "lpips"))},
        }
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["auto"], help="Photos, as gan_upscale.py's --data.")
    parser.add_argument("--minutes", type=float, default=20.0, help="Training time of each net, in minutes.")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 1e-3], help="Adam's, of the peers.")
    flags = parser.parse_args()
    with cli.one_line():
        found = photos.find(*flags.data)
        print(f"{found.name}: {len(found.train):,} images to train on, {torch.get_num_threads()} threads")
        print(results.table(compare(found, flags.minutes, flags.rates)))
