"""What keeps a run alive: steps, progress, budget, checkpoints, resume, interrupts.

Losses, optimizers, schedules and the choice of weights are the lesson: they stand in the scripts and are
passed in. This file knows no model and no dataset. Open it at `supervised` and `adversarial`; the rest
serves them.

    run = Run(Path("runs/lesson"), settings=asdict(config), device=device, resume=config.resume)
    model = supervised(run, "fit", model, optimizer, loss, batches, minutes=5, schedule=cosine, ema=0.99)
    run.finish()
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from common.cli import UserError
from common.training.run import Interrupted, Phase, Run, get_rng, line_of, say, set_rng
from common.training.run import Losses as Losses

Batches = Callable[[int], Iterator[Any]]
Step = Callable[[Any, int, float], tuple[Losses, Losses]]  # of batch, number, progress: terms, notes
Schedule = Callable[[float], float]
Evaluate = Callable[[nn.Module], dict[str, Any]]

ROWS = 200  # of the history, for each phase
PROBE_SECONDS = 4.0  # at most, to find the pace at the start


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
    optimizer: Optimizer,
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

    def step(batch: Any, number: int, progress: float) -> tuple[Losses, Losses]:
        # Forward
        with run.autocast():
            losses = loss(model, batch, progress)
        total = _total(losses)

        # Backward and update
        optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return losses, {"loss": total, "grad": norm}

    state = Phase(phase, [model], [optimizer], run.device)
    return _train(run, state, step, batches, steps, minutes, schedule, ema, evaluate, evaluations)


def adversarial(
    run: Run,
    phase: str,
    generator: nn.Module,
    discriminator: nn.Module,
    optimizers: tuple[Optimizer, Optimizer],
    generator_loss: Callable[[nn.Module, Tensor, Tensor, tuple[Any, ...], int], Losses],
    discriminator_loss: Callable[
        [nn.Module, Tensor, Tensor, tuple[Any, ...], int], tuple[Losses, Tensor, Tensor]
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
    picture. Both losses are called with (discriminator, real, fake, condition, step), where `step` counts the
    steps of their own player: what a loss does in each 8th is as frequent for one who steps seldom.

    `discriminator_loss` also returns its scores of real and fake. The discriminator counts as right where
    real scores above 0 and fake below 0. In a relativistic loss only differences mean something: return
    scores that are centred, `real - fake.mean()` and `fake - real.mean()`.

    The other arguments and what is raised: see `supervised`. `optimizers` are the generator's and the
    discriminator's; the discriminator takes a step in each `d_every`, the generator in each `g_every`.
    Each row of the history has, besides the terms of the losses: `loss_generator`, `loss_discriminator`,
    `grad_generator`, `grad_discriminator`, and
    `accuracy_real` and `accuracy_fake`, the shares (0..1) of the two that the
    discriminator gets right. A line on screen says when one side has won.
    """
    generator_optimizer, discriminator_optimizer = optimizers
    judging = [p for p in discriminator.parameters() if p.requires_grad]

    def step(batch: Any, number: int, progress: float) -> tuple[Losses, Losses]:
        condition, real = batch
        with run.autocast():
            fake = generator(*condition)

        # (1) Update D: tell real from fake
        with run.autocast():
            losses_d, scores_real, scores_fake = discriminator_loss(
                discriminator, real, fake.detach(), condition, number // d_every
            )
        total_d = _total(losses_d)
        discriminator_optimizer.zero_grad()
        total_d.backward()
        norm_d = nn.utils.clip_grad_norm_(judging, clip)
        if number % d_every == 0:
            discriminator_optimizer.step()

        # (2) Update G: pass for real; D only judges, its parameters gather no gradients
        for parameter in judging:
            parameter.requires_grad_(False)
        with run.autocast():  # a region of its own: autocast remembers D's weights within one
            losses_g = generator_loss(discriminator, real, fake, condition, number // g_every)
        total_g = _total(losses_g)
        generator_optimizer.zero_grad()
        total_g.backward()
        norm_g = nn.utils.clip_grad_norm_(generator.parameters(), clip)
        if number % g_every == 0:
            generator_optimizer.step()
        for parameter in judging:
            parameter.requires_grad_(True)

        return losses_d | losses_g, {
            "loss_discriminator": total_d,
            "loss_generator": total_g,
            "accuracy_real": (scores_real > 0).float().mean(),
            "accuracy_fake": (scores_fake < 0).float().mean(),
            "grad_discriminator": norm_d,
            "grad_generator": norm_g,
        }

    state = Phase(phase, [generator, discriminator], list(optimizers), run.device)
    return _train(run, state, step, batches, steps, minutes, schedule, ema, evaluate, evaluations)


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


def _train(
    run: Run,
    phase: Phase,
    step: Step,
    batches: Batches,
    steps: int | None,
    minutes: float | None,
    schedule: Schedule,
    ema: float,
    evaluate: Evaluate | None,
    evaluations: int,
) -> nn.Module:
    """The loop around `step`, the same for both kinds of training."""
    if (steps is None) == (minutes is None):
        raise ValueError("the budget is either steps or minutes")
    if (steps or minutes or 0) <= 0:
        raise UserError(f"{phase.name}: the budget must be above 0; give more steps or minutes")
    if phase.name in run._begun:
        raise ValueError(f"two phases are named {phase.name!r}")
    run._begun.add(phase.name)
    try:
        if phase.name in run._finished:
            return _result(run, phase)
        _restore(run, phase)
    except (RuntimeError, ValueError, KeyError):
        raise UserError(
            f"--resume: {run.path} does not fit phase {phase.name} or its model; start without --resume"
        ) from None

    record = run.record.setdefault(phase.name, {})
    begun = time.monotonic() - record.get("seconds", 0.0)
    check_every = 1 if run.device.type == "cpu" else 20  # a look at a number makes a GPU wait
    warned: set[str] = set()

    def save() -> None:
        phase.check(run.path, weights=True)
        record["seconds"] = time.monotonic() - begun
        run._save(phase)

    def advance(stream: Iterator[Any], progress: float) -> None:
        asked = time.monotonic()
        for group in phase.groups():
            group["lr"] = group["initial_lr"] * schedule(progress)
        with torch.random.fork_rng(devices=[]):  # a loader that starts draws a number: not from ours
            batch = _to(next(stream), run.device)
        phase.waiting += time.monotonic() - asked
        losses, notes = step(batch, phase.step, progress)
        _average(phase.average, phase.modules[0], min(ema, (1 + phase.step) / (10 + phase.step)))
        phase.add(losses | notes)
        phase.step += 1
        if phase.step % check_every == 0:
            phase.check(run.path)
        phase.stepping += time.monotonic() - asked

    def look() -> dict[str, float]:
        rng = get_rng(run.device)
        with torch.no_grad():
            found = evaluate(phase.average) if evaluate else {}
        set_rng(rng, run.device)
        return {name: float(value) for name, value in found.items()}

    def log(found: dict[str, float]) -> None:
        phase.check(run.path)
        run.history.append({"phase": phase.name, "step": phase.step, **phase.means(), **found})
        phase.sums, phase.counts = {}, {}
        sentence = winner(run.history, phase.name)
        side = sentence.partition(" has won")[0]
        if side and side not in warned:
            warned.add(side)
            say(f"{phase.name}, step {phase.step}: {sentence}.")

    def examine() -> None:
        save()
        with run._nothing_to_lose():
            found = look()
        log(found)
        phase.evaluated = phase.step
        save()
        left = record["seconds"] / 60 * (phase.steps / max(phase.step, 1) - 1)
        time_left = f" ({left:.1f} minutes left)" if 0 < phase.step < phase.steps else ""
        if line := line_of(run.history[-1]):
            say(f"{phase.name}, step {phase.step}{time_left}: {line}")

    with run._interruptible():
        for module in phase.modules:
            module.train()
        if phase.evaluated < 0:
            examine()
        if not phase.steps:
            with run._nothing_to_lose():
                start = copy.deepcopy(phase.pack())
                run._using = run.precision
                if minutes is not None:
                    probing = min(PROBE_SECONDS, 0.03 * 60 * minutes)
                    trial = partial(advance, batches(0), 0.0)
                    pace = _seconds_each(trial, probing, run.device, warm_up=3)
                    del trial  # and its loader's workers
                    phase.unpack(start)
                    pause = _seconds_each(look, 0.0, run.device)
                    # on a busy machine they would otherwise leave no time to train
                    evaluations = max(1, min(evaluations, int(0.2 * 60 * minutes / pause)))
                    left = 60 * minutes - (time.monotonic() - begun) - evaluations * pause
                    steps = max(1, int(left / pace))
                    record.update(minutes=minutes, seconds_per_step=pace, seconds_per_evaluation=pause)
                    say(
                        f"{phase.name}: {steps} steps of {pace:.3g} s and {evaluations} evaluations of "
                        f"{pause:.3g} s fill {minutes:g} minutes."
                    )
            phase.steps, phase.precision, phase.evaluations = steps or 1, run._using, evaluations
            record.update(steps=phase.steps, precision=phase.precision)
            save()

        run._using = phase.precision
        row_every = max(1, phase.steps // ROWS)
        count = phase.evaluations
        points = {round(i * phase.steps / count) for i in range(1, count + 1)} | {phase.steps}
        stream = batches(phase.step)
        saved = shown = time.monotonic()
        # disable=None: no bar where the output is no terminal
        with tqdm(total=phase.steps, initial=phase.step, desc=phase.name, unit="step", disable=None) as bar:
            while True:
                if phase.step in points and phase.evaluated < phase.step:
                    examine()
                    saved = time.monotonic()
                if phase.step == phase.steps:
                    break
                advance(stream, phase.step / phase.steps)
                if phase.step % row_every == 0 and phase.step not in points:
                    log({})
                bar.update()
                now = time.monotonic()
                if not bar.disable and phase.sums and now - shown > 0.5:
                    bar.set_postfix_str(line_of(phase.means()))
                    shown = now
                if run._asked or now - saved > run.checkpoint_every:
                    save()
                    saved = now
                if run._asked:
                    raise Interrupted
    record["data_wait"] = phase.waiting / max(phase.stepping, 1e-9)
    say(f"{phase.name}: {record['data_wait']:.1%} of the steps' time went by waiting for data.")
    weights = copy.deepcopy(phase.average.state_dict())
    run._finished[phase.name] = {"weights": weights, "rng": get_rng(run.device)}
    run._save(None)
    return _result(run, phase)


def _restore(run: Run, phase: Phase) -> None:
    """Brings a phase to where the checkpoint has it, if the checkpoint stands in one."""
    pending, run._pending = run._pending, None
    if pending is not None:
        if pending["name"] != phase.name:
            raise ValueError(phase.name)
        phase.unpack(pending)


def _result(run: Run, phase: Phase) -> nn.Module:
    """The model of a finished phase, whether it was trained now or before."""
    model = phase.modules[0]
    model.load_state_dict(run._finished[phase.name]["weights"])
    set_rng(run._finished[phase.name]["rng"], run.device)
    return model.eval()


def _seconds_each(
    function: Callable[[], object], seconds: float, device: torch.device, warm_up: int = 0
) -> float:
    """Mean time of a call, over calls that fill `seconds`."""
    for _ in range(warm_up):
        function()
    _wait(device)
    begun, count = time.monotonic(), 0
    while count == 0 or time.monotonic() - begun < seconds:
        function()
        count += 1
    _wait(device)
    return (time.monotonic() - begun) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """A step of the exponential moving average of the parameters; buffers are copied."""
    get_ema_multi_avg_fn(decay)(list(average.parameters()), list(model.parameters()), 0)
    for kept, now in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(now)


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
