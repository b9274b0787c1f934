"""Reading the records of benchmarks/results, and writing numbers, intervals and tables of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
Sentence = tuple[str, str]  # the page, and what has to stand in it, line breaks aside
Score = Mapping[str, Any]  # mean, low, high: a mean over episodes and its 95% interval


@functools.cache
def record(name: str) -> Any:
    """What benchmarks/results/NAME.json says."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def number(score: Score, digits: int = 3) -> str:
    """0.967"""
    return f"{score['mean']:.{digits}f}"


def interval(score: Score, digits: int = 3) -> str:
    """0.967 [0.961, 0.972]"""
    return f"{score['mean']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"


def signed(score: Score, digits: int = 3) -> str:
    """+0.007 [-0.004, +0.018]"""
    return f"{score['mean']:+.{digits}f} [{score['low']:+.{digits}f}, {score['high']:+.{digits}f}]"


def half(score: Score) -> str:
    """0.967 ± 0.005"""
    return f"{score['mean']:.3f} ± {(score['high'] - score['low']) / 2:.3f}"


def three(value: float) -> str:
    """Three digits: 1.24, 55.3, 366."""
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}"


def listed(values: Iterable[float], digits: int = 3) -> str:
    """0.961, 0.962, 0.960"""
    return ", ".join(f"{value:.{digits}f}" for value in values)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|---" * len(header) + "|")
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |") + "\n"
