"""Characters drawn anew by one round pen, sharp at any size.

Real and generated characters have 28x28 pixels, are scaled to fill them, and as bold as their writer's pen
was. So only the middle of each stroke is taken from them: at their true sizes strokes would be bolder in an E
than in an e. Lengths are in x-heights (the height of an x) where no unit is named.
"""

from functools import cache

import contourpy
import numpy as np
from scipy import ndimage
from scipy.interpolate import make_interp_spline
from scipy.spatial.distance import cdist

PEN = 0.15  # width of a stroke
STEP = 0.06  # between the points of an outline
FINE = 3  # pieces a side that a pixel is cut into
BLUR = 0.7  # pixels: what is finer is noise
EDGE = (0.25, 0.1, 0.75)  # ink is above so much of the darkest, and above so much of it and of what is around
AROUND = 2.5  # pixels; so thin strokes are kept, and small loops stay open
FAINT = 0.25  # where nothing is darker there is no ink
SPECK = 0.06  # of the ink: what is smaller, and apart from the rest, is none
STEADY = 1.4  # pixels along a stroke: what trembles faster is smoothed

_DOT = [(0.0, 0.0), (0.1, 0.03), (0.04, 0.1), (0.0, 0.0)]
MARKS = {  # the ways of the pen, through points
    ".": [_DOT],
    ",": [[(0.06, 0.02), (0.07, -0.1), (-0.06, -0.3)]],
    "-": [[(0.0, 0.5), (0.25, 0.54), (0.5, 0.53)]],
    "!": [[(0.1, 1.4), (0.06, 0.9), (0.03, 0.42)], _DOT],
    "?": [
        [(0.0, 1.1), (0.1, 1.3), (0.32, 1.36), (0.52, 1.2), (0.44, 0.9), (0.26, 0.68), (0.24, 0.38)],
        [(x + 0.2, y) for x, y in _DOT],
    ],
    "'": [[(0.04, 1.5), (0.0, 1.15)]],
    ":": [_DOT, [(x + 0.04, y + 0.7) for x, y in _DOT]],
}


@cache
def _thinning_tables() -> list[np.ndarray]:
    """For the two halves of a step, whether an ink pixel goes, by its neighbours: bit k of the index is the
    k-th, clockwise from the one above."""
    p = (np.arange(256) >> np.arange(8)[:, None] & 1).astype(bool)  # [8,256]
    after, before = np.roll(p, -1, 0), np.roll(p, 1, 0)
    one_run = (~p & (after | np.roll(p, -2, 0)))[::2].sum(0) == 1
    count = np.minimum((p | before)[::2].sum(0), (p | after)[::2].sum(0))
    border = one_run & (count >= 2) & (count <= 3)
    return [border & ~((p[k] | p[k + 1] | ~p[k + 3]) & p[k + 2]) for k in (0, 4)]


def thin(ink: np.ndarray) -> np.ndarray:
    """Thins strokes, bool [N,h,w] with no ink at the border, to lines one pixel wide (Guo and Hall 1989,
    "Parallel thinning with two-subiteration algorithms")."""
    width = ink.shape[2]
    flat, at, before = ink.astype(np.uint8).ravel(), np.flatnonzero(ink), -1
    around = (-width, 1 - width, 1, width + 1, width, width - 1, -1, -width - 1)
    while before != len(at):
        before = len(at)
        for table in _thinning_tables():
            gone = table[sum(flat[at + offset] << bit for bit, offset in enumerate(around))]
            flat[at[gone]] = 0
            at = at[~gone]
    return flat.reshape(ink.shape) > 0


