"""What trained upscalers are used for: image files are read, upscaled by 3.5 in tiles, and saved.

Two low-resolution pixels become seven, so a side of n pixels becomes (7 n + 1) // 2. The net is

    model(lr: float [N,3,h,w] in 0..1) -> float [N,3,(7h+1)//2,(7w+1)//2]

and `model.reach` says how many low-resolution pixels away an output pixel can still see.
"""

import copy
import io
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageFilter, UnidentifiedImageError
from PIL.ExifTags import IFD, Base
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from common import weights
from common.cli import UserError, command, commit, device_name
from common.datasets.images import to_8_bits, upright
from common.datasets.photos import Photos
from common.evaluation.upscale import upscale
from common.files import DiskFull, atomic_write, check_writable
from common.models.upscale import LinearFilter, Upscaler, upscaled_size
from common.results import Scores

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


def save(
    path: Path,
    nets: dict[str, nn.Module],
    data: Photos,
    phases: dict[str, Any],
    scores: Scores,
    count: int,
    device: torch.device,
) -> dict[str, Any]:
    """Writes the nets `linear`, `fidelity` and `gan`, and what is known of them, which is returned too.

    Args:
        phases: the record of the run.
        scores, count: by method, on so many images.
    """
    gan = cast(Upscaler, nets["gan"])
    about = {
        "channels": gan.head.out_channels,
        "blocks": len(gan.body),
        "data": data.name,
        "images": len(data.train),
        "phases": phases,
        "command": command(),
        "commit": commit(),
        "device": device_name(device),
        "scores": {"images": count, "fidelity": scores["fidelity"], "GAN": scores["GAN"]},
    }
    weights.save(path, nets, about)
    return about


def load(path: Path, device: torch.device) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """Reads what `save` wrote; the nets are in eval mode.

    Raises:
        UserError: there is no such file, or it holds other weights.
    """
    states, about = weights.load(path)
    try:
        size = int(about["channels"]), int(about["blocks"])
        nets = {"linear": LinearFilter(), "fidelity": Upscaler(*size), "gan": Upscaler(*size)}
        for name, net in nets.items():
            net.load_state_dict(states[name])
            net.to(device).to(memory_format=torch.channels_last).eval()
        print(f"Weights: {path}, trained on {about['data']}")
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError):
        raise UserError(f"--weights: {path} holds no weights of this script; name another file") from None
    return nets, about


@torch.no_grad()
def blend(fidelity: nn.Module, gan: nn.Module, share: float) -> nn.Module:
    """(1 - share) fidelity + share GAN, weight by weight (Wang et al. 2018, "ESRGAN", section 3.4)."""
    mixed = copy.deepcopy(fidelity)
    for weight, other in zip(mixed.parameters(), gan.parameters(), strict=True):
        weight.lerp_(other, share)
    return mixed


def upscale_files(model: nn.Module, source: Path, target: Path, *, overwrite: bool) -> int:
    """Upscales an image file, or every image below a folder, by 3.5.

    A file goes to the file `target`, in the format of its suffix, or into the folder `target` as a PNG.
    A folder goes to the folder `target`: PNGs with the same relative paths and stems.

    What stays: transparency, colour profile, EXIF (turned upright, sizes brought up to date), greyscale.
    Palettes become RGB or RGBA. What is lost is said: 16-bit greyscale becomes 8-bit, CMYK becomes RGB
    without its profile, an animation its first image, a TIFF's EXIF is left out.

    Returns:
        0, or 1 where an image of a folder could not be done; it is named on stderr, and the rest are done.

    Raises:
        UserError: `source` is a file that cannot be done, or a folder without images; `target` cannot be
            written; the disk is full.
    """
    try:
        if source.is_dir():
            return _upscale_folder(model, source, target, overwrite)
        if target.is_dir():
            target = target / f"{source.stem}.png"
        with Progress(check(source, target, overwrite)) as progress:
            width, height = _upscale_file(model, source, target, progress)
    except OSError as error:  # a path too long, a folder that may not be entered
        raise UserError(f"{_name(Path(error.filename or source))}: {error.strerror or error}") from None
    print(f"{_name(target)}: {width}x{height}")
    return 0


