"""Picture files through a ×3.5 upscaler: read, enlarge in tiles, save; and every refusal on the way.

Two low-resolution pixels become seven, so a side of n pixels becomes (7 n + 1) // 2. The net is

    model(x: float [N,3,h,w] in 0..1) -> float [N,3,(7h+1)//2,(7w+1)//2]

and `model.reach` says how many low-resolution pixels away an output pixel can still see.
"""

import io
import os
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFilter, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from tqdm import tqdm

from common.cli import UserError
from common.files import DiskFull, atomic_write

READS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # what the bytes say, whatever the suffix
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm"}
WRITES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LONGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65_500, "WEBP": 16_383}  # libjpeg stops a little below its format
SAVE_OPTIONS = {
    "PNG": {"compress_level": 1},  # on photos 5 times as fast as level 6, and 10 % larger
    "JPEG": {"quality": 95, "subsampling": 0},  # 4:4:4
    "WEBP": {"quality": 95},
}
TILE = 256  # low-resolution pixels a side: on a CPU, larger ones save overlap and lose the cache
LARGEST = 120_000_000  # pixels of an input; the result then takes 6 GB of memory


def enlarge(model: nn.Module, picture: Tensor, *, tile: int = TILE, progress: bool = False) -> Tensor:
    """Enlarges one picture ×3.5, in tiles, so that memory for the net does not grow with the picture.

    Args:
        model: as the head of this file describes it.
        picture: uint8 [3, h, w].
        tile: side of a tile in low-resolution pixels, even.
        progress: shows a bar (where there is a terminal), and the time a long run will take.

    Returns:
        uint8 [3, (7h+1)//2, (7w+1)//2], on the CPU; the same as without tiles, to within 1/255.
    """
    _, height, width = picture.shape
    high = torch.empty(3, _high(height), _high(width), dtype=torch.uint8)
    with _Progress(height * width if progress else 0) as bar:
        for top, left, block in _tiles(model, picture, tile, bar):
            high[:, top : top + block.shape[1], left : left + block.shape[2]] = block
    return high


def enlarge_files(model: nn.Module, source: Path, target: Path, *, overwrite: bool) -> int:
    """Enlarges a picture file, or every picture below a folder, ×3.5.

    A file goes to the file `target`, in the format of its suffix, or into the folder `target` as a PNG.
    A folder goes to the folder `target`: PNGs with the same relative paths and stems.

    What stays: transparency, colour profile, EXIF (turned upright, sizes brought up to date), greyscale.
    Palettes become RGB or RGBA. What is lost is said: 16-bit greyscale becomes 8-bit, CMYK becomes RGB
    without its profile, an animation its first picture, a TIFF's EXIF is left out.

    Returns:
        0, or 1 where a picture of a folder could not be done; it is named on stderr, and the rest are done.

    Raises:
        UserError: `source` is a file that cannot be done, or a folder without pictures; `target` cannot
            be written; the disk is full.
    """
    try:
        if source.is_dir():
            return _enlarge_folder(model, source, target, overwrite)
        if target.is_dir():
            target = target / f"{source.stem}.png"
        pixels = _check(source, target, overwrite)
        with _Progress(pixels) as bar:
            high = _enlarge_file(model, source, target, bar)
    except OSError as error:  # a path too long, a folder that may not be entered
        raise UserError(f"{_name(Path(error.filename or source))}: {error.strerror or error}") from None
    print(f"{_name(target)}: {high[0]}x{high[1]}")
    return 0


