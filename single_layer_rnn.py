"""One layer of vanilla RNN learns to go on with sine waves: one step, then 1,000 steps on its own output.

    python single_layer_rnn.py                # both trainings, on clean and on noisy waves, under a minute
    python single_layer_rnn.py --noise 0.3    # noisier waves
    python single_layer_rnn.py --quick        # the same path at its smallest

A score means something beside what is possible. No model knows the noise of the next value: one step ahead
its variance is the floor of the mean squared error. A clean sine has no floor: x[t+1] = a x[t] + b x[t-1]
forecasts it exactly, and AR(2) finds a and b; a net, which is not told that it sees sines, can only come
near. And a test set must differ from the training set: an earlier version of this experiment trained on 1,000
copies of one period, and the last figures show what its perfect score was worth.

The read-out is linear, so for any recurrent weights the best one has a formula, least squares. Adam trains
the recurrent weights only, towards states that the best read-out can do most with.
"""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common import cli, results, weights
from common.cli import UserError
from common.datasets import sine
from common.evaluation import sine as evaluation
from common.figures import sine as figures
from common.files import check_writable
from common.models.sine import Forecaster, least_squares
from common.results import DataDescription, Scores
from common.training import loop
from common.training.run import Run


@dataclass
class Config(cli.Flags):
    """Train a vanilla RNN to forecast sine waves, clean and noisy, and score it beside linear methods."""

    data: str = "auto"
    """auto and builtin mean the same: the waves are made by the program."""
    figs: Path = Path("figs")
    """Where single_layer_rnn.png and single_layer_rnn.json go."""
    runs: Path = Path("runs")
    """Where checkpoints and trained weights go."""
    seed: int = 0
    """Of weights and waves."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes the CPU, which is as fast for a net this small."""
    resume: bool = False
    """Go on with the run that was stopped, exactly where it was."""
    quick: bool = False
    """The same path at its smallest, under half a minute; figures go to figs/quick, weights apart."""
    noise: float = 0.1
    """Standard deviation of the noise on the noisy waves; 0 trains on clean waves only."""
    hidden_size: int = 100
    """Of the RNN's state, an even number."""
    steps: int | None = None
    """Training steps on clean and as many on noisy waves: 400, with --quick 40."""


Draw = Callable[[str, int, int], Tensor]  # of part, count, step: values [count,T+1]

BATCH = 32
WINDOW = 150  # steps of a training window
WARM_UP = 50  # of them are not scored: the net has seen too little yet
PREFIX, HORIZON = 100, 1000  # steps before and of a forecast
JITTER = 1e-4  # noise on all inputs in training: the net must forgive the errors of its own output
LEARNING_RATE = 1e-3
FASTEST = 1.25 * 2 * math.pi / min(sine.PERIODS)  # radians a step, for the net's first rotations


# The lesson: the target is the window one step later, the read-out is solved, the recurrent weights learn.


def states_and_targets(model: Any, values: Tensor, warm_up: int) -> tuple[Tensor, Tensor]:
    """From values [N,T+1] to states, float64 [M,size], and to the value after each, float64 [M]."""
    inputs = values[:, :-1]  # [N,T]
    states = model.states(inputs + JITTER * torch.randn_like(inputs))  # [N,T,size]
    states, targets = states[:, warm_up:].flatten(0, 1), values[:, 1 + warm_up :].flatten()
    return states.to("cpu", torch.float64), targets.to("cpu", torch.float64)


def loss(model: nn.Module, values: Tensor, progress: float, warm_up: int) -> loop.Losses:
    """Mean squared error of the best read-out of these states; its logarithm, since it falls by powers of 10.

    The read-out counts as constant in the gradient, which is right where it is the best one (variable
    projection, Golub and Pereyra 1973).
    """
    states, targets = states_and_targets(model, values, warm_up)
    with torch.no_grad():
        read_out = least_squares(states, targets)
    return {"log_mse": (states @ read_out - targets).square().mean().log()}


@torch.no_grad()
def solved(model: Any, values: Tensor, warm_up: int) -> Forecaster:
    """A copy of the net, float64 on the CPU, with the best read-out for many windows `values` [N,T+1]."""
    read_out = least_squares(*states_and_targets(model, values, warm_up))
    net: Forecaster = copy.deepcopy(model).to("cpu", torch.float64).requires_grad_(False)
    net.read_out.weight.copy_(read_out[None])
    return net


