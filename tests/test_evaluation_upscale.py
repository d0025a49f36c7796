"""The scores: those of the tool that defines them, and right on images one can predict."""

import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from common.datasets import degradation, photos
from common.evaluation import lpips
from common.evaluation import upscale as evaluation
from common.evaluation.lpips import Distance
from common.models.upscale import Upscaler
from common.results import table

SHARED = Path(__file__).parents[2] / "shared"
TOOL = SHARED / "tools" / "measure_upscaling.py"
TORCH_HOME = SHARED / "torch"
NAMES = {"grid": "checkerboard", "low_db": "lr_psnr"}  # the tool's, and ours
PHOTOS = SHARED / "data" / "ImageNet" / "val"


@pytest.fixture(scope="module")
def hr() -> torch.Tensor:
    """Ten crops of real photos, uint8 [10,3,224,224]."""
    return photos.find("builtin").test.standard_images()


@pytest.fixture
def distance(monkeypatch: pytest.MonkeyPatch) -> Distance | None:
    """LPIPS where its net is at hand, for the tool too."""
    monkeypatch.setenv("TORCH_HOME", str(TORCH_HOME))
    return lpips.load(download=False)


@pytest.mark.skipif(not TOOL.exists(), reason="the tool is not at hand")
@pytest.mark.parametrize("kernel", degradation.KERNELS)
def test_scores_are_the_tools_own(hr: torch.Tensor, distance: Distance | None, kernel: str) -> None:
    spec = importlib.util.spec_from_file_location("tool", TOOL)
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.KERNEL = kernel
    hr = hr[::5]
    lr = degradation.downscale(hr, kernel)
    levels = 0 if kernel == "bilinear" else 1  # torchvision's bicubic and Pillow's round differently
    assert (lr.int() - tool.low(hr).int()).abs().max() <= levels
    for method in ("nearest", "Lanczos"):
        fake = evaluation.upscale_classical(method, lr)
        ours = evaluation.score(fake, hr, kernel, distance)
        del ours["repeated"]  # which the tool does not know
        scores = {NAMES.get(name, name): value for name, value in tool.score(fake, hr).items()}
        assert ours.pop("lr_psnr") == pytest.approx(scores.pop("lr_psnr"), rel=1e-5 if levels == 0 else 0.005)
        assert ours == pytest.approx({name: scores[name] for name in ours}, rel=1e-5)
        assert ("lpips" in ours) == bool(distance)


@pytest.mark.skipif(not (TOOL.exists() and PHOTOS.exists()), reason="the tool is not at hand")
@pytest.mark.parametrize("kernel", ["bilinear", pytest.param("bicubic", marks=pytest.mark.slow)])
def test_the_tools_command_agrees_from_photo_to_score(
    tmp_path: Path, distance: Distance | None, kernel: str
) -> None:
    """From files: cutting, downscaling, upscaling by Pillow, scoring."""
    for photo in sorted(PHOTOS.rglob("*.JPEG"))[:3]:
        (tmp_path / photo.name).symlink_to(photo)
    words = [sys.executable, TOOL, tmp_path, "--kernel", kernel, "--score"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    theirs = {row["method"]: row for row in map(json.loads, done.stdout.splitlines())}
    hr = torch.stack([photos.standard(photos.read(p)) for p in sorted(tmp_path.iterdir())])
    lr = degradation.downscale(hr, kernel)
    for method in evaluation.CLASSICAL:
        ours = evaluation.score(evaluation.upscale_classical(method, lr), hr, kernel, distance)
        del ours["repeated"]
        row = {NAMES.get(name, name): value for name, value in theirs[method.lower()].items()}
        tolerance = {"rel": 1e-4, "abs": 1e-4} if kernel == "bilinear" else {"rel": 0.01}
        assert ours == pytest.approx({name: row[name] for name in ours}, **tolerance)


def test_the_original_scores_perfectly(hr: torch.Tensor) -> None:
    scores = evaluation.score(hr, hr)
    assert scores["ssim"] == pytest.approx(1) and scores["detail_db"] == pytest.approx(0)
    assert scores["psnr"] == scores["lr_psnr"] == pytest.approx(100), "the cap"
    assert 1 < scores["checkerboard"] < 1.3 and 0 < scores["repeated"] < 0.4


def test_each_score_sees_its_own_fault(hr: torch.Tensor) -> None:
    blurred = TF.gaussian_blur(hr, [9, 9], [2.0, 2.0])
    assert evaluation.score(blurred, hr)["detail_db"] < -15

    dotted = hr.float()
    dotted[..., ::7, ::7] += 40
    assert evaluation.score(dotted.clamp(0, 255).byte(), hr)["checkerboard"] > 4

    signs = torch.ones(7, 7)  # as much detail everywhere, but everywhere the same
    signs[::2, ::2], signs[1::2, 1::2] = -1, -1
    ringed = (hr + 8 * signs.repeat(32, 32)).clamp(0, 255).byte()
    scores = evaluation.score(ringed, hr)
    assert scores["repeated"] > 10 and scores["checkerboard"] < 2

    shifted = hr.roll(2, dims=3)
    scores = evaluation.score(shifted, hr)
    assert scores["psnr"] < 28 and abs(scores["detail_db"]) < 1, "as sharp, but wrong"

    assert evaluation.score(255 - hr, hr)["lr_psnr"] < 15, "another image"


def test_psnr_by_hand() -> None:
    black, grey = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1)
    assert evaluation.psnr(grey, black).item() == pytest.approx(20)


