"""util/unzip_imagenet: what comes out is what went in, whatever happens on the way; the rest is refused."""

import errno
import gzip
import hashlib
import importlib.machinery
import importlib.util
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from imagenet_archives import class_images, fingerprint, other_forms, photo, tar, train_tar, tree, wnid
from PIL import Image

from common.cli import UserError, command_line
from common.datasets import imagenet_archive
from util.imagenet import jobs, labels, settings, shrinking, sources, tars, unpacking

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "util" / "unzip_imagenet"

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")


def load() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("unzip_imagenet", str(SCRIPT))
    spec = importlib.util.spec_from_loader("unzip_imagenet", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


unzip = load()


def call(*words: object) -> int:
    return unzip.main([str(word) for word in words])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No labels lie about in the current folder, and nothing is made in the repository's data/."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(unzip, "OUT", Path("ImageNet"))  # in that folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


# ------------------------------------------------------------------------------------------- extract


def test_extract_gives_every_image_once(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "t.tar"
    files = train_tar(source, 4, 5)
    assert call(source, "--out", out, "--verify", "md5") == 0
    assert tree(out) == files
    about = imagenet_archive.check_complete(out / "train")
    assert about and (about["classes"], about["pictures"], about["mode"]) == (4, 20, "extract")
    assert about["bytes"] == sum(map(len, files.values())) and about["part"] is None
    assert about["md5"] == hashlib.md5(source.read_bytes()).hexdigest()
    manifest = json.loads((out / "train" / "manifest.json").read_text())
    assert manifest["by class"][wnid(2)]["pictures"] == 5
    before = fingerprint(out)
    capsys.readouterr()
    assert call(source, "--out", out) == 0
    assert "complete already" in capsys.readouterr().out and fingerprint(out) == before


def test_standard_input_is_never_stored(tmp_path: Path, out: Path) -> None:
    files = train_tar(tmp_path / "t.tar", 3, 4)
    command = [sys.executable, str(SCRIPT), "-", "--out", str(out)]
    done = subprocess.run(command, input=(tmp_path / "t.tar").read_bytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert tree(out) == files


def test_a_download_that_broke_off_is_finished_from_a_file(tmp_path: Path, out: Path) -> None:
    files = train_tar(tmp_path / "t.tar", 3, 4)
    data = (tmp_path / "t.tar").read_bytes()
    command = [sys.executable, str(SCRIPT), "-", "--out", str(out)]
    done = subprocess.run(command, input=data[: len(data) * 2 // 3], capture_output=True, text=False)
    assert done.returncode == 2 and b"standard input, byte" in done.stderr
    assert set(tree(out)) - {"train/.journal"} == {
        name for name in files if wnid(0) in name or wnid(1) in name
    }
    with pytest.raises(UserError, match=r"not complete.*unzip_imagenet - --out"):
        imagenet_archive.check_complete(out / "train")
    assert call(tmp_path / "t.tar", "--out", out) == 0
    assert tree(out) == files


def test_a_folder_of_inner_archives_and_one_of_outer_ones(tmp_path: Path, out: Path) -> None:
    files = train_tar(tmp_path / "ILSVRC2012_img_train.tar", 3, 4)
    assert call(tmp_path, "--out", out) == 0  # the folder that holds the archive
    assert tree(out) == files
    inner = tmp_path / "ILSVRC2012_img_train"
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar") as archive:
        archive.extractall(inner, filter="data")
    assert call(inner, "--out", tmp_path / "out2") == 0
    assert tree(tmp_path / "out2") == files


def test_a_part_is_called_a_part(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "t.tar"
    files = train_tar(source, 4, 5)
    assert call(source, "--out", out, "--classes", 2, "--per-class", 3) == 0
    first = [name for k in range(2) for name in sorted(n for n in files if wnid(k) in n)]
    assert len(tree(out)) == 6 and set(tree(out)) <= set(first)
    about = imagenet_archive.check_complete(out / "train")
    assert about and about["part"] == "2 classes, at most 3 images a class"
    (tmp_path / "wanted.txt").write_text(f"{wnid(3)} a dog\n{wnid(1)}\n")
    assert call(source, "--out", tmp_path / "named", "--classes", tmp_path / "wanted.txt") == 0
    assert {name.split("/")[1] for name in tree(tmp_path / "named")} == {wnid(1), wnid(3)}
    assert call(source, "--out", out) == 2 and "made otherwise" in capsys.readouterr().err
    (tmp_path / "wanted.txt").write_text("n99999999\n")
    assert call(source, "--out", tmp_path / "none", "--classes", tmp_path / "wanted.txt") == 2
    assert "no class n99999999" in capsys.readouterr().err


def test_a_foreign_folder_is_left_alone(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tar(tmp_path / "t.tar", 1, 1)
    (out / "train" / wnid(0)).mkdir(parents=True)
    (out / "train" / wnid(0) / "mine.JPEG").write_text("mine")
    assert call(tmp_path / "t.tar", "--out", out) == 2
    assert "name another --out" in capsys.readouterr().err
    assert tree(out) == {f"train/{wnid(0)}/mine.JPEG": b"mine"}
    assert imagenet_archive.check_complete(out / "train") is None


# ----------------------------------------------------------------------------------- broken, hostile


def info(name: str, kind: bytes = tarfile.REGTYPE, **more: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for key, value in more.items():
        setattr(member, key, value)
    return member


def pax(name: str) -> bytes:
    """A tar of one member that has a PAX header."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo(name)
        member.pax_headers = {"path": "../../evil"}
        archive.addfile(member)
    return file.getvalue()


def fields(header: bytes, **changes: tuple[int, bytes]) -> bytes:
    """A header with other bytes at some places and the checksum that fits."""
    changed = bytearray(header[:512])
    for place, data in changes.values():
        changed[place : place + len(data)] = data
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed) + header[512:]


END = bytes(1024)
LINK = {"linkname": "/etc/passwd"}
MEMBERS: dict[str, Callable[[str], bytes]] = {
    "parent folder": lambda own: tar(None, [("../" + own, b"x")]),
    "absolute": lambda own: tar(None, [("/tmp/" + own, b"x")]),
    "backslashes": lambda own: tar(None, [("..\\" + own, b"x")]),
    "another name": lambda own: tar(None, [("evil.sh", b"x")]),
    "other digits": lambda own: tar(None, [(own.replace("n0", "n٠"), b"x")]),
    "symbolic link": lambda own: tar(None, [(info(own, tarfile.SYMTYPE, **LINK), b"")]),
    "hard link": lambda own: tar(None, [(info(own, tarfile.LNKTYPE, **LINK), b"")]),
    "device": lambda own: tar(None, [(info(own, tarfile.CHRTYPE), b"")]),
    "pipe": lambda own: tar(None, [(info(own, tarfile.FIFOTYPE), b"")]),
    "sparse": lambda own: tar(None, [(info(own, tarfile.GNUTYPE_SPARSE), b"")]),
    "folder": lambda own: tar(None, [(info(own, tarfile.DIRTYPE), b"")]),
    "PAX header": lambda own: pax(own),
    "GNU long name": lambda own: tar(None, [("x" * 120 + own, b"x")]),
    "POSIX prefix": lambda own: fields(
        tar(None, [(own, b"x")]), magic=(257, b"ustar\x0000"), prefix=(345, b"..")
    ),
    "wrong checksum": lambda own: tar(None, [(own, b"x")]).replace(b"00000000000", b"00000000001", 1),
    "another magic": lambda own: fields(tar(None, [(own, b"x")]), magic=(257, b"ustaz")),
    "size in base 256": lambda own: fields(tar(None, [(own, b"x")]), size=(124, b"\x80" + bytes(11))),
    "longer than its parent": lambda own: fields(tar(None, [(own, b"x")]), size=(124, b"77777777777\0")),
    "cut off a boundary": lambda own: tar(None, [(own, bytes(3000))])[:1700],
    "cut at a boundary": lambda own: tar(None, [(own, bytes(1024))])[:1536],
    "one end block": lambda own: tar(None, [(own, bytes(1024))])[:2048],
    "nothing": lambda own: b"",
    "something behind the end": lambda own: tar(None, [(own, b"x")]) + b"x" * 512,
}


@pytest.mark.parametrize("kind", [*MEMBERS, "there twice", "empty image", "another class", "no images"])
def test_a_broken_class_is_refused_and_the_ones_before_are_kept(
    kind: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"{wnid(2)}_5.JPEG"
    inner = {
        "there twice": lambda: tar(None, [(own, b"x"), (own, b"y")]),
        "empty image": lambda: tar(None, [(own, b"")]),
        "another class": lambda: tar(None, [(f"{wnid(1)}_5.JPEG", b"x")]),
        "no images": lambda: tar(None, []),
    }.get(kind, lambda: MEMBERS[kind](own))()
    good = [(f"{wnid(k)}.tar", tar(None, class_images(k, 2, photo))) for k in (0, 1, 3)]
    tar(tmp_path / "t.tar", [*good[:2], (f"{wnid(2)}.tar", inner), good[2]])
    refused(tmp_path, out, capsys)
    assert call(tmp_path / "t.tar", "--mode", "index") == 2
    assert not list(tmp_path.glob("*.npy"))
    assert kind != "longer than its parent" or "reaches beyond the end" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [*MEMBERS, "there twice"])
def test_a_broken_archive_is_refused_and_the_classes_before_are_kept(
    kind: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [(f"{wnid(k)}.tar", tar(None, class_images(k, 2, photo))) for k in (0, 1)]
    with tarfile.open(fileobj=io.BytesIO(tar(None, good))) as archive:
        data = tar(None, good)[: archive.getmembers()[-1].offset_data + len(good[1][1])]
    last = tar(None, good[:1]) if kind == "there twice" else MEMBERS[kind](f"{wnid(2)}.tar")
    (tmp_path / "t.tar").write_bytes(data + last)
    refused(tmp_path, out, capsys)


def refused(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With one line that names archive and place; two classes are there, and nothing is elsewhere."""
    before = set(tmp_path.rglob("*"))
    assert call(tmp_path / "t.tar", "--out", out) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 't.tar'}, byte " in said
    files = {f"train/{wnid(k)}/{name}": data for k in (0, 1) for name, data in class_images(k, 2, photo)}
    result = tree(out)
    assert result.pop("train/.journal") and result == files
    assert {path for path in tmp_path.rglob("*") if out not in (path, *path.parents)} == before
    with pytest.raises(UserError, match="not complete"):
        imagenet_archive.check_complete(out / "train")


def test_damage_anywhere_is_refused_or_lies_in_an_image(tmp_path: Path) -> None:
    files = train_tar(tmp_path / "t.tar", 2, 3, lambda k: bytes([k % 251]) * 700)
    data = (tmp_path / "t.tar").read_bytes()
    dice = random.Random(1)
    outcomes = set()
    for turn in range(60):
        damaged = bytearray(data)
        damaged[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        (tmp_path / "d.tar").write_bytes(damaged[: dice.choice([None, None, dice.randrange(len(data))])])
        out = tmp_path / f"out{turn}"
        code = call(tmp_path / "d.tar", "--out", out)
        result = tree(out)
        assert set(result) - {"train/.journal"} <= set(files)
        assert all(len(result[name]) == 700 for name in result if name != "train/.journal")
        assert code == 2 or set(result) == set(files)
        outcomes.add(code)
    assert outcomes == {0, 2}


def test_other_files_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_tar(tmp_path / "ILSVRC2012_img_train_t3.tar", 1, 1)
    assert call(tmp_path / "ILSVRC2012_img_train_t3.tar") == 2
    assert "dogs" in capsys.readouterr().err
    assert call(tmp_path) == 2  # also where it lies in a folder
    assert "dogs" in capsys.readouterr().err
    (tmp_path / "login.html").write_text("<html>" * 300)
    for name, why in (("login.html", "no tar header"), ("nothing.tar", "No such file"), ("cwd", "neither")):
        assert call(tmp_path / name) == 2
        assert why in capsys.readouterr().err


# ------------------------------------------------------------------------------ kill, full disk, lock


def killed_at(event: int, *words: object) -> bool:
    """Runs in a process that ends, with nothing put in order, before its n-th act on the file system."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = event

    def count(what: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if what in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link"):
            left -= 1
            if left == 0:
                os._exit(9)

    sys.addaudithook(count)
    os._exit(call(*words))


@needs_fork
@pytest.mark.parametrize("consume", [False, True])
def test_killed_anywhere_and_run_again_gives_the_same(consume: bool, tmp_path: Path) -> None:
    source, plain = tmp_path / "t.tar", tmp_path / "plain.tar"
    train_tar(plain, 4, 3)
    flags = ["--verify", "md5"]
    if consume:
        flags = ["--consume", "--md5", hashlib.md5(plain.read_bytes()).hexdigest()]
    prints, kills = set(), 0
    for event in [0, *range(3, 200, 5)]:
        source.write_bytes(plain.read_bytes())
        out = tmp_path / f"out{event}"
        words = (source, "--out", out, *flags)
        if event:
            was_killed = killed_at(event, *words)
            if not was_killed:
                break
            kills += 1
            killed_at(event // 2 + 5, *words)  # and once more, on the way back
            if consume and not source.exists():  # it came to its end
                prints.add(fingerprint(out))
                continue
        assert call(*words) == 0
        assert source.exists() is not consume
        prints.add(fingerprint(out))
    assert kills > 6 and len(prints) == 1


@needs_fork
def test_finished_classes_are_not_read_again(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "t.tar"
    files = train_tar(source, 4, 3)
    event = 30
    while not (out / "train" / wnid(1)).exists():
        assert killed_at(event, source, "--out", out)
        event += 5
    data = bytearray(source.read_bytes())
    with tarfile.open(source) as archive:
        first = archive.getmembers()[0]
    data[first.offset_data : first.offset_data + first.size] = bytes(first.size)
    source.write_bytes(data)
    assert call(source, "--out", out) == 0
    assert tree(out) == files


def test_a_finished_class_that_was_changed_is_done_again(tmp_path: Path, out: Path) -> None:
    files = train_tar(tmp_path / "t.tar", 3, 3)
    data = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) * 3 // 4])
    assert call(tmp_path / "cut.tar", "--out", out) == 2
    (out / "train" / wnid(0) / f"{wnid(0)}_1.JPEG").write_bytes(b"")  # as after a power cut
    (out / "train" / ".journal").open("a").write('{"class": "n0')
    (tmp_path / "cut.tar").write_bytes(data)
    journal = (out / "train" / ".journal").read_text()
    (out / "train" / ".journal").write_text(journal.replace(str(len(data) * 3 // 4), str(len(data))))
    assert call(tmp_path / "cut.tar", "--out", out) == 0
    assert tree(out) == files


def test_a_class_that_the_journal_does_not_know_is_done_again(tmp_path: Path, out: Path) -> None:
    files = train_tar(tmp_path / "t.tar", 3, 3)
    data = (tmp_path / "t.tar").read_bytes()
    pipe = [sys.executable, str(SCRIPT), "-", "--out", str(out)]
    assert subprocess.run(pipe, input=data[: len(data) * 3 // 4], capture_output=True).returncode == 2
    journal = out / "train" / ".journal"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    journal.write_text("".join(lines[:-1]))  # as after a kill between the new name and the note
    (out / "train" / wnid(2) / "of an older run").write_text("x")
    assert call(tmp_path / "t.tar", "--out", out) == 0
    assert tree(out) == files


def test_a_class_is_counted_before_it_gets_its_name(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tar(tmp_path / "t.tar", 1, 3)
    write = unpacking.write
    monkeypatch.setattr(unpacking, "write", lambda path, data: "_8." in path or write(path, data))
    assert call(tmp_path / "t.tar", "--out", out) == 2
    assert "2 files instead of 3" in capsys.readouterr().err and not (out / "train" / wnid(0)).exists()


def test_another_archive_does_not_go_on_with_it(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tar(tmp_path / "t.tar", 3, 3)
    data = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(data[: len(data) * 3 // 4])
    assert call(tmp_path / "t.tar", "--out", out) == 2
    before = fingerprint(out)
    train_tar(tmp_path / "t.tar", 3, 4)
    capsys.readouterr()
    assert call(tmp_path / "t.tar", "--out", out) == 2
    assert "another" in capsys.readouterr().err and fingerprint(out) == before


def test_full_disk(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "t.tar"
    files = train_tar(source, 3, 3)
    write, left = unpacking.write, 5

    def full(path: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            write(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device", path)
        write(path, data)

    monkeypatch.setattr(unpacking, "write", full)
    assert call(source, "--out", out) == 2
    said = capsys.readouterr().err
    assert "is full" in said and "1 classes are finished" in said
    assert set(tree(out)) == {"train/.journal", *(name for name in files if wnid(0) in name)}
    assert call(source, "--out", out) == 0
    assert tree(out) == files


def test_too_little_space_is_said_before(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tar(tmp_path / "t.tar", 1, 1)
    monkeypatch.setattr(jobs, "space", lambda folder: (100, 100))
    assert call(tmp_path / "t.tar", "--out", out) == 2
    assert "--mode index" in capsys.readouterr().err and not (out / "train").exists()


def test_two_at_once(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_tar(tmp_path / "t.tar", 1, 1)
    with unpacking.locked(out):
        assert call(tmp_path / "t.tar", "--out", out) == 2
        assert "another unzip_imagenet is at work" in capsys.readouterr().err
    assert call(tmp_path / "t.tar", "--out", out) == 0


# ------------------------------------------------------------------------------------------- consume


def test_consume_never_destroys_what_is_not_verified(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "t.tar"
    train_tar(source, 2, 2)
    data = source.read_bytes()
    for flags, why in (
        ([], "by --md5"),
        (["--md5", "0" * 32], "instead of"),
        (["--md5", "0" * 32, "--classes", "1"], "throw away"),
        (["--verify", "fast"], "verified first"),
    ):
        assert call(source, "--out", out, "--consume", *flags) == 2
        assert why in capsys.readouterr().err
        assert source.read_bytes() == data and not (out / "train").exists()


@needs_fork
def test_consume_leaves_another_archive_alone(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "t.tar"
    train_tar(source, 4, 3)
    words = (source, "--out", out, "--consume", "--md5", hashlib.md5(source.read_bytes()).hexdigest())
    event = 20
    while not (out / "train" / wnid(2)).exists():
        assert killed_at(event, *words)
        event += 3
    train_tar(source, 5, 3)
    data = source.read_bytes()
    assert call(*words) == 2
    assert "is left as it is" in capsys.readouterr().err and source.read_bytes() == data


def test_consume_frees_the_archive_class_by_class(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "t.tar"
    files = train_tar(source, 8, 3, lambda k: random.Random(k).randbytes(5000))
    whole, peak = source.stat().st_size, 0
    truncate = os.truncate

    def measured(path: Path, length: int) -> None:
        nonlocal peak
        written = sum(file.stat().st_size for file in out.rglob("*.JPEG"))
        peak = max(peak, written + source.stat().st_size)
        truncate(path, length)

    monkeypatch.setattr(os, "truncate", measured)
    assert call(source, "--out", out, "--consume", "--md5", hashlib.md5(source.read_bytes()).hexdigest()) == 0
    assert tree(out) == files and not source.exists()
    assert whole < peak < whole * 1.15


def test_consume_of_validation_images(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "IMAGES_PER_NOTE", 3)
    source = tmp_path / "v.tar"
    files = val_tar(source, 10)
    kaggle(tmp_path)
    assert call(source, "--out", out, "--consume", "--md5", hashlib.md5(source.read_bytes()).hexdigest()) == 0
    assert tree(out) == files and not source.exists()


# ---------------------------------------------------------------------------------------- validation

LABELS = {number: wnid((number * 7) % 4) for number in range(1, 11)}


def val_tar(path: Path, count: int, name: str = "ILSVRC2012_val_{number:08d}.JPEG") -> dict[str, bytes]:
    """Images in a shuffled order; gives the files that must come out."""
    numbers = list(range(1, count + 1))
    random.Random(0).shuffle(numbers)
    tar(path, [(name.format(number=number, wnid=LABELS[number]), photo(number)) for number in numbers])
    return {f"val/{LABELS[n]}/ILSVRC2012_val_{n:08d}.JPEG": photo(n) for n in numbers}


def kaggle(folder: Path) -> Path:
    rows = [f"ILSVRC2012_val_{number:08d},{name} 1 2 3 4 {name} 5 6 7 8" for number, name in LABELS.items()]
    random.Random(1).shuffle(rows)
    (folder / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]) + "\n")
    return folder / "LOC_val_solution.csv"


def devkit(path: Path, mode: str, compressed: bool, number_type: type) -> None:
    """Ids are no places in the sorted list of wnids; inner nodes of the tree come last."""
    savemat = pytest.importorskip("scipy.io").savemat
    ids = {wnid(k): i for k, i in zip(range(4), (3, 1, 4, 2), strict=True)}
    kinds = [(name, "O") for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")]
    rows = [(number_type(i), name, "wörds, and more", number_type(0)) for name, i in ids.items()]
    rows.append((number_type(1500), "n00000099", "entity", number_type(4)))
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)}, do_compression=compressed)
    truth = "".join(f"{ids[LABELS[number]]}\n" for number in sorted(LABELS)).encode()
    data = f"{labels.DEVKIT}/data"
    tar(path, [(f"{data}/meta.mat", meta.getvalue()), (f"{data}/{labels.TRUTH}", truth)], mode)


@pytest.mark.parametrize(
    "kind", ["devkit.tar.gz", "devkit.tar", "devkit folder", "Kaggle", "names", "folders"]
)
def test_validation_images_are_sorted_by_their_number(kind: str, tmp_path: Path, out: Path) -> None:
    name = {
        "names": "ILSVRC2012_val_{number:08d}_{wnid}.JPEG",
        "folders": "{wnid}/ILSVRC2012_val_{number:08d}.JPEG",
    }.get(kind, "ILSVRC2012_val_{number:08d}.JPEG")
    files = val_tar(tmp_path / "v.tar", 10, name)
    if kind == "Kaggle":
        kaggle(tmp_path)
    elif kind == "devkit.tar":
        devkit(tmp_path / f"{labels.DEVKIT}.tar", "w", False, np.uint16)
    elif kind.startswith("devkit"):
        devkit(tmp_path / f"{labels.DEVKIT}.tar.gz", "w:gz", True, float)
    if kind == "devkit folder":
        with tarfile.open(tmp_path / f"{labels.DEVKIT}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        (tmp_path / f"{labels.DEVKIT}.tar.gz").unlink()
    assert call(tmp_path / "v.tar", "--out", out) == 0
    assert tree(out) == files
    assert call(tmp_path / "v.tar", "--mode", "index") == 0
    rows, about = imagenet_archive.open_index(tmp_path / "v.tar")
    data = (tmp_path / "v.tar").read_bytes()
    for row in rows:
        own = about["wnids"][row["class"]]
        name = f"val/{own}/{imagenet_archive.image_name('val', own, int(row['number']))}"
        assert data[int(row["offset"]) :][: int(row["size"])] == files[name]
    assert len(rows) == 10


def test_without_labels_it_stops_before_any_work(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val_tar(tmp_path / "v.tar", 4)
    assert call(tmp_path / "v.tar", "--out", out) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and labels.DEVKIT in said and "--labels" in said
    assert not (out / "val").exists()
    (tmp_path / "elsewhere").mkdir()
    assert call(tmp_path / "v.tar", "--out", out, "--labels", kaggle(tmp_path / "elsewhere")) == 0


def test_labels_that_are_none_are_refused(tmp_path: Path) -> None:
    for name, data in (
        ("a.csv", b"x,y\n1,2\n"),
        ("b.csv", b"ImageId,PredictionString\nx,n00000001\n"),
        ("c.tar.gz", gzip.compress(b"no tar")),
        ("d.tar", tar(None, [("meta.mat", b"x")])),
        ("e.tar", tar(None, [("meta.mat", bytes(300)), (labels.TRUTH, b"1\n")])),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="--labels"):
            labels.read_labels(tmp_path / name)


@needs_fork
@pytest.mark.parametrize("consume", [False, True])
def test_validation_images_after_a_kill(
    consume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "IMAGES_PER_NOTE", 3)
    source = tmp_path / "v.tar"
    files = val_tar(source, 10)
    whole = source.read_bytes()
    flags = ["--consume", "--md5", hashlib.md5(whole).hexdigest()] if consume else []
    kaggle(tmp_path)
    prints, kills = set(), 0
    for event in range(8, 100, 4):
        source.write_bytes(whole)
        out = tmp_path / f"out{event}"
        was_killed = killed_at(event, source, "--out", out, *flags)
        kills += was_killed
        if was_killed:
            assert call(source, "--out", out, *flags) == 0
        assert tree(out) == files and source.exists() is not consume
        prints.add(fingerprint(out))
        if not was_killed:
            break
    assert kills > 6 and len(prints) == 1


# ---------------------------------------------------------------------------- Kaggle's tree, Imagenette


def test_kaggle_tree_is_sorted_without_a_copy(tmp_path: Path, out: Path) -> None:
    data = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    files = train_tar(tmp_path / "t.tar", 2, 3)
    for name, content in files.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(content)
    (data / "val").mkdir()
    for number, own in LABELS.items():
        (data / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(photo(number))
        files[f"val/{own}/ILSVRC2012_val_{number:08d}.JPEG"] = photo(number)
    kaggle(tmp_path)
    assert call(tmp_path, "--out", out) == 0
    assert tree(out) == files
    some = next(iter(files))
    assert (out / some).samefile(data / some)
    shrink = ["--mode", "shrink", "--size", 16, "--workers", 1]
    assert call(tmp_path, "--out", tmp_path / "small", *shrink) == 0
    assert (data / some).read_bytes() == files[some] != tree(tmp_path / "small")[some]


def test_imagenette(tmp_path: Path, out: Path) -> None:
    files = {f"train/{wnid(k)}/{wnid(k)}_{i}.JPEG": photo(10 * k + i) for k in range(2) for i in range(3)}
    files |= {f"val/{wnid(k)}/ILSVRC2012_val_{k + 1:08d}.JPEG": photo(50 + k) for k in range(2)}
    folder = info("imagenette2-160/train", tarfile.DIRTYPE)
    members = [(f"imagenette2-160/{name}", data) for name, data in files.items()]
    tar(
        tmp_path / "some.tgz",
        [(folder, b""), ("imagenette2-160/noisy_imagenette.csv", b"x"), *members],
        "w:gz",
    )
    assert call(tmp_path / "some.tgz", "--out", out) == 0
    assert tree(out) == files
    assert call(out, "--out", tmp_path / "again") == 0  # the folder that others made of it
    assert tree(tmp_path / "again") == files
    cut = (tmp_path / "some.tgz").read_bytes()[:-500]
    (tmp_path / "cut.tgz").write_bytes(cut)
    assert call(tmp_path / "cut.tgz", "--out", tmp_path / "cut") == 2


# -------------------------------------------------------------------------------------------- shrink


def test_shrink(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.open(io.BytesIO(photo(1, 90, 60))).save(turned, "JPEG", exif=exif)
    png = io.BytesIO()
    Image.new("RGBA", (80, 80), (1, 2, 3, 4)).save(png, "PNG")
    images = {
        "1": photo(1, 90, 60),
        "2": photo(2, 30, 200),
        "3": photo(3, 90, 60, "CMYK"),
        "4": photo(4, 90, 60, "L"),
        "5": photo(5, 90, 60)[:300],
        "6": turned.getvalue(),
        "7": png.getvalue(),
    }
    named = {f"{wnid(0)}_{number}.JPEG": data for number, data in images.items()}
    tar(tmp_path / "t.tar", [(f"{wnid(0)}.tar", tar(None, named.items()))])
    words = (
        tmp_path / "t.tar",
        "--out",
        out,
        "--mode",
        "shrink",
        "--size",
        32,
        "--quality",
        90,
        "--workers",
        2,
    )
    assert call(*words) == 0
    assert "2 could not be shrunk" in capsys.readouterr().out
    result = {name.rsplit("_", 1)[1][0]: data for name, data in tree(out).items()}
    for number in "1346":
        image = Image.open(io.BytesIO(result[number]))
        assert (image.size, image.mode, image.format) == ((48, 32), "RGB", "JPEG")
    assert Image.open(io.BytesIO(result["6"])).getexif()[274] == 6
    for number in "257":  # small already; broken; transparent
        assert result[number] == images[number]
    want = Image.open(io.BytesIO(images["1"])).resize((48, 32), Image.Resampling.BICUBIC)
    pixels = [np.asarray(image.convert("L"), float) for image in (want, Image.open(io.BytesIO(result["1"])))]
    assert np.abs(pixels[0] - pixels[1]).mean() < 6
    about = imagenet_archive.check_complete(out / "train")
    assert about and (about["mode"], about["size"], about["quality"], about["kept"]) == ("shrink", 32, 90, 2)
    assert call(*words[:-4], "--quality", 80) == 2


def test_shrink_loses_no_class_that_was_read(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "t.tar"
    train_tar(source, 3, 9, lambda k: photo(k, 80, 60))
    words = ("--mode", "shrink", "--size", 32, "--workers", 2)
    assert call(source, "--out", tmp_path / "whole", *words) == 0
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 3 // 4])
    assert call(source, "--out", out, *words) == 2
    journal = out / "train" / ".journal"
    assert [json.loads(line)["class"] for line in journal.read_text().splitlines()[1:]] == [wnid(0), wnid(1)]
    journal.write_text(journal.read_text().replace(str(len(data) * 3 // 4), str(len(data))))
    source.write_bytes(data)
    assert call(source, "--out", out, *words) == 0
    assert fingerprint(out) == fingerprint(tmp_path / "whole")


# --------------------------------------------------------------------------------------------- index


def test_index_says_where_every_image_lies(tmp_path: Path) -> None:
    source = tmp_path / "t.tar"
    tar(
        source,
        [(f"{wnid(k)}.tar", tar(None, class_images(k, 3, photo)[::-1])) for k in (2, 0, 1)],
    )
    assert call(source, "--mode", "index") == 0
    rows, about = imagenet_archive.open_index(source)
    assert isinstance(rows, np.memmap) and not rows.flags.writeable
    assert about["wnids"] == [wnid(0), wnid(1), wnid(2)] and about["part"] is None
    data, result = source.read_bytes(), {}
    for row in rows:
        name = imagenet_archive.image_name("train", about["wnids"][row["class"]], int(row["number"]))
        result[name] = data[int(row["offset"]) :][: int(row["size"])]
    assert list(result.items()) == [image for k in range(3) for image in class_images(k, 3, photo)]
    assert call(source, "--check") == 0
    assert call(source, "--mode", "index", "--classes", 1, "--per-class", 2) == 0
    rows, about = imagenet_archive.open_index(source)
    assert len(rows) == 2 and about["wnids"] == [wnid(2)] and "2 images" in about["part"]


def test_an_index_that_does_not_fit_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    source = tmp_path / "t.tar"
    train_tar(source, 2, 2)
    remedy = f"python util/unzip_imagenet {source} --mode index"
    with pytest.raises(UserError, match=f"no index.*{remedy}"):
        imagenet_archive.open_index(source)
    npy, description = imagenet_archive.index_files(source)
    for damage in (
        lambda: os.utime(source),
        lambda: source.open("ab").write(b"x"),
        lambda: npy.write_bytes(npy.read_bytes()[:-5]),
        lambda: npy.write_bytes(b""),
        lambda: np.save(npy, np.zeros(4)),
        lambda: np.save(npy, np.zeros(3, imagenet_archive.ROW)),
        lambda: np.save(npy, np.array([object()])),
        lambda: description.write_text("{"),
        lambda: description.write_text("[]"),
        description.unlink,
        npy.unlink,
    ):
        train_tar(source, 2, 2)
        assert call(source, "--mode", "index") == 0
        imagenet_archive.open_index(source)
        damage()
        with pytest.raises(UserError, match=remedy):
            imagenet_archive.open_index(source)


def test_index_takes_a_tar_on_disk_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_tar(tmp_path / "t.tar", 1, 1)
    (tmp_path / "t.tar.gz").write_bytes(gzip.compress((tmp_path / "t.tar").read_bytes()))
    assert call(tmp_path / "t.tar.gz", "--mode", "index") == 2
    assert "compressed" in capsys.readouterr().err


# ---------------------------------------------------------------------------- check, guide, dry run


def test_check_finds_what_is_wrong(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_tar(tmp_path / "t.tar", 3, 3)
    assert call(tmp_path / "t.tar", "--out", out) == 0
    assert call(out, "--check", "--decode", "--workers", 1) == 0
    image = out / "train" / wnid(1) / f"{wnid(1)}_8.JPEG"
    data = image.read_bytes()
    image.write_bytes(bytes(len(data)))
    assert call(out, "--check") == 0
    capsys.readouterr()
    assert call(out, "--check", "--decode", "--workers", 1) == 1
    assert image.name in capsys.readouterr().out
    image.unlink()
    assert call(out / "train", "--check") == 1
    assert f"{wnid(1)}: 2 images" in capsys.readouterr().out
    assert call(tmp_path / "cwd", "--check") == 2


def test_the_guide_fits_on_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 24 and max(map(len, said.splitlines())) <= 110
    for words in ("147,897,477,120", "1d675b47d978889d74fa0da5fadfb00e", "29b22e2961454d5413ddabcf34fc5622"):
        assert words in said
    assert "fa75699e90414af021442c21a62c3abf" in said and "https://image-net.org" in said


@pytest.mark.parametrize(
    ("free", "flag"), [(10**12, ""), (160e9, "--consume"), (30e9, "- --mode shrink"), (1e9, "--out ANOTHER")]
)
def test_the_guide_names_what_fits(
    free: float, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(unzip, "space", lambda folder: (int(free), 10**7))
    assert call() == 0
    fits = capsys.readouterr().out.split("On this disk ")[1].split("gan_upscale")[0]
    assert flag in fits and ("--" in fits) == ("--" in flag)


def test_dry_run_makes_nothing(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_tar(tmp_path / "t.tar", 3, 3)
    before = set(tmp_path.rglob("*"))
    assert call(tmp_path / "t.tar", "--out", out, "--dry-run") == 0
    assert "3 classes" in capsys.readouterr().out and set(tmp_path.rglob("*")) == before


def test_a_wrong_md5_leaves_it_incomplete(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / sources.TRAIN
    files = train_tar(source, 2, 2)
    right = hashlib.md5(source.read_bytes()).hexdigest()
    official = sources.Official(source.stat().st_size, "0" * 32, 4)
    monkeypatch.setitem(sources.KNOWN, sources.TRAIN, official)
    assert call(source, "--out", out) == 2
    assert f"md5 {right} instead of" in capsys.readouterr().err
    with pytest.raises(UserError, match="not complete"):
        imagenet_archive.check_complete(out / "train")
    assert call(source, "--out", out, "--verify", "none") == 0
    assert tree(out) == files
    monkeypatch.setitem(sources.KNOWN, sources.TRAIN, sources.Official(official.bytes, right, 5))
    assert call(source, "--out", tmp_path / "out2") == 2
    assert "4 images instead of 5" in capsys.readouterr().err
    monkeypatch.setitem(sources.KNOWN, sources.TRAIN, sources.Official(official.bytes, right, 4))
    assert call(source, "--out", tmp_path / "out3", "--mode", "shrink", "--size", 8, "--workers", 1) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "9"],
        ["--quality", "101", "--mode", "shrink"],
        ["--per-class", "0"],
        ["--classes", "many"],
        ["--consume", "--mode", "index"],
        ["--decode"],
        ["--md5", "x", "--verify", "fast"],
    ],
)
def test_flags_that_make_no_sense(words: list[str], tmp_path: Path, out: Path) -> None:
    train_tar(tmp_path / "t.tar", 1, 1)
    assert call(tmp_path / "t.tar", "--out", out, *words) == 2
    assert not out.exists()


def test_it_starts_without_torch() -> None:
    code = (
        "import importlib.machinery, sys\n"
        f"importlib.machinery.SourceFileLoader('unzip_imagenet', {str(SCRIPT)!r}).load_module()\n"
        "assert not {'torch', 'torchvision', 'tyro', 'pooch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_archive_says_where_it_ends(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abcdef")
    archive = tars.Archive(tmp_path / "x", md5=True, chunk=4)
    assert (archive.peek(2), archive.take(3), archive.position) == (b"ab", b"abc", 3)
    with pytest.raises(UserError, match="byte 6"):
        archive.take(4)


# ----------------------------------------------------------------------------- what a hostile user found


@pytest.mark.parametrize(
    "words",
    [
        ["--classes", "²"],
        ["--workers", "1000000", "--mode", "shrink"],
        ["--md5", "xyz"],
        ["--labels", "nowhere"],
        ["--bogus"],
        ["--mode", "zip"],
        ["--mode", "index", "--out", "there"],
        ["--mode", "index", "--md5", "0" * 32],
        ["--check", "--consume"],
        ["--check", "--dry-run"],
        ["--out", "x" * 300],
    ],
)
def test_one_line_refuses_what_makes_no_sense(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tar(tmp_path / "t.tar", 1, 1)
    before = set(tmp_path.rglob("*"))
    assert call(tmp_path / "t.tar", *words) == 2
    said = capsys.readouterr().err.removeprefix(f"reading the headers of {tmp_path / 't.tar'}\n")
    assert said.startswith("unzip_imagenet: ") and said.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before


def test_dry_run_makes_no_index(tmp_path: Path) -> None:
    train_tar(tmp_path / "t.tar", 1, 1)
    assert call(tmp_path / "t.tar", "--mode", "index", "--dry-run") == 0
    assert not list(tmp_path.glob("*.index.*"))


def test_an_md5_in_capitals_is_the_same(tmp_path: Path, out: Path) -> None:
    train_tar(tmp_path / "t.tar", 1, 1)
    md5 = hashlib.md5((tmp_path / "t.tar").read_bytes()).hexdigest().upper()
    assert call(tmp_path / "t.tar", "--out", out, "--md5", md5) == 0


def test_two_archives_without_labels_are_refused_before_the_first_is_read(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tar(tmp_path / sources.TRAIN, 1, 1)
    val_tar(tmp_path / sources.VAL, 4)
    for words in (["--out", out], ["--mode", "index"]):
        assert call(tmp_path, *words) == 2
        assert "need their labels" in capsys.readouterr().err
    assert not (out / "train").exists() and not list(tmp_path.glob("*.index.*"))
    assert call(tmp_path, "--out", out, "--md5", "0" * 32) == 2
    assert "one archive" in capsys.readouterr().err


def test_folders_of_something_else_leave_nothing_behind(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mnist" / "train" / "0").mkdir(parents=True)
    (tmp_path / "mnist" / "val").mkdir()
    assert call(tmp_path / "mnist", "--out", out) == 2
    assert "nor folders train and val with ImageNet's" in capsys.readouterr().err and not out.exists()


def plain_tree(folder: Path) -> dict[str, bytes]:
    files = train_tar(folder.parent / "t.tar", 2, 2)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


def test_links_in_a_tree_become_the_files_that_they_lead_to(tmp_path: Path, out: Path) -> None:
    files = plain_tree(tmp_path / "tree")
    first = tmp_path / "tree" / next(iter(files))
    first.rename(tmp_path / "tree" / "elsewhere")
    first.symlink_to("../../elsewhere")
    assert call(tmp_path / "tree", "--out", out) == 0
    assert tree(out) == files and not (out / next(iter(files))).is_symlink()


@pytest.mark.parametrize("what", ["empty", "folder", "pipe", "no image", "empty class"])
def test_a_tree_with_something_else_in_it_is_refused_by_name(
    what: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "tree" / next(iter(plain_tree(tmp_path / "tree")))
    first.unlink()
    if what == "empty":
        first.touch()
    elif what == "folder":
        first.mkdir()
    elif what == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no pipes here")
        os.mkfifo(first)
    elif what == "no image":
        first = first.with_name("Thumbs.db")
        first.touch()
    else:
        first = first.parents[1] / wnid(7)
        first.mkdir()
    assert call(tmp_path / "tree", "--out", out) == 2
    assert str(first) in capsys.readouterr().err


def test_copies_in_place_of_links_are_announced_once(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = plain_tree(tmp_path / "tree")

    def refuse(file: Path, path: str) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert call(tmp_path / "tree", "--out", out) == 0
    assert capsys.readouterr().err.count("are copied") == 1 and tree(out) == files


def test_compressed_class_archives_are_read(tmp_path: Path, out: Path) -> None:
    images = class_images(0, 3, photo)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / f"{wnid(0)}.tar").write_bytes(gzip.compress(tar(None, images)))
    assert call(tmp_path / "inner", "--out", out) == 0
    assert tree(out) == {f"train/{wnid(0)}/{name}": data for name, data in images}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_as_source_is_refused_and_does_not_hang(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert call(tmp_path / "pipe") == 2
    assert "is no file" in capsys.readouterr().err


def test_consume_of_an_archive_that_cannot_be_changed_is_refused_at_once(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "t.tar"
    train_tar(source, 1, 1)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != source)
    assert call(source, "--out", out, "--consume", "--md5", "0" * 32) == 2
    assert "not yours to change" in capsys.readouterr().err and not (out / "train").exists()


def test_consume_where_the_system_cannot_flush_all_waits_for_each_file_once(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "t.tar"
    waited: list[int] = []
    files = train_tar(source, 5, 3)
    fsync = os.fsync
    monkeypatch.delattr(os, "sync", raising=False)  # as on Windows

    def wait(handle: int) -> None:
        waited.append(handle)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", wait)
    assert call(source, "--out", out, "--consume", "--md5", hashlib.md5(source.read_bytes()).hexdigest()) == 0
    assert tree(out) == files and len(waited) == 15 + 5 + 2  # images, notes, manifest and mark


def test_a_disk_that_is_full_from_the_start(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tar(tmp_path / "t.tar", 1, 1)

    def full(*words: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unpacking.Split, "open", full)
    assert call(tmp_path / "t.tar", "--out", out) == 2
    assert "is full" in capsys.readouterr().err
    monkeypatch.setattr(np, "save", full)
    assert call(tmp_path / "t.tar", "--mode", "index") == 2
    assert "No space left" in capsys.readouterr().err and not list(tmp_path.glob("*.index.*"))


@pytest.mark.parametrize("damage", ["{}", '{"mode": "extract"}', "[]"])
def test_a_damaged_mark_or_journal_is_refused(damage: str, tmp_path: Path, out: Path) -> None:
    train_tar(tmp_path / "t.tar", 1, 1)
    assert call(tmp_path / "t.tar", "--out", out) == 0
    (out / "train" / ".complete").write_text(damage)
    assert call(tmp_path / "t.tar", "--out", out) == 2
    (out / "train" / ".complete").unlink()
    head = json.dumps(
        {"command": "x", "source": {"bytes": None}, "settings": settings.Settings("t.tar", out).recorded()}
    )
    (out / "train" / ".journal").write_text(f"{head}\n{damage}\n")
    assert call(tmp_path / "t.tar", "--out", out) == 2


def test_check_decodes_images_in_an_archive_and_knows_names_with_their_wnid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val_tar(tmp_path / "v.tar", 10, "ILSVRC2012_val_{number:08d}_{wnid}.JPEG")
    assert call(tmp_path / "v.tar", "--mode", "index") == 0
    assert call(tmp_path / "v.tar", "--check", "--decode", "--workers", 1) == 0
    rows, _ = imagenet_archive.open_index(tmp_path / "v.tar")
    damaged = bytearray((tmp_path / "v.tar").read_bytes())
    at, size = int(rows[3]["offset"]), int(rows[3]["size"])
    damaged[at : at + size] = bytes(size)
    state = (tmp_path / "v.tar").stat()
    (tmp_path / "v.tar").write_bytes(damaged)
    os.utime(tmp_path / "v.tar", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert call(tmp_path / "v.tar", "--check") == 0
    capsys.readouterr()
    assert call(tmp_path / "v.tar", "--check", "--decode", "--workers", 1) == 1
    assert capsys.readouterr().out.count("cannot be decoded") == 1


def test_images_of_16_bits_are_not_clipped_by_shrinking() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((80, 80), 40_000, np.uint16)).save(file, "PNG")
    assert shrinking.shrunk(file.getvalue(), 32, 70) == (file.getvalue(), "more than 8 bits a channel")


@pytest.mark.parametrize("ascii_only", [False, True])
def test_the_screen_takes_any_path(ascii_only: bool, tmp_path: Path) -> None:
    train_tar(tmp_path / "t.tar", 1, 1)
    out = tmp_path / "öut 日本"
    words = [sys.executable, str(SCRIPT), str(tmp_path / "t.tar"), "--out", str(out)]
    more = {"PYTHONIOENCODING": "ascii"} if ascii_only else {}
    assert subprocess.run(words, capture_output=True, env=os.environ | more).returncode == 0
    assert imagenet_archive.check_complete(out / "train")


def test_images_across_the_chunks_of_an_archive_come_whole(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(5000)
    (tmp_path / "x").write_bytes(data)
    for chunk in (1, 7, 512, 4096):
        archive, dice, parts = tars.Archive(tmp_path / "x", md5=True, chunk=chunk), random.Random(1), []
        while archive.position < 4500:
            parts.append(archive.take(dice.randrange(300)))
            assert archive.peek(9) == data[archive.position :][:9]
        assert b"".join(parts) == data[: archive.position]
        assert archive.md5() == hashlib.md5(data).hexdigest()


# ---------------------------------------------------------------------------- what a second reader found


def test_a_wrong_md5_is_not_forgotten_by_the_same_command_again(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle(tmp_path)
    train_tar(tmp_path / "t.tar", 2, 2)
    val_tar(tmp_path / "v.tar", 4)
    for source in (tmp_path / "t.tar", tmp_path / "v.tar"):
        for words in (["--md5", "0" * 32], ["--md5", "0" * 32], []):
            assert call(source, "--out", out, *words) == 2
            assert hashlib.md5(source.read_bytes()).hexdigest() in capsys.readouterr().err
    train, val = (hashlib.md5((tmp_path / name).read_bytes()).hexdigest() for name in ("t.tar", "v.tar"))
    assert call(tmp_path / "t.tar", "--out", out, "--md5", train) == 0  # it was the number that was wrong
    assert call(tmp_path / "v.tar", "--out", out, "--verify", "none") == 0
    about = imagenet_archive.check_complete(out / "val")
    assert val and about and about["verified"] == "none"


def test_as_many_other_classes_are_not_the_same_part(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tar(tmp_path / "t.tar", 4, 1)
    for k in range(2):
        (tmp_path / f"{k}.txt").write_text(f"{wnid(2 * k)}\n{wnid(2 * k + 1)}\n", encoding="utf-8-sig")
    words = [(tmp_path / "t.tar", "--out", out, "--classes", tmp_path / f"{k}.txt") for k in range(2)]
    assert [call(*words[0]), call(*words[0]), call(*words[1])] == [0, 0, 2]
    assert "other classes" in capsys.readouterr().err


def test_a_set_of_another_archive_is_not_complete_already(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tar(tmp_path / "small.tar", 1, 1)
    train_tar(tmp_path / "t.tar", 2, 2)
    assert call(tmp_path / "small.tar", "--out", out) == 0
    assert call(tmp_path / "t.tar", "--out", out) == 2
    assert "from another small.tar" in capsys.readouterr().err


def test_a_link_to_an_archive_may_have_the_index(tmp_path: Path) -> None:
    imagenet = pytest.importorskip("common.datasets.imagenet")
    for place in ("theirs", "ours", "more"):
        (tmp_path / place).mkdir()
    train_tar(tmp_path / "theirs" / "t.tar", 2, 2)
    for place in ("ours", "more"):
        (tmp_path / place / "t.tar").symlink_to(tmp_path / "theirs" / "t.tar")
    assert call(tmp_path / "ours" / "t.tar", "--mode", "index") == 0
    assert len(imagenet.archived(tmp_path / "ours" / "t.tar")) == 4
    with pytest.raises(UserError, match="no index"):
        imagenet.archived(tmp_path / "more" / "t.tar")
    assert call(tmp_path / "theirs" / "t.tar", "--mode", "index") == 0
    assert len(imagenet.archived(tmp_path / "more" / "t.tar")) == 4


def test_dry_run_of_validation_images_from_a_pipe(tmp_path: Path, out: Path) -> None:
    val_tar(tmp_path / "v.tar", 4)
    words = [sys.executable, str(SCRIPT), "-", "--out", str(out), "--dry-run", "--labels"]
    words.append(str(kaggle(tmp_path)))
    done = subprocess.run(words, input=(tmp_path / "v.tar").read_bytes(), capture_output=True)
    assert done.returncode == 0 and b"validation images" in done.stdout, done.stderr


def test_an_index_with_md5_is_not_read_in_blocks_of_512_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tar(tmp_path / "t.tar", 2, 2, lambda k: bytes([k % 251]) * 50_000)
    reads, readinto = [], tars.Hashed.readinto
    monkeypatch.setattr(
        tars.Hashed, "readinto", lambda self, buffer: reads.append(len(buffer)) or readinto(self, buffer)
    )
    assert call(tmp_path / "t.tar", "--mode", "index", "--verify", "md5") == 0
    assert 0 < len(reads) < 10


def test_a_drive_that_is_not_there_has_no_end_of_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)  # as Z:\ where there is none
    assert settings.space(Path("a/b"))[0] > 0


def test_commands_to_paste_are_quoted_for_the_shell_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command_line("python", "my tar") == "python 'my tar'"
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        said = command_line("python", r"C:\a\t.tar", r"C:\my tar")
    assert said == r'python C:\a\t.tar "C:\my tar"'


def test_the_batch_file_takes_brackets_in_names() -> None:
    lines = (ROOT / "util" / "unzip_imagenet_train.bat").read_bytes().split(b"\n")
    assert all(line.endswith(b"\r") for line in lines[:-1]) and lines[-1] == b""
    assert [line[0] for line in lines if b"%*" in line] == [ord("%")]  # in no block: a ) would end it
    assert b'set "HERE=%~dp0"\r' in lines  # the & in a folder's name is no end of the command


# ------------------------------------------------------------------------------- what people have of it

FORMS = {
    "dot and slash": "./n00000001.tar as n00000001",
    "macOS": "12 files of macOS are left out",
    "folder in front": "train/n00000001.tar as n00000001",
    "PAX": "3 names or sizes in headers of their own",
    "GNU": "3 names or sizes in headers of their own",
    "PAX of all": "9 images of 3 classes",
    "POSIX prefix": "3 archives are read",
    "inner gz": "3 classes are compressed",
    "outer gz": "9 images of 3 classes",
    "classes unpacked": "9 names are read as ImageNet's own",
    "endings": "n00000001_1.jpg as n00000001_1.JPEG",
    "Hugging Face": "n00000001_1_n00000001.JPEG as n00000001_1.JPEG",
    "Kaggle's zip": "other files are left out",
    "Kaggle's tar": "2 other files are left out",
}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_are_read_and_said(
    form: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    files = other_forms(folder, form)
    assert call(folder, "--out", out) == 0
    assert tree(out) == files
    said = capsys.readouterr().out
    assert FORMS[form] in said
    assert call(folder, "--out", out) == 0 and "complete already" in capsys.readouterr().out
    source = folder / "ILSVRC2012_img_train.tar"
    if form not in ("PAX", "GNU", "inner gz") and source.exists():
        assert call(source, "--mode", "index") == 0 and call(source, "--check") == 0
        assert len(imagenet_archive.open_index(source)[0]) == 9
    elif source.exists():
        capsys.readouterr()
        assert call(source, "--mode", "index") == 2 and "plain archives" in capsys.readouterr().err
    if form in ("dot and slash", "macOS", "Kaggle's tar"):  # from a pipe it is looked into, and read again
        source = next(folder.glob("*[rz]"))
        words = [sys.executable, str(SCRIPT), "-", "--out", str(tmp_path / "piped")]
        words += ["--labels", str(folder / "LOC_val_solution.csv")] * (form == "Kaggle's tar")
        done = subprocess.run(words, input=source.read_bytes(), capture_output=True)
        assert done.returncode == 0 and tree(tmp_path / "piped") == files, done.stderr


@pytest.mark.parametrize("form", ["Hugging Face", "Kaggle's zip", "classes unpacked", "inner gz"])
@needs_fork
def test_other_forms_after_a_kill(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "IMAGES_PER_NOTE", 2)
    files = other_forms(tmp_path, form)
    for event in range(25, 60, 9):
        killed_at(event, tmp_path, "--out", tmp_path / f"out{event}")
        assert call(tmp_path, "--out", tmp_path / f"out{event}") == 0
        assert tree(tmp_path / f"out{event}") == files


@pytest.mark.parametrize("part", [0, 2])
def test_the_part_that_is_cut_short_is_named(
    part: int, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_forms(tmp_path, "Hugging Face")
    file = tmp_path / f"train_images_{part}.tar.gz"
    file.write_bytes(file.read_bytes()[:-900])
    assert call(tmp_path, "--out", out) == 2
    said = capsys.readouterr().err
    assert str(file) in said and "cut short" in said
    (tmp_path / "train_images_1.tar.gz").unlink()
    assert call(tmp_path, "--out", out) == 2 and "is missing, a part" in capsys.readouterr().err


def test_a_damaged_image_in_a_zip_is_named(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_forms(tmp_path, "Kaggle's zip")
    file = next(tmp_path.glob("*.zip"))
    data = bytearray(file.read_bytes())
    data[200] ^= 255
    file.write_bytes(data)
    assert call(file, "--out", out) == 2
    assert f"{file}: Bad CRC-32 for file" in capsys.readouterr().err


def test_consume_takes_plain_archives_alone(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_forms(tmp_path, "macOS")
    data = (tmp_path / sources.TRAIN).read_bytes()
    words = ("--out", out, "--consume", "--md5", hashlib.md5(data).hexdigest())
    assert call(tmp_path / sources.TRAIN, *words) == 2
    assert "as plain as" in capsys.readouterr().err and (tmp_path / sources.TRAIN).read_bytes() == data


@pytest.mark.parametrize("path", ["../n00000001_1.JPEG", "/tmp/n00000001_1.JPEG", "a/../n00000001_1.JPEG"])
def test_names_in_pax_headers_and_zips_lead_nowhere_else(path: str, tmp_path: Path, out: Path) -> None:
    member = tarfile.TarInfo("n00000001_1.JPEG")
    member.pax_headers = {"path": path}
    inner = tar(None, [(member, b"x")], format=tarfile.PAX_FORMAT)
    tar(tmp_path / "t.tar", [(f"{wnid(0)}.tar", inner)])
    assert call(tmp_path / "t.tar", "--out", out) == 2
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("train/n00000001/n00000001_2.JPEG", b"x")
        archive.writestr(path, b"x")
    assert call(tmp_path / "z.zip", "--out", out) == 2
    assert set(tree(out)) <= {"train/.journal"}


BROKEN = {
    "page.tar": (b"<html>Please log in</html>" * 99, "no tar header but text, '<html>Please log in"),
    "pointer.tar": (b"version https://git-lfs.github.com/spec/v1\n", "no tar header but text"),
    "empty.tar": (b"", "empty, or zeros alone"),
    "zeros.tar": (bytes(9999), "empty, or zeros alone"),
    "t.tar.part": (bytes(9999), "a download that is not finished"),
    "t.tar.crdownload": (bytes(9999), "a download that is not finished"),
    "t.tar.xz": (b"\xfd7zXZ\0" * 99, "xz -dc"),
    "cut.zip": (b"PK\3\4" + bytes(999), "a zip that is cut short or damaged"),
    "cut.tar.gz": (gzip.compress(random.Random(0).randbytes(9999))[:99], "the compressed data is cut short"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_line_names_the_true_cause(
    name: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(BROKEN[name][0])
    assert call(tmp_path / name, "--out", out) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and BROKEN[name][1] in said and not out.exists()


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EROFS, "Read-only file system")])
def test_memory_and_disk_are_named_as_such(
    error: Exception,
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train_tar(tmp_path / "t.tar", 1, 1)

    def fail(*words: object) -> None:
        raise error

    monkeypatch.setattr(unpacking, "write", fail)
    assert call(tmp_path / "t.tar", "--out", out) == 2
    said = capsys.readouterr().err
    assert ("not enough memory" in said or "Read-only file system" in said) and said.count("\n") == 1
    monkeypatch.setattr(unzip, "run", fail)
    assert call("x") == 2 and "damaged" not in capsys.readouterr().err


def test_a_killed_worker_of_a_check_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*words: object) -> None:
        raise BrokenProcessPool("terminated abruptly")

    monkeypatch.setattr(unzip, "run", fail)
    assert call("x") == 2
    said = capsys.readouterr().err
    assert "a worker process was ended" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        [""],
        ["~nosuchuser/t.tar"],
        ["t.tar", "--out", ""],
        ["t.tar", "--out", "~nosuchuser"],
        ["t.tar", "--out="],
    ],
)
def test_paths_that_lead_nowhere_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("is empty" in said or "no such home folder" in said)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full and a shell")
@pytest.mark.parametrize("where", ["| head -1", ">/dev/full", ">&-", "2>&-", "2>&1 | true"])
def test_printing_never_fails(where: str, tmp_path: Path) -> None:
    command = f"{command_line(sys.executable, str(SCRIPT))} {where}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
