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
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from common import runs

Losses = dict[str, Tensor]
Batches = Callable[[int], Iterator[Any]]
Evaluate = Callable[[nn.Module], dict[str, float]]

BFLOAT16_SPEEDUP = 1.15  # bfloat16 is used from this speed-up on,
BFLOAT16_LOSS = 0.01  # where the losses are this near to those of float32
BFLOAT16_COSINE = 0.98  # and the gradients point the same way


def supervised(
    run: "Run",
    phase: str,
    model: nn.Module,
    optimizer: Optimizer,
    loss: Callable[[nn.Module, Any, float], Losses],
    batches: Batches,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    schedule: Callable[[float], float],
    ema: float,
    clip: float = math.inf,
    evaluate: Evaluate | None = None,
    evaluations: int = 10,
    best: Callable[[dict[str, float]], float] | None = None,
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
            times after; its numbers join `run.history`. It cannot disturb the training's random numbers.
        best: score of an evaluation; the weights that scored highest are returned in place of the last.

    Raises:
        runs.Refused: a loss, gradient or weight is not finite, or the checkpoint does not fit the model.
        SystemExit: 130 after Ctrl-C or SIGTERM, once the run is saved.
    """

    def step(batch: Any, number: int, progress: float) -> Losses:
        # Forward
        with run.autocast():
            losses = loss(model, batch, progress)
        total = sum_of(losses)

        # Backward and update
        optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return {**losses, "loss": total, "grad": norm}

    state = _Phase(phase, [model], [optimizer], run.device)
    return _train(run, state, step, batches, steps, minutes, schedule, ema, evaluate, evaluations, best)


def adversarial(
    run: "Run",
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
    schedule: Callable[[float], float],
    ema: float,
    clip: float = math.inf,
    evaluate: Evaluate | None = None,
    evaluations: int = 10,
    best: Callable[[dict[str, float]], float] | None = None,
) -> nn.Module:
    """Trains the two in place; returns `generator`, holding its averaged (EMA) weights, in eval mode.

    A batch is (given, real): `given` is the tuple of the generator's inputs, noise and label or a small
    picture. Both losses are called with (discriminator, real, made, given, step).

    `discriminator_loss` also returns its scores of real and made. The discriminator counts as right where
    real scores above 0 and made below 0. In a relativistic loss only differences mean something: return
    scores that are centred, `real - made.mean()` and `made - real.mean()`.

    The other arguments and what is raised: see `supervised`. `optimizers` are the generator's and the
    discriminator's. Each row of the history has, besides the terms of the losses: `loss_generator`,
    `loss_discriminator`, `grad_generator`, `grad_discriminator`, and `real` and `made`, the shares (0..1)
    of the two that the discriminator gets right. A line on screen says when one side has won.
    """
    generator_optimizer, discriminator_optimizer = optimizers
    judging = [p for p in discriminator.parameters() if p.requires_grad]

    def step(batch: Any, number: int, progress: float) -> Losses:
        given, real = batch
        with run.autocast():
            made = generator(*given)

        # (1) Update D: tell real from made
        with run.autocast():
            losses_d, scores_real, scores_made = discriminator_loss(
                discriminator, real, made.detach(), given, number
            )
        total_d = sum_of(losses_d)
        discriminator_optimizer.zero_grad()
        total_d.backward()
        norm_d = nn.utils.clip_grad_norm_(judging, clip)
        discriminator_optimizer.step()

        # (2) Update G: pass for real; D only judges, its parameters gather no gradients
        for parameter in judging:
            parameter.requires_grad_(False)
        with run.autocast():  # a region of its own: autocast remembers D's weights within one
            losses_g = generator_loss(discriminator, real, made, given, number)
        total_g = sum_of(losses_g)
        generator_optimizer.zero_grad()
        total_g.backward()
        norm_g = nn.utils.clip_grad_norm_(generator.parameters(), clip)
        generator_optimizer.step()
        for parameter in judging:
            parameter.requires_grad_(True)

        if both := losses_d.keys() & losses_g.keys():
            raise ValueError(f"both players have a loss named {sorted(both)}")
        players = {"loss_generator": total_g, "loss_discriminator": total_d}
        norms = {"grad_generator": norm_g, "grad_discriminator": norm_d}
        right = {"real": (scores_real > 0).float().mean(), "made": (scores_made < 0).float().mean()}
        return {**losses_g, **losses_d, **players, **norms, **right}

    state = _Phase(phase, [generator, discriminator], list(optimizers), run.device)
    return _train(run, state, step, batches, steps, minutes, schedule, ema, evaluate, evaluations, best)


def winner(history: list[dict[str, Any]], phase: str, rows: int = 10) -> str:
    """A sentence when one side has won over the last `rows` logged rows of `phase`; "" while in balance.

    The discriminator has won when it is right about more than 97 % of real and of made. The generator has
    won when the discriminator is right no more often than by tossing a coin (constant scores count as 0 to
    50 %) and its loss stands still, within 2 %: near a coin with a moving loss is a good match.
    """
    last = [row for row in history if row["phase"] == phase and "real" in row][-rows:]
    if len(last) < rows:
        return ""
    real, made = (statistics.fmean(row[side] for row in last) for side in ("real", "made"))
    losses = [row["loss_discriminator"] for row in last]
    still = max(losses) - min(losses) <= 0.02 * abs(statistics.fmean(losses))
    if min(real, made) > 0.97:
        return (
            f"the discriminator has won: it knows {real:.0%} of the real and {made:.0%} of the made ones, "
            "so the generator learns little from it"
        )
    if (real + made) / 2 < 0.55 and still:
        return (
            f"the generator has won: the discriminator is right about {real:.0%} of the real and {made:.0%} "
            "of the made ones, as good as a coin, and its loss stands still"
        )
    return ""


class Run:
    """One training run in one folder: phases one after the other, one file `checkpoint.pt`.

    Attributes:
        history: rows {"phase", "step", means since the row before, results of an evaluation}; at most about
            200 a phase and one for each evaluation.
        record: for the results file, by phase: steps, precision, seconds, and what the probe found.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: dict[str, Any],
        device: torch.device,
        resume: bool = False,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        checkpoint_every: float = 30.0,
    ) -> None:
        """Opens the run; nothing is written before the first phase.

        Args:
            folder: of this script's run, for example runs/gan_upscale.
            settings: what must be the same for a run to go on: all that changes its result.
            resume: go on from the folder's checkpoint.
            precision: `auto` probes whether bfloat16 autocast is faster and exact enough, for each phase.
            checkpoint_every: seconds between checkpoints.

        Raises:
            runs.Refused: on resume, no checkpoint, a damaged one, or one of other settings.
        """
        self.path = folder / "checkpoint.pt"
        self.settings = {name: _plain(value) for name, value in settings.items()}
        self.device, self.precision, self.checkpoint_every = device, precision, checkpoint_every
        self.history: list[dict[str, Any]] = []
        self.record: dict[str, dict[str, Any]] = {}
        self._finished: dict[str, dict[str, Any]] = {}  # by phase: its weights, and the RNG after it
        self._pending: dict[str, Any] | None = None  # the phase that the checkpoint stands in
        self._begun: set[str] = set()
        self._using = "float32"  # precision of the phase at work
        self._own_file = resume  # whether the checkpoint in the folder is of this run
        self._asked = self._idle = False
        if resume:
            self._load()

    def finish(self) -> None:
        """Marks the run as done: a new one may replace it, and to resume it trains nothing."""
        self._save(None, done=True)

    def autocast(self) -> torch.autocast:
        """The precision of the phase at work, for forward passes and losses."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._using == "bfloat16")

    def _load(self) -> None:
        if not self.path.exists():
            raise runs.Refused(f"--resume: there is no {self.path}; start without --resume")
        content = _read(self.path)
        if content is None:
            raise runs.Refused(f"--resume: {self.path} is damaged; remove it and start without --resume")
        old = content["settings"]
        for name in sorted(old.keys() | self.settings.keys()):
            if old.get(name) != self.settings.get(name):
                raise runs.Refused(
                    f"--resume: the run in {self.path.parent} has {name}={old.get(name)!r}, now it is "
                    f"{self.settings.get(name)!r}; give the same, or start without --resume"
                )
        if content["machine"] != runs.device_name(self.device):
            print(
                f"The checkpoint is from {content['machine']}, this is {runs.device_name(self.device)}: "
                "the run goes on, but its last bits can differ."
            )
        self.history, self.record = content["history"], content["record"]
        self._finished, self._pending = content["finished"], content["phase"]

    def _save(self, phase: "_Phase | None", done: bool = False) -> None:
        if phase is not None:
            phase.check_weights(self.path)
        if not self._own_file and self.path.exists():
            old = _read(self.path)
            if old is None or not old["done"]:
                kept = self.path.replace(self.path.with_name("checkpoint-previous.pt"))
                _say(f"{self.path} was of an unfinished run; it is kept as {kept.name}.")
        for left in self.path.parent.glob(".checkpoint.*.pt"):
            left.unlink(missing_ok=True)  # of a run killed while it wrote
        with runs.whole(self.path) as beside:
            torch.save(
                {
                    "settings": self.settings,
                    "machine": runs.device_name(self.device),
                    "done": done,
                    "record": self.record,
                    "history": self.history,
                    "finished": self._finished,
                    "phase": phase and phase.pack(),
                },
                beside,
            )
        self._own_file = True

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Within it Ctrl-C and SIGTERM let the step end and save; a second one leaves at once."""
        process = os.getpid()

        def handle(number: int, frame: Any) -> None:
            if os.getpid() != process:  # forked loader workers inherit this: Ctrl-C is not theirs to answer
                if number == signal.SIGTERM:
                    signal.signal(number, signal.SIG_DFL)
                    os.kill(os.getpid(), number)
                return
            if self._asked or self._idle:
                raise _Interrupted
            self._asked = True

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        except (_Interrupted, RuntimeError) as error:
            # Ctrl-C reaches loader workers too, and a step whose worker is gone fails
            if isinstance(error, RuntimeError) and not self._asked:
                raise
            again = runs.command()
            _say(f"\nStopped. This goes on: {again if '--resume' in again else again + ' --resume'}")
            raise SystemExit(130) from None
        finally:
            self._asked = False
            for number, handler in before.items():
                signal.signal(number, handler)


