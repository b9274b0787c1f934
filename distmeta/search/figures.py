"""Plots of a search, figures/*.png: trials over time, adaptation curves, parallel coordinates, rates by steps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from distmeta.runs.report.plots import new_axes

Row = dict[str, Any]


ALT = {
    "trials": "The score of each trial at each of its meta-validations, a line for a trial.",
    "adaptation": "The score of each trial after each number of adaptation steps, a line for a trial.",
    "parallel": "The parameters of each trial and its score, scaled to 0..1 (below: it has none), a line for a trial.",
    "lr_steps": "The best score for each range of inner.lr and each number of inner.steps.",
}


def figures(rows: list[Row], metric: str) -> dict[str, Any]:
    """The figures that the rows allow, by the names in `ALT`; empty where no trial was scored."""
    scored = [row for row in rows if row["value"] is not None]
    if not scored:
        return {}
    over_time = [(row, [step for step, _ in row["over_time"]], [v for _, v in row["over_time"]]) for row in scored]
    by_steps = [(row, list(range(len(row["curve"]))), row["curve"]) for row in scored]
    drawn = {
        "trials": curves(over_time, "trials over time", "meta-step", metric),
        "adaptation": curves(by_steps, "adaptation curves", "adaptation steps", metric),
    }
    keys = list(dict.fromkeys(k for row in scored for k in row["params"]))
    if keys:
        drawn["parallel"] = parallel(scored, keys, metric)
    if {"inner.lr", "inner.steps"} <= set(keys):
        drawn["lr_steps"] = heat_map(scored, metric)
    return {name: axes.figure for name, axes in drawn.items()}


def curves(lines: list[tuple[Row, list[int], list[float]]], title: str, x: str, metric: str) -> Any:
    """A line for each (trial, values on the x axis, scores); dashed for a rival."""
    axes = new_axes(title, x, f"meta-validation {metric}")
    for row, steps, values in lines:
        axes.plot(steps, values, marker=".", ls="-" if row["kind"] == "search" else "--", label=label(row))
    axes.legend(fontsize=7, ncols=2)
    return axes


def parallel(rows: list[Row], keys: list[str], metric: str) -> Any:
    """Each trial a line over its parameters, each scaled to 0..1; the last column is the score."""
    axes = new_axes("parameters of all trials, scaled to 0..1", "", "")
    columns = [[row["params"].get(key) for row in rows] for key in keys] + [[row["value"] for row in rows]]
    heights = np.array([scaled(column) for column in columns])
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("score", ["#9aa4b2", "#d9741a"])  # both show on white and on black
    for line, score in zip(heights.T, heights[-1], strict=True):
        axes.plot(range(len(columns)), line, color=colours(score))
    axes.set_xticks(range(len(columns)), [*keys, metric])
    return axes


def scaled(column: list[Any]) -> list[float]:
    """Numbers by rank of magnitude (logarithms where all are positive), other values by their order; absent: below."""
    there = [value for value in column if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in there):
        use_log = all(v > 0 for v in there) and there and max(there) / min(there) > 20
        numbers = {v: float(np.log(v)) if use_log else float(v) for v in there}
    else:
        names = sorted({str(value) for value in there})
        numbers = {v: float(names.index(str(v))) for v in map(_hashable, there)}
    low, high = min(numbers.values(), default=0.0), max(numbers.values(), default=1.0)
    return [-0.1 if v is None else (numbers[_hashable(v)] - low) / ((high - low) or 1.0) for v in column]


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, list | dict) else value


def heat_map(rows: list[Row], metric: str) -> Any:
    """The best score in each cell of inner.lr (in a logarithmic raster of 8) and inner.steps."""
    both = [row for row in rows if {"inner.lr", "inner.steps"} <= set(row["params"])]
    rates = np.log([row["params"]["inner.lr"] for row in both])
    steps = sorted({row["params"]["inner.steps"] for row in both})
    edges = np.linspace(rates.min() - 1e-9, rates.max() + 1e-9, 9)
    best: Any = min if metric == "loss" else max
    cells = np.full((len(steps), 8), np.nan)
    for row, rate in zip(both, rates, strict=True):
        i, j = steps.index(row["params"]["inner.steps"]), min(7, int(np.searchsorted(edges, rate, "right")) - 1)
        cells[i, j] = row["value"] if np.isnan(cells[i, j]) else best(cells[i, j], row["value"])
    axes = new_axes(f"best meta-validation {metric}", "inner.lr", "inner.steps")
    axes.grid(False)
    image = axes.imshow(cells, aspect="auto", origin="lower")
    axes.set_xticks(range(8), [f"{np.exp((a + b) / 2):.2g}" for a, b in itertools.pairwise(edges)])
    axes.set_yticks(range(len(steps)), [str(s) for s in steps])
    axes.figure.colorbar(image)
    return axes


def label(row: Row) -> str:
    return str(row["number"]) if row["kind"] == "search" else f"{row['number']} ({row['kind']})"
