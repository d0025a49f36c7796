"""A page in one hand from single generated characters.

Lengths are in x-heights (the height of an x) where no unit is named.
"""

import io
import re
import string
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colors, style
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve
from matplotlib.transforms import IdentityTransform
from scipy import ndimage
from torch import Tensor

from common.cli import UserError
from common.inference import strokes
from common.inference.strokes import MARKS

MAX_CHARACTERS, MAX_PIXELS = 5_000, 60_000_000  # of a text, of its page

# EMNIST scales every character to the size of its image. How far they truly reach above and below the
# baseline is taken from ITC Zapf Chancery (Hermann Zapf 1979), a calligrapher's hand, by the font metrics
# that come with matplotlib (pzcmi8a.afm); without the tails of f, x, z and capitals, which few writers have
REACH = {
    **dict.fromkeys(string.digits + string.ascii_uppercase, (1.4, 0.0)),
    **dict.fromkeys("bdfhkl", (1.63, 0.0)),
    **dict.fromkeys("gpqy", (1.0, -0.72)),
    **dict.fromkeys("i", (1.45, 0.0)),
    **dict.fromkeys("j", (1.45, -0.72)),
    **dict.fromkeys("t", (1.23, 0.0)),
}
WIDEST = 1.8  # what would come out wider, such as a flat r, stays smaller

LINE = 3.2  # from one baseline to the next
ABOVE, BELOW, MARGIN = (
    2.7,
    1.8,
    1.0,
)  # the first baseline, the last one, text at the sides: to the page's border
GAP = 0.2  # between the outlines of neighbours
TUCK = 0.12  # by how much one may reach over the other
SPACE = 0.65  # what a space adds to the gap
BLANK = 0.6  # width left for a character that came out without ink
ROW, ROWS = 0.1, 40  # outlines are compared in rows so high, and so many above and below the baseline

# How much the characters of one hand differ (standard deviations)
TRUNCATION = 0.42  # of the noise: legibility for variety (Brock et al. 2019, BigGAN, section 3.1)
TURN = 0.35  # radians from the noise of the style to that of a character
ROTATION, SIZE = 0.02, 0.03  # radians; as a share
DRIFT, STAYS = 0.025, 0.8  # of the baseline, from a character to the next; how much is left of the one before

Generate = Callable[
    [Tensor, Tensor], Tensor
]  # labels [N] and noise [N,latent] to [N,28,28] in 0..1, 1 for ink
Outlines = list[np.ndarray]  # closed loops, [M,2] each


class Character(NamedTuple):
    """A character of a page."""

    character: str
    outlines: Outlines  # x to the right, y downwards, in pixels of the page

    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of its ink in pixels; all 0 where it has none."""
        points = np.concatenate(self.outlines or [np.zeros((1, 2))])
        return (*points.min(0).tolist(), *points.max(0).tolist())


class Page(NamedTuple):
    """A page, its size in pixels."""

    width: int
    height: int
    characters: list[Character]  # in the order of the text, without spaces


def write(config: Any, characters: str, generate: Generate, latent: int) -> bytes:
    """Writes the text of --write: the content of the file --output. Arguments as those of `compose`.

    Raises:
        UserError: the text or a colour cannot be used, or the page would be too large.
    """
    check_text(config.write, characters)
    check_colours(config.ink, config.paper)
    plain = [mark for mark in MARKS if mark in config.write and mark not in characters]
    if plain:
        print(f"Drawn by a plain pen, since these weights have none: {' '.join(plain)}")
    flags = {name: getattr(config, name) for name in ("width", "height", "style", "seed")}
    page = compose(config.write, characters, generate, latent, **flags)
    return render(page, config.output.suffix.lower()[1:], ink=config.ink, paper=config.paper)


def check_text(text: str, characters: str) -> None:
    """Says before anything is sampled that a text cannot be written.

    Raises:
        UserError: it has other characters than `characters`, those of `MARKS`, spaces and line breaks; or too
            many, or none.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"--write: {len(text):,} characters; write {MAX_CHARACTERS:,} at most")
    words = "".join(_lines(text)).replace(" ", "")
    known = rf"these weights write {characters} {' '.join(MARKS)}, spaces and line breaks (\n)"
    unknown = dict.fromkeys(of for of in words if of not in characters and of not in MARKS)
    if unknown:
        some = ", ".join(map(repr, list(unknown)[:10]))
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        others = "; --weights handwriting writes letters" if set(unknown) & set(string.ascii_letters) else ""
        raise UserError(f"--write: cannot write {some}{more}; {known}{others}")
    if not words:
        raise UserError(f"--write: there is nothing to write; {known}")


