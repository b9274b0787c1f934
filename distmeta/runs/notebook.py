"""What a notebook shows: a table of a result, and a bar that replaces itself; nothing beside IPython is needed."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def is_running() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """HTML."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><caption>{html.escape(title)}</caption>{line('th', heads)}{body}</table>"


class Bar:
    """What is done, how much of it, and a line beside it."""

    def __init__(self, what: str, total: int) -> None:
        from IPython.display import display

        self._what, self._total = what, total
        self._handle: Any = display(self._html(0, ""), display_id=True)

    def update(self, completed: int, line: str) -> None:
        self._handle.update(self._html(completed, line))

    def _html(self, completed: int, line: str) -> Any:
        from IPython.display import HTML

        return HTML(
            f'{html.escape(self._what)} <progress value="{completed}" max="{self._total}"></progress> '
            f"{completed}/{self._total} <code>{html.escape(line)}</code>"
        )
