"""What trained upscalers are used for: image files are read, upscaled by 3.5 in tiles, and saved.

The net takes floats in 0..1, [N,3,h,w], and returns [N,3,(7h+1)//2,(7w+1)//2]; `reach` says how many
low-resolution pixels away an output pixel can still see.
"""

import copy
import io
import itertools
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
from PIL import Image, ImageCms, ImageFile, ImageFilter, UnidentifiedImageError
from PIL.ExifTags import IFD, Base
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from common import weights
from common.cli import UserError, command, commit
from common.datasets.image_files import FORMATS, REASONS, SUFFIXES, ImageFiles
from common.datasets.images import to_8_bits, upright
from common.evaluation.upscale import upscale
from common.files import DiskFull, atomic_write, cause_of, check_writable
from common.models.upscale import LinearFilter, Upscaler, upscaled_size

WRITES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # libjpeg stops a little below its format
SAVE_OPTIONS = {
    "PNG": {"compress_level": 1},  # on photos 5 times as fast as level 6, and 10 % larger
    "JPEG": {"quality": 95, "subsampling": 0},  # 4:4:4
    "WEBP": {"quality": 95},
}
TILE = 256  # low-resolution pixels a side: on a CPU, larger ones save overlap and lose the cache
LARGEST = 120_000_000  # pixels of an input; the result then takes 6 GB of memory


def save(path: Path, nets: dict[str, nn.Module], facts: dict[str, Any]) -> dict[str, Any]:
    """Writes the nets `linear`, `fidelity` and `gan`, and what is known of them, which is returned too."""
    gan = cast(Upscaler, nets["gan"])
    size = {"channels": gan.head.out_channels, "blocks": len(gan.body)}
    about = size | facts | {"command": command(), "commit": commit()}
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
    Palettes become RGB or RGBA. What changes is said: 16 bits become 8, CMYK becomes RGB, by its profile if
    it has one, a PNG's gamma is applied, an animation is its first image, a TIFF's EXIF is left out.

    Returns:
        0, or 1 where a part of a folder could not be done; it is named on stderr, and the rest is done.

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
        raise UserError(f"{_name(Path(error.filename or source))}: {cause_of(error)}") from None
    print(f"{_name(target)}: {width}x{height}")
    return 0


def _upscale_folder(model: nn.Module, source: Path, target: Path, overwrite: bool) -> int:
    if target.exists() and not target.is_dir():
        raise UserError(f"{_name(target)} is a file; name a folder for the images of {_name(source)}")
    if target.exists() and target.samefile(source):
        raise UserError(f"{_name(target)} holds the images themselves; name another folder")
    found = ImageFiles(source, without=target)
    files = [source / os.fsdecode(path) for path in found.paths]
    left_out = f"; {line}" if (line := found.left_out_line()) else ""
    if not files:
        raise UserError(f"{_name(source)}: no images in this folder{left_out}")

    # First all checks that need no computing
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
        except (UserError, OSError) as error:
            print(error, file=sys.stderr)
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
                progress.add(end - progress.done)
    failed = len(files) - done
    could_not = f", {failed} could not be (named above)" if failed else ""
    print(f"{_name(target)}: {done} of {len(files)} images upscaled{could_not}{left_out}")
    return 1 if failed or found.unreadable else 0


def check(source: Path, target: Path, overwrite: bool) -> int:
    """What can be known before computing; returns the number of pixels of `source`. A UserError as `_opened`,
    or where `target` is there, is `source`, or is of a format that cannot hold the result."""
    with _opened(source) as (image, _):
        width, height = image.size
    kind = WRITES.get(target.suffix.lower())
    if kind is None:
        raise UserError(f"{_name(target)}: end it in {', '.join(WRITES)}, or name a folder that is there")
    if target.exists():
        if target.samefile(source):
            raise UserError(f"{_name(target)} is the image to be upscaled; name another output")
        if target.is_dir():
            raise UserError(f"{_name(target)} is a folder; move it, or name another output")
        if not overwrite:
            raise UserError(f"{_name(target)} exists; --overwrite replaces it")
    size, longest = (upscaled_size(width), upscaled_size(height)), LONGEST_SIDE.get(kind)
    if longest and max(size) > longest:
        limit = f"the result is {size[0]}x{size[1]}, and {kind} holds at most {longest:,} pixels a side"
        raise UserError(f"{_name(source)}: {limit}; write a .png")
    return width * height


