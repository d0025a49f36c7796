"""The main job through its own `main` and command line: it learns, survives kills, refuses clearly."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.image
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.v2 import functional as TF

import gan_upscale
from common import results, weights
from common.cli import UserError
from common.datasets import degradation, photos
from common.datasets.dead_leaves import dead_leaves
from common.evaluation import upscale as evaluation
from common.inference import upscale as inference
from common.models.upscale import PatchDiscriminator
from common.training import run as run_module
from gan_upscale import Config, main

ROOT = Path(__file__).parents[1]
FIGURES = ("initial", "final", "methods", "training", "worst")


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set in ImageNet's layout: JPEGs of dead leaves to train on, real photos to be scored on."""
    root = tmp_path_factory.mktemp("data") / "ImageNet"
    for i in range(40):
        path = root / "train" / f"n{i % 4:08}" / f"n{i % 4:08}_{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        dead_leaves(10_000 + i).save(path, quality=95)
    test = photos.find("builtin").test
    for i, item in enumerate(test.items):
        path = root / "val" / f"n{i % 2:08}" / f"ILSVRC2012_val_{i:08}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        test.open(item).save(path, quality=95)
    return root


@pytest.fixture(scope="session")
def trained(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One quick run of the whole experiment."""
    path = tmp_path_factory.mktemp("quick")
    config = Config(data=(str(imagenet),), figs=path / "figs", runs=path / "runs", quick=True, device="cpu")
    assert main(config) == 0
    return config


def read_results(config: Config) -> dict:
    return json.loads((config.figs / "gan_upscale.json").read_text())


def test_it_learns_and_the_figures_are_there(trained: Config) -> None:
    result = read_results(trained)
    scores = result["metrics"] | result["baselines"]
    assert set(result["baselines"]) == {"nearest", "bilinear", "bicubic", "Lanczos", "linear filter"}
    assert scores["linear filter"]["psnr"] > scores["Lanczos"]["psnr"] > scores["bicubic"]["psnr"]
    assert scores["fidelity"]["psnr"] > scores["linear filter"]["psnr"] + 0.02, "phase 1 learned"
    assert scores["GAN"]["detail_db"] > scores["fidelity"]["detail_db"] + 2, "phase 2 learned"
    assert scores["fidelity"]["psnr"] > scores["bicubic"]["psnr"] + 0.8
    assert scores["GAN"]["psnr"] > scores["nearest"]["psnr"] + 0.3
    assert scores["GAN"]["lr_psnr"] > 35, "still the same image"
    assert result["data"]["name"] == "ImageNet" and not result["data"]["builtin"]
    phases = result["trained"]["phases"]
    assert phases["fidelity"]["steps"] + phases["gan"]["steps"] == 300
    for name in FIGURES:
        with Image.open(trained.figs / f"GAN_upscaling_{name}.png") as figure:
            assert min(figure.size) > 400
            pixels = TF.pil_to_tensor(figure.convert("RGB")).float()
            assert pixels.std() > 10, "not empty"
    assert not (trained.figs / "index.html").exists(), "gallery and README are written by common.results"


def test_a_machine_with_nothing_trains_on_dead_leaves_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What --quick does where there are no photos and no network: the stand-in, announced everywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    if Path("/data/datasets/ImageNet").exists():
        pytest.skip("this machine has ImageNet")
    assert main(Config(quick=True, steps=6, device="cpu")) == 0
    figs = tmp_path / "figs" / "quick"
    result = json.loads((figs / "gan_upscale.json").read_text())
    assert result["data"]["builtin"] and result["data"]["count"] == 10
    assert (figs / "GAN_upscaling_standin.png").exists()
    assert "Built-in" in capsys.readouterr().out
    with Image.open(figs / "GAN_upscaling_final.png") as figure:
        assert "dead leaves" in figure.info["Description"] and "Built-in" in figure.info["Description"]


def test_what_a_killed_run_left_beside_the_figures_is_passed_over(trained: Config) -> None:
    (trained.figs / ".GAN_upscaling_final.x.png").write_bytes(b"half")
    (trained.figs / ".gan_upscale.x.json").write_text("{")
    results.publish(trained.figs)
    assert "final.x" not in (trained.figs / "index.html").read_text()


def test_a_flat_image_has_a_finite_loss() -> None:
    hr, lr = torch.full((1, 3, 112, 112), 0.5), torch.full((1, 3, 32, 32), 0.5)
    kernels = degradation.draw_kernels(np.random.default_rng(0), 1, 112)
    losses = gan_upscale.generator_losses(PatchDiscriminator(4), (hr, kernels), hr, (lr,), 0)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_the_history_shows_both_players(trained: Config) -> None:
    checkpoint = torch.load(trained.runs / "gan_upscale-quick" / "checkpoint.pt", weights_only=True)
    rows = [row for row in checkpoint["history"] if row["phase"] == "gan" and "accuracy_real" in row]
    assert rows
    for row in rows:
        assert 0 <= row["accuracy_real"] <= 1 and 0 <= row["accuracy_fake"] <= 1
        assert row["grad_generator"] > 0 and row["grad_discriminator"] > 0


def test_evaluate_scores_the_same_weights_again(
    trained: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_results(trained)
    weights = trained.runs / "gan_upscale-quick" / "weights.safetensors"
    stamp = weights.stat().st_mtime_ns
    again = replace(trained, evaluate=True, weights=str(weights), figs=tmp_path)
    assert main(again) == 0
    for method, scores in read_results(again)["metrics"].items():
        for name in ("psnr", "ssim", "detail_db", "checkerboard", "lr_psnr"):
            assert scores[name] == pytest.approx(before["metrics"][method][name], rel=1e-4)
    assert weights.stat().st_mtime_ns == stamp
    assert not (tmp_path / "GAN_upscaling_training.png").exists(), "nothing was trained"
    assert "Lanczos" in capsys.readouterr().out


def test_input_upscales_with_the_weights_and_blends(trained: Config, tmp_path: Path) -> None:
    hr = photos.find(*trained.data).test.standard_images()[:1]
    lr = degradation.downscale(hr)
    TF.to_pil_image(lr[0]).save(tmp_path / "lr.png")
    weights = trained.runs / "gan_upscale-quick" / "weights.safetensors"

    def upscaled(blend: float) -> torch.Tensor:
        out = tmp_path / f"{blend}.png"
        config = replace(trained, quick=False, input=tmp_path / "lr.png", output=out, overwrite=True)
        assert main(replace(config, weights=str(weights), blend=blend)) == 0
        with Image.open(out) as image:
            return TF.pil_to_tensor(image)[None]

    nets, _ = inference.load(weights, torch.device("cpu"))
    for blend, name in ((0.0, "fidelity"), (1.0, "gan")):
        difference = upscaled(blend).int() - evaluation.upscale(nets[name], lr).int()
        assert difference.abs().max() <= 1
    details = [evaluation.score(upscaled(blend), hr)["detail_db"] for blend in (0.0, 0.5, 1.0)]
    assert details == sorted(details), "blend is a dial of detail"


def test_quick_weights_never_stand_in_for_real_ones(
    trained: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trial of half a minute must not make --input worse."""
    assert (trained.runs / "gan_upscale-quick" / "weights.safetensors").exists()
    Image.new("RGB", (8, 8)).save(tmp_path / "in.png")
    config = Config(runs=trained.runs, input=tmp_path / "in.png", output=tmp_path / "out.png", device="cpu")
    assert main(config) == 0
    assert str(gan_upscale.SHIPPED) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": ("no/such/folder",)}, ("--data", "no/such/folder")),
        ({"input": Path("no_such.png"), "output": Path("out.png")}, ("no_such.png",)),
        ({"input": Path("a.png")}, ("--input", "--output")),
        ({"input": Path("~nosuchuser/a.png"), "output": Path("b.png")}, ("--input", "~nosuchuser")),
        ({"input": Path("a.png"), "output": Path("~nosuchuser/b.png")}, ("--output", "~nosuchuser")),
        ({"evaluate": True, "weights": "~nosuchuser/w.safetensors"}, ("--weights", "~nosuchuser")),
        ({"blend": 1.5, "input": Path("a.png"), "output": Path("b.png")}, ("--blend", "1.5")),
        ({"evaluate": True, "weights": "none.safetensors"}, ("none.safetensors",)),
        ({"steps": 10, "minutes": 1.0}, ("--steps", "--minutes")),
        ({"steps": 0}, ("--steps",)),
        ({"minutes": -1.0}, ("--minutes",)),
        ({"minutes": float("nan")}, ("--minutes",)),
        ({"resume": True}, ("--resume",)),
        ({"input": Path("a.png"), "output": Path("b.png"), "quick": True}, ("--quick", "--input")),
        ({"evaluate": True, "steps": 10}, ("--steps", "--evaluate")),
        ({"weights": "shipped"}, ("--weights", "training")),
        ({"seed": -1}, ("--seed", "-1")),
        ({"figs": Path(__file__) / "figs"}, (Path(__file__).name, "is a file")),
        ({"runs": Path(__file__)}, (Path(__file__).name, "is a file")),
    ],
)
def test_bad_input_is_one_clear_line(
    imagenet: Path, tmp_path: Path, change: dict, words: tuple[str, ...]
) -> None:
    config = Config(data=(str(imagenet),), figs=tmp_path / "figs", runs=tmp_path / "runs")
    with pytest.raises(UserError) as refused:
        main(replace(config, **change))
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    weights.save(tmp_path / "other.safetensors", {"net": torch.nn.Linear(2, 2)}, {"channels": 3})
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    for name in ("other", "broken"):
        with pytest.raises(UserError, match=name):
            inference.load(tmp_path / f"{name}.safetensors", torch.device("cpu"))


