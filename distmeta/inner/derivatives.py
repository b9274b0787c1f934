"""How often what runs now is differentiated, for operations whose faster form has no second derivative."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_once: ContextVar[bool] = ContextVar("once", default=False)


@contextmanager
def once(only: bool = True) -> Iterator[None]:
    """Within it, what runs is differentiated at most once; with only=False it may be twice, as outside."""
    token = _once.set(only)
    try:
        yield
    finally:
        _once.reset(token)


def is_twice() -> bool:
    """Whether a derivative of a derivative may be taken of what runs now."""
    return torch.is_grad_enabled() and not _once.get()
