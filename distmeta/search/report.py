"""report.html of a search: the best trial, all trials, the figures, from the search's directory alone."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

from distmeta.runs.report import plots, write_page
from distmeta.runs.report.files import RunFiles, read_run
from distmeta.runs.report.page import Block, Code, Folded, Page, Picture, Section, Table, Text
from distmeta.runs.report.sections import command, environment, place, setting
from distmeta.runs.tables import interval
from distmeta.search.results import Row, best_of, collect, listed, score, shown

ALT = {
    "trials": "The score of each trial at each of its meta-validations, a line for a trial.",
    "adaptation": "The score of each trial after each number of adaptation steps, a line for a trial.",
    "parameters": "The score of each trial over each searched parameter, a dot for a trial.",
}


def is_search(path: str | Path) -> bool:
    return (Path(path) / "trials").is_dir()


def write(sweep_dir: str | Path) -> Path:
    """report.html and figures/*.png of a search, finished or not; the path of the page. Raises InputError."""
    run = read_run(sweep_dir)
    metric = run.config.tune.metric
    rows = collect(run.path, run.config)
    with plots.style():
        parts = [best(run, rows), trials(rows, metric), drawn(rows, metric)]
        parts += [searched(run), environment(run), again(run)]
        ended = sum(row["status"] in ("completed", "stopped", "failed") for row in rows)
        about = f"{place(run.path)}: {ended} of {len(rows)} trials that were begun have ended."
        return write_page(Page(f"{run.config.run.name}: search", about, parts), run.path)


def best(run: RunFiles, rows: list[Row]) -> Section:
    title, metric = "Best trial", run.config.tune.metric
    row = best_of(rows, metric)
    if row is None:
        return Section(title, reason="no trial has been scored")
    params = ", ".join(f"{key} = {shown(value)}" for key, value in row["params"].items()) or "no searched key"
    rates = "" if row["kind"] == "search" else f" with learnt rates ({row['kind']})"
    sentence = (
        f"Trial {row['number']}{rates}: meta-validation {metric} {score(row)} after {row['adapt_steps']} "
        f"adaptation steps; {params}."
    )
    blocks: list[Block] = [Text(sentence, strong=True)]
    if row["test_accuracy"] is not None:
        test = {end: row[f"test_{key}"] for end, key in (("mean", "accuracy"), ("low", "low"), ("high", "high"))}
        blocks.append(Text(f"On meta-test tasks its accuracy is {interval(test)}."))
    recipe = run.path / "best.yaml"
    if recipe.is_file():
        text = recipe.read_text(encoding="utf-8")
        blocks += [Code(shlex.join(["distmeta", "train", str(recipe)])), Folded("best.yaml", [Code(text)])]
    return Section(title, blocks)


def trials(rows: list[Row], metric: str) -> Section:
    title = "Trials"
    if not rows:
        return Section(title, reason="no trial has begun")
    heads, cells, best = listed(rows, metric)
    caption = f"Meta-validation {metric} at the best number of adaptation steps with 95% intervals; the best first."
    return Section(title, [Table(caption, heads, cells, marked=[] if best is None else [best])])


def drawn(rows: list[Row], metric: str) -> Section:
    pictures = [Picture(name, figure, ALT[name], ALT[name]) for name, figure in figures(rows, metric).items()]
    return Section("Figures", pictures, reason="no trial has been scored")


def searched(run: RunFiles) -> Section:
    tune = run.config.tune
    rows = [
        [key, ", ".join(f"{kind} {shown(value)}" for kind, value in spec.items())] for key, spec in tune.space.items()
    ]
    rows += [["searcher", tune.searcher], ["scheduler", tune.scheduler], ["trials", str(tune.trials)]]
    return Section("What was searched", [
        Table("Space and searcher", [], rows), Table("What the trials share", [], setting(run.config)),
    ])  # fmt: skip


def again(run: RunFiles) -> Section:
    words = command(run.environment) or shlex.join(["distmeta", "tune", str(run.path / "config.yaml")])
    return Section("How to reproduce it", [Code(words)])


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
    axes = plots.new_figure()[1][0, 0]
    axes.set(title=title, xlabel=x, ylabel=f"meta-validation {metric}")
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