def _upscale_folder(model: nn.Module, source: Path, target: Path, overwrite: bool) -> int:
    """`upscale_files` for a folder: first all checks that need no computing, then image by image."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{_name(target)} is a file; name a folder for the images of {_name(source)}")
    if target.exists() and target.samefile(source):
        raise UserError(f"{_name(target)} holds the images themselves; name another folder")
    files, others, errors = _find_images(source, target)
    if not files and not errors:
        raise UserError(f"{_name(source)}: no images ({', '.join(sorted(SUFFIXES))}) in this folder")
    jobs = _plan(source, target, files, errors, overwrite)
    for line in errors:
        print(line, file=sys.stderr)
    if jobs:
        check_writable(target)

    done = 0
    with Progress(sum(pixels for _, _, pixels in jobs)) as progress:
        for file, output, pixels in jobs:
            end = progress.done + pixels
            try:
                _upscale_file(model, file, output, progress)
                done += 1
            except DiskFull as error:  # would meet every further image too
                raise UserError(f"{error}; {done} of {len(files)} images are done") from None
            except UserError as error:
                tqdm.write(str(error), file=sys.stderr)
                errors.append(str(error))
                progress.add(end - progress.done)
    print(
        f"{_name(target)}: {done} of {len(files)} images upscaled"
        + (f", {len(errors)} could not be (named above)" if errors else "")
        + (f", {others} other files left alone" if others else "")
    )
    return 1 if errors else 0


def _find_images(folder: Path, target: Path) -> tuple[list[Path], int, list[str]]:
    """Files below `folder` with an image's suffix, sorted; the number of others; a line for each folder that
    cannot be read. Hidden files and folders are left out, and so are the results where `target` is inside."""
    images: list[Path] = []
    others, errors = 0, []
    for root, folders, names in os.walk(
        folder, onerror=lambda error: errors.append(f"{_name(Path(error.filename))}: {error.strerror}")
    ):
        here = Path(root)
        folders[:] = [n for n in folders if n[0] != "." and (here / n).resolve() != target.resolve()]
        paths = [here / name for name in names if name[0] != "."]
        matching = [path for path in paths if path.suffix.lower() in SUFFIXES]
        images += matching
        others += len(paths) - len(matching)
    return sorted(images), others, errors


def _plan(
    source: Path, target: Path, files: list[Path], errors: list[str], overwrite: bool
) -> list[tuple[Path, Path, int]]:
    """Each file with its output and its size in pixels; those that cannot be done go to `errors`."""
    inputs = {file.resolve() for file in files}
    sources: dict[Path, Path] = {}
    jobs = []
    for file in files:
        output = (target / file.relative_to(source)).with_suffix(".png")
        first = sources.setdefault(output, file)
        try:
            if first != file:
                raise UserError(f"{_name(file)}: {_name(first)} becomes {output.name} too; rename one")
            if output.resolve() in inputs:
                raise UserError(f"{_name(file)}: would replace {_name(output)}, an image to be upscaled")
            jobs.append((file, output, check(file, output, overwrite)))
        except UserError as error:
            errors.append(str(error))
    return jobs


def check(source: Path, target: Path, overwrite: bool) -> int:
    """What can be known before computing; returns the number of pixels of `source`.

    Raises:
        UserError: as `_opened`; or `target` is there, is `source`, or is of a format that cannot hold it.
    """
    with _opened(source) as (image, _):
        width, height = image.size
    kind = WRITES.get(target.suffix.lower())
    if kind is None:
        endings = ", ".join(WRITES)
        raise UserError(f"{_name(target)}: end it in {endings}, or name a folder that is there already")
    if target.exists():
        if target.samefile(source):
            raise UserError(f"{_name(target)} is the image to be upscaled; name another output")
        if target.is_dir():
            raise UserError(f"{_name(target)} is a folder; move it, or name another output")
        if not overwrite:
            raise UserError(f"{_name(target)} exists; --overwrite replaces it")
    if upscaled_size(max(width, height)) > LONGEST_SIDE[kind]:
        result = f"the result is {upscaled_size(width)}x{upscaled_size(height)}"
        remedy = "make it smaller" if kind == "PNG" else "write a .png"
        limit = f"{kind} holds at most {LONGEST_SIDE[kind]:,} pixels a side"
        raise UserError(f"{_name(source)}: {result}, and {limit}; {remedy}")
    return width * height


def _upscale_file(model: nn.Module, source: Path, target: Path, progress: "Progress") -> tuple[int, int]:
    """Upscales one checked file; returns width and height of the result.

    Raises:
        UserError: damaged, or in a form that the target's format cannot hold; or it cannot be written.
    """
    kind = WRITES[target.suffix.lower()]
    colours, alpha, extras = _read(source, kind)
    if alpha and kind == "JPEG":
        raise UserError(f"{_name(source)} has transparency, and JPEG has not; write a .png or a .webp")
    try:
        with atomic_write(target) as temporary:  # from here on, so that an unwritable folder costs no waiting
            hr = _upscale_image(model, colours, alpha, progress)
            with _Stream(temporary.open("wb", buffering=0)) as stream:
                hr.save(stream, kind, **SAVE_OPTIONS[kind], **extras)
    except MemoryError:
        width, height = map(upscaled_size, colours.size)
        raise UserError(f"{_name(source)}: too little memory for {width}x{height} pixels") from None
    return hr.size


class _Stream(io.BufferedWriter):
    """Hides the descriptor: Pillow writes JPEGs to one by itself, and misses that there was no room."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation


