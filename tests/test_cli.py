"""Files that appear whole or not at all, weights that are read back, places that are refused in time."""

import errno
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from common import cli, weights
from common.cli import UserError
from common.files import PREFIX, DiskFull, atomic_write, check_writable

ROOT = Path(__file__).parents[1]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with atomic_write(target) as temporary:
        temporary.write_text("one")
        assert not target.exists() and temporary.suffix == ".txt"
    assert target.read_text() == "one"
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as temporary:
        temporary.write_text("half of tw")
        raise KeyboardInterrupt
    assert target.read_text() == "one"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


@pytest.mark.skipif(os.name == "nt", reason="modes are Unix's")
def test_a_file_can_be_read_by_others(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as temporary:
        temporary.touch()
    (tmp_path / "plain").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_weights_come_back_with_what_is_known_of_them(tmp_path: Path) -> None:
    nets = {"a": nn.Linear(2, 3), "b": nn.Conv2d(1, 2, 3).to(memory_format=torch.channels_last)}
    weights.save(tmp_path / "nets.safetensors", nets, {"channels": 3, "data": "photos"})
    states, about = weights.load(tmp_path / "nets.safetensors")
    assert about == {"channels": 3, "data": "photos"}
    for name, net in nets.items():
        assert all(torch.equal(states[name][key], value) for key, value in net.state_dict().items())


def test_places_that_cannot_be_written_to_are_refused_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "there" / "yet")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        check_writable(tmp_path / "file" / "figs")


def test_a_device_that_is_not_there_is_refused() -> None:
    assert cli.pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"--device cuda.*cpu"):
            cli.pick_device("cuda")


@pytest.mark.parametrize(("threads", "name"), [(1, "cpu, 1 thread"), (2, "cpu, 2 threads")])
def test_a_device_is_named_with_its_threads(monkeypatch: pytest.MonkeyPatch, threads: int, name: str) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert cli.device_name(torch.device("cpu")) == name


def test_the_command_is_written_as_it_would_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/script.py", "--data", "my photos", "--resume"])
    assert cli.command() == "python script.py --data 'my photos'"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--data ../sms --folds 5", "--folds 5"),
        ("--folds 5 --data=../sms", "--folds 5"),
        ("--data auto", ""),
        ("--data ../net ../mine --seed 1", "--data data/ImageNet ../mine --seed 1"),
        ("--data=../net", "--data data/ImageNet"),
        ("--output ../sms", "--output ../sms"),
        ("--data", "--data"),
    ],
)
def test_the_command_names_well_known_data(words: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["script.py", *words.split()])
    monkeypatch.setattr(cli, "anywhere", {"../sms": "auto", "../net": "data/ImageNet"})
    assert cli.command() == f"python script.py {said}".strip()


def test_what_a_disk_does_not_know_fails_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*words: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuses)  # as on WSL's drives, CIFS and S3
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("content")
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_without_room_is_named_as_such(tmp_path: Path, number: int) -> None:
    with pytest.raises(UserError) as refused, atomic_write(tmp_path / "file"):
        raise OSError(number, os.strerror(number))
    assert os.strerror(number) in str(refused.value) and "\n" not in str(refused.value)
    assert isinstance(refused.value, DiskFull) == (number != errno.EROFS)
    assert not list(tmp_path.iterdir())


def test_long_names_find_room_and_forgotten_files_are_swept(tmp_path: Path) -> None:
    forgotten, recent = tmp_path / f"{PREFIX}old.png", tmp_path / f"{PREFIX}new.png"
    for path in (forgotten, recent):
        path.touch()
    os.utime(forgotten, (0, 0))
    name = "x" * 250 + ".png"
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_text("content")
    assert sorted(path.name for path in tmp_path.iterdir()) == [recent.name, name]