def start(path: Path, imagenet: Path, *more: str) -> subprocess.Popen[str]:
    words = ["--data", imagenet, "--figs", path / "figs", "--runs", path / "runs", "--device", "cpu", *more]
    return subprocess.Popen(
        [sys.executable, "gan_upscale.py", "--quick", "--precision", "float32", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def saved_at(checkpoint: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return checkpoint.stat().st_mtime_ns
    return 0


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_left_alone(
    imagenet: Path, trained: Config, tmp_path: Path, kills: int
) -> None:
    checkpoint = tmp_path / "killed" / "runs" / "gan_upscale-quick" / "checkpoint.pt"
    for kill in range(kills):
        before = saved_at(checkpoint)
        run = start(tmp_path / "killed", imagenet, *["--resume"] * (kill > 0))
        while saved_at(checkpoint) == before:
            assert run.poll() is None, run.stdout and run.stdout.read()
            time.sleep(0.05)
        time.sleep(random.uniform(0, 2))
        assert run.poll() is None, "killed at work, not after it"
        run.kill()
        run.wait()
    run = start(tmp_path / "killed", imagenet, "--resume")
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output

    runs = trained.runs, tmp_path / "killed" / "runs"  # the first in another process, left alone
    weights = [load_file(path / "gan_upscale-quick" / "weights.safetensors") for path in runs]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    scores = [read_results(trained), json.loads((tmp_path / "killed/figs/gan_upscale.json").read_text())]
    for method in ("fidelity", "GAN"):
        one, other = ({k: v for k, v in s["metrics"][method].items() if k != "ms"} for s in scores)
        assert one == other


def test_ctrl_c_saves_and_prints_the_line_that_goes_on(imagenet: Path, tmp_path: Path) -> None:
    run = start(tmp_path, imagenet, "--steps", "100000")
    checkpoint = tmp_path / "runs" / "gan_upscale-quick" / "checkpoint.pt"
    while not checkpoint.exists():
        assert run.poll() is None, run.stdout and run.stdout.read()
        time.sleep(0.05)
    time.sleep(1)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130, output
    assert "--steps 100000" in output and "--resume" in output and "Traceback" not in output
    assert torch.load(checkpoint, weights_only=True)["phases"]


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes most of the time of a short run: figures, and the similarity of images."""
    for name in ("save_all", "save_training"):
        monkeypatch.setattr(gan_upscale.figures, name, lambda *_, **__: None)
    similarity = "structural_similarity_index_measure"
    monkeypatch.setattr(torchmetrics.functional.image, similarity, lambda *_, **__: torch.tensor(1.0))


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("stop_at", ["", "fidelity", "gan"])
def test_a_larger_budget_goes_on(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    """Phase 1 grows with the run only while it is at work; phase 2 always has the rest."""
    config = Config(
        (str(imagenet),), tmp_path / "figs", tmp_path / "runs", quick=True, device="cpu", steps=20
    )

    def run(config: Config, stop_at: str = "") -> tuple[int, int]:
        losses = {"fidelity": gan_upscale.fidelity_losses, "gan": gan_upscale.generator_losses}
        calls: list[int] = []

        def stopping(*inputs: object) -> dict[str, torch.Tensor]:
            calls.append(1)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return losses[stop_at](*inputs)

        with monkeypatch.context() as patch:
            if stop_at:
                patch.setattr(gan_upscale, losses[stop_at].__name__, stopping)
            main(config)
        phases = read_results(config)["trained"]["phases"]
        return phases["fidelity"]["steps"], phases["gan"]["steps"]

    drawn = []
    monkeypatch.setattr(run_module, "DRAW_EVERY", 0.0)
    monkeypatch.setattr(gan_upscale.figures, "save_training", lambda *of: drawn.append(of[2][-1]["phase"]))
    if stop_at:
        with pytest.raises(SystemExit):
            run(config, stop_at)
        assert set(drawn) == {"fidelity", stop_at}, "the state so far can be looked at"
    else:
        assert run(config) == (17, 3)
    with pytest.raises(UserError, match="steps = 20, now it is steps = 10; give as much or more"):
        run(replace(config, resume=True, steps=10))
    longer = replace(config, resume=True, steps=30)
    if stop_at:
        with pytest.raises(SystemExit):  # and it can be stopped again
            run(longer, stop_at)
    assert run(longer) == ((25, 5) if stop_at == "fidelity" else (17, 13))
    if not stop_at:
        assert run(longer) == (17, 13), "nothing is left to do"


@pytest.mark.usefixtures("cheap")
def test_more_minutes_go_on(imagenet: Path, tmp_path: Path) -> None:
    config = Config((str(imagenet),), tmp_path / "figs", tmp_path / "runs", quick=True, device="cpu")
    assert main(replace(config, minutes=0.05)) == 0
    before = read_results(config)["trained"]["phases"]
    assert main(replace(config, minutes=0.06, resume=True)) == 0
    after = read_results(config)["trained"]["phases"]
    assert after["fidelity"]["steps"] == before["fidelity"]["steps"]
    assert after["gan"]["steps"] > before["gan"]["steps"]


def test_a_program_that_is_ended_leaves_no_file(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 2000)).save(tmp_path / "in.png")
    runs = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        words = [
            "--input",
            tmp_path / "in.png",
            "--output",
            tmp_path / str(int(number)) / "out.png",
            "--device",
            "cpu",
        ]
        runs[number] = subprocess.Popen(
            [sys.executable, "gan_upscale.py", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    for number, run in runs.items():
        while not list(tmp_path.glob(f"{int(number)}/.*")):
            assert run.poll() is None, run.stdout and run.stdout.read()
            time.sleep(0.05)
        run.send_signal(number)
        said, _ = run.communicate(timeout=60)
        assert run.returncode == 128 + number and b"Traceback" not in said
        assert not list((tmp_path / str(int(number))).iterdir())


def test_a_mistyped_flag_is_refused_and_the_right_one_named() -> None:
    done = subprocess.run(
        [sys.executable, "gan_upscale.py", "--minuts", "3"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "--minutes" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
