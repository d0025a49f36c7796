"""What every image goes through, to train on or to be upscaled: upright, 8 bits, RGB as a screen takes it."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_inference_upscale import cmyk_profile, photo, png

from common.cli import UserError
from common.datasets import photos
from common.datasets.images import orientation, plain


def read(path: Path) -> tuple[Image.Image, list[str]]:
    with Image.open(path) as file:
        return plain(file)


def test_cmyk_goes_through_its_profile_where_it_has_a_usable_one(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (300, 300), (255, 0, 0, 0))
    for name, profile in (("plain", b""), ("pink", cmyk_profile((128, 200, 80))), ("broken", b"?" * 200)):
        cyan.save(tmp_path / f"{name}.jpg", icc_profile=profile, quality=95)
        image, (note,) = read(tmp_path / f"{name}.jpg")
        red, green, blue = image.getpixel((9, 9))
        assert (red > 170 and green < 60) == (name == "pink") == ("through its colour profile" in note)
        for reading in (photos.read, photos.read_to_train):
            assert reading(tmp_path / f"{name}.jpg").getpixel((9, 9)) == (red, green, blue)


def test_a_gamma_is_applied_to_colours_alone_and_photos_get_it_too(tmp_path: Path) -> None:
    linear = (b"gAMA", (100_000).to_bytes(4, "big"))
    for kind, pixel, wanted in ((2, [55] * 3, (127,) * 3), (6, [55, 55, 55, 77], (127, 127, 127, 77))):
        (tmp_path / "in.png").write_bytes(png(linear, pixels=bytes(pixel), head=bytes([8, kind, 0, 0, 0])))
        image, notes = read(tmp_path / "in.png")
        assert image.getpixel((0, 0)) == wanted and notes == ["its gamma of 1 is applied"]
        photo = photos.read(tmp_path / "in.png").getpixel((0, 0))
        assert photo == ((127,) * 3 if kind == 2 else (round(255 - 128 * 77 / 255),) * 3)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGB", "RGBA", "CMYK"])
def test_modes_become_four(tmp_path: Path, mode: str) -> None:
    photo(mode).save(tmp_path / "in.tif" if mode == "CMYK" else tmp_path / "in.png")
    image, notes = read(next(tmp_path.iterdir()))
    assert image.mode == {"1": "L", "P": "RGB", "CMYK": "RGB"}.get(mode, mode)
    assert len(notes) == (mode == "CMYK")
    assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(photo(mode).convert("RGB")))


@pytest.mark.parametrize("levels", [np.array([[-1, 5]], np.int32), np.array([[0, 65_536]], np.int32)])
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, levels: np.ndarray) -> None:
    Image.fromarray(levels).save(tmp_path / "in.tif")
    with pytest.raises(UserError, match="no known range"):
        read(tmp_path / "in.tif")
    with pytest.raises(photos.Unreadable, match="no known range"):
        photos.read(tmp_path / "in.tif")


@pytest.mark.parametrize("harm", [b"Exif\0\0MM", b"Exif\0\0XX\0*\0\0\0\x08", b"Exif\0\0MM\0*\xff\xff"])
def test_damaged_exif_costs_no_photo(tmp_path: Path, harm: bytes) -> None:
    """Pillow raises on these; the pixels are whole."""
    photo().save(tmp_path / "in.png", exif=harm)
    assert np.array_equal(np.asarray(photos.read(tmp_path / "in.png")), np.asarray(photo()))
    with Image.open(tmp_path / "in.png") as image, pytest.raises((SyntaxError, struct.error)):
        image.getexif()
    with Image.open(tmp_path / "in.png") as image:
        assert orientation(image) == 1