class Progress(tqdm):
    """Counts lr pixels: a bar where there is a terminal, and before a long run a line with its time."""

    def __init__(self, pixels: int) -> None:
        super().__init__(total=pixels, unit="px", unit_scale=True, leave=False, disable=None)
        self.done, self.timed, self.seconds = 0, 0, 0.0  # pixels; those whose time is known, and that time
        self.announced = False

    def add(self, pixels: int, seconds: float = 0.0) -> None:
        """Counts pixels, and the time that the net took for them, 0 where they are skipped."""
        # the first tile is slow, which counts little in a long time
        if seconds and (self.done or seconds > 2):
            self.timed, self.seconds = self.timed + pixels, self.seconds + seconds
        self.done += pixels
        self.update(pixels)
        if self.seconds > 0.5 and not self.announced:
            self.announced = True
            remaining = self.seconds * (self.total - self.done) / self.timed
            if remaining > 5:
                time_left = tqdm.format_interval(remaining)
                tqdm.write(f"upscaling will take about {time_left} (min:s), then saving")


def tiles(
    model: nn.Module, lr: Tensor, progress: Progress, tile: int = TILE
) -> Iterator[tuple[int, int, Tensor]]:
    """Upscales `lr`, uint8 [3,h,w], so that memory for the net does not grow with the image.

    The net pads its input, which is right at the image's border and wrong at a tile's. So each tile is
    computed with a margin as wide as the net can see, which is then cut off.

    Yields:
        (top, left, uint8 [3,h,w]), all in high-resolution pixels, until the image is covered.
    """
    if tile % 2:
        raise ValueError("two pixels become seven: a tile's side must be even")
    _, height, width = lr.shape
    reach = cast(int, model.reach)
    margin = reach + reach % 2  # even as well, to keep the pairs together
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            above, before = min(top, margin), min(left, margin)
            part = lr[:, top - above : top + tile + margin, left - before : left + tile + margin]
            start = time.perf_counter()
            block = upscale(model, part[None])[0]
            seconds = time.perf_counter() - start
            above, before, side = 7 * above // 2, 7 * before // 2, 7 * tile // 2
            yield 7 * top // 2, 7 * left // 2, block[:, above : above + side, before : before + side]
            progress.add(min(tile, height - top) * min(tile, width - left), seconds)


