"""What worker processes do: make pictures small, and decode them to see whether that can be done.

Imports little, since every worker has to.
"""

import os
import signal
import threading
from io import BytesIO
from multiprocessing import parent_process
from pathlib import Path

from PIL import Image


def shrunk(data: bytes, size: int, quality: int) -> tuple[bytes, str]:
    """The picture with its shorter side at `size` pixels (Pillow bicubic), as JPEG; smaller ones as they are.

    Returns:
        The bytes of a file, and "" or, where the picture could not be made small and is kept as it is, why.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            if min(image.size) <= size:
                return data, ""
            if image.has_transparency_data:
                return data, "transparent"
            if image.mode.startswith(("I", "F")):  # JPEG has 8 bits, and to these Pillow only clips
                return data, "more than 8 bits a channel"
            orientation = image.getexif().get(274, 1)  # EXIF's tag: the shrunk file is turned as the file was
            scale = size / min(image.size)
            width, height = (max(size, round(length * scale)) for length in image.size)
            small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if orientation in range(2, 9):
            exif[274] = orientation
        file = BytesIO()
        small.save(file, "JPEG", quality=quality, optimize=True, exif=exif)
    except Exception as error:  # a decoder raises whatever a damaged file leads it into
        return data, " ".join(str(error).split()) or type(error).__name__
    return file.getvalue(), ""


def shrink_batch(batch: list[tuple[str, bytes]], size: int, quality: int) -> list[tuple[int, str]]:
    """Writes the files; gives for each its bytes, and the path and reason of what was kept as it is."""
    done = []
    for path, data in batch:
        small, why = shrunk(data, size, quality)
        write(path, small)
        done.append((len(small), f"{os.path.basename(path)}: {why}" if why else ""))  # noqa: PTH119
    return done


def start_worker() -> None:
    """Ctrl-C is the main process's to answer; a worker ends when that is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = parent_process()
    assert main is not None

    def follow() -> None:
        main.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:  # noqa: PTH123 - a Path costs ten times as much
        file.write(data)


def undecodable(folder: str) -> list[str]:
    """Of the pictures in a folder: path and reason."""
    return [f"{path}: {why}" for path in sorted(Path(folder).iterdir()) if (why := _undecodable(path))]


def undecodable_rows(tar: str, first: int, stop: int) -> list[str]:
    """Of the pictures at some rows of an archive's index: path and reason."""
    from common.datasets import imagenet_archive

    rows, about = imagenet_archive.open_index(Path(tar))
    found = []
    with open(tar, "rb") as file:  # noqa: PTH123
        for offset, size, which, number in rows[first:stop].tolist():
            file.seek(offset)
            if why := _undecodable(BytesIO(file.read(size))):
                name = imagenet_archive.image_name(about["split"], about["wnids"][which], number)
                found.append(f"{tar}/{about['wnids'][which]}/{name}: {why}")
    return found


def _undecodable(file: Path | BytesIO) -> str:
    try:
        with Image.open(file) as image:
            image.load()
    except Exception as error:  # a decoder raises whatever a damaged file leads it into
        return f"cannot be decoded ({error})"
    return ""
