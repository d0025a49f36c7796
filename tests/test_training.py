"""Runs that are killed, interrupted, poisoned and resumed come out as if nothing had happened."""

import contextlib
import copy
import csv
import json
import math
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.cli import UserError
from common.files import PREFIX
from common.training import loop
from common.training import run as run_module
from common.training.loop import adversarial, supervised, winner
from common.training.run import Run

CPU = torch.device("cpu")
REPOSITORY = Path(__file__).parents[1]
LESSON = Path(__file__).with_name("training_lesson.py")


def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """x [16, 4] and the sum of its columns [16, 1]."""
    while True:
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(first))
        yield x, x.sum(1, keepdim=True)
        first += 1


def squared(model: nn.Module, batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
    return {"squared": (model(batch[0]) - batch[1]).square().mean()}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))


def open_run(folder: Path, settings: dict[str, Any] | None = None, **options: Any) -> Run:
    options = {"device": CPU, "precision": "float32", **options}
    return Run(folder, settings=settings or {"seed": 0}, **options)


def fit(run: Run, model: nn.Module, loss: Callable[..., Any] = squared, **options: Any) -> nn.Module:
    options = {"steps": 12, "schedule": lambda progress: 1 - progress, "ema": 0.9, **options}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    return supervised(run, "fit", model, optimizer, loss, batches, **options)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, str(LESSON)],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def saved_at(folder: Path) -> int:
    file = folder / "checkpoint.pt"
    return file.stat().st_mtime_ns if file.exists() else 0


def run_lesson(
    server: subprocess.Popen[str],
    folder: Path,
    *words: str,
    send: int = 0,
    saves: int = 1,
    after: float = 0.0,
    hit: bool = False,
) -> tuple[int, str]:
    """Exit code and output of a run in a process of its own, sent a signal after saves and seconds; with
    `hit` also not before a file is being written."""
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps([str(folder), *words]), file=server.stdin, flush=True)
    process = int(server.stdout.readline())
    if send:
        for _ in range(saves):
            before = saved_at(folder)
            while saved_at(folder) == before:
                time.sleep(0.002)
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            while hit and not [*folder.glob(f"{PREFIX}*")]:
                os.kill(process, 0)
            os.kill(process, send)
    code = int(server.stdout.readline())
    return code, Path(f"{folder}.log").read_text()


def outcome(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "outcome.pt", weights_only=True)


def test_killed_three_times_and_resumed_equals_a_run_left_alone(
    server: subprocess.Popen[str], tmp_path: Path
) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert run_lesson(server, alone)[0] == 0
    chance = random.Random(os.urandom(8))
    words: list[str] = []
    for _ in range(3):
        when = {"saves": chance.randint(3, 6), "after": chance.uniform(0.0, 0.1)}
        code, said = run_lesson(server, killed, *words, send=signal.SIGKILL, **when)
        assert code == -signal.SIGKILL, said
        words = ["--resume"]
    code, said = run_lesson(server, killed, "--resume")
    assert code == 0, said

    expected, found = outcome(alone), outcome(killed)
    assert found["history"] == expected["history"]
    assert same(found["weights"], expected["weights"])
    assert torch.equal(found["random"], expected["random"])
    assert not list(killed.glob(f"{PREFIX}*")), "files half written are left"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_saves_says_how_to_go_on_and_exits_130(
    server: subprocess.Popen[str], tmp_path: Path, number: int
) -> None:
    code, said = run_lesson(server, tmp_path / "run", send=number, saves=3)
    assert code == 130, said
    line = shlex.join([sys.executable, "training_lesson.py", str(tmp_path / "run"), "--resume"])
    assert said.endswith(f"To go on: {line}\n")


