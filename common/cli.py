"""How every script starts: shared flags and their checks, the seed, the device, one line for a mistake.

Imports nothing but Python itself: `--help` and a wrong flag are answered before torch is imported, which
takes seconds.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import random
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

if TYPE_CHECKING:
    import torch


class UserError(Exception):
    """Something the user gave cannot be used. The message is one line: what is wrong, where, what to do."""

    exit_code = 2


# --------------------------------------------------------------------------------------------- processes


def rank() -> int:
    """The number of this process among those that torchrun has started together; 0 without it."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def size() -> int:
    """How many processes torchrun has started together, on all machines; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


may_speak: Callable[[], bool] = is_first
"""Whether it is this process that says why the program ends; later the first one to ask, whichever it is."""

# ------------------------------------------------------------------------------------------------- flags


@dataclass
class Flags:
    """The flags that mean the same in every script; a script's Config inherits them and adds its own."""

    data: str = "auto"
    """The data to use: a path, or auto for the first place that has some."""
    figs: Path = Path("figs")
    """Folder for figures and for the results file; a run on the built-in stand-in takes figs/builtin."""
    runs: Path = Path("runs")
    """Folder for checkpoints and trained weights."""
    seed: int = 0
    """Random seed of weights, of the order of the data and of noise."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on; auto takes the fastest one that helps."""
    resume: bool = False
    """Continue the run that was stopped, exactly where it was, or an ended one with a larger budget."""
    quick: bool = False
    """Take the same path at its smallest, in under half a minute; figures go to figs/quick, weights apart."""

    def check(self) -> None:
        """Checks the flags before any work is done.

        Raises:
            UserError: a value that cannot be used, or a flag that would be ignored.
        """
        if not 0 <= self.seed < 2**32:  # NumPy takes no others
            raise UserError(f"--seed {self.seed}: give a whole number from 0 to {2**32 - 1}")

    def figs_dir(self, builtin: bool = False) -> Path:
        """The folder for figures and results; unless --figs is given, trials and runs on a `builtin` stand-in
        for data never replace those of real data."""
        if self.figs != Flags.figs:
            return self.figs
        if self.quick:
            return self.figs / "quick"
        figs = self.figs / "builtin" if builtin else self.figs
        return figs / "evaluate" if getattr(self, "evaluate", False) else figs

    def run_dir(self, name: str, builtin: bool = False) -> Path:
        """The folder of a run: quick ones and those on stand-in data never pass for a real one."""
        return self.runs / (f"{name}-quick" if self.quick else f"{name}-builtin" if builtin else name)


@dataclass
class TrainingFlags(Flags):
    """The flags of the scripts whose training is long enough to need a budget."""

    preset: Literal["auto", "cpu", "gpu"] = "auto"
    """Sizes of models and batches; auto follows the device."""
    minutes: float | None = None
    """Training time in minutes; it becomes a fixed number of steps that is recorded."""
    steps: int | None = None
    """Training steps, in place of minutes."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the training; auto takes bfloat16 where the processor is made for it (AMX, CUDA)."""
    evaluate: bool = False
    """Score weights that exist, without training; figures go to figs/evaluate."""
    weights: str = "auto"
    """Weights to use where nothing is trained: a .safetensors file, shipped, or auto for the newest trained,
    else shipped."""
    overwrite: bool = False
    """Replace output files that exist."""

    def budget(self, steps: int | None, minutes: float | None) -> dict[str, Any]:
        """The budget that was given, else the preset's: {"steps": ...} or {"minutes": ...}."""
        if self.steps is None and self.minutes is None:
            return {"steps": steps} if steps is not None else {"minutes": minutes}
        return {"steps": self.steps} if self.steps is not None else {"minutes": self.minutes}

    def run_precision(self) -> Literal["auto", "float32", "bfloat16"]:
        """The precision that was given; trials are always in float32, so that they are the same anywhere."""
        return "float32" if self.quick and self.precision == "auto" else self.precision

    def check_budget(self, least: int = 1) -> None:
        """Refuses two budgets, and budgets that are none, by a UserError."""
        if self.steps is not None and self.minutes is not None:
            raise UserError("--steps and --minutes are two budgets for one run; give one of them")
        if self.steps is not None and self.steps < least:
            raise UserError(f"--steps {self.steps}: give a whole number of at least {least}")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise UserError(f"--minutes {self.minutes}: give a time above 0")


