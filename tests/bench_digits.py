"""Our GAN beside a DCGAN of the usual shape, for the same CPU time, in one process; and its speed.

    python -m tests.bench_digits --data data/MNIST              # seven minutes with --minutes 3 each

Scores are of 10,000 generated digits against the test digits, by the evaluator of gan_mnist.py.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gan_mnist
from common.datasets import mnist
from common.evaluation import mnist as evaluation
from common.results import table

LATENT = 100


def dcgan() -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator, 64 channels wide (Radford et al. 2016), at 28x28 by way of 4x4 and 7x7."""

    def up(before: int, after: int, size: int, stride: int, padding: int) -> list[nn.Module]:
        layer = nn.ConvTranspose2d(before, after, size, stride, padding, bias=False)
        return [layer, nn.BatchNorm2d(after), nn.ReLU()]

    def down(before: int, after: int, size: int) -> list[nn.Module]:
        layer = nn.Conv2d(before, after, size, 2, 1, bias=False)
        return [layer, nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]

    generator = nn.Sequential(
        *up(LATENT, 256, 4, 1, 0),  # [N,256,4,4]
        *up(256, 128, 3, 2, 1),  # [N,128,7,7]
        *up(128, 64, 4, 2, 1),  # [N,64,14,14]
        nn.ConvTranspose2d(64, 1, 4, 2, 1),  # [N,1,28,28]
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, 64, 4, 2, 1),  # [N,64,14,14]
        nn.LeakyReLU(0.2),
        *down(64, 128, 4),  # [N,128,7,7]
        *down(128, 256, 3),  # [N,256,4,4]
        nn.Conv2d(256, 1, 4),  # [N,1,1,1]
        nn.Flatten(),
    )
    for module in (*generator.modules(), *discriminator.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02)
    return generator, discriminator


def shuffled(images: Tensor, size: int) -> Iterator[Tensor]:
    """Batches in -1..1, epoch after epoch."""
    while True:
        for index in torch.randperm(len(images)).split(size):
            if len(index) == size:
                yield images[index][:, None].float() / 127.5 - 1


def train_dcgan(images: Tensor, seconds: float, size: int = 64) -> tuple[nn.Module, int]:
    """For so many seconds of CPU time; returns the generator and its steps."""
    generator, discriminator = dcgan()
    adams = [torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (generator, discriminator)]
    real_label, fake_label = torch.ones(size, 1), torch.zeros(size, 1)
    start, steps = time.process_time(), 0
    for real in shuffled(images, size):
        fake = generator(torch.randn(size, LATENT, 1, 1))
        loss = F.binary_cross_entropy_with_logits(discriminator(real), real_label)
        loss = loss + F.binary_cross_entropy_with_logits(discriminator(fake.detach()), fake_label)
        adams[1].zero_grad()
        loss.backward()
        adams[1].step()
        adams[0].zero_grad()
        F.binary_cross_entropy_with_logits(discriminator(fake), real_label).backward()
        adams[0].step()
        steps += 1
        if time.process_time() - start > seconds:
            break
    return generator.eval(), steps


@torch.inference_mode()
def sample(generator: nn.Module, count: int) -> Tensor:
    """uint8 [count,28,28]"""
    fake = [generator(torch.randn(len(part), LATENT, 1, 1)) for part in torch.arange(count).split(500)]
    return (127.5 * (torch.cat(fake)[:, 0] + 1)).round().to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="auto")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = mnist.find(arguments.data)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        config = gan_mnist.Config(minutes=arguments.minutes, runs=Path(folder))
        evaluator, _ = evaluation.find_evaluator(config, data, device)
        torch.manual_seed(0)
        start = time.process_time()
        sampler, progress = gan_mnist.train(config, gan_mnist.PRESETS["cpu"], data, evaluator, device)
        taken = time.process_time() - start
    torch.manual_seed(0)
    usual, steps = train_dcgan(data.train, taken)

    count = len(data.test)
    labels = torch.arange(count) % len(data.characters)
    start = time.perf_counter()
    fake, _ = sampler.sample(labels, torch.Generator().manual_seed(0))
    rate = count / (time.perf_counter() - start)
    scores = {
        f"ours, {progress.run.record['gan']['steps']:,} steps": evaluator.score(fake),
        f"DCGAN, {steps:,} steps": evaluator.score(sample(usual, count)),
        "real": evaluation.baselines(evaluator, data)["real"],
    }
    print(f"\n{taken:.0f} seconds of CPU time each, {arguments.threads} threads")
    print(
        table(
            evaluation.named(
                {name: {k: v for k, v in of.items() if k != "class_accuracy"} for name, of in scores.items()},
                data.name,
            )
        )
    )
    ours, theirs, _ = (of["distance"] for of in scores.values())
    print(f"Distance of the DCGAN / ours: {theirs / ours:.1f}; ours generates {rate:,.0f} digits a second")


if __name__ == "__main__":
    main()
