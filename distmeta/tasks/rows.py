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

    def example(self, i: int, later: bool) -> NDArray[np.int32]:
        """The tokens of row i; later: as they stand behind another example in a context."""
        tokens = self.tokens[self.offsets[i] : self.offsets[i + 1]]
        if not later or self.heads is None or self.later is None:
            return tokens
        return np.concatenate([self.later, tokens[self.heads[i] :]])


def after_examples(support: Rows, asked: Rows | None = None) -> Rows:
    """A language model's rows `asked`, each behind the whole support set; None: its own, each behind the others."""
    rows, whole, begins = support if asked is None else asked, [], []
    for i, begin in enumerate(rows.labels):
        others = [j for j in range(len(support.labels)) if asked is not None or j != i]
        before = [support.example(j, later=place > 0) for place, j in enumerate(others)]
        own = rows.example(i, later=bool(others))
        answer = int(rows.offsets[i + 1] - rows.offsets[i] - begin)
        whole.append(np.concatenate([*before, own]))
        begins.append(len(whole[-1]) - answer)
    offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in whole])]).astype(np.int64)
    return Rows(np.concatenate(whole), offsets, np.array(begins, np.int64), rows.rows)


@dataclass(frozen=True)
class Episode:
    index: int
    task: str
    label_names: tuple[str, ...]
    support: Rows
    query: Rows
