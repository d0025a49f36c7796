"""Handwriting stands on one baseline, at one height, with even gaps, and in the order of the text."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from common.cli import UserError
from common.inference import handwriting

SHAPES: dict[str, Callable[[ImageDraw.ImageDraw], None]] = {  # of all sizes, and anywhere in the 112x112
    "0": lambda pen: pen.ellipse((24, 16, 88, 95), fill=255),
    "1": lambda pen: pen.rectangle((50, 16, 60, 95), fill=255),
    "2": lambda pen: pen.polygon([(38, 96), (56, 16), (74, 96)], fill=255),
    "3": lambda pen: pen.polygon([(38, 16), (74, 16), (56, 96)], fill=255),  # the same, upside down
    "4": lambda pen: pen.rectangle((4, 50, 107, 60), fill=255),  # a dash
    "5": lambda pen: pen.line((30, 95, 80, 16), fill=255, width=12),
    "6": lambda pen: pen.rectangle((0, 0, 111, 111), fill=255),  # reaches every border
    "7": lambda pen: pen.line((24, 20, 80, 20, 50, 95), fill=255, width=12),
    "8": lambda pen: (pen.rectangle((50, 16, 60, 95), fill=255), pen.point((100, 30), fill=255))[0],
    "9": lambda pen: None,  # no ink
    "A": lambda pen: pen.polygon([(16, 96), (56, 16), (96, 96)], fill=255),
    "V": lambda pen: pen.polygon([(16, 16), (96, 16), (56, 96)], fill=255),
}


def sample_word(word: str) -> Tensor:
    """Each character by its shape, letters as bars: uint8 [len(word),28,28]."""
    glyphs = []
    for character in word:
        large = Image.new("L", (112, 112))
        SHAPES.get(character, SHAPES["1"])(ImageDraw.Draw(large))
        glyphs.append(np.asarray(large.resize((28, 28), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(glyphs))


def written(text: str, **colours: str) -> np.ndarray:
    """How much of each pixel is ink, uint8 [h,w]; no ink may reach into the margin."""
    page = handwriting.compose(text, sample_word, **{"ink": "black", "paper": "transparent"} | colours)
    alpha = np.asarray(page)[..., 3].copy()
    for edge in (alpha[:30], alpha[-30:], alpha[:, :30], alpha[:, -30:]):
        assert not edge.any(), "ink in the margin"
    return alpha


def pieces(alpha: np.ndarray) -> list[np.ndarray]:
    """Where each character is, bool [h,w], from left to right."""
    rest, found = alpha > 127, []
    while rest.any():
        page = Image.fromarray(np.uint8(rest)).copy()  # else it cannot be drawn on
        y, x = np.unravel_index(np.argmax(rest.T), rest.T.shape)[::-1]
        ImageDraw.floodfill(page, (int(x), int(y)), 2)
        piece = np.asarray(page) == 2
        assert piece.any()
        found.append(piece)
        rest = rest & ~piece
    return found


def box(piece: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom; the last two are outside."""
    rows, columns = np.flatnonzero(piece.any(1)), np.flatnonzero(piece.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def gap(one: np.ndarray, other: np.ndarray, near: int = 0) -> int:
    """Empty pixels between two inks, in rows at most `near` apart, where they are closest."""
    end = np.where(one.any(1), one.shape[1] - one[:, ::-1].argmax(1), -10_000)
    begin = np.where(other.any(1), other.argmax(1), 10_000)
    return min(
        int(begin[y] - end[max(0, y - near) : y + near + 1].max()) for y in np.flatnonzero(other.any(1))
    )


def test_characters_have_one_height_and_one_baseline() -> None:
    for piece in pieces(written("0123567801")):
        _, top, _, bottom = box(piece)
        assert abs(top - (handwriting.MARGIN + handwriting.BLEED)) <= 1
        assert abs(bottom - top - handwriting.HEIGHT) <= 1


def test_height_alone_decides_how_much_a_character_grows() -> None:
    bar, circle, dash = (box(piece) for piece in pieces(written("104")))
    assert 8 <= bar[2] - bar[0] <= 15  # 11 of 80, as drawn
    assert abs((circle[2] - circle[0]) - 65) <= 2
    assert dash[2] - dash[0] < 28 * handwriting.HEIGHT / handwriting.FLATTEST  # not 10 times as large
    assert abs(dash[3] - bar[3]) <= 1


def test_gaps_between_inks_are_even_whatever_the_shapes() -> None:
    text = "10011223321551177001661"
    found = pieces(written(text))
    assert len(found) == len(text)
    for one, other, pair in zip(found, found[1:], itertools.pairwise(text), strict=False):
        assert abs(gap(one, other, handwriting.NEAR) - handwriting.GAP) <= 1, pair
        assert gap(one, other) <= handwriting.GAP + 12, pair
    slope, upside_down = map(box, pieces(written("AV")))
    assert upside_down[0] < slope[2] - 15  # not by their boxes: that would leave a hole


def test_ink_never_meets_ink_across_a_narrow_neighbour() -> None:
    """A low letter below two that lean over it: these are no neighbours, and yet would meet."""
    left, low, right = pieces(written("VaV"))
    assert box(low)[3] - box(low)[1] < handwriting.HEIGHT
    assert box(low)[2] >= box(left)[2] + handwriting.GAP - 1  # comes out from below its neighbour
    for pair in ((left, low), (low, right), (left, right)):
        assert gap(*pair) >= handwriting.GAP - 1


def test_characters_stand_in_the_order_of_the_text() -> None:
    widths = {of: box(pieces(written(of))[0]) for of in "0157"}
    for text in ("0157", "7510", "1070515"):
        found = [box(piece) for piece in pieces(written(text))]
        middles = [(left + right) / 2 for left, _, right, _ in found]
        assert middles == sorted(middles)
        for (left, _, right, _), of in zip(found, text, strict=True):
            assert right - left == widths[of][2] - widths[of][0]


def test_each_word_is_sampled_once_and_as_a_whole() -> None:
    asked: list[str] = []

    def recorded(word: str) -> Tensor:
        asked.append(word)
        return sample_word(word)

    handwriting.compose("2026  11\n3\\n44", recorded, ink="black", paper="white")
    assert asked == ["2026", "11", "3", "44"]


def test_spaces_widen_the_gap() -> None:
    for spaces in range(3):
        one, other = pieces(written("1" + " " * spaces + "1"))
        assert gap(one, other) == handwriting.GAP + spaces * handwriting.SPACE
    assert {box(piece)[0] for piece in pieces(written("  1\n1"))} == {
        handwriting.MARGIN,
        handwriting.MARGIN + 2 * handwriting.SPACE,
    }


@pytest.mark.parametrize("line_break", ["\n", "\\n", "\r\n"])
def test_lines_break_where_the_text_says(line_break: str) -> None:
    found = [box(piece) for piece in pieces(written(f"0{line_break}{line_break}11"))]
    tops = sorted({top for _, top, _, _ in found})
    assert len(found) == 3 and len(tops) == 2
    assert abs(tops[1] - tops[0] - 2 * handwriting.LINE) <= 1
    once = written(f"0{line_break}1")
    assert written(f"{line_break}0{line_break}1 {line_break}").shape == once.shape  # no empty lines around


def test_long_lines_wrap_at_words_and_long_words_where_they_must() -> None:
    words = written(" ".join(["0110"] * 15))
    assert words.shape[1] <= handwriting.WIDTH + 2 * handwriting.MARGIN
    lines: dict[int, int] = {}
    for piece in pieces(words):
        line = (box(piece)[1] - handwriting.MARGIN) // handwriting.LINE
        lines[line] = lines.get(line, 0) + 1
    assert len(lines) > 1 and sum(lines.values()) == 60
    assert all(count % 4 == 0 for count in lines.values())

    long = written("1" + " 0" + "6" * 40)
    found = [box(piece) for piece in pieces(long)]
    assert len(found) == 42 and long.shape[1] <= handwriting.WIDTH + 2 * handwriting.MARGIN
    assert sum(top < handwriting.MARGIN + handwriting.HEIGHT for _, top, _, _ in found) == 1  # just the 1


def test_letters_are_low_and_descend_as_written() -> None:
    capital, low, descends, ascends = (box(piece) for piece in pieces(written("Hagb")))
    assert abs(low[1] - descends[1]) <= 1 and low[1] > capital[1] + 20
    assert abs(capital[1] - ascends[1]) <= 1
    assert abs(capital[3] - low[3]) <= 1 and abs(capital[3] - ascends[3]) <= 1
    assert abs(descends[3] - capital[3] - handwriting.DESCENT) <= 1
    assert written("g").shape[0] - written("a").shape[0] == handwriting.DESCENT  # the margin grows with it


def test_ink_and_paper_have_the_colours_that_were_asked_for() -> None:
    page = handwriting.compose("10", sample_word, ink="#1a2b8c", paper="transparent")
    pixels = np.asarray(page)
    assert page.mode == "RGBA" and (pixels[..., :3] == (0x1A, 0x2B, 0x8C)).all()
    alpha = pixels[..., 3]
    assert alpha[0, 0] == 0 and alpha.max() == 255
    assert ((alpha > 0) & (alpha < 255)).sum() < (alpha == 255).sum() / 2  # crisp, and yet smooth
    assert len(np.unique(alpha)) > 10

    page = handwriting.compose("10", sample_word, ink="white", paper="Navy")
    pixels = np.asarray(page)
    assert page.mode == "RGB" and (pixels[alpha == 255] == 255).all()
    assert (pixels[alpha == 0] == ImageColor.getrgb("navy")).all()


def test_specks_are_no_ink_and_faint_characters_are() -> None:
    (bar,) = pieces(written("8"))
    assert (bar == (written("1") > 127)).all()

    def faint(word: str) -> Tensor:
        return (sample_word(word).float() * 0.4).to(torch.uint8)

    page = handwriting.compose("10", faint, ink="black", paper="transparent")
    alpha, as_usual = np.asarray(page)[..., 3], written("10")
    assert alpha.max() == 255 and abs(alpha.sum(dtype=int) / as_usual.sum(dtype=int) - 1) < 0.03


def test_a_character_without_ink_leaves_its_place() -> None:
    one, other = pieces(written("191"))
    assert gap(one, other) == handwriting.BLANK + 2 * handwriting.GAP
    assert not written("99\n9").any()


def test_the_same_drawing_gives_the_same_page() -> None:
    pages = [handwriting.compose("0123 45\n678", sample_word, ink="black", paper="ivory") for _ in range(2)]
    assert pages[0].tobytes() == pages[1].tobytes()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2026-11-a-", r"cannot write '-', 'a'; .*0123456789"),
        ("1\x07", r"cannot write '\\x07'; .*0123456789"),
        ("abcdefghijklmn", r"'j' and 4 more; .*0123456789"),
        ("", r"nothing to write.*0123456789"),
        (" \\n\n\t ", r"nothing to write.*0123456789"),
        ("1" * 1_001, "1,001 characters.*1,000"),
        ("1" + "\n" * 200 + "1", "201 lines.*100"),
    ],
)
def test_a_text_that_cannot_be_written_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        handwriting.check_text(text, "0123456789")
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith("--write: ")


