"""Picture files through an upscaler: tiles without seams, what survives, what is refused and how."""

import errno
import io
import os
import subprocess
import sys
import textwrap
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from torch import Tensor, nn
from torch.nn import functional as F

from common.cli import UserError
from common.datasets import image_files, photos
from common.inference import upscale as inference
from common.models.upscale import SelfEnsemble, bicubic, even, upscaled_size
from gan_upscale import Config

REPOSITORY = Path(__file__).parents[1]


class Net(nn.Module):
    """A small net of the kind that is expected, with random weights: a nearest-neighbour skip and three
    convolutions, which see three 2x2 blocks, so six pixels, in each direction."""

    reach = 6

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),  # [N, 12, h/2, w/2]
            nn.Conv2d(12, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 147, 3, padding=1),
            nn.PixelShuffle(7),  # [N, 3, 7h/2, 7w/2]
        )
        for weight in self.parameters():  # every pixel within reach must count
            nn.init.normal_(weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        high = F.interpolate(x, scale_factor=3.5) + 0.05 * self.body(x)
        return high[..., : (7 * height + 1) // 2, : (7 * width + 1) // 2]


class Nearest(nn.Module):
    """Repeats pixels: what comes out is known exactly."""

    reach = 0

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        return F.interpolate(x, scale_factor=3.5, mode="nearest-exact")[
            ..., : (7 * height + 1) // 2, : (7 * width + 1) // 2
        ]


class Bicubic(Nearest):
    """Places what it knows nothing of: smooth images come out where they were."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = map(upscaled_size, x.shape[-2:])
        return bicubic(even(x))[..., :height, :width]


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))


def photo(mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> Image.Image:
    """A smooth colour image, brighter to the right."""
    across, down = np.meshgrid(np.linspace(30, 220, size[0]), np.linspace(0, 60, size[1]))
    return Image.fromarray(np.stack([across, 250 - across, down], 2).astype(np.uint8)).convert(mode)


def upscale(model: nn.Module, image: Tensor, tile: int = inference.TILE) -> Tensor:
    """The tiles of an image, put together."""
    _, height, width = image.shape
    hr = torch.empty(3, upscaled_size(height), upscaled_size(width), dtype=torch.uint8)
    for top, left, block in inference.tiles(model, image, inference.Progress(height * width), tile):
        hr[:, top : top + block.shape[1], left : left + block.shape[2]] = block
    return hr


def run(source: Path, target: Path, model: nn.Module | None = None, **options: Any) -> int:
    return inference.upscale_files(model or Nearest(), source, target, inference.Options(**options))


def files(folder: Path) -> list[str]:
    """Everything below a folder, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def refused(source: Path, target: Path, **options: Any) -> str:
    """The one line of a refusal; the net must not have been asked."""

    class Never(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("computed before it was refused")

    with pytest.raises(UserError) as caught:
        run(source, target, Never(), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- tiles


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 6, 8, 14]), st.integers(0, 99))
def test_tiles_leave_no_seam(height: int, width: int, tile: int, seed: int) -> None:
    model, image = Net(), noise(height, width, seed)
    with torch.inference_mode():
        whole = model(image[None].float() / 255)[0].clamp(0, 1).mul(255).round()
    upscaled = upscale(model, image, tile)
    assert upscaled.dtype == torch.uint8
    assert upscaled.shape == (3, (7 * height + 1) // 2, (7 * width + 1) // 2)
    assert (upscaled.float() - whole).abs().max() <= 1


def test_a_margin_smaller_than_reach_would_leave_seams() -> None:
    """So the test above can fail: the stand-in net does look as far as it says."""
    model, image = Net(), noise(40, 40)
    untiled = upscale(model, image, 40).float()
    model.reach = 4
    assert (upscale(model, image, 8).float() - untiled).abs().max() > 1


@pytest.mark.parametrize("shift, becomes", [(0.0, 0), (-0.4, 0), (0.4, 0), (0.6, 1)])
def test_levels_are_rounded_to_the_nearest(shift: float, becomes: int) -> None:
    class Shifted(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + shift / 255

    image = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16)
    want = (image[:, ::2, ::2].int() + becomes).clamp(0, 255)
    assert torch.equal(upscale(Shifted(), image)[:, ::7, ::7].int(), want)


def test_odd_reach() -> None:
    model, image = Net(), noise(30, 30)
    untiled = upscale(model, image)
    model.reach = 5  # rounded up
    assert (upscale(model, image, 8).float() - untiled.float()).abs().max() <= 1


def test_files_are_tiled_like_tensors(tmp_path: Path) -> None:
    """An image of several tiles, odd on both sides, through files."""
    model, image = Net(), noise(259, 515)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "in.png")
    assert run(tmp_path / "in.png", tmp_path / "out.png", model=model) == 0
    out = torch.from_numpy(np.array(Image.open(tmp_path / "out.png"))).permute(2, 0, 1)
    assert torch.equal(out, upscale(model, image))


@pytest.mark.parametrize(
    "seconds, said", [([9] * 16, "02:15"), ([1.5] + [0.6] * 15, "00:08"), ([0.1] * 16, "")]
)
def test_long_runs_say_how_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seconds: list[float], said: str
) -> None:
    """16 tiles; the first also warms up, and counts only where it is slow beyond that."""
    clock = iter([time for second in seconds for time in (0, second)])
    monkeypatch.setattr(inference.time, "perf_counter", lambda: next(clock))
    upscale(Nearest(), noise(8, 8), 2)
    out = capsys.readouterr().out
    assert out == (f"upscaling will take about {said} (min:s), then saving\n" if said else "")


