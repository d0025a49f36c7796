"""A page of handwriting from single generated characters: one baseline, one height, even gaps."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageFilter
from scipy import ndimage
from torch import Tensor

from common.cli import UserError

MAX_CHARACTERS, MAX_LINES = 1_000, 100  # of a text

# Pixels of the page
HEIGHT = 80  # of digits and capitals
DESCENT = 28  # how deep a g goes
LINE = 136  # from baseline to baseline
GAP = 12  # between the inks of neighbours
SPACE = 40  # what a space adds to it
NEAR = 6  # ink is a neighbour of other ink from so many rows above to so many below
BLANK = 44  # width left for a character without ink
WIDTH = 1_600  # longer lines wrap
MARGIN = 40
BLEED = 2  # rows above and below a line, for edges that are covered in part
STRIP = BLEED + HEIGHT + DESCENT + BLEED  # rows of a line
FAR = 1_000_000

EXTENT = {  # top and bottom of lower-case letters, as shares of HEIGHT; all else reaches from 1 to 0
    **dict.fromkeys("acemnorsuvwxz", (0.62, 0.0)),
    **dict.fromkeys("gpqy", (0.62, -DESCENT / HEIGHT)),
    **dict.fromkeys("it", (0.9, 0.0)),
    "j": (0.9, -DESCENT / HEIGHT),
}

# Of a generated character
FAINT = 64  # of 255: where nothing is darker there is no ink
EDGE = (0.36, 0.5)  # of the darkest: paper below, ink above
SPECK = 0.05  # of the ink: what is smaller, and apart from the rest, is none
SMOOTH = 0.6  # pixels: edges are blurred so far before they are cut, else they are bumpy
FINE = 8  # pieces a side that a pixel is cut into, to find the edge
FLATTEST = 12  # of 28 rows: what is flatter, such as a dash, is enlarged no more than this


def colour(flag: str, value: str) -> tuple[int, int, int, int]:
    """Reads a colour, by Pillow's name or as #rrggbb; for --paper also `transparent`, which has alpha 0.

    Raises:
        UserError: it is none.
    """
    name = value.lower()
    if flag == "--paper" and name == "transparent":
        return 0, 0, 0, 0
    if name not in ImageColor.colormap and not re.fullmatch("#[0-9a-f]{6}", name):
        also = ", or transparent" if flag == "--paper" else ""
        raise UserError(f"{flag} {value!r}: give a colour's name, such as navy, or '#1a2b3c'{also}")
    red, green, blue = ImageColor.getrgb(name)[:3]
    return red, green, blue, 255


def check_text(text: str, characters: str) -> None:
    """Says before anything is sampled that a text cannot be written.

    Raises:
        UserError: it has other characters than `characters`, spaces and line breaks; or too many, or none.
    """
    lines = _lines(text)
    if len(text) > MAX_CHARACTERS or len(lines) > MAX_LINES:
        most = f"{MAX_CHARACTERS:,} in {MAX_LINES}"
        raise UserError(f"--write: {len(text):,} characters in {len(lines):,} lines; write {most} at most")
    unknown = [repr(of) for of in dict.fromkeys("".join(lines)) if of not in characters + " "]
    if unknown:
        some = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        know = rf"these weights know {characters}, spaces and line breaks (\n)"
        raise UserError(f"--write: cannot write {some}; {know}")
    if not lines:
        raise UserError(f"--write: there is nothing to write; give some of {characters}")


def compose(text: str, sample_word: Callable[[str], Tensor], *, ink: str, paper: str) -> Image.Image:
    r"""Writes a text. A line ends at a line break, at the two characters `\n`, or when it is full.

    Args:
        text: one that `check_text` lets pass.
        sample_word: of a word, which has no spaces: uint8 [len(word),28,28], 255 for ink.
        ink, paper: as `colour` takes them.

    Returns:
        RGB; on transparent paper RGBA, of the ink's colour everywhere, as opaque as ink covers a pixel.

    Raises:
        UserError: a colour is none, or both are the same.
    """
    pen, ground = colour("--ink", ink), colour("--paper", paper)
    if pen == ground:
        raise UserError(f"--ink {ink}: cannot be seen on --paper {paper}; give another colour")
    rows = [row for line in _lines(text) for row in _set(line, sample_word)]
    width, height = max(row.right for row in rows), LINE * (len(rows) - 1) + STRIP
    page = np.zeros((height + 2 * MARGIN, width + 2 * MARGIN), np.uint8)
    for number, row in enumerate(rows):
        for glyph, x in row.glyphs:
            area = page[MARGIN + LINE * number :, MARGIN + x :][:STRIP, : glyph.coverage.shape[1]]
            np.maximum(area, glyph.coverage, out=area)
    # the lower margin begins at the last baseline, or below what descends from it
    baseline = MARGIN + height - BLEED - DESCENT
    coverage = Image.fromarray(page[: np.max(np.flatnonzero(page.any(1)), initial=baseline) + MARGIN])
    if not ground[3]:
        image = Image.new("RGBA", coverage.size, pen)
        image.putalpha(coverage)
        return image
    image = Image.new("RGB", coverage.size, ground[:3])
    image.paste(pen[:3], mask=coverage)
    return image


class Glyph(NamedTuple):
    """A character in a strip as high as a line."""

    coverage: np.ndarray  # uint8 [STRIP,width], 255 where ink covers all of a pixel
    left: np.ndarray  # int [STRIP], column where ink begins in a row; far away where there is none
    right: np.ndarray  # int [STRIP], column where it has ended; far away on the other side


class Row(NamedTuple):
    """A line as far as it is written."""

    glyphs: tuple[tuple[Glyph, int], ...] = ()  # each with the column of its left edge
    edge: np.ndarray = np.zeros(STRIP, int)  # where ink ends in each row
    right: int = 0  # where it ends in any

    def then(self, glyph: Glyph, gap: int) -> "Row":
        """With one more character: ink beside ink leaves just `gap`, in the row where they are closest."""
        around = ndimage.maximum_filter1d(self.edge, 2 * NEAR + 1, mode="nearest")
        x = int((around - glyph.left).max()) + gap
        # a low one must not slip below its neighbour and out of its turn
        x = max(x, self.right + gap - int(glyph.right.max()))
        edge = np.maximum(self.edge, x + glyph.right)
        return Row((*self.glyphs, (glyph, x)), edge, int(edge.max()))


def _lines(text: str) -> list[str]:
    """Without empty lines before and after."""
    text = text.replace("\\n", "\n").replace("\r\n", "\n").replace("\t", " ")
    lines = [line if line.strip(" ") else "" for line in text.split("\n")]
    return re.sub(r"^\n+|\n+$", "", "\n".join(lines)).split("\n") if any(lines) else []


def _set(line: str, sample_word: Callable[[str], Tensor]) -> list[Row]:
    """Samples a line's words and sets them, in as many rows as it takes."""
    rows, row, gap = [], Row(), 0
    for number, word in enumerate(line.split(" ")):
        gap += SPACE if number else 0
        if not word:
            continue
        glyphs = [_glyph(*of) for of in zip(sample_word(word).numpy(), word, strict=True)]
        longer = row.then(glyphs[0], gap)
        for glyph in glyphs[1:]:
            longer = longer.then(glyph, GAP)
        whole = row.glyphs and longer.right > WIDTH  # goes to the next row
        for glyph in glyphs:
            longer = row.then(glyph, gap)
            if row.glyphs and (whole or longer.right > WIDTH):  # within a word that no row could hold
                rows.append(row)
                longer, whole = Row().then(glyph, 0), False
            row, gap = longer, GAP
    return [*rows, row]