def cosine(progress: float) -> float:
    """A short warm-up, then half a cosine down to a hundredth (Loshchilov and Hutter 2017, SGDR)."""
    return min(1.0, progress / 0.1 + 0.02) * (0.505 + 0.495 * math.cos(math.pi * progress))


def train(run: Run, phase: str, config: Config, draw: Draw, steps: int, warm_up: int) -> Forecaster:
    """Trains one net on fresh windows in every step, and solves its read-out for many more of them."""

    def batches(first: int) -> Iterator[Tensor]:
        return (draw("train", BATCH, step) for step in itertools.count(first))

    def finished(model: nn.Module) -> Forecaster:
        return solved(model, draw("train", 400, steps).to(run.device), warm_up)

    def evaluate(model: nn.Module) -> dict[str, float]:
        values = draw("validation", 100, 0).double()
        predicted = finished(model)(values[:, :-1])  # [100,T]
        return {"validation_mse": evaluation.mse(predicted[:, warm_up:], values[:, warm_up + 1 :])}

    model = Forecaster(config.hidden_size, fastest=FASTEST).to(run.device)
    # eps: the default is as large as some of these gradients
    optimizer = torch.optim.Adam(model.rnn.parameters(), LEARNING_RATE, betas=(0.9, 0.99), eps=1e-12)
    trained = loop.supervised(
        run,
        phase,
        model,
        optimizer,
        partial(loss, warm_up=warm_up),
        batches,
        steps=steps,
        schedule=cosine,
        ema=0.98,
        clip=1.0,
        evaluate=evaluate,
        evaluations=4,
    )
    return finished(trained)


# The experiment.


def draw_waves(noise: float, seed: int, part: str, count: int, step: int) -> Tensor:
    """Windows of other waves in every step."""
    return sine.waves(part, count, WINDOW + 1, noise, (seed, step))[0].float()


def draw_copies(part: str, count: int, step: int) -> Tensor:
    """The earlier set-up: whichever part is asked for, the same period again."""
    return sine.copies(count).float()


def predict(net: Forecaster, values: Tensor) -> evaluation.Made:
    """One step ahead, and a forecast from the prefix, for values [N,PREFIX + HORIZON]: both [N,HORIZON]."""
    return net(values[:, :-1])[:, PREFIX - 1 :], net.forecast(values[:, :PREFIX], HORIZON)


def refuse_bad_flags(config: Config) -> None:
    """Before any work is done."""
    if config.data not in ("auto", "builtin"):
        raise UserError(f"--data {config.data}: this experiment makes its own waves; leave --data out")
    if not 0 <= config.noise <= 10:
        raise UserError(f"--noise {config.noise}: give a standard deviation from 0 to 10")
    if config.hidden_size not in range(2, 1001, 2):
        raise UserError(f"--hidden-size {config.hidden_size}: give an even number from 2 to 1000")
    if config.steps is not None and config.steps < 1:
        raise UserError(f"--steps {config.steps}: give a number above 0")