def middles(images: np.ndarray) -> np.ndarray:
    """The middle of the strokes of characters, float [N,28,28], 1 for ink: bool [N,32*FINE,32*FINE]."""
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    size = images.shape[1]
    away = (np.arange(FINE * size)[:, None] + 0.5) / FINE - 0.5 - np.arange(size)
    kernel = np.exp(-((away / BLUR) ** 2) / 2).astype(np.float32)  # enlarges and smooths at once
    kernel /= kernel.sum(1, keepdims=True)
    fine = kernel @ images @ kernel.T
    darkest = fine.max((1, 2), keepdims=True)
    around = kernel @ ndimage.gaussian_filter(images, (0, AROUND, AROUND), truncate=2) @ kernel.T
    ink = (fine > EDGE[0] * darkest) & (fine > EDGE[1] * darkest + EDGE[2] * around) & (darkest > FAINT)
    ink[:, [0, -1]] = ink[:, :, [0, -1]] = False
    piece, _ = ndimage.label(ink, np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]))
    area = np.bincount(piece.ravel())[piece]
    return thin(ink & (area > SPECK * ink.sum((1, 2), keepdims=True)))


def steady(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of a line, bool [h,w]: row and column, int [P,2], row 0 the lowest; and the same on a smooth
    way, float [P,2], with 0 as their least."""
    at = np.argwhere(line[::-1])
    weight = np.exp(cdist(at, at, "sqeuclidean") / (-2 * (STEADY * FINE) ** 2))
    weight /= weight.sum(1, keepdims=True)
    smooth = weight @ at
    smooth += weight @ (at - smooth)  # what smoothing has cut off at the ends
    return at - np.floor(smooth.min(0)).astype(int), smooth - smooth.min(0)


def outlines(at: np.ndarray, smooth: np.ndarray, pixel: float) -> list[np.ndarray]:
    """Draws a line, as `steady` gives it, with pixels `pixel` wide, by the pen. Returns its closed outlines,
    [M,2] each: x to the right, y upwards, the middle of the lowest stroke at 0, as that of the leftmost."""
    around = int(PEN / 2 / pixel) + 6
    number = np.full(at.max(0) + 1 + 2 * around, -1)
    number[tuple(at.T + around)] = np.arange(len(at))
    nearest = ndimage.distance_transform_edt(number < 0, return_distances=False, return_indices=True)
    y, x = smooth.T[:, number[tuple(nearest)]] + around  # [h,w] each: of the nearest point
    distance = np.hypot(y - np.arange(len(y))[:, None], x - np.arange(y.shape[1]), dtype=np.float32)
    distance = ndimage.gaussian_filter(distance, 0.2 * PEN / pixel, truncate=2)
    found = []
    for loop in contourpy.contour_generator(z=-distance).lines(-PEN / 2 / pixel):
        points = (np.asarray(loop) - around) * pixel
        along = np.r_[0, np.hypot(*np.diff(points, axis=0).T).cumsum()]
        places = np.linspace(0, along[-1], max(12, round(along[-1] / STEP)), endpoint=False)
        found.append(np.stack([np.interp(places, along, axis) for axis in points.T], 1))
    return found


@cache
def mark(character: str) -> list[np.ndarray]:
    """The outlines of one of `MARKS`, standing where it belongs above the baseline."""
    pixel, ways = 0.015, []
    for points in MARKS[character]:
        curve = make_interp_spline(np.linspace(0, 1, len(points)), points, min(3, len(points) - 1))
        ways.append(np.rint(curve(np.linspace(0, 1, 200)) / pixel).astype(int))
    at = np.concatenate(ways)  # x and y
    x, y = (at - at.min(0)).T
    line = np.zeros((y.max() + 1, x.max() + 1), bool)
    line[y.max() - y, x] = True
    foot = at.min(0)[1] * pixel + PEN / 2
    return [loop + np.array([0, foot]) for loop in outlines(*steady(line), pixel)]


def letter(line: np.ndarray, top: float, foot: float, widest: float) -> list[np.ndarray]:
    """The outlines of a character by the middle of its strokes, one of `middles`, enlarged to reach from
    `foot` to `top`, but to no more than `widest`; without ink there are none."""
    if not line.any():
        return []
    at, smooth = steady(line)
    height, width = smooth.max(0).tolist()
    flattest = 10 * FINE  # a line that lies is not made thirty times as large
    pixel = min((top - foot - PEN) / max(height, flattest), (widest - PEN) / max(width, 1))
    return [loop + np.array([0, foot + PEN / 2]) for loop in outlines(at, smooth, pixel)]
