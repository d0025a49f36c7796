"""What worker processes do: shrink images, and decode them to see whether that can be done."""

import os
import signal
import threading
from io import BytesIO
from multiprocessing import parent_process
from pathlib import Path

from PIL import Image
from PIL.ExifTags import Base

from common.datasets.imagenet_archive import open_index, picture_name
from common.datasets.images import orientation, size_by_shorter


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


def shrunk(data: bytes, size: int, quality: int) -> tuple[bytes, str]:
    """The image with its shorter side at `size` pixels (Pillow bicubic), as JPEG; smaller ones as they are.

    Returns:
        The bytes of a file, and "" or, where the image could not be shrunk and is kept as it is, why.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            if min(image.size) <= size:
                return data, ""
            if image.has_transparency_data:
                return data, "transparent"
            if image.mode.startswith(("I", "F")):  # JPEG has 8 bits, and to these Pillow only clips
                return data, "more than 8 bits a channel"
            exif = Image.Exif()
            if (turn := orientation(image)) > 1:  # the shrunk file is turned as the file was
                exif[Base.Orientation] = turn
            new_size = size_by_shorter(*image.size, size)
            small = image.convert("RGB").resize(new_size, Image.Resampling.BICUBIC)
        file = BytesIO()
        small.save(file, "JPEG", quality=quality, optimize=True, exif=exif)
    except Exception as error:  # a decoder raises whatever a damaged file leads it into
        return data, " ".join(str(error).split()) or type(error).__name__
    return file.getvalue(), ""


def shrink_batch(batch: list[tuple[str, bytes]], size: int, quality: int) -> list[tuple[int, str]]:
    """Writes the files; gives for each its bytes, and the name and reason of what was kept as it is."""
    results = []
    for path, data in batch:
        small, why = shrunk(data, size, quality)
        write(path, small)
        results.append((len(small), f"{Path(path).name}: {why}" if why else ""))
    return results


def undecodable_files(folder: Path) -> list[str]:
    """The images of a folder that cannot be decoded: path and reason."""
    return [f"{path}: {why}" for path in sorted(folder.iterdir()) if (why := _undecodable(path))]


def undecodable_rows(tar: Path, first: int, stop: int) -> list[str]:
    """The images at some rows of an archive's index that cannot be decoded: path and reason."""
    rows, about = open_index(tar)
    problems = []
    with tar.open("rb") as file:
        for offset, size, label, number in rows[first:stop].tolist():
            file.seek(offset)
            if why := _undecodable(BytesIO(file.read(size))):
                wnid = about["wnids"][label]
                problems.append(f"{tar}/{wnid}/{picture_name(about['split'], wnid, number)}: {why}")
    return problems


def _undecodable(file: Path | BytesIO) -> str:
    try:
        with Image.open(file) as image:
            image.load()
    except Exception as error:  # a decoder raises whatever a damaged file leads it into
        return f"cannot be decoded ({error})"
    return ""
