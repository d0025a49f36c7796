"""A page of handwriting: it can be read, has true sizes and one hand, and is smooth at any size."""

import io
import itertools
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from common.cli import UserError
from common.datasets.images import to_float
from common.evaluation import mnist as evaluation
from common.inference import handwriting, strokes
from common.inference import mnist as inference
from common.inference.page import PageFlags

CPU = torch.device("cpu")
SHAPES: dict[str, Callable[[ImageDraw.ImageDraw], None]] = {  # of 112x112, thin and bold, small and large
    "o": lambda pen: pen.ellipse((16, 16, 96, 96), outline=255, width=12),
    "l": lambda pen: pen.rectangle((50, 12, 58, 100), fill=255),
    "r": lambda pen: pen.rounded_rectangle((46, 12, 66, 100), 10, fill=255),  # bold
    "A": lambda pen: pen.line((20, 98, 56, 14, 92, 98), fill=255, width=14),
    "V": lambda pen: pen.line((20, 14, 56, 98, 92, 14), fill=255, width=8),
    "T": lambda pen: (pen.line((14, 20, 98, 20), fill=255, width=12), pen.line((56, 20, 56, 100), fill=255))[
        0
    ],
    "g": lambda pen: (
        pen.ellipse((30, 12, 80, 60), outline=255, width=9),
        pen.line((76, 40, 70, 104), 255, 9),
    )[0],
    "x": lambda pen: (pen.line((20, 20, 92, 92), 255, 12), pen.line((20, 92, 92, 20), 255, 12))[0],
    "m": lambda pen: pen.rectangle((8, 54, 104, 60), fill=255),  # flat
    "b": lambda pen: None,  # no ink
    "i": lambda pen: (pen.rectangle((50, 40, 58, 100), fill=255), pen.ellipse((48, 12, 60, 24), fill=255))[0],
    "j": lambda pen: pen.line((60, 12, 60, 90, 40, 100), fill=255, width=10),  # without its dot
    "H": lambda pen: (pen.rectangle((50, 12, 58, 100), fill=255), pen.rectangle((104, 8, 108, 12), fill=255))[
        0
    ],
}
CHARACTERS = "".join(SHAPES)


def generate(labels: Tensor, noise: Tensor) -> Tensor:
    """Each character by its shape, whatever the noise is."""
    glyphs = []
    for label in labels:
        large = Image.new("L", (112, 112))
        SHAPES[CHARACTERS[label]](ImageDraw.Draw(large))
        glyphs.append(np.asarray(large.resize((28, 28), Image.Resampling.BOX)))
    return to_float(torch.from_numpy(np.stack(glyphs)))


def composed(text: str, width: int = 3_200, height: int = 320, **seeds: int) -> handwriting.Page:
    """By made shapes; an x is 100 pixels high if `height` is 320."""
    return handwriting.compose(text, CHARACTERS, generate, 8, width=width, height=height, **seeds)


