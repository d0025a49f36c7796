"""How much faster two processes of one thread train than one does, and what the exchange of gradients costs;
and from that how long one epoch of ImageNet takes.

python tests/bench_processes.py    # some minutes; only where two cores are free
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from common.cli import is_first, size
from common.training import distributed
from common.training.run import checkpoint
from gan_upscale import PRESETS

ROOT = Path(__file__).parents[1]
TORCHRUN = "-m", "torch.distributed.run", "--nproc-per-node=2"
BUDGET = {
    "multi_layer_rnn": ("--epochs", "3"),
    "lstm": ("--epochs", "3"),
    "gan_mnist": ("--steps", "300"),
    "gan_upscale": ("--steps", "60"),
}
IMAGENET = 1_281_167  # photos to train on
REPEATS = 100  # of an exchange


def train(script: str, *launcher: str) -> tuple[float, int]:
    """Milliseconds of a step of the last phase, from its batch on, and how many weights it has."""
    with tempfile.TemporaryDirectory() as folder:
        words = "--data", "builtin", "--device", "cpu", "--runs", folder, "--figs", folder
        run([*launcher, f"{script}.py", *words, *BUDGET[script]])
        content = torch.load(checkpoint(Path(folder, f"{script}-builtin")), weights_only=True)
    state = list(content["finished"].values())[-1]["state"]
    weights = [tensor.numel() for module in state["modules"][:-1] for tensor in module.values()]
    return 1e3 * state["stepping"] / state["step"], sum(weights)


def run(words: list[str]) -> str:
    alone = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=alone, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def exchange(count: int) -> None:
    """In each process: prints the milliseconds in which gradients of `count` weights are averaged."""
    weights = [nn.Parameter(torch.zeros(count))]
    distributed.average_gradients(weights)
    start = time.perf_counter()
    for _ in range(REPEATS):
        distributed.average_gradients(weights)
    if is_first():
        print(1e3 * (time.perf_counter() - start) / REPEATS)


def main() -> None:
    print(f"{'':16}{'1 process':>12}{'2 processes':>13}{'speed-up':>10}{'efficiency':>12}{'exchange':>10}")
    for script in BUDGET:
        one, count = train(script)
        two, _ = train(script, *TORCHRUN)
        cost = float(run([*TORCHRUN, __file__, str(count)]))
        times = f"{one:9.1f} ms{two:10.1f} ms{one / two:10.2f}{one / two / 2:12.2f}{cost:7.1f} ms"
        print(f"{script:16}{times}", flush=True)
    hours = (ms * IMAGENET / PRESETS["cpu"].batch / 3.6e6 for ms in (one, two))  # of the last, gan_upscale
    print("An epoch of ImageNet as a GAN, a crop of each photo: {:.1f} hours, by two {:.1f}".format(*hours))


if __name__ == "__main__":
    exchange(int(sys.argv[1])) if size() > 1 else main()
