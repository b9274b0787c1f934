"""Built-in images with words: two shapes of a colour each, one above or left of the other, and the words that say so.

A class is a description, such as "a red circle above a blue square", and its images differ in places, sizes and shades.
The splits share the words and no description: a meta-test class is a combination that was never seen.

Letters: N drawings, H x W pixels.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmeta.tasks.images import Size, letters

VERSION = 1
CLASSES = {"train": 240, "validation": 40, "test": 120}
DRAWINGS = 16
COLOURS = {
    "red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220), "yellow": (235, 210, 50),
    "purple": (150, 60, 180), "black": (25, 25, 25),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring")
PLACES = {"above": (1, 0), "left of": (0, 1)}  # from the first shape to the second: down, across


def make_captions(seed: int, size: Size) -> pa.Table:
    """A table with columns text (an image, as distmeta.tasks.images writes it), label (its description), split."""
    things = list(product(COLOURS, SHAPES))
    combinations = [(a, b, place) for a, b in product(things, things) if a != b for place in PLACES]
    order = np.random.default_rng([seed, VERSION]).permutation(len(combinations))
    columns: dict[str, list[str]] = {"text": [], "label": [], "split": []}
    first = 0
    for split, count in CLASSES.items():
        for number in order[first : first + count]:
            one, other, place = combinations[number]
            drawings = draw(one, other, PLACES[place], np.random.default_rng([seed, VERSION, number]), size)
            columns["text"] += map(letters, drawings)
            columns["label"] += [f"a {' '.join(one)} {place} a {' '.join(other)}"] * DRAWINGS
            columns["split"] += [split] * DRAWINGS
        first += count
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})


def draw(
    one: tuple[str, str], other: tuple[str, str], place: tuple[int, int], rng: np.random.Generator, size: Size
) -> NDArray[np.uint8]:
    """DRAWINGS drawings, [N, C, H, W], of two shapes (colour, shape), the other at `place` from the first."""
    channels, height, width = size
    n = DRAWINGS
    images = rng.uniform(215, 255, (n, 1, 1, 1)) + rng.normal(0, 6, (n, 3, height, width))
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij"))
    apart, middle = rng.uniform(0.42, 0.52, n), rng.normal(0, 0.06, (n, 2))
    for side, (colour, shape) in ((-1, one), (1, other)):
        centre = middle + side * apart[:, None] * place + rng.normal(0, 0.05, (n, 2))
        down, across = np.moveaxis(grid - centre[:, :, None, None], 1, 0) / rng.uniform(0.28, 0.4, (n, 1, 1))
        shade = np.array(COLOURS[colour]) + rng.normal(0, 12, (n, 3))
        images = np.where(inside(shape, down, across)[:, None], shade[:, :, None, None], images)
    images = images if channels == 3 else images.mean(1, keepdims=True)
    return images.clip(0, 255).astype(np.uint8)


def inside(shape: str, down: NDArray[np.float64], across: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which pixels a shape covers, whose half height is 1; down, across: their places from its centre."""
    far, least, most = np.hypot(down, across), np.minimum(abs(down), abs(across)), np.maximum(abs(down), abs(across))
    of_shape: dict[str, NDArray[np.bool_]] = {
        "circle": far < 1, "square": most < 0.88, "triangle": (down < 0.8) & (abs(across) < (down + 1) * 0.6),
        "cross": (least < 0.3) & (most < 1), "ring": (far < 1) & (far > 0.55),
    }  # fmt: skip
    return of_shape[shape]
