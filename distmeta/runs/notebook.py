"""A progress bar in a notebook, as HTML that replaces itself; nothing beside IPython is needed."""

from __future__ import annotations

import html
import sys
from typing import Any


def is_running() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


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
