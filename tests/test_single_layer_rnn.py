"""The sine experiment through its own `main`: it learns, its baselines are right, it refuses clearly."""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common.cli import UserError
from common.datasets import sine
from common.evaluation import sine as evaluation
from common.figures import sine as figures
from common.models.sine import Forecaster, least_squares
from common.training import run as run_module
from single_layer_rnn import Config, main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def threads_as_before() -> Iterator[None]:
    """`main` takes one thread; tests of other files in this process shall have theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# The waves.


def test_parts_share_no_frequency_and_no_phase() -> None:
    waves = {part: sine.waves(part, 2000, 2, 0.0, (0,)) for part in sine.PARTS}
    bands = {}
    for part, (_, clean, frequencies) in waves.items():
        assert frequencies.min() >= 1 / 60 and frequencies.max() <= 1 / 30
        # where it lies within one of the ten pieces of the range, in tenths
        bands[part] = set(((frequencies * 60 - 1) * 10 % 1 * 10).floor().int().tolist())
        assert len(clean[:, 0].unique()) == 2000
    assert bands == {"train": {0, 1, 2, 3, 6, 7, 8, 9}, "validation": {4}, "test": {5}}
    firsts = torch.cat([clean[:, 0] for _, clean, _ in waves.values()])
    assert len(firsts.unique()) == 6000, "no part repeats the phases of another"


def test_waves_are_sines_with_the_noise_asked_for() -> None:
    values, clean, frequencies = sine.waves("test", 300, 500, 0.2, (1, 2))
    middle, around = clean[:, 1:-1], clean[:, 2:] + clean[:, :-2]
    assert torch.allclose(around, 2 * torch.cos(2 * math.pi * frequencies)[:, None] * middle)
    largest = clean.abs().amax(dim=1)
    assert 0.49 < largest.min() < 0.55 and 0.95 < largest.max() <= 1
    assert (values - clean).std().item() == pytest.approx(0.2, rel=0.01)
    again, _, _ = sine.waves("test", 300, 500, 0.2, (1, 2))
    assert torch.equal(values, again)
    assert torch.equal(*sine.waves("train", 3, 50, 0.0, (0,))[:2])


def test_copies_are_one_period() -> None:
    own = sine.copies(5)
    assert torch.equal(own, own[:1].expand(5, 41))
    assert own[0, 0] == pytest.approx(own[0, 40].item()) and own[0].min().item() == pytest.approx(-1)


# The baselines.


def test_ar2_is_exact_on_a_clean_sine() -> None:
    values, clean, frequencies = sine.waves("test", 50, 1100, 0.0, (0,))
    fitted = evaluation.fit_ar2(values[:, :100])
    true = torch.stack([2 * torch.cos(2 * math.pi * frequencies), -torch.ones(50)], dim=1)
    assert torch.allclose(fitted, true, atol=1e-9)
    scores = {
        name: evaluation.score(predictions, values[:, 100:], clean[:, 100:])
        for name, predictions in evaluation.linear_methods(values, 100).items()
    }
    assert scores["AR(2)"]["one-step MSE"] < 1e-20
    assert scores["AR(2)"]["forecast RMSE"] < 1e-8
    assert scores["AR(2)"]["amplitude drift, %"] < 1e-6
    assert scores["persistence"]["amplitude drift, %"] == pytest.approx(100), "a constant has no amplitude"
    assert scores["AR(2)"]["one-step MSE"] < scores["linear extrapolation"]["one-step MSE"]


def test_linear_methods_on_a_line_and_on_a_constant() -> None:
    line = torch.arange(10, dtype=torch.float64).repeat(2, 1)
    predictions = evaluation.linear_methods(line, 5)
    for part in predictions["linear extrapolation"]:
        assert torch.equal(part, line[:, 5:])
    assert torch.equal(predictions["persistence"][0], line[:, 4:9])
    assert torch.equal(predictions["persistence"][1], torch.full((2, 5), 4.0, dtype=torch.float64))
    constant = torch.ones(2, 10, dtype=torch.float64)
    for part in evaluation.linear_methods(constant, 5)["AR(2)"]:
        assert torch.allclose(part, constant[:, 5:])


def test_errors_are_those_of_the_definitions() -> None:
    values, clean, _ = sine.waves("test", 200, 1000, 0.3, (0,))
    scores = evaluation.score((clean, 0.9 * clean), values, clean)
    assert scores["one-step MSE"] == pytest.approx(0.3**2, rel=0.01), "to know the wave is to be at the floor"
    assert scores["forecast RMSE"] == pytest.approx(0.1 * clean.square().mean().sqrt().item())
    assert scores["amplitude drift, %"] == pytest.approx(10)
    half = torch.cat([0.9 * clean[:100], 1.1 * clean[100:]])
    drift = evaluation.score((clean, half), values, clean)["amplitude drift, %"]
    assert drift == pytest.approx(10), "too large and too small do not cancel"


# The net.


def test_the_net_is_a_vanilla_rnn_that_knows_only_the_past() -> None:
    torch.manual_seed(0)
    net = Forecaster(10, fastest=0.3).double()
    net.read_out.weight.data.normal_()
    values = torch.rand(3, 20, dtype=torch.float64)
    assert sorted(name for name, _ in net.named_parameters()) == [
        "read_out.weight",
        "rnn.weight_hh_l0",
        "rnn.weight_ih_l0",
    ]
    state, expected = torch.zeros(3, 10, dtype=torch.float64), []
    for value in values.T:
        state = torch.tanh(state @ net.rnn.weight_hh_l0.T + value[:, None] * net.rnn.weight_ih_l0.T)
        expected.append(state @ net.read_out.weight[0])
    predicted = net(values)
    assert torch.allclose(predicted, torch.stack(expected, dim=1))
    assert torch.allclose(net(values[:, :7]), predicted[:, :7])
    assert torch.allclose(net(-values), -predicted)

    # on its own output: what it would predict if its output were the values
    far = net.forecast(values, 5)
    fed = torch.cat([values, far], dim=1)
    assert torch.allclose(net(fed)[:, 19:24], far)


def test_least_squares_finds_the_weights_and_nothing_fits_better() -> None:
    states = torch.randn(200, 5, dtype=torch.float64)
    weights = torch.randn(5, dtype=torch.float64)
    assert torch.allclose(least_squares(states, states @ weights), weights)
    targets = torch.randn(200, dtype=torch.float64)
    best = least_squares(states, targets)
    error = (states @ best - targets).square().sum()
    for _ in range(10):
        other = best + 0.01 * torch.randn(5, dtype=torch.float64)
        assert (states @ other - targets).square().sum() > error


# The script.


def results(config: Config) -> dict:
    return json.loads((config.figs / "single_layer_rnn.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One quick run of the whole experiment."""
    path = tmp_path_factory.mktemp("quick")
    config = Config(figs=path / "figs", runs=path / "runs", quick=True)
    assert main(config) == 0
    return config


