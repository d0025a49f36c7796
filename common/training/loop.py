"""The two training loops: `supervised` and `adversarial`.

Losses, optimizers, schedules and the choice of weights are the lesson: they stand in the scripts and are
passed in. This file knows no model and no dataset. Both loops are the plain one of any tutorial, a batch, a
loss, a step; `_steps`, which hands out the batches, keeps the run alive around it: checkpoints, resume,
history, evaluations, the learning rate and the averaged weights.

    run = Run(Path("runs/lesson"), settings=asdict(config), device=device, resume=config.resume)
    schedule = cosine_schedule(warm_up=0.1)
    model = supervised(run, "fit", model, optimizer, loss, batches, minutes=5, schedule=schedule, ema=0.99)
    run.finish()
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from common.cli import UserError, is_first
from common.training import distributed
from common.training.phase import Losses as Losses
from common.training.phase import Phase, get_rng, set_rng
from common.training.run import Interrupted, Run, say

Batches = Callable[[int], Iterator[Any]]
Schedule = Callable[[float], float]
Evaluate = Callable[[nn.Module], dict[str, Any]]
Optimizers = Optimizer | Sequence[Optimizer]
"""Of one player: one, or several that share its parameters."""
Step = tuple[Any, int, float]  # batch, number of the step, progress 0..1

ROWS = 200  # of the history, for each phase
TRIAL_SECONDS = 5.0  # at most, twice, to find the pace at the start


def cosine_schedule(warm_up: float = 0.0, start: float = 0.01, floor: float = 0.01) -> Schedule:
    """A schedule of the learning rate: up for a while, then down along half a cosine (Loshchilov and Hutter
    2017, SGDR, section 3).

    Args:
        warm_up: share of the training, 0 to 1, in which the rate rises linearly to its full height.
        start: share of the full rate that the first step has, if there is a warm-up.
        floor: share of the full rate that is left at the end.

    Returns:
        from progress, 0..1, to a factor on the learning rate.
    """

    def factor(progress: float) -> float:
        rise = min(1.0, progress / warm_up + start) if warm_up else 1.0
        return rise * ((1 + floor) / 2 + (1 - floor) / 2 * math.cos(math.pi * progress))

    return factor


def supervised(
    run: Run,
    phase: str,
    model: nn.Module,
    optimizer: Optimizers,
    loss: Callable[[nn.Module, Any, float], Losses],
    batches: Batches,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    schedule: Schedule,
    ema: float,
    clip: float = math.inf,
    evaluate: Evaluate | None = None,
    evaluations: int = 10,
) -> nn.Module:
    """Trains `model` in place and returns it, holding its averaged (EMA) weights, in eval mode.

    Args:
        run: where the run lives; a phase that it has finished already is not trained again.
        phase: name of this phase, unique in the run.
        loss: of (model, batch, progress 0..1): weighted terms by name; their sum is minimised.
        batches: `batches(first)` yields without end the batch of step first, first + 1, ...; the same step
            always has the same batch. Tensors in tuples, lists and dicts are moved to the run's device.
        steps, minutes: the budget, one of the two. Minutes are turned into a recorded number of steps by
            timing the first ones, then training starts again from step 0.
        schedule: progress 0..1 to a factor on the learning rate of each parameter group.
        ema: decay of the average, below it at first: min(ema, (1 + step) / (10 + step)); 0 for none.
        clip: largest gradient norm.
        evaluate: gets the averaged model in eval mode, without gradients, at the start and `evaluations`
            times after, or fewer where they would take over a fifth of the minutes; its numbers join
            `run.history`. It cannot disturb the training's random numbers.

    Raises:
        UserError: a loss, gradient or weight is not finite, or the checkpoint does not fit the model.
        SystemExit: 130 after Ctrl-C or SIGTERM, once the run is saved.
    """
    optimizers = _listed(optimizer)
    state = Phase(phase, [model], optimizers, run.device)
    plan = _steps(run, state, batches, steps, minutes, schedule, ema, evaluate, evaluations)
    if run.start(state, steps, minutes):
        with run.interruptible():
            for batch, _, progress in plan:
                # Forward
                with run.autocast():
                    losses = loss(model, batch, progress)
                total = _total(losses)

                # Backward and update
                norm = _update(optimizers, total, list(model.parameters()), clip)
                state.add(losses | {"loss": total, "grad": norm})
    return run.result(state)


def adversarial(
    run: Run,
    phase: str,
    generator: nn.Module,
    discriminator: nn.Module,
    optimizers: tuple[Optimizers, Optimizers],
    generator_loss: Callable[[nn.Module, Any, Tensor, tuple[Any, ...], int], Losses],
    discriminator_loss: Callable[
        [nn.Module, Any, Tensor, tuple[Any, ...], int], tuple[Losses, Tensor, Tensor]
    ],
    batches: Batches,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    schedule: Schedule,
    ema: float,
    clip: float = math.inf,
    d_every: int = 1,
    g_every: int = 1,
    evaluate: Evaluate | None = None,
    evaluations: int = 10,
) -> nn.Module:
    """Trains the two in place; returns `generator`, holding its averaged (EMA) weights, in eval mode.

    A batch is (condition, real): `condition` holds the inputs of the generator, noise and label or a small
    image; `real` is a tensor, or all that the losses need. Both losses are called with (discriminator, real,
    fake, condition, step), where `step` counts the steps of their own player: what a loss does in each 8th is
    as frequent for one who steps seldom.

    `discriminator_loss` also returns its scores of real and fake. The discriminator counts as right where
    real scores above 0 and fake below 0. In a relativistic loss only differences mean something: return
    scores that are centred, `real - fake.mean()` and `fake - real.mean()`.

    The other arguments and what is raised: see `supervised`. `optimizers` are the generator's and the
    discriminator's; the discriminator takes a step in each `d_every`, the generator in each `g_every`, and
    who takes none computes nothing. Each row of the history has, besides the terms of the losses:
    `loss_generator`, `loss_discriminator`, `grad_generator`, `grad_discriminator`, and `accuracy_real` and
    `accuracy_fake`, the shares (0..1) of the two that the discriminator gets right. A line on screen says
    when one side has won.
    """
    g_optimizers, d_optimizers = map(_listed, optimizers)
    g_parameters = list(generator.parameters())
    d_parameters = [p for p in discriminator.parameters() if p.requires_grad]
    state = Phase(phase, [generator, discriminator], [*g_optimizers, *d_optimizers], run.device)
    plan = _steps(run, state, batches, steps, minutes, schedule, ema, evaluate, evaluations)
    if run.start(state, steps, minutes):
        with run.interruptible():
            for (condition, real), number, _ in plan:
                d_steps, g_steps = number % d_every == 0, number % g_every == 0
                with run.autocast(), torch.set_grad_enabled(g_steps):
                    fake = generator(*condition)

                # (1) Update D: tell real from fake
                if d_steps:
                    with run.autocast():
                        losses, scores_real, scores_fake = discriminator_loss(
                            discriminator, real, fake.detach(), condition, number // d_every
                        )
                    total = _total(losses)
                    norm = _update(d_optimizers, total, d_parameters, clip)
                    right = {
                        "accuracy_real": (scores_real > 0).float().mean(),
                        "accuracy_fake": (scores_fake < 0).float().mean(),
                    }
                    state.add(losses | {"loss_discriminator": total, "grad_discriminator": norm} | right)

                # (2) Update G: pass for real; D only scores, its parameters gather no gradients
                if g_steps:
                    for parameter in d_parameters:
                        parameter.requires_grad_(False)
                    with run.autocast():  # a region of its own: autocast remembers D's weights within one
                        losses = generator_loss(discriminator, real, fake, condition, number // g_every)
                    total = _total(losses)
                    norm = _update(g_optimizers, total, g_parameters, clip)
                    for parameter in d_parameters:
                        parameter.requires_grad_(True)
                    state.add(losses | {"loss_generator": total, "grad_generator": norm})
    return run.result(state)


def winner(history: list[dict[str, Any]], phase: str, rows: int = 20) -> str:
    """A sentence when one side has won over the last `rows` logged rows of `phase`; "" while in balance.

    The discriminator has won when it is right about more than 97 % of real and of fake. The generator has
    won when the discriminator is right no more often than a coin (one that answers the same to everything
    counts as 50 % or less) and its loss has not moved by more than 2 %. Right about 55 to 97 %, or at a
    coin's rate with a moving loss, is a match. 20 rows are a tenth of a phase.
    """
    last = [row for row in history if row["phase"] == phase and "accuracy_real" in row][-rows:]
    if len(last) < rows:
        return ""
    real, fake = (statistics.fmean(row[side] for row in last) for side in ("accuracy_real", "accuracy_fake"))
    losses = [row["loss_discriminator"] for row in last]
    still = max(losses) - min(losses) <= 0.02 * abs(statistics.fmean(losses))
    knows = f"it is right about {real:.0%} of the real and {fake:.0%} of the fake ones"
    if min(real, fake) > 0.97:
        return f"the discriminator has won: {knows}, so the generator learns little from it"
    if (real + fake) / 2 < 0.55 and still:
        return f"the generator has won, the discriminator only guesses: {knows} and its loss stands still"
    return ""


# ----------------------------------------------------------------------------- what surrounds every step


def _steps(
    run: Run,
    phase: Phase,
    batches: Batches,
    steps: int | None,
    minutes: float | None,
    schedule: Schedule,
    ema: float,
    evaluate: Evaluate | None,
    evaluations: int,
) -> Iterator[Step]:
    """Yields each step that is left of a phase, for the loop to take, and looks after the run around it."""
    if (steps is None) == (minutes is None):
        raise ValueError("the budget is either steps or minutes")
    if (steps or minutes or 0) <= 0:
        raise UserError(f"{phase.name}: the budget must be above 0; give more steps or minutes")
    for module in phase.modules:
        module.train()
    if phase.evaluated < 0:
        _evaluate(run, phase, evaluate)

    # Settle the number of steps, once: a resumed phase has it already
    if not phase.steps:
        run.using = run.precision
        if minutes is not None:
            steps, evaluations = yield from _fill(
                run, phase, batches, schedule, evaluate, minutes, evaluations
            )
        phase.steps, phase.precision, phase.evaluations = steps or 1, run.precision, evaluations
        run.record[phase.name].update(steps=phase.steps, precision=phase.precision)
        run.checkpoint(phase)

    # Train
    run.using = phase.precision
    row_every, count = max(1, phase.steps // ROWS), phase.evaluations
    check_every = 1 if run.device.type == "cpu" else 20  # a look at a number makes a GPU wait
    points = {round(i * phase.steps / count) for i in range(1, count + 1)} | {phase.steps}
    stream = batches(phase.step)
    saved = shown = time.monotonic()
    # disable=None: no bar where the output is no terminal
    with tqdm(total=phase.steps, initial=phase.step, desc=phase.name, unit="step", disable=None) as bar:
        while phase.step < phase.steps or phase.evaluated < phase.step:
            # Evaluate where it is due, also in a phase that was stopped just before
            if phase.step in points and phase.evaluated < phase.step:
                _evaluate(run, phase, evaluate)
                saved = time.monotonic()
                continue

            # Take the step
            yield from _step(phase, stream, phase.step / phase.steps, schedule)
            _average(phase.average, phase.modules[0], min(ema, phase.step / (9 + phase.step)))

            # Write down what it gave
            if phase.step % check_every == 0:
                phase.check(run.path)
            if phase.step % row_every == 0 and phase.step not in points:
                _log(run, phase, {})
            bar.update()
            now = time.monotonic()
            if not bar.disable and phase.sums and now - shown > 0.5:
                bar.set_postfix_str(_format(phase.means()))
                shown = now
            due = is_first() and now - saved > run.checkpoint_every
            stopping, due = distributed.any_of(run.stopping, due)  # a signal meanwhile is for the next step
            if stopping or due:
                run.checkpoint(phase)
                saved = now
            if stopping:
                raise Interrupted

    record = run.record[phase.name]
    record["data_wait"] = phase.waiting / max(phase.stepping, 1e-9)
    say(f"{phase.name}: {record['data_wait']:.1%} of the steps' time went by waiting for data.")
    run.finish_phase(phase)


def _step(phase: Phase, stream: Iterator[Any], progress: float, schedule: Schedule) -> Iterator[Step]:
    """Yields one step, with its learning rate set and its time taken."""
    start = time.monotonic()
    for group in phase.groups():
        group["lr"] = group["initial_lr"] * schedule(progress)
    with torch.random.fork_rng(devices=[]):  # a loader that starts draws a number: not from ours
        batch = _to(distributed.share(next(stream)), phase.device)
    phase.waiting += time.monotonic() - start
    yield batch, phase.step, progress
    phase.step += 1
    phase.stepping += time.monotonic() - start


def _fill(
    run: Run,
    phase: Phase,
    batches: Batches,
    schedule: Schedule,
    evaluate: Evaluate | None,
    minutes: float,
    evaluations: int,
) -> Generator[Step, None, tuple[int, int]]:
    """Yields trial steps, rewinds them, and returns how many steps and evaluations fill the minutes."""
    seconds = min(TRIAL_SECONDS, 0.015 * 60 * minutes)
    with run.nothing_to_lose():
        before = copy.deepcopy(phase.pack())
        stream = batches(0)
        yield from _trial(phase, stream, schedule, 3, seconds)  # while the loader's workers fill their queues
        pace = yield from _trial(phase, stream, schedule, 1, seconds)
        del stream  # and its loader's workers
        phase.unpack(before)

        start = time.monotonic()
        _look(phase, evaluate)
        pause = max(time.monotonic() - start, 1e-9)
    # on a busy machine they would otherwise leave no time to train
    evaluations = max(1, min(evaluations, int(0.2 * 60 * minutes / pause)))
    left = 60 * minutes - (time.monotonic() - phase.start) - evaluations * pause
    steps = max(1, int(left / pace))
    steps, evaluations = distributed.on_first(lambda: (steps, evaluations))
    run.record[phase.name].update(minutes=minutes, seconds_per_step=pace, seconds_per_evaluation=pause)
    say(
        f"{phase.name}: {steps} steps of {pace:.3g} s and {evaluations} evaluations of {pause:.3g} s fill "
        f"{minutes:g} minutes."
    )
    return steps, evaluations


def _trial(
    phase: Phase, stream: Iterator[Any], schedule: Schedule, least: int, seconds: float
) -> Generator[Step, None, float]:
    """Yields `least` steps, and more until `seconds` are over; returns the seconds of one."""
    _wait(phase.device)
    start, count = time.monotonic(), 0
    while count < least or distributed.on_first(lambda: time.monotonic() < start + seconds):
        yield from _step(phase, stream, 0.0, schedule)
        _average(phase.average, phase.modules[0], 0.0)
        count += 1
    _wait(phase.device)
    return (time.monotonic() - start) / count


def _evaluate(run: Run, phase: Phase, evaluate: Evaluate | None) -> None:
    """Evaluates the averaged model between two checkpoints, and writes a row of the history."""
    run.checkpoint(phase)
    with run.nothing_to_lose():
        scores = _look(phase, evaluate)
    _log(run, phase, scores)
    phase.evaluated = phase.step
    run.checkpoint(phase)
    with run.nothing_to_lose():
        run.show()
    left = run.record[phase.name]["seconds"] / 60 * (phase.steps / max(phase.step, 1) - 1)
    time_left = f" ({left:.1f} minutes left)" if 0 < phase.step < phase.steps else ""
    if line := _format(run.history[-1]):
        say(f"{phase.name}, step {phase.step}{time_left}: {line}")


def _look(phase: Phase, evaluate: Evaluate | None) -> dict[str, float]:
    """The numbers of an evaluation, by all processes, which leaves the random numbers as they were."""
    rng = get_rng(phase.device)
    with torch.no_grad(), distributed.together():
        scores = evaluate(phase.average) if evaluate else {}
    set_rng(rng, phase.device)
    return distributed.on_first(lambda: {name: float(value) for name, value in scores.items()})


def _log(run: Run, phase: Phase, scores: dict[str, float]) -> None:
    """Writes a row of the history, and says so the first time that one side of a GAN has won."""
    phase.share_sums()
    phase.check(run.path)
    run.log({"phase": phase.name, "step": phase.step, **phase.means(), **scores})
    phase.sums, phase.counts = {}, {}
    sentence = winner(run.history, phase.name)
    side = sentence.partition(" has won")[0]
    if side and side not in phase.warned:
        phase.warned.add(side)
        say(f"{phase.name}, step {phase.step}: {sentence}.")


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """A step of the exponential moving average of the parameters; buffers are copied."""
    get_ema_multi_avg_fn(decay)(list(average.parameters()), list(model.parameters()), 0)
    for kept, now in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(now)


def _listed(optimizers: Optimizers) -> list[Optimizer]:
    return [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)


def _update(
    optimizers: list[Optimizer], total: Tensor, parameters: list[nn.Parameter], clip: float
) -> Tensor:
    """Backward and a step of each; returns the norm of the gradients before they were clipped."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    total.backward()
    distributed.average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, clip)
    for optimizer in optimizers:
        optimizer.step()
    return norm


def _total(losses: Losses) -> Tensor:
    return torch.stack([loss.float() for loss in losses.values()]).sum()


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: _to(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_to(value, device) for value in batch)
    return batch


def _format(row: dict[str, Any]) -> str:
    """The numbers of a row as they are shown."""
    hidden = ("phase", "step", "grad")
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items() if not name.startswith(hidden))