def _enlarge_folder(model: nn.Module, source: Path, target: Path, overwrite: bool) -> int:
    """`enlarge_files` for a folder: first all checks that need no computing, then picture by picture."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{_name(target)} is a file; name a folder for the pictures of {_name(source)}")
    if target.exists() and target.samefile(source):
        raise UserError(f"{_name(target)} holds the pictures themselves; name another folder")

    bad: list[str] = []
    files, others = _pictures(source, target, bad)
    if not files and not bad:
        raise UserError(f"{_name(source)}: no pictures ({', '.join(sorted(SUFFIXES))}) in this folder")

    # Where each goes, and whether it can
    inputs = {file.resolve() for file in files}
    taken: dict[Path, Path] = {}
    jobs: list[tuple[Path, Path, int]] = []
    for file in files:
        goal = (target / file.relative_to(source)).with_suffix(".png")
        try:
            if goal in taken:
                raise UserError(f"{_name(file)}: {_name(taken[goal])} becomes {goal.name} too; rename one")
            taken[goal] = file
            if goal.resolve() in inputs:
                raise UserError(f"{_name(file)}: would replace {_name(goal)}, a picture to be enlarged")
            jobs.append((file, goal, _check(file, goal, overwrite)))
        except UserError as refusal:
            bad.append(str(refusal))
    for line in bad:
        print(line, file=sys.stderr)
    if jobs:
        _check_writable(target)

    done = 0
    with _Progress(sum(pixels for _, _, pixels in jobs)) as bar:
        for file, goal, pixels in jobs:
            before = bar.done
            try:
                _enlarge_file(model, file, goal, bar)
                done += 1
            except DiskFull as refusal:  # would meet every further picture too
                raise UserError(f"{refusal}; {done} of {len(files)} pictures are done") from None
            except UserError as refusal:
                tqdm.write(str(refusal), file=sys.stderr)
                bad.append(str(refusal))
                bar.drop(pixels - (bar.done - before))
    print(
        f"{_name(target)}: {done} of {len(files)} pictures enlarged"
        + (f", {len(bad)} could not be (named above)" if bad else "")
        + (f", {others} other files left alone" if others else "")
    )
    return 1 if bad else 0


def _enlarge_file(model: nn.Module, source: Path, target: Path, bar: "_Progress") -> tuple[int, int]:
    """Enlarges one checked file and gives the width and height of the result.

    Raises:
        UserError: damaged, or in a form that the target's format cannot hold; or it cannot be written.
    """
    kind = WRITES[target.suffix.lower()]
    photo = _read(source, kind)
    for note in photo.notes:
        tqdm.write(f"{_name(source)}: {note}", file=sys.stderr)
    if photo.alpha is not None and kind == "JPEG":
        raise UserError(f"{_name(source)} has transparency, and JPEG has not; write a .png or a .webp")
    try:
        with atomic_write(target) as temporary:  # from here on, so that an unwritable folder costs no waiting
            high = _enlarge_photo(model, photo, bar)
            with _Stream(temporary.open("wb", buffering=0)) as stream:
                high.save(stream, kind, **SAVE_OPTIONS[kind], **photo.extras)
    except MemoryError:
        width, height = map(_high, photo.image.size)
        raise UserError(f"{_name(source)}: too little memory for {width}x{height} pixels") from None
    return high.size


# --- the net ---------------------------------------------------------------------------------------------


def _high(side: int) -> int:
    """The enlarged length of a side, in pixels."""
    return (7 * side + 1) // 2


@torch.inference_mode()
def _apply(model: nn.Module, low: Tensor) -> Tensor:
    """uint8 [3, h, w] -> uint8 [3, (7h+1)//2, (7w+1)//2], on the CPU."""
    device = next(model.parameters()).device
    x = low.to(device)[None].float() / 255  # [1, 3, h, w]
    y = model(x)[0]  # [3, (7h+1)//2, (7w+1)//2]
    return y.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()


def _tiles(
    model: nn.Module, picture: Tensor, tile: int, bar: "_Progress"
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields (top, left, uint8 [3, h, w]), all in high-resolution pixels, until the picture is covered.

    The net pads what it is given, which is right at the picture's border and wrong at a tile's. So each tile
    is computed with a margin as wide as the net can see, which is then cut off.
    """
    if tile % 2:
        raise ValueError("two pixels become seven: a tile's side must be even")
    _, height, width = picture.shape
    reach = cast(int, model.reach)
    margin = reach + reach % 2  # even as well, to keep the pairs together
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            above, before = min(top, margin), min(left, margin)
            low = picture[:, top - above : top + tile + margin, left - before : left + tile + margin]
            started = time.perf_counter()
            high = _apply(model, low)
            seconds = time.perf_counter() - started
            above, before, side = 7 * above // 2, 7 * before // 2, 7 * tile // 2
            yield 7 * top // 2, 7 * left // 2, high[:, above : above + side, before : before + side]
            bar.add(min(tile, height - top) * min(tile, width - left), seconds)


class _Progress:
    """A bar over low-resolution pixels where there is a terminal; before a long run a line with its time."""

    def __init__(self, pixels: int) -> None:
        """`pixels`: all that there is to do; 0 shows nothing."""
        self.left, self.done = pixels, 0
        self.timed, self.seconds = 0, 0.0  # pixels that the time is foretold from, and what they took
        self.announced = pixels == 0
        self.bar = tqdm(
            total=pixels, unit="px", unit_scale=True, leave=False, disable=None if pixels else True
        )

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, pixels: int, seconds: float) -> None:
        """Counts pixels that are done, and the time the net took for them."""
        warm = self.done > 0 or seconds > 2  # the first tile is slow, which counts little in a long time
        self.done, self.left = self.done + pixels, self.left - pixels
        self.bar.update(pixels)
        if warm:
            self.timed, self.seconds = self.timed + pixels, self.seconds + seconds
        if self.seconds > 0.5 and not self.announced:
            self.announced = True
            remaining = self.seconds * self.left / self.timed
            if remaining > 5:
                tqdm.write(
                    f"enlarging will take about {tqdm.format_interval(remaining)} (min:s), then saving"
                )

    def drop(self, pixels: int) -> None:
        """Takes pixels off that will not be done after all."""
        self.left -= pixels
        self.bar.total -= pixels
        self.bar.refresh()


# --- reading ---------------------------------------------------------------------------------------------


@dataclass
class _Photo:
    """A picture taken apart: what the net enlarges, what goes around it, and what is to be said about it."""

    image: Image.Image
    """Mode L or RGB, upright."""

    alpha: Image.Image | None = None
    """Mode L, 255 where opaque; None without transparency."""

    extras: dict[str, bytes] = field(default_factory=dict)
    """`icc_profile` and `exif` for Pillow's `save`."""

    notes: list[str] = field(default_factory=list)
    """What the result has lost, a line each."""


def _open(path: Path) -> Image.Image:
    """Reads a picture's head.

    Raises:
        UserError: missing, empty, not a picture, or too large.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{_name(path)}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{_name(path)}: neither a file nor a folder")
    if status.st_size == 0:
        raise UserError(f"{_name(path)}: the file is empty")
    too_large = f"{_name(path)}: over {LARGEST // 10**6} megapixels, the most that is read; make it smaller"
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on; ours is the limit that holds
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=READS)
    except Image.DecompressionBombError:
        raise UserError(too_large) from None
    except UnidentifiedImageError:
        raise UserError(f"{_name(path)}: not a picture that can be read ({', '.join(READS)})") from None
    except Exception as error:  # a decoder raises whatever a damaged file leads it into
        raise UserError(f"{_name(path)}: cannot be read ({_cause(error)})") from None
    if image.width * image.height > LARGEST:
        image.close()
        raise UserError(too_large)
    if image.width * image.height == 0:
        image.close()
        raise UserError(f"{_name(path)}: the picture has no pixels ({image.width}x{image.height})")
    return image


def _read(path: Path, kind: str) -> _Photo:
    """Decodes a picture, and takes it apart so that it can be enlarged and saved in format `kind`.

    Raises:
        UserError: as `_open`; truncated or otherwise damaged; pixels without a known range.
    """
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _open(path) as image:
            try:
                image.load()
                exif = _upright(image, kind, notes)
                photo = _take_apart(image, path, notes)
                if getattr(image, "is_animated", False) and image.format != "MPO":  # a photo, its preview
                    notes.append("only the first of its pictures is enlarged")
            except UserError:
                raise
            except Exception as error:  # as in `_open`
                raise UserError(f"{_name(path)}: damaged or cut short ({_cause(error)})") from None
            profile = image.info.get("icc_profile")
    notes += [_cause(warning.message) for warning in caught]

    # A profile describes one kind of pixels; WebP has no greyscale
    space = b"GRAY" if photo.image.mode == "L" and kind != "WEBP" else b"RGB "
    if profile and profile[16:20] == space:
        photo.extras["icc_profile"] = profile
    elif profile:
        notes.append("its colour profile is for other pixels than the result has, and is left out")
    if exif:
        photo.extras["exif"] = exif
    return photo


def _upright(image: Image.Image, kind: str, notes: list[str]) -> bytes:
    """Turns `image` in place as its EXIF says; gives that EXIF for the result, without orientation."""
    try:
        if image.info.get("exif") and not image.getexif():  # nothing in it could be read
            raise ValueError("no entries")
        ImageOps.exif_transpose(image, in_place=True)
        exif = image.getexif()
        details = exif.get_ifd(ExifTags.IFD.Exif)
        if image.format == "TIFF":  # there EXIF is mixed with the description of the file itself
            if details:
                notes.append("a TIFF's EXIF is left out")
            return b""
        for tag, side in (("ExifImageWidth", image.width), ("ExifImageHeight", image.height)):
            if ExifTags.Base[tag] in details:
                details[ExifTags.Base[tag]] = _high(side)
        content = exif.tobytes() if exif else b""
    except Exception as error:  # as in `_open`
        notes.append(f"its EXIF is damaged and left out ({_cause(error)})")
        return b""
    if kind == "JPEG" and len(content) > 65_533:
        notes.append("its EXIF is larger than JPEG allows, and left out")
        return b""
    return content


def _take_apart(image: Image.Image, path: Path, notes: list[str]) -> _Photo:
    """Brings any of Pillow's modes to L or RGB, and alpha apart."""
    if image.mode == "F":
        raise UserError(f"{_name(path)}: floating-point pixels have no known range; save it with 8 bits")
    if image.mode.startswith("I"):  # I;16, I;16B, and I for the 16 bits of a PGM
        values = np.asarray(image).astype(np.int64)  # [h, w]
        if values.min() < 0 or values.max() > 65_535:
            raise UserError(f"{_name(path)}: 32-bit pixels have no known range; save it with 8 bits")
        notes.append("16 bits a pixel become 8")
        return _Photo(Image.fromarray(((values + 128) // 257).astype(np.uint8)), notes=notes)
    if image.mode == "CMYK":
        notes.append("CMYK becomes RGB, with colours about right")
    plain = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        return _Photo(image.convert(plain), notes=notes)

    # Under full transparency any colour may stand, often black, and would bleed into what is seen. The blur
    # of the premultiplied picture carries the visible colours there
    image = image.convert(plain + "A")
    alpha = image.getchannel("A")
    around = image.convert(plain + "a").filter(ImageFilter.GaussianBlur(8)).convert(plain + "A")
    around.paste(image, mask=alpha.point([0] + [255] * 255))
    return _Photo(around.convert(plain), alpha, notes=notes)


def _enlarge_photo(model: nn.Module, photo: _Photo, bar: _Progress) -> Image.Image:
    """Enlarges colours by the net and alpha by bicubic interpolation; mode L, LA, RGB or RGBA.

    Tiles are pasted into Pillow's own memory, so the large result exists only once.
    """
    picture = torch.from_numpy(np.array(photo.image.convert("RGB"))).permute(2, 0, 1)  # [3, h, w]
    width, height = photo.image.size
    high = Image.new(photo.image.mode, (_high(width), _high(height)))
    for top, left, block in _tiles(model, picture, TILE, bar):
        pixels = Image.fromarray(block.permute(1, 2, 0).contiguous().numpy())  # [h, w, 3]
        high.paste(pixels.convert(high.mode), (left, top))
    if photo.alpha is not None:
        # Made even as the net does it, for the same alignment. Unlike Lanczos, bicubic leaves no ghost
        # of an edge in the clear part
        even = np.pad(np.asarray(photo.alpha), ((0, height % 2), (0, width % 2)), mode="edge")
        size = 7 * even.shape[1] // 2, 7 * even.shape[0] // 2
        alpha = Image.fromarray(even).resize(size, Image.Resampling.BICUBIC)
        high.putalpha(alpha.crop((0, 0, *high.size)))
    return high


# --- files -----------------------------------------------------------------------------------------------


class _Stream(io.BufferedWriter):
    """Hides the descriptor: Pillow writes JPEGs to one by itself, and does not notice when the last bytes
    find no room."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation


def _check(source: Path, target: Path, overwrite: bool) -> int:
    """What can be known of a job before computing; gives the input's size in pixels.

    Raises:
        UserError: as `_open`; or `target` is there, is `source`, or is of a format that cannot hold it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again, and are said, when the picture is read
        with _open(source) as image:
            size = image.size
    kind = WRITES.get(target.suffix.lower())
    if kind is None:
        raise UserError(
            f"{_name(target)}: end it in {', '.join(WRITES)}, or name a folder that is there already"
        )
    if target.exists():
        if target.samefile(source):
            raise UserError(f"{_name(target)} is the picture to be enlarged; name another output")
        if target.is_dir():
            raise UserError(f"{_name(target)} is a folder; move it, or name another output")
        if not overwrite:
            raise UserError(f"{_name(target)} exists; --overwrite replaces it")
    if _high(max(size)) > LONGEST_SIDE[kind]:
        raise UserError(
            f"{_name(source)}: the result is {_high(size[0])}x{_high(size[1])}, and {kind} holds at most "
            f"{LONGEST_SIDE[kind]:,} pixels a side; "
            + ("make it smaller" if kind == "PNG" else "write a .png")
        )
    return size[0] * size[1]


def _check_writable(folder: Path) -> None:
    """Makes the folder where it is missing.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write to {_name(folder)}: {error.strerror}; name another place") from None


def _pictures(folder: Path, target: Path, bad: list[str]) -> tuple[list[Path], int]:
    """Files below `folder` with a picture's suffix, sorted, and the number of others; unreadable folders
    go to `bad`. Hidden files and folders are left out, and so are the results where `target` lies inside."""
    found: list[Path] = []
    others = 0
    outputs = target.resolve()
    for place, folders, names in os.walk(folder, onerror=lambda error: bad.append(_unreadable(error))):
        here = Path(place)
        folders[:] = [n for n in folders if not n.startswith(".") and (here / n).resolve() != outputs]
        for name in names:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in SUFFIXES:
                found.append(here / name)
            else:
                others += 1
    return sorted(found), others


def _unreadable(error: OSError) -> str:
    return f"{_name(Path(error.filename))}: {error.strerror}"


def _name(path: Path) -> str:
    """A path in one printable line, whatever bytes it is made of."""
    return str(path) if str(path).isprintable() else repr(str(path))


def _cause(error: object) -> str:
    """What an exception or warning says, in one line, or its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
