"""The GAN of digits through its own `main`, on small real digits: it learns, goes on, writes, refuses."""

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from test_datasets_mnist import put
from test_evaluation_mnist import grid_evaluator
from torch import Tensor, nn

import gan_mnist
from common.cli import UserError
from common.datasets import mnist
from common.evaluation import mnist as evaluation
from common.figures import mnist as figures
from common.files import DiskFull
from common.inference import handwriting
from common.inference import mnist as inference
from common.inference.mnist import Sampler
from common.models.mnist import Classifier, Discriminator, Generator
from common.studies import mnist as studies
from common.training import run as run_module
from common.training.run import Run
from gan_mnist import Config, main

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One quick run of the whole experiment on the built-in digits; the evaluator is trained on the way."""
    path = tmp_path_factory.mktemp("digits")
    config = Config(data="builtin", figs=path / "figs", runs=path / "runs", quick=True, device="cpu")
    assert main(config) == 0
    return config


@pytest.fixture(scope="session")
def weights(trained: Config) -> str:
    return str(trained.runs / "gan_mnist-quick" / "weights.safetensors")


def test_it_learns_and_the_figures_are_there(trained: Config) -> None:
    found = json.loads((trained.figs / "gan_mnist.json").read_text())
    (name,) = {metric for metric in found["metrics"]["GAN"] if metric.startswith("FID-")}
    gan, baselines = found["metrics"]["GAN"], found["baselines"]
    assert gan[name] < baselines["noise"][name] / 4
    assert gan["class_accuracy"] > 0.6 > baselines["noise"]["class_accuracy"]
    assert gan["recall"] > 0.1 > baselines["noise"]["recall"]
    assert baselines["real"][name] < baselines["real, blurred"][name] < baselines["noise"][name]
    assert found["data"]["builtin"] and found["evaluator_accuracy"] > 0.93
    for figure in ("", "_styles", "_neighbours", "_classes", "_training"):
        with Image.open(trained.figs / f"GAN_mnist{figure}.png") as image:
            assert image.width > 600
            assert "scikit-learn" in image.text["Description"]  # type: ignore[attr-defined]
    film = trained.figs / "GAN_mnist_training.gif"
    with Image.open(film) as image:
        assert image.n_frames == 5 and film.stat().st_size < 3e6


def test_a_model_that_learned_nothing_is_called_so(
    trained: Config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(trained.runs / "gan_mnist-evaluator", tmp_path / "gan_mnist-evaluator")
    assert main(replace(trained, steps=1, runs=tmp_path, figs=tmp_path / "figs")) == 0
    printed = capsys.readouterr().out
    assert "it has learned nothing" in printed
    assert "Built-in" in printed or "built-in" in printed


@pytest.mark.parametrize("method", ["conditional", "1"])
def test_a_stopped_run_goes_on_exactly(
    trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    data = mnist.find("builtin")
    evaluator = evaluation.Evaluator(Classifier(2, 4, 10).predict, data)
    preset = replace(gan_mnist.PRESETS["quick"], g_channels=4, d_channels=4, batch=8)

    def weights(name: str, resume: bool = False) -> dict[str, Tensor]:
        config = replace(trained, steps=8, method=method, runs=tmp_path / name, resume=resume)
        return gan_mnist.train(config, preset, data, evaluator, CPU)[0].generator.state_dict()

    one = weights("whole")
    real_batches = mnist.gan_batches

    def interrupted(*words: Any) -> Any:
        def until(first: int) -> Iterator[Any]:
            for step, batch in enumerate(real_batches(*words)(first), first):
                if step == 5:
                    signal.raise_signal(signal.SIGINT)
                yield batch

        return until

    monkeypatch.setattr(mnist, "gan_batches", interrupted)
    monkeypatch.setattr(run_module, "DRAW_EVERY", 0.0)
    way = "" if method == "conditional" else f"_method_{method}"
    curves = trained.figs / f"GAN_mnist{way}_training.png"
    curves.unlink(missing_ok=True)
    with pytest.raises(SystemExit) as stop:
        weights("stopped")
    assert stop.value.code == 130 and curves.exists(), "the state so far can be looked at"
    monkeypatch.undo()
    other = weights("stopped", resume=True)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_stopped_while_its_evaluator_was_trained_goes_on(
    trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mnist.find("builtin")
    small = replace(data, train=data.train[:300], train_labels=data.train_labels[:300])
    monkeypatch.setattr(mnist, "find", lambda *words, **more: small)
    config = replace(trained, steps=2, runs=tmp_path / "runs", figs=tmp_path / "figs")
    forward, calls = Classifier.forward, []

    def interrupted(classifier: Classifier, images: Tensor) -> Tensor:
        calls.append(len(images))
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return forward(classifier, images)

    monkeypatch.setattr(Classifier, "forward", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(config)
    assert stop.value.code == 130
    assert main(replace(config, resume=True)) == 0
    assert calls == 20 * [100]  # ten epochs of two steps, none taken twice
    with pytest.raises(UserError, match=r"--resume.* has steps = 2, now it is steps = 1"):
        main(replace(config, resume=True, steps=1))


def test_the_same_seed_gives_the_same_numbers_and_more_steps_go_on_from_there(
    trained: Config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = replace(trained, runs=tmp_path / "runs", figs=tmp_path / "figs")
    assert main(config) == 0
    once, again = (json.loads((path / "gan_mnist.json").read_text()) for path in (trained.figs, config.figs))
    for part in ("metrics", "baselines", "nearest_neighbour_ratio", "evaluator_accuracy"):
        assert once[part] == again[part]
    paths = [of.runs / "gan_mnist-quick" / "weights.safetensors" for of in (trained, config)]
    one, other = (inference.load(path, "conditional", CPU).generator.state_dict() for path in paths)
    assert all(torch.equal(one[key], other[key]) for key in one)

    assert main(replace(config, resume=True, steps=260)) == 0
    assert "gan: goes on to 260 steps, with a new schedule from here" in capsys.readouterr().out
    longer = inference.load(paths[1], "conditional", CPU)
    assert longer.about["phases"]["gan"]["steps"] == 260
    assert not torch.equal(one["first"], longer.generator.first)


def test_method_2_goes_on_with_more_minutes_after_both_its_phases(
    trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(trained.runs / "gan_mnist-evaluator", tmp_path / "gan_mnist-evaluator")
    monkeypatch.setattr(Classifier, "forward", sure)  # nothing that could be read comes of a second
    config = replace(trained, method="2", minutes=0.01, runs=tmp_path, figs=tmp_path / "figs")
    assert main(config) == 0
    path = tmp_path / "gan_mnist-2-quick" / "weights.safetensors"
    before = inference.load(path, "2", CPU)
    assert main(replace(config, resume=True, minutes=0.02)) == 0
    assert "gan: goes on to" in capsys.readouterr().out
    after = inference.load(path, "2", CPU)
    assert before.classifier and after.classifier
    assert before.about["phases"]["gan"]["steps"] < after.about["phases"]["gan"]["steps"]
    assert not torch.equal(before.generator.first, after.generator.first)
    for one, other in zip(before.classifier.parameters(), after.classifier.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_damaged_evaluator_is_named(tmp_path: Path) -> None:
    (tmp_path / "evaluator.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"evaluator.safetensors .*remove it"):
        evaluation.load_classifier(tmp_path / "evaluator.safetensors")


# --------------------------------------------------------------------------------- sampling and writing


def test_sample_writes_images_and_labels(weights: str, tmp_path: Path) -> None:
    def sample(name: str, seed: int) -> dict[str, np.ndarray]:
        config = Config(sample=25, output=tmp_path / name, weights=weights, seed=seed, device="cpu")
        assert main(config) == 0
        with np.load(tmp_path / name) as file:
            return dict(file)

    one, again, other = sample("1.npz", 0), sample("2.npz", 0), sample("3.npz", 1)
    assert one["images"].shape == (25, 28, 28) and one["images"].dtype == np.uint8
    assert one["labels"].tolist() == [k % 10 for k in range(25)]
    assert np.array_equal(one["images"], again["images"])
    assert not np.array_equal(one["images"], other["images"])
    assert np.median(one["images"]) < 30 < one["images"].max()  # white on black
    assert sample("4.NPZ", 0)["images"].shape == (25, 28, 28)
    assert not list(tmp_path.glob(".*"))
    main(Config(sample=25, output=tmp_path / "page.png", weights=weights, device="cpu"))
    with Image.open(tmp_path / "page.png") as page:
        assert page.size == (280, 84)
        assert np.array_equal(np.array(page)[:28, 28:56], one["images"][1])


def test_writing_draws_all_characters_at_once_in_one_hand(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noises: list[Tensor] = []
    sample = inference.Sampler.sample

    def recorded(sampler: Any, labels: Tensor, rng: torch.Generator, noise: Tensor) -> Any:
        assert labels.tolist() == [1, 1, 7, 1]
        noises.append(noise)
        return sample(sampler, labels, rng, noise)

    monkeypatch.setattr(inference.Sampler, "sample", recorded)
    for name, style in (("note.png", 0), ("note.svg", 1)):
        config = Config(write="117 1.", output=tmp_path / name, weights=weights, ink="navy", device="cpu")
        assert main(replace(config, style=style)) == 0
    one, other = noises
    assert torch.cdist(one, one).max() < torch.cdist(one, other).min()  # hands differ more than characters
    with Image.open(tmp_path / "note.png") as page:
        assert page.mode == "RGBA" and page.getpixel((0, 0))[3] == 0
        assert page.getchannel("A").getextrema() == (0, 255)
    assert (tmp_path / "note.svg").read_text(encoding="utf-8").count('style="fill: #000080"') == 5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"write": "2x"}, "0123456789"),
        ({"write": "12", "ink": "blurple"}, "--ink"),
        ({"write": "12", "paper": "nowhere"}, "--paper"),
        ({"write": "12", "output": Path("note.jpg")}, "--output"),
        ({"write": "12", "output": None}, "--output"),
        ({"sample": 0}, "--sample 0"),
        ({"sample": 10**12}, "--sample 1000000000000"),
        ({"sample": 5, "output": Path("a" * 300 + ".png")}, "--output"),
        ({"sample": 5, "output": Path("~nosuchuser/a.png")}, "--output ~nosuchuser"),
        ({"sample": 5, "weights": "~nosuchuser/w.safetensors"}, "--weights ~nosuchuser"),
        ({"sample": 5, "weights": "a" * 300}, "no weights in aaa"),
        ({"quick": True, "preset": "gpu"}, "--preset gpu"),
        ({"sample": 5, "write": "1"}, "--sample and --write"),
        ({"sample": 5, "ink": "red"}, "--ink"),
        ({"sample": 5, "style": 1}, "--style"),
        ({"write": "12", "height": 5}, "--height 5"),
        ({"write": "1 \N{GRINNING FACE}"}, "cannot write"),
        ({"sample": 5, "steps": 3}, "--steps"),
        ({"sample": 5, "weights": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"sample": 5, "method": "2"}, "--method 2"),
        ({"steps": 3, "minutes": 1.0}, "--steps and --minutes"),
        ({"minutes": float("nan")}, "--minutes"),
        ({"steps": 0}, "--steps 0"),
        ({"unconditional": True, "method": "1"}, "--unconditional"),
        ({"weights": "shipped"}, "--weights"),
        ({"balance": True, "method": "2"}, "--method"),
        ({"figs": Path("a" * 300)}, "File name too long"),
        ({"runs": Path("a" * 300)}, "File name too long"),
    ],
)
def test_bad_flags_are_one_line_and_nothing_is_written(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    generates = "sample" in flags or "write" in flags
    usual = {"output": Path("out.png"), "weights": weights} if generates else {}
    with pytest.raises(UserError) as refusal:
        main(Config(device="cpu", **(usual | flags)))  # type: ignore[arg-type]
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_paths_with_a_tilde_and_long_names_work(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    name = "w" * (255 - len(".safetensors")) + ".safetensors"
    shutil.copy(weights, tmp_path / name)
    output = "o" * 251 + ".png"
    assert main(Config(sample=5, output=Path("~", output), weights=f"~/{name}", device="cpu")) == 0
    assert (tmp_path / output).read_bytes().startswith(b"\x89PNG")


def test_an_output_that_exists_is_kept(weights: str, tmp_path: Path) -> None:
    (tmp_path / "out.png").write_text("mine")
    config = Config(sample=5, output=tmp_path / "out.png", weights=weights, device="cpu")
    with pytest.raises(UserError, match="--overwrite"):
        main(config)
    assert (tmp_path / "out.png").read_text() == "mine"
    main(replace(config, overwrite=True))
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder\.png is a folder"):
        main(replace(config, output=tmp_path / "folder.png", overwrite=True))


@pytest.mark.parametrize("flags", [{"sample": 5}, {"write": "12"}])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any]
) -> None:
    monkeypatch.setattr(Path, "write_bytes", full)
    for name in ("out.png", "out.npz")[: 1 if "write" in flags else 2]:
        with pytest.raises(DiskFull, match=rf"{name}: No space left on device; make room"):
            main(Config(output=tmp_path / name, weights=weights, device="cpu", **flags))
    assert not list(tmp_path.iterdir())


def full(*words: Any, **more: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_named_while_film_and_figures_are_written(
    trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mnist.find("builtin")
    evaluator = evaluation.Evaluator(Classifier(2, 4, 10).predict, data)
    config = replace(trained, steps=1, runs=tmp_path)
    sampler, progress = gan_mnist.train(config, gan_mnist.PRESETS["quick"], data, evaluator, CPU)

    def save_all() -> None:
        fake = data.test, data.test_labels
        figures.save_all(tmp_path, "gan_mnist", sampler, evaluator, *fake, data, 0, progress)

    for owner, name, write, file in (
        (Image.Image, "save", lambda: progress.validate(sampler.generator), "film/0002.png"),
        (Image.Image, "save", save_all, "GAN_mnist.png"),
        (Path, "write_bytes", save_all, "GAN_mnist_training.gif"),
    ):
        with (
            monkeypatch.context() as patch,
            pytest.raises(DiskFull, match=f"{file}: No space left on device; make"),
        ):
            patch.setattr(owner, name, full)
            write()
    save_all()


def test_too_little_memory_is_no_damage(
    weights: str, trained: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*words: Any, **more: Any) -> None:
        raise MemoryError

    for owner in (Generator, Classifier):
        monkeypatch.setattr(owner, "load_state_dict", too_large)
    monkeypatch.setattr(torch, "load", too_large)
    for load in (
        lambda: inference.load(Path(weights), "conditional", CPU),
        lambda: evaluation.load_classifier(evaluation.SHIPPED[0]),
        lambda: main(replace(trained, evaluate=True, quick=False)),
        lambda: Run(trained.runs / "gan_mnist-quick", settings={}, device=CPU, resume=True),
    ):
        with pytest.raises(MemoryError):
            load()


# -------------------------------------------------------------------------------------- the three methods


def test_side_by_side_nets_share_nothing() -> None:
    """Neither in what they generate nor in what they learn: ten GANs, not one."""
    torch.manual_seed(0)
    generator, discriminator = Generator(8, 4, nets=3), Discriminator(4, nets=3)
    noise = torch.randn(8, 3, 8)
    other = noise.clone()
    other[:, 1] = torch.randn(8, 8)
    one, two = generator(noise), generator(other)
    same = [torch.allclose(one[:, k], two[:, k], atol=1e-6) for k in range(3)]
    assert same == [True, False, True]
    scores = [discriminator(images)[0] for images in (one, two)]
    assert torch.allclose(scores[0][:, 0], scores[1][:, 0], atol=1e-5)
    assert not torch.allclose(scores[0][:, 1], scores[1][:, 1], atol=1e-5)
    discriminator(generator(noise))[0][:, 2].sum().backward()
    slopes = [of.abs().sum() > 0 for of in generator.first.grad]  # type: ignore[union-attr]
    assert slopes == [False, False, True]


def test_method_1_samples_each_character_by_its_own_net() -> None:
    sampler = Sampler("1", Level(), "0123456789")  # type: ignore[arg-type]
    labels = torch.tensor([3, 3, 0, 9, 3])
    fake, cost = sampler.sample(labels, torch.Generator().manual_seed(0))
    assert fake.shape == (5, 28, 28)
    assert (fake.float().mean((1, 2)) / 25.5).round().long().tolist() == labels.tolist()
    assert cost == {"0": 1.0, "3": 1.0, "9": 1.0}


class Level(nn.Module):
    """In place of ten nets: net k makes a grey of k tenths."""

    latent, nets = 2, 10

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1))

    def forward(self, noise: Tensor) -> Tensor:
        return (torch.arange(10) / 10)[None, :, None, None].expand(len(noise), -1, 28, 28)


class Grey(nn.Module):
    """In place of one net: a grey that depends on the noise."""

    latent, nets = 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1))

    def forward(self, noise: Tensor) -> Tensor:
        return torch.special.ndtr(noise)[..., None].expand(-1, -1, 28, 28)  # even in 0..1


class GreyClassifier(nn.Module):
    """Dark is 0, bright is 1, and of the middle it is not sure; nothing is a 2."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        level = images.mean((1, 2, 3))
        dark, bright = (10.0 * (level < 0.25), 10.0 * (level > 0.75))
        return torch.stack([dark, bright, torch.full_like(level, -99.0)], 1)


