"""Plots of a search, figures/*.png: trials over time, adaptation curves, scores by parameter."""

from __future__ import annotations

import itertools
from typing import Any

from distmeta.runs.report import plots
from distmeta.runs.report.plots import new_axes

Row = dict[str, Any]


ALT = {
    "trials": "The score of each trial at each of its meta-validations, a line for a trial.",
    "adaptation": "The score of each trial after each number of adaptation steps, a line for a trial.",
    "parameters": "The score of each trial over each searched parameter, a dot for a trial.",
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
        drawn["parameters"] = by_parameter(scored, keys, metric)
    return drawn


def curves(lines: list[tuple[Row, list[int], list[float]]], title: str, x: str, metric: str) -> Any:
    """A line for each (trial, values on the x axis, scores); dashed for a rival."""
    axes = new_axes(title, x, f"meta-validation {metric}")
    for row, steps, values in lines:
        axes.plot(steps, values, marker=".", ls="-" if row["kind"] == "search" else "--", label=label(row))
    axes.legend(fontsize=7, ncols=2)
    return axes.figure


def by_parameter(rows: list[Row], keys: list[str], metric: str) -> Any:
    """The score of each trial over each of its parameters; a rate that spans much is on a logarithmic axis."""
    columns = min(3, len(keys))
    figure, grid = plots.new_figure(-(-len(keys) // columns), columns, (3.6 * columns, 3 * -(-len(keys) // columns)))
    for axes, key in itertools.zip_longest(grid.flat, keys):
        if key is None:
            axes.remove()
            continue
        searched = [row for row in rows if key in row["params"]]
        values = [row["params"][key] for row in searched]
        if not all(type(value) in (int, float) for value in values):
            values = [str(value) for value in values]
        elif min(values) > 0 and max(values) > 20 * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        axes.plot(values, [row["value"] for row in searched], "o")
        axes.set(xlabel=key, ylabel=f"meta-validation {metric}")
    return figure


def label(row: Row) -> str:
    return str(row["number"]) if row["kind"] == "search" else f"{row['number']} ({row['kind']})"
