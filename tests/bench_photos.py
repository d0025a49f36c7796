"""Images a second of training's loader beside the usual one, and what a set costs as it grows.

    python -m tests.bench_photos                     # a thousand generated photos, two workers; some minutes
    python -m tests.bench_photos --data FOLDER       # photos of FOLDER/{wnid}/{wnid}_{number}.JPEG
    python -m tests.bench_photos --growth            # start-up and memory with a thousand to a million photos

All loaders give what training needs: batches of (lr, hr), 3x64x64 and 3x224x224, float in 0..1. They
are timed in turn, in rounds and every second time in the reverse order, so that what else the machine does
meets all of them; ratios are those within a round. Milliseconds are those of processors, main process and
workers together.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as TF

from common.datasets import degradation, imagenet, imagenet_archive, photo_batches, photos
from common.datasets.dead_leaves import dead_leaves
from util.imagenet.indexing import write_index

UNZIP = Path(__file__).parents[1] / "util" / "unzip_imagenet"
BATCH, WORKERS = 16, 2
WHOLE = 1_281_167
"""Training photos of ImageNet."""


@dataclass
class Config:
    """Times loaders, or what a set costs as it grows."""

    data: Path | None = None
    """Folder of photos as {wnid}/{wnid}_{number}.JPEG; without it photos are generated."""
    photos: int = 1000
    """Number of photos to generate."""
    seconds: float = 8.0
    """Seconds for which each loader is timed in each round."""
    rounds: int = 3
    """Number of rounds."""
    growth: bool = False
    """Measure start-up and memory instead."""


# ------------------------------------------------------------------------------------- images/s


def generate_photos(root: Path, count: int) -> None:
    """JPEGs of 500x375 pixels and about 110 kB, as ImageNet's are in the mean."""
    tiles = [np.asarray(dead_leaves(seed)) for seed in range(60)]
    for k in range(count):
        random = np.random.default_rng(k)
        four = [tiles[i][:: random.choice([1, -1])] for i in random.integers(0, len(tiles), 4)]
        image = np.block([[[four[0]], [four[1]]], [[four[2]], [four[3]]]])[:375, :500].astype(np.int16)
        image += random.integers(-9, 10, image.shape[:2], np.int16)[..., None]  # a camera's noise
        file = root / f"n{k % 20:08}" / f"n{k % 20:08}_{k}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, quality=92)


def packed(folder: Path, tar: Path) -> None:
    """One tar for each class, inside of one tar."""
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as outer:
        for wnid in sorted(folder.iterdir()):
            inner = tar.with_name(f"{wnid.name}.tar")
            with tarfile.open(inner, "w", format=tarfile.USTAR_FORMAT) as file:
                for photo in sorted(wnid.iterdir()):
                    file.add(photo, photo.name)
            outer.add(inner, inner.name)
            inner.unlink()