@pytest.fixture
def even(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hand that draws the same shape always alike."""
    for name in ("ROTATION", "SIZE", "DRIFT"):
        monkeypatch.setattr(handwriting, name, 0.0)


def ink_of(page: handwriting.Page) -> np.ndarray:
    """How much of each pixel is ink, 0..1 [h,w]."""
    image = Image.open(io.BytesIO(handwriting.render(page, "png", ink="black", paper="transparent")))
    assert image.size == (page.width, page.height) and image.mode == "RGBA"
    return np.asarray(image.getchannel("A")) / 255


def cut_out(page: handwriting.Page, side: int) -> Tensor:
    """Each character of a page by its box, as the sets have them: uint8 [N,28,28], its larger side `side`
    pixels, drawn by a pen 2.8 pixels wide, and centred."""
    ink, images = ink_of(page) > 0.5, []
    piece, _ = ndimage.label(ink, np.ones((3, 3)))
    area = np.bincount(piece.ravel())
    for character in page.characters:
        left, top, right, bottom = (round(of) for of in character.box())
        part = piece[top:bottom, left:right]
        its = np.bincount(part.ravel(), minlength=len(area)) > 0.8 * area  # not a neighbour's that reaches in
        part = np.pad(ink[top:bottom, left:right] & its[part], 40)
        size = max(right - left, bottom - top)
        wider = (2.8 * size / side - strokes.PEN * HEIGHT / handwriting.LINE) / 2
        part = ndimage.distance_transform_edt(~part) < wider if wider > 0 else part
        rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
        part = part[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        square = np.zeros((max(part.shape),) * 2, np.float32)
        y, x = (len(square) - np.array(part.shape)) // 2
        square[y : y + part.shape[0], x : x + part.shape[1]] = part
        blurred = ndimage.gaussian_filter(square, 0.5 * len(square) / side)
        small = Image.fromarray(np.uint8(255 * blurred)).resize((side, side), Image.Resampling.BOX)
        images.append(np.pad(np.asarray(small), (28 - side) // 2))
    return torch.from_numpy(np.stack(images))


HEIGHT = 96


def by(sampler: inference.Sampler, text: str, **seeds: int) -> handwriting.Page:
    rng = torch.Generator().manual_seed(0)

    def sample(labels: Tensor, noise: Tensor) -> Tensor:
        return to_float(sampler.sample(labels, rng, noise)[0])

    size = {"width": 1_600, "height": HEIGHT}
    return handwriting.compose(text, sampler.characters, sample, sampler.generator.latent, **size, **seeds)


@pytest.fixture(scope="module")
def digits() -> inference.Sampler:
    return inference.load(inference.SHIPPED["digits"], "conditional", CPU)


def share_read(page: handwriting.Page, evaluator: int, side: int, characters: str) -> float:
    """Share of characters that the evaluator reads as what they are, or as what has the same shape once its
    size and place are gone: f and F, 9 and q, and those that the evaluation takes for one."""
    classifier, _ = evaluation.load_classifier(evaluation.SHIPPED[evaluator])
    same = (*evaluation.MERGED, "Ff", "9gq")
    written = [of for of in zip(cut_out(page, side), page.characters, strict=True) if of[1][0] in characters]
    read = classifier.predict(torch.stack([image for image, _ in written]))[1].argmax(1)
    right = [
        character.character == characters[label]
        or any({character.character, characters[label]} <= set(of) for of in same)
        for (_, character), label in zip(written, read, strict=True)
    ]
    return float(np.mean(right))


def test_digits_are_read_in_the_page(digits: inference.Sampler) -> None:
    text = "1234567890, 2026!"
    shares = [share_read(by(digits, text, style=k), 0, 20, digits.characters) for k in (0, 1, 2)]
    assert np.mean(shares) >= 0.95, shares


@pytest.mark.skipif(
    not (inference.SHIPPED["handwriting"].exists() and evaluation.SHIPPED[1].exists()),
    reason="the weights of letters are not there",
)
def test_letters_are_read_in_the_page() -> None:
    sampler = inference.load(inference.SHIPPED["handwriting"], "conditional", CPU)
    text = "Sphinx of black quartz, judge my vow 1234567890"
    shares = [share_read(by(sampler, text, style=k), 1, 24, sampler.characters) for k in (0, 1, 2)]
    assert np.mean(shares) >= 0.95, shares


def test_one_hand_writes_alike_and_never_the_same(digits: inference.Sampler) -> None:
    one, other = (to_float(cut_out(by(digits, "4444 5555", style=style), 20)).flatten(1) for style in (3, 4))
    for page in (one, other):
        assert torch.cdist(page, page).add(torch.eye(8)).min() > 0.5  # no two are the same
    for digit in (slice(0, 4), slice(4, 8)):
        within = [torch.cdist(page[digit], page[digit]).sum() / 12 for page in (one, other)]
        assert sum(within) / 2 < torch.cdist(one[digit], other[digit]).mean()


def test_the_same_seeds_give_the_same_bytes(digits: inference.Sampler) -> None:
    for kind in ("png", "svg"):
        pages = [
            handwriting.render(by(digits, "20 26", **seeds), kind, ink="black", paper="white")
            for seeds in ({}, {}, {"seed": 1}, {"style": 1})
        ]
        assert pages[0] == pages[1] and len(set(pages)) == 3


def test_an_svg_has_an_outline_for_each_character_in_the_colours() -> None:
    content = handwriting.render(composed("oAl x.b"), "svg", ink="Navy", paper="#fffff0")
    root = ET.fromstring(content)
    width, height = composed("oAl x.b")[:2]
    assert root.get("viewBox") == f"0 0 {width} {height}"
    paths = root.findall(".//{http://www.w3.org/2000/svg}path")
    paper, *ink = [path.get("style") for path in paths]
    assert paper == "fill: #fffff0" and ink == ["fill: #000080"] * 5  # the b came out without ink
    assert all(" Q " in path.get("d", "") for path in paths[1:])  # curves
    assert "#fffff0" not in handwriting.render(composed("o"), "svg", ink="navy", paper="transparent").decode()


def test_ink_and_paper_have_the_colours_that_were_asked_for() -> None:
    image = Image.open(io.BytesIO(handwriting.render(composed("ol"), "png", ink="#FF8000", paper="Navy")))
    pixels = np.asarray(image.convert("RGB"))
    assert (pixels[0, 0] == (0, 0, 128)).all() and (pixels == (255, 128, 0)).all(2).sum() > 1_000


@pytest.mark.usefixtures("even")
def test_characters_have_their_true_sizes_and_one_baseline() -> None:
    boxes = {of.character: np.array(of.box()) for of in composed("xAlogij").characters}
    base = boxes["x"][3]
    heights = {of: (base - box[[1, 3]]) / 100 for of, box in boxes.items()}
    true = {"A": (1.4, 0), "l": (1.63, 0), "o": (1, 0), "g": (1, -0.72), "i": (1.45, 0), "j": (1, -0.72)}
    for of, (top, foot) in true.items():
        assert heights[of] == pytest.approx((top, foot), abs=0.05), of
    flat = composed("m").characters[0].box()  # is not made as high as an x
    assert flat[2] - flat[0] == pytest.approx(180, abs=5) and flat[3] - flat[1] < 30


@pytest.mark.usefixtures("even")
def test_all_is_drawn_by_one_pen_whatever_was_generated() -> None:
    thin, bold, speck = (of.box() for of in composed("lrH").characters)
    for left, _, right, _ in (thin, bold, speck):  # and a speck is no ink
        assert right - left == pytest.approx(100 * strokes.PEN, abs=2)


@pytest.mark.usefixtures("even")
def test_strokes_are_smooth_when_they_are_large() -> None:
    (ring,) = composed("o", height=384).characters  # an x is 120 pixels high
    outer, inner = sorted(ring.outlines, key=lambda loop: -np.ptp(loop[:, 0]))
    for loop in (outer, inner):
        radius = np.hypot(*(loop - loop.mean(0)).T)
        assert radius.std() < 0.6 and np.ptp(radius) < 3
    (cross,) = composed("V", height=384).characters
    side = cross.outlines[0]
    left, top, _, bottom = cross.box()
    edge = side[(side[:, 0] < left + 60) & (side[:, 1] > top + 20) & (side[:, 1] < bottom - 40)]
    edge = edge[
        edge[:, 0] < np.median(edge[:, 0] - 0.43 * edge[:, 1]) + 0.43 * edge[:, 1]
    ]  # of two parallel ones
    slope = np.polyfit(edge[:, 1], edge[:, 0], 1)
    assert np.abs(edge[:, 0] - np.polyval(slope, edge[:, 1])).max() < 1.5


@pytest.mark.usefixtures("even")
def test_neighbours_keep_one_distance_between_their_outlines() -> None:
    for text in ("AVAV", "ToTo", "oolo", "xAg", "ll.o"):
        inks = [np.concatenate(of.outlines) for of in composed(text).characters]
        for one, other in itertools.pairwise(inks):
            nearest = cKDTree(one).query(other)[0].min()
            overlap = one[:, 0].max() - other[:, 0].min()
            tucked = overlap > 100 * handwriting.TUCK - 2  # it may not come closer
            assert nearest == pytest.approx(20, abs=4) or (nearest > 20 and tucked), text
    a, v = (of.box() for of in composed("AV").characters)
    assert v[0] < a[2]  # not by their boxes: that would leave a hole


def test_spaces_and_line_breaks_are_kept() -> None:
    one, two, three = (composed(text).characters for text in ("ll", "l l", "l  l"))
    gaps = [of[1].box()[0] - of[0].box()[2] for of in (one, two, three)]
    assert np.diff(gaps) == pytest.approx([65, 65], abs=8)
    for line_break in ("\n", "\\n", "\r\n"):
        first, second = (of.box() for of in composed(f"\n o{line_break}o \n\n").characters)
        assert second[1] - first[1] == pytest.approx(320, abs=15)


def test_lines_wrap_at_spaces_and_words_that_no_line_could_hold_are_split() -> None:
    page = composed("oxo " * 12 + "x" * 40, width=1_500)
    assert page.width <= 1_500
    rows = [round(of.box()[1] / 320 - 0.5) for of in page.characters]
    assert rows == sorted(rows) and rows[-1] > rows[0] + 3
    assert all(len(set(rows[k : k + 3])) == 1 for k in range(0, 36, 3))
    assert rows[36] > rows[35]  # a long word begins a line
    for row in set(rows):
        lefts = [of.box()[0] for of, its in zip(page.characters, rows, strict=True) if its == row]
        assert lefts == sorted(lefts) and lefts[0] == pytest.approx(100, abs=5)
    assert all(of.box()[0] >= 95 and of.box()[2] <= 1_400 for of in page.characters)


def test_a_plain_pen_draws_punctuation_and_says_so_once(capsys: pytest.CaptureFixture) -> None:
    def never(labels: Tensor, noise: Tensor) -> Tensor:
        raise AssertionError("nothing is to be generated")

    size = {"width": 3_200, "height": 320}
    page = handwriting.compose(". , - ! ? ' :", "0123456789", never, 8, **size)
    boxes = {of.character: np.array(of.box()) for of in page.characters}
    dot, dash = boxes["."], boxes["-"]
    assert 12 < dot[2] - dot[0] < 25 and dot[3] == pytest.approx(boxes["!"][3], abs=12)
    assert dash[3] < dot[1] and dash[3] - dash[1] == pytest.approx(100 * strokes.PEN, abs=8)
    assert boxes[","][3] > dot[3] + 10 and boxes["'"][3] < dash[1]
    assert [len(of.outlines) for of in page.characters] == [1, 1, 1, 2, 2, 1, 2]

    flags = SimpleNamespace(**vars(PageFlags()), write="ox! x?!", output=Path("note.SVG"))
    content = handwriting.write(flags, CHARACTERS, generate, 8)
    assert content.startswith(b"<?xml") and capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2026-11-a-", r"cannot write 'a'; these weights write 0123456789 \. , - .*--weights handwriting"),
        ("1\x07\x1b[31m", r"cannot write '\\x07', '\\x1b', '\[', 'm'; .*0123456789"),
        ("abcdefghijklmn", r"'j' and 4 more; .*0123456789"),
        ("1 \N{GRINNING FACE}", "cannot write '\N{GRINNING FACE}'; "),
        ("\u202eabc \u05d0", r"cannot write '\\u202e', 'a'"),
        ("\ud800", r"cannot write '\\ud800'"),
        ("e\u0301", "cannot write 'e', "),
        ("", r"nothing to write.*0123456789"),
        (" \\n\n\t ", r"nothing to write.*0123456789"),
        ("1" * 2**20, "1,048,576 characters; write 5,000 at most"),
    ],
)
def test_a_text_that_cannot_be_written_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        handwriting.check_text(text, "0123456789")
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith("--write: ")
    assert len(str(refusal.value)) < 250


def test_texts_that_can_be_written_pass_and_pages_without_end_do_not() -> None:
    for text in ("2026 11\\n3\n 4\t5.", "1" * 5_000, "-"):
        handwriting.check_text(text, "0123456789")
    with pytest.raises(UserError, match=r"^--height 1000: the page would have .* pixels.*give a lower one"):
        composed("l" + "\n" * 600 + "l", height=1_000, width=20_000)


@pytest.mark.parametrize("value", ["blu", "#12", "#12345g", "", "rgb(1,2,3)", "#11223344", "navy\n", "none"])
def test_what_is_no_colour_is_refused_with_the_flag(value: str) -> None:
    for flag, colours in (("--ink", (value, "white")), ("--paper", ("black", value))):
        with pytest.raises(UserError, match=f"^{flag} ") as refusal:
            handwriting.check_colours(*colours)
        assert "\n" not in str(refusal.value)


def test_only_paper_is_transparent_and_ink_must_differ_from_it() -> None:
    handwriting.check_colours("Navy", "transparent")
    with pytest.raises(UserError, match=r"^--ink 'transparent'"):
        handwriting.check_colours("transparent", "white")
    with pytest.raises(UserError, match=r"--ink white.*--paper #ffffff"):
        handwriting.check_colours("white", "#ffffff")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"style": -1}, "--style -1"),
        ({"height": 8}, "--height 8: .* 16 to 1000"),
        ({"width": 400}, "from 512"),
    ],
)
def test_sizes_have_limits(flags: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        PageFlags(**flags).check()  # type: ignore[arg-type]


def test_thinning_keeps_what_hangs_together_and_one_pixel_of_width() -> None:
    ink = np.random.default_rng(0).random((4, 40, 40)) < 0.5
    ink = ndimage.binary_opening(
        ndimage.gaussian_filter(ink.astype(float), (0, 2, 2)) > 0.5, np.ones((1, 3, 3))
    )
    ink[:, [0, -1]] = ink[:, :, [0, -1]] = False
    line, around = strokes.thin(ink), np.ones((3, 3))
    for before, after in zip(ink, line, strict=True):
        assert (after <= before).all()
        assert ndimage.label(after, around)[1] == ndimage.label(before, around)[1]
        assert not ndimage.binary_erosion(after, np.ones((2, 2))).sum() > 3


@pytest.mark.slow
def test_a_page_of_2000_characters_takes_less_than_five_seconds(digits: inference.Sampler) -> None:
    start = time.process_time()
    page = by(digits, ("31415926 53589793 2384626433 " * 80)[:2_000])
    handwriting.render(page, "png", ink="black", paper="white")
    assert time.process_time() - start < 5
