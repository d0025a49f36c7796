"""One layer of vanilla RNN learns to go on with sine waves: one step, then 1,000 steps on its own output.

    python single_layer_rnn.py                # the whole experiment, half a minute
    python single_layer_rnn.py --noise 0.3    # noisier waves
    python single_layer_rnn.py --quick        # the same path at its smallest, in seconds

A score means something beside what is possible. No model knows the noise of the next value: its variance
is the floor of the mean squared error one step ahead. A clean sine has no floor: AR(2), which fits a and b
of x[t+1] = a x[t] + b x[t-1], forecasts it exactly; a net, which is not told that it sees sines, can only
come near. And a test set must differ from the training set: an earlier version of this experiment trained on
1,000 copies of one period, and the last figures show what its perfect score was worth.

The read-out is linear, so for any recurrent weights the best one has a formula, least squares. Adam trains
the recurrent weights only, towards states that the best read-out can do most with.
"""

from dataclasses import dataclass
from typing import Literal

from common.cli import Flags, UserError, check_positive, launch, read_flags


@dataclass
class Config(Flags):
    """Train a vanilla RNN to forecast sine waves, clean and noisy, and score it beside linear methods."""

    data: str = "auto"
    """auto and builtin mean the same: the waves are made by the program."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on; auto takes the CPU, which is as fast for a net this small."""
    noise: float = 0.1
    """Standard deviation of the noise on the noisy waves; 0 trains on clean waves only."""
    hidden_size: int = 100
    """Size of the RNN's state, an even number."""
    steps: int | None = None
    """Training steps on clean and as many on noisy waves: 400, with --quick 40."""

    def check(self) -> None:
        super().check()
        if self.data not in ("auto", "builtin"):
            raise UserError(f"--data {self.data}: this experiment makes its own waves; leave --data out")
        if not 0 <= self.noise <= 10:
            raise UserError(f"--noise {self.noise}: give a standard deviation from 0 to 10")
        if self.hidden_size not in range(2, 1001, 2):
            raise UserError(f"--hidden-size {self.hidden_size}: give an even number from 2 to 1000")
        if self.steps is not None:
            check_positive(self, "steps")


if __name__ == "__main__":
    CONFIG = read_flags(Config)  # before torch is imported, which takes seconds: --help answers at once

