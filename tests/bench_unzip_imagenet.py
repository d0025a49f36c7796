"""Times util/unzip_imagenet against the usual ways, on archives made on the spot.

    python tests/bench_unzip_imagenet.py                    # everything, some minutes
    python tests/bench_unzip_imagenet.py --only extract     # or shrink, kills, refusals, growth

All ways run on the same disk in turn, in rounds and every second time in the reverse order, so that what
else the machine does meets all of them; the ratios are medians of those within a round. The usual ways are
torchvision's `parse_train_archive`, which checks the MD5 too, and GNU tar twice, for the outer archive and
for each inner one.
"""

import argparse
import contextlib
import hashlib
import importlib.machinery
import importlib.util
import io
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import count as count_up
from itertools import islice
from pathlib import Path
from types import ModuleType

from imagenet_archives import fingerprint, photo, tar, train_tar

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "util" / "unzip_imagenet"
CLASSES, IMAGES = 50, 40


def load() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("unzip_imagenet", str(SCRIPT))
    spec = importlib.util.spec_from_loader("unzip_imagenet", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def ours(*words: object) -> None:
    """In this process, as the others: no way's start-up is timed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = load().main([str(word) for word in words])
    assert code == 0, said.getvalue()


def torchvisions(source: Path, out: Path) -> None:
    from torchvision.datasets import imagenet

    imagenet.parse_train_archive(str(source.parent), source.name, str(out))


GNU = """
mkdir -p "$2" && tar -xf "$1" -C "$2" && cd "$2" &&
for inner in *.tar; do mkdir "${inner%.tar}" && tar -xf "$inner" -C "${inner%.tar}" && rm "$inner"; done
"""


def gnus(source: Path, out: Path) -> None:
    subprocess.run(["bash", "-c", GNU, "gnu", source, out], check=True)


def seconds(work: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """On the clock, and of the processors: these depend less on what else the machine does.

    Each time into a new folder, and nothing is deleted before the end: where many files were deleted a few
    seconds ago, ext4 searches long for a free inode.
    """
    out = Path(tempfile.mkdtemp(dir=folder)) / "out"
    os.sync()  # nobody pays for what another has left to be written
    start, used = time.perf_counter(), sum(os.times()[:4])
    work(out)
    return time.perf_counter() - start, sum(os.times()[:4]) - used


def peak(work: Callable[[], None], folder: Path) -> tuple[int, int]:
    """The most that `folder` holds while `work` runs and at its end: bytes of files, and on the disk."""
    most, stop = [0, 0], threading.Event()

    def watch() -> None:
        last = False
        while not last:
            last = stop.is_set()
            size = blocks = 0
            waiting = [str(folder)]
            while waiting:
                with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir():
                            waiting.append(entry.path)
                        else:
                            with contextlib.suppress(OSError):
                                size += entry.stat().st_size
                                blocks += entry.stat().st_blocks * 512
            most[:] = max(most[0], size), max(most[1], blocks)

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    stop.set()
    thread.join()
    return most[0], most[1]


def extract(folder: Path, rounds: int) -> None:
    source = folder / "t.tar"
    train_tar(source, CLASSES, IMAGES, lambda k: photo(k % 97, 500, 375, quality=85))
    size = source.stat().st_size
    md5 = hashlib.md5(source.read_bytes()).hexdigest()
    print(f"{CLASSES} classes of {IMAGES} images, {size / CLASSES / IMAGES / 1e3:.0f} KB each\n")
    with contextlib.suppress(ImportError):
        from torchvision.datasets import imagenet

        imagenet.ARCHIVE_META["train"] = (source.name, md5)
    ways: dict[str, Callable[[Path], None]] = {
        "torchvision, with md5": lambda out: torchvisions(source, out),
        "GNU tar twice": lambda out: gnus(source, out),
        "ours, with md5": lambda out: ours(source, "--out", out, "--verify", "md5"),
        "ours": lambda out: ours(source, "--out", out),
        "ours, index": lambda out: ours(source, "--mode", "index"),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            times[name].append(seconds(ways[name], folder))
    print("| way | s | CPU s | x ours with md5 | x ours | CPU, x ours with md5 | CPU, x ours |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, own in times.items():
        cells = [statistics.median(time[k] for time in own) for k in (0, 1)]
        for k in (0, 1):
            for base in (times["ours, with md5"], times["ours"]):
                cells.append(statistics.median(a[k] / b[k] for a, b in zip(own, base, strict=True)))
        print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")

    print("\n| way | peak, bytes of files / archive | peak, bytes on disk / archive |\n| --- | ---: | ---: |")
    ways["ours, --consume"] = lambda out: ours(source, "--out", out, "--consume", "--md5", md5)
    for name in ("torchvision, with md5", "GNU tar twice", "ours, with md5", "ours, --consume"):
        place = Path(tempfile.mkdtemp(dir=folder))
        # each has an archive of its own, a hard link, that counts where it works
        (place / source.name).hardlink_to(source)
        files, blocks = peak(partial(ways[name], place / "out"), place)
        print(f"| {name} | {files / size:.3f} | {blocks / size:.3f} |")


def shrink(folder: Path, rounds: int) -> None:
    source = folder / "t.tar"
    train_tar(source, 10, 120, lambda k: photo(k % 97, 500, 375, quality=85))
    rates: dict[int, list[float]] = {1: [], 2: []}
    before = os.times()
    for turn in range(rounds):
        for workers, own in list(rates.items())[:: -1 if turn % 2 else 1]:
            words = (source, "--mode", "shrink", "--workers", workers, "--out")
            own.append(1200 / seconds(partial(ours, *words), folder)[0])
    share = statistics.median(two / (2 * one) for one, two in zip(rates[1], rates[2], strict=True))
    print(f"shrink: {statistics.median(rates[1]):.0f} images/s with one worker, ", end="")
    print(
        f"{statistics.median(rates[2]):.0f} with two: {share:.0%} of twice as many, start of workers included"
    )
    own, workers = (sum(os.times()[k : k + 2]) - sum(before[k : k + 2]) for k in (0, 2))
    print(f"of all CPU time {workers / (own + workers):.1%} is the workers': two processors cannot give more")


def kills(folder: Path, count: int = 20) -> None:
    """SIGKILL at random, in each mode, until it comes to its end; the result by hash."""
    source, dice = folder / "t.tar", random.Random(0)
    train_tar(source, 20, 20, lambda k: photo(k, 120, 90))
    whole = source.read_bytes()
    consume = ["--consume", "--md5", hashlib.md5(whole).hexdigest()]
    for flags in (["--verify", "md5"], ["--mode", "shrink", "--size", "32"], consume):
        prints, done = set(), 0
        ours(source, "--out", folder / "whole", *flags)
        prints.add(fingerprint(folder / "whole"))
        out = folder / "out"
        while done < count:
            shutil.rmtree(out, ignore_errors=True)
            source.write_bytes(whole)
            command = [sys.executable, str(SCRIPT), str(source), "--out", str(out), *flags]
            killed = True
            while killed:
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                while not (out / "train" / ".journal").exists() and process.poll() is None:
                    time.sleep(0.001)
                try:
                    process.wait(dice.random() * 0.2 if done < count else None)
                except subprocess.TimeoutExpired:
                    process.kill()
                killed = process.wait() != 0
                done += killed
            prints.add(fingerprint(out))
        print(f"{done} kills, {' '.join(flags[:2])}: {'identical' if len(prints) == 1 else 'DIFFERENT'}")
        source.write_bytes(whole)
        shutil.rmtree(folder / "whole")


def refusals() -> None:
    """As the tests have it."""
    words = [
        "-m",
        "pytest",
        str(ROOT / "tests" / "test_unzip_imagenet.py"),
        "-o",
        "addopts=",
        "-k",
        "broken_class or broken_archive or damage_anywhere",
    ]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)
    print("broken and hostile archives:", done.stdout.strip().splitlines()[-1])


def many_tar(path: Path, classes: int, count: int) -> None:
    """A training archive of images of 512 bytes, made fast: wnids of one digit sum share checksums."""
    first = b"n00001998"
    names = [b"n%08d" % k for k in islice((k for k in count_up() if sum(map(int, str(k))) == 27), classes)]
    images = [(f"{first.decode()}_{number}.JPEG", bytes(512)) for number in range(count)]
    inner = tar(None, images)
    header = tar(None, [(f"{first.decode()}.tar", inner)])[:512]
    with path.open("wb") as file:
        for name in names:
            file.write(header.replace(first, name) + inner.replace(first, name))
            file.write(bytes(-len(inner) % 512))
        file.write(bytes(1024))


def growth(folder: Path, most: int) -> None:
    """Images of 512 bytes: an index reads headers alone."""
    print("| images | index built, s | CPU s | opened, s | memory of a process that opened it, MB |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    code = (
        "import sys, time; from pathlib import Path; from common.datasets import imagenet_archive\n"
        "b = time.perf_counter(); imagenet_archive.open_index(Path(sys.argv[1])); e = time.perf_counter()\n"
        "used = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "print(e - b, int(used[0]) / 1e3)"
    )
    for count in (10**k for k in range(3, 10)):
        if count > most:
            break
        source = folder / f"{count}.tar"
        many_tar(source, count // 1000, 1000)
        built, used = seconds(lambda out, source=source: ours(source, "--mode", "index"), folder)
        words = [sys.executable, "-c", code, str(source)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
        opened, memory = done.stdout.split()
        print(f"| {count:,} | {built:.2f} | {used:.2f} | {float(opened):.3f} | {float(memory):.0f} |")
        source.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, help="on the disk to be measured; the temporary one by default"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=10**6, help="images of the largest index")
    parts = ("extract", "shrink", "kills", "refusals", "growth")
    parser.add_argument("--only", choices=parts)
    args = parser.parse_args()
    for part in parts if args.only is None else (args.only,):
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            print(f"\n## {part}")
            if part == "extract":
                extract(Path(name), args.rounds)
            elif part == "shrink":
                shrink(Path(name), args.rounds)
            elif part == "kills":
                kills(Path(name))
            elif part == "refusals":
                refusals()
            else:
                growth(Path(name), args.most)


if __name__ == "__main__":
    main()
