"""The sections of a run's report, each from what the run has written so far."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from distmeta import health
from distmeta.algorithms.schedule import schedule_of
from distmeta.config import Config, dump_config
from distmeta.runs.progress import closing, verdict
from distmeta.runs.progress import headline as compared_by
from distmeta.runs.progress import subgroups as described_subgroups
from distmeta.runs.report import figures
from distmeta.runs.report.files import PHASES, RunFiles
from distmeta.runs.report.page import Block, Code, Folded, Picture, Section, Table, Text
from distmeta.runs.tables import interval
from distmeta.tasks import summary
from distmeta.tasks.summary import built_in

SHOWN = 20  # tasks that are listed before the rest is folded away
MOST_CLASSES = 30  # of a confusion matrix that can still be read
NOT_EVALUATED = "the run has not been evaluated (no evaluation.json)"


def sections(run: RunFiles) -> list[Section]:
    evaluated = [headline, adaptation, tasks, classes]
    first, *rest = [part(run) for part in evaluated]
    about = [what(run), splits(run), learning(run)]
    return [
        first, *about, rest[0], rates(run), *subgroups(run), *rest[1:], time(run), environment(run), again(run)
    ]  # fmt: skip


def headline(run: RunFiles) -> Section:
    title, methods = "Result", run.evaluation
    if not methods:
        return Section(title, reason=NOT_EVALUATED)
    first = compared_by(methods)
    metrics = [
        name for name in methods["meta_trained"] if ":" not in name and all(name in s for s in methods.values())
    ]  # those of single subgroups have a table of their own
    metrics.sort(key=lambda name: name != first)
    rows = [[figures.readable(name), *(interval(scores[m]) for m in metrics)] for name, scores in methods.items()]
    about = run.details.get("settings", {})
    caption = f"Mean and 95% interval over {methods['meta_trained'][metrics[0]]['episodes']} episodes"
    if about:
        caption += f" of {about['split']} tasks, after {about['inner_steps']} inner steps, seed {about['seed']}"
    blocks: list[Block] = [
        Text(verdict(methods, run.details), strong=True),
        *(Text(line) for line in closing(run.details)),
    ]
    blocks += [Table(caption + ".", ["method", *metrics], rows, marked=[list(methods).index("meta_trained")])]
    lost = run.details.get("meta_trained", {}).get("diverged", 0)
    if lost:
        blocks.append(Text(f"The inner loop diverged in {lost} episodes; their rows count as wrong."))
    if len(methods) == 1:
        return Section(title, [*blocks, Text("No baselines were scored (eval.baselines=false).")])
    alt = "; ".join(f"{figures.readable(name)} {interval(scores[metrics[0]])}" for name, scores in methods.items())
    drawn = figures.intervals(methods, metrics[0])
    return Section(title, [*blocks, Picture("result", drawn, alt, f"Mean {metrics[0]} with 95% intervals.")])


def what(run: RunFiles) -> Section:
    config = run.config
    rows = [*setting(config), ["meta-steps", f"{run.step} of {config.outer.steps}"]]
    if run.records:
        rows.append(["episodes seen", str(run.records[-1].get("tasks_seen", ""))])
    if run.learnt:
        rows.append(["meta-learnt numbers", f"{run.learnt:,}"])
    if "started" in run.environment:
        took = "" if run.took is None else f"; it took {duration(run.took)}"
        rows.append(["started", run.environment["started"].replace("T", " ") + took])
    if peak := run.environment.get("peak_mb"):
        gpu = f", {peak['gpu']:,.0f} MB of its GPU" if "gpu" in peak else ""
        rows.append(["peak memory", f"{peak['resident']:,.0f} MB of the first rank{gpu}"])
    whole = Folded("The whole configuration (config.yaml)", [Code(dump_config(config))])
    return Section("What was run", [Table("Key settings", [], rows), whole])


def splits(run: RunFiles) -> Section:
    """Which tasks or classes are in which split."""
    title, content = "Splits", summary.read(run.path)
    if not content:
        return Section(title, reason=f"there is no {summary.FILE}")
    unit = summary.unit_of(content)
    rows = []
    for name, of in content["splits"].items():
        shown = ", ".join(f"{task} ({n})" for task, n in list(of[unit].items())[:SHOWN])
        more = f" and {len(of[unit]) - SHOWN} more (all in {summary.FILE})" if len(of[unit]) > SHOWN else ""
        rows.append([name, str(len(of[unit])), str(of["rows"]), shown + more])
    caption = f"The {unit} of each split, with their rows" + ("; more arrived later." if "follows" in content else ".")
    blocks: list[Block] = [Table(caption, ["split", unit, "rows", "names"], rows)]
    blocks += [Text(health.sentence(sign)) for sign in summary.signs(content)]
    return Section(title, blocks)


def spread(least: int | None, most: int | None) -> str:
    """A number, or the two that it lies between."""
    return str(most) if least is None else f"{least} to {most}"


def setting(config: Config) -> list[list[str]]:
    """The choices that matter most, in words."""
    model, data, task, inner, outer = config.model, config.data, config.task, config.inner, config.outer
    kind, sizes = model.module or model.architecture, ", ".join(f"{key} {value}" for key, value in model.config.items())
    paths = [data.path] if isinstance(data.path, str) else data.path or [built_in(config)]
    sources = ", ".join(f"{name} ({source.path})" for name, source in (data.sources or {}).items())
    ways = f"{spread(task.least_ways, config.ways)} ways, " if config.ways else ""
    zero = config.deepspeed["zero_optimization"]["stage"]
    return [
        ["name", config.run.name],
        ["algorithm", config.algorithm],
        ["model", f"{model.pretrained or f'new {kind} ({sizes})'}, head {model.head}, {model.dtype}"],
        ["data", sources or ", ".join(paths)],
        ["episodes", f"family document: {task.chunks} chunks of {task.chunk_tokens} tokens, up to "
                     f"{task.context_tokens} before each" if task.family == "document" else
                     f"family {task.family}: {ways}{spread(task.least_shots, task.shots)} support and {task.queries} "
                     "query examples" + (" a class" if task.has_classes else "")],
        ["inner loop", f"{inner.steps} steps of {inner.optimizer} at {inner.lr:g} ({inner.schedule}), learn_lr "
                       f"{inner.learn_lr}, adapts {inner.adapt}"],
        ["outer loop", f"{outer.optimizer} at {outer.lr:g} ({schedule_of(config)[0]}), meta-batches of "
                       f"{outer.meta_batch_size} episodes"],
        ["cluster", f"{config.cluster.shown} learner ranks, {config.sampling.actors} samplers, ZeRO stage {zero}"],
        ["seed", str(config.run.seed)],
    ]  # fmt: skip


def learning(run: RunFiles) -> Section:
    title = "Learning curves"
    if not run.records:
        return Section(title, reason="no meta-step is recorded yet (no metrics.jsonl)")
    first, last = run.records[0], run.records[-1]
    moved = "; ".join(
        f"{label} {first[key]:.3g} at step {first['step']}, {last[key]:.3g} at step {last['step']}"
        for key, label in figures.CURVES.items()
        if key in first and key in last
    )
    caption = "Over meta-steps: each value faint, and smoothed by centred means over a tenth of the curve."
    return Section(title, [Picture("learning", figures.learning(run.records), moved, caption)])


def adaptation(run: RunFiles) -> Section:
    title, methods = "Adaptation to a new task", run.evaluation
    if not methods:
        return Section(title, reason=NOT_EVALUATED)
    if run.config.task.family == "document":
        return reading(run)
    followed = {name: curve for name, s in methods["meta_trained"].items() if len(curve := s.get("curve", [])) > 1}
    metric = next(iter(followed), "")  # where answers are words, not the headline, which is of the last step alone
    means = followed.get(metric, [])
    if not means:
        return Section(title, reason="the evaluation has no inner steps")
    curves = run.details.get("meta_trained", {}).get("curves", {}).get(metric)
    drawn = figures.adaptation(methods, curves, metric)
    alt = f"{metric} after 0 to {len(means) - 1} inner steps: " + ", ".join(f"{x:.3f}" for x in means)
    band = "bands: 95% intervals" if curves else "95% interval after the last step alone"
    caption = f"Mean {metric} on meta-test episodes after each number of inner steps; {band}."
    table = Table(f"Mean {metric} by inner steps", ["inner steps", *map(str, range(len(means)))], [
        [metric, *(f"{x:.3f}" for x in means)]
    ])  # fmt: skip
    return Section(title, [Picture("adaptation", drawn, alt, caption), table])


def reading(run: RunFiles) -> Section:
    """How the loss goes as a document is read."""
    methods = {name: run.details[name] for name in run.evaluation if name in run.details}
    positions = {name: of["by_position"] for name, of in methods.items() if "by_position" in of}
    if not positions:
        return Section("Reading", reason="no losses by position were kept")
    rows = [
        [figures.readable(name), *(f"{x:.3f}" for x in scores["loss_by_chunk"]["curve"])]
        for name, scores in run.evaluation.items()
    ]
    head = ["method", *(f"chunk {k + 1}" for k in range(len(rows[0]) - 1))]
    caption = "Mean loss of the meta-test passages' tokens, each scored before the model steps on its chunk."
    drawn = figures.reading(positions, run.config.task.chunk_tokens)
    alt = "; ".join(f"{row[0]} {row[1]} in the first chunk, {row[-1]} in the last" for row in rows)
    table = Table("Mean loss by chunk", head, rows)
    return Section("Reading", [Picture("reading", drawn, alt, caption), table])


def rates(run: RunFiles) -> Section:
    title, inner = "Learnt inner learning rates", run.config.inner
    if inner.learn_lr == "none":
        return Section(title, reason="the inner rate is not learnt (inner.learn_lr=none)")
    if not run.rates:
        return Section(title, reason="no whole checkpoint to read them from")
    by_step = inner.learn_lr in ("per_step", "per_layer_step")
    rows = []
    for name, values in run.rates.items():
        each = values if inner.learn_lr != "per_parameter" else np.quantile(values, (0.05, 0.5, 0.95))
        shown = [f"{x:.4g}" for x in np.atleast_1d(each)]
        rows.append([name or "all parameters", *shown])
    most = max(len(row) for row in rows) - 1
    head = [
        "parameter",
        *([f"step {k + 1}" for k in range(most)] if by_step else ["rate"] if most == 1 else ["5%", "median", "95%"]),
    ]
    every = np.concatenate([values.ravel() for values in run.rates.values()])
    alt = f"From {inner.lr:g} at the start to {every.min():.3g} at the least and {every.max():.3g} at the most."
    caption = f"By layer, at meta-step {run.rates_step}; a dot for each parameter tensor" + (
        " and inner step." if by_step else "." if most == 1 else " (the median over its numbers)."
    )
    picture = Picture("rates", figures.rates(run.rates, inner.lr, by_step), alt, caption)
    return Section(title, [picture, Folded("Each parameter", [Table("Learnt inner rates", head, rows)])])


def tasks(run: RunFiles) -> Section:
    title = "By task"
    if not run.evaluation:
        return Section(title, reason=NOT_EVALUATED)
    per_task = run.details.get("meta_trained", {}).get("per_task")
    if not per_task:
        return Section(title, reason="the episodes of this task family have no task in common")
    first = compared_by(run.evaluation)
    ranked = sorted(per_task.items(), key=lambda item: item[1][first]["mean"])
    (worst, low), (best, high) = ranked[0], ranked[-1]
    others = [name for name in low if name != first]
    rows = [
        [name, interval(scores[first]), *(f"{scores[other]['mean']:.3f}" for other in others),
         str(scores[first]["episodes"])]
        for name, scores in ranked
    ]  # fmt: skip
    head = ["task", *(name.replace("_", " ") for name in (first, *others)), "episodes"]
    sentence = f"Worst task: {worst} ({low[first]['mean']:.3f}); best: {best} ({high[first]['mean']:.3f})"
    sentence += f", of {len(ranked)}."
    caption = "Scores of the meta-trained model, with 95% intervals over a task's episodes, the worst first."
    blocks: list[Block] = [Text(sentence), Table(caption, head, rows[:SHOWN], marked=[0])]
    if len(rows) > SHOWN:
        blocks.append(Folded(f"The other {len(rows) - SHOWN}", [Table("The other tasks", head, rows[SHOWN:])]))
    return Section(title, blocks)


def subgroups(run: RunFiles) -> list[Section]:
    """Scores of each subgroup, where data.subgroup names any."""
    methods = run.evaluation
    names = [name for name in methods.get("meta_trained", {}) if name.startswith("accuracy:")]
    if not names:
        return []
    names.sort(key=lambda name: methods["meta_trained"][name]["mean"])
    labels = [(name.split(":", 1)[1], name) for name in names] + [("largest gap", "subgroup_gap")]
    rows = [
        [label, *(interval(scores[name]) if name in scores else "" for scores in methods.values())]
        for label, name in labels
    ]
    caption = "Accuracy of the query rows of each subgroup, with 95% intervals over episodes, the worst first."
    return [Section("By subgroup", [
        Text(described_subgroups(run.details)),
        Table(caption, ["subgroup", *map(figures.readable, methods)], rows, marked=[len(rows) - 1]),
    ])]  # fmt: skip


def classes(run: RunFiles) -> Section:
    title, ours = "By class", run.details.get("meta_trained", {})
    if not run.evaluation:
        return Section(title, reason=NOT_EVALUATED)
    if "answers" in ours:
        rows = [[one["task"], one["input"], one["said"], " | ".join(one["accepted"])] for one in ours["answers"]]
        return Section(
            "Some answers", [Table("The first query of some episodes", ["task", "input", "said", "accepted"], rows)]
        )
    if "per_class" not in ours:
        return Section(title, reason="no scores of classes were kept")
    scores = dict(sorted(ours["per_class"].items(), key=lambda item: item[1]["f1"]))
    keys = list(next(iter(scores.values())))
    rows = [[name, *(f"{v:.3f}" if isinstance(v := values[key], float) else str(v) for key in keys)]
            for name, values in scores.items()]  # fmt: skip
    caption = "Scores of each class, over all query examples of episodes that it was in; the hardest first"
    blocks: list[Block] = [Table(caption, ["class", *keys], rows[:SHOWN])]
    if len(rows) > SHOWN:
        blocks.append(Folded(f"The other {len(rows) - SHOWN}", [Table("The others", ["class", *keys], rows[SHOWN:])]))
    blocks += some_examples(ours.get("examples", []))
    if "confusion" not in ours:
        return Section(title, [*blocks, Text("Episodes have classes of their own: there is no one confusion matrix.")])
    labels, counts = ours["confusion"]["labels"], np.array(ours["confusion"]["rows_are_labels"])
    if len(labels) > MOST_CLASSES:
        wrong = counts * (1 - np.eye(len(labels), dtype=int))
        often = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN]
        pairs = [(int(i) // len(labels), int(i) % len(labels)) for i in often if wrong.flat[i]]
        caption = f"The most frequent confusions ({len(labels)} classes are too many for a matrix)"
        return Section(title, [*blocks, Table(caption, ["label", "predicted", "examples"], [
            [labels[i], labels[j], str(wrong[i, j])] for i, j in pairs
        ])])  # fmt: skip
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    caption = "Confusion matrix: rows are labels, columns predictions, numbers query examples, shades shares of a row."
    rows = [[name, *map(str, line)] for name, line in zip(labels, counts.tolist(), strict=True)]
    return Section(title, [*blocks, Table(caption, ["label", *labels], rows, shades=shares.tolist())])


def some_examples(examples: list[dict[str, Any]]) -> list[Block]:
    """Query examples beside what the model says of them; none in a run of before these were kept."""
    rows = [[one["task"], one["text"], one["label"], one["predicted"], f"{one['confidence']:.3f}"] for one in examples]
    caption = "Some query examples: the mistakes that the model is most certain of, and some that are right"
    return [Table(caption, ["task", "text", "label", "predicted", "confidence"], rows)] if rows else []


def time(run: RunFiles) -> Section:
    title, records = "Where the time went", [r for r in run.records if "inner_s" in r]
    if not records:
        return Section(title, reason="no meta-step is recorded yet (no metrics.jsonl)")
    totals = {key: sum(r.get(key, 0.0) for r in records) for key in (*PHASES, *figures.WITHIN)}
    whole = sum(totals[key] for key in PHASES) or 1.0
    measured = [key for key in totals if any(key in r for r in records)]
    rows = [
        [{**PHASES, **figures.WITHIN}[key], key, f"{totals[key]:.1f}", f"{100 * totals[key] / whole:.1f}%",
         f"{1000 * totals[key] / len(records):.1f}"]
        for key in measured
    ]  # fmt: skip
    rows.append(["together", "", f"{whole:.1f}", "100.0%", f"{1000 * whole / len(records):.1f}"])
    if run.took is not None and (rest := run.took - whole) > 0:
        rows.append(["starting, evaluation, export", "", f"{rest:.1f}", "", ""])
        rows.append(["the whole run", "", f"{run.took:.1f}", "", ""])
    bar = [(label, totals[key]) for key, label in PHASES.items() if key in measured]
    alt = ", ".join(f"{label} {100 * value / whole:.0f}%" for label, value in bar)
    caption = "Shares of the seconds of all meta-steps, as the first learner rank measured them."
    table = Table("Seconds by phase", ["phase", "key", "seconds", "share", "ms a step"], rows, marked=[len(rows) - 1])
    return Section(title, [Picture("time", figures.seconds(bar), alt, caption), table])


def environment(run: RunFiles) -> Section:
    title, content = "Environment", run.environment
    if not content:
        return Section(title, reason="there is no environment.json")
    facts = ("commit", "python", "platform", "host", "cores", "store")
    rows = [[key, str(content[key])] for key in facts if content.get(key) is not None]
    rows += [[name, version] for name, version in content.get("versions", {}).items()]
    return Section(title, [Table("As the run was started", [], rows)])


def again(run: RunFiles) -> Section:
    blocks: list[Block] = [Text("From its configuration, which holds every setting and seed:")]
    blocks.append(
        Code(shlex.join(["distmeta", "train", str(run.path.resolve() / "config.yaml"), "--run-dir", "again"]))
    )
    words = command(run.environment)
    if words:
        where = f", in {run.environment['directory']}" if "directory" in run.environment else ""
        blocks += [Text(f"As it was started{where}:"), Code(words)]
    return Section("How to reproduce it", blocks)


def command(environment: dict[str, Any]) -> str:
    """The command line that began a run; empty where it was begun from Python."""
    program, *words = environment.get("command") or [""]
    ours = Path(program).name in ("distmeta", "__main__.py", "cli.py") and bool(words)
    return shlex.join(["distmeta", *words]) if ours else ""


def place(path: Path) -> str:
    """A path as a person at the working directory would write it."""
    where = os.path.relpath(path)
    return where if not where.startswith("..") else str(path)


def duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m} min" if hours else f"{m} min {s} s" if m else f"{s} s"


def state(run: RunFiles) -> str:
    """One line below the title: finished, or how far it is."""
    shown = place(run.path)
    if run.error:
        return f"{shown}: ended early at meta-step {run.step} of {run.config.outer.steps}: {run.error}"
    if run.evaluation:
        return f"{shown}: finished after {run.step} meta-steps."
    return f"{shown}: unfinished, {run.step} of {run.config.outer.steps} meta-steps so far."