import copy
import itertools
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from common import cli, results, weights
from common.datasets import sine
from common.evaluation import sine as evaluation
from common.figures import sine as figures
from common.files import check_writable
from common.models.sine import Forecaster, least_squares
from common.results import Scores
from common.training import loop
from common.training.run import Run

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

    The read-out is a constant to the gradient, rightly so (variable projection, Golub and Pereyra 1973).
    """
    states, targets = states_and_targets(model, values, warm_up)
    with torch.no_grad():
        read_out = least_squares(states, targets)
    return {"log_mse": (states @ read_out - targets).square().mean().log()}


@torch.no_grad()
def solve(model: Any, values: Tensor, warm_up: int) -> Forecaster:
    """A copy of the net, float64 on the CPU, with the best read-out for many windows `values` [N,T+1]."""
    read_out = least_squares(*states_and_targets(model, values, warm_up))
    net: Forecaster = copy.deepcopy(model).to("cpu", torch.float64).requires_grad_(False)
    net.read_out.weight.copy_(read_out[None])
    return net


def train(run: Run, phase: str, hidden_size: int, draw: Draw, steps: int, warm_up: int) -> Forecaster:
    """Trains one net on fresh windows in every step, and solves its read-out for many more of them."""
    many = draw("train", 400, steps).to(run.device)  # [400,T+1], for the read-out

    def evaluate(model: nn.Module) -> dict[str, float]:
        values = draw("validation", 100, 0).double()
        predicted = solve(model, many, warm_up)(values[:, :-1])  # [100,T]
        return {"validation_mse": evaluation.mse(predicted[:, warm_up:], values[:, warm_up + 1 :])}

    model = Forecaster(hidden_size, fastest=FASTEST).to(run.device)
    # eps: the default is as large as some of these gradients
    optimizer = torch.optim.Adam(model.rnn.parameters(), LEARNING_RATE, betas=(0.9, 0.99), eps=1e-12)
    trained = loop.supervised(
        run,
        phase,
        model,
        optimizer,
        partial(loss, warm_up=warm_up),
        lambda first: (draw("train", BATCH, step) for step in itertools.count(first)),
        steps=steps,
        schedule=loop.cosine_schedule(warm_up=0.1, start=0.02),
        ema=0.98,
        clip=1.0,
        evaluate=evaluate,
        evaluations=4,
    )
    return solve(trained, many, warm_up)


def draw_waves(noise: float, seed: int, part: str, count: int, step: int) -> Tensor:
    """Windows of other waves in every step."""
    return sine.waves(part, count, WINDOW + 1, noise, (seed, step))[0].float()


def predict(net: Forecaster, values: Tensor) -> evaluation.Predictions:
    """One step ahead, and a forecast from the prefix, for values [N,PREFIX + HORIZON]: both [N,HORIZON]."""
    return net(values[:, :-1])[:, PREFIX - 1 :], net.forecast(values[:, :PREFIX], HORIZON)


def main(config: Config) -> int:
    # Set up
    config.check()
    cli.seed_everything(config.seed)
    torch.set_num_threads(1)  # the net is so small that more would only wait for one another
    device = cli.pick_device("cpu" if config.device == "auto" else config.device)
    figs, run_dir = config.figs_dir(), config.run_dir("single_layer_rnn")
    check_writable(figs, config.runs)
    size, steps = config.hidden_size, config.steps or (40 if config.quick else 400)
    run = Run(
        run_dir,
        settings={"seed": config.seed, "noise": config.noise, "hidden_size": size},
        budget={"steps": steps},
        independent=True,
        device=device,
        resume=config.resume,
        precision="float32",
    )
    run.draw = lambda: figures.save_training(figs, run.history, config.noise)

    # Data: values and clean waves, both [200,PREFIX + HORIZON], by kind
    noises = {"clean": 0.0} | ({"noisy": config.noise} if config.noise else {})
    length, seed = PREFIX + HORIZON, (config.seed,)
    tests = {kind: sine.waves("test", 200, length, noise, seed)[:2] for kind, noise in noises.items()}
    print(sine.DESCRIPTION.note)

    # Train a net on each kind of wave, and one as the earlier version did
    draws: dict[str, Draw] = {kind: partial(draw_waves, noise, config.seed) for kind, noise in noises.items()}
    draws["copies"] = lambda part, count, step: sine.copies(count).float()  # whichever part is asked for
    nets = {kind: train(run, kind, size, draws[kind], steps, WARM_UP) for kind in noises}
    nets["copies"] = train(run, "copies", size, draws["copies"], max(1, steps // 20), warm_up=0)
    # a resumed run counts from its first start on
    start = time.monotonic() - sum(phase["seconds"] for phase in run.record.values())

    # Evaluate beside the linear methods
    predictions: dict[str, dict[str, evaluation.Predictions]] = {}
    scores: Scores = {}
    for kind, (values, clean) in tests.items():
        predictions[kind] = {"RNN": predict(nets[kind], values), **evaluation.linear_methods(values, PREFIX)}
        for method, predicted in predictions[kind].items():
            numbers = evaluation.score(predicted, values[:, PREFIX:], clean[:, PREFIX:])
            scores.setdefault(method, {}).update({f"{kind}: {name}": x for name, x in numbers.items()})
    rnn = scores["RNN"]
    scores["noise floor"] = {f"{kind}: one-step MSE": noise**2 for kind, noise in noises.items()}
    card = {"hidden_size": size, "fastest": FASTEST, "command": cli.command(), "scores": scores}
    weights.save(run_dir / "weights.safetensors", {**nets}, card)
    run.finish()
    print(pd.DataFrame(scores).to_string(float_format="{:.3g}".format, na_rep="-"))
    for kind in tests:
        if rnn[f"{kind}: one-step MSE"] >= scores["persistence"][f"{kind}: one-step MSE"]:
            print(f"On {kind} waves the net is no better than persistence: it has learned nothing.")

    # What the earlier version's score was worth
    copies, values = sine.copies(1000), tests["clean"][0]
    recalled = nets["copies"](copies[:, :-1])  # [1000,40]
    others, _ = predict(nets["copies"], values)  # [200,HORIZON]
    on_copies, on_waves = evaluation.mse(recalled, copies[:, 1:]), evaluation.mse(others, values[:, PREFIX:])
    print(f"RNN of the earlier set-up: one-step MSE {on_copies:.2g} on its copies, {on_waves:.2g} here")

    # Figures
    memorised = {
        f"On these copies its one-step MSE is {on_copies:.2g}": (copies[0, 1:], recalled[0]),
        f"On waves of the test it is {on_waves:.2g}": (values[0, PREFIX:200], others[0, :100]),
    }
    facts = f"Noise {config.noise:g}, seed {config.seed}, {size} units, {steps} steps of training."
    caption = f"{sine.DESCRIPTION.note} {facts}"
    figures.report(figs / "single_layer_rnn.png", tests, predictions, memorised, caption)
    results.save(
        figs,
        "single_layer_rnn",
        config,
        data=sine.DESCRIPTION,
        count=len(values),
        metrics={"RNN": scores.pop("RNN")},
        baselines=scores,
        seconds=time.monotonic() - start,
        device=device,
        trained=run.record,
        earlier={"one-step MSE on its copies": on_copies, "on the test": on_waves},
    )
    closing = f"Clean: {HORIZON:,} steps forecast with an RMSE of {rnn['clean: forecast RMSE']:.3f}. "
    if config.noise:
        ratio = rnn["noisy: one-step MSE"] / config.noise**2
        closing += f"Noisy: one-step MSE {ratio:.3f} times the noise floor. "
    print(f"{closing}Figure: {figs}/single_layer_rnn.png")
    return 0


if __name__ == "__main__":
    launch(main, CONFIG)
