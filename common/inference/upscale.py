"""What trained upscalers are used for: image files are read, upscaled in tiles by any factor, and saved.

The net takes floats in 0..1, [N,3,h,w], and returns [N,3,(7h+1)//2,(7w+1)//2]; `reach` says how many
low-resolution pixels away an output pixel can still see.
"""

import copy
import io
import itertools
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageFile, ImageFilter, UnidentifiedImageError
from PIL.ExifTags import IFD, Base
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from common import weights
from common.cli import UserError, command, commit, user_path
from common.datasets.image_files import FORMATS, REASONS, SUFFIXES, ImageFiles
from common.datasets.images import plain
from common.evaluation.upscale import upscale
from common.files import DiskFull, atomic_write, cause_of, check_writable
from common.models.upscale import DOWN, UP, LinearFilter, SelfEnsemble, Upscaler, upscaled_size

WRITES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
WRITES |= {".avif": "AVIF"} if "AVIF" in FORMATS else {}
LONGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65_500, "WEBP": 16_383, "AVIF": 16_384}  # that libraries read back
# Each format takes its own. PNGs take a fifth of the usual time and 10 % more bytes, AVIFs a ninth and 15 %
SAVE_OPTIONS: dict[str, Any] = {"subsampling": "4:4:4", "compress_level": 1, "speed": 9}
TILE = 256  # low-resolution pixels a side: on a CPU, larger ones save overlap and lose the cache
LARGEST = 1_470_000_000  # pixels of a result and what it is reduced from: 6 GB of memory


@dataclass(frozen=True)
class Options:
    """What is to become of images.

    Attributes:
        scale: factor, 1 to 12.25. The net's result is reduced to it; above 3.5 the net upscales that first.
        format: `png`, `jpg`, `webp`, `avif`, or `auto`: by the output's suffix, PNG in a folder.
        quality: 1 to 100, of JPEG, WebP and AVIF; None for 95.
        overwrite: whether files that are there are replaced.
    """

    scale: float = UP / DOWN
    format: str = "auto"
    quality: int | None = None
    overwrite: bool = False

    @property
    def passes(self) -> int:
        """How often the net is applied."""
        return 1 if self.scale <= UP / DOWN else 2

    def size(self, image: Image.Image) -> tuple[int, int]:
        """Width and height of the result in pixels; halves are rounded up."""
        return math.floor(image.width * self.scale + 0.5), math.floor(image.height * self.scale + 0.5)

    def largest(self) -> int:
        """How many pixels an image may have."""
        part = self.scale / (UP / DOWN) ** self.passes % 1  # 0 where nothing is reduced: width, then height
        return int(LARGEST / (UP / DOWN) ** (2 * self.passes) / (1 + part + part**2))


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
        size = about["channels"], about["blocks"]
        nets: dict[str, nn.Module] = {"linear": weights.build(LinearFilter, (), states["linear"])}
        nets |= {name: weights.build(Upscaler, size, states[name]) for name in ("fidelity", "gan")}
        for net in nets.values():
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


def run(config: Any, path: Path, device: torch.device) -> int:
    """What --input asks for, with the weights in `path`; returns and raises as `upscale_files`."""
    source, target = user_path("input", config.input), user_path("output", config.output)
    nets, _ = load(path, device)
    net = blend(nets["fidelity"], nets["gan"], config.blend)
    net = SelfEnsemble(net) if config.self_ensemble else net
    options = Options(config.scale, config.format, config.quality, config.overwrite)
    return upscale_files(net, source, target, options)


def upscale_files(model: nn.Module, source: Path, target: Path, options: Options) -> int:
    """Upscales an image file, or every image below a folder.

    A file goes to the file `target`, in the format of its suffix, or into the folder `target`.
    A folder goes to the folder `target`: images with the same relative paths and stems.

    What stays: transparency, colour profile, EXIF (turned upright, sizes brought up to date), greyscale.
    Palettes become RGB or RGBA. What changes is said: 16 bits become 8, CMYK becomes RGB, by its profile if
    it has one, a PNG's gamma is applied, an animation is its first image, a TIFF's EXIF is left out.

    Returns:
        0, or 1 where a part of a folder could not be done; it is named on stderr, and the rest is done.

    Raises:
        UserError: `source` is no image and holds none; `target` cannot be written; the disk is full.
    """
    try:
        into = source.is_dir() or target.is_dir()
        suffix = f".{options.format}".replace("auto", "png") if into else target.suffix.lower()
        if suffix not in WRITES:
            raise UserError(f"{_name(target)}: end it in {', '.join(WRITES)}, or name a folder that is there")
        if options.format != "auto" and WRITES[suffix] != WRITES.get(f".{options.format}"):
            raise UserError(f"--format {options.format} is not what {_name(target)} ends in; leave it out")
        if options.quality and suffix == ".png":
            raise UserError("--quality means nothing with PNG, which loses nothing; leave it out")
        if options.passes > 1:
            print("Above 3.5 the net upscales its own result: its made-up details get made-up details.")
        if source.is_dir():
            return _upscale_folder(model, source, target, suffix, options)
        target = target / f"{source.stem}{suffix}" if into else target
        with Progress(check(source, target, options)) as progress:
            width, height = _upscale_file(model, source, target, options, progress)
    except OSError as error:  # a path too long, a folder that may not be entered
        raise UserError(f"{_name(Path(error.filename or source))}: {cause_of(error)}") from None
    print(f"{_name(target)}: {width}x{height}")
    return 0


