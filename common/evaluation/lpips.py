"""LPIPS: how different two images look to a net (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep
Features as a Perceptual Metric", the variant with SqueezeNet). No net of this repository is trained on it."""

import io
import os
import pickle
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torchvision.models import SqueezeNet1_1_Weights

from common.cli import UserError
from common.datasets.download import FAILURES, fetch, in_one_line
from common.datasets.images import to_float
from common.files import atomic_write

Distance = Callable[[Tensor, Tensor], Tensor]
"""From two batches of images, uint8 [N,3,h,w], to the LPIPS of each pair, float [N]; 0 for the same."""


def load(*, download: bool) -> Distance | None:
    """Reads the net from where torch keeps its downloads; fetches it first (5 MB) where it is missing.

    Returns:
        None where that fails or must not be tried; then a line on screen says why, and what to do.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity  # seconds; not for --input

    url = SqueezeNet1_1_Weights.DEFAULT.url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    try:
        if not path.exists():
            if not download:
                raise FileNotFoundError("a trial downloads nothing")
            _fetch(url, path)
        # torchvision would unpickle whatever the file holds, and begins with random weights
        safe = mock.patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1")
        with safe, torch.random.fork_rng(devices=[]):
            alone: dict[str, Any] = {"sync_on_compute": False}  # no other process computes it
            metric = LearnedPerceptualImagePatchSimilarity("squeeze", "none", normalize=True, **alone)
    except (UserError, pickle.UnpicklingError, *FAILURES) as error:
        remedy = f"put {url} at {shlex.quote(str(path))}"
        print(f"No LPIPS, its net cannot be had ({in_one_line(error)}); {remedy}")
        return None

    @torch.inference_mode()
    def distance(fake8: Tensor, hr8: Tensor) -> Tensor:
        metric.reset()
        for fake, hr in zip(fake8.split(16), hr8.split(16), strict=True):
            metric.update(to_float(fake), to_float(hr))
        return metric.compute().flatten()  # of one pair it is a number

    return distance


def _fetch(url: str, path: Path) -> None:
    received = io.BytesIO()
    fetch(url, received, sha256=path.stem.rpartition("-")[2])  # its name ends in the sum's first digits
    with atomic_write(path) as temporary:
        temporary.write_bytes(received.getvalue())
