"""What has to be done to every image in the same way: turning it upright, 8 bits, sizes, floats and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

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
    number = image.getexif().get(Base.Orientation, 1)
    return number if number in TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """Follows EXIF's orientation. Pillow's own function rewrites the other tags too: broken ones stop it."""
    turn = orientation(image)
    return image.transpose(TURNS[turn]) if turn > 1 else image


def to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale scaled to 8 bits, where Pillow alone would clip it; others as they are."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.float64)
        return Image.fromarray((levels / 257).round().clip(0, 255).astype(np.uint8))
    return image


def size_by_shorter(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Width and height in pixels of an image that is scaled until its shorter side is `shorter`."""
    scale = shorter / min(width, height)
    return max(shorter, round(width * scale)), max(shorter, round(height * scale))


def resize_shorter(image: Image.Image, shorter: int) -> Image.Image:
    """The whole image with its shorter side at `shorter` pixels (Pillow bicubic), up or down."""
    return image.resize(size_by_shorter(*image.size, shorter), Image.Resampling.BICUBIC)