def _upscale_folder(model: nn.Module, source: Path, target: Path, suffix: str, options: Options) -> int:
    check_writable(target)
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
        output = (target / file.relative_to(source)).with_suffix(suffix)
        first = sources.setdefault(output, file)
        try:
            if first != file:
                raise UserError(f"{_name(file)}: {_name(first)} becomes {output.name} too; rename one")
            if output.resolve() in inputs:
                raise UserError(f"{_name(file)}: would replace {_name(output)}, an image to be upscaled")
            jobs.append((file, output, check(file, output, options)))
        except (UserError, OSError) as error:
            print(error, file=sys.stderr)

    done = 0
    with Progress(sum(pixels for _, _, pixels in jobs)) as progress:
        for file, output, pixels in jobs:
            end = progress.done + pixels
            try:
                _upscale_file(model, file, output, options, progress)
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


def check(source: Path, target: Path, options: Options) -> int:
    """How many pixels go into the net; a UserError where it is known before that there can be no result."""
    with _opened(source, options) as (image, _):
        size = options.size(image)
    if target.exists():
        if target.samefile(source):
            raise UserError(f"{_name(target)} is the image to be upscaled; name another output")
        if target.is_dir():
            raise UserError(f"{_name(target)} is a folder; move it, or name another output")
        if not options.overwrite:
            raise UserError(f"{_name(target)} exists; --overwrite replaces it")
    kind = WRITES[target.suffix.lower()]
    if max(size) > LONGEST_SIDE[kind]:
        most = f"{kind} holds at most {LONGEST_SIDE[kind]:,} pixels a side"
        raise UserError(f"{_name(source)}: the result is {size[0]}x{size[1]}, and {most}; write a .png")
    again = upscaled_size(image.width) * upscaled_size(image.height) * (options.passes - 1)
    return image.width * image.height + again


def _upscale_file(
    model: nn.Module, source: Path, target: Path, options: Options, progress: "Progress"
) -> tuple[int, int]:
    """Upscales one checked file; returns width and height of the result."""
    kind = WRITES[target.suffix.lower()]
    lr, extras = _read(source, kind, options)
    if lr.mode.endswith("A") and kind == "JPEG":
        raise UserError(f"{_name(source)} has transparency, and JPEG has not; write a .png or a .webp")
    try:
        with atomic_write(target) as temporary:  # from here on, so that an unwritable folder costs no waiting
            hr = _upscale_image(model, lr, options, progress)
            with _Stream(temporary.open("wb", buffering=0)) as stream:
                hr.save(stream, kind, quality=options.quality or 95, **SAVE_OPTIONS, **extras)
    except (MemoryError, RuntimeError) as error:  # torch has no MemoryError of its own
        if "memory" not in cause_of(error):
            raise
        width, height = options.size(lr)
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
    margin = 2 * math.ceil(cast(int, model.reach) / 2)  # even as well, to keep the pairs together
    for top, left in itertools.product(range(0, height, tile), range(0, width, tile)):
        above, before = min(top, margin), min(left, margin)
        part = lr[:, top - above : top + tile + margin, left - before : left + tile + margin]
        start = time.perf_counter()
        block = upscale(model, part[None])[0]
        seconds = time.perf_counter() - start
        above, before, side = 7 * above // 2, 7 * before // 2, 7 * tile // 2
        yield 7 * top // 2, 7 * left // 2, block[:, above : above + side, before : before + side]
        progress.add(min(tile, height - top) * min(tile, width - left), seconds)