def flag(name: str) -> str:
    """The flag of a field: `batch_size` is `--batch-size`; `$NAME` and `SOURCE` stay."""
    return name if name.startswith("$") or name.isupper() else f"--{name.replace('_', '-')}"


def is_given(config: Flags, name: str) -> bool:
    """Whether a flag differs from its default."""
    return bool(getattr(config, name) != getattr(type(config), name))


def chosen_mode(config: Flags, *names: str) -> str:
    """Which of the flags that each ask for a task of its own was given, "" for none; two are a UserError."""
    modes = [name for name in names if not any(getattr(config, name) is off for off in (None, False))]
    if len(modes) > 1:
        raise UserError(f"{flag(modes[0])} and {flag(modes[1])} are two things to do; give one of them")
    return modes[0] if modes else ""


def check_unused(config: Flags, mode: str, *names: str) -> None:
    """Refuses flags that `mode`, "" for training, would ignore, by a UserError."""
    for name in names:
        if is_given(config, name):
            where = flag(mode) if mode else "training"
            raise UserError(f"{flag(name)} means nothing with {where}; leave it out")


def user_path(name: str, text: str | Path) -> Path:
    """The path that a flag names, with `~` expanded; a home folder that is not known is a UserError."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{flag(name)} {text}: there is no such home folder; write the path out") from None


def check_empty(words: list[str]) -> None:
    """Refuses an empty word, as an unset variable in quotes gives: as a path it would be this folder."""
    for before, word in zip(["", *words], words, strict=False):
        if not word or (word.startswith("--") and word.endswith("=")):
            name = word.rstrip("=") or before or "an argument"
            raise UserError(f"{name} is empty; give it a value, or leave it out")


def check_positive(config: Flags, *names: str) -> None:
    """Refuses numbers below 1, by a UserError."""
    for name in names:
        if getattr(config, name) < 1:
            raise UserError(f"{flag(name)} {getattr(config, name)}: give a whole number above 0")


def check_range(config: Flags, **ranges: tuple[float, float]) -> None:
    """Refuses numbers that are outside of their range, by a UserError; None is none."""
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"{flag(name)} {value}: give a number from {least} to {most}")


# ------------------------------------------------------------------------------------------------- start

Config = TypeVar("Config", bound=Flags)


def read_flags(config_class: type[Config]) -> Config:
    """Reads the command line into `config_class`, checks it, and ends the program on mistakes."""
    signal.signal(signal.SIGINT, _leave)  # while modules are imported, which takes seconds
    import tyro  # not for the tools that only need UserError

    prepare_output()
    with one_line(), redirect_stderr(sys.stderr if is_first() else sys.stdout):
        check_empty(sys.argv[1:])
        # tyro looks at stdout's terminal alone, also for what it writes to stderr, and not at NO_COLOR
        coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        tyro._experimental_options["ansi_codes"] = coloured
        config = tyro.cli(config_class)
        config.check()
        config.figs, config.runs = user_path("figs", config.figs), user_path("runs", config.runs)
    free_matplotlib()
    return config


def free_matplotlib() -> None:
    """Lets matplotlib start with its own settings: inherited ones may be broken, and would change figures."""
    os.environ.pop("MPLBACKEND", None)  # a notebook's `!` hands down its own, which scripts cannot import
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it says at length that a home is read-only
    if (package := find_spec("matplotlib")) and package.origin:
        own = Path(package.origin).parent / "mpl-data"
        os.environ["MATPLOTLIBRC"] = str(own)
        if Path("matplotlibrc").exists():  # in the current folder: it comes before all others
            with chdir(own):
                import matplotlib  # noqa: F401


def launch(main: Callable[[Config], int | None], config: Config) -> NoReturn:
    """Runs `main` and exits: 0, or what `main` returned.

    A UserError is one line on stderr and exit code 2; Ctrl-C outside of training is exit code 130.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):  # temporary files are removed on the way out
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup wants SIGHUP ignored
            signal.signal(number, _stop)
    commit()  # of the code that runs: another may be there when the run ends
    with one_line():
        code = main(config) or 0
        sys.stdout.flush()
    sys.exit(code)