def test_method_2_accepts_only_what_its_classifier_is_sure_of(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler("2", Grey(), "012", GreyClassifier())  # type: ignore[arg-type]
    labels = torch.tensor([0, 1] * 20)
    fake, cost = sampler.sample(labels, torch.Generator().manual_seed(0))
    level = fake.float().mean((1, 2)) / 255
    assert (level[labels == 0] < 0.3).all() and (level[labels == 1] > 0.7).all()
    assert 3 < cost["0"] < 5 and 3 < cost["1"] < 5  # a quarter of all samples are surely one of them
    assert len(fake.flatten(1).unique(dim=0)) > 20  # not the same image again and again
    monkeypatch.setattr(inference, "MAX_REJECTED", 1_000)
    with pytest.raises(UserError, match="no more of 2"):
        sampler.sample(torch.tensor([0, 2]), torch.Generator().manual_seed(0))


def test_method_2_draws_among_characters_that_look_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alike(GreyClassifier):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([0.6, 0.3, 0.1]).log().expand(len(images), -1)

    labels = torch.tensor([0, 1, 2] * 300)
    _, cost = Sampler("2", Grey(), "0Oo", Alike()).sample(labels, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert [1 / cost[of] for of in "0Oo"] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    monkeypatch.setattr(inference, "MAX_REJECTED", 1_000)
    with pytest.raises(UserError, match="no more of a, b, c"):  # of other shapes it is sure of none
        Sampler("2", Grey(), "abc", Alike()).sample(labels, torch.Generator().manual_seed(0))  # type: ignore[arg-type]


def test_the_weights_that_know_the_characters_are_taken(
    letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def put_weights(path: Path, characters: str) -> Path:
        inference.save(
            path,
            [Sampler("conditional", Generator(4, 4, len(characters)), characters, None, {"data": "none"})],
        )
        return path

    all_characters = mnist.EMNIST[0].characters
    digits = put_weights(tmp_path / "digits.safetensors", "0123456789")
    handwriting = put_weights(tmp_path / "handwriting.safetensors", all_characters)
    monkeypatch.setattr(inference, "SHIPPED", {"digits": digits, "handwriting": handwriting})

    def chosen(text: str = "", data: mnist.Digits | None = None, **flags: Any) -> str:
        inference.load_chosen(Config(runs=tmp_path, **flags), "conditional", CPU, data, text)
        return capsys.readouterr().out.split()[1].removesuffix(",")

    assert chosen() == chosen("2026: 11") == str(digits)
    assert chosen("Hello, 2026!") == chosen("2026", weights="handwriting") == str(handwriting)
    assert chosen("Hello", weights="digits") == str(digits)  # which cannot: asked for is asked for
    newest = put_weights(tmp_path / "gan_letters" / "weights.safetensors", "abcdefghijklmnopqrstuvwxyz")
    assert chosen("hello") == chosen(data=mnist.find(str(letters))) == str(newest)
    assert chosen("Hello") == chosen("hello", weights="shipped") == str(handwriting)
    assert chosen("2026") == str(digits)
    newest = put_weights(tmp_path / "gan_mnist" / "weights.safetensors", "0123456789")
    assert chosen("2026") == chosen() == str(newest)


@pytest.mark.parametrize("method", inference.METHODS)
def test_weights_of_each_method_are_saved_and_loaded(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = Generator(4, 4, 10 if method == "conditional" else 0, 10 if method == "1" else 1)
    classifier = Classifier(2, 8, 10) if method == "2" else None
    saved = Sampler(method, generator.eval(), "0123456789", classifier, {"data": "none"})
    noise, labels = torch.randn(5, 4), torch.arange(5)
    if method == "conditional":
        saved.spread = torch.linspace(0.5, 2.75, 10)
    inference.save(tmp_path / "w.safetensors", [saved])
    loaded = inference.load(tmp_path / "w.safetensors", method, CPU)
    assert torch.equal(saved.interpolate(noise, 3), loaded.interpolate(noise, 3))
    assert loaded.parameters() == saved.parameters() and loaded.about["data"] == "none"
    if saved.spread is not None:
        drawn = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)) * saved.spread[:5, None]
        rngs = [torch.Generator().manual_seed(0) for _ in range(2)]
        assert torch.equal(loaded.sample(labels, rngs[0])[0], saved.sample(labels, rngs[1], drawn)[0])
    other = next(name for name in inference.METHODS if name != method)
    with pytest.raises(UserError, match=f"--method {other}"):
        inference.load(tmp_path / "w.safetensors", other, CPU)


def test_a_class_that_varies_too_little_gets_wider_noise_and_one_that_is_misread_narrower() -> None:
    class Spots(Sampler):
        """Two pixels, grey of 50 or 150 and more or less by the class."""

        def sample(self, labels: Tensor, rng: torch.Generator, noise: Tensor | None = None) -> Any:
            assert self.spread is not None
            width = self.spread[labels] * torch.tensor([12.0, 60.0])[labels]
            middle = torch.tensor([50.0, 150.0])[labels]
            x = middle[:, None] + width[:, None] * torch.randn(len(labels), 2, generator=rng)
            x = x.clamp(0, 255).to(torch.uint8)[:, None]  # [N,1,2]
            return F.pad(x, (0, 26, 0, 27)), {}

    evaluator, real = grid_evaluator()
    data = mnist.Digits("squares", real, evaluator.labels, real, evaluator.labels, "012", False, "")
    sampler = Spots("conditional", Generator(4, 4, 3), "012")
    evaluator.predict = lambda images, of=evaluator.predict: (of(images)[0], F.pad(of(images)[1], (0, 1)))
    narrow, wide, missing = inference.choose_spread(sampler, evaluator, data)
    assert narrow > 1.15 and wide < 0.95 and missing == 1


def sure(classifier: Classifier, images: Tensor) -> Tensor:
    """Some class by the ink, as training needs it with gradients."""
    logits = 99.0 * nn.functional.one_hot((255 * images).sum((1, 2, 3)).round().long() % 10, 10)
    return logits + 0.0 * sum(weight.sum() for weight in classifier.parameters())


def test_the_three_methods_are_compared_and_saved_in_one_file(
    trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sure(Classifier):
        """Is sure of anything."""

        forward = sure

    def load(config: Config, method: str, *words: Any) -> Sampler:
        generator = Generator(4, 4, 10 if method == "conditional" else 0, 10 if method == "1" else 1).eval()
        phases = {"gan": {"seconds": 60.0}} | ({"classifier": {"seconds": 30.0}} if method == "2" else {})
        classifier = Sure(2, 4, 10) if method == "2" else None
        return Sampler(method, generator, "0123456789", classifier, {"data": "none", "phases": phases})

    classifier, _ = evaluation.load_classifier(trained.runs / "gan_mnist-evaluator" / "evaluator.safetensors")
    data = mnist.find("builtin")
    evaluator = evaluation.Evaluator(classifier.predict, data)
    monkeypatch.setattr(inference, "load_chosen", load)
    config = replace(trained, quick=False, runs=tmp_path, figs=tmp_path / "figs")
    assert studies.compare(config, data, evaluator, CPU) == 0
    found = json.loads((tmp_path / "figs" / "gan_mnist_methods.json").read_text())["metrics"]
    minutes = {name: of["training, minutes"] for name, of in found.items()}
    assert minutes == {"conditional": 1.0, "Method 1": 1.0, "Method 2": 1.5}
    for method in inference.METHODS:
        saved = inference.load(tmp_path / "gan_mnist-all" / "digits.safetensors", method, CPU)
        assert saved.about["written"]["training, minutes"] == minutes[inference.METHODS[method]]


# ------------------------------------------------------------------------------------------------ letters


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """EMNIST's split of 26 letters, in its own format, small: letters of a font, at places that differ."""
    rng, font, folder = np.random.default_rng(0), ImageFont.load_default(24), tmp_path / "letters"
    for part, each in (("train", 30), ("test", 8)):
        labels = np.repeat(np.arange(26, dtype=np.uint8), each)
        rng.shuffle(labels)
        images = np.zeros((len(labels), 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            page = Image.new("L", (28, 28))
            middle = 14 + rng.integers(-1, 2), 13 + rng.integers(-1, 2)
            ImageDraw.Draw(page).text(middle, chr(97 + label), 255, font, anchor="mm")
            image[:] = np.asarray(page).T  # EMNIST's images lie on their side
        files = {"images-idx3": images, "labels-idx1": labels + 1}
        put(folder, {f"emnist-letters-{part}-{kind}-ubyte": array for kind, array in files.items()})
    return folder


def test_weights_of_digits_are_not_scored_on_letters(letters: Path, weights: str) -> None:
    config = Config(evaluate=True, weights=weights)
    with pytest.raises(UserError, match=r"--data: .*abcdefghijklmnopqrstuvwxyz.*0123456789"):
        inference.load_chosen(config, "conditional", CPU, mnist.find(str(letters)))


def test_letters_are_learned_upright_and_written(
    letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = Config(
        data=str(letters), figs=tmp_path / "figs", runs=tmp_path / "runs", quick=True, device="cpu"
    )
    assert main(replace(config, steps=150)) == 0
    path = str(tmp_path / "runs" / "gan_letters-quick" / "weights.safetensors")
    data, sampler = mnist.find(str(letters)), inference.load(Path(path), "conditional", CPU)
    assert sampler.characters == "abcdefghijklmnopqrstuvwxyz"
    labels = torch.arange(260) % 26
    fake = sampler.sample(labels, torch.Generator().manual_seed(0))[0].float()
    means = torch.stack([data.train[data.train_labels == k].float().mean(0) for k in range(26)])

    def nearest(to: Tensor) -> Tensor:
        return torch.cdist(fake.flatten(1), to.flatten(1)).argmin(1)

    upright = (nearest(means) == labels).float().mean()
    assert upright > 0.4, upright
    assert (nearest(means.transpose(1, 2)) == labels).float().mean() < upright / 2

    note = tmp_path / "note.png"
    assert main(Config(write="gap in", output=note, weights=path, device="cpu")) == 0
    with Image.open(note) as page:
        rows = np.flatnonzero(np.asarray(page.getchannel("A")).max(1))
    assert rows[-1] - rows[0] > 1.6 * 128 / handwriting.LINE  # g and p hang below the line
    with pytest.raises(UserError, match=r"'G', '1'.*abcdefghijklmnopqrstuvwxyz"):
        main(Config(write="Gap 1", output=tmp_path / "other.png", weights=path, device="cpu"))


# ------------------------------------------------------------------------------------------ the lesson


def test_minibatch_standard_deviation_finds_out_who_repeats() -> None:
    torch.manual_seed(0)
    one = torch.rand(1, 1, 28, 28)
    same, varied = one.expand(8, -1, -1, -1), torch.rand(8, 1, 28, 28)
    for group in (4, 0):
        discriminator = Discriminator(8, group=group)
        alone = discriminator(one.expand(4, -1, -1, -1))[0][0]
        together = discriminator(torch.cat([one, varied[1:]]))[0][0]
        assert torch.allclose(alone, together, atol=1e-6) == (group == 0)
        assert torch.allclose(discriminator(same)[0], alone.expand(8, 1), atol=1e-6)


def test_the_balance_is_studied_and_a_stopped_study_goes_on(
    trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(trained, balance=True, figs=tmp_path)
    assert main(config) == 0
    found = json.loads((tmp_path / "gan_mnist_balance.json").read_text())
    rows = found["metrics"]
    assert next(iter(rows)).startswith("discriminator of") and list(rows)[-1].startswith("without")
    with Image.open(tmp_path / "GAN_mnist_balance.png") as image:
        assert image.width > 600

    def never(*words: Any) -> Any:
        raise AssertionError("trains what has been trained")

    monkeypatch.setattr(mnist, "gan_batches", lambda *words: never)
    assert main(replace(config, resume=True)) == 0
    assert json.loads((tmp_path / "gan_mnist_balance.json").read_text())["metrics"] == rows


def test_shift_moves_every_image_by_a_pixel_each_another_way() -> None:
    torch.manual_seed(0)
    plain, shifted = Discriminator(8, group=0), Discriminator(8, group=0, shift=True)
    shifted.load_state_dict(plain.state_dict())
    image = torch.zeros(1, 1, 28, 28)
    image[..., 5:20, 5:20] = torch.rand(15, 15)
    moved = [image.roll((y, x), (2, 3)) for y in (-1, 0, 1) for x in (-1, 0, 1) if x or y]
    scores = {round(score, 6) for score in shifted(image.expand(16, -1, -1, -1))[0].flatten().tolist()}
    assert scores == {round(score, 6) for score in plain(torch.cat(moved))[0].flatten().tolist()}
    assert len(scores) == 8 and round(plain(image)[0].item(), 6) not in scores


def test_losses_are_as_published() -> None:
    assert gan_mnist.relativistic_loss(torch.tensor([3.0]), torch.tensor([1.0])).item() == pytest.approx(
        np.log1p(np.exp(-2.0))
    )

    class Sum(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, None]:
            return 3 * images.sum((2, 3)), None

    penalty = gan_mnist.gradient_penalty(Sum(), torch.rand(4, 1, 28, 28), ())
    assert penalty.item() == pytest.approx(9 * 784 / 2)

    both = torch.rand(4, 1, 28, 28), torch.rand(4, 1, 28, 28)
    presets = (gan_mnist.Preset(1, 1, 4, r2=r2) for r2 in (False, True))
    r1, r1_and_r2 = (gan_mnist.discriminator_losses(preset, Sum(), *both, (), 0)[0] for preset in presets)
    assert r1_and_r2["gradient_penalty"].item() == pytest.approx(2 * r1["gradient_penalty"].item())


@pytest.mark.parametrize("method", inference.METHODS)
def test_batches_begin_anywhere_and_labels_fit(method: str) -> None:
    data = mnist.find("builtin")
    labelled, by_class = method == "conditional", method == "1"
    start = mnist.gan_batches(data, 16, 64, 3, 4 * labelled, by_class)
    stream = start(0)
    for _ in range(60):  # past the end of an epoch
        next(stream)
    for step in range(60, 62):
        (condition, real), (condition_too, real_too) = next(stream), next(start(step))
        assert torch.equal(real, real_too) and all(map(torch.equal, condition, condition_too))
        assert real.min() >= 0 and real.max() == 1
    label_of = {
        image.numpy().tobytes(): label.item()
        for image, label in zip(data.train, data.train_labels, strict=True)
    }
    shown = (255 * real).round().to(torch.uint8)
    labels = [[label_of[image.numpy().tobytes()] for image in row] for row in shown]
    if labelled:
        assert [row[0] for row in labels] == condition[1].tolist()
    if by_class:
        assert all(row == list(range(10)) for row in labels)