class Usual(Dataset[tuple[Tensor, Tensor]]):
    """What one finds in most repositories: everything for each image, in the worker."""

    def __init__(self, folder: Path) -> None:
        crop = transforms.Compose(
            [
                transforms.RandomResizedCrop(photos.HR_SIDE),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )
        self.images = ImageFolder(str(folder), crop)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        hr, _ = self.images[i]  # [3,224,224]
        return TF.resize(hr, [photos.LR_SIDE, photos.LR_SIDE], antialias=True), hr


def usual(folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch."""
    loader = DataLoader(Usual(folder), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    while True:
        yield from loader


def ours(items: imagenet.PhotoList) -> Iterator[tuple[Tensor, Tensor]]:
    """As `gan_upscale.py` trains on a set too large for the memory."""
    source = photos.Source(items, photos.read_to_train)
    start = degradation.pairs(photo_batches.batches(source, batch=BATCH, seed=0, workers=WORKERS), seed=0)
    return ((lr, hr) for (lr,), (hr, _) in start(0))


def worked() -> float:
    """Processor seconds of this process and its workers so far."""
    ticks = 0
    for process in (os.getpid(), *(child.pid for child in active_children())):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rate(batches: Iterator[tuple[Tensor, Tensor]], seconds: float) -> tuple[float, float]:
    """Images a second, and milliseconds of processors an image."""
    for _ in range(8):  # what the workers had ready
        next(batches)
    start, before, count = time.monotonic(), worked(), 0
    while time.monotonic() - start < seconds:
        lr, hr = next(batches)
        count += len(hr)
    assert lr.shape[2:] == (photos.LR_SIDE,) * 2 and hr.shape[2:] == (photos.HR_SIDE,) * 2
    return count / (time.monotonic() - start), 1000 * (worked() - before) / count


def compare(config: Config, root: Path) -> None:
    """Prints a table of images/s and ratios."""
    folder = config.data or root / "generated"
    if config.data is None:
        generate_photos(folder, config.photos)
    tar, shrunk = root / "ILSVRC2012_img_train.tar", root / "shrunk"
    packed(folder, tar)
    for words in (["--mode", "index"], ["--mode", "shrink", "--out", shrunk, "--verify", "none"]):
        subprocess.run([sys.executable, UNZIP, tar, *words], check=True, stdout=subprocess.DEVNULL)
    sets = {
        "folder": imagenet.listing(folder),
        "tar with its index": imagenet.archived(tar),
        "shrunk to 256": imagenet.listing(shrunk / "train"),
    }
    photo_batches.MEMORY = 0  # so few photos would be kept in memory
    loaders = {"usual: ImageFolder, RandomResizedCrop, lr of each": usual(folder)}
    for name, items in sets.items():
        loaders[f"ours: {name}, {photo_batches.USES} crops of each photo"] = ours(items)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
    for turn in range(config.rounds):
        for name in list(loaders)[:: -1 if turn % 2 else 1]:
            rates[name].append(rate(loaders[name], config.seconds))
    first, *_ = rates.values()
    count = len(sets["folder"])
    size = sum(Path(path).stat().st_size for path in sets["folder"]) / count
    print(f"{count} photos of {size / 1e3:.0f} kB, {WORKERS} workers, batches of {BATCH}; medians")
    print(f"{'':58}{'images/s':>12}{'x usual':>9}{'ms':>8}{'x usual':>9}")
    for name, rows in rates.items():
        speed, work = (statistics.median(row[k] for row in rows) for k in (0, 1))
        faster = statistics.median(a / b for (a, _), (b, _) in zip(rows, first, strict=True))
        cheaper = statistics.median(b / a for (_, a), (_, b) in zip(rows, first, strict=True))
        print(f"{name:58}{speed:12.0f}{faster:9.2f}{work:8.1f}{cheaper:9.2f}")


# ----------------------------------------------------------------------------------------- growth


def generate_index(root: Path, split: str, count: int) -> Path:
    """An archive of holes with an index of `count` photos."""
    tar = root / f"ILSVRC2012_img_{split}.tar"
    wnids = [f"n{k:08}" for k in range(min(1000, count // 10))]
    rows = np.zeros(count, imagenet_archive.ROW)
    rows["class"] = np.arange(count) * len(wnids) // count
    rows["number"] = np.arange(count) % 150_000 + 1 if split == "train" else np.arange(count) + 1
    rows["size"] = 100_000
    rows["offset"] = np.arange(count) * 100_000
    rows.sort(order=("class", "number"))
    with tar.open("wb") as file:
        file.truncate(count * 100_000)
    state = tar.stat()
    about = {"archive_bytes": state.st_size, "archive_mtime_ns": state.st_mtime_ns, "md5": None}
    write_index(tar, rows, about | {"split": split, "wnids": wnids, "part": None})
    return tar


def generate_listing(root: Path, split: str, count: int) -> None:
    """Folders of classes, all empty, and the cache of a listing that found `count` photos there."""
    classes = min(1000, count // 10)
    folders = ["", *(f"n{k:08}/" for k in range(classes))]
    for folder in folders:
        (root / split / folder).mkdir(parents=True)
        os.utime(root / split / folder, (1e9, 1e9))
    wnids = [f"n{i * classes // count:08}" for i in range(count)]
    paths = np.array([f"{wnid}/{wnid}_{100_000 + i}.JPEG".encode() for i, wnid in enumerate(wnids)])
    changed = {folder: (root / split / folder).stat().st_mtime_ns for folder in folders}
    photos = imagenet.PhotoList(root / split, paths, {})
    imagenet.save_listing(imagenet.cache_of(root / split), photos, changed)


def blank(item: object) -> Image.Image:
    """Pixels do not matter here; the item has been looked up."""
    return Image.new("RGB", (photos.SHORTER, photos.SHORTER))


def memory(process: int) -> tuple[float, float]:
    """Of a process, in MB: USS, which is its own alone, and PSS, with its share of what others use too."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return own / 1024, kilobytes["Pss"] / 1024


def started(data: str, method: str) -> dict[str, float]:
    """Start-up and memory of training on `data`, in a process that has done nothing else."""
    torch.multiprocessing.set_start_method(method)
    photo_batches.MEMORY, photo_batches.POOL = 0, 64
    before = memory(os.getpid())
    start, worked = time.perf_counter(), time.process_time()
    train = photos.find(data).train
    train.fingerprint()
    photo_batches.shuffled(0, len(train), seed=0)
    seconds, work = time.perf_counter() - start, time.process_time() - worked
    main = memory(os.getpid())
    source = photos.Source(train.items, blank)
    steps = photo_batches.batches(source, batch=BATCH, size=28, seed=0, workers=WORKERS)(0)
    for _ in itertools.islice(steps, 300):
        pass
    workers = [memory(child.pid) for child in active_children() if child.pid]
    assert len(workers) == WORKERS
    return {
        "seconds": seconds,
        "cpu": work,
        "main": main[0] - before[0],
        "uss": max(uss for uss, _ in workers),
        "pss": max(pss for _, pss in workers),
    }


def grow(root: Path) -> None:
    """Prints a table of start-up time and memory by number of photos."""
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    print("start-up: seconds until all photos are known, split and shuffled (CPU seconds in brackets);")
    print("main: MB that the training process grew by; worker: its USS and, in brackets, PSS in MB, and what")
    print("more that is than with 1,000 photos: Python, torch and the rest are the same for all")
    print(f"{'':34}{'photos':>10}{'start-up':>16}{'main':>8}{'worker':>18}{'more':>16}")
    for kind, method in (("tar", "fork"), ("tar", "spawn"), ("folder", "fork"), ("folder", "spawn")):
        least: dict[str, float] = {}
        for count in (1_000, 10_000, 100_000, 1_000_000, WHOLE):
            data = root / f"{kind}-{count}"
            if not data.exists():
                data.mkdir()
                for split, part in (("train", count), ("val", max(100, count // 25))):
                    (generate_index if kind == "tar" else generate_listing)(data, split, part)
            words = ["-m", "tests.bench_photos", "started", str(data), method]
            done = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
            result = json.loads(done.stdout)
            least = least or result
            name = f"{'tar with index' if kind == 'tar' else 'folder, listing cached'}, {method}"
            print(
                f"{name:34}{count:10,}{result['seconds']:9.2f} ({result['cpu']:.2f}){result['main']:8.0f}"
                f"{result['uss']:10.0f} ({result['pss']:.0f}){result['uss'] - least['uss']:+9.0f} "
                f"({result['pss'] - least['pss']:+.0f})",
                flush=True,
            )


def main(config: Config) -> None:
    """One of the two."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        if config.growth:
            grow(Path(root))
        else:
            compare(config, Path(root))


if __name__ == "__main__":
    if sys.argv[1:2] == ["started"]:
        print(json.dumps(started(*sys.argv[2:])))
    else:
        main(tyro.cli(Config))