@contextmanager
def one_line() -> Iterator[None]:
    """Turns what a user has to know into one line on stderr and an exit code, without a traceback.

    Raises:
        SystemExit: the exit code of a UserError, 1 where memory ran out, 130 for Ctrl-C, 0 where nobody reads
            the output any more.
    """
    script = Path(sys.argv[0]).name

    def leave(words: str, code: int) -> NoReturn:
        if may_speak():
            print(words, file=sys.stderr)
        sys.exit(code)

    try:
        yield
    except UserError as error:
        leave(f"{script}: {error}", error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        leave(f"{script}: there is not enough memory; close other programs, or take less data", 1)
    except KeyboardInterrupt:
        leave(f"\n{script}: interrupted", 130)
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, which torch says by a RuntimeError."""
    words = ("out of memory", "allocate memory")
    return isinstance(error, MemoryError) or any(part in str(error) for part in words)


def _leave(number: int, frame: object) -> NoReturn:
    """At once: nothing has started, and a module that is half imported catches exceptions."""
    if is_first():
        os.write(2, f"\n{Path(sys.argv[0]).name}: interrupted\n".encode(errors="replace"))
    os._exit(130)


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


class _Output(io.TextIOWrapper):
    """An output that never fails the work: what cannot be shown is escaped, what finds no room is dropped."""

    def write(self, text: str) -> int:
        self._try(super().write, text)
        return len(text)

    def flush(self) -> None:
        self._try(super().flush)

    def isatty(self) -> bool:
        """Whether bars can be drawn: a dumb terminal, as an editor's, would show their control codes."""
        return super().isatty() and os.environ.get("TERM") != "dumb" and is_first()

    @staticmethod
    def _try(function: Callable[..., object], *words: str) -> None:
        try:
            function(*words)
        except BrokenPipeError:  # nobody reads any more: `one_line` ends the program
            raise
        except OSError:
            pass


def prepare_output() -> None:
    """Lets no print fail, whatever the output is: another encoding, a full disk, or closed.

    Of several processes the first one alone prints; all of them can say on stderr why they fail.
    """
    if not is_first():
        sys.stdout = None
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - it stays open
        if not isinstance(stream, io.TextIOWrapper):  # a notebook's own
            continue
        encoding, flush = stream.encoding, (stream.line_buffering, stream.write_through)
        output = _Output(stream.detach(), encoding, "backslashreplace", None, *flush)
        setattr(sys, name, output)


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's generators."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: the device asked for is not there.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there.get(name, False):
        have = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise UserError(f"--device {name}: this machine has none; it has {have}")
    if name == "cuda" and size() > 1:
        number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= count:
            raise UserError(f"--device cuda: this machine has {count}; give --nproc-per-node={count}")
        torch.cuda.set_device(number)
        return torch.device("cuda", number)
    return torch.device(name)


# ------------------------------------------------------------------------------ what a results file records


def device_name(device: torch.device) -> str:
    """The device as a person knows it: `cpu, 2 threads`, `NVIDIA H200`, or `4 x NVIDIA H200`."""
    import torch

    many = f"{size()} x " if size() > 1 else ""
    if device.type == "cuda":
        return many + torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{many}{device.type}, {threads} thread{'s' * (threads > 1)}"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "torchmetrics", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


@cache
def commit() -> str:
    """The commit of this checkout when it is first asked for, with `+` after it where files differ from it;
    `unknown` outside of git."""
    import subprocess

    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def command_line(*words: str) -> str:
    """The words as one would type them here: Windows' cmd takes single quotes for a part of a name."""
    import subprocess  # not before --help

    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


anywhere: dict[str, str] = {}
"""By a value of --data here: the one that finds the same data on any machine. What finds data adds to it."""


def command() -> str:
    """The command that started this run, as anybody would type it from the repository's folder.

    Without `--resume`: a run that was stopped and resumed ends as one left alone. Well-known data are called
    by their name, not by the path where they were found here.
    """
    words, flag = [Path(sys.argv[0]).name], ""
    for word in sys.argv[1:]:
        parts = word.split("=", 1) if word.startswith("--data=") else [word]
        flag = parts[0] if word.startswith("--") else flag
        words += [
            anywhere.get(part, part) if flag == "--data" else part for part in parts if part != "--resume"
        ]
    if (at := words.index("--data") if "--data" in words else 0) and words[at + 1 : at + 2] == ["auto"]:
        del words[at : at + 2]  # which is the default
    return command_line(*launcher("python"), *words)


def launcher(python: str) -> list[str]:
    """The words that start a script: `python`, or torchrun with as many processes as there are."""
    if size() == 1:
        return [python]
    nodes, local = int(os.environ["GROUP_WORLD_SIZE"]), os.environ["LOCAL_WORLD_SIZE"]
    return ["torchrun", *([f"--nnodes={nodes}"] if nodes > 1 else []), f"--nproc-per-node={local}"]