# --- what survives


def test_where_a_file_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo().save(tmp_path / "a.jpg")
    (tmp_path / "folder").mkdir()
    assert run(tmp_path / "a.jpg", tmp_path / "folder") == 0
    assert run(tmp_path / "a.jpg", tmp_path / "new" / "b.PNG") == 0
    assert capsys.readouterr().out.splitlines()[1] == f"{tmp_path / 'new' / 'b.PNG'}: 42x28"
    assert files(tmp_path) == ["a.jpg", "folder/a.png", "new/b.PNG"]


@pytest.mark.parametrize(
    "suffix, kind",
    [(".png", "PNG"), (".jpg", "JPEG"), (".jpeg", "JPEG"), (".webp", "WEBP"), (".avif", "AVIF")],
)
def test_suffix_chooses_the_format(tmp_path: Path, suffix: str, kind: str) -> None:
    photo().save(tmp_path / "in.webp", lossless=True)
    run(tmp_path / "in.webp", tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as out:
        assert (out.format, out.mode, out.size) == (kind, "RGB", (42, 28))
        if kind == "JPEG":
            assert {(layer[1], layer[2]) for layer in out.layer} == {(1, 1)}  # 4:4:4
        want = np.asarray(photo().resize((42, 28), Image.Resampling.NEAREST), float)
        assert np.abs(np.asarray(out, float) - want).mean() < 5  # WebP halves the resolution of colour


def test_an_existing_file_is_replaced_when_asked(tmp_path: Path) -> None:
    photo().save(tmp_path / "in.png")
    (tmp_path / "out.png").write_text("old")
    assert run(tmp_path / "in.png", tmp_path / "out.png", overwrite=True) == 0
    assert Image.open(tmp_path / "out.png").size == (42, 28)


@pytest.mark.parametrize(
    "name", ["with space.png", "-i.png", "ünï 写真 🙂.png", "a.b.c.png", "100%.png", "'q\".png"]
)
def test_hostile_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    photo().save(tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path / "in")
    assert run(Path(name), Path("..")) == 0
    assert run(Path(), Path("../out")) == 0
    assert files(tmp_path) == sorted([f"in/{name}", name, f"out/{name}"])


def test_a_name_never_breaks_the_line(tmp_path: Path) -> None:
    assert refused(tmp_path / "two\nlines.png", tmp_path / "out.png").count("\\n") == 1
    refused(tmp_path / os.fsdecode(b"latin\xe9.png"), tmp_path / "out.png").encode()


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_greyscale_stays_greyscale(tmp_path: Path, mode: str) -> None:
    photo(mode).save(tmp_path / "in.png")
    run(tmp_path / "in.png", tmp_path / "out.png")
    out = Image.open(tmp_path / "out.png")
    assert out.mode == {"1": "L"}.get(mode, mode)
    low, high = np.asarray(photo(mode).convert("L")), np.asarray(out.convert("L"))
    assert np.array_equal(high[::7, ::7], low[::2, ::2])
    assert np.array_equal(high[6::7, 6::7], low[1::2, 1::2])


def test_sixteen_bits_become_eight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.linspace(0, 65_535, 96).reshape(8, 12).astype(np.uint16)
    for name in ("in.png", "in.tif", "in.pgm", "in 32.tif"):
        Image.fromarray(values.astype(np.int32) if "32" in name else values).save(tmp_path / name)
        run(tmp_path / name, tmp_path / "out.png", overwrite=True)
        out = np.asarray(Image.open(tmp_path / "out.png"))
        assert out.min() == 0 and out.max() == 255
        assert np.abs(out[::7, ::7] - values[::2, ::2] / 257).max() <= 0.5
        assert "16 bits" in capsys.readouterr().err


def test_palettes_are_resolved(tmp_path: Path) -> None:
    photo().quantize(200).save(tmp_path / "plain.gif")
    clear = photo("RGBA").quantize(200)
    clear.save(tmp_path / "clear.png", transparency=int(np.asarray(clear)[0, 0]))
    run(tmp_path / "plain.gif", tmp_path / "plain.png")
    assert Image.open(tmp_path / "plain.png").mode == "RGB"
    run(tmp_path / "clear.png", tmp_path / "out.png")
    out = Image.open(tmp_path / "out.png")
    assert out.mode == "RGBA"
    assert out.getpixel((0, 0))[3] == 0 and out.getpixel((41, 27))[3] == 255


@pytest.mark.parametrize("size", [(12, 8), (13, 9)])
def test_alpha_is_kept_without_fringes(tmp_path: Path, size: tuple[int, int]) -> None:
    """A light disc on a clear ground that is black underneath: nothing dark may show."""
    down, across = np.mgrid[: size[1], : size[0]]
    disc = (down - 4) ** 2 + (across - 5) ** 2 <= 9
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    pixels[disc] = (250, 240, 230, 255)
    Image.fromarray(pixels).save(tmp_path / "in.png")

    class Blur(Nearest):  # mixes neighbours, as a net does
        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool2d(super().forward(x), 7, 1, 3, count_include_pad=False)

    for target in ("out.png", "out.webp"):
        run(tmp_path / "in.png", tmp_path / target, model=Blur())
        out = np.asarray(Image.open(tmp_path / target))
        assert out.shape[2] == 4
        assert out[0, 0, 3] == 0 and out[15, 19, 3] == 255
        assert np.abs(out[..., :3][out[..., 3] > 30].astype(int) - (250, 240, 230)).max() < 8
        assert abs(out[..., 3].mean() - pixels[..., 3].mean()) < 4  # as large as before, in its place


@pytest.mark.parametrize("scale", [1, 1.7, 2, 3.4, 3.5, 4.3, 7, 12.25])
@pytest.mark.parametrize("size", [(31, 23), (30, 22)])
def test_every_scale_keeps_colours_and_alpha_in_their_place(
    tmp_path: Path, scale: float, size: tuple[int, int]
) -> None:
    """A ramp must be where it was, and alpha that equals it must still equal it."""
    across, down = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    ramp = Image.fromarray((20 + 5 * across + 3 * down).astype(np.uint8))
    Image.merge("LA", [ramp, ramp]).save(tmp_path / "in.png")
    run(tmp_path / "in.png", tmp_path / "out.png", Bicubic(), scale=scale)
    out = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    width, height = (int(side * scale + 0.5) for side in size)
    assert out.shape == (height, width, 2)
    across, down = ((np.arange(side) + 0.5) / scale - 0.5 for side in (width, height))
    want = 20 + 5 * across + 3 * down[:, None]
    inner = np.s_[int(3 * scale) : -int(3 * scale), int(3 * scale) : -int(3 * scale)]
    for channel in (0, 1):
        assert np.abs(out[..., channel] - want)[inner].max() < 2  # 8 bits are rounded up to three times
        assert abs((out[..., channel] - want)[inner].mean()) < 0.3  # a twentieth of a pixel of the input
    assert np.abs(out[..., 0] - out[..., 1]).max() <= (1 if scale == 3.5 else 4)


def test_colour_profile_is_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo().save(tmp_path / "in.jpg", icc_profile=profile)
    for target in ("out.png", "out.jpg", "out.webp", "out.avif"):
        run(tmp_path / "in.jpg", tmp_path / target)
        assert Image.open(tmp_path / target).info["icc_profile"] == profile


def test_greyscale_profile_is_kept_where_there_is_greyscale(tmp_path: Path) -> None:
    profile = b"\0" * 16 + b"GRAY" + b"\0" * 200
    photo("L").save(tmp_path / "in.png", icc_profile=profile)
    targets = ("out.png", profile), ("out.jpg", profile), ("out.webp", None), ("out.avif", None)
    for target, expected in targets:
        run(tmp_path / "in.png", tmp_path / target)
        assert Image.open(tmp_path / target).info.get("icc_profile") == expected


def test_cmyk_becomes_rgb_without_its_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo("CMYK").save(tmp_path / "in.jpg", quality=95, icc_profile=b"\0" * 16 + b"CMYK" + b"\0" * 200)
    run(tmp_path / "in.jpg", tmp_path / "out.jpg")
    out = Image.open(tmp_path / "out.jpg")
    assert out.mode == "RGB" and "icc_profile" not in out.info
    want = np.asarray(photo().resize((42, 28), Image.Resampling.NEAREST), float)
    assert np.abs(np.asarray(out, float) - want).mean() < 6
    said = capsys.readouterr().err
    assert "CMYK becomes RGB" in said and "profile" in said


def cmyk_profile(cyan: tuple[int, int, int]) -> bytes:
    """An ICC profile of a press on white paper, with black and cyan, which has this colour: Lab in bytes."""
    paper, black = (255, 128, 128), (0, 128, 128)
    table = [black if i & 1 else cyan if i & 8 else paper for i in range(16)]  # by cyan, ..., black: 0 or 1
    ramp = bytes(range(256))
    matrix = b"".join((65_536 * (i in (0, 4, 8))).to_bytes(4, "big") for i in range(9))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + 4 * ramp + bytes(sum(table, ())) + 3 * ramp
    header = b"\0" * 4 + b"\2\x40\0\0prtrCMYKLab " + b"\0" * 12 + b"acsp" + b"\0" * 28
    header += bytes.fromhex("0000f6d6 00010000 0000d32d") + b"\0" * 48
    content = (
        header + (1).to_bytes(4, "big") + b"A2B0" + (144).to_bytes(4, "big") + len(lut).to_bytes(4, "big")
    )
    return (len(content) + 4 + len(lut)).to_bytes(4, "big") + content + lut


@pytest.mark.parametrize("name", ["in.jpg", "in.tif"])
def test_cmyk_becomes_srgb_through_its_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    image = Image.new("CMYK", (32, 16))
    image.paste((255, 0, 0, 0), (16, 0, 32, 16))
    image.save(tmp_path / name, icc_profile=cmyk_profile((128, 200, 80)))  # a pink one, to see the difference
    for target in ("out.png", "out.jpg"):
        run(tmp_path / name, tmp_path / target)
        out = Image.open(tmp_path / target)
        assert out.mode == "RGB" and "icc_profile" not in out.info
        assert min(out.getpixel((10, 20))) > 250
        red, green, blue = out.getpixel((100, 20))
        assert red > 170 and green < 60 and 150 < blue < 230
        assert "through its colour profile" in capsys.readouterr().err


def png(*chunks: tuple[bytes, bytes], pixels: bytes, head: bytes) -> bytes:
    """A PNG of one row, with chunks before its pixels; `head` is bit depth, kind of colour, 0, 0, 0."""
    width = len(pixels) * 8 // (head[0] * {0: 1, 2: 3, 4: 2, 6: 4}[head[1]])
    parts = [(b"IHDR", width.to_bytes(4, "big") + (1).to_bytes(4, "big") + head), *chunks]
    parts += [(b"IDAT", zlib.compress(b"\0" + pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in parts
    )


@pytest.mark.parametrize("kind", [2, 4, 6])
def test_sixteen_bits_of_colour_become_eight_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: int
) -> None:
    size = 2 * {2: 3, 4: 2, 6: 4}[kind]
    (tmp_path / "in.png").write_bytes(png(pixels=b"\xff" * 4 * size, head=bytes([16, kind, 0, 0, 0])))
    (tmp_path / "in.ppm").write_bytes(b"P6 4 1 65535\n" + b"\x80" * 24)
    for name in ("in.png", "in.ppm"):
        assert run(tmp_path / name, tmp_path / "out.png", overwrite=True) == 0
        assert f"{name}: 16 bits a channel become 8" in capsys.readouterr().err
    (tmp_path / "in.ppm").write_bytes(b"P6 4 1 255\n" + b"\x80" * 12)
    photo().save(tmp_path / "in.png")
    for name in ("in.png", "in.ppm"):
        assert run(tmp_path / name, tmp_path / "out.png", overwrite=True) == 0
    assert capsys.readouterr().err == ""


def test_a_gamma_is_applied_as_a_browser_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Linear light becomes what a screen takes; sRGB's own gamma changes nothing, and sRGB goes before it."""
    linear, screens, srgb = (
        (b"gAMA", (100_000).to_bytes(4, "big")),
        (b"gAMA", (45_455).to_bytes(4, "big")),
        (b"sRGB", b"\0"),
    )
    for chunks, wanted in (((), 55), ((linear,), 127), ((screens,), 55), ((linear, srgb), 55)):
        content = png(*chunks, pixels=bytes([55, 55, 55, 77] * 4), head=bytes([8, 6, 0, 0, 0]))
        (tmp_path / "in.png").write_bytes(content)
        run(tmp_path / "in.png", tmp_path / "out.png", overwrite=True)
        assert Image.open(tmp_path / "out.png").getpixel((3, 1)) == (*[wanted] * 3, 77)
        assert ("gamma of 1 is applied" in capsys.readouterr().err) == (wanted != 55)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif"])
@pytest.mark.parametrize("orientation, scale", [(3, 3.5), (6, 3.5), (6, 1.5)])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int, scale: float) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "A camera"
    exif.get_ifd(0x8769).update({0xA002: 12, 0xA003: 8, 0x8827: 200})  # width, height, sensitivity
    stored = photo()
    stored.save(tmp_path / f"in{suffix}", exif=exif, quality=95)
    run(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}", scale=scale)
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}[orientation]
    with Image.open(tmp_path / f"out{suffix}") as out:
        width, height = (int(side * scale) for side in stored.transpose(turn).size)
        want = stored.transpose(turn).resize((width, height), Image.Resampling.NEAREST)
        assert out.size == want.size
        assert np.abs(np.asarray(out, float) - np.asarray(want, float)).mean() < 6
        exif = out.getexif()
        assert exif.get(0x0112, 1) == 1 and exif[0x010F] == "A camera"
        assert exif.get_ifd(0x8769) == {0xA002: out.width, 0xA003: out.height, 0x8827: 200}


