"""The scores: those of the tool that defines them, and right on images one can predict."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from common.datasets import degradation, photos
from common.evaluation import upscale as evaluation
from common.results import table

TOOL = Path(__file__).parents[2] / "shared" / "tools" / "measure_upscaling.py"
NAMES = {"grid": "checkerboard", "low_db": "lr_psnr"}  # the tool's, and ours
PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "ImageNet" / "val"


@pytest.fixture(scope="module")
def hr() -> torch.Tensor:
    """Ten crops of real photos, uint8 [10,3,224,224]."""
    return photos.find("builtin").test.standard_images()


@pytest.mark.skipif(not TOOL.exists(), reason="the tool is not at hand")
def test_scores_are_the_tools_own(hr: torch.Tensor) -> None:
    spec = importlib.util.spec_from_file_location("tool", TOOL)
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for method in evaluation.CLASSICAL:
        fake = evaluation.upscale_classical(method, degradation.downscale(hr))
        scores = {NAMES.get(name, name): value for name, value in tool.score(fake, hr).items()}
        del scores["lpips"]
        assert evaluation.score(fake, hr) == pytest.approx(scores, rel=1e-5)


@pytest.mark.skipif(not (TOOL.exists() and PHOTOS.exists()), reason="the tool is not at hand")
def test_the_tools_command_agrees_from_photo_to_score(tmp_path: Path) -> None:
    """From files: cutting, downscaling, upscaling by Pillow, scoring."""
    for photo in sorted(PHOTOS.rglob("*.JPEG"))[:6]:
        (tmp_path / photo.name).symlink_to(photo)
    done = subprocess.run(
        [sys.executable, TOOL, tmp_path, "--score"], capture_output=True, text=True, check=True
    )
    theirs = {row["method"]: row for row in map(json.loads, done.stdout.splitlines())}
    hr = torch.stack([photos.standard(photos.read(p)) for p in sorted(tmp_path.iterdir())])
    for method in evaluation.CLASSICAL:
        ours = evaluation.score(evaluation.upscale_classical(method, degradation.downscale(hr)), hr)
        row = {NAMES.get(name, name): value for name, value in theirs[method.lower()].items()}
        assert ours == pytest.approx({name: row[name] for name in ours}, rel=1e-4)


def test_the_original_scores_perfectly(hr: torch.Tensor) -> None:
    scores = evaluation.score(hr, hr)
    assert scores["ssim"] == pytest.approx(1) and scores["detail_db"] == pytest.approx(0)
    assert scores["psnr"] == scores["lr_psnr"] == pytest.approx(100), "the cap"
    assert 1 < scores["checkerboard"] < 1.3


def test_each_score_sees_its_own_fault(hr: torch.Tensor) -> None:
    blurred = TF.gaussian_blur(hr, [9, 9], [2.0, 2.0])
    assert evaluation.score(blurred, hr)["detail_db"] < -15

    dotted = hr.float()
    dotted[..., ::7, ::7] += 40
    assert evaluation.score(dotted.clamp(0, 255).byte(), hr)["checkerboard"] > 4

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


def test_the_table_names_every_method_and_metric() -> None:
    printed = table({"bicubic": {"psnr": 24.59}, "GAN": {"psnr": 2.57e7}})
    assert printed.splitlines() == [
        " " * 15 + "       psnr",
        "bicubic             24.590",
        "GAN                      -",
    ]
