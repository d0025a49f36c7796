"""What the README says can be pasted, opened and reproduced."""

import importlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from PIL import Image
from sklearn.datasets import load_sample_image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCED = [
    line for block in re.findall(r"^```bash\n(.*?)^```$", README, re.M | re.S) for line in block.splitlines()
]

SCRIPTS = [path.stem for path in ROOT.glob("*.py")]

needs_bash = pytest.mark.skipif(os.name == "nt" or not shutil.which("bash"), reason="needs bash")


def test_it_opens_with_two_complete_lines() -> None:
    opening = README.split("\n## ")[0]
    assert opening.count("```bash") * 2 == opening.count("```") == 4
    run, test = FENCED[:2]
    install = r"python3 -m venv \.venv && \.venv/bin/pip install -e {} && \.venv/bin/python {}"
    assert re.fullmatch(install.format(r"\.", r"gan_upscale\.py"), run)
    assert re.fullmatch(install.format(r"'\.\[test\]'", "-m pytest"), test)
    assert run in opening and test in opening and FENCED[2] not in opening


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """README and .ci/run, and a python3 in bin/ that makes an environment of stubs, which note their call."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "python3"
    stub.write_text(
        f"""#!/bin/sh
[ "$1" = -c ] && exec '{sys.executable}' "$@"
echo "python3 $*" >> calls
mkdir -p .venv/bin
for tool in pip python; do
    printf '#!/bin/sh\\necho "$0 $*" >> calls\\nexit ${{STATUS:-0}}\\n' > .venv/bin/$tool
    chmod +x .venv/bin/$tool
done
"""
    )
    stub.chmod(0o755)
    return tmp_path


def ci(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"
    # from another folder, since it has to find its own
    return subprocess.run(
        [str(checkout / ".ci" / "run")],
        cwd=checkout / "bin",
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
    )


@needs_bash
def test_ci_runs_the_second_line_as_it_stands(checkout: Path) -> None:
    done = ci(checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout == FENCED[1] + "\n"
    calls = " && ".join((checkout / "calls").read_text().splitlines())
    assert calls == FENCED[1].replace("'", "")  # the shell takes the quotes off


@needs_bash
def test_ci_fails_where_the_line_fails(checkout: Path) -> None:
    assert ci(checkout, STATUS="3").returncode == 3


@needs_bash
def test_ci_follows_a_change_of_the_readme(checkout: Path) -> None:
    (checkout / "README.md").write_text(README.replace(FENCED[1], "echo changed; exit 5"))
    done = ci(checkout)
    assert (done.returncode, done.stdout) == (5, "echo changed; exit 5\nchanged\n")


@needs_bash
def test_ci_refuses_an_old_python(checkout: Path) -> None:
    (checkout / "bin" / "python3").write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.4 && exit; exit 1\n'
    )
    done = ci(checkout)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert "3.11" in done.stderr and "Python 3.10.4" in done.stderr


def test_commands_have_options_that_exist() -> None:
    fields: set[str] = set()
    for script in SCRIPTS:
        config = importlib.import_module(script).Config
        commands = [shlex.split(line) for line in FENCED if f"{script}.py" in line]
        assert commands or script == "single_layer_rnn"
        for words in commands:
            tyro.cli(config, args=words[words.index(f"{script}.py") + 1 :])
        fields |= {name.replace("_", "-") for name in config.__dataclass_fields__}
    words = [sys.executable, str(ROOT / "util" / "unzip_imagenet"), "--help"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    of_tool = set(re.findall(r"--([a-z0-9-]+)", printed))
    commands = [line.partition("#")[0] for line in FENCED if "util/unzip_imagenet" in line]
    assert commands and set(re.findall(r"--([a-z-]+)", " ".join(commands))) <= of_tool
    fields |= of_tool
    for text in (README, (ROOT / "data" / "README.md").read_text(encoding="utf-8")):
        for flag in re.findall(r"`--([a-z-]+)[^`]*`", text):
            assert flag == "help" or flag in fields, f"--{flag}"


@pytest.mark.parametrize("page", ["README.md", "data/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    headings = [re.sub(r"[^\w -]", "", line).strip().lower() for line in re.findall(r"^#+ (.*)", text, re.M)]
    anchors = {"#" + heading.replace(" ", "-") for heading in headings}  # as GitHub makes them
    local = {link for link in links if not link.startswith("https://")}
    assert links and not [link for link in local - anchors if not (path.parent / link).exists()]


def test_scripts_are_all_listed() -> None:
    listed = re.findall(r"^\| <img [^>]*> \| \[(\w+\.py)\]", README, re.M)
    assert sorted(listed) == sorted(path.name for path in ROOT.glob("*.py"))


@pytest.mark.parametrize(
    ("heading", "answer"),
    [
        ("getting it back", r"util/unzip_imagenet"),
        ("Which script first", r"in this order"),
        ("how long", r"half a minute"),
        ("detail_db", r"fine detail .* in dB against the originals"),
        ("Back after a year", r"runs/SCRIPT/weights\.safetensors"),
        ("your own photos, messages, texts", r"--data ~/Pictures"),
        ("why 86.64 %", r"share of ham"),
        ("Back after a year", r"continue\?.*--resume"),
        ("Two GPUs", r"torchrun --nproc-per-node=2"),
        ("figures again", r"python -m common\.results"),
        ("Which PyTorch", r"--index-url \S+/cpu"),
        ("to change X, open Y", r"A sixth experiment"),
    ],
)
def test_what_a_newcomer_asks_is_answered_below_a_heading_that_names_it(heading: str, answer: str) -> None:
    parts = re.split(r"^(#+ .*)$", README, flags=re.M)
    below = {title: text for title, text in itertools.pairwise(parts) if title.startswith("#")}
    (text,) = (text for title, text in below.items() if heading in title)
    two_screens = " ".join(text.splitlines()[:60])
    assert re.search(answer, two_screens)


NEEDS = {  # what a clone does not have, or hours
    r"pip install|pytest": "is what CI runs",
    r"torchrun|srun|SBATCH|scontrol|rdzv|/bin/bash": "takes many minutes, or a cluster",
    r"--test-on": "downloads the collection that its baselines learn from",
    r"~/Pictures|--data (?:emnist|imagenette|labelled)": "trains on data of yours, or on a large download",
    r"ILSVRC2012": "unpacks ImageNet",
}


@pytest.mark.slow
def test_every_other_command_runs_in_a_clone(tmp_path: Path) -> None:
    """With the files of yours that it names; about two minutes."""
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], check=True)
    clone = tmp_path / "clone"
    (clone / ".venv").symlink_to(sys.prefix)
    (clone / "holiday").mkdir()
    photo = Image.fromarray(load_sample_image("flower.jpg"))
    photo.resize((160, 107)).save(clone / "photo.jpg")
    photo.resize((64, 43)).save(clone / "holiday" / "beach.jpg")
    (clone / "messages.txt").write_text("Free entry! Call 09061701461 now\nSee you at six\n")
    rows = ["ham\tSee you at six, love", "spam\tFree entry! Call 09061701461 now to claim"]
    (clone / "labelled.csv").write_text("\n".join(f"{row} {n}" for n in range(60) for row in rows) + "\n")
    commands = [line for line in FENCED if not any(re.search(need, line) for need in NEEDS)]
    assert len(commands) >= 8
    for line in commands:
        done = subprocess.run(["bash", "-c", line], cwd=clone, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    for name in ("large.png", "holiday-large/beach.avif", "note.png", "hand.svg", "digits.npz"):
        assert (clone / name).exists(), name
