"""How a backbone is called, chosen so that it gives what its ordinary call gives.

The ordinary call is `model(input_ids, attention_mask)` with a two-dimensional mask. The ways to call it that cost less,
since no model then looks at the data to build masks and positions, come first; the first that gives the same states
on padded rows, longer than any window of the model, is taken.

Letters: N rows, L tokens, D width.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from distmeta.errors import InputError, cut

Way = tuple[str, ...]
# mask4: additive, [N, 1, L, L]; mask2: 1 for a token, [N, L]; what is not named is left to the model.
WAYS: tuple[Way, ...] = (
    ("mask4", "positions", "types"), ("mask4", "types"), ("mask2", "positions", "types"), ("mask2", "types"),
    ("mask2",),
)  # fmt: skip
SAME = 1e-4  # relative difference in float32 of two ways to the same states
ROUNDING = 5e-6  # of two rows that are computed alike
SHORT = 24  # tokens that tell masks and positions apart, where no window is near
CHEAP = 2e9  # numbers times tokens of a trial that need not be shortened


class NoCall(InputError):
    """transformers' own call fails."""


def trial(hf_config: Any, length: int) -> tuple[Tensor, Tensor]:
    """Token ids and which are kept, [3, L]: a full row, one with the same first half, and one with padding."""
    generator = torch.Generator().manual_seed(0)
    pad = getattr(hf_config, "pad_token_id", None)
    pad = pad if isinstance(pad, int) and 0 <= pad < hf_config.vocab_size else 0
    ids = torch.randint(1, int(hf_config.vocab_size), (3, length), generator=generator)
    ids = torch.where(ids == pad, 1 + (pad == 1), ids)
    ids[1, : length // 2] = ids[0, : length // 2]
    keep = torch.ones_like(ids)
    keep[2, length - gap(length) :] = 0
    return ids.where(keep == 1, torch.tensor(pad)), keep


def gap(length: int) -> int:
    """Tokens of padding in the last row of a trial."""
    return max(1, length // 4)


def trial_length(model: nn.Module, most: int) -> int:
    """Tokens of a trial's rows: `most`, or, where that costs, as many as pass every window of the configuration."""
    numbers: Any = getattr(model, "numbers", None) or sum(p.numel() for p in model.parameters())  # those held elsewhere
    if numbers * most <= CHEAP:
        return max(4, most)
    windows = [n for n in windows_of(model.config.to_dict()) if n < most]  # type: ignore[operator, union-attr]
    return max(4, min(most, max([SHORT, *(n + 8 for n in windows)])))


def windows_of(tree: Any, name: str = "") -> Iterable[int]:
    """Whole numbers of a configuration whose key speaks of a window."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from windows_of(value, str(key))
    elif isinstance(tree, list):
        for value in tree:
            yield from windows_of(value, name)
    elif isinstance(tree, int) and not isinstance(tree, bool) and re.search("window|local|chunk|block", name):
        yield tree


def ordinary_states(backbone: nn.Module, ids: Tensor, keep: Tensor, inputs: frozenset[str]) -> Tensor:
    """Last hidden states of the ordinary call, [N, L, D]. Raises InputError where it takes no text."""
    kind = backbone.config.model_type  # type: ignore[union-attr]
    if "input_ids" not in inputs:
        raise InputError(f"model: {kind} takes no token ids; distmeta trains models of text, such as bert or llama")
    arguments = {"input_ids": ids, "attention_mask": keep}
    try:
        with torch.no_grad():
            states: Tensor = backbone(**{k: v for k, v in arguments.items() if k in inputs}).last_hidden_state
    except Exception as error:  # whatever a family's own code makes of being called
        raise NoCall(
            f"model: {kind} fails at {ids.shape[1]} tokens of text alone, with transformers' own call: {reason(error)}"
        ) from None
    if states.shape[:2] != ids.shape:
        raise InputError(f"model: {kind} gives states of another length than its text's; choose another family")
    return states


def sees_only_before(states: Tensor) -> bool:
    """Whether a token sees only those before it: whether the rows of a trial that begin alike have like states."""
    half = states.shape[1] // 2
    return difference(states[0, :half], states[1, :half]) <= ROUNDING


@contextlib.contextmanager
def shaken(model: nn.Module, fresh: bool) -> Iterator[None]:
    """While it lasts, matrices of a `fresh` model are larger than initialised: what a token sees then tells."""
    before = [(p, p.detach().clone()) for p in model.parameters() if fresh and p.dim() > 1]
    generator = torch.Generator().manual_seed(0)
    for p, _ in before:
        noise = torch.randn(p.shape, generator=generator) * (0.5 * p.shape[-1] ** -0.5)
        p.data.add_(noise.to(p.device, p.dtype))
    try:
        yield
    finally:
        for p, value in before:
            p.data.copy_(value)


def choose(
    kind: str, run: Callable[[Way], Tensor], expected: Tensor, keep: Tensor | None, ways: Iterable[Way] = WAYS
) -> tuple[Way, float]:
    """The first way whose states are the expected ones, and their relative difference. Raises InputError."""
    why = ""
    for way in ways:
        try:
            with torch.no_grad():
                states = run(way)
            rows = slice(None) if keep is None else keep.bool()
            apart = difference(states[rows], expected[rows])
        except Exception as error:
            why = reason(error)
            continue
        if apart <= SAME:
            return way, apart
        why = f"they differ by {apart:.1g} from those of its ordinary call"
    raise InputError(f"model: {kind} gives no states that distmeta can train with ({why}); choose another family")


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference as a part of the largest value; NaN where either holds one."""
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) if a.shape == b.shape else float("inf")


def reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {cut(lines[0], 200)}" if lines else type(error).__name__