def test_damaged_exif_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo().save(tmp_path / "in.jpg", exif=b"Exif\0\0garbage, not a TIFF header at all")
    assert run(tmp_path / "in.jpg", tmp_path / "out.jpg") == 0
    assert "EXIF is left out: no entry" in capsys.readouterr().err
    assert "exif" not in Image.open(tmp_path / "out.jpg").info


def test_only_the_first_of_an_animation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo().save(tmp_path / "in.gif", save_all=True, append_images=[Image.new("RGB", (12, 8))])
    assert run(tmp_path / "in.gif", tmp_path / "out.png") == 0
    assert "only the first" in capsys.readouterr().err
    assert Image.open(tmp_path / "out.png").convert("RGB").getextrema()[0][1] > 200


@pytest.mark.skipif(".heic" not in image_files.SUFFIXES, reason="pillow-heif is not installed")
def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo(size=(64, 48)).save(tmp_path / "in.heic", quality=95, exif=exif.tobytes(), icc_profile=profile)
    assert run(tmp_path / "in.heic", tmp_path / "out.avif") == 0
    with Image.open(tmp_path / "out.avif") as out:
        assert out.size == (168, 224) and out.info["icc_profile"] == profile
        assert out.getexif()[0x010F] == "A camera" and out.getexif().get(0x0112, 1) == 1
        want = photo(size=(64, 48)).transpose(Image.Transpose.ROTATE_270).resize(out.size)
        assert np.abs(np.asarray(out, float) - np.asarray(want, float)).mean() < 5
    assert photos.read(tmp_path / "in.heic").size == (48, 64)