class _Interrupted(BaseException):
    """Leaves the training loop from wherever it is."""


@dataclass
class _Phase:
    """All that changes while a phase trains: what a checkpoint keeps and a rewind brings back."""

    name: str
    modules: list[nn.Module]  # the first is the one that is averaged and returned
    optimizers: list[Optimizer]
    device: torch.device
    step: int = 0
    steps: int = 0  # 0: not settled yet
    precision: str = ""
    evaluated: int = -1  # step of the last evaluation
    sums: Losses = field(default_factory=dict)  # since the last row of the history; no sync with a GPU
    counts: dict[str, int] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)  # score and weights of the best evaluation

    FIELDS = ("name", "step", "steps", "precision", "evaluated", "sums", "counts", "best")

    def __post_init__(self) -> None:
        self.average = copy.deepcopy(self.modules[0]).eval().requires_grad_(False)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])  # torch's own name; saved with the optimizer

    def pack(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in self.FIELDS},
            "modules": [module.state_dict() for module in self.modules],
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": _rng(self.device),
        }

    def unpack(self, packed: dict[str, Any]) -> None:
        packed = copy.deepcopy(packed)
        for module, weights in zip(self.modules, packed["modules"], strict=True):
            module.load_state_dict(weights)
        self.average.load_state_dict(packed["average"])
        for optimizer, state in zip(self.optimizers, packed["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for name in self.FIELDS:
            setattr(self, name, packed[name])
        self.sums = {name: value.to(self.device) for name, value in self.sums.items()}
        _set_rng(packed["rng"], self.device)

    def add(self, values: Losses) -> None:
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: value.item() / self.counts[name] for name, value in self.sums.items()}

    def check_sums(self, kept: Path) -> None:
        if bad := [name for name, value in self.sums.items() if not math.isfinite(value)]:
            self._stop(", ".join(bad), kept)

    def check_weights(self, kept: Path) -> None:
        tensors = [t for module in (*self.modules, self.average) for t in module.state_dict().values()]
        if not all(bool(torch.isfinite(t).all()) for t in tensors):
            self._stop("a weight", kept)

    def _stop(self, what: str, kept: Path) -> None:
        raise runs.Refused(
            f"{self.name}, step {self.step}: {what} is not finite; {kept} keeps the last good state: "
            "--resume goes on from there; should it happen again, start anew with a lower learning rate"
        )


def _train(
    run: Run,
    phase: _Phase,
    step: Callable[[Any, int, float], Losses],
    batches: Batches,
    steps: int | None,
    minutes: float | None,
    schedule: Callable[[float], float],
    ema: float,
    evaluate: Evaluate | None,
    evaluations: int,
    best: Callable[[dict[str, float]], float] | None,
) -> nn.Module:
    """The loop around `step`, the same for both kinds of training."""
    if (steps is None) == (minutes is None):
        raise ValueError("the budget is either steps or minutes")
    if (steps or minutes or 0) <= 0:
        raise runs.Refused(f"{phase.name}: the budget must be above 0; give more steps or minutes")
    if phase.name in run._begun:
        raise ValueError(f"two phases are named {phase.name!r}")
    run._begun.add(phase.name)
    model = phase.modules[0]
    if phase.name in run._finished:
        return _result(run, phase)
    if run._pending is not None:
        _restore(run, phase)

    record = run.record.setdefault(phase.name, {})
    begun = time.monotonic() - record.get("seconds", 0.0)
    every = 1 if run.device.type == "cpu" else 20  # looking at a number makes a GPU wait
    warned: set[str] = set()

    def save() -> None:
        record["seconds"] = time.monotonic() - begun
        run._save(phase)

    def advance(stream: Iterator[Any], progress: float) -> None:
        for optimizer in phase.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(progress)
        with torch.random.fork_rng(devices=[]):  # a loader's restart draws a number: not from ours
            batch = _to(next(stream), run.device)
        phase.add(step(batch, phase.step, progress))
        decay = min(ema, (1 + phase.step) / (10 + phase.step))
        _average(phase.average, model, decay)
        phase.step += 1
        if phase.step % every == 0:
            phase.check_sums(run.path)

    def look() -> dict[str, float]:
        rng = _rng(run.device)
        with torch.no_grad(), run.autocast():
            found = evaluate(phase.average) if evaluate else {}
        _set_rng(rng, run.device)
        return {name: float(value) for name, value in found.items()}

    def log(found: dict[str, float]) -> None:
        phase.check_sums(run.path)
        run.history.append({"phase": phase.name, "step": phase.step, **phase.means(), **found})
        phase.sums, phase.counts = {}, {}
        side = winner(run.history, phase.name)
        if side and side.split(" has won")[0] not in warned:
            warned.add(side.split(" has won")[0])
            _say(f"{phase.name}, step {phase.step}: {side}.")

    def examine() -> None:
        save()  # Ctrl-C during an evaluation need not wait for its end
        run._idle = True
        found = look()
        run._idle = False
        log(found)
        if best and found and best(found) > phase.best.get("score", -math.inf):
            phase.best = {"score": best(found), "weights": copy.deepcopy(phase.average.state_dict())}
        phase.evaluated = phase.step
        save()
        row = run.history[-1]
        _say(
            f"{phase.name}, step {phase.step}: "
            + ", ".join(f"{name} {row[name]:.4g}" for name in row if name not in ("phase", "step"))
        )

    with run._interruptible():
        for module in phase.modules:
            module.train()
        if not phase.steps:
            examine()
            run._idle = True
            start = copy.deepcopy(phase.pack())
            run._using, found = _choose_precision(run, phase, step, batches, minutes)
            record.update(found)
            phase.unpack(start)
            if minutes is not None:
                t = time.monotonic()
                look()
                pause = time.monotonic() - t
                pace = _pace(run, lambda stream: advance(stream, 0.0), batches, minutes)
                left = 60 * minutes - (time.monotonic() - begun) - evaluations * pause
                record.update(minutes=minutes, seconds_per_step=pace, seconds_per_evaluation=pause)
                phase.unpack(start)
                steps = max(1, int(left / pace))
                _say(
                    f"{phase.name}: {steps} steps of {pace:.3g} s fill {minutes:g} minutes, "
                    f"with {evaluations} evaluations of {pause:.3g} s."
                )
            assert steps is not None
            phase.steps, phase.precision = steps, run._using
            record.update(steps=steps, precision=phase.precision)
            run._idle = False
            save()

        run._using = phase.precision
        row_every = max(1, phase.steps // 200)
        points = {round(i * phase.steps / evaluations) for i in range(1, evaluations + 1)} | {phase.steps}
        stream = batches(phase.step)
        saved = shown = time.monotonic()
        with tqdm(
            total=phase.steps,
            initial=phase.step,
            desc=phase.name,
            unit="step",
            disable=None,
            dynamic_ncols=True,
        ) as bar:
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
                    means = {k: f"{v:.3g}" for k, v in phase.means().items() if not k.startswith("grad")}
                    bar.set_postfix(means)
                    shown = now
                if run._asked or now - saved > run.checkpoint_every:
                    save()
                    saved = now
                if run._asked:
                    raise _Interrupted
    run._finished[phase.name] = {
        "weights": phase.best.get("weights") or copy.deepcopy(phase.average.state_dict()),
        "rng": _rng(run.device),
    }
    record["seconds"] = time.monotonic() - begun
    run._save(None)
    return _result(run, phase)


def _result(run: Run, phase: _Phase) -> nn.Module:
    """The trained model of a finished phase, whether trained now or before."""
    model = phase.modules[0]
    try:
        model.load_state_dict(run._finished[phase.name]["weights"])
    except RuntimeError:
        raise runs.Refused(_misfit(run, phase)) from None
    _set_rng(run._finished[phase.name]["rng"], run.device)
    return model.eval()


def _restore(run: Run, phase: _Phase) -> None:
    pending, run._pending = run._pending, None
    try:
        if pending is None or pending["name"] != phase.name:
            raise ValueError
        phase.unpack(pending)
    except (RuntimeError, ValueError, KeyError):
        raise runs.Refused(_misfit(run, phase)) from None


def _misfit(run: Run, phase: _Phase) -> str:
    return f"--resume: {run.path} does not fit the model of phase {phase.name}; start without --resume"


def _choose_precision(
    run: Run,
    phase: _Phase,
    step: Callable[[Any, int, float], Losses],
    batches: Batches,
    minutes: float | None,
) -> tuple[str, dict[str, Any]]:
    """Times single steps in both precisions alternately; compares their losses and gradients on a batch."""
    if run.precision != "auto":
        return run.precision, {}
    start = copy.deepcopy(phase.pack())
    stream = batches(0)
    batch = _to(next(stream), run.device)
    losses, gradients, seconds = {}, {}, {"float32": [0.0], "bfloat16": [0.0]}
    for run._using in seconds:
        phase.unpack(start)
        values = step(batch, 0, 0.0)
        losses[run._using] = torch.stack(
            [value.detach().float() for name, value in values.items() if "grad" not in name]
        )
        gradients[run._using] = [
            torch.cat(
                [p.grad.float().flatten() for g in o.param_groups for p in g["params"] if p.grad is not None]
            )
            for o in phase.optimizers
        ]
    difference = ((losses["float32"] - losses["bfloat16"]).abs().sum() / losses["float32"].abs().sum()).item()
    cosine = min(
        torch.cosine_similarity(a, b, dim=0).item()
        for a, b in zip(gradients["float32"], gradients["bfloat16"], strict=True)
    )
    for taken in seconds.values():
        taken.clear()
    end = time.monotonic() + _probe_seconds(minutes)
    while len(seconds["bfloat16"]) < 3 or time.monotonic() < end:
        batch = _to(next(stream), run.device)
        for run._using, taken in seconds.items():
            _wait(run.device)
            t = time.monotonic()
            step(batch, len(taken), 0.0)
            _wait(run.device)
            taken.append(time.monotonic() - t)
    speedup = statistics.median(seconds["float32"]) / statistics.median(seconds["bfloat16"])
    good = speedup >= BFLOAT16_SPEEDUP and difference <= BFLOAT16_LOSS and cosine >= BFLOAT16_COSINE
    chosen = "bfloat16" if good else "float32"
    _say(
        f"{phase.name}: {chosen}; bfloat16 is {speedup:.2f} times as fast as float32, its losses differ by "
        f"{difference:.2%}, cosine of the gradients {cosine:.4f}."
    )
    return chosen, {"bfloat16": {"speedup": speedup, "loss_difference": difference, "cosine": cosine}}


def _pace(run: Run, advance: Callable[[Iterator[Any]], None], batches: Batches, minutes: float) -> float:
    """Seconds a step, with its batch."""
    stream = batches(0)
    for _ in range(3):  # caches, loader workers
        advance(stream)
    _wait(run.device)
    begun, count = time.monotonic(), 0
    while count < 3 or time.monotonic() - begun < _probe_seconds(minutes):
        advance(stream)
        count += 1
    _wait(run.device)
    return (time.monotonic() - begun) / count


def _probe_seconds(minutes: float | None) -> float:
    return 2.0 if minutes is None else min(4.0, 0.03 * 60 * minutes)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """One step of the exponential moving average of parameters; buffers are copied."""
    get_ema_multi_avg_fn(decay)(list(average.parameters()), list(model.parameters()), 0)
    for kept, now in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(now)


def sum_of(losses: Losses) -> Tensor:
    """The sum of all terms."""
    return torch.stack([value.float() for value in losses.values()]).sum()


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: _to(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_to(value, device) for value in batch)
    return batch


def _rng(device: torch.device) -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def _set_rng(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint, or None where it is damaged."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content if content["settings"] is not None and "phase" in content else None
    except Exception:  # damaged bytes fail in many ways; the caller says it and names the file
        return None


def _plain(value: Any) -> Any:
    """A setting as a checkpoint can hold it."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value)


def _say(text: str) -> None:
    tqdm.write(text)
    sys.stdout.flush()
