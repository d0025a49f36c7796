"""Small archives in ImageNet's form, made on the spot, for tests and benchmarks of util/unzip_imagenet."""

import gzip
import hashlib
import io
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image


def photo(seed: int, width: int = 40, height: int = 30, mode: str = "RGB", quality: int = 75) -> bytes:
    """A JPEG of noise that was enlarged: cheap to make, and no smaller than a photo."""
    noise = random.Random(seed).randbytes(width * height // 4 * 3)
    small = Image.frombytes("RGB", (width // 2, height // 2), noise)
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file, "JPEG", quality=quality)
    return file.getvalue()


def tar(
    path: Path | None, members: Iterable[tuple[str | tarfile.TarInfo, bytes]], mode: str = "w", **more: Any
) -> bytes:
    """A tar of these names and contents; GNU format, as ImageNet's own."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, **{"format": tarfile.GNU_FORMAT} | more) as out:
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


def other_forms(folder: Path, form: str) -> dict[str, bytes]:
    """Writes ImageNet as others have it into `folder`; gives the files that must come out."""
    images = {k: class_images(k, 3, photo) for k in range(3)}
    files = {f"train/{wnid(k)}/{name}": data for k, own in images.items() for name, data in own}
    mac = b"\0\5\26\7\0\2\0\0Mac OS X"
    inner = {f"{wnid(k)}.tar": tar(None, own) for k, own in images.items()}
    path = folder / "ILSVRC2012_img_train.tar"
    flat = [(f"{wnid(k)}/{name}", data) for k, own in images.items() for name, data in own]
    if form == "dot and slash":
        own = {f"./{wnid(k)}.tar": tar(None, [("./" + n, d) for n, d in images[k]]) for k in images}
        tar(path, [(directory("./"), b""), *own.items()])
    elif form == "macOS":
        own = {k: [x for name, data in images[k] for x in (("._" + name, mac), (name, data))] for k in images}
        tar(
            path, [x for k in own for x in ((f"._{wnid(k)}.tar", mac), (f"{wnid(k)}.tar", tar(None, own[k])))]
        )
    elif form == "folder in front":
        tar(path, [(directory("train"), b""), *((f"train/{name}", data) for name, data in inner.items())])
    elif form in ("PAX", "GNU"):
        long = [("x" * 120 + f"/{name}", data) for name, data in inner.items()]
        tar(path, long, format=tarfile.PAX_FORMAT if form == "PAX" else tarfile.GNU_FORMAT)
    elif form == "PAX of all":
        tar(path, inner.items(), format=tarfile.PAX_FORMAT, pax_headers={"comment": "c0ffee"})
    elif form == "POSIX prefix":
        tar(
            path, [("x" * 99 + f"/{name}", data) for name, data in inner.items()], format=tarfile.USTAR_FORMAT
        )
    elif form == "inner gz":
        tar(path, [(f"{name}.gz", gzip.compress(data)) for name, data in inner.items()])
    elif form == "outer gz":
        tar(folder / "ILSVRC2012_img_train.tar.gz", inner.items(), "w:gz")
    elif form == "classes unpacked":
        tar(path, [(directory(wnid(0)), b""), *flat])
    elif form == "endings":
        for name, data in flat:
            file = folder / "train" / name.replace("JPEG", "jpg")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    elif form == "Hugging Face":
        named = [(f"{name[10:-5]}_{name[:9]}.JPEG", data) for name, data in flat]
        for part in range(3):
            tar(folder / f"train_images_{part}.tar.gz", named[part::3], "w:gz")
        tar(folder / "val_images.tar.gz", [(f"ILSVRC2012_val_00000007_{wnid(1)}.JPEG", mac)], "w:gz")
        files[f"val/{wnid(1)}/ILSVRC2012_val_00000007.JPEG"] = mac
    elif form in ("Kaggle's zip", "Kaggle's tar"):
        kaggle = [(f"ILSVRC/Data/CLS-LOC/train/{name}", data) for name, data in flat]
        kaggle.append(("ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000007.JPEG", mac))
        kaggle.append(("ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG", mac))
        kaggle.append(("ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000007.xml", mac))
        csv = f"ImageId,PredictionString\nILSVRC2012_val_00000007,{wnid(1)} 1 2 3 4\n".encode()
        files[f"val/{wnid(1)}/ILSVRC2012_val_00000007.JPEG"] = mac
        if form == "Kaggle's tar":
            tar(folder / "imagenet_object_localization_patched2019.tar.gz", kaggle, "w:gz")
            (folder / "LOC_val_solution.csv").write_bytes(csv)
        else:
            with zipfile.ZipFile(folder / "imagenet-object-localization-challenge.zip", "w") as archive:
                for name, data in [*kaggle, ("LOC_val_solution.csv", csv)]:
                    archive.writestr(name, data)
    return files


def directory(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info