# --- what is asked for


def test_self_ensemble_goes_through_tiles() -> None:
    model, image = SelfEnsemble(Net()), noise(29, 43)
    untiled = upscale(model, image)
    assert (upscale(model, image, 8).float() - untiled.float()).abs().max() <= 1
    assert (upscale(Net(), image).float() - untiled.float()).abs().max() > 1


@pytest.mark.parametrize("scale", [3.5, 7, 12.25])
def test_twice_is_announced_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    counted = []
    monkeypatch.setattr(inference.Progress, "close", lambda bar: counted.append((bar.done, bar.total)))
    photo(size=(13, 9)).save(tmp_path / "in.png")
    run(tmp_path / "in.png", tmp_path / "out.png", scale=scale)
    assert ("made-up details get made-up details" in capsys.readouterr().out) == (scale > 3.5)
    pixels = 13 * 9 + (46 * 32 if scale > 3.5 else 0)
    assert (pixels, pixels) in counted


@pytest.mark.parametrize("name, kind", [("jpg", "JPEG"), ("webp", "WEBP"), ("avif", "AVIF"), ("auto", "PNG")])
def test_format_and_quality_of_what_goes_into_a_folder(
    tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(noise(20, 20).permute(1, 2, 0).numpy()).save(tmp_path / "in" / "a.bmp")
    assert run(tmp_path / "in", tmp_path / "out", format=name) == 0
    assert run(tmp_path / "in" / "a.bmp", tmp_path / "out", format=name, overwrite=True) == 0
    assert files(tmp_path / "out") == [f"a.{name.replace('auto', 'png')}"]
    (out,) = (tmp_path / "out").iterdir()
    assert Image.open(out).format == kind
    if name != "auto":
        size = out.stat().st_size
        assert run(tmp_path / "in", tmp_path / "out", format=name, quality=10, overwrite=True) == 0
        assert out.stat().st_size < size / 3
    photo("RGBA").save(tmp_path / "in" / "clear.png")
    assert run(tmp_path / "in", tmp_path / "new", format=name) == (name == "jpg")
    assert ("clear.png has transparency" in capsys.readouterr().err) == (name == "jpg")


# --- what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": 0.9}, ("--scale 0.9", "1 to 12.25")),
        ({"scale": float("nan")}, ("--scale nan",)),
        ({"quality": 0}, ("--quality 0", "1 to 100")),
        ({"scale": 2.0, "input": None, "output": None}, ("--scale", "training")),
        ({"self_ensemble": True, "input": None, "output": None, "evaluate": True}, ("--self-ensemble",)),
        ({"format": "jpg", "input": None, "output": None}, ("--format", "training")),
        ({"quality": 9, "input": None, "output": None, "evaluate": True}, ("--quality", "--evaluate")),
    ],
)
def test_flags_are_refused(change: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        Config(**({"input": Path("a.png"), "output": Path("b.png")} | change)).check()
    assert all(word in str(caught.value) for word in words)


def test_formats_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo().save(tmp_path / "in.png")
    assert "--quality means nothing with PNG" in refused(tmp_path / "in.png", tmp_path / "o.png", quality=9)
    assert "--quality means nothing with PNG" in refused(tmp_path, tmp_path / "out", quality=9)
    assert "is not what" in refused(tmp_path / "in.png", tmp_path / "out.png", format="avif")
    monkeypatch.delitem(inference.WRITES, ".avif")  # as where Pillow writes none
    assert "end it in .png, .jpg, .jpeg, .webp, or" in refused(tmp_path, tmp_path / "out", format="avif")
    assert files(tmp_path) == ["in.png"]


def test_input_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    assert "No such file" in refused(tmp_path / "none.png", target)
    (tmp_path / "nothing.jpg").touch()
    assert "empty" in refused(tmp_path / "nothing.jpg", target)
    (tmp_path / "text.png").write_text("not an image")
    assert "not an image" in refused(tmp_path / "text.png", target)
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert "not an image" in refused(tmp_path / "script.eps", target)  # Pillow would start Ghostscript
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    assert "floating-point" in refused(tmp_path / "float.tif", target)
    (tmp_path / "iphone.heic").write_bytes(b"....ftypheic")
    assert "HEIC file (pip install pillow-heif, or convert" in refused(tmp_path / "iphone.heic", target)
    os.mkfifo(tmp_path / "pipe.png")
    assert "neither a file" in refused(tmp_path / "pipe.png", target)
    assert not target.exists()


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_truncated_images_are_refused(tmp_path: Path, kind: str) -> None:
    Image.fromarray(noise(64, 64).permute(1, 2, 0).numpy()).save(tmp_path / f"whole.{kind}")
    content = (tmp_path / f"whole.{kind}").read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / f"cut.{kind}").write_bytes(content[: int(share * len(content))])
        assert f"cut.{kind}" in refused(tmp_path / f"cut.{kind}", tmp_path / "out.png")
    assert files(tmp_path) == [f"cut.{kind}", f"whole.{kind}"]