SCRIPT = r"""
import sys
from dataclasses import dataclass
sys.path.insert(0, sys.argv.pop(1))
from common.cli import Flags, UserError, launch, read_flags

@dataclass
class Config(Flags):
    do: str = ""

def main(config):
    if config.do == "many":
        for number in range(100_000):
            print(number)
    if config.do == "memory":
        raise MemoryError
    if config.do == "bar":
        from tqdm import tqdm
        for number in tqdm(range(9), disable=None):
            pass
    if config.do == "refuse":
        raise UserError("--do: \u65e5 is not \xb1")
    print("\xb1 \u65e5 \udcff end")
    with open("done", "w"):
        pass

config = read_flags(Config)
if config.do == "import":
    import time
    print("importing", flush=True)
    time.sleep(60)
launch(main, config)
"""


def run_script(
    folder: Path, *words: str, redirect: str = "", **environment: str
) -> subprocess.CompletedProcess:
    (folder / "script.py").write_text(SCRIPT)
    line = shlex.join([sys.executable, "script.py", str(ROOT), *words])
    return subprocess.run(
        f"{line} {redirect}", shell=True, cwd=folder, capture_output=True, env={**os.environ, **environment}
    )


@pytest.mark.skipif(os.name == "nt", reason="needs a Unix shell")
def test_printing_never_fails_the_work(tmp_path: Path) -> None:
    for encoding in ("ascii", "cp1252", "utf-8"):
        done = run_script(tmp_path, PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stderr) == (0, b""), encoding
        assert done.stdout.endswith(b"\\udcff end\n")
        (tmp_path / "done").unlink()
    for redirect in (">&-", "2>&-", ">/dev/full", "<&-"):
        done = run_script(tmp_path, redirect=redirect)
        assert (done.returncode, done.stderr) == (0, b""), redirect
        (tmp_path / "done").unlink()
    done = run_script(tmp_path, "--do", "many", redirect="| head -n 1")
    assert (done.stdout, done.stderr) == (b"0\n", b"")
    done = run_script(tmp_path, "--do", "refuse", PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and done.stderr == b"script.py: --do: \\u65e5 is not \\xb1\n"
    done = run_script(tmp_path, "--do", "memory")
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"not enough memory" in done.stderr


def test_empty_words_and_unknown_homes_are_one_line(tmp_path: Path) -> None:
    for words in (("--figs", ""), ("--figs=",), ("--data", "")):
        done = run_script(tmp_path, *words)
        assert done.returncode == 2 and done.stderr.startswith(
            f"script.py: {words[0].rstrip('=')} is empty".encode()
        )
    with pytest.raises(UserError, match="--data ~nosuchuser/x: there is no such home"):
        cli.user_path("data", "~nosuchuser/x")
    assert cli.user_path("data", "~") == Path.home()


@pytest.mark.skipif(os.name == "nt", reason="needs a Unix terminal")
@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_colours_and_bars_are_for_terminals_that_want_them(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    import pty
    import termios

    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment = plain | {"TERM": "xterm"} | environment
    said = []
    for words in (("--figz", "x"), ("--do", "bar")):
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        (tmp_path / "script.py").write_text(SCRIPT)
        words = (sys.executable, "script.py", str(ROOT), *words)
        subprocess.run(words, cwd=tmp_path, stdout=theirs, stderr=theirs, env=environment, timeout=60)
        said.append(os.read(ours, 100_000).replace(b"\r\n", b"\n"))
        os.close(ours)
        os.close(theirs)
    assert (b"\x1b" in said[0]) == (environment["TERM"] == "xterm" and "NO_COLOR" not in environment)
    assert (b"\r" in said[1]) == (environment["TERM"] == "xterm") and b"\x1b" not in said[1]


@pytest.mark.skipif(os.name == "nt", reason="needs Unix signals")
def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, "script.py", str(ROOT), "--do", "import"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, b"\nscript.py: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="needs Unix signals")
def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    code = (
        "import signal, sys; sys.path.insert(0, sys.argv.pop(1)); from common import cli\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "cli.launch(lambda config: print(signal.getsignal(signal.SIGHUP).name), cli.Flags())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "SIG_IGN\n"), done.stderr
