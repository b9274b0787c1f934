"""Random draws that are the same for ever: raw Philox words and integer arithmetic only.

NumPy promises that a bit generator's stream never changes, but not that `Generator.choice` or `shuffle` do
not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_HALF = np.uint64(32)


class Draws:
    """A stream of draws that depends on (seed, stream, index) alone; other indices never overlap it."""

    def __init__(self, seed: int, stream: int, index: int) -> None:
        key = np.array([seed & 0xFFFFFFFFFFFFFFFF, stream], dtype=np.uint64)
        counter = np.array([0, 0, index, 0], dtype=np.uint64)  # the low two words count within the stream
        self._bits = np.random.Philox(counter=counter, key=key)

    def below(self, limits: NDArray[np.int64]) -> NDArray[np.int64]:
        """One integer in [0, limit) for each limit (< 2**32); bias below limit / 2**32."""
        words = self._bits.random_raw(limits.size).reshape(limits.shape) >> _HALF
        out: NDArray[np.int64] = ((words * limits.astype(np.uint64)) >> _HALF).astype(np.int64)
        return out

    def permutation(self, n: int) -> NDArray[np.int64]:
        """A random order of 0..n-1."""
        return np.argsort(self._bits.random_raw(n), kind="stable")

    def distinct(self, counts: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """[len(counts), k]: for each count, k different integers in [0, count), in random order.

        Fisher-Yates that keeps only the places it has touched: the cost does not grow with `counts`.
        """
        steps = np.arange(k)
        picks = (steps + self.below(counts[:, None] - steps)).tolist()
        for row in picks:
            moved: dict[int, int] = {}
            for step, pick in enumerate(row):
                row[step] = moved.get(pick, pick)
                moved[pick] = moved.get(step, step)
        return np.array(picks, dtype=np.int64)
