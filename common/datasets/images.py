"""What has to be done to every image in the same way: decoding to plain pixels, sizes, floats and back."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image, ImageCms, ImageFile
from PIL.ExifTags import Base

from common.cli import UserError

if TYPE_CHECKING:  # the tool for ImageNet does without torch
    from torch import Tensor

TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_float(pixels: Tensor) -> Tensor:
    """From uint8 to float32 in 0..1, of any shape."""
    return pixels.float() / 255


def to_uint8(values: Tensor) -> Tensor:
    """From floats of about 0..1, which are clipped, to the nearest uint8; of any shape."""
    return (255 * values).round().clamp(0, 255).byte()


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1, which is upright, where there is none or a broken one."""
    try:
        number = image.getexif().get(Base.Orientation, 1)
    except Exception:  # Pillow raises whatever damaged EXIF leads it into
        return 1
    return number if number in TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """Follows EXIF's orientation. Pillow's own function rewrites the other tags too: broken ones stop it."""
    turn = orientation(image)
    return image.transpose(TURNS[turn]) if turn > 1 else image


def plain(file: ImageFile.ImageFile) -> tuple[Image.Image, list[str]]:
    """Decodes an open image file to what a screen takes, and says what this changes.

    Returns:
        the image, upright, 8 bits, mode L or RGB, or LA or RGBA where there is transparency;
        notes for people: 16 bits scaled to 8, CMYK made RGB through its profile, a PNG's gamma applied.

    Raises:
        UserError: the pixels have no known range. A damaged file makes a decoder raise anything.
    """
    notes, deep = [], False
    for coding, _, _, how in file.tile[:1]:  # how the file holds its pixels; a PPM's has their maximum
        deep = ";16" in str(how) or (coding.startswith("ppm") and cast(Any, how)[1] > 255)
    file.load()
    image = upright(file)
    if image.mode.startswith(("I", "F")):  # I;16, I;16B, and I for the 16 bits of a PGM
        levels, deep = np.asarray(image), True
        if image.mode == "F" or levels.min() < 0 or levels.max() > 65_535:
            raise UserError("floating-point or 32-bit pixels have no known range; save it with 8 bits")
        image = Image.fromarray((levels / 257).round().astype(np.uint8))
    if deep:
        notes.append("16 bits a channel become 8")
    if image.mode == "CMYK":
        try:
            profile, srgb = io.BytesIO(file.info["icc_profile"]), ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB") or image
            notes.append("CMYK becomes RGB through its colour profile")
        except (KeyError, ImageCms.PyCMSError):
            notes.append(
                "CMYK becomes RGB without a colour profile that can be used, with colours about right"
            )
    clear = image.has_transparency_data
    image = image.convert(("L" if image.mode in ("1", "L", "LA", "La") else "RGB") + "A" * clear)
    gamma = 2.2 * file.info.get("gamma", 0)  # a PNG's, times a screen's; sRGB and profiles go before it
    if 0.05 < abs(gamma - 1) < 20 and gamma > 0.02 and not {"icc_profile", "srgb"} & file.info.keys():
        notes.append(f"its gamma of {gamma / 2.2:.3g} is applied")
        levels = (255 * np.linspace(0, 1, 256) ** (1 / gamma)).round().astype(int)
        colours = len(image.getbands()) - clear
        image = image.point(levels.tolist() * colours + [*range(256)] * clear)
    return image, notes


def size_by_shorter(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Width and height in pixels of an image that is scaled until its shorter side is `shorter`."""
    scale = shorter / min(width, height)
    return max(shorter, round(width * scale)), max(shorter, round(height * scale))


def resize_shorter(image: Image.Image, shorter: int) -> Image.Image:
    """The whole image with its shorter side at `shorter` pixels (Pillow bicubic), up or down."""
    return image.resize(size_by_shorter(*image.size, shorter), Image.Resampling.BICUBIC)