def main(config: Config) -> int:
    # Set up
    begun = time.monotonic()
    refuse_bad_flags(config)
    config.check()
    cli.seed_everything(config.seed)
    torch.set_num_threads(1)  # the net is so small that more would only wait for one another
    device = cli.pick_device("cpu" if config.device == "auto" else config.device)
    figs = config.figs / "quick" if config.quick and config.figs == Config.figs else config.figs
    folder = config.runs / ("single_layer_rnn-quick" if config.quick else "single_layer_rnn")
    for place in (figs, config.runs):
        check_writable(place)
    steps = config.steps or (40 if config.quick else 400)
    settings = {"seed": config.seed, "noise": config.noise, "hidden_size": config.hidden_size, "steps": steps}
    run = Run(folder, settings=settings, device=device, resume=config.resume, precision="float32")

    # Data
    noises = {"clean": 0.0, "noisy": config.noise} if config.noise else {"clean": 0.0}
    tests = {
        kind: sine.waves("test", 200, PREFIX + HORIZON, noise, (config.seed,))[:2]
        for kind, noise in noises.items()
    }
    note = (
        f"Sine waves made by the program: periods of {sine.PERIODS[0]} to {sine.PERIODS[1]} steps, "
        f"amplitudes of {sine.AMPLITUDES[0]} to {sine.AMPLITUDES[1]}; "
        "no frequency of the test was trained on."
    )
    print(note)

    # Train a net on each kind of wave, and one as the earlier version did
    nets = {
        kind: train(run, kind, config, partial(draw_waves, noise, config.seed), steps, WARM_UP)
        for kind, noise in noises.items()
    }
    copies_net = train(run, "copies", config, draw_copies, max(1, steps // 20), warm_up=0)
    # a resumed run counts from its first start on
    begun = time.monotonic() - sum(phase["seconds"] for phase in run.record.values())

    # Evaluate beside the linear methods
    scores: Scores = {}
    made: dict[str, dict[str, evaluation.Made]] = {}
    for kind, (values, clean) in tests.items():
        made[kind] = {"RNN": predict(nets[kind], values)} | evaluation.linear_methods(values, PREFIX)
        for method, of in made[kind].items():
            numbers = evaluation.score(of, values[:, PREFIX:], clean[:, PREFIX:])
            scores.setdefault(method, {}).update({f"{kind}: {name}": x for name, x in numbers.items()})
            print(f"{kind}, {method:21}" + "   ".join(f"{name} {x:<9.3g}" for name, x in numbers.items()))
        if scores["RNN"][f"{kind}: one-step MSE"] >= scores["persistence"][f"{kind}: one-step MSE"]:
            print(f"On {kind} waves the net is no better than persistence: it has learned nothing.")
    scores["noise floor"] = {f"{kind}: one-step MSE": noise**2 for kind, noise in noises.items()}
    print(f"noise floor, below which no model can come: one-step MSE {config.noise**2:.3g}")

    # What the earlier version's score was worth
    values, clean = tests["clean"]
    own, others = sine.copies(1000), predict(copies_net, values)
    recalled = copies_net(own[:, :-1])  # [1000,40]
    on_copies, on_waves = (
        evaluation.mse(recalled, own[:, 1:]),
        evaluation.mse(others[0], values[:, PREFIX:]),
    )
    print(f"RNN of the earlier set-up: one-step MSE {on_copies:.1e} on its copies, {on_waves:.1e} here")

    modules: dict[str, nn.Module] = {**nets, "copies": copies_net}
    about = {
        "hidden_size": config.hidden_size,
        "fastest": FASTEST,
        "command": cli.command(),
        "scores": scores,
    }
    weights.save(folder / "weights.safetensors", modules, about)
    run.finish()

    # Figures
    figures.report(
        figs / "single_layer_rnn.png",
        {kind: (values, clean, made[kind]) for kind, (values, clean) in tests.items()},
        {
            f"On these copies its one-step MSE is {on_copies:.1e}": (own[0, 1:], recalled[0]),
            f"On waves of the test it is {on_waves:.1e}": (values[0, PREFIX:200], others[0][0, :100]),
        },
        title=f"A vanilla RNN reads {PREFIX} steps of a sine wave and goes on for {HORIZON:,}",
        caption=f"{note} Noise {config.noise:g}, seed {config.seed}, {config.hidden_size} units, {steps} "
        f"steps of training. Shown: the first test wave; errors: over all {len(values)}.\n"
        "AR(2) is exact on clean sines, which obey x[t+1] = a x[t] + b x[t-1]. In noise no method knows the "
        "frequency exactly, so all lose the phase.",
        note="The earlier set-up: 1,000 copies of one period, to train and to test on: memory poses as skill",
    )
    rnn_scores = scores.pop("RNN")
    results.save(
        figs,
        "single_layer_rnn",
        config,
        data=DataDescription("sine waves", note=note),
        count=len(values),
        metrics={"RNN": rnn_scores},
        baselines=scores,
        seconds=time.monotonic() - begun,
        device=device,
        trained=run.record,
        earlier={"one-step MSE on its copies": on_copies, "on the test": on_waves},
    )
    closing = f"Clean: {HORIZON:,} steps forecast with an RMSE of {rnn_scores['clean: forecast RMSE']:.3f}. "
    if config.noise:
        ratio = rnn_scores["noisy: one-step MSE"] / config.noise**2
        closing += f"Noisy: one-step MSE {ratio:.3f} times the noise floor. "
    print(f"{closing}Pictures: {figs}/single_layer_rnn.png")
    return 0


if __name__ == "__main__":
    cli.launch(main, cli.read_flags(Config))
