"""The bench of the upscaler: its peers have the size of their papers, and all go the same way."""

from dataclasses import replace

import pytest
import torch

from common.datasets import photos
from gan_upscale import PRESETS
from tests import bench_upscaler as bench


@pytest.mark.slow
def test_all_are_trained_scored_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "GENERATED", 48)
    monkeypatch.setitem(PRESETS, "cpu", replace(PRESETS["cpu"], batch=2))
    scores = bench.compare(photos.find("builtin"), minutes=0.05, rates=[1e-3])
    first, linear, ours, larger, srresnet, edsr, cropped = scores.values()
    assert [round(1e6 * row["million parameters"]) for row in (srresnet, edsr)] == [1_549_462, 1_517_571]
    for row in (ours, larger, srresnet, edsr):
        assert row["thousand steps"] > 0 and row["minutes"] > 0
        assert row["psnr"] > 5 and row["psnr_bicubic"] > 5 and row["lpips"] is None
    assert linear["psnr"] > first["psnr"] > max(srresnet["psnr"], edsr["psnr"]), "peers begin from nothing"
    assert first["x bicubic"] == 1 < ours["x bicubic"] < edsr["x bicubic"] < cropped["x bicubic"]


@torch.no_grad()
def test_peers_give_seven_halves_of_any_size_and_stay_aligned() -> None:
    """A net that only repeats pixels: what is reduced of it is the image itself, where it was."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 21), torch.linspace(0, 1, 16), indexing="ij")
    lr = torch.stack([y, x, 1 - y])[None]  # [1,3,21,16]
    fake = bench.Reduced(torch.nn.Upsample(scale_factor=4), levels=255)(lr)
    assert fake.shape == (1, 3, 74, 56)
    expected = torch.nn.functional.interpolate(lr, (74, 56), mode="bilinear")
    assert (fake - expected).abs().max() < 0.03
