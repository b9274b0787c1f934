"""Figures of a run. Each is matplotlib's figure, drawn within `distmeta.runs.report.plots.style()`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmeta.runs.report.plots import INK, SERIES, new_figure

Records = list[dict[str, Any]]
Methods = dict[str, Any]

WITHIN = {
    "comm_s": "gradients and meta-parameters on their way (in reduction and outer step)",
    "base_comm_s": "frozen weights on their way (in inner loops)",
    "fast_comm_s": "fast weights on their way (in inner loops)",
}
CURVES = {
    "outer_loss": "outer loss",
    "query_accuracy": "query accuracy",
    "inner_lr": "inner learning rate (mean)",
    "grad_norm": "norm of the meta-gradient",
}


def readable(method: str) -> str:
    """A method's key in words."""
    return "meta-trained" if method == "meta_trained" else method.replace("_", " ")


def intervals(methods: Methods, metric: str) -> Any:
    """Mean and 95% interval of each method."""
    figure, ((axes,),) = new_figure(size=(7, 0.9 + 0.38 * len(methods)))
    for row, (name, scores) in enumerate(methods.items()):
        score = scores[metric]
        colour = SERIES[0] if name == "meta_trained" else SERIES[1]
        axes.plot([score["low"], score["high"]], [row, row], color=colour, lw=2, solid_capstyle="butt")
        axes.plot(score["mean"], row, "o", color=colour, ms=7)
    axes.set_yticks(range(len(methods)), [readable(name) for name in methods])
    axes.set(ylim=(len(methods) - 0.5, -0.5), xlabel=metric)
    return figure


def learning(records: Records) -> Any:
    """Each quantity of a meta-step over meta-steps, as it was and smoothed; meta-validations beside it."""
    keys = [key for key in CURVES if any(key in record for record in records)]
    figure, grid = new_figure(-(-len(keys) // 2), 2, (9, 2.7 * -(-len(keys) // 2)))
    for axes, key in zip(grid.flat, keys, strict=False):
        steps, values = zip(*[(r["step"], r[key]) for r in records if key in r], strict=True)
        axes.plot(steps, values, color=SERIES[0], alpha=0.35, lw=1)
        axes.plot(steps, smooth(np.array(values, float)), color=SERIES[0], lw=2, label="meta-train, smoothed")
        metric = {"outer_loss": "loss", "query_accuracy": "accuracy"}.get(key)
        scored = [r for r in records if metric in r.get("validation", {})]
        if scored:
            axes.plot(
                [r.get("validated", r["step"]) for r in scored], [r["validation"][metric] for r in scored], "o-",
                color=SERIES[1], ms=4, label="meta-validation",
            )  # fmt: skip
            axes.legend()
        axes.set(xlabel="meta-step", ylabel=CURVES[key])
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in list(grid.flat)[len(keys) :]:
        axes.remove()
    return figure


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred means over a tenth of the curve; shorter windows at its ends."""
    half, places = max(1, len(values) // 20), np.arange(len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    means: NDArray[np.float64] = (sums[high] - sums[low]) / (high - low)
    return means


def adaptation(methods: Methods, curves: dict[str, Any] | None, metric: str) -> Any:
    """The meta-trained model after 0..K inner steps with its intervals, the other methods as levels.

    curves: mean, low and high after each count; None: evaluation.json's means, and the interval of the last.
    """
    figure, ((axes,),) = new_figure()
    ours = methods["meta_trained"][metric]
    means = curves["mean"] if curves else ours["curve"]
    steps = range(len(means))
    axes.plot(steps, means, "o-", color=SERIES[0], lw=2, label="meta-trained", zorder=3)
    if curves:
        axes.fill_between(steps, curves["low"], curves["high"], color=SERIES[0], alpha=0.25, lw=0)
    else:
        axes.plot([steps[-1]] * 2, [ours["low"], ours["high"]], color=SERIES[0], lw=2)
    for number, name in enumerate(name for name in methods if name not in ("meta_trained", "no_adaptation")):
        score, colour = methods[name][metric], SERIES[1 + number % (len(SERIES) - 1)]
        axes.axhline(score["mean"], color=colour, ls=("--", ":", "-.")[number % 3], label=readable(name))
        axes.axhspan(score["low"], score["high"], color=colour, alpha=0.15, lw=0)
    axes.set(xlabel="inner steps", ylabel=metric)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="best")
    return figure


def reading(positions: dict[str, list[float]], chunk_tokens: int) -> Any:
    """Each method's mean loss by the place of a token in a passage, over quarters of a chunk."""
    figure, ((axes,),) = new_figure()
    for number, (name, losses) in enumerate(positions.items()):
        edges = np.arange(0, len(losses), max(1, chunk_tokens // 4))
        means = np.add.reduceat(np.array(losses), edges) / np.diff(np.append(edges, len(losses)))
        colour, width = SERIES[number % len(SERIES)], 2.5 if name == "meta_trained" else 1.5
        axes.plot(edges + 1, means, color=colour, lw=width, label=readable(name))
    for place in range(chunk_tokens, len(next(iter(positions.values()))), chunk_tokens):
        axes.axvline(place, color=INK, alpha=0.15, lw=0.8)
    axes.set(xlabel="position in the passage (tokens; lines: a step is taken)", ylabel="loss per token")
    axes.legend(loc="best")
    return figure


def layer_of(name: str) -> str:
    """The layer that a parameter is in: its path to the first number, or its first part."""
    match = re.match(r"(?:backbone\.)?(.*?\.\d+)\.", name)
    short = name.removeprefix("backbone.")
    return match[1] if match else "head" if short.startswith("head_") else short.split(".")[0] or "all parameters"


def rates(learnt: dict[str, NDArray[np.float64]], start: float, by_step: bool) -> Any:
    """Learnt inner rates by layer: a dot for each parameter tensor and, where there are several rates, inner step."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    layers = list(dict.fromkeys(layer_of(name) for name in learnt))
    figure, ((axes,),) = new_figure(size=(7, 1.3 + 0.34 * len(layers)))
    for name, values in learnt.items():
        row = layers.index(layer_of(name))
        for step, value in enumerate(values if by_step else [np.median(values)]):
            colour = SERIES[step % len(SERIES)]
            offset = 0.3 * (step / (len(values) - 1) - 0.5) if by_step and len(values) > 1 else 0.0
            axes.plot(value, row + offset, "o", color=colour, ms=5, alpha=0.7)
    if by_step:
        for step in range(max(len(values) for values in learnt.values())):
            axes.plot([], [], "o", color=SERIES[step % len(SERIES)], label=f"step {step + 1}")
    axes.axvline(start, color=INK, ls="--", lw=1, label="at the start")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:.3g}")
    axes.set_yticks(range(len(layers)), layers)
    axes.set(ylim=(len(layers) - 0.5, -0.5), xlabel="inner learning rate")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def seconds(totals: Sequence[tuple[str, float]]) -> Any:
    """One bar, the phases of a meta-step one after another."""
    figure, ((axes,),) = new_figure(size=(7, 1.9))
    whole, left = sum(value for _, value in totals) or 1.0, 0.0
    for number, (name, value) in enumerate(totals):
        share = 100 * value / whole
        axes.barh(0, share, left=left, color=SERIES[number % len(SERIES)], label=name, height=0.6)
        left += share
    axes.set(xlim=(0, 100), ylim=(-0.5, 0.5), yticks=[], xlabel="% of the learner's time")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8)
    return figure