def check_colours(ink: str, paper: str) -> None:
    """Says so where a colour is none: neither a name that CSS has, nor #rrggbb, nor `transparent` for paper.

    Raises:
        UserError: a colour is none, or both are the same.
    """
    for flag, value, also in (("--ink", ink, ""), ("--paper", paper, ", or transparent")):
        known = value.lower() in colors.CSS4_COLORS or re.fullmatch("#[0-9a-fA-F]{6}", value)
        if not known and not (also and value == "transparent"):
            raise UserError(f"{flag} {value!r}: give a colour's name, such as navy, or '#1a2b3c'{also}")
    if paper != "transparent" and colors.same_color(ink.lower(), paper.lower()):
        raise UserError(f"--ink {ink}: cannot be seen on --paper {paper}; give another colour")


def compose(
    text: str,
    characters: str,
    generate: Generate,
    latent: int,
    *,
    width: int,
    height: int,
    style: int = 0,
    seed: int = 0,
) -> Page:
    r"""Writes a text in one hand. A line ends at a line break, at the characters `\n`, or when it is full.

    Args:
        text: one that `check_text` lets pass.
        characters: what can be generated; label k is character k.
        generate: draws characters, see `Generate`; it is called once.
        latent: numbers of noise that an image is made of.
        width: of the page at most, in pixels; longer lines wrap at spaces.
        height: of a line, in pixels from one baseline to the next.
        style: seed of the hand: of the noise that all characters share.
        seed: of how they differ from each other nevertheless.

    Raises:
        UserError: the page would be too large.
    """
    unit, lines, rng = height / LINE, _lines(text), np.random.default_rng(seed)
    flow = "".join(lines).replace(" ", "")
    labels = torch.tensor([characters.index(of) for of in flow if of in characters], dtype=torch.int64)
    hand = torch.randn(latent, generator=torch.Generator().manual_seed(style))
    others = torch.from_numpy(rng.standard_normal((len(labels), latent), np.float32))
    noise = TRUNCATION * (np.cos(TURN) * hand + np.sin(TURN) * others)
    images = generate(labels, noise) if len(labels) else labels
    middles = (line for part in images.split(64) for line in strokes.middles(part.numpy()) if len(part))

    glyphs, drift = [], 0.0
    for of in flow:
        if of in characters:
            line, (top, foot) = next(middles), REACH.get(of, (1.0, 0.0))
            if of in "ij" and ndimage.label(line, np.ones((3, 3)))[1] == 1:
                top = 1.0  # many leave out the dot
            shape = strokes.letter(line, top, foot, WIDEST)
        else:
            shape = strokes.mark(of)
        drift = STAYS * drift + DRIFT * rng.standard_normal()
        angle, size = ROTATION * rng.standard_normal(), np.exp(SIZE * rng.standard_normal())
        turn = size * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        glyphs.append([loop @ turn + np.array([0, drift]) for loop in shape])

    places, right, rows = _layout(lines, glyphs, width / unit - 2 * MARGIN)
    across = int(np.ceil(unit * (right + 2 * MARGIN)))
    down = int(np.ceil(unit * (ABOVE + LINE * (rows - 1) + BELOW)))
    if across * down > MAX_PIXELS:
        size = f"{across:,} x {down:,} pixels, {MAX_PIXELS // 10**6} million are the most"
        raise UserError(f"--height {height}: the page would have {size}; give a lower one, or less text")
    page = Page(across, down, [])
    for of, glyph, (x, row) in zip(flow, glyphs, places, strict=True):
        at = np.array([MARGIN + x, -ABOVE - LINE * row])
        page.characters.append(Character(of, [unit * (loop + at) * [1, -1] for loop in glyph]))
    return page


