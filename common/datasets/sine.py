"""Sine waves of random amplitude, frequency and phase, with Gaussian noise: made by the program, no files.

Training, validation and test have frequencies of their own. The range of frequencies is cut into ten pieces,
and the middle of every piece is held out: a tenth of it for validation, a tenth for the test.
"""

import math
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

PERIODS = (30, 60)  # steps: one octave of frequencies
AMPLITUDES = (0.5, 1.0)
PIECES = 10
PARTS = ("train", "validation", "test")
DESCRIPTION = SimpleNamespace(  # as a results file describes a data set
    name="sine waves",
    builtin=False,
    note=f"Sine waves made by the program: periods of {PERIODS[0]} to {PERIODS[1]} steps, amplitudes of "
    f"{AMPLITUDES[0]} to {AMPLITUDES[1]}; no frequency of the test was trained on.",
)


def waves(
    part: str, count: int, steps: int, noise: float, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws waves of one of `PARTS`; the same seed gives the same waves, another part always others.

    The reciprocal of the period is uniform over the part's share of the range, so are amplitude and phase.

    Returns:
        values, the waves with noise of that standard deviation, and the same without: float64 [count,steps];
        frequencies: float64 [count], in cycles a step.
    """
    random = np.random.default_rng((PARTS.index(part), *seed))
    start, share = {"train": (0.0, 0.8), "validation": (0.4, 0.1), "test": (0.5, 0.1)}[part]
    position = start + share * random.random(count)  # within a piece
    if part == "train":
        position += 0.2 * (position >= 0.4)
    low, high = 1 / max(PERIODS), 1 / min(PERIODS)
    frequencies = low + (high - low) * (random.integers(PIECES, size=count) + position) / PIECES
    amplitudes = random.uniform(*AMPLITUDES, count)
    phases = random.uniform(0, 2 * math.pi, count)
    angles = 2 * math.pi * frequencies[:, None] * np.arange(steps) + phases[:, None]
    clean = amplitudes[:, None] * np.sin(angles)
    values = clean + noise * random.standard_normal(clean.shape)
    return torch.from_numpy(values), torch.from_numpy(clean), torch.from_numpy(frequencies)


def copies(count: int, period: int = 40) -> Tensor:
    """`count` times the same wave, from one crest to the next: float64 [count,period + 1]."""
    wave = torch.cos(2 * math.pi / period * torch.arange(period + 1, dtype=torch.float64))
    return wave.repeat(count, 1)