def png_head(width: int, height: int) -> bytes:
    """A PNG that says it is this large, and is not."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    body = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + stream.getvalue()[24:29]

    return stream.getvalue()[:12] + body + zlib.crc32(body).to_bytes(4, "big") + stream.getvalue()[33:]


@pytest.mark.parametrize("side", [11_000, 14_000, 60_000])  # over our limit, and over Pillow's own
def test_bombs_are_refused(tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    (tmp_path / "bomb.png").write_bytes(png_head(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "over 120,000,000 pixels" in refused(tmp_path / "bomb.png", tmp_path / "out.png")
    assert limit == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "over 120,000,000 pixels" in refused(tmp_path / "bomb.png", tmp_path / "out.png")


def test_large_images_below_the_limit_pass_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where Pillow only warns, our own limit decides."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    photo().save(tmp_path / "in.png")  # 96 pixels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(tmp_path / "in.png", tmp_path / "out.png") == 0
    assert capfd.readouterr().err == ""


def test_no_pixels(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(png_head(0, 5))
    refused(tmp_path / "in.png", tmp_path / "out.png")


def test_the_limit_is_of_memory_at_every_scale(tmp_path: Path) -> None:
    """Held at once: what the net made, the same with its width reduced, and the result."""
    largest = {scale: inference.Options(scale=scale).largest() for scale in (1, 2, 3.5, 7, 12.25)}
    assert largest[3.5] == 120_000_000 and largest[12.25] == int(120_000_000 / 12.25)
    for scale, pixels in largest.items():
        made = 3.5 if scale <= 3.5 else 12.25
        held = made**2 + (made * scale + scale**2 if scale not in (3.5, 12.25) else 0)
        assert pixels * held == pytest.approx(1_470_000_000, abs=held)
    (tmp_path / "in.png").write_bytes(png_head(4000, 3000))
    said = refused(tmp_path / "in.png", tmp_path / "out.png", scale=12.25)
    assert "over 9,795,918 pixels, the most at --scale 12.25; make it smaller" in said


def test_24_megapixels_pass_the_checks(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(png_head(6000, 4000))
    assert inference.check(tmp_path / "in.png", tmp_path / "out.png", inference.Options()) == 24_000_000


def test_output_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.png"
    photo().save(source)
    before = source.read_bytes()
    for name in ("out.xyz", "out", "out.tif"):
        assert ".png, .jpg, .jpeg, .webp, .avif" in refused(source, tmp_path / name)
    (tmp_path / "old.png").write_text("old")
    assert "--overwrite" in refused(source, tmp_path / "old.png")
    (tmp_path / "folder" / "in.png").mkdir(parents=True)
    assert "is a folder" in refused(source, tmp_path / "folder", overwrite=True)
    (tmp_path / "link.png").symlink_to(source)
    for same in (source, tmp_path, tmp_path / "link.png", tmp_path / "folder" / ".." / "in.png"):
        assert "is the image" in refused(source, same, overwrite=True)
    assert "cannot write" in refused(source, tmp_path / "old.png" / "out.png")
    assert "too long" in refused(source, tmp_path / ("x" * 300 + ".png"))
    assert "cannot write" in refused(source, Path("/proc/nowhere/out.png"))
    assert (tmp_path / "old.png").read_text() == "old" and source.read_bytes() == before
    assert files(tmp_path) == ["in.png", "link.png", "old.png"]


def test_formats_that_cannot_hold_it(tmp_path: Path) -> None:
    Image.new("L", (18_715, 1)).save(tmp_path / "long.png")
    Image.new("L", (18_714, 1)).save(tmp_path / "fits.png")
    assert "JPEG holds at most 65,500" in refused(tmp_path / "long.png", tmp_path / "out.jpg")
    assert "WEBP holds at most 16,383" in refused(tmp_path / "long.png", tmp_path / "out.webp")
    assert "AVIF holds at most 16,384" in refused(tmp_path / "long.png", tmp_path / "out.avif")
    assert "JPEG holds" in refused(tmp_path / "fits.png", tmp_path / "out.jpg", scale=7)
    assert inference.check(tmp_path / "long.png", tmp_path / "out.jpg", inference.Options(3.4)) == 18_715
    photo("RGBA").save(tmp_path / "clear.png")
    assert "transparency" in refused(tmp_path / "clear.png", tmp_path / "out.jpg")
    assert run(tmp_path / "fits.png", tmp_path / "fits.jpg") == 0  # 65,499


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    photo().save(tmp_path / "in.png")
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "cannot write" in refused(tmp_path / "in.png", tmp_path / "closed" / "out.png")
    assert "cannot write" in refused(tmp_path, tmp_path / "closed")


@pytest.mark.parametrize("at", ["PIL.Image.Image.load", "PIL.Image.new"])
def test_too_little_memory_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    photo().save(tmp_path / "in.bmp")  # of no plugin that has a `load` of its own
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load" if at.endswith("load") else at, fail)
    with pytest.raises(UserError, match=r"in\.bmp: there is not enough memory"):
        run(tmp_path / "in.bmp", tmp_path / "out.png")
    assert files(tmp_path) == ["in.bmp"]


def test_too_little_memory_for_the_net_is_not_a_traceback(tmp_path: Path) -> None:
    class Hungry(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            return torch.empty(1 << 56)

    photo().save(tmp_path / "in.png")
    with pytest.raises(UserError, match=r"in\.png: there is not enough memory for 42x28 pixels"):
        run(tmp_path / "in.png", tmp_path / "out.png", model=Hungry())
    assert files(tmp_path) == ["in.png"]


# --- folders


def test_a_folder_is_walked_as_for_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Links are followed, only files are images, and what is left out is named by reason and count."""
    source, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    (source / "folder.jpg").mkdir(parents=True)
    elsewhere.mkdir()
    for file in (source / "a.jfif", source / "b.jpe", source / "folder.jpg" / "c.avif", elsewhere / "d.png"):
        photo().save(file, {".jfif": "JPEG", ".jpe": "JPEG"}.get(file.suffix))
    (source / "linked").symlink_to(elsewhere)
    (source / "loop").symlink_to(source)
    os.mkfifo(source / "pipe.png")
    (source / "iphone.heic").write_bytes(b"....ftypheic")
    (source / "notes.txt").write_text("")
    assert run(source, tmp_path / "out") == 0
    assert files(tmp_path / "out") == ["a.png", "b.png", "folder.jpg/c.png", "linked/d.png"]
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'out'}: 4 of 4 images upscaled; left out: ")
    for reason in ("1 special file", "1 folder named like", "1 HEIC file", "1 .txt file", "1 link to"):
        assert reason in said


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_names_that_are_no_text_go_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, name = tmp_path / "in", os.fsdecode(b"caf\xe9.png")
    (source / os.fsdecode(b"\xff")).mkdir(parents=True)
    for path in (source / name, source / os.fsdecode(b"\xff") / "a.png"):
        photo().convert("CMYK").save(path.with_suffix(".tif"))  # so that something is said of it
    assert run(source, tmp_path / os.fsdecode(b"out\xe9")) == 0
    assert len(files(tmp_path / os.fsdecode(b"out\xe9"))) == 2
    said = capsys.readouterr()
    assert "caf\\udce9.tif" in said.err and "out\\udce9" in said.out
    (said.out + said.err).encode()


