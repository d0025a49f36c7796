"""Photos: decoding, the low-resolution version, the split, batches, listings, the download, the stand-in."""

import functools
import hashlib
import http.server
import importlib.util
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps
from torchvision.datasets import Imagenette

import gan_upscale
from common.cli import UserError, one_line
from common.datasets import degradation, imagenet, imagenet_archive, photo_batches, photos
from common.datasets.dead_leaves import dead_leaves
from common.datasets.images import resize_shorter
from util.imagenet.indexing import write_index

SHARED = Path(__file__).parents[2] / "shared"


def smooth_noise(seed: int, width: int = 300, height: int = 260) -> Image.Image:
    """Smooth noise, so that JPEG keeps it."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def folder_of(root: Path, count: int) -> Path:
    for k in range(count):
        path = root / f"{k % 3}" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth_noise(k).save(path)
    return root


def source_of(root: Path) -> photos.Source:
    return photos.Source(imagenet.listing(root))


def set_pool(monkeypatch: pytest.MonkeyPatch, *, size: int, uses: int) -> None:
    """No set fits into memory; of 1 and 1, each image is cropped once, in the order of the epochs."""
    monkeypatch.setattr(photo_batches, "MEMORY", 0)
    monkeypatch.setattr(photo_batches, "POOL", size)
    monkeypatch.setattr(photo_batches, "USES", uses)


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the data, the cache or the environment of the machine."""
    monkeypatch.setattr(imagenet.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


# ------------------------------------------------------------------------------------ standard images


@pytest.mark.skipif(not (SHARED / "tools/measure_upscaling.py").exists(), reason="needs the scoring tool")
def test_standard_images_are_those_of_the_scoring_tool() -> None:
    spec = importlib.util.spec_from_file_location("tool", SHARED / "tools/measure_upscaling.py")
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    files = tool.photos(SHARED / "data/ImageNet/val")
    test = photos.find(str(SHARED / "data")).test
    assert [Path(item) for item in test.items] == [file.resolve() for file in files]
    assert not any(Image.open(file).getexif().get(274, 1) > 1 for file in files)  # none is turned
    images = photos.Source(test.items[::12]).standard_images()
    assert torch.equal(images, torch.stack([tool.high(file) for file in files[::12]]))
    assert torch.equal(degradation.downscale(images), torch.stack([tool.low(hr) for hr in images]))


# -------------------------------------------------------------------------------------- decoding


def test_read_decodes_every_kind_of_photo(tmp_path: Path) -> None:
    image = smooth_noise(0)
    kinds = {
        "grey.jpg": image.convert("L"),
        "cmyk.jpg": image.convert("CMYK"),
        "palette.png": image.quantize(64),
        "png.JPEG": image,
        "one.bmp": image.convert("1"),
    }
    for name, original in kinds.items():
        original.save(tmp_path / name, "PNG" if name == "png.JPEG" else None)
        got, wanted = photos.read(tmp_path / name), original.convert("RGB")
        assert (got.mode, got.size) == ("RGB", image.size)
        assert np.abs(np.asarray(got, float) - np.asarray(wanted, float)).mean() < 4, name


def test_read_scales_16_bits_instead_of_clipping(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 300 * 260).reshape(260, 300).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    got = np.asarray(photos.read(tmp_path / "deep.png"))
    assert np.abs(got[..., 0] - levels / 257).max() <= 0.5


def test_read_puts_white_behind_what_is_transparent(tmp_path: Path) -> None:
    image = Image.new("RGBA", (30, 30), (200, 0, 0, 255))
    image.putpixel((3, 4), (0, 0, 0, 0))
    image.save(tmp_path / "alpha.png")
    got = photos.read(tmp_path / "alpha.png")
    assert (got.mode, got.getpixel((3, 4)), got.getpixel((0, 0))) == ("RGB", (255, 255, 255), (200, 0, 0))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_read_turns_upright_and_survives_broken_exif(tmp_path: Path) -> None:
    image, exif = smooth_noise(0), Image.Exif()
    for orientation in range(1, 9):
        exif[274] = orientation
        image.save(tmp_path / "turned.png", exif=exif)
        turned = ImageOps.exif_transpose(Image.open(tmp_path / "turned.png")).convert("RGB")
        assert np.array_equal(photos.read(tmp_path / "turned.png"), turned), orientation
    exif[271] = "maker"
    whole = exif.tobytes()
    assert whole.count(b"\x01\x0f\x00\x02") == 1
    broken = whole.replace(b"\x01\x0f\x00\x02", b"\x01\x00\x00\x02")  # a width given as text
    for harm in (broken, whole[:20], b"Exif\x00\x00nonsense"):
        image.save(tmp_path / "broken.jpg", exif=harm)
        photos.read(tmp_path / "broken.jpg")


def test_a_large_jpeg_costs_a_part_of_its_decoding_and_looks_the_same(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (55, 80, 3), np.uint8)
    image = Image.fromarray(noise).resize((1600, 1100), Image.Resampling.BICUBIC)
    image.save(tmp_path / "large.jpg", quality=92)
    image.resize((1400, 1000)).save(tmp_path / "middle.jpg", quality=92)
    assert photos.read_to_train(tmp_path / "large.jpg").size == (800, 550)
    assert photos.read_to_train(tmp_path / "middle.jpg").size == (1400, 1000)
    whole, reduced = (
        np.asarray(resize_shorter(read(tmp_path / "large.jpg"), 256), float)
        for read in (photos.read, photos.read_to_train)
    )
    assert np.sqrt(np.square(whole - reduced).mean()) < 1 < 10 < whole.std()


def corrupt_files(root: Path) -> list[Path]:
    smooth_noise(0).save(root / "whole.jpg")
    smooth_noise(0).save(root / "whole.png")
    (root / "cut.jpg").write_bytes((root / "whole.jpg").read_bytes()[:2000])
    (root / "cut.png").write_bytes((root / "whole.png").read_bytes()[:5000])
    (root / "text.jpg").write_text("not an image")
    (root / "empty.jpg").touch()
    (root / "whole.jpg").unlink()
    (root / "whole.png").unlink()
    return sorted(root.iterdir())


def test_a_line_is_no_photo(tmp_path: Path) -> None:
    """At a shorter side of 256 it would take gigabytes."""
    Image.new("RGB", (20_000, 2)).save(tmp_path / "line.png")
    with pytest.raises(photos.Unreadable, match="20000x2"):
        photos.read(tmp_path / "line.png")


def test_read_names_a_corrupt_file(tmp_path: Path) -> None:
    root = tmp_path / "corrupt"
    root.mkdir()
    for file in [*corrupt_files(root), root / "missing.jpg", root]:
        with pytest.raises(photos.Unreadable, match=file.name):
            photos.read(file)


def test_too_little_memory_is_never_the_photos_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "mine", 4)

    def load(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", load)
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    for read in (
        lambda: photos.read(root / "0/0.jpg"),
        lambda: source_of(root).standard_images(),
        lambda: photo_batches.batches(source_of(root), batch=2, seed=0, workers=1),
    ):
        with pytest.raises(MemoryError):
            read()


def test_avif_is_read(tmp_path: Path) -> None:
    for k in range(4):
        smooth_noise(k).save(tmp_path / f"{k}.avif")
    data = photos.find(str(tmp_path))
    assert sum(map(len, (data.train, data.validation, data.test))) == 4
    difference = np.asarray(photos.read(tmp_path / "0.avif"), float) - np.asarray(smooth_noise(0), float)
    assert np.abs(difference).mean() < 4
    assert next(photo_batches.batches(data.train, batch=2, seed=0, workers=1)(0)).shape == (2, 3, 224, 224)


# --------------------------------------------------------------------------------- finding, split


def parts(data: photos.Photos) -> list[set[str]]:
    return [set(source.items) for source in (data.train, data.validation, data.test)]


def test_a_folder_is_split_by_path_and_adding_photos_moves_none_to_the_test(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for k in range(200):
        file = root / f"{k % 7}" / f"{k}.JPG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (root / "notes.txt").touch()
    (root / "._1.jpg").touch()  # what macOS leaves next to a file
    data = photos.find(str(root))
    train, validation, test = parts(data)
    assert len(train | validation | test) == 200 == len(train) + len(validation) + len(test)
    assert 8 <= len(test) <= 35
    assert 1 <= len(validation) <= 32
    for k in range(200, 293):
        (root / f"{k}.jpg").touch()
    train_now, validation_now, test_now = parts(photos.find(str(root)))
    assert test <= test_now
    assert train | validation <= train_now | validation_now
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    assert {Path(item).name for item in photos.find(str(moved)).test.items} == {
        Path(p).name for p in test_now
    }


def test_imagenets_layout_keeps_its_own_split(tmp_path: Path) -> None:
    for split, wnid, k in itertools.product(("train", "val"), ("n01", "n02"), range(60)):
        file = tmp_path / "set/ImageNet" / split / wnid / f"{wnid}_{k:03}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for name in ("set/ImageNet", "set"):
        data = photos.find(str(tmp_path / name))
        train, validation, test = parts(data)
        assert not train & validation
        assert len(train | validation) == 120 and all("/train/" in item for item in train | validation)
        assert len(test) == 100 and all("/val/" in item for item in test)
        assert "100 of 120" in data.note
    assert list(data.test.items) == sorted(test)
    assert photos.find(str(tmp_path / "set"), limit=500).note == ""


def test_more_places_are_trained_on_and_the_first_alone_is_scored_on(tmp_path: Path) -> None:
    for name in ("set/train/n01", "set/val/n01", "mine/a", "theirs"):
        for k in range(40):
            file = tmp_path / name / f"{k:02}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    alone, joined = (
        photos.find(*(str(tmp_path / name) for name in names))
        for names in (["set"], ["set", "mine", "theirs"])
    )
    assert joined.name == "set + mine + theirs"
    assert parts(joined)[1:] == parts(alone)[1:]
    more = {str(file) for name in ("mine/a", "theirs") for file in (tmp_path / name).iterdir()}
    assert parts(joined)[0] == parts(alone)[0] | more and len(joined.train) == len(alone.train) + 80
    assert joined.validation.reserve is joined.train
    for places, words in [
        (("set", "."), "shares photos with"),
        (("mine", "theirs", "mine/a"), "shares photos with"),
        (("set", "missing"), "missing"),
        (("set", "builtin"), "stand alone"),
    ]:
        with pytest.raises(UserError, match=f"^--data.*{words}"):
            photos.find(*(str(tmp_path / place) if place != "builtin" else place for place in places))


def test_what_cannot_be_a_set_of_photos_is_refused_with_a_remedy(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    for data in (tmp_path / "missing", one):
        with pytest.raises(UserError, match=f"{data.name}.*; name a"):
            photos.find(str(data))
    smooth_noise(0).save(one / "0.jpg")
    for data in (one, one / "0.jpg"):
        with pytest.raises(UserError, match=f"{data.name}.*; name a"):
            photos.find(str(data))
    for k in (1, 2):
        smooth_noise(k).save(one / f"{k}.jpg")
    assert [len(part) for part in parts(photos.find(str(one)))] == [1, 1, 1]


@pytest.mark.parametrize("path", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_tree_is_trained_on_train_and_tested_on_val(tmp_path: Path, path: str) -> None:
    tree = tmp_path / "ILSVRC/Data/CLS-LOC"
    names = [f"train/n0{k % 3}/n0{k % 3}_{k}.JPEG" for k in range(9)]
    names += [f"{split}/ILSVRC2012_{split}_0000000{k}.JPEG" for split in ("val", "test") for k in range(4)]
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    data = photos.find(str(tmp_path / path))
    train, validation, test = parts(data)
    assert {str(Path(item).relative_to(tree)) for item in train | validation} == set(names[:9])
    assert {str(Path(item).relative_to(tree)) for item in test} == set(names[9:13])
    shutil.rmtree(tree / "val")
    data = photos.find(str(tmp_path / path))
    assert all("/train/" in item for part in parts(data) for item in part)
    assert "about a tenth" in data.note


def test_an_archive_of_another_kind_is_named_for_what_it_is(tmp_path: Path) -> None:
    for name, mode in (("train_images_0.tar.gz", "w:gz"), ("x.tar", "w:xz")):
        with tarfile.open(tmp_path / name, mode):
            pass
        with pytest.raises(UserError, match=rf"{name} is a (gzip|xz) archive.*unzip_imagenet .*{name}"):
            photos.find(str(tmp_path / name))
    with zipfile.ZipFile(tmp_path / "challenge.zip", "w") as file:
        file.writestr("ILSVRC/Data/CLS-LOC/train/n01/n01_1.JPEG", b"")
    with pytest.raises(UserError, match=r"challenge.zip is a zip archive: unpack it.*unzip_imagenet"):
        photos.find(str(tmp_path / "challenge.zip"))
    with pytest.raises(UserError, match=r"holds no photos .*left out: 3 archives \(unpack .*unzip_imagenet"):
        photos.find(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UserError, match=r"pipe\.tar is neither a folder nor a file"):
        photos.find(str(tmp_path / "pipe.tar"))


def test_an_unknown_home_is_one_line_or_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--data ~nosuchuser/x: there is no such home"):
        photos.find("~nosuchuser/x")
    monkeypatch.setenv("IMAGENET_DIR", "~nosuchuser/x")
    with pytest.raises(UserError, match=r"^\$IMAGENET_DIR ~nosuchuser/x: there is no such home"):
        photos.find("auto")

    def os_cache(project: str) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(imagenet.pooch, "os_cache", os_cache)
    assert len(imagenet.listing(folder_of(tmp_path / "mine", 3))) == 3


def test_auto_takes_the_users_imagenet_before_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(Path("data/ImageNet/train"), 6)
    folder_of(Path("data/ImageNet/val"), 3)
    assert photos.find("auto").name == "ImageNet"
    monkeypatch.setenv("IMAGENET_DIR", str(folder_of(tmp_path / "other", 6)))
    assert photos.find("auto").name == "other"
    monkeypatch.setenv("IMAGENET_DIR", str(tmp_path / "typo"))
    with pytest.raises(UserError, match="typo"):
        photos.find("auto")


def test_auto_passes_over_an_empty_imagenet_folder_and_says_so(tmp_path: Path) -> None:
    Path("data/ImageNet/train").mkdir(parents=True)
    data = photos.find("auto", download=False)
    if not Path("/data/datasets/ImageNet").exists():
        assert data.builtin and "no photos in $IMAGENET_DIR, data/ImageNet" in data.note
    with pytest.raises(UserError, match=r"data/ImageNet holds no photos .*; name a"):
        photos.find("data/ImageNet")


# ----------------------------------------------------------------------- archives, prepared folders


def archive_of(folder: Path, tar: Path, part: str | None = None) -> Path:
    """A tar of tars of `folder/{wnid}/*.JPEG`, one for each class, as ImageNet's is, and its index."""
    wnids, rows = sorted(path.name for path in folder.iterdir()), []
    with tarfile.open(tar, "w") as outer:
        for k, wnid in enumerate(wnids):
            with tarfile.open(tar.with_name("inner"), "w") as inner:
                for file in (folder / wnid).iterdir():
                    inner.add(file, file.name)
            outer.add(tar.with_name("inner"), f"{wnid}.tar")
            begin = outer.offset - -(-tar.with_name("inner").stat().st_size // 512) * 512
            with tarfile.open(tar.with_name("inner")) as inner:
                for member in inner:
                    number = int(Path(member.name).stem.rsplit("_", 1)[1])
                    rows.append((begin + member.offset_data, member.size, k, number))
    tar.with_name("inner").unlink()
    rows.sort(key=lambda row: row[2:])
    about = {"archive_bytes": tar.stat().st_size, "archive_mtime_ns": tar.stat().st_mtime_ns, "md5": None}
    about |= {"split": folder.name, "wnids": wnids, "part": part}
    write_index(tar, np.array(rows, imagenet_archive.ROW), about)
    return tar


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """ImageNet's layout; the numbers of training images have 1 to 5 digits, so order is put to the test."""
    numbers = [1, 2, 9, 10, 11, 100, 999, 1000, 12345, 99999]
    for k, (wnid, number) in enumerate(itertools.product(("n00000001", "n00000007"), numbers)):
        for split, name in (("train", f"{wnid}_{number}"), ("val", f"ILSVRC2012_val_{k:08}")):
            file = tmp_path / "unpacked" / split / wnid / f"{name}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            smooth_noise(k, 260 + k, 256).save(file)
    return tmp_path / "unpacked"


@pytest.fixture
def packed(unpacked: Path, tmp_path: Path) -> Path:
    """The same photos, in archives with their indexes."""
    (tmp_path / "packed").mkdir()
    for split in ("train", "val"):
        archive_of(unpacked / split, tmp_path / f"packed/ILSVRC2012_img_{split}.tar")
    return tmp_path / "packed"


def below(source: photos.Source) -> list[str]:
    return ["/".join(str(item).split("/")[-2:]) for item in source.items]


@pytest.mark.parametrize("memory", [1e9, 0])
def test_training_from_an_archive_is_the_same_as_from_the_folder(
    unpacked: Path, packed: Path, monkeypatch: pytest.MonkeyPatch, memory: float
) -> None:
    set_pool(monkeypatch, size=2048, uses=4)
    monkeypatch.setattr(photo_batches, "MEMORY", memory)
    folder, archive = photos.find(str(unpacked)), photos.find(str(packed))
    for part in ("train", "validation", "test"):
        files, members = getattr(folder, part), getattr(archive, part)
        assert below(files) == below(members)
        assert torch.equal(files.standard_images(), members.standard_images())
    assert len(archive.train) + len(archive.validation) == len(archive.test) == 20
    batches = [photo_batches.batches(data.train, batch=6, seed=0, workers=2) for data in (folder, archive)]
    pairs = zip(*(itertools.islice(start(0), 12) for start in batches), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "the handle is opened already: each worker needs its own"
    assert not archive.train.skipped
    assert folder.train.fingerprint() == photos.find(str(unpacked)).train.fingerprint()
    prints = {source.fingerprint() for source in (archive.train, archive.validation, folder.train)}
    assert len(prints | {archive.train.first(3).fingerprint()}) == 4


def test_a_worker_gets_a_few_bytes_for_each_photo(packed: Path) -> None:
    source = photos.find(str(packed)).train
    source.items[0].read()
    sent = pickle.dumps(source)
    assert len(sent) < 1500 + imagenet_archive.ROW.itemsize * len(source), "rows, and where the archive is"
    again = pickle.loads(sent)
    assert below(again) == below(source)
    assert np.array_equal(again.open(again.items[3]), source.open(source.items[3]))


def test_the_training_archive_finds_its_test_photos_next_to_it(unpacked: Path, packed: Path) -> None:
    tar = packed / "ILSVRC2012_img_train.tar"
    both = photos.find(str(tar))
    assert (both.name, len(both.test), both.note) == (tar.name, 20, "")
    val = packed / "ILSVRC2012_img_val.tar"
    val.unlink()
    alone = photos.find(str(tar))
    assert len(alone.train) + len(alone.validation) + len(alone.test) == 20 and 1 <= len(alone.test) <= 5
    assert not set(below(alone.train)) & set(below(alone.test))
    assert "No validation photos" in alone.note
    assert below(photos.find(str(unpacked / "train")).test) == below(alone.test)
    assert below(photos.find(str(packed)).test) == below(alone.test)
    (unpacked / "val").rename(packed / "val")  # one of each kind
    assert len(photos.find(str(tar)).test) == len(photos.find(str(packed)).test) == 20


def test_an_index_of_an_earlier_version_stays_valid(packed: Path) -> None:
    description = packed / "ILSVRC2012_img_train.tar.index.json"
    about = json.loads(description.read_text())
    about["pictures"] = about.pop("images")
    description.write_text(json.dumps(about))
    assert len(photos.find(str(packed)).test) == 20


def test_gan_upscale_trains_from_the_archive_and_its_note_reaches_screen_and_results(
    unpacked: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = archive_of(unpacked / "train", packed / "ILSVRC2012_img_train.tar", part="2 classes")
    config = gan_upscale.Config(data=(str(tar),), quick=True, steps=4, device="cpu")
    assert gan_upscale.main(config) == 0
    data = json.loads(Path("figs/quick/gan_upscale.json").read_text())
    assert data["data"]["name"] == tar.name and data["data"]["count"] == 6
    assert "a part of ImageNet: 2 classes" in data["data"]["note"]
    with Image.open("figs/quick/GAN_upscaling_final.png") as figure:
        assert "a part of ImageNet: 2 classes" in figure.info["Description"]
    assert "a part of ImageNet: 2 classes" in capsys.readouterr().out
    assert all(0 <= phase["data_wait"] < 1 for phase in data["trained"]["phases"].values())


def test_held_back_photos_of_an_archive_are_a_tenth_and_stay_so(tmp_path: Path) -> None:
    rows = np.zeros(5000, imagenet_archive.ROW)
    rows["class"], rows["number"] = np.divmod(np.arange(5000), 500)
    tar = tmp_path / "X.tar"
    tar.touch()
    wnids = [f"n{k:08}" for k in range(10)]
    about = {"archive_bytes": 0, "archive_mtime_ns": tar.stat().st_mtime_ns, "md5": None}
    about |= {"split": "train", "wnids": wnids, "part": None}

    def held_back(rows: np.ndarray) -> set[str]:
        write_index(tar, rows, about)
        return set(below(photos.find(str(tar), limit=10_000).test))

    test = held_back(rows)
    assert 400 < len(test) < 600
    assert held_back(rows[::2]) == test & {
        f"{wnids[row['class']]}/{wnids[row['class']]}_{row['number']}.JPEG" for row in rows[::2]
    }


def test_an_archive_that_cannot_be_used_is_refused_with_the_command(packed: Path, tmp_path: Path) -> None:
    train, val = (packed / f"ILSVRC2012_img_{split}.tar" for split in ("train", "val"))
    with pytest.raises(UserError, match="validation photos; name the training"):
        photos.find(str(val))
    (packed / "ILSVRC2012_img_val.tar.index.json").unlink()
    for data in (packed, train):
        with pytest.raises(UserError, match=r"img_val.tar has no index.*util/unzip_imagenet .*val.tar"):
            photos.find(str(data))
    with train.open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"img_train.tar has changed.*util/unzip_imagenet"):
        photos.find(str(train))
    for name in ("missing.tar", "notes.txt"):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(UserError, match=f"{name}.*; name a"):
            photos.find(str(tmp_path / name))


def test_a_damaged_photo_inside_an_archive_is_named_counted_and_replaced(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = packed / "ILSVRC2012_img_train.tar"
    items = photos.find(str(tar)).train.items
    times = tar.stat()
    with tar.open("r+b") as file:
        file.seek(items[5].offset)
        file.write(b"nothing" * 20)
    os.utime(tar, ns=(times.st_atime_ns, times.st_mtime_ns))
    set_pool(monkeypatch, size=1, uses=1)
    source = photos.find(str(tar)).train
    assert next(photo_batches.batches(source, batch=6, seed=0, workers=2)(3)).shape[0] == 6
    list(itertools.islice(photo_batches.batches(source, batch=6, seed=0, workers=0)(0), 4))
    assert list(source.skipped) == [str(items[5])] and str(items[5]).startswith(f"{tar}/n0000000")
    assert capsys.readouterr().err.count(f"skipped {tar}/n0000000") == 1


def test_auto_takes_archives_and_a_lost_index_is_told(packed: Path) -> None:
    Path("data").mkdir()
    packed.rename("data/ImageNet")
    data = photos.find("auto")
    assert data.name == "ImageNet" and isinstance(data.train.items[0], imagenet.Member)
    Path("data/ImageNet/ILSVRC2012_img_train.tar.index.npy").unlink()
    with pytest.raises(UserError, match="has no index"):
        photos.find("auto")


def test_an_extraction_that_was_interrupted_is_refused_with_its_command(unpacked: Path) -> None:
    Path("data").mkdir()
    unpacked.rename("data/ImageNet")
    line = json.dumps({"command": "python util/unzip_imagenet X.tar --out data/ImageNet"})
    for split in ("train", "val"):
        journal = Path("data/ImageNet", split, imagenet_archive.JOURNAL)
        journal.write_text(line + "\n")
        for data in ("auto", "data/ImageNet", f"data/ImageNet/{split}"):
            with pytest.raises(UserError, match=rf"{split} is not complete.*X\.tar --out data/ImageNet"):
                photos.find(data)
        journal.unlink()
    assert photos.find("auto").note == ""


def test_what_a_set_is_less_than_imagenet_stands_in_the_note(unpacked: Path, packed: Path) -> None:
    whole = {"mode": "extract", "size": None, "quality": None, "part": None}
    whole |= {"classes": 3, "images": 9, "bytes": 9_000}
    shrunk = whole | {"mode": "shrink", "size": 256, "quality": 90, "pictures": 9}
    del shrunk["images"]  # as earlier versions wrote it
    train, val = (unpacked / split / imagenet_archive.COMPLETE for split in ("train", "val"))
    train.write_text(json.dumps(whole))
    assert photos.find(str(unpacked)).note == ""
    train.write_text(json.dumps(shrunk))
    note = photos.find(str(unpacked)).note
    assert note == "Training photos are shrunk to a shorter side of 256 (JPEG quality 90)."
    val.write_text(json.dumps(shrunk))
    assert photos.find(str(unpacked)).note == note.replace("Training", "All")
    assert "shrunk" in photos.find(str(unpacked / "train")).note
    (unpacked / "val").rename(unpacked.parent / "away")
    alone = photos.find(str(unpacked))
    assert alone.name == "unpacked" and "shrunk" in alone.note and "No validation photos" in alone.note
    tar = packed / "ILSVRC2012_img_train.tar"
    (unpacked / "train" / imagenet_archive.COMPLETE).unlink()
    archive_of(unpacked / "train", tar, part="2 classes")
    note = photos.find(str(tar)).note
    assert note == "Training photos are a part of ImageNet: 2 classes."
    assert "\n" not in note


# --------------------------------------------------------------------------------------- batches


def test_a_batch_follows_from_seed_and_step_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(folder_of(tmp_path / "mine", 10))
    make = functools.partial(photo_batches.batches, source, batch=4, seed=5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    kept = list(itertools.islice(make(workers=2)(0), 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert kept[0].shape == (4, 3, 224, 224) and kept[0].dtype == torch.uint8
    assert kept[0].is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], next(make(seed=6, workers=0)(0)))
    assert torch.equal(kept[5], next(make(workers=0)(5)))  # a resumed run
    only = photos.Source(source.items[:1])
    one = [next(photo_batches.batches(only, batch=4, seed=seed, workers=0)(0)) for seed in (5, 6)]
    assert not torch.equal(*one)  # the crops too depend on the seed, not only the order
    for size, uses in ((1, 1), (8, 4)):
        set_pool(monkeypatch, size=size, uses=uses)
        every = kept if size == 1 else list(itertools.islice(make(workers=0)(0), 8))
        for workers, first in ((0, 0), (2, 3), (1, 1), (2, 5)):
            streamed = itertools.islice(make(workers=workers)(first), 3)
            assert all(torch.equal(a, b) for a, b in zip(every[first:], streamed, strict=False))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_image_comes_before_any_comes_again_turned_at_random(tmp_path: Path) -> None:
    for k in range(6):  # image k: red is k, green grows to the right, blue downwards
        pixels = np.zeros((256, 256, 3), np.uint8)
        pixels[..., 0] = k
        pixels[..., 1], pixels[..., 2] = np.meshgrid(np.arange(256), np.arange(256))
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    start = photo_batches.batches(source_of(tmp_path), size=28, batch=4, seed=0, workers=0)
    crops = torch.cat(list(itertools.islice(start(0), 60)))  # 40 epochs
    shown = crops[:, 0, 0, 0].reshape(40, 6)
    assert torch.equal(shown.sort(1).values, torch.arange(6).expand(40, 6).to(torch.uint8))
    assert len({tuple(row.tolist()) for row in shown}) > 30  # another order each time
    right = crops[:, :, 0, 1].int() - crops[:, :, 0, 0].int()  # what changes one pixel to the right
    assert {tuple(row.tolist()[1:]) for row in right} == {(1, 0), (-1, 0), (0, 1), (0, -1)}
    low, high = crops[:, 1:].amin((1, 2, 3)), crops[:, 1:].amax((1, 2, 3))
    assert low.min() < 10 and high.max() > 245  # up to the edges


def test_a_large_set_is_cropped_from_a_pool_that_is_renewed_little_by_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(20):
        Image.new("RGB", (256, 256), (k, k, k)).save(tmp_path / f"{k:02}.png")
    set_pool(monkeypatch, size=12, uses=4)
    opened: list[str] = []
    source = photos.Source(
        imagenet.listing(tmp_path), lambda path: opened.append(Path(path).stem) or photos.read(path)
    )
    start = photo_batches.batches(source, size=28, batch=6, seed=0, workers=0)
    shown, read = [], []
    for crops in itertools.islice(start(0), 80):  # 480 crops: 40 passes, 6 epochs of 4 uses
        shown += crops[:, 0, 0, 0].tolist()
        read.append(len(opened))
    row = [int(name) for name in opened]
    assert all(sorted(row[i : i + 20]) == list(range(20)) for i in (0, 20, 40, 60, 80, 100)), "epochs"
    for p in range(40):  # each once in a pass; 3 of the 12 are new, and 9 have been there
        assert sorted(shown[12 * p : 12 * p + 12]) == sorted(row[3 * p : 3 * p + 12])
    assert max(b - a for a, b in itertools.pairwise(read)) <= 2, "no step decodes many"
    opened.clear()
    next(start(79))
    assert not opened, "what the iteration before has decoded is not decoded again"
    assert next(start(0)).shape == (6, 3, 28, 28) and len(opened) == 14  # and two more


def test_a_corrupt_photo_is_named_once_counted_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_of(tmp_path / "mine", 4)
    (root / "bad").mkdir()
    bad = corrupt_files(root / "bad")
    results = []
    set_pool(monkeypatch, size=1, uses=1)
    for memory in (1e9, 0):
        monkeypatch.setattr(photo_batches, "MEMORY", memory)
        source = source_of(root)
        start = photo_batches.batches(source, batch=8, seed=0, workers=2)
        results.append(list(itertools.islice(start(0), 4)))
        assert set(source.skipped) == {str(file) for file in bad}
        error = capsys.readouterr().err
        assert all(error.count(f"skipped {file}") == 1 for file in bad)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert len(source_of(root).standard_images()) == 4


def test_what_is_scored_and_cannot_be_read_is_replaced_by_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(1, 13):
        smooth_noise(k).save(tmp_path / f"{k:02}.jpg")
    (tmp_path / "00.jpg").write_bytes((tmp_path / "01.jpg").read_bytes()[:2000])
    data = photos.find(str(tmp_path))
    before = parts(data)
    assert before[1] == {str(tmp_path / "00.jpg")}, "the first of the list is the validation set"
    assert len(data.validation.standard_images()) == 1
    train, validation, test = parts(data)
    assert not train & validation and train | validation == before[0] and test == before[2]
    assert list(data.validation.skipped) == [str(tmp_path / "00.jpg")]
    error = capsys.readouterr().err
    assert "skipped" in error and f"in its place: {validation.pop()}" in error
    again = data.validation.standard_images()
    assert torch.equal(again, photos.Source(data.validation.items).standard_images())
    assert not capsys.readouterr().err, "nothing is read or replaced twice"

    # Of those that are scored, the next come from the others of the same part
    for k in range(12):
        for split in ("train", "val"):
            (tmp_path / "set" / split).mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "05.jpg", tmp_path / "set" / split / f"{k:02}.jpg")
    for k in (0, 2):
        (tmp_path / f"set/val/{k:02}.jpg").write_bytes(b"")
    data = photos.find(str(tmp_path / "set"), limit=4)
    assert [Path(item).stem for item in data.test.items] == ["00", "04", "07", "11"]
    assert len(data.test.standard_images()) == 4
    assert [Path(item).stem for item in data.test.items] == ["01", "04", "07", "11"]
    whole = photos.find(str(tmp_path / "set"))
    assert len(whole.test.standard_images()) == len(whole.test) == 10, "never one of the training photos"
    assert len(whole.test.skipped) == 2 and len(parts(whole)[0] | parts(whole)[1]) == 12


@pytest.mark.parametrize("memory", [1e9, 0])
def test_a_set_without_a_usable_photo_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: float
) -> None:
    root = tmp_path / "bad"
    root.mkdir()
    corrupt_files(root)
    monkeypatch.setattr(photo_batches, "MEMORY", memory)
    with pytest.raises(UserError, match=r"no photo can be used.*\.jpg"):
        next(photo_batches.batches(source_of(root), batch=2, seed=0, workers=1)(0))
    with pytest.raises(UserError, match="no photo can be used"):
        source_of(root).standard_images()


def test_small_photos_are_scaled_up_and_panoramas_fit(tmp_path: Path) -> None:
    smooth_noise(0, 40, 30).save(tmp_path / "small.png")
    smooth_noise(1, 300, 3).save(tmp_path / "panorama.png")
    smooth_noise(2).save(tmp_path / "fine.png")
    source = source_of(tmp_path)
    assert next(photo_batches.batches(source, batch=4, seed=0, workers=0)(0)).shape == (4, 3, 224, 224)
    assert not source.skipped
    for pixels in photo_batches.in_order(source, range(3), workers=0):
        assert min(pixels.shape[:2]) == 256 and max(pixels.shape[:2]) <= 512
    with pytest.raises(ValueError, match="fit"):
        photo_batches.batches(source, size=280, batch=1, seed=0)


def test_training_scales_photos_as_the_score_does(tmp_path: Path) -> None:
    for width, height in ((500, 375), (333, 1000), (120, 80)):
        noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        image = Image.fromarray(noise)
        image.save(tmp_path / "one.png")
        pixels = photo_batches.decode(photos.Source([tmp_path / "one.png"]), 0)
        if height > 2 * width:
            image = image.crop((0, (height - 2 * width) // 2, width, (height - 2 * width) // 2 + 2 * width))
        wanted = np.asarray(resize_shorter(image, 256), int)
        difference = np.abs(pixels - wanted)
        assert difference.max() <= 2 and difference.mean() < 0.1
        assert min(pixels.shape[:2]) == 256 and pixels.flags.c_contiguous


def endless_reading(root: Path, out: Path) -> None:
    """Reads for ever, in a process of its own; `out` is told the workers' ids."""
    crops = photo_batches.batches(source_of(root), batch=4, seed=0, workers=2)(0)
    for _ in crops:
        out.write_text(" ".join(str(child.pid) for child in multiprocessing.active_children()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_workers_end_with_the_process_that_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    set_pool(monkeypatch, size=1, uses=1)
    root, out = folder_of(tmp_path / "mine", 6), tmp_path / "workers"
    main = multiprocessing.get_context("fork").Process(target=endless_reading, args=(root, out))
    main.start()
    assert eventually(lambda: out.exists() and len(out.read_text().split()) == 2)
    workers = [int(word) for word in out.read_text().split()]
    assert all(is_running(worker) for worker in workers)
    os.kill(main.pid, getattr(signal, how))
    main.join()
    assert eventually(lambda: not any(is_running(worker) for worker in workers))


def test_a_worker_that_is_killed_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_pool(monkeypatch, size=1, uses=1)
    start = photo_batches.batches(source_of(folder_of(tmp_path / "mine", 6)), batch=4, seed=0, workers=2)
    with pytest.raises(SystemExit) as exit_, one_line():
        for crops in start(0):
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            assert crops.shape == (4, 3, 224, 224)
    error = capsys.readouterr().err
    assert exit_.value.code == 1 and error.count("\n") == 1
    assert "a worker that reads photos was killed, perhaps for memory; close other programs" in error


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return done


# --------------------------------------------------------------------------------------- listing


def test_a_listing_comes_from_the_cache_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagenet, "WORTH_CACHING", 1)
    root = tmp_path / "many"
    for k in range(20):
        file = root / f"n{k % 4}" / f"{k}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    (root / "n1/one.heic").touch()

    def age() -> None:  # a folder that was changed just now is not trusted
        for folder in (root, *root.iterdir()):
            os.utime(folder, (1e9, 1e9 + len(list(folder.iterdir()))))

    scans = []
    scan = imagenet.ImageFiles
    monkeypatch.setattr(imagenet, "ImageFiles", lambda path: scans.append(path) or scan(path))
    assert len(imagenet.listing(root)) == 20 and not list(tmp_path.rglob("*.npz"))
    age()
    first = imagenet.listing(root)
    again = imagenet.listing(root)
    assert len(scans) == 2
    assert list(first) == list(again) == sorted(str(file) for file in root.rglob("*.JPEG"))
    assert np.array_equal(first.hashes(), again.hashes())
    assert "1 HEIC file" in first.left_out and first.left_out == again.left_out
    name = str(Path(again[7]).relative_to(root))
    wanted = hashlib.blake2b(name.encode(), digest_size=8).digest()
    assert again.hashes()[7] == int.from_bytes(wanted, "little")
    (root / "n2" / "new.png").touch()
    assert len(imagenet.listing(root)) == 21
    (root / "n2" / "new.png").unlink()
    age()
    imagenet.listing(root)
    (cache,) = tmp_path.rglob("*.npz")
    cache.write_bytes(cache.read_bytes()[:100])  # damaged: listed anew
    assert len(imagenet.listing(root)) == 20


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(imagenet, "WORTH_CACHING", 1)
    (tmp_path / "file").touch()
    monkeypatch.setattr(imagenet.pooch, "os_cache", lambda project: tmp_path / "file" / project)
    root = folder_of(tmp_path / "mine", 3)
    for folder in (root, *root.iterdir()):
        os.utime(folder, (1e9, 1e9))
    assert len(imagenet.listing(root)) == 3
    assert "lists them again" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ imagenette


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Serves a tiny Imagenette of two training and one validation image; gives the archive's path."""
    served = tmp_path / "served"
    for name in ("train/n01/0.JPEG", "train/n01/1.JPEG", "val/n01/2.JPEG"):
        file = served / "imagenette2-320" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        smooth_noise(0).save(file)
    archive = served / "imagenette2-320.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(served / "imagenette2-320", "imagenette2-320")
    handler = functools.partial(QuietHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{http_server.server_port}/imagenette2-320.tgz"
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        monkeypatch.setitem(Imagenette._ARCHIVES, "320px", (url, md5))
        monkeypatch.setitem(Imagenette._WNID_TO_CLASS, "n01", ("thing",))
        monkeypatch.setattr(imagenet, "IMAGENETTE", {"train": 2, "val": 1})
        yield archive
        http_server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        if Path(self.translate_path(self.path)).with_suffix(".rude").exists():
            self.wfile.write(b"220 mail ready\r\n")
        else:
            super().do_GET()

    def copyfile(self, source, outputfile) -> None:  # type: ignore[no-untyped-def]
        if Path(source.name).with_suffix(".cut").exists():  # the line goes dead half-way
            outputfile.write(source.read(1000))
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            super().copyfile(source, outputfile)


def test_imagenette_is_downloaded_once_and_then_used_without_a_network(server: Path) -> None:
    data = photos.find("imagenette")
    assert (data.name, data.builtin, len(data.train) + len(data.validation), len(data.test)) == (
        "imagenette2-320",
        False,
        2,
        1,
    )
    server.unlink()
    assert len(photos.find("auto").test) == 1
    assert [path.name for path in Path("data").iterdir()] == ["imagenette2-320"]


def test_an_archive_put_there_by_hand_is_used(server: Path) -> None:
    Path("data").mkdir()
    server.rename("data/imagenette2-320.tgz")
    assert len(photos.find("imagenette").test) == 1


@pytest.mark.parametrize(
    "harm", ["wrong checksum", "cut off", "no web server", "not found", "too few", "not whole"]
)
def test_a_download_that_fails_leaves_nothing_and_says_what_to_do(
    server: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, md5 = Imagenette._ARCHIVES["320px"]
    if harm == "wrong checksum":
        md5 = "0" * 32
        monkeypatch.setitem(Imagenette._ARCHIVES, "320px", (url, md5))
    if harm == "cut off":
        server.with_suffix(".cut").touch()
    if harm == "no web server":
        server.with_suffix(".rude").touch()
    if harm == "not found":
        server.unlink()
    if harm == "too few":
        monkeypatch.setattr(imagenet, "IMAGENETTE", {"train": 9, "val": 1})
    if harm == "not whole":
        smooth_noise(0).save(folder_of(Path("data/imagenette2-320/train"), 1) / "0.jpg")
    before = list(Path().rglob("*.*"))
    with pytest.raises(UserError) as error:
        photos.find("imagenette")
    for part in (url, md5, "data/imagenette2-320.tgz"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert list(Path().rglob("*.*")) == before
    assert socket.getdefaulttimeout() is None
    data = photos.find("auto")  # goes on with the stand-in, and says why
    assert data.builtin and url in data.note


# ----------------------------------------------------------------------------------- dead leaves


def test_dead_leaves_follow_from_their_seed_and_have_a_photos_spectrum() -> None:
    images = [np.asarray(dead_leaves(seed)) for seed in range(12)]
    assert all(pixels.shape == (256, 256, 3) and pixels.dtype == np.uint8 for pixels in images)
    assert np.array_equal(images[3], np.asarray(dead_leaves(3)))
    assert not np.array_equal(images[3], images[4])
    grey = np.stack(images).mean(3) / 255
    assert 0.15 < grey.std() < 0.35
    window = np.hanning(256)
    power = np.abs(np.fft.fft2((grey - grey.mean((1, 2), keepdims=True)) * window * window[:, None])) ** 2
    f = np.hypot(np.fft.fftfreq(256), np.fft.fftfreq(256)[:, None])
    middle = (f > 0.03) & (f < 0.4)
    slope = np.polyfit(np.log(f[middle]), np.log(power.mean(0)[middle]), 1)[0]
    assert -2.9 < slope < -2.0  # 800 photos of ImageNet: -2.5


def test_the_stand_in_goes_the_way_of_photos() -> None:
    data = photos.find("builtin")
    assert data.builtin and data.note
    assert not set(data.train.items) & set(data.validation.items)
    assert len(data.validation) == 32
    crops = next(photo_batches.batches(data.train.first(6), batch=4, seed=0, workers=2)(0))
    assert crops.shape == (4, 3, 224, 224)
    images = data.test.standard_images()
    assert images.shape == (10, 3, 224, 224) and len(set(data.test.items)) == 10
    assert len({image.float().mean().item() for image in images}) == 10


def test_a_kaggle_tree_further_down_is_named_and_not_trained_on_whole(tmp_path: Path) -> None:
    for split, name in (("train", "n01440764/n01440764_1.JPEG"), ("test", "ILSVRC2012_test_1.JPEG")):
        path = tmp_path / "disk" / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC" / split / name
        path.parent.mkdir(parents=True)
        dead_leaves(1).save(path)
    with pytest.raises(UserError, match=r"CLS-LOC.*name that"):
        photos.find(str(tmp_path))


def test_the_last_spare_test_image_is_given_away_and_the_last_to_train_on_is_not(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 4)):
        (tmp_path / split).mkdir()
        for i in range(count):
            dead_leaves(i).save(tmp_path / split / f"{i}.png")
    (tmp_path / "val" / "0.png").write_bytes(b"cut")
    assert len(photos.find(str(tmp_path), limit=3).test.standard_images()) == 3
