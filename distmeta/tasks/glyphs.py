"""Built-in images: made-up alphabets, of whose characters every drawing is another.

A character is one to four strokes between points of a grid, straight or bent; an alphabet has a liking for numbers of
strokes, bends and a part of the grid, as real ones have. A drawing moves every point of its character a little, and
turns, scales and shifts the whole. Alphabets are divided among the splits, so that a meta-test character is of an
alphabet that was never seen. In the spirit of Omniglot (Lake et al. 2015), of which nothing is used.

Letters: N drawings, S strokes, P points along a stroke.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.tasks.images import Size, letters

VERSION = 1
ALPHABETS = {"train": 15, "validation": 3, "test": 6}
CHARACTERS, DRAWINGS = 20, 20
POINTS = 16  # along a stroke
THICKNESS = 0.045  # of a pen, as a part of the image's height


def make_glyphs(seed: int, size: Size) -> pa.Table:
    """A table with columns text (an image, as distmeta.tasks.images writes it), label (alphabet/character), split."""
    columns: dict[str, list[str]] = {"text": [], "label": [], "split": []}
    number = 0
    for split, count in ALPHABETS.items():
        for _ in range(count):
            rng = np.random.default_rng([seed, VERSION, number])
            style = (
                rng.uniform(0.2, 0.8),
                rng.uniform(0, 0.5),
                int(rng.integers(3, 6)),
            )  # bends, how much, the grid's side
            for character in range(CHARACTERS):
                drawings = draw(strokes(rng, *style), rng, size)
                columns["text"] += map(letters, drawings)
                columns["label"] += [f"alphabet{number:02d}/character{character:02d}"] * DRAWINGS
                columns["split"] += [split] * DRAWINGS
            number += 1
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})


def strokes(rng: np.random.Generator, bent: float, bend: float, side: int) -> NDArray[np.float64]:
    """The strokes of a character: begin, middle and end of each, [S, 3, 2], from -1 to 1."""
    count = int(rng.integers(1, 5))
    grid = np.linspace(-0.8, 0.8, side)
    ends = grid[rng.integers(0, side, (count + 1, 2))]
    begin = np.where(rng.random((count, 1)) < 0.6, ends[:-1], grid[rng.integers(0, side, (count, 2))])  # pen stays down
    end = ends[1:]
    across = (end - begin)[:, ::-1] * np.array([1.0, -1.0])
    middle = (begin + end) / 2 + np.where(rng.random((count, 1)) < bent, bend + 0.3, 0.0) * across
    return np.stack([begin, middle, end], 1)


def draw(glyph: NDArray[np.float64], rng: np.random.Generator, size: Size) -> NDArray[np.uint8]:
    """DRAWINGS drawings of a character, [N, C, H, W]: dark strokes on white."""
    channels, height, width = size
    n = DRAWINGS
    points = glyph + rng.normal(0, 0.06, (n, *glyph.shape))
    angle, scale = rng.normal(0, 0.12, n), rng.normal(1, 0.08, (n, 2))
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], 1).reshape(n, 2, 2) * scale[:, None]
    points = np.einsum("nspk,njk->nspj", points, turn) + rng.normal(0, 0.06, (n, 1, 1, 2))
    t = np.linspace(0, 1, POINTS)[:, None]
    begin, middle, end = (points[:, :, i, None] for i in range(3))
    line = ((1 - t) ** 2 * begin + 2 * t * (1 - t) * middle + t**2 * end).reshape(n, -1, 2)  # [N, S P, 2]
    down, across = (
        (np.linspace(-1, 1, pixels, dtype=np.float32) - line[:, :, axis, None].astype(np.float32)) ** 2
        for axis, pixels in ((0, height), (1, width))
    )  # [N, S P, H], [N, S P, W]
    near, one = np.full((2, n, height, width), np.inf, np.float32)
    for point in range(line.shape[1]):  # a point of all drawings at once
        np.add(down[:, point, :, None], across[:, point, None], out=one)
        np.minimum(near, one, out=near)
    ink = np.clip(1.5 - np.sqrt(near) / (2 * THICKNESS), 0, 1)
    return np.repeat((255 * (1 - ink)).astype(np.uint8)[:, None], channels, 1)