def test_long_names_find_room(tmp_path: Path) -> None:
    photo().save(tmp_path / "in.png")
    assert run(tmp_path / "in.png", tmp_path / f"{'x' * 246}.png") == 0
    photo().save(tmp_path / f"{'y' * 250}.webp")
    (tmp_path / "in").mkdir()
    (tmp_path / f"{'y' * 250}.webp").rename(tmp_path / "in" / f"{'y' * 250}.webp")
    assert run(tmp_path / "in", tmp_path / "out") == 0


def test_a_folder_goes_on_past_bad_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "deep" / "er").mkdir(parents=True)
    (source / ".hidden").mkdir()
    for name in ("a.jpg", "deep/b.PNG", "deep/er/c.webp", ".hidden/d.png", ".e.png"):
        photo().save(source / name)
    photo().save(source / "lies.png", "JPEG")  # suffixes lie
    (source / "notes.txt").write_text("hello")
    assert run(source, target) == 0
    assert files(target) == ["a.png", "deep/b.png", "deep/er/c.png", "lies.png"]
    assert capsys.readouterr().out == f"{target}: 4 of 4 images upscaled; left out: 1 .txt file\n"

    (source / "cut.jpg").write_bytes((source / "a.jpg").read_bytes()[:400])
    (source / "text.png").write_text("no image")
    photo().save(source / "new.png")
    assert run(source, target) == 1  # the four of before exist
    said = capsys.readouterr()
    assert "1 of 7 images upscaled, 6 could not be (named above); left out: 1 .txt file" in said.out
    assert len(said.err.splitlines()) == 6 and said.err.count("exists") == 4
    assert "cut.jpg" in said.err and "text.png" in said.err
    assert files(target) == ["a.png", "deep/b.png", "deep/er/c.png", "lies.png", "new.png"]

    (source / "cut.jpg").unlink()
    (source / "text.png").unlink()
    assert run(source, target, overwrite=True) == 0