def _upscale_file(model: nn.Module, source: Path, target: Path, progress: "Progress") -> tuple[int, int]:
    """Upscales one checked file; returns width and height of the result."""
    kind = WRITES[target.suffix.lower()]
    colours, alpha, extras = _read(source, kind)
    if alpha and kind == "JPEG":
        raise UserError(f"{_name(source)} has transparency, and JPEG has not; write a .png or a .webp")
    try:
        with atomic_write(target) as temporary:  # from here on, so that an unwritable folder costs no waiting
            hr = _upscale_image(model, colours, alpha, progress)
            with _Stream(temporary.open("wb", buffering=0)) as stream:
                hr.save(stream, kind, **SAVE_OPTIONS[kind], **extras)
    except (MemoryError, RuntimeError) as error:  # torch has no MemoryError of its own
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        width, height = map(upscaled_size, colours.size)
        raise UserError(f"{_name(source)}: there is not enough memory for {width}x{height} pixels") from None
    return hr.size


class _Stream(io.BufferedWriter):
    """Hides the descriptor: Pillow writes JPEGs to one by itself, and misses that there was no room."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation


class Progress(tqdm):
    """Counts lr pixels: a bar where there is a terminal, and before a long run a line with its time."""

    done, timed, seconds, announced = 0, 0, 0.0, False  # pixels; those whose time is known, and that time

    def __init__(self, pixels: int) -> None:
        super().__init__(total=pixels, unit="px", unit_scale=True, leave=False, disable=None)

    def add(self, pixels: int, seconds: float = 0.0) -> None:
        """Counts pixels, and the time that the net took for them, 0 where they are skipped."""
        if seconds and (self.done or seconds > 2):  # the first is slow, which counts little in a long time
            self.timed, self.seconds = self.timed + pixels, self.seconds + seconds
        self.done += pixels
        self.update(pixels)
        if self.seconds > 0.5 and not self.announced:
            self.announced = True
            left = self.seconds * (self.total - self.done) / self.timed
            if left > 5:
                tqdm.write(f"upscaling will take about {tqdm.format_interval(left)} (min:s), then saving")


def tiles(
    model: nn.Module, lr: Tensor, progress: Progress, tile: int = TILE
) -> Iterator[tuple[int, int, Tensor]]:
    """Upscales `lr`, uint8 [3,h,w], in tiles of an even side: memory for the net is the same for any image.

    The net pads its input, which is right at the image's border and wrong at a tile's. So each tile is
    computed with a margin as wide as the net can see, which is then cut off.

    Yields:
        (top, left, uint8 [3,h,w]), all in high-resolution pixels, until the image is covered.
    """
    _, height, width = lr.shape
    reach = cast(int, model.reach)
    margin = reach + reach % 2  # even as well, to keep the pairs together
    for top, left in itertools.product(range(0, height, tile), range(0, width, tile)):
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
    """Upscales colours by the net and alpha by bicubic interpolation; mode L, LA, RGB or RGBA."""
    hr = Image.new(colours.mode, (upscaled_size(colours.width), upscaled_size(colours.height)))
    for top, left, block in tiles(model, TF.pil_to_tensor(colours.convert("RGB")), progress):
        hr.paste(TF.to_pil_image(block).convert(hr.mode), (left, top))  # so the result exists only once
    if alpha:
        # Padded to even sides as the net does it, for the same alignment. Unlike Lanczos, bicubic leaves no
        # ghost of an edge in the clear part
        even = np.pad(np.asarray(alpha), ((0, alpha.height % 2), (0, alpha.width % 2)), mode="edge")
        size = 7 * even.shape[1] // 2, 7 * even.shape[0] // 2
        hr.putalpha(Image.fromarray(even).resize(size, Image.Resampling.BICUBIC).crop((0, 0, *hr.size)))
    return hr


@contextmanager
def _opened(path: Path) -> Iterator[tuple[ImageFile.ImageFile, list[warnings.WarningMessage]]]:
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
            with Image.open(path, formats=FORMATS) as image:
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
        suffix, cause = path.suffix.lower(), f"not an image that can be read ({', '.join(FORMATS)})"
        if suffix and suffix not in SUFFIXES:
            cause = REASONS.get(suffix, cause)
    except Exception as error:  # a decoder raises whatever a damaged file leads it into
        known = isinstance(error, MemoryError) or getattr(error, "strerror", None)
        cause = cause_of(error) if known else f"damaged or cut short ({cause_of(error)})"
    raise UserError(f"{_name(path)}: {cause.replace('{s}', '')}")


def _read(path: Path, kind: str) -> tuple[Image.Image, Image.Image | None, dict[str, bytes]]:
    """Decodes an image, to be upscaled and saved in format `kind`, and says what the result will lack.

    Returns:
        the colours, upright, mode L or RGB; alpha, mode L, 255 where opaque, or None without transparency;
        `icc_profile` and `exif` for Pillow's `save`, where there are such.
    """
    with _opened(path) as (image, notes):
        for coding, _, _, how in image.tile[:1]:  # how the file holds its pixels; a PPM's has their maximum
            if ";16" in str(how) or (coding.startswith("ppm") and cast(Any, how)[1] > 255):
                _note("16 bits a channel become 8")
        image.load()
        turned, exif = _follow_exif(image, kind)
        colours, alpha = _split_alpha(turned)
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a photo, its preview
            _note("only the first of its images is upscaled")
        # A profile describes one kind of pixels; WebP has no greyscale
        profile = image.info.get("icc_profile") if image.mode != "CMYK" else None
        if profile and profile[16:20] != (b"GRAY" if colours.mode == "L" and kind != "WEBP" else b"RGB "):
            _note("its colour profile is for other pixels than the result has, and is left out")
            profile = None
        gamma = 2.2 * image.info.get("gamma", 0)  # a PNG's, times a screen's; sRGB and profiles go before it
        if 0.05 < abs(gamma - 1) < 20 and gamma > 0.02 and not {"icc_profile", "srgb"} & image.info.keys():
            _note(f"its gamma of {gamma / 2.2:.3g} is applied")
            levels = 255 * np.linspace(0, 1, 256) ** (1 / gamma)
            colours = colours.point(levels.round().astype(int).tolist() * len(colours.getbands()))
    for note in notes:
        tqdm.write(f"{_name(path)}: {' '.join(str(note.message).split())}", file=sys.stderr)
    extras = {"icc_profile": profile, "exif": exif}
    return colours, alpha, {name: content for name, content in extras.items() if content}


def _follow_exif(image: Image.Image, kind: str) -> tuple[Image.Image, bytes]:
    """Turns the image as its EXIF says; also gives that EXIF for the result, without orientation."""
    turned, content = image, b""
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
    except MemoryError:
        raise
    except Exception as error:  # as in `_opened`
        _note(f"its EXIF is damaged and left out ({cause_of(error)})")
    if kind == "JPEG" and len(content) > 65_533:
        _note("its EXIF is larger than JPEG allows, and left out")
        content = b""
    return turned, content


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Brings any of Pillow's modes to L or RGB, and alpha apart."""
    if image.mode == "F":
        raise UserError("floating-point pixels have no known range; save it with 8 bits")
    if image.mode.startswith("I"):  # I;16, I;16B, and I for the 16 bits of a PGM
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65_535:
            raise UserError("32-bit pixels have no known range; save it with 8 bits")
        image = to_8_bits(image)
    if image.mode == "CMYK":
        try:
            profile, srgb = io.BytesIO(image.info["icc_profile"]), ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB") or image
            _note("CMYK becomes RGB through its colour profile")
        except (KeyError, ImageCms.PyCMSError):
            _note("CMYK becomes RGB without a colour profile that can be used, with colours about right")
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