def test_interrupt_during_an_evaluation_and_a_trial_does_not_wait(tmp_path: Path) -> None:
    def interrupted(model: nn.Module) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the evaluation went on")

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        fit(open_run(tmp_path), net(), evaluate=interrupted)
    assert stopped.value.code == 130

    calls = 0

    def interrupt_later(model: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the trial went on")
        return squared(model, batch, progress)

    with pytest.raises(SystemExit) as stopped:
        fit(open_run(tmp_path), net(), interrupt_later, steps=None, minutes=1.0)
    assert stopped.value.code == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    run = open_run(tmp_path, resume=True)
    fit(run, net())
    assert run.history[-1]["step"] == 12


def test_interrupt_saves_the_step_it_came_in(tmp_path: Path) -> None:
    calls = 0

    def interrupt(model: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return squared(model, batch, progress)

    with pytest.raises(SystemExit):
        fit(open_run(tmp_path, checkpoint_every=1e9), net(), interrupt)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["phases"]["fit"]["step"] == 5
    assert not saved["done"]


def test_second_interrupt_leaves_at_once(tmp_path: Path) -> None:
    def twice(model: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the step went on")

    with pytest.raises(SystemExit) as stopped:
        fit(open_run(tmp_path), net(), twice)
    assert stopped.value.code == 130


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_bad_numbers_stop_and_the_last_good_checkpoint_stays(tmp_path: Path, poison: str) -> None:
    calls = 0

    def loss(model: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        terms = squared(model, batch, progress)
        if calls == 9:
            zero = (model[3].weight * 0).sum()
            terms["poisoned"] = zero * math.nan if poison == "loss" else zero.sqrt()
        return terms

    with pytest.raises(UserError, match=r"fit, step 9: .*(poisoned|grad).*--resume.*learning rate"):
        fit(open_run(tmp_path, checkpoint_every=0.0), net(), loss)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["phases"]["fit"]["step"] == 8
    for weights in saved["phases"]["fit"]["modules"]:
        assert all(torch.isfinite(value).all() for value in weights.values())
    again = fit(open_run(tmp_path, resume=True), net())
    assert same(again.state_dict(), fit(open_run(tmp_path / "clean"), net()).state_dict())


class Clock:
    """Stands in for the module `time`: seconds pass when a test says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_the_share_of_time_that_waited_for_data_is_told_and_survives_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(run_module, "time", clock)

    def slow(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches(first):
            clock.now += first_run
            yield batch

    def loss(model: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
        clock.now += 3
        if progress == 0.5 and first_run:
            os.kill(os.getpid(), signal.SIGTERM)
        return squared(model, batch, progress)

    def train(run: Run) -> None:
        model = net()
        optimizer = torch.optim.Adam(model.parameters())
        options: dict[str, Any] = {"evaluate": lambda model: setattr(clock, "now", clock.now + 100) or {}}
        supervised(run, "fit", model, optimizer, loss, slow, steps=8, schedule=float, ema=0, **options)

    first_run = True
    with pytest.raises(SystemExit):  # after 5 of the 8 steps
        train(open_run(tmp_path))
    first_run = False
    again = open_run(tmp_path, resume=True)
    train(again)
    assert again.record["fit"]["data_wait"] == 5 / (5 + 8 * 3)
    assert "fit: 17.2% of the steps' time went by waiting for data." in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_minutes_become_steps_and_the_trial_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(run_module, "time", clock)

    def evaluate(model: nn.Module) -> dict[str, float]:
        clock.now += 5
        torch.rand(3)  # evaluations may draw random numbers
        return {"size": model[0].weight.abs().sum().item()}

    def loss(model: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
        clock.now += 0.5 if clock.now >= 8 else 1.0  # slower at first
        return squared(model, batch, progress)

    options = {"evaluate": evaluate, "evaluations": 4}
    run = open_run(tmp_path / "minutes", precision=precision)
    by_minutes = fit(run, net(), loss, steps=None, minutes=2.0, **options)
    assert clock.now == pytest.approx(120, abs=1)
    record = run.record["fit"]
    assert record["seconds"] == clock.now
    assert record["seconds_per_step"] == 0.5
    assert record["seconds_per_evaluation"] == 5.0
    saved = torch.load(tmp_path / "minutes/checkpoint.pt", weights_only=True)
    assert saved["record"]["fit"]["steps"] == record["steps"]

    run_by_steps = open_run(tmp_path / "steps", precision=record["precision"])
    by_steps = fit(run_by_steps, net(), steps=record["steps"], **options)
    assert same(by_minutes.state_dict(), by_steps.state_dict())
    assert run.history == run_by_steps.history


def test_precision_follows_from_the_processor_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[bool] = []

    def noticing(*words: Any) -> dict[str, Tensor]:
        used.append(torch.is_autocast_enabled("cpu"))
        return squared(*words)

    for has, expected in (
        ({"amx_bf16": True, "avx512_bf16": False}, "bfloat16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "float32"),
        ({"avx512_f": True}, "float32"),
        ({}, "float32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        run = open_run(tmp_path / str(len(has)) / expected, precision="auto")
        used.clear()
        fit(run, net(), noticing)
        assert run.record["fit"]["precision"] == expected
        assert set(used) == {expected == "bfloat16"}
        assert open_run(tmp_path / "asked", precision="float32").precision == "float32"


def test_a_full_disk_is_one_line_and_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(open_run(tmp_path), net())
    before = (tmp_path / "checkpoint.pt").read_bytes()

    write = Path.write_bytes

    def full(path: Path, content: Any) -> None:
        write(path, b"half")
        raise OSError(28, "No space left on device")

    run = open_run(tmp_path, resume=True)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"checkpoint.pt.*No space left"):
        run.finish()
    names = [".lock", "checkpoint-before.pt", "checkpoint.pt", "history.csv"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_settings_must_be_the_same_to_resume(tmp_path: Path) -> None:
    fit(open_run(tmp_path, {"seed": 1, "folder": Path("photos")}), net())
    with pytest.raises(UserError, match=r"seed = 1.*2"):
        open_run(tmp_path, {"seed": 2, "folder": Path("photos")}, resume=True)
    open_run(tmp_path, {"seed": 1, "folder": Path("photos")}, resume=True)


@pytest.mark.parametrize("stop_at", [5, 99])
def test_a_larger_budget_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], stop_at: int) -> None:
    calls = 0

    def loss(model: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return squared(model, batch, progress)

    run = open_run(tmp_path, budget={"steps": 12})
    if stop_at < 12:
        with pytest.raises(SystemExit):
            fit(run, net(), loss)
    else:
        fit(run, net(), loss)
        run.finish()
    with pytest.raises(UserError, match=r"steps = 12.*steps = 8"):
        open_run(tmp_path, budget={"steps": 8}, resume=True)
    with pytest.raises(UserError, match=r"steps = 12.*minutes = 8"):
        open_run(tmp_path, budget={"minutes": 8.0}, resume=True)
    before = calls
    again = open_run(tmp_path, budget={"steps": 30}, resume=True)
    fit(again, net(), loss, steps=30)
    assert calls - before == 30 - min(stop_at, 12)
    assert again.history[-1]["step"] == again.record["fit"]["steps"] == 30
    assert "goes on to 30 steps" in capsys.readouterr().out
    again.finish()
    assert open_run(tmp_path, budget={"steps": 30}, resume=True).record == again.record


def test_a_longer_run_that_is_stopped_again_goes_on_as_one_that_was_not(tmp_path: Path) -> None:
    def trained(folder: Path, stop_at: int) -> dict[str, Tensor]:
        calls = 0

        def loss(model: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return squared(model, batch, progress)

        run = open_run(folder, budget={"steps": 12})
        fit(run, net())
        run.finish()
        if stop_at:
            with pytest.raises(SystemExit):
                fit(open_run(folder, budget={"steps": 30}, resume=True), net(), loss, steps=30)
        return fit(open_run(folder, budget={"steps": 30}, resume=True), net(), steps=30).state_dict()

    assert same(trained(tmp_path / "stopped", 7), trained(tmp_path / "alone", 0))


def test_minutes_can_grow_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(run_module, "time", clock)

    def loss(model: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
        clock.now += 1
        return squared(model, batch, progress)

    run = open_run(tmp_path, budget={"minutes": 1.0})
    fit(run, net(), loss, steps=None, minutes=1.0)
    run.finish()
    steps = run.record["fit"]["steps"]
    again = open_run(tmp_path, budget={"minutes": 2.0}, resume=True)
    fit(again, net(), loss, steps=None, minutes=2.0)
    assert again.record["fit"]["steps"] == steps + 60 == again.history[-1]["step"]


def test_resume_refuses_what_is_missing_damaged_or_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        open_run(tmp_path, resume=True)
    fit(open_run(tmp_path), net())
    file = tmp_path / "checkpoint.pt"
    whole = file.read_bytes()
    with pytest.raises(UserError, match="does not fit"):
        fit(open_run(tmp_path, resume=True), nn.Sequential(nn.Linear(4, 1)))
    (tmp_path / "checkpoint-before.pt").unlink()
    for damaged in (b"", whole[: len(whole) // 2], b"not a checkpoint"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=re.escape(str(file))):
            open_run(tmp_path, resume=True)
    assert file.read_bytes() == damaged, "a refusal must not touch the file"


@pytest.mark.parametrize("harm", ["one bit", "cut off", "lost between two renames"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    trained = fit(open_run(tmp_path), net())
    file, before = tmp_path / "checkpoint.pt", tmp_path / "checkpoint-before.pt"
    whole, earlier = file.read_bytes(), before.read_bytes()
    assert whole != earlier
    for _ in range(20):
        where = random.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[where // 8] ^= 1 << where % 8
        file.write_bytes(damaged if harm == "one bit" else damaged[: where // 8])
        before.write_bytes(earlier)
        if harm == "lost between two renames":
            file.unlink()
        run = open_run(tmp_path, resume=True)
        said = f"{file} is damaged: the run goes on from checkpoint-before.pt, the one before it."
        assert (said in capsys.readouterr().out) == (harm != "lost between two renames")
        assert file.read_bytes() == earlier
    assert same(fit(run, net()).state_dict(), trained.state_dict())


def test_the_checkpoint_before_is_never_of_an_older_run(tmp_path: Path) -> None:
    run = open_run(tmp_path, {"seed": 0})
    fit(run, net())
    run.finish()
    found = []
    save = Run.save

    def noticing(run: Run, *words: Any, **more: Any) -> None:
        save(run, *words, **more)
        found.append(run.before.exists())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", noticing)
        fit(open_run(tmp_path, {"seed": 1}), net())
    assert found[:2] == [False, True]


def test_a_checkpoint_of_other_threads_is_resumed_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "device_name", lambda device: "cpu, 99 threads")
        fit(open_run(tmp_path), net())
    open_run(tmp_path, resume=True)
    assert "cpu, 99 threads" in capsys.readouterr().out


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    run = open_run(tmp_path)  # it holds the folder as long as it lives
    fit(run, net())
    before = run.path.read_bytes()
    code = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
import torch
from common.cli import UserError
from common.files import PREFIX
from common.training.run import Run
try:
    Run(Path({str(tmp_path)!r}), settings={{}}, device=torch.device("cpu"))
except UserError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.count("\n") == 1 and str(tmp_path) in said and "--runs" in said
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_new_run_keeps_an_unfinished_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(open_run(tmp_path), net())
    unfinished = (tmp_path / "checkpoint.pt").read_bytes()
    run = open_run(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == unfinished, "nothing moves before a phase begins"
    fit(run, net())
    run.finish()
    assert (tmp_path / "checkpoint-previous.pt").read_bytes() == unfinished
    assert "checkpoint-previous.pt" in capsys.readouterr().out

    fit(open_run(tmp_path), net())
    assert (tmp_path / "checkpoint-previous.pt").read_bytes() == unfinished, "a finished run is replaced"


def test_a_finished_phase_is_not_trained_again(tmp_path: Path) -> None:
    def never(model: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
        raise AssertionError("trained again")

    run = open_run(tmp_path)
    trained = fit(run, net())
    drawn = torch.rand(3)
    run.finish()
    again = open_run(tmp_path, resume=True)
    model = net()
    assert fit(again, model, never) is model
    assert same(model.state_dict(), trained.state_dict())
    assert not model.training
    assert torch.equal(torch.rand(3), drawn), "what follows must see the same random numbers"
    assert (again.history, again.record) == (run.history, run.record)


def test_ema_follows_its_formula_and_buffers_are_copied(tmp_path: Path) -> None:
    model, decay = net(), 0.5
    seen: list[dict[str, Tensor]] = []

    def loss(trained: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
        seen.append(copy.deepcopy(trained.state_dict()))
        return squared(trained, batch, progress)

    class Last(torch.optim.SGD):  # the weights after each update
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            after.append(copy.deepcopy(model.state_dict()))

    after: list[dict[str, Tensor]] = []
    initial = copy.deepcopy(model.state_dict())
    optimizer = Last(model.parameters(), 0.1)
    supervised(
        open_run(tmp_path),
        "fit",
        model,
        optimizer,
        loss,
        batches,
        steps=15,
        schedule=lambda p: 1.0,
        ema=decay,
    )
    expected = initial["0.weight"].double()
    for step, weights in enumerate(after):
        rate = min(decay, (1 + step) / (10 + step))
        expected = rate * expected + (1 - rate) * weights["0.weight"].double()
    torch.testing.assert_close(model.state_dict()["0.weight"].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.state_dict()["1.running_mean"], after[-1]["1.running_mean"])
    assert model.state_dict()["1.num_batches_tracked"] == 15


def test_schedule_scales_the_rate_of_each_group(tmp_path: Path) -> None:
    model, rates = net(), []

    def loss(model: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
        rates.append([progress, *(group["lr"] for group in optimizer.param_groups)])
        return squared(model, batch, progress)

    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[3].parameters(), "lr": 0.01}]
    optimizer = torch.optim.SGD(groups)
    run = open_run(tmp_path)
    supervised(run, "fit", model, optimizer, loss, batches, steps=4, schedule=lambda p: 1 - p, ema=0.0)
    assert rates == [
        [p, pytest.approx(0.1 * (1 - p)), pytest.approx(0.01 * (1 - p))] for p in (0, 0.25, 0.5, 0.75)
    ]


def test_the_history_is_a_table_while_it_trains_and_goes_to_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, shown = [], []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert Path(folder).parent == tmp_path / "tensorboard"

        def add_scalar(self, name: str, value: float, step: int) -> None:
            shown.append((name, step))

        def flush(self) -> None:
            pass

    def evaluate(model: nn.Module) -> dict[str, float]:
        table = tmp_path / "history.csv"
        seen.append(table.read_text().count("\n") if table.exists() else 0)
        return {"score": 1.0}

    monkeypatch.setattr(run_module, "find_spec", lambda name: name == "tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    run = open_run(tmp_path)
    fit(run, net(), evaluate=evaluate, evaluations=3)
    assert seen == [0, 5, 9, 13]  # rows so far, and the names of the columns
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(run.history) == 13 and rows[0]["loss"] == ""
    for row, kept in zip(rows, run.history, strict=True):
        assert {name: value for name, value in row.items() if value} == {k: str(v) for k, v in kept.items()}
    assert ("fit/score", 12) in shown and ("fit/loss", 1) in shown
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(PREFIX)] == []


@pytest.mark.parametrize(("every", "drawn"), [(0.0, [0, 4, 8, 12]), (60.0, [])])
def test_the_history_is_drawn_after_each_evaluation_once_the_last_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float, drawn: list[int]
) -> None:
    monkeypatch.setattr(run_module, "DRAW_EVERY", every)
    run, seen = open_run(tmp_path), []
    run.draw = lambda: seen.append(run.history[-1]["step"])
    fit(run, net(), evaluate=lambda model: {"score": 1.0}, evaluations=3)
    assert seen == drawn


def test_history_holds_means_and_evaluations(tmp_path: Path) -> None:
    values = iter(range(1000))

    def loss(model: nn.Module, batch: Any, progress: float) -> dict[str, Tensor]:
        return {"zero": 0 * model[0].weight.sum() + next(values)}

    run = open_run(tmp_path)
    fit(run, net(), loss, steps=600, evaluate=lambda model: {"score": 1.0}, evaluations=2)
    steps = [row["step"] for row in run.history]
    assert steps == list(range(0, 601, 3))
    assert [row["step"] for row in run.history if "score" in row] == [0, 300, 600]
    assert run.history[1]["zero"] == run.history[1]["loss"] == 1.0  # of 0, 1, 2
    assert run.history[-1]["zero"] == 598.0


def test_adversarial_updates_each_player_by_its_own_loss(tmp_path: Path) -> None:
    generator, discriminator = nn.Linear(4, 1), nn.Linear(1, 1)
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    discriminator.register_parameter("frozen", frozen)
    players = (torch.optim.SGD(generator.parameters(), 0.1), torch.optim.SGD(discriminator.parameters(), 0.1))
    gradients: list[bool] = []

    def loss_d(d: nn.Module, real: Tensor, fake: Tensor, condition: tuple[Tensor], step: int) -> Any:
        assert not fake.requires_grad
        assert condition[0].shape == (16, 4)
        scores_real, scores_fake = d(real), d(fake)
        return (
            {"hinge": (1 - scores_real).relu().mean() + (1 + scores_fake).relu().mean()},
            scores_real,
            scores_fake,
        )

    def loss_g(d: nn.Module, real: Tensor, fake: Tensor, condition: tuple[Tensor], step: int) -> Any:
        gradients.append(any(p.requires_grad for p in d.parameters()))
        return {"adversarial": -d(fake).mean()}

    def pairs(first: int) -> Iterator[Any]:
        for x, y in batches(first):
            yield (x,), y

    run = open_run(tmp_path)
    before = copy.deepcopy(generator.state_dict()), copy.deepcopy(discriminator.state_dict())
    adversarial(
        run, "gan", generator, discriminator, players, loss_g, loss_d, pairs, steps=8,
        schedule=lambda p: 1.0, ema=0.0,
    )  # fmt: skip
    assert gradients == [False] * 8
    assert [p.requires_grad for p in discriminator.parameters()] == [True, True, False]
    assert not same(before[0], generator.state_dict())
    assert not same(before[1], discriminator.state_dict())
    names = {
        "phase",
        "step",
        "hinge",
        "adversarial",
        "loss_generator",
        "loss_discriminator",
        "accuracy_real",
        "accuracy_fake",
    }
    assert set(run.history[-1]) == names | {"grad_generator", "grad_discriminator"}
    assert all(0 <= row[side] <= 1 for row in run.history[1:] for side in ("accuracy_real", "accuracy_fake"))


def test_adversarial_counts_the_steps_of_each_player(tmp_path: Path) -> None:
    players = {"generator": nn.Linear(4, 1), "discriminator": nn.Linear(1, 1)}
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in players}

    def seen(name: str, step: int) -> None:
        found[name].append((step, players[name].weight[0, 0].item()))

    def loss_d(d: nn.Module, real: Tensor, fake: Tensor, condition: tuple[Tensor], step: int) -> Any:
        seen("discriminator", step)
        return {"wasserstein": d(fake).mean() - d(real).mean()}, d(real), d(fake)

    def loss_g(d: nn.Module, real: Tensor, fake: Tensor, condition: tuple[Tensor], step: int) -> Any:
        seen("generator", step)
        return {"adversarial": -d(fake).mean()}

    def pairs(first: int) -> Iterator[Any]:
        for x, y in batches(first):
            yield (x,), y

    generator, discriminator = players.values()
    optimizers = [torch.optim.SGD(player.parameters(), 0.1) for player in players.values()]
    adversarial(
        open_run(tmp_path), "gan", generator, discriminator, (optimizers[0], optimizers[1]), loss_g, loss_d,
        pairs, steps=12, schedule=lambda p: 1.0, ema=0.0, d_every=4,
    )  # fmt: skip
    assert [step for step, _ in found["generator"]] == list(range(12))
    assert [step for step, _ in found["discriminator"]] == [0, 1, 2]  # no pass is made where no step is taken
    weights = [weight for _, weight in found["discriminator"]]
    assert len(set(weights)) == 3


def rows(real: float, fake: float, losses: list[float]) -> list[dict[str, Any]]:
    return [
        {"phase": "gan", "step": i, "accuracy_real": real, "accuracy_fake": fake, "loss_discriminator": v}
        for i, v in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("real", "fake", "losses", "expected"),
    [
        (0.99, 0.98, [0.05] * 30, "the discriminator has won"),
        (0.99, 0.80, [0.4] * 30, ""),
        (0.75, 0.70, [1.4] * 30, ""),
        (0.51, 0.50, [2.0] * 30, "the generator has won"),
        (1.0, 0.0, [2.0] * 30, "the generator has won"),  # it answers "real" to everything
        (0.0, 0.0, [0.6931] * 30, "the generator has won"),  # relativistic: all differences are 0
        (0.52, 0.53, [1.8 + 0.1 * (i % 3) for i in range(30)], ""),  # near a coin, but still fighting
        (0.99, 0.99, [0.05] * 19, ""),  # too early to tell
    ],
)
def test_winner(real: float, fake: float, losses: list[float], expected: str) -> None:
    sentence = winner([*rows(0.7, 0.7, [1.0] * 5), *rows(real, fake, losses)][-len(losses) :], "gan")
    assert sentence.startswith(expected)
    assert bool(sentence) == bool(expected)
    assert winner(rows(real, fake, losses), "another phase") == ""
