"""What an episode is: examples with their tokens, in a support and a query set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """n examples. Row i has the tokens tokens[offsets[i]:offsets[i + 1]]."""

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]  # [n + 1]
    # [n], numbers of the episode's label_names; of a language model's rows: how many tokens are before what is scored
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]  # [n], row numbers in the store
    # Family text_to_text unless task.prompt=bare: [n], how many tokens stand before an input, and the tokens that do
    # where it follows another example in a context
    heads: NDArray[np.int32] | None = None
    later: NDArray[np.int32] | None = None

    def part(self, first: int, last: int) -> Rows:
        """Rows first..last - 1."""
        begin, end = self.offsets[first], self.offsets[last]
        return Rows(
            self.tokens[begin:end], self.offsets[first : last + 1] - begin, self.labels[first:last],
            self.rows[first:last], None if self.heads is None else self.heads[first:last], self.later,
        )  # fmt: skip


@dataclass(frozen=True)
class Episode:
    index: int
    task: str
    label_names: tuple[str, ...]
    support: Rows
    query: Rows