def _upscale_image(
    model: nn.Module, colours: Image.Image, alpha: Image.Image | None, progress: Progress
) -> Image.Image:
    """Upscales colours by the net and alpha by bicubic interpolation; mode L, LA, RGB or RGBA.

    Tiles are pasted into Pillow's own memory, so the large result exists only once.
    """
    hr = Image.new(colours.mode, (upscaled_size(colours.width), upscaled_size(colours.height)))
    for top, left, block in tiles(model, TF.pil_to_tensor(colours.convert("RGB")), progress):
        hr.paste(TF.to_pil_image(block).convert(hr.mode), (left, top))
    if alpha:
        # Padded to even sides as the net does it, for the same alignment. Unlike Lanczos, bicubic leaves no
        # ghost of an edge in the clear part
        even = np.pad(np.asarray(alpha), ((0, alpha.height % 2), (0, alpha.width % 2)), mode="edge")
        size = 7 * even.shape[1] // 2, 7 * even.shape[0] // 2
        hr.putalpha(Image.fromarray(even).resize(size, Image.Resampling.BICUBIC).crop((0, 0, *hr.size)))
    return hr


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Image.Image, list[warnings.WarningMessage]]]:
    """An image whose head is read, and the warnings that come while it is open.

    Raises:
        UserError: missing, empty, not an image, too large, damaged; or raised within, and named here.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError("neither a file nor a folder")
        if path.stat().st_size == 0:
            raise UserError("the file is empty")
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            # Pillow warns from 89 megapixels on; ours is the limit that holds
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=READS) as image:
                if image.width * image.height > LARGEST:
                    raise Image.DecompressionBombError
                if image.width * image.height == 0:
                    raise UserError(f"the image has no pixels ({image.width}x{image.height})")
                yield image, notes
        return
    except UserError as error:
        cause = str(error)
    except Image.DecompressionBombError:
        cause = f"over {LARGEST // 10**6} megapixels, the most that is read; make it smaller"
    except UnidentifiedImageError:
        cause = f"not an image that can be read ({', '.join(READS)})"
    except Exception as error:  # a decoder raises whatever a damaged file leads it into
        cause = getattr(error, "strerror", None) or f"damaged or cut short ({_one_line(error)})"
    raise UserError(f"{_name(path)}: {cause}")


def _read(path: Path, kind: str) -> tuple[Image.Image, Image.Image | None, dict[str, bytes]]:
    """Decodes an image and takes it apart, so that it can be upscaled and saved in format `kind`.

    Says in a line each what the result will lack, and what Pillow warns of.

    Returns:
        the colours, upright, mode L or RGB; alpha, mode L, 255 where opaque, or None without transparency;
        `icc_profile` and `exif` for Pillow's `save`, where there are such.

    Raises:
        UserError: as `_opened`; truncated or otherwise damaged; pixels without a known range.
    """
    with _opened(path) as (image, notes):
        image.load()
        turned, exif = _follow_exif(image, kind)
        colours, alpha = _split_alpha(turned)
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a photo, its preview
            _note("only the first of its images is upscaled")
        # A profile describes one kind of pixels; WebP has no greyscale
        profile = image.info.get("icc_profile")
        if profile and profile[16:20] != (b"GRAY" if colours.mode == "L" and kind != "WEBP" else b"RGB "):
            _note("its colour profile is for other pixels than the result has, and is left out")
            profile = None
    for note in notes:
        tqdm.write(f"{_name(path)}: {_one_line(note.message)}", file=sys.stderr)
    extras = {"icc_profile": profile, "exif": exif}
    return colours, alpha, {name: content for name, content in extras.items() if content}


def _follow_exif(image: Image.Image, kind: str) -> tuple[Image.Image, bytes]:
    """Turns the image as its EXIF says; also gives that EXIF for the result, without orientation."""
    turned = image
    try:
        exif = image.getexif()
        if image.info.get("exif") and not exif:  # nothing in it could be read
            raise ValueError("no entries")
        turned = upright(image)
        exif.pop(Base.Orientation, None)
        details = exif.get_ifd(IFD.Exif)
        if image.format == "TIFF":  # there EXIF is mixed with the description of the file itself
            if details:
                _note("a TIFF's EXIF is left out")
            return turned, b""
        for tag, side in ((Base.ExifImageWidth, turned.width), (Base.ExifImageHeight, turned.height)):
            if tag in details:
                details[tag] = upscaled_size(side)
        content = exif.tobytes() if exif else b""
    except Exception as error:  # as in `_opened`
        _note(f"its EXIF is damaged and left out ({_one_line(error)})")
        return turned, b""
    if kind == "JPEG" and len(content) > 65_533:
        _note("its EXIF is larger than JPEG allows, and left out")
        return turned, b""
    return turned, content


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Brings any of Pillow's modes to L or RGB, and alpha apart."""
    if image.mode == "F":
        raise UserError("floating-point pixels have no known range; save it with 8 bits")
    if image.mode.startswith("I"):  # I;16, I;16B, and I for the 16 bits of a PGM
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65_535:
            raise UserError("32-bit pixels have no known range; save it with 8 bits")
        _note("16 bits a pixel become 8")
        image = to_8_bits(image)
    if image.mode == "CMYK":
        _note("CMYK becomes RGB, with colours about right")
    plain = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        return image.convert(plain), None

    # Under full transparency any colour may stand, often black, and would bleed into what is seen. The blur
    # of the premultiplied image carries the visible colours there
    image = image.convert(plain + "A")
    alpha = image.getchannel("A")
    around = image.convert(plain + "a").filter(ImageFilter.GaussianBlur(8)).convert(plain + "A")
    around.paste(image, mask=alpha.point([0] + [255] * 255))
    return around.convert(plain), alpha


def _note(text: str) -> None:
    """Adds to the warnings of the image that is being read."""
    warnings.warn(text, stacklevel=2)


def _name(path: Path) -> str:
    """A path in one printable line, whatever bytes it is made of."""
    return str(path) if str(path).isprintable() else repr(str(path))


def _one_line(error: object) -> str:
    """What an exception or warning says, in one line, or its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
