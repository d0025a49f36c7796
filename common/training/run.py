"""One training run in one folder: what it remembers, its checkpoints, how it is stopped and resumed.

A run has phases, one after the other. `Run` writes the one at work to `checkpoint.pt`, with those that are
finished, and brings it back. The file ends in a checksum, and the one before it stays beside it.
"""

import contextlib
import copy
import csv
import errno
import json
import math
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from torch import nn
from tqdm import tqdm

from common.cli import UserError, command_line, device_name, is_first, launcher, out_of_memory, size
from common.files import atomic_write, cause_of, sweep
from common.training import distributed
from common.training.phase import Phase, get_rng, set_rng


def checkpoint(run_dir: Path) -> Path:
    """The file from which a run in `run_dir` is resumed."""
    return run_dir / "checkpoint.pt"


def pick_precision(device: torch.device) -> str:
    """bfloat16 where the processor is made for it (AMX, CUDA's own answer).

    AVX512-BF16 alone does not count: with it the upscaler takes a third fewer steps a second than in float32.

    It follows from the machine alone, never from a measurement: the same seed gives the same numbers.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bfloat16" if has.get("amx_bf16") else "float32"


DRAW_EVERY = 20.0


class Run:
    """One training run in one folder: phases one after the other, one file `checkpoint.pt`.

    Attributes:
        history: rows {"phase", "step", means since the row before, results of an evaluation}, at most about
            200 a phase besides those of evaluations.
        record: for the results file, by phase: steps, precision, seconds, and `data_wait`, the share (0..1)
            of the steps' time until their batches were there.
        draw: draws the history so far; called after evaluations, `DRAW_EVERY` seconds apart at least.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        settings: dict[str, Any],
        budget: dict[str, float | None] | None = None,
        independent: bool = False,
        device: torch.device,
        resume: bool = False,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        checkpoint_every: float = 30.0,
    ) -> None:
        """Opens the run; an older checkpoint in the folder stays until the first phase starts.

        Args:
            run_dir: the folder of this script's run, for example runs/gan_upscale.
            settings: all that changes the result; must be the same for a run to go on.
            budget: what was asked for, such as {"minutes": 5}. When the run goes on it may be larger: then
                the phase at work, or the last one, is trained for longer, with a new schedule.
            independent: whether no phase starts from another's result; then all are trained for longer.
            resume: whether to go on from the folder's checkpoint.
            precision: of forward passes and losses; `auto` follows from the processor, see `pick_precision`.
            checkpoint_every: seconds between checkpoints.

        Raises:
            UserError: another process trains in the folder; on resume, no checkpoint, a damaged one, or one
                of other settings.
        """
        self.path = checkpoint(run_dir)
        self.before = self.path.with_name("checkpoint-before.pt")  # in case that one gets damaged
        self.settings = json.loads(json.dumps(settings, default=str))
        self.budget = {name: value for name, value in (budget or {}).items() if value is not None}
        self.device, self.checkpoint_every, self.independent = device, checkpoint_every, independent
        self.precision = pick_precision(device) if precision == "auto" else precision
        self.history: list[dict[str, Any]] = []
        self.record: dict[str, dict[str, Any]] = {}
        self._finished: dict[str, dict[str, Any]] = {}  # by phase: its weights, and the RNG after it
        self._pending: dict[str, dict[str, Any]] = {}  # by name: the phases that the checkpoint stands in
        self._started: set[str] = set()
        self.draw: Callable[[], None] = lambda: None
        self._drawn = time.monotonic()
        self.using = "float32"  # precision of the phase at work, which `autocast` gives
        self._owns_file = resume  # False while the file, if any, is of an older run
        self.stopping = False  # Ctrl-C or SIGTERM has asked for it
        self._saved = False  # nothing would be lost by stopping right now
        if is_first():  # of several processes; the others see nothing of the folder
            if resume and not (self.path.exists() or self.before.exists()):
                raise UserError(f"--resume: there is no {self.path}; start without --resume")
            self._lock(run_dir)
            sweep(run_dir, age=-math.inf)  # the folder is this run's alone
        if resume:
            self._load()

    def _lock(self, run_dir: Path) -> None:
        """Holds the folder until this process ends: two runs in one would overwrite each other."""
        self._held = FileLock(run_dir / ".lock", timeout=0, is_singleton=True)
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._held.acquire()
        except Timeout:
            raise UserError(
                f"another run is at work in {run_dir}; wait for it, or give this one other --runs"
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):  # as on some network disks
                return say(f"{run_dir} is on a disk without locks: see to it that no other run uses it.")
            raise UserError(f"cannot write to {run_dir}: {error.strerror}; name another --runs") from None

    def log(self, row: dict[str, Any]) -> None:
        """Adds a row to the history, to `history.csv` in the run's folder, and where it is installed to
        TensorBoard's files beside it.

        Raises:
            UserError: the table cannot be written.
        """
        self.history.append(row)
        if not is_first():
            return
        table = StringIO()
        names = dict.fromkeys(name for each in self.history for name in each)
        writer = csv.DictWriter(table, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        with atomic_write(self.path.with_name("history.csv")) as temporary:  # whole: others read it meanwhile
            temporary.write_text(table.getvalue(), encoding="utf-8")
        if self._board:
            for name in row.keys() - {"phase", "step"}:
                self._board.add_scalar(f"{row['phase']}/{name}", row[name], row["step"])
            self._board.flush()

    def show(self) -> None:
        """Draws the history so far, if the last figure is old enough."""
        if is_first() and time.monotonic() - self._drawn >= DRAW_EVERY:
            self.draw()
            self._drawn = time.monotonic()

    @cached_property
    def _board(self) -> Any:
        """TensorBoard's writer, in a folder of its own for each start; None where it is not installed."""
        if not find_spec("tensorboard"):
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.path.parent / "tensorboard" / time.strftime("%Y-%m-%d_%H-%M-%S")))

    def finish(self) -> None:
        """Marks the run as done: a new one may replace it, and resuming it trains nothing."""
        self.save(None, done=True)

    def autocast(self) -> torch.autocast:
        """The precision of the phase at work, for forward passes and losses; evaluations are float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.using == "bfloat16")

    def start(self, phase: Phase, steps: int | None = None, minutes: float | None = None) -> bool:
        """Brings a phase to where the checkpoint has it; returns whether any of its steps are left.

        Args:
            steps, minutes: the budget of the phase. Where that of the run has grown, the phase grows to it.

        Raises:
            UserError: the checkpoint does not fit the phase or its model.
        """
        if phase.name in self._started:
            raise ValueError(f"two phases are named {phase.name!r}")
        self._started.add(phase.name)
        distributed.any_of(False)  # no process starts before all are here
        record = self.record.setdefault(phase.name, {})
        longer = (steps or 0) > record.get("steps", math.inf)
        longer = longer or (minutes or 0) > record.get("minutes", math.inf)
        if not self._resume(phase, longer):
            return False
        phase.start = time.monotonic() - record.get("seconds", 0.0)
        return self._extend(phase, steps or 0, minutes) if longer and phase.steps else True

    def _resume(self, phase: Phase, longer: bool) -> bool:
        """Brings a phase to where the checkpoint has it; returns whether it is at work, or grows `longer`."""
        finished = self._finished.get(phase.name)
        before = finished.get("state") if finished else self._pending.get(phase.name)
        try:
            if finished:
                self.result(phase)
                if not longer or before is None or (self._pending and not self.independent):
                    return False
            if self._pending and not before and not self.independent:
                raise ValueError(phase.name)  # the checkpoint stands in another phase
            if before:
                phase.unpack(before)
        except Exception as error:  # a crafted file fails in many ways; a damaged one is not even read
            if out_of_memory(error):
                raise
            raise UserError(
                f"--resume: {self.path} does not fit phase {phase.name} or its model; start without --resume"
            ) from None
        self._pending.pop(phase.name, None)
        return True

    def _extend(self, phase: Phase, steps: int, minutes: float | None) -> bool:
        """Lets a phase grow to a larger budget; returns whether it gives it any more steps."""
        record = self.record[phase.name]
        if minutes is not None:
            steps = phase.steps + round(60 * (minutes - record["minutes"]) / record["seconds_per_step"])
            record["minutes"] = minutes
        phase.steps = record["steps"] = max(phase.steps, steps)
        if phase.name in self._finished and phase.step == phase.steps:
            return False
        self._finished.pop(phase.name, None)  # it is at work again
        say(f"{phase.name}: goes on to {phase.steps:,} steps, with a new schedule from here.")
        return True

    def checkpoint(self, phase: Phase) -> None:
        """Writes the state of the phase at work, if all its numbers are finite."""
        phase.share_sums()
        phase.check(self.path, weights=True)
        self.record[phase.name]["seconds"] = time.monotonic() - phase.start
        self.save(phase)

    def finish_phase(self, phase: Phase) -> None:
        """Keeps what the phase has trained."""
        for earlier in () if self.independent else self._finished.values():
            earlier.pop("state", None)  # only the last phase can be trained for longer
        self._finished[phase.name] = copy.deepcopy(
            {"weights": phase.average.state_dict(), "rng": get_rng(self.device), "state": phase.pack()}
        )
        self.save(None)

    def result(self, phase: Phase) -> nn.Module:
        """The model of a finished phase, whether it was trained now or before."""
        model = phase.modules[0]
        model.load_state_dict(self._finished[phase.name]["weights"])
        set_rng(self._finished[phase.name]["rng"], self.device)
        return model.eval()

    def save(self, phase: Phase | None, done: bool = False) -> None:
        """Writes the checkpoint, whole or not at all; one of an older, unfinished run is kept beside it.

        Raises:
            UserError: it cannot be written.
        """
        if not is_first():
            return
        if not self._owns_file:
            self.before.unlink(missing_ok=True)
            if self.path.exists() and not ((old := _content(_read(self.path))) and old["done"]):
                kept = self.path.replace(self.path.with_name("checkpoint-previous.pt"))
                say(f"{self.path} was of an unfinished run; it is kept as {kept.name}.")
        content = BytesIO()  # torch's own writer tells a full disk in words that nobody understands
        torch.save(
            {
                "settings": self.settings,
                "budget": self.budget,
                "machine": device_name(self.device),
                "done": done,
                "record": self.record,
                "history": self.history,
                "finished": self._finished,
                "phases": self._pending | ({phase.name: phase.pack()} if phase else {}),
            },
            content,
        )
        content.write(zlib.crc32(content.getbuffer()).to_bytes(4))  # torch does not mind
        with atomic_write(self.path) as temporary:
            temporary.write_bytes(content.getbuffer())
            if self._owns_file:
                with contextlib.suppress(FileNotFoundError):  # somebody has tidied up
                    self.path.replace(self.before)
        self._owns_file = True

    def _newest(self) -> bytes:
        """The bytes of the checkpoint, or of the one before where it is damaged; b"" where both are."""
        if data := _read(self.path):
            return data
        if data := _read(self.before):
            if self.path.exists():  # else the run was killed between two renames
                say(f"{self.path} is damaged: the run goes on from {self.before.name}, the one before it.")
            self.before.replace(self.path)
        return data

    def _load(self) -> None:
        content = _content(distributed.from_first(self._newest))
        if content is None:
            raise UserError(
                f"--resume: {self.path} is damaged, or of an earlier version; start without --resume"
            )
        old, new = content["settings"], self.settings
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                raise UserError(
                    f"--resume: the run in {self.path.parent} has {name} = {old.get(name)!r}, now it is "
                    f"{new.get(name)!r}; give the same, or start without --resume"
                )
        old, new = content["budget"], self.budget
        if any(value < old.get(name, math.inf) for name, value in new.items()):
            was, now = (" ".join(f"{name} = {value}" for name, value in b.items()) for b in (old, new))
            raise UserError(
                f"--resume: the run in {self.path.parent} has {was}, now it is {now}; give as much or more, "
                "or start without --resume"
            )
        if content["machine"] != device_name(self.device):
            say(
                f"The checkpoint is from {content['machine']}, this is {device_name(self.device)}: "
                "the run goes on, but its last bits can differ."
            )
        self.history, self.record = content["history"], content["record"]
        self._finished, self._pending = content["finished"], content["phases"]

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within it Ctrl-C, SIGTERM and a closed terminal let the step end and be saved; a second leaves now.

        Raises:
            SystemExit: 130, once the run is saved and the line that resumes it is shown.
        """
        process = os.getpid()

        def handle(number: int, frame: object) -> None:
            if os.getpid() != process:  # forked loader workers inherit this; Ctrl-C is not theirs to answer
                if number == signal.SIGTERM:
                    signal.signal(number, signal.SIG_DFL)
                    os.kill(os.getpid(), number)
            elif self.stopping or self._saved:
                raise Interrupted
            self.stopping = True

        hangup = getattr(signal, "SIGHUP", None)
        signals = [signal.SIGINT, signal.SIGTERM]
        if hangup and signal.getsignal(hangup) != signal.SIG_IGN:  # nohup wants it ignored
            signals.append(hangup)
        before = {number: signal.signal(number, handle) for number in signals}
        try:
            yield
        except (Interrupted, RuntimeError) as error:
            # Ctrl-C reaches loader workers too, and a step whose worker is gone fails
            if isinstance(error, RuntimeError) and not self.stopping:
                raise
            words = *launcher(sys.executable), *(word for word in sys.argv if word != "--resume")
            why = (
                " by a signal, perhaps for a process that was lost" if size() > 1 else ""
            )  # torchrun sends it
            say(f"\nStopped{why}. To go on: {command_line(*words, '--resume')}")
            raise SystemExit(130) from None
        finally:
            self.stopping = self._saved = False
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def nothing_to_lose(self) -> Iterator[None]:
        """Within it, the first Ctrl-C leaves at once: the state is saved, and only looked at or rewound."""
        self._saved = True
        try:
            if self.stopping:
                raise Interrupted
            yield
        finally:
            self._saved = False


class Interrupted(BaseException):
    """Leaves the training loop from wherever it is."""


def _read(path: Path) -> bytes:
    """The bytes of a checkpoint; b"" where there is none, or its checksum is not that of its content."""
    try:
        data = path.read_bytes()
        return data if zlib.crc32(memoryview(data)[:-4]).to_bytes(4) == data[-4:] else b""
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"cannot read {path}: {cause_of(error)}; see to it, or name another --runs") from None


def _content(data: bytes) -> dict[str, Any] | None:
    """The content of a checkpoint, or None where it is damaged or of an earlier version."""
    parts = {"settings": dict, "budget": dict, "machine": str, "done": bool}
    parts |= {"record": dict, "history": list, "finished": dict, "phases": dict}
    try:
        content = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
        return content if all(type(content[name]) is kind for name, kind in parts.items()) else None
    except Exception as error:  # damaged bytes fail in many ways; the caller says so and names the file
        if out_of_memory(error):
            raise MemoryError from None
        return None


def say(text: str) -> None:
    """Prints a line above the progress bar."""
    tqdm.write(text)
    sys.stdout.flush()