def _upscale_image(model: nn.Module, lr: Image.Image, options: Options, progress: Progress) -> Image.Image:
    """Upscales colours by the net and alpha by bicubic interpolation; mode L, LA, RGB or RGBA."""
    alpha, size, factor = None, options.size(lr), (UP / DOWN) ** options.passes
    if lr.mode.endswith("A"):
        # Under full transparency any colour may stand, often black, and would bleed into what is seen. The
        # blur of the premultiplied image carries the visible colours there
        alpha = lr.getchannel("A")
        around = lr.convert(f"{lr.mode[:-1]}a").filter(ImageFilter.GaussianBlur(8)).convert(lr.mode)
        around.paste(lr, mask=alpha.point([0] + [255] * 255))
        lr = around.convert(lr.mode[:-1])
    hr = lr
    for _ in range(options.passes):
        pixels = TF.pil_to_tensor(hr.convert("RGB"))
        hr = Image.new(lr.mode, (upscaled_size(hr.width), upscaled_size(hr.height)))
        for top, left, block in tiles(model, pixels, progress):
            hr.paste(TF.to_pil_image(block).convert(hr.mode), (left, top))  # so the result exists only once
    # What `size` covers of the net's result, which goes on a little beyond it at odd sides
    right, bottom = (min(factor * new / options.scale, made) for new, made in zip(size, hr.size, strict=True))
    if hr.size != size:
        hr = hr.resize(size, Image.Resampling.LANCZOS, (0, 0, right, bottom))
    if alpha:
        # Padded where the net is, for alignment. Unlike Lanczos, bicubic leaves no ghost in the clear part
        width, height = right / factor, bottom / factor
        more = (0, math.ceil(height) - alpha.height), (0, math.ceil(width) - alpha.width)
        alpha = Image.fromarray(np.pad(np.asarray(alpha), more, mode="edge"))
        hr.putalpha(alpha.resize(size, Image.Resampling.BICUBIC, (0, 0, width, height)))
    return hr


@contextmanager
def _opened(path: Path, options: Options) -> Iterator[tuple[ImageFile.ImageFile, list[Any]]]:
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
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit holds
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > options.largest():
                    raise Image.DecompressionBombError
                if image.width * image.height == 0:
                    raise UserError(f"the image has no pixels ({image.width}x{image.height})")
                yield image, notes
        return
    except UserError as error:
        cause = str(error)
    except Image.DecompressionBombError:
        cause = f"over {options.largest():,} pixels, the most at --scale {options.scale:g}; make it smaller"
    except UnidentifiedImageError:
        suffix, cause = path.suffix.lower(), f"not an image that can be read ({', '.join(FORMATS)})"
        if suffix and suffix not in SUFFIXES:
            cause = REASONS.get(suffix, cause)
    except Exception as error:  # a decoder raises whatever a damaged file leads it into
        known = isinstance(error, MemoryError) or getattr(error, "strerror", None)
        cause = cause_of(error) if known else f"damaged or cut short ({cause_of(error)})"
    raise UserError(f"{_name(path)}: {cause.replace('{s}', '')}")


def _read(path: Path, kind: str, options: Options) -> tuple[Image.Image, dict[str, bytes]]:
    """Decodes an image, to be upscaled and saved in format `kind`, and says what the result will lack.

    Returns:
        the image, upright, mode L, LA, RGB or RGBA; `icc_profile` and `exif` for Pillow's `save`.
    """
    with _opened(path, options) as (file, warned):
        image, notes = plain(file)
        if getattr(file, "is_animated", False) and file.format != "MPO":  # a photo, its preview
            notes.append("only the first of its images is upscaled")
        # A profile describes one kind of pixels; the other formats have no greyscale
        grey = image.mode.startswith("L") and kind in ("PNG", "JPEG")
        profile = file.info.get("icc_profile", b"") if file.mode != "CMYK" else b""
        if profile and profile[16:20] != (b"GRAY" if grey else b"RGB "):
            notes.append("its colour profile is for other pixels than the result has, and is left out")
            profile = b""
        exif = _exif(file, kind, options.size(image), notes)
    for note in [*(str(warning.message) for warning in warned), *notes]:
        tqdm.write(f"{_name(path)}: {' '.join(note.split())}", file=sys.stderr)
    return image, {"icc_profile": profile, "exif": exif}


def _exif(file: ImageFile.ImageFile, kind: str, size: tuple[int, int], notes: list[str]) -> bytes:
    """The EXIF for the result, which is upright and has this size; the notes say why there is none."""
    try:
        exif = file.getexif()
        if file.info.get("exif") and not exif:
            raise ValueError("no entry can be read")
        exif.pop(Base.Orientation, None)
        details = exif.get_ifd(IFD.Exif)
        if file.format == "TIFF":  # there EXIF is mixed with the description of the file itself
            notes += ["a TIFF's EXIF is left out"] * bool(details)
            return b""
        for tag, side in zip((Base.ExifImageWidth, Base.ExifImageHeight), size, strict=True):
            if tag in details:
                details[tag] = side
        content = exif.tobytes() if exif else b""
        if kind == "JPEG" and len(content) > 65_533:
            raise ValueError("larger than JPEG allows")
        return content
    except Exception as error:  # as in `_opened`
        notes.append(f"its EXIF is left out: {cause_of(error)}")
        return b""


def _name(path: Path) -> str:
    """A path in one printable line, whatever bytes it is made of."""
    return str(path) if str(path).isprintable() else repr(str(path))
