"""LPIPS: its net is fetched whole or not at all, read without unpickling, and missed in one line."""

import functools
import hashlib
import http.server
import pickle
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1
from torchvision.transforms.v2 import functional as TF

from common.datasets import photos
from common.datasets.dead_leaves import dead_leaves
from common.evaluation import lpips

SHARED = Path(__file__).parents[2] / "shared" / "torch"
BACKBONE = SHARED / "hub" / "checkpoints" / Path(SqueezeNet1_1_Weights.DEFAULT.url).name


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        with Path(self.directory, "asked").open("a") as file:
            file.write(f"{self.path}\n")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A net with random weights as a local server has it; TORCH_HOME is empty."""
    folder = tmp_path / "served"
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(squeezenet1_1().state_dict(), folder / "net.pth")
    digest = hashlib.sha256((folder / "net.pth").read_bytes()).hexdigest()
    file = (folder / "net.pth").rename(folder / f"net-{digest[:8]}.pth")
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{file.name}"
        monkeypatch.setattr(SqueezeNet1_1_Weights.DEFAULT.value, "url", url)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
        yield file
        server.shutdown()


@pytest.fixture
def stored(served: Path, tmp_path: Path) -> Path:
    """Where the net belongs."""
    return tmp_path / "home" / "hub" / "checkpoints" / served.name


def test_it_is_fetched_once_and_quietly(
    served: Path, stored: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            distance = lpips.load(download=True)
    assert distance and stored.read_bytes() == served.read_bytes()
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]
    assert (served.parent / "asked").read_text().count(served.name) == 1
    assert torch.equal(torch.get_rng_state(), before), "training draws the same numbers with and without"
    assert capfd.readouterr() == ("", "")
    noise = torch.randint(0, 256, (17, 3, 64, 64), dtype=torch.uint8)
    distances = distance(noise, noise.flip(0))
    assert distances.shape == (17,) and distances[8] == 0 and distances[0] > 0
    assert distance(noise[:1], noise[:1]).shape == (1,)


def test_a_file_that_is_there_is_taken_as_it_is(served: Path, stored: Path) -> None:
    """Without its classifier, which nobody needs, it has another sum."""
    weights = torch.load(served, weights_only=True)
    weights["classifier.1.weight"].zero_()
    stored.parent.mkdir(parents=True)
    torch.save(weights, stored)
    assert lpips.load(download=True) and not (served.parent / "asked").exists()


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("fault", ["trial", "gone", "changed", "trap", "zip", "cut", "noise", "other"])
def test_where_it_cannot_be_had_a_line_says_why_and_what_to_do(
    served: Path, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    words = {"trial": "downloads nothing", "gone": "404", "changed": "sha256"}
    whole = served.read_bytes()
    if fault == "gone":
        served.unlink()
    elif fault == "changed":
        served.write_bytes(whole[:-1] + b"x")
    elif fault not in words:
        stored.parent.mkdir(parents=True)
        if fault == "zip":  # an older form, which torch.hub unpacks before it reads it
            with zipfile.ZipFile(stored, "w") as file:
                file.writestr("net.pth", pickle.dumps(Trap(tmp_path / "sprung")))
        elif fault == "trap":
            stored.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        elif fault == "other":
            torch.save({"weight": torch.zeros(3)}, stored)
        else:
            stored.write_bytes(whole[:10_000] if fault == "cut" else b"\xff" * 1000)
    assert lpips.load(download=fault != "trial") is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("No LPIPS") and words.get(fault, "") in line
    assert SqueezeNet1_1_Weights.DEFAULT.url in line and str(stored) in line
    assert not (tmp_path / "sprung").exists(), "nothing is unpickled"
    assert fault not in words or not stored.exists()
    assert (served.parent / "asked").exists() == (fault in ("gone", "changed"))


@pytest.mark.skipif(not BACKBONE.exists(), reason="the net is not at hand")
def test_it_sees_a_blur(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(SHARED))
    distance = lpips.load(download=False)
    assert distance
    hr = photos.standard(dead_leaves(1))[None]  # uint8 [1,3,224,224]
    little, much = (distance(TF.gaussian_blur(hr, [9, 9], [s, s]), hr).item() for s in (0.7, 2.0))
    assert distance(hr, hr).item() == 0 and 0.02 < little < much - 0.1
