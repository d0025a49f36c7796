"""Small archives in ImageNet's form, made on the spot, for tests and benchmarks of util/unzip_imagenet."""

import hashlib
import io
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image


def photo(seed: int, width: int = 40, height: int = 30, mode: str = "RGB", quality: int = 75) -> bytes:
    """A JPEG of noise that was enlarged: cheap to make, and no smaller than a photo."""
    noise = random.Random(seed).randbytes(width * height // 4 * 3)
    small = Image.frombytes("RGB", (width // 2, height // 2), noise)
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file, "JPEG", quality=quality)
    return file.getvalue()


def tar(path: Path | None, members: Iterable[tuple[str | tarfile.TarInfo, bytes]], mode: str = "w") -> bytes:
    """A tar of these names and contents; GNU format, as ImageNet's own."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=tarfile.GNU_FORMAT) as out:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    if path:
        path.write_bytes(file.getvalue())
    return file.getvalue()


def wnid(k: int) -> str:
    return f"n{k + 1:08d}"


def class_images(k: int, count: int, make: Callable[[int], bytes]) -> list[tuple[str, bytes]]:
    return [(f"{wnid(k)}_{7 * i + 1}.JPEG", make(1000 * k + i)) for i in range(count)]


def train_tar(path: Path, classes: int, count: int, make: Callable[[int], bytes] = photo) -> dict[str, bytes]:
    """Writes a training archive; gives the files that must come out of it."""
    files, inner = {}, []
    for k in range(classes):
        images = class_images(k, count, make)
        files |= {f"train/{wnid(k)}/{name}": data for name, data in images}
        inner.append((f"{wnid(k)}.tar", tar(None, images)))
    tar(path, inner)
    return files


def tree(folder: Path) -> dict[str, bytes]:
    """All images below a folder; nothing else may be there but the tool's own notes."""
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    notes = {
        ".unzip_imagenet.lock",
        *(f"{s}/{n}" for s in ("train", "val") for n in (".complete", "manifest.json")),
    }
    return {name: data for name, data in files.items() if name not in notes}


def fingerprint(folder: Path) -> str:
    """Of names and contents of all files, the tool's notes too."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()
