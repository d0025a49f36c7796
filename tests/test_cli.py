"""Files that appear whole or not at all, weights that are read back, places that are refused in time."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from common import cli, weights
from common.cli import UserError
from common.files import atomic_write, check_writable


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with atomic_write(target) as beside:
        beside.write_text("one")
        assert not target.exists() and beside.suffix == ".txt"
    assert target.read_text() == "one"
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as beside:
        beside.write_text("half of tw")
        raise KeyboardInterrupt
    assert target.read_text() == "one"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


@pytest.mark.skipif(os.name == "nt", reason="modes are Unix's")
def test_a_file_can_be_read_by_others(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as beside:
        beside.touch()
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


def test_the_command_is_written_as_it_would_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/script.py", "--data", "my photos", "--resume"])
    assert cli.command() == "python script.py --data 'my photos'"