def _glyph(image: np.ndarray, character: str) -> Glyph:
    """Brings a character, uint8 [28,28], to its height, and its feet to where they belong: first so large
    that its edge can be cut sharply; a pixel of the page then holds how far ink covers it."""
    if image.max() < FAINT:
        return Glyph(np.zeros((STRIP, BLANK), np.uint8), np.zeros(STRIP, int), np.full(STRIP, BLANK))
    around = np.pad(_without_specks(image), 4)
    large = Image.fromarray(around).resize((FINE * len(around),) * 2, Image.Resampling.BICUBIC)
    smooth = np.asarray(large.filter(ImageFilter.GaussianBlur(SMOOTH * FINE)), np.float32)
    low, high = (share * smooth.max() for share in EDGE)
    fine = np.clip((smooth - low) / (high - low), 0, 1)  # [288,288]
    rows, columns = (np.flatnonzero(fine.max(axis) > 0.5) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1

    reach, foot = (round(HEIGHT * share) for share in EXTENT.get(character, (1.0, 0.0)))
    scale = (reach - foot) / max(bottom - top, FLATTEST * FINE)
    width, height = (max(1, round(scale * side)) for side in (right - left, bottom - top))
    edge = 1 / scale  # one pixel of the page, for what is covered in part
    box = (left - edge, top - edge, left + (width + 1) * edge, top + (height + 1) * edge)
    small = Image.fromarray(fine).resize((width + 2, height + 2), Image.Resampling.BOX, box)
    coverage = np.zeros((STRIP, width + 2), np.uint8)
    bottom = BLEED + HEIGHT - foot + 1
    coverage[bottom - height - 2 : bottom] = np.rint(255 * np.asarray(small))
    inked = coverage > 127
    some, first, last = inked.any(1), inked.argmax(1), inked.shape[1] - inked[:, ::-1].argmax(1)
    return Glyph(coverage, np.where(some, first, FAR), np.where(some, last, -FAR))


def _without_specks(image: np.ndarray) -> np.ndarray:
    """Removes what stands alone and is too small for the dot of an i: it would count as ink beside ink."""
    inked, square = image >= EDGE[0] * image.max(), np.ones((3, 3))  # a pixel and its eight neighbours
    piece, _ = ndimage.label(inked, square)
    speck = inked & ((np.bincount(piece.ravel()) / inked.sum())[piece] < SPECK)
    near = ndimage.binary_dilation(speck, square)  # its faint edge as well
    return np.where(near & ~ndimage.binary_dilation(inked & ~speck, square), 0, image)
