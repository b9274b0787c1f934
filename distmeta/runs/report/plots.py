"""Figures for paper, for a light page and for a dark one: drawn once, without pyplot's global state.

A figure is drawn in the colours below. As PNG it has them on white; as SVG inside a page each stands for a variable of
the page's style sheet (`--series-0` ..., and its text colour), so that the page decides.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

INK = "#24292e"  # text and axes
SERIES = ("#1f5fa8", "#b45108", "#17733a", "#7a3fc0", "#b3261f", "#0d7080", "#8a6100")


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look of the figures that are made and saved within."""
    import matplotlib
    from cycler import cycler

    with matplotlib.rc_context({
        "axes.prop_cycle": cycler(color=SERIES), "axes.spines.top": False, "axes.spines.right": False,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.grid": True, "grid.color": INK, "grid.alpha": 0.15, "axes.axisbelow": True,
        "legend.frameon": False, "font.size": 10,
        "text.parse_math": False,  # names are the user's: a dollar sign in one is a dollar sign
        "svg.fonttype": "none",
    }):  # fmt: skip
        yield


def new_figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 4.2)) -> tuple[Any, Any]:
    """(figure, array of its axes [rows, columns]); size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(path: Path, figure: Any) -> None:
    """A PNG on white; a reader sees the old file or the new."""
    draft = path.with_name(f".tmp-{path.name}")
    figure.savefig(draft, dpi=130, format="png", metadata={"Software": None})
    figure.set_layout_engine("none")  # it is found, and takes as long as drawing: the SVG has the same
    draft.replace(path)


def svg(figure: Any, name: str, alt: str) -> str:
    """An <svg> element for a page. `name` keeps its ids apart from those of other figures; alt: what it shows, said."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor")
    for number, colour in enumerate(SERIES):
        text = text.replace(colour, f"var(--series-{number})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
