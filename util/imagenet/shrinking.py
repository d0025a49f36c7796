"""What worker processes do: shrink images, and decode them to see whether that can be done."""

import os
import signal
import threading
from collections.abc import Iterator
from io import BytesIO
from multiprocessing import parent_process
from pathlib import Path

from PIL import Image
from PIL.ExifTags import Base

from common.datasets.image_files import FORMATS
from common.datasets.imagenet_archive import image_name, open_index
from common.datasets.images import orientation, size_by_shorter

ROWS = 1000
"""Images of an archive that a process decodes at a time."""


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
        with Image.open(BytesIO(data), formats=FORMATS) as image:
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
    except MemoryError:  # which says nothing of the image
        raise
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


def undecodable(path: Path, first: int) -> list[str]:
    """What cannot be decoded in a folder, or at `ROWS` rows of an index from `first` on, and why."""
    problems = []
    files = ((str(file), file) for file in sorted(path.iterdir())) if path.is_dir() else _rows(path, first)
    for name, file in files:
        try:
            with Image.open(file, formats=FORMATS) as image:
                image.load()
        except MemoryError:
            raise
        except Exception as error:  # a decoder raises whatever a damaged file leads it into
            problems.append(f"{name} cannot be decoded ({error})")
    return problems


def _rows(tar: Path, first: int) -> Iterator[tuple[str, BytesIO]]:
    rows, about = open_index(tar)
    with tar.open("rb") as file:
        for offset, size, label, number in rows[first : first + ROWS].tolist():
            file.seek(offset)
            wnid = about["wnids"][label]
            yield f"{tar}/{wnid}/{image_name(about['split'], wnid, number)}", BytesIO(file.read(size))