def test_classical_methods_are_pillows(hr: torch.Tensor) -> None:
    lr = degradation.downscale(hr[:1])
    ours = evaluation.upscale_classical("bicubic", lr)[0]
    pillow = TF.to_pil_image(lr[0]).resize((224, 224), Image.Resampling.BICUBIC)
    assert torch.equal(ours, TF.pil_to_tensor(pillow))


def test_every_method_is_scored_on_both_kernels(hr: torch.Tensor) -> None:
    nets = {name: Upscaler(4, 1) for name in ("linear", "fidelity", "gan")}
    methods = evaluation.methods(nets)
    assert tuple(methods) == (*evaluation.CLASSICAL, "linear filter", *evaluation.TRAINED)
    assert methods["fidelity, self-ensemble"].args[0].net is nets["fidelity"]

    hr, asked = hr[:2], []
    methods = {"bicubic": methods["bicubic"], "perfect": lambda lr: asked.append(lr) or hr}
    fakes, scores = evaluation.compare(methods, hr, None)
    assert torch.equal(fakes["perfect"], hr)
    assert torch.equal(fakes["bicubic"], methods["bicubic"](degradation.downscale(hr)))
    for lr, kernel in zip(asked[:2], degradation.KERNELS, strict=True):
        assert torch.equal(lr, degradation.downscale(hr, kernel))
    once = ["psnr", "lpips", "ssim", "detail_db", "checkerboard", "repeated", "lr_psnr"]
    for of in scores.values():
        assert list(of) == [*once, *(f"{name}_bicubic" for name in once), "ms"]
        assert of["lpips"] is None and of["lpips_bicubic"] is None and of["ms"] > 0
    assert scores["perfect"]["lr_psnr"] == scores["perfect"]["lr_psnr_bicubic"] == pytest.approx(100)
    for name, value in evaluation.score(methods["bicubic"](asked[1]), hr, "bicubic").items():
        assert scores["bicubic"][f"{name}_bicubic"] == value

    distance = lambda fake, hr: torch.full((len(fake),), 0.25)  # noqa: E731
    _, scores = evaluation.compare({"bicubic": methods["bicubic"]}, hr, distance)
    assert scores["bicubic"]["lpips"] == scores["bicubic"]["lpips_bicubic"] == 0.25


def test_spoiled_images_are_scored_the_same_every_time(hr: torch.Tensor) -> None:
    hr, bicubic = hr[::3], partial(evaluation.upscale_classical, "bicubic")
    first, again = (evaluation.score_spoiled(bicubic, hr, None) for _ in range(2))
    assert first == again
    clean = evaluation.score(bicubic(degradation.downscale(hr)), hr)
    assert first["psnr"] < clean["psnr"] - 0.02


def test_a_net_that_learned_nothing_is_named_for_each_kernel() -> None:
    linear = {"psnr": 25.0, "psnr_bicubic": 25.0}
    lines = {
        (better, other): evaluation.nothing_learned(
            {"linear filter": linear, "fidelity": {"psnr": better, "psnr_bicubic": other}}
        )
        for better in (25.0, 26.0)
        for other in (24.0, 26.0)
    }
    assert lines[26.0, 26.0] == []
    assert [len(found) for found in lines.values()] == [2, 1, 1, 0]
    assert lines[26.0, 24.0][0].startswith("On bicubic LR") and "learned nothing" in lines[26.0, 24.0][0]
    assert lines[25.0, 26.0][0].startswith("On bilinear LR"), "equal is no better"


def test_the_summary_has_a_dash_for_what_is_missing() -> None:
    rows = {"psnr": 25.916, "lpips": None, "detail_db": -3.92}
    line = evaluation.summary({"GAN": rows, "bicubic": rows | {"lpips": 0.3391}})
    assert line == "GAN: 25.92 dB PSNR, LPIPS –, detail −3.9 dB (bicubic: 25.92, 0.339 and −3.9)"


def test_the_table_names_every_method_and_metric() -> None:
    printed = table({"bicubic": {"psnr": 24.59}, "GAN": {"psnr": 2.57e7}})
    assert printed.splitlines() == [
        " " * 15 + "       psnr",
        "bicubic             24.590",
        "GAN                      -",
    ]