def test_it_learns(trained: Config) -> None:
    result = results(trained)
    net, rest = result["metrics"]["RNN"], result["baselines"]
    assert set(rest) == {"persistence", "linear extrapolation", "AR(2)", "noise floor"}
    for method in ("persistence", "linear extrapolation", "AR(2)"):
        assert net["noisy: one-step MSE"] < 0.5 * rest[method]["noisy: one-step MSE"], method
    for method in ("persistence", "linear extrapolation"):
        assert net["clean: one-step MSE"] < 1e-3 * rest[method]["clean: one-step MSE"], method
        assert net["clean: forecast RMSE"] < 0.3 * rest[method]["clean: forecast RMSE"], method
    assert rest["noise floor"] == {"clean: one-step MSE": 0, "noisy: one-step MSE": pytest.approx(0.01)}
    assert 1 < net["noisy: one-step MSE"] / 0.01 < 1.15
    phases = result["trained"]
    assert [phases[name]["steps"] for name in ("clean", "noisy", "copies")] == [40, 40, 2]


def test_training_is_what_makes_the_forecast(trained: Config, tmp_path: Path) -> None:
    """The least-squares read-out alone, over recurrent weights after a single step, is worse."""
    short = replace(trained, figs=tmp_path / "figs", runs=tmp_path / "runs", steps=1, noise=0.0)
    assert main(short) == 0
    before, after = (results(config)["metrics"]["RNN"] for config in (short, trained))
    assert set(before) == {"clean: one-step MSE", "clean: forecast RMSE", "clean: amplitude drift, %"}
    for metric in before:
        assert after[metric] < 0.7 * before[metric], metric


