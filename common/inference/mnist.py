"""Three ways to draw the character that is asked for: the nets of gan_mnist.py, ready to use and to keep."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import weights
from common.cli import UserError
from common.models.mnist import Generator, Reader

METHODS = ("conditional", "1", "2")
BATCH = 500
SURE = 0.99
"""How probable a picture must be for Method 2's picker, to be taken."""
MOST = 20_000
"""Samples that Method 2 draws in vain before it gives up."""
SAME_STYLE = 0.6
"""How near Method 2's noise lies to that of a word's style; at 1 only one picture would come of it."""


@dataclass
class Sampler:
    """A trained generator, and all it takes to draw with it."""

    method: str
    """`conditional`: one net, told the character; `1`: a net for each character; `2`: one net that draws
    what it likes, and a reader that picks."""
    generator: Generator
    characters: str
    """Label k is character k."""
    picker: Reader | None = None
    """Of Method 2; without it no character can be asked for."""
    about: dict[str, Any] = field(default_factory=dict)

    def parameters(self) -> int:
        """Weights of all its nets."""
        nets = [net for net in (self.generator, self.picker) if net is not None]
        return sum(p.numel() for net in nets for p in net.parameters())

    @torch.inference_mode()
    def draw(
        self, labels: Tensor, rng: torch.Generator, style: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Draws the characters of `labels`, int64 [N].

        Args:
            rng: of the noise; on the CPU.
            style: noise that all of them share, [latent]; None for each its own.

        Returns:
            pictures, uint8 [N,28,28], 255 for ink; and by character how many samples one cost.

        Raises:
            Refused: Method 2 has drawn `MOST` samples in vain, and a character is still missing.
        """
        if self.method == "2":
            return self._pick(labels, rng, style)
        made = []
        for part in labels.split(BATCH):
            if self.method == "1":
                made.append(self._side_by_side(part, rng, style))
            else:
                made.append(self._run(self._noise(len(part), rng, style)[:, None], part)[:, 0])
        used = {self.characters[k]: 1.0 for k in labels.unique().tolist()}
        return torch.cat(made), used

    @torch.inference_mode()
    def anything(self, count: int, rng: torch.Generator) -> Tensor:
        """What a net without labels draws, unpicked: uint8 [count,28,28]."""
        sizes = [min(BATCH, count - done) for done in range(0, count, BATCH)]
        return torch.cat([self._run(self._noise(size, rng, None)[:, None])[:, 0] for size in sizes])

    @torch.inference_mode()
    def along(self, noise: Tensor, label: int) -> Tensor:
        """Character `label` of given noise [N,latent], unpicked: uint8 [N,28,28]."""
        if self.method == "1":
            return self._run(noise[:, None].expand(-1, self.generator.nets, -1))[:, label]
        labels = () if self.method == "2" else (torch.full((len(noise),), label),)
        return self._run(noise[:, None], *labels)[:, 0]

    def _noise(self, count: int, rng: torch.Generator, style: Tensor | None) -> Tensor:
        """[count,latent]"""
        if style is not None:
            return style.expand(count, -1)
        return torch.randn(count, self.generator.latent, generator=rng)

    def _run(self, noise: Tensor, *label: Tensor) -> Tensor:
        """Noise [N,nets,latent] to uint8 [N,nets,28,28]."""
        device = next(self.generator.parameters()).device
        made = self.generator(noise.to(device), *(of.to(device) for of in label))
        return (255 * made).round().to(torch.uint8).cpu()

    def _side_by_side(self, labels: Tensor, rng: torch.Generator, style: Tensor | None) -> Tensor:
        """All nets draw at once, so labels [N] are dealt out to rows in which no character comes twice."""
        same = labels[:, None] == labels  # [N,N]
        row = same.tril(-1).sum(1)  # how often the character was asked for before
        noise = torch.randn(int(row.max()) + 1, self.generator.nets, self.generator.latent, generator=rng)
        if style is not None:
            noise[:] = style
        return self._run(noise)[row, labels]

    def _pick(
        self, labels: Tensor, rng: torch.Generator, style: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Draws until the picker has found every character, and counts."""
        assert self.picker is not None
        device = next(self.picker.parameters()).device
        waiting = {k: (labels == k).nonzero()[:, 0].tolist() for k in labels.unique().tolist()}
        found = torch.zeros(len(labels), 28, 28, dtype=torch.uint8)
        taken, drawn, vain = torch.zeros(len(self.characters)), 0, 0
        while any(waiting.values()):
            if vain >= MOST:
                missing = ", ".join(self.characters[k] for k, places in waiting.items() if places)
                raise UserError(
                    f"Method 2 has drawn {drawn:,} samples, the last {vain:,} in vain, and found no more of "
                    f"{missing}; train it longer, or take another --method"
                )
            noise = self._noise(BATCH, rng, None)
            if style is not None:
                noise = SAME_STYLE * style + math.sqrt(1 - SAME_STYLE**2) * noise
            made = self._run(noise[:, None])[:, 0]  # [BATCH,28,28]
            chance, read_as = self.picker(made[:, None].to(device).float() / 255).softmax(1).cpu().max(1)
            drawn, vain = drawn + BATCH, vain + BATCH
            for i in (chance >= SURE).nonzero()[:, 0].tolist():
                label = int(read_as[i])
                taken[label] += 1
                if waiting.get(label):
                    found[waiting[label].pop(0)] = made[i]
                    vain = 0
        return found, {self.characters[k]: drawn / taken[k].item() for k in waiting}


def save(path: Path, samplers: Iterable[Sampler], *, half: bool = False) -> None:
    """Writes samplers into one .safetensors file; `half`: in half precision, which halves it."""
    modules: dict[str, nn.Module] = {}
    about: dict[str, Any] = {}
    for sampler in samplers:
        generator, picker = sampler.generator, sampler.picker
        modules[sampler.method] = generator
        channels = generator.up.out_channels // generator.nets
        about[sampler.method] = sampler.about | {
            "characters": sampler.characters,
            "latent": generator.latent,
            "channels": channels,
        }
        if picker:
            modules["picker"] = picker
            about[sampler.method]["picker"] = [picker.channels, picker.num_features]
    if half:
        modules = {name: copy.deepcopy(module).half() for name, module in modules.items()}
    weights.save(path, modules, about)


def load(path: Path, method: str, device: torch.device) -> Sampler:
    """Reads one of those that `save` wrote.

    Raises:
        Refused: no such file, or it does not hold the method.
    """
    states, about = weights.load(path)
    try:
        known = about[method]
        characters = str(known["characters"])
        count = len(characters)
        generator = Generator(
            int(known["latent"]),
            int(known["channels"]),
            classes=count if method == "conditional" else 0,
            nets=count if method == "1" else 1,
        )
        _fill(generator, states[method])
        picker = None
        if "picker" in known:
            channels, features = map(int, known["picker"])
            picker = Reader(channels, features, count)
            _fill(picker, states["picker"])
            picker.to(device).eval()
        return Sampler(method, generator.to(device).eval(), characters, picker, known)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"--weights: {path} holds no weights of --method {method} ({why})") from None


def save_reader(path: Path, reader: Reader, about: dict[str, Any]) -> None:
    """Writes a reader; `about` says what it has learned from."""
    size = reader.channels, reader.num_features, reader.classes
    weights.save(path, {"reader": reader}, about | {"size": list(size)})


def load_reader(path: Path) -> tuple[Reader, dict[str, Any]]:
    """Reads what `save_reader` wrote.

    Raises:
        Refused: no such file, or not such a reader.
    """
    try:
        states, about = weights.load(path)
        reader = Reader(*map(int, about["size"]))
        _fill(reader, states["reader"])
        return reader.eval(), about
    except (UserError, KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise UserError(f"{path} holds no judge; remove it, and a new one is trained") from None


def _fill(module: nn.Module, state: dict[str, Tensor]) -> None:
    module.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