def _lines(text: str) -> list[str]:
    """Without empty lines before and after."""
    text = text.replace("\\n", "\n").replace("\r\n", "\n").replace("\t", " ")
    return re.sub(r"\A( *\n)+|[ \n]+\Z", "", text).split("\n")


def _layout(
    lines: list[str], glyphs: list[Outlines], room: float
) -> tuple[list[tuple[float, int]], float, int]:
    """Where each character goes, x and row; how far the longest row reaches; and how many rows there are."""
    places: list[tuple[float, int]] = []
    row, farthest = -1, 0.0
    for line in lines:
        row, edge, gap = row + 1, np.zeros(2 * ROWS), 0.0
        for word in re.findall(" +|[^ ]+", line):
            left = 0 if word[0] == " " else len(word)
            gap += 0 if left else SPACE * len(word)
            while left:
                xs, edges = _kern(glyphs[len(places) : len(places) + left], edge, gap)
                fit = sum(after.max() <= room for after in edges)
                if fit < left:  # all goes to the next row; only what fills a row of its own is split
                    fit = 0 if edge.any() or gap > GAP else max(fit, 1)
                places += [(x, row) for x in xs[:fit]]
                left -= fit
                farthest = max(farthest, edges[fit - 1].max() if fit else 0)
                row, edge, gap = (row + 1, 0 * edge, 0.0) if left else (row, edges[-1], GAP)
    return places, farthest, row + 1


def _kern(glyphs: list[Outlines], edge: np.ndarray, gap: float) -> tuple[list[float], list[np.ndarray]]:
    """Sets characters side by side, so that the outline of the first stays `gap` away from what has its right
    `edge` in each row, and the next ones `GAP`. Returns where they begin, and the edge after each."""
    xs, edges = [], []
    for glyph in glyphs:
        points = np.concatenate(glyph or [np.array([[0, 0], [BLANK, 0]])])
        rows = np.floor(points[:, 1] / ROW).astype(int) + ROWS
        left, right = np.full(2 * ROWS, np.inf), np.full(2 * ROWS, -np.inf)
        np.minimum.at(left, rows, points[:, 0])
        np.maximum.at(right, rows, points[:, 0])
        away = ROW * np.arange(-int(gap / ROW), int(gap / ROW) + 1)
        around = ndimage.grey_dilation(edge, structure=np.sqrt(gap**2 - away**2), mode="nearest")
        x = max((around - left).max(), edge.max() + gap - GAP - TUCK - left.min())
        edge = np.maximum(edge, x + right)
        xs.append(float(x))
        edges.append(edge)
        gap = GAP
    return xs, edges


def render(page: Page, kind: str, *, ink: str, paper: str) -> bytes:
    """A page as the content of a file, `kind` png or svg, in colours that `check_colours` lets pass."""
    figure, content = Figure((page.width / 72, page.height / 72), dpi=72), io.BytesIO()  # a point is a pixel
    for _, outlines in page.characters:
        if outlines:
            curves = _smooth(outlines, page.height)
            figure.add_artist(PathPatch(curves, lw=0, fc=ink.lower(), transform=IdentityTransform()))
    ground = "none" if paper == "transparent" else paper.lower()
    more: dict[str, Any] = {"png": {"pil_kwargs": {"compress_level": 3}}, "svg": {"metadata": {"Date": None}}}
    with style.context(["default", {"svg.hashsalt": ""}]):  # the same page, the same bytes
        figure.savefig(content, format=kind, facecolor=ground, **more[kind])
    return content.getvalue()


def _smooth(outlines: Outlines, height: int) -> Curve:
    """Quadratic B-splines along closed outlines, with y upwards."""
    vertices, codes = [], []
    for loop in outlines:
        points = np.round(loop * [1, -1] + [0, height], 2)
        after = np.roll(points, -1, 0)
        middle = (points + after) / 2
        curve = np.stack([after, np.roll(middle, -1, 0)], 1).reshape(-1, 2)
        vertices += [middle[:1], curve, middle[:1]]
        codes += [Curve.MOVETO, *[Curve.CURVE3] * len(curve), Curve.CLOSEPOLY]
    return Curve(np.concatenate(vertices), codes)
