"""Tables on standard output that can be read at any width, and in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDE = 1000  # columns of what is no terminal: nothing wraps there
TEXT = 22  # columns that a column of text needs, which wraps


def table(
    title: str, heads: Sequence[str], rows: Iterable[Sequence[Any]], texts: Sequence[str] = (), bold: int | None = None,
    **style: Any,
) -> Table:  # fmt: skip
    """A rich table: what a row is of to the left, numbers to the right, and columns of `texts`, which wrap.

    A cell is a text as it is, or what rich renders. bold: the number of a row that stands out.
    """
    from rich.markup import escape
    from rich.table import Table

    made = Table(title=escape(title), **style)
    for number, head in enumerate(heads):
        made.add_column(head, justify="right" if number and head not in texts else "left", no_wrap=head not in texts)
    for number, row in enumerate(rows):
        cells = (escape(cell) if isinstance(cell, str) else cell for cell in row)
        made.add_row(*cells, style="bold" if number == bold else None)
    return made


def interval(score: Mapping[str, Any]) -> str:
    """A mean with its 95% interval, which a single episode has not."""
    if score.get("episodes", 2) < 2:
        return f"{score['mean']:.3f}"
    return f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def show(*parts: Any, less: Sequence[str] = (), console: Console | None = None) -> None:
    """Print rich tables, and lines, on standard output.

    Where a terminal is too narrow for a table, the columns headed `less` are left out in turn, and said to be; a table
    that is too wide even so becomes a block of lines for each row.
    """
    from rich.console import Console
    from rich.table import Table

    console = console or Console(width=None if sys.stdout.isatty() else WIDE)
    for part in parts:
        if not isinstance(part, Table):
            console.print(part, soft_wrap=True, markup=False, highlight=False)
            continue
        left_out = [name for name in less if _leave_out(part, name, console)]
        if _needs(part, console) <= console.width:
            console.print(part)
        else:
            _as_blocks(part, console)
        if left_out:
            line = f"not shown at {console.width} columns: {', '.join(left_out)}"
            console.print(line, soft_wrap=True, markup=False, highlight=False)


def _needs(table: Table, console: Console) -> int:
    """The columns of a terminal within which the table can be read."""
    wide = console.options.update(max_width=WIDE)
    total, between = 1, 3 if table.box else 2
    for column in table.columns:
        widest = max(console.measure(cell or "", options=wide).maximum for cell in [column.header, *column.cells])
        total += between + (widest if column.no_wrap else min(widest, TEXT))
    return total


def _leave_out(table: Table, name: str, console: Console) -> bool:
    """Takes the column from a table that is too wide, if it has it."""
    index = next((i for i, column in enumerate(table.columns) if str(column.header) == name), None)
    if index is None or _needs(table, console) <= console.width:
        return False
    del table.columns[index]
    return True


def _as_blocks(table: Table, console: Console) -> None:
    if table.title:
        console.print(table.title, style="italic", highlight=False)
    heads = [str(column.header) for column in table.columns]
    width = max(map(len, heads[1:]), default=0)
    for first, *rest in zip(*(column.cells for column in table.columns), strict=True):
        console.print(first, style="bold", highlight=False)
        for head, cell in zip(heads[1:], rest, strict=True):
            if cell:
                console.print(f"  {head:{width}}  {cell}", highlight=False)