def test_a_folder_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "notes.txt").write_text("hello")
    assert "no images" in refused(source, tmp_path / "out")
    photo().save(source / "a.png")
    assert "name another folder" in refused(source, source, overwrite=True)
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(source, tmp_path / "file")
    assert "cannot write" in refused(source, tmp_path / "file" / "out")
    assert files(tmp_path) == ["file", "in/a.png", "in/notes.txt"]


def test_two_images_never_share_an_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    photo("L").save(source / "a.jpg")
    photo().save(source / "a.png")
    assert run(source, target, overwrite=True) == 1
    assert "a.jpg becomes a.png too" in capsys.readouterr().err
    assert Image.open(target / "a.png").mode == "L"


def test_results_inside_the_input_are_not_inputs(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    for _ in range(2):
        assert run(tmp_path, tmp_path / "big", overwrite=True) == 0
        assert files(tmp_path) == ["a.png", "big/a.png"]


def test_an_input_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The input folder lies in the output folder, and one result would land on another input."""
    (tmp_path / "in" / "in").mkdir(parents=True)
    photo("L").save(tmp_path / "in" / "a.png")
    photo().save(tmp_path / "in" / "in" / "a.png")
    assert run(tmp_path / "in", tmp_path, overwrite=True) == 1
    assert "would replace" in capsys.readouterr().err
    assert Image.open(tmp_path / "in" / "a.png").size == (12, 8)
    assert Image.open(tmp_path / "a.png").mode == "L"


# --- nothing half-written


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    class Interrupted(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    photo().save(tmp_path / "in.png")
    (tmp_path / "old.png").write_text("old")
    for target in ("out.png", "old.png"):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "in.png", tmp_path / target, overwrite=True, model=Interrupted())
    assert files(tmp_path) == ["in.png", "old.png"] and (tmp_path / "old.png").read_text() == "old"


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes there")
def test_a_failed_write_is_one_line(tmp_path: Path) -> None:
    """Writing stops before the last bytes: the reason is named, and nothing is left."""
    script = f"""
        import resource, sys
        from pathlib import Path
        sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / "tests")!r}]
        import test_inference_upscale
        from common.cli import UserError
        for name in ("out.png", "out.jpg", "out.webp", "out.avif"):
            test_inference_upscale.run(Path("in.png"), Path(name))
            limit = Path(name).stat().st_size - 10
            Path(name).unlink()
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                test_inference_upscale.run(Path("in.png"), Path(name))
            except UserError as refusal:
                print(refusal)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    """
    Image.fromarray(noise(100, 100).permute(1, 2, 0).numpy()).save(tmp_path / "in.png")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    cause = "File too large; make room, or name another place"
    lines = [
        f"out.{kind}: 350x350\ncannot write out.{kind}: {cause}\n" for kind in ("png", "jpg", "webp", "avif")
    ]
    assert done.stdout == "".join(lines)
    assert done.stderr == "" and files(tmp_path) == ["in.png"]


def test_a_full_disk_stops_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in "abc":
        photo().save(source / f"{name}.png")
    save, calls = Image.Image.save, []

    def save_until_full(image: Image.Image, file: io.BufferedWriter, *rest: str, **options: object) -> None:
        calls.append(file)
        if len(calls) > 1:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, file, *rest, **options)

    monkeypatch.setattr(Image.Image, "save", save_until_full)
    with pytest.raises(UserError, match=r"b\.png: No space left on device.*; 1 of 3 images are done"):
        run(source, target)
    assert len(calls) == 2 and files(target) == ["a.png"]


# --- size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in other units elsewhere")
def test_24_megapixels_in_3_gigabytes(tmp_path: Path) -> None:
    """The whole process, with transparency, which takes the most."""
    script = f"""
        import resource, sys
        from pathlib import Path
        sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / "tests")!r}]
        from test_inference_upscale import Net, run
        assert run(Path("in.png"), Path("out.png"), model=Net()) == 0
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
    """
    photo("RGBA", (6000, 4000)).save(tmp_path / "in.png")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout.splitlines()[-1]) < 3.0
    assert png_size(tmp_path / "out.png") == (21_000, 14_000)


def png_size(path: Path) -> tuple[int, int]:
    """From the head: Pillow refuses to open an image of this size."""
    with path.open("rb") as file:
        head = file.read(24)
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
