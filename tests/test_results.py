"""What is made of the results files: tables, README, RESULTS.md and the gallery say what the files say."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from common import cli, results
from common.cli import Flags, TrainingFlags, UserError
from common.datasets import photos, sms_spam
from common.figures import page

ROOT = Path(__file__).parents[1]
README = "before <!-- lstm -->old<!-- /lstm -->\n<!-- results -->\nold\n<!-- /results -->\nafter\n"
SCORE = {"psnr": 25.6512, "ssim": 0.7381, "detail_db": -4.52, "checkerboard": 1.2, "lr_psnr": 45.0}
UPSCALE = {
    "script": "gan_upscale",
    "command": "python gan_upscale.py --minutes 20",
    "data": {"name": "<photos|mine>", "count": 1234, "builtin": False, "note": "R&D"},
    "metrics": {"GAN": SCORE | {"ms": 9.51}},
    "baselines": {
        "nearest": SCORE | {"checkerboard": math.inf, "ms": 0.11},
        "bicubic": {"psnr": 24.59, "ssim": math.nan},
    },
    "seconds": 312.0,
    "device": "cpu, 2 threads",
    "commit": "abc",
}
SPAM = UPSCALE | {
    "script": "lstm",
    "data": {"name": "SMS", "count": 5, "builtin": True},
    "metrics": {"accuracy": 0.99123},
    "baselines": {"LSTM": {"f1": 0.98}, "majority class": {"accuracy": 0.87, "accuracy_sd": 0.01, "f1": 0}},
}


@pytest.fixture
def figs(tmp_path: Path) -> Path:
    folder = tmp_path / "figs"
    folder.mkdir()
    (folder / "gan_upscale.json").write_text(json.dumps(UPSCALE))
    (folder / "lstm.json").write_text(json.dumps(SPAM))
    image = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
    page.grid(folder / "a & b.png", image, 1, title='"Quoted"', caption="if a < b & c")
    return folder


def test_results_table_has_metrics_beside_baselines(figs: Path) -> None:
    lines = re.sub(" +", " ", results.results_table(results.read(figs))).splitlines()  # cells are padded
    assert "| method | PSNR, dB | SSIM | detail, dB | checkerboard | LR PSNR, dB | ms an image |" in lines
    assert "| GAN | 25.65 | 0.738 | −4.5 | 1.20 | 45.0 | 9.51 |" in lines
    assert "| nearest | 25.65 | 0.738 | −4.5 | – | 45.0 | 0.11 |" in lines
    assert "| bicubic | 24.59 | – | – | – | – | – |" in lines
    assert "| this run | 0.9912 | – |" in lines and "| majority class | 0.8700 ± 0.0100 | 0.000 |" in lines
    assert "1,234" in lines[0] and "5.2 minutes" in lines[0] and "--minutes 20" in lines[0]
    assert "stand-in" not in lines[0]
    assert any("**lstm**" in line and "built-in stand-in" in line for line in lines)


def test_both_kernels_stand_side_by_side(figs: Path) -> None:
    gan = {"psnr": 25.92, "lpips": 0.1223, "psnr_bicubic": 25.461, "lpips_bicubic": None, "ms": 9.5}
    of = UPSCALE | {"metrics": {"GAN": gan}, "baselines": {"bicubic": gan | {"psnr_bicubic": math.inf}}}
    (figs / "gan_upscale.json").write_text(json.dumps(of))
    lines = re.sub(" +", " ", results.results_table(results.read(figs))).splitlines()
    assert "| method (LR: bilinear / bicubic) | PSNR, dB | LPIPS | ms an image |" in lines
    assert "| GAN | 25.92 / 25.46 | 0.122 / – | 9.50 |" in lines
    assert "| bicubic | 25.92 / – | 0.122 / – | 9.50 |" in lines
    assert results.table({"GAN": gan}).splitlines() == [
        "LR: bilinear / bicubic             psnr       lpips          ms",
        "GAN                     25.920 / 25.461   0.122 / -       9.500",
    ]


def test_publish_writes_between_the_markers_only(figs: Path) -> None:
    readme = figs.parent / "README.md"
    readme.write_text(README)
    results.publish(figs)
    paths = (readme, figs / "index.html", figs / "RESULTS.md")
    once = [path.read_text(encoding="utf-8") for path in paths]
    before, table, after = re.split("<!-- /?results -->\n", re.sub(" +", " ", once[0]))
    assert before == "before <!-- lstm -->F1: **LSTM 0.980**, SVM on characters –<!-- /lstm -->\n"
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["lstm", "gan_upscale"]
    assert "| LPIPS<br>PSNR, dB | GAN –<br>fidelity – | linear filter –<br>linear filter – |" in table
    assert "| `python gan_upscale.py --minutes 20` |" in table and after == "after\n"
    assert once[2].endswith("\n\n" + results.results_table(results.read(figs)))
    results.publish(figs)
    assert [path.read_text(encoding="utf-8") for path in paths] == once


@pytest.mark.parametrize("text", ["no markers\n", "<!-- results -->\nno end\n"])
def test_publish_leaves_a_readme_without_markers_alone(figs: Path, text: str) -> None:
    readme = figs.parent / "README.md"
    readme.write_text(text)
    results.publish(figs)
    assert readme.read_text() == text


def test_gallery_shows_every_figure_and_escapes_text(figs: Path) -> None:
    results.publish(figs)
    page = (figs / "index.html").read_text(encoding="utf-8")
    assert 'src="a%20%26%20b.png"' in page and "if a &lt; b &amp; c" in page and "&#34;Quoted&#34;" in page
    assert "&lt;photos|mine&gt;" in page and "R&amp;D" in page and "<photos" not in page
    assert 'data-metric="PSNR, dB">25.65</td>' in page and "python gan_upscale.py --minutes 20" in page
    assert "http" not in page  # nothing is fetched from elsewhere


@pytest.mark.parametrize("text", ["{", "[]", '{"script": "x"}', '{"metrics": 1}'])
def test_publish_refuses_a_file_that_is_no_result(figs: Path, text: str) -> None:
    (figs / "bad.json").write_text(text)
    with pytest.raises(UserError, match=r"bad\.json"):
        results.publish(figs)
    assert not (figs / "index.html").exists()


def test_the_committed_pages_are_those_of_the_committed_results(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "figs", tmp_path / "figs", ignore=shutil.ignore_patterns("builtin"))
    shutil.copy(ROOT / "README.md", tmp_path)
    pages = results.pages(tmp_path / "figs")
    assert {path.name for path in pages} == {"README.md", "RESULTS.md", "index.html"}
    for path, text in pages.items():
        committed = ROOT / path.relative_to(tmp_path)
        assert committed.read_text(encoding="utf-8") == text, f"{path.name}: run python -m common.results"


def test_runs_on_the_stand_in_stand_apart(figs: Path) -> None:
    readme, apart = figs.parent / "README.md", figs / "builtin"
    readme.write_text(README)
    apart.mkdir()
    (figs / "lstm.json").replace(apart / "lstm.json")
    (figs / "a & b.png").replace(apart / "a & b.png")
    results.publish(figs)
    real, stand_in = (
        (figs / "RESULTS.md").read_text(encoding="utf-8").split("# Results on the built-in stand-in")
    )
    assert "**gan_upscale**" in real and "**lstm**" in stand_in and "**lstm**" not in real
    assert readme.read_text().count("lstm") == 2 and "gan_upscale" in readme.read_text()
    real, stand_in = (
        (figs / "index.html").read_text(encoding="utf-8").split("Results on the built-in stand-in")
    )
    assert 'src="builtin/a%20%26%20b.png"' in stand_in and "gan_upscale" in real and ">lstm<" not in real


@pytest.mark.parametrize(
    ("flags", "builtin", "folder"),
    [
        ({}, False, "figs"),
        ({}, True, "figs/builtin"),
        ({"evaluate": True}, False, "figs/evaluate"),
        ({"evaluate": True}, True, "figs/builtin/evaluate"),
        ({"quick": True}, True, "figs/quick"),
        ({"figs": Path("mine")}, True, "mine"),
    ],
)
def test_the_stand_in_never_replaces_real_results(flags: dict[str, Any], builtin: bool, folder: str) -> None:
    config = TrainingFlags(**flags)
    assert config.figs_dir(builtin) == Path(folder)
    apart = "-quick" if "quick" in flags else "-builtin" if builtin else ""
    assert config.run_dir("lesson", builtin) == Path(f"runs/lesson{apart}"), "nor do its weights real ones"
    closing = results.where(config.figs_dir(builtin) / "x.png", SimpleNamespace(builtin=builtin))
    assert closing.startswith(str(Path(folder, "x.png"))) and ("stand-in" in closing) == builtin


def test_the_gallery_puts_results_under_the_figures_of_their_command(figs: Path) -> None:
    lstm = {"script": "lstm", "command": "python lstm.py"}
    for name, more in {
        "lstm": lstm,
        "lstm_collapse": {"script": "lstm_collapse", "command": "python lstm.py --collapse"},
        "gan_upscale": {"command": cli.command()},  # by which the figure was drawn, too
    }.items():
        (figs / f"{name}.json").write_text(json.dumps(UPSCALE | more))
    page.grid(figs / "later.png", torch.zeros(1, 3, 9, 9, dtype=torch.uint8), 1, title="T", caption="")
    text = results.pages(figs)[figs / "index.html"]
    places = [
        text.index(part)
        for part in (
            "<h2",
            "<strong>lstm</strong>",
            "<strong>lstm_collapse</strong>",
            'src="a%20%26%20b.png"',
            'src="later.png"',
            "<strong>gan_upscale</strong>",
        )
    ]
    assert places == sorted(places), "what no script of ours draws comes last, and there figures come first"


def test_a_script_writes_its_own_figures_and_the_command_writes_the_rest(tmp_path: Path) -> None:
    figs, readme = tmp_path / "figs", tmp_path / "README.md"
    readme.write_text(README)
    figs.mkdir()
    (figs / "index.html").write_text("old")
    script = ["single_layer_rnn.py", "--quick", "--steps", "1", "--noise", "0", "--hidden-size", "10"]
    subprocess.run([sys.executable, *script, "--figs", figs, "--runs", tmp_path], cwd=ROOT, check=True)
    assert readme.read_text() == README and (figs / "index.html").read_text() == "old"
    assert {path.name for path in figs.iterdir()} == {
        "index.html",
        "single_layer_rnn.json",
        "single_layer_rnn.png",
    }
    subprocess.run([sys.executable, "-m", "common.results", "--figs", figs], cwd=ROOT, check=True)
    assert "single_layer_rnn" in readme.read_text()
    assert "single_layer_rnn.png" in (figs / "index.html").read_text(encoding="utf-8")
    assert "| persistence " in (figs / "RESULTS.md").read_text(encoding="utf-8")


def test_names_that_are_no_text_survive_files_and_pages(tmp_path: Path) -> None:
    name, path = "写真\udcff\x1b\n|", tmp_path / "figs"
    data = SimpleNamespace(name=name, builtin=False, note=name)
    more = {"count": 3, "seconds": 0, "device": torch.device("cpu"), "baselines": {}}
    results.save(path, "lstm", Flags(), data=data, metrics={"accuracy": 1.0}, **more)
    assert json.loads((path / "lstm.json").read_text(encoding="utf-8"))["data"]["name"] == name
    page.grid(path / "g.png", torch.zeros(1, 3, 9, 9, dtype=torch.uint8), 1, title=name, caption=name)
    results.publish(path)
    table = (path / "RESULTS.md").read_text(encoding="utf-8")
    assert r" · 写真\udcff\x1b\n| (3) · " in table
    assert (path / "index.html").read_text(encoding="utf-8").count(r"写真\udcff\x1b") == 5


def test_a_result_can_be_made_again_on_any_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sms, net = tmp_path / "SMSSpamCollection", tmp_path / "ImageNet"
    labels = ["ham"] * sms_spam.HAM + ["spam"] * sms_spam.SPAM
    sms.write_text("".join(f"{label}\tmessage {number}\n" for number, label in enumerate(labels)))
    for split in ("train", "val"):
        (folder := net / split / "n01").mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (9, 9)).save(folder / f"{number}.JPEG")
    more = {"count": 3, "seconds": 0, "device": torch.device("cpu"), "metrics": {}, "baselines": {}}
    for data, name, said, recorded in (
        (sms_spam.find(str(sms)), str(sms), "python lstm.py", "auto"),
        (photos.find(str(net)), (str(net),), "python lstm.py --data data/ImageNet", ["data/ImageNet"]),
    ):
        words = [name] if isinstance(name, str) else name
        monkeypatch.setattr("sys.argv", ["lstm.py", "--data", *words])
        results.save(tmp_path, "lstm", Flags(data=name), data=data, **more)  # type: ignore[arg-type]
        result = json.loads((tmp_path / "lstm.json").read_text())
        assert (result["command"], result["config"]["data"]) == (said, recorded)


def test_no_committed_command_names_a_place_outside_of_the_repository() -> None:
    for path in (ROOT / "figs").glob("*.json"):
        assert not re.search(r"--data (\.\.|/|~)", path.read_text(encoding="utf-8")), path.name
    for path in (ROOT / "figs").glob("*.png"):
        with Image.open(path) as image:
            assert not re.search(r"--data (\.\.|/|~)", image.info["Source"]), path.name


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "common.results", "--figs", tmp_path / "nowhere"]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and "nowhere; run a script first" in run.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_table_for_the_screen() -> None:
    scores = {"bicubic": {"psnr": 24.59, "parameters": 0}, "GAN": {"psnr": 2.57e7, "parameters": 12}}
    assert results.table(scores, digits=1).splitlines() == [
        " " * 15 + "       psnr  parameters",
        "bicubic               24.6         0.0",
        "GAN                      -        12.0",
    ]


def test_saving_needs_no_library_of_the_tables() -> None:
    code = "import common.results, sys; sys.exit(bool({'pandas', 'jinja2', 'PIL'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