def test_a_text_that_can_be_written_passes() -> None:
    handwriting.check_text("2026 11\\n3\n 4\t5", "0123456789")
    handwriting.check_text("1" * 1_000, "0123456789")


@pytest.mark.parametrize("value", ["blu", "#12", "#12345g", "", "rgb(1,2,3)", "#11223344", "navy\n"])
def test_what_is_no_colour_is_refused_with_the_flag(value: str) -> None:
    for flag in ("--ink", "--paper"):
        with pytest.raises(UserError, match=f"^{flag} ") as refusal:
            handwriting.colour(flag, value)
        assert "\n" not in str(refusal.value)


def test_only_paper_is_transparent_and_ink_must_differ_from_it() -> None:
    assert handwriting.colour("--paper", "transparent")[3] == 0
    assert handwriting.colour("--ink", "#FF8000") == (255, 128, 0, 255)
    with pytest.raises(UserError, match=r"^--ink 'transparent'"):
        handwriting.colour("--ink", "transparent")

    def never(word: str) -> Tensor:
        raise AssertionError("drawn before the colours were looked at")

    with pytest.raises(UserError, match=r"--ink white.*--paper #ffffff"):
        handwriting.compose("1", never, ink="white", paper="#ffffff")
    with pytest.raises(UserError, match=r"^--paper 'whit'"):
        handwriting.compose("1", never, ink="black", paper="whit")