def test_the_same_seed_gives_the_same_numbers(
    trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(run_module, "DRAW_EVERY", 0.0)
    monkeypatch.setattr(
        figures, "save_training", lambda *of: drawn.append((of[0], of[1][-1]["phase"], of[2]))
    )
    again = replace(trained, figs=tmp_path, runs=tmp_path / "runs")
    (tmp_path / figures.TRAINING).touch()
    assert main(again) == 0
    assert not (tmp_path / figures.TRAINING).exists(), "only while it trains"
    assert set(drawn) == {(again.figs, phase, 0.1) for phase in ("clean", "noisy", "copies")}
    for part in ("metrics", "baselines", "earlier"):
        assert results(again)[part] == results(trained)[part]


def test_a_resumed_run_may_be_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = Config(
        figs=tmp_path / "figs", runs=tmp_path / "runs", quick=True, steps=4, noise=0, hidden_size=10
    )
    assert main(short) == 0
    capsys.readouterr()
    longer = replace(short, steps=40, resume=True)
    assert main(longer) == 0
    assert "goes on to 40 steps" in capsys.readouterr().out
    assert {name: phase["steps"] for name, phase in results(longer)["trained"].items()} == {
        "clean": 40,
        "copies": 2,
    }
    with pytest.raises(UserError, match="steps = 40, now it is steps = 39"):
        main(replace(longer, steps=39))


def test_the_earlier_setup_scores_well_and_knows_nothing(trained: Config) -> None:
    result = results(trained)
    on_copies, on_waves = result["earlier"].values()
    assert on_copies < 1e-6 and on_waves > result["baselines"]["persistence"]["clean: one-step MSE"]


def test_figure_says_data_noise_and_seed(trained: Config) -> None:
    with Image.open(trained.figs / "single_layer_rnn.png") as figure:
        caption = figure.info["Description"]
        assert figure.width == 1376 and figure.height > 1200
    assert "periods of 30 to 60 steps" in caption and "Noise 0.1, seed 0" in caption and "exact" in caption


def test_a_net_that_learned_nothing_is_announced(
    trained: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def silent(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.zeros(states.shape[1], dtype=torch.float64) + 1e-3 * states.mean()

    monkeypatch.setattr("single_layer_rnn.least_squares", silent)
    path = trained.figs.parent / "nothing"
    assert main(replace(trained, figs=path, runs=path, steps=1, noise=0.0, hidden_size=10)) == 0
    assert "On clean waves the net is no better than persistence" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("data", "waves.csv"),
        ("noise", -0.1),
        ("noise", math.nan),
        ("noise", math.inf),
        ("hidden_size", 0),
        ("hidden_size", 7),
        ("hidden_size", 10**6),
        ("steps", 0),
        ("seed", -1),
    ],
)
def test_bad_flags_are_refused(tmp_path: Path, flag: str, value: object) -> None:
    config = replace(Config(figs=tmp_path / "figs", runs=tmp_path / "runs", quick=True), **{flag: value})
    with pytest.raises(UserError) as refusal:
        main(config)
    assert f"--{flag.replace('_', '-')} {value}" in str(refusal.value) and "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_stopped_and_resumed_equals_left_alone(tmp_path: Path) -> None:
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    small = Config(quick=True, steps=30, hidden_size=20)
    assert main(replace(small, figs=alone / "figs", runs=alone / "runs")) == 0

    run = subprocess.Popen(
        [
            *(sys.executable, "single_layer_rnn.py", "--quick", "--steps", "30", "--hidden-size", "20"),
            *("--figs", stopped / "figs", "--runs", stopped / "runs"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    checkpoint = stopped / "runs" / "single_layer_rnn-quick" / "checkpoint.pt"
    while not checkpoint.exists():
        assert run.poll() is None, run.stdout and run.stdout.read()
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 130 and "--resume" in output, output
    assert not (stopped / "figs").exists()
    assert main(replace(small, figs=stopped / "figs", runs=stopped / "runs", resume=True)) == 0

    weights = [load_file(p / "runs/single_layer_rnn-quick/weights.safetensors") for p in (alone, stopped)]
    assert weights[0].keys() == weights[1].keys() and len(weights[0]) == 9
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    first, second = (json.loads((p / "figs/single_layer_rnn.json").read_text()) for p in (alone, stopped))
    assert first["metrics"] == second["metrics"]


def test_torchvision_is_not_imported() -> None:
    code = "import single_layer_rnn, sys; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
