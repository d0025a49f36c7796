"""Time of one 64x64 image, one thread, in one process: ratios to torch's bicubic hold on any machine.

python tests/bench_upscaler.py
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.models.upscale import Upscaler, bicubic
from gan_upscale import PRESETS


class SRResNet(nn.Module):
    """The usual generator at its usual size (Ledig et al. 2017, "SRGAN", figure 4): 16 blocks, 64 channels.

    Two x2 steps make 256x256, of which the central 224x224 is kept, as in the earlier version of this lesson.
    """

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, 64, 9, padding=4), nn.PReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(64, 64, 3, padding=1),
                nn.BatchNorm2d(64),
                nn.PReLU(),
                nn.Conv2d(64, 64, 3, padding=1),
                nn.BatchNorm2d(64),
            )
            for _ in range(16)
        )
        steps = [(nn.Conv2d(64, 256, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()) for _ in range(2)]
        self.up = nn.Sequential(*(layer for step in steps for layer in step))
        self.tail = nn.Conv2d(64, 3, 9, padding=4)

    def forward(self, lr: Tensor) -> Tensor:
        first = x = self.head(lr)  # [N,64,64,64]
        for block in self.blocks:
            x = x + block(x)
        return self.tail(self.up(first + x)[..., 16:240, 16:240])  # [N,3,224,224]


def milliseconds(function: Callable[[Tensor], Tensor], lr: Tensor, seconds: float = 2.0) -> float:
    """Median over calls that fill the time, after some to warm up."""
    for _ in range(3):
        function(lr)
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        start = time.perf_counter()
        function(lr)
        times.append(time.perf_counter() - start)
    return 1000 * sorted(times)[len(times) // 2]


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    lr = torch.rand(1, 3, 64, 64)
    nets: dict[str, Callable[[Tensor], Tensor]] = {"torch bicubic": bicubic}
    for name in ("cpu", "gpu"):
        preset = PRESETS[name]
        nets[f"ours, preset {name} ({preset.channels} channels, {preset.blocks} blocks)"] = Upscaler(
            preset.channels, preset.blocks
        ).eval()
    nets["SRResNet (64 channels, 16 blocks)"] = SRResNet().eval()
    times = {name: milliseconds(net, lr) for name, net in nets.items()}
    reference, largest = times["torch bicubic"], list(times.values())[-1]
    print(f"{'':42}{'ms':>8}{'x bicubic':>12}{'SRResNet / it':>15}")
    for name, taken in times.items():
        print(f"{name:42}{taken:8.2f}{taken / reference:12.1f}{largest / taken:15.1f}")


if __name__ == "__main__":
    main()
