"""Tables at the widths that people have."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from distmeta.runs.progress import LESS, evaluation_table
from distmeta.runs.tables import WIDE, show

METRICS = ("accuracy", "precision", "recall", "f1", "loss")
SCORE = {"mean": 0.9, "low": 0.8766, "high": 0.9235, "episodes": 8, "curve": [0.3, 0.5, 0.75, 0.8, 0.85, 0.9]}
METHODS = {name: dict.fromkeys(METRICS, SCORE) for name in ("meta_trained", "no_adaptation", "multi_task")}


def printed(width, *tables, **keywords):
    out = io.StringIO()
    show(*tables, console=Console(file=out, width=width), **keywords)
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 120, WIDE])
def test_every_number_of_a_method_is_whole_within_the_width(width):
    text = printed(width, evaluation_table(METHODS), less=LESS)
    table = [line for line in text.splitlines() if not line.startswith("not shown")]
    assert "\u2026" not in text and max(map(len, table)) <= width
    assert text.count("0.900 [0.877, 0.923]") == 3 and all(name in text for name in METHODS)
    assert ("precision" in text.split("not shown")[0]) == (width > 80)
    assert ("not shown" in text) == (width <= 80)


def test_lines_and_text_columns_are_whole_in_a_pipe():
    table = Table()
    table.add_column("found")
    table.add_row("word " * 60)
    assert "word " * 59 in printed(WIDE, table, "line " * 90) and "line " * 89 in printed(80, "line " * 90)
    assert max(map(len, printed(80, table).splitlines())) <= 80
