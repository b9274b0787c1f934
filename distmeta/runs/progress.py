"""What a person sees of a run: a live display on a terminal, plain lines in a log, a closing table.

The display only reads what the learner writes into the run directory, so it works the same wherever the learner
runs, and a run shows the same when it is watched by nobody.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from distmeta import health
from distmeta.config import Config
from distmeta.errors import cut
from distmeta.runs import notebook, tables

if TYPE_CHECKING:
    from distmeta.drive.train import Run
    from distmeta.pretraining.pretrain import Pretrained

POLL_S = 0.3
LOG_EVERY_S = 10.0  # between plain progress lines
WAIT_S = 4.5  # without a line, before the first meta-step
Show = bool | Literal["steps"] | None


class Display:
    """Follows metrics.jsonl and log.txt of a run in a thread, and shows them on standard error.

    show: whether anything is shown; "steps": a line for each meta-step, and no bar; None: in a notebook.
    """

    def __init__(self, config: Config, show: Show) -> None:
        self.config = config
        self.show = notebook.is_running() if show is None else bool(show)
        self._every_step = show == "steps"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._sources: tuple[Tail, Tail] | None = None  # log, records
        self._bar: Any = None
        self._waits_for = ""
        self._began = self._counted = self._printed = time.monotonic()
        if self.show:
            from rich.console import Console

            self.console = Console(stderr=True)

    def __enter__(self) -> Display:
        if self.show:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self._end_bar()

    def phase(self, what: str) -> None:
        """A line, with the seconds since the beginning."""
        if self._sources is None:
            self._end_bar()  # that of a preparation
            self._waits_for = ""
        self._print(what)

    def waiting(self, what: str) -> None:
        """A phase that may take long: a spinner on a terminal, else further lines until the next phase."""
        self.phase(what)
        self._waits_for = what
        if self.show and sys.stderr.isatty():
            from rich import progress

            self._open(progress.SpinnerColumn(), progress.TimeElapsedColumn(), transient=True).add_task("")

    def _open(self, *columns: Any, transient: bool = False) -> Any:
        """A bar on the terminal."""
        from rich.progress import Progress

        self._bar = Progress(*columns, console=self.console, transient=transient)
        self._bar.start()
        return self._bar

    def _print(self, what: str) -> None:
        if self.show:
            self._printed = time.monotonic()
            since = self._printed - self._began
            self.console.print(f"[{since:5.1f} s] {what}", highlight=False, markup=False, soft_wrap=True)

    def counted(self, what: str, done: int, total: int | None) -> None:
        """Progress of a long preparation: a bar on a terminal, else a line now and then."""
        if self.show and sys.stderr.isatty():
            self._advance(what, done, total)
        elif time.monotonic() - self._counted > LOG_EVERY_S:
            self._counted = time.monotonic()
            self._print(f"{what} {done:,}" + (f" of {total:,}" if total else ""))

    def _advance(self, what: str, done: int, total: int | None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        if self._waits_for:
            self._end_bar()
            self._waits_for = ""
        if self._bar is None:
            self._open(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        task = next((t.id for t in self._bar.tasks if t.description == what), None)
        self._bar.update(self._bar.add_task(what, total=None) if task is None else task, completed=done, total=total)

    def _end_bar(self) -> None:
        if hasattr(self._bar, "stop"):
            self._bar.stop()
        self._bar = None

    def follow(self, run_dir: Path, what: str = "meta-training", steps: int | None = None) -> None:
        """Begin to show what is appended to the run's files from now on. steps: of the run; None: outer.steps."""
        self._what, self._steps = what, steps or self.config.outer.steps
        if self.show:
            self.phase(f"run directory {_relative(run_dir)}")
            log = Tail(run_dir / "log.txt", from_end=True)
            self._waits_for = "waiting for the first step"
            self._sources = log, Tail(run_dir / "metrics.jsonl", from_end=False)

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._stop.wait(POLL_S)
            if self._sources is not None:
                self._read(*self._sources)
            if self._waits_for and self._bar is None and time.monotonic() - self._printed > WAIT_S:
                self._print(f"still {self._waits_for}")

    def _read(self, log: Tail, records: Tail) -> None:
        if self._bar is None and not self._every_step:
            self._start_bar()
        lines = log.lines()  # read first and shown last: what is said of a meta-step follows its record
        new = [json.loads(line) for line in records.lines()]
        if new:
            self._waits_for = ""
        if new and self._bar is not None:
            self._move(new[-1]["step"], describe(new[-1]))
        elif self._every_step:
            for record in new:
                self._print(f"step {record['step']}/{self._steps}  {describe(record)}")
        elif new and (time.monotonic() - self._counted > LOG_EVERY_S or new[-1]["step"] >= self._steps):
            self._counted = time.monotonic()
            self._print(f"step {new[-1]['step']}/{self._steps}  {describe(new[-1])}")
        for record in new:
            if "validation" in record:
                self._print(describe_validation(record))
        for line in lines:
            self._print(line)

    def _start_bar(self) -> None:
        """That of the steps, on a terminal or in a notebook."""
        if notebook.is_running():
            self._bar = notebook.Bar(self._what, self._steps)
        elif sys.stderr.isatty():
            from rich import progress

            text, line = progress.TextColumn(self._what), progress.TextColumn("{task.fields[line]}")
            done, times = progress.MofNCompleteColumn(), (progress.TimeElapsedColumn(), progress.TimeRemainingColumn())
            bar = self._open(text, progress.BarColumn(), done, line, *times)
            self._task = bar.add_task("", total=self._steps, line="")

    def _move(self, step: int, line: str) -> None:
        if isinstance(self._bar, notebook.Bar):
            self._bar.update(step, line)
        else:
            self._bar.update(self._task, completed=step, line=line)


def show_results(run: Run) -> None:
    """The closing table, on standard output."""
    tables.show(evaluation_table(run.evaluation), less=LESS)
    last = run.metrics[-1]
    details = json.loads((run.path / "evaluation_details.json").read_text(encoding="utf-8"))
    print(verdict(run.evaluation, details))
    for line in closing(details):
        print(line)
    print(f"{last['step']} meta-steps, {last['tasks_seen']} episodes; results in {_relative(run.path)}")


def closing(details: dict[str, Any]) -> list[str]:
    """What goes below the table of an evaluation: paired differences, what it reaches, and its warnings, each once."""
    about = [together(details), paired(details), reach(details), subgroups(details)]
    if "data_weights" in details:
        from distmeta.algorithms.data_weights import sentence

        about.append(sentence(details["data_weights"]))
    lines = [*about, *(health.sentence(warning) for warning in details.get("warnings", []))]
    return list(dict.fromkeys(line for line in lines if line))


def together(details: dict[str, Any]) -> str:
    """One line where the rows of a query set were not classified each by itself."""
    if not (rounds := details.get("settings", {}).get("refine")):
        return ""
    return (
        f"The rows of a query set were classified together, in {rounds} rounds (eval.refine), so these scores do not "
        "compare with those of a model that sees one at a time; the steps in the table are rounds."
    )


def show_pretraining(run: Pretrained) -> None:
    """What was removed, and the perplexities, on standard output."""
    summary = run.summary
    counts = summary["cleaning"]
    removed = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items()
                        if count and reason not in ("read", "kept", "characters"))  # fmt: skip
    print(f"{counts['kept']:,} of {counts['read']:,} texts kept" + (f" (removed: {removed})" if removed else ""))
    for split in ("train", "validation"):
        if split in summary:
            was, now = summary[split]["perplexity"]["before"], summary[split]["perplexity"]["after"]
            tokens = f"{summary['tokens'][split]:,} tokens"
            print(f"{split} perplexity {was:.2f} -> {now:.2f} ({summary['objective']}, {tokens})")
    print(f"model in {_relative(run.model)}; distmeta train ... model.pretrained={_relative(run.model)}")


def stage_table(stages: dict[str, Any]) -> str:
    """A line for each stage of a pipeline; seconds are those of the time when it ran."""
    return "\n".join(f"{name:12}{s['state']:9}{s['seconds']:8.1f} s  {s['output']}" for name, s in stages.items())


class Tail:
    """Whole new lines of a growing file."""

    def __init__(self, path: Path, from_end: bool) -> None:
        self.path = path
        self.position = path.stat().st_size if from_end and path.exists() else 0

    def lines(self) -> list[str]:
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return []
        if size < self.position:  # the file was cut back to a checkpoint
            self.position = 0
        with self.path.open("rb") as stream:
            stream.seek(self.position)
            whole, _, _ = stream.read(size - self.position).rpartition(b"\n")
        self.position += len(whole) + 1 if whole else 0
        return whole.decode("utf-8", "replace").split("\n") if whole else []


# What the table of an evaluation shows: first with its interval, last over the inner steps.
CLASS_COLUMNS = ("accuracy", "precision", "recall", "f1", "accuracy")
TEXT_COLUMNS = ("token_f1", "exact_match", "rouge_l", "bleu", "perplexity", "loss")
LOSS_COLUMNS = ("loss", "loss")  # of functions
RETURN_COLUMNS = ("return", "return")  # of policies
DOCUMENT_COLUMNS = ("loss", "perplexity", "bits_per_byte", "token_accuracy", "loss_by_chunk")
OPTION_COLUMNS = ("option_accuracy", "option_ece")  # where some tasks have options


HEADLINES = ("token_f1", "accuracy", "return", "loss")  # the first that methods have is what they are compared by
LESS = ("recall", "precision", "loss", "BLEU", "ROUGE-L", "worst task", "F1")  # left out first where it is narrow


def describe(record: dict[str, Any]) -> str:
    accuracy = f"  accuracy {record['query_accuracy']:.3f}" if "query_accuracy" in record else ""
    seconds = sum(record.get(k, 0) for k in ("wait_s", "inner_s", "aggregate_s", "checkpoint_s", "seconds"))
    return f"loss {record.get('outer_loss', record.get('loss')):.3f}{accuracy}  {seconds * 1000:.0f} ms/step"


def describe_validation(record: dict[str, Any]) -> str:
    scores, prefix = record["validation"], f"validation at step {record.get('validated', record['step'])}: "
    if scores.keys() <= {"loss", "return"}:
        name = next(iter(scores))
        return f"meta-{prefix}{name} {scores[name]:.3f}"
    if "perplexity" in scores and "token_f1" not in scores:
        return f"{prefix}loss {scores['loss']:.3f}  perplexity {scores['perplexity']:.2f}"
    metric = "token_f1" if "token_f1" in scores else "accuracy"
    return f"meta-{prefix}{_said(metric)} {scores[metric]:.3f}  loss {scores['loss']:.3f}"


def evaluation_table(
    methods: dict[str, Any],
    title: str = "unseen tasks, mean and 95% interval over episodes",
    details: dict[str, Any] | None = None,
) -> Any:
    """A rich table of evaluation.json; with evaluation_details.json also the accuracy of each method's worst task."""
    of_loss = DOCUMENT_COLUMNS if all("perplexity" in scores for scores in methods.values()) else LOSS_COLUMNS
    columns: dict[str, tuple[str, ...]] = {"token_f1": TEXT_COLUMNS, "return": RETURN_COLUMNS, "loss": of_loss}
    first, *others, by_steps = columns.get(headline(methods), CLASS_COLUMNS)
    others += [name for name in OPTION_COLUMNS if all(name in scores for scores in methods.values())]
    curved = "by inner steps" if by_steps == first else f"{by_steps} by inner steps"
    worst = {name: more["worst_task"] for name, more in (details or {}).items() if "worst_task" in more}
    shown = [
        "method",
        first,
        *others,
        by_steps if by_steps == "loss_by_chunk" else curved,
        *(["worst task"] if worst else []),
    ]
    heads = [
        h.replace("_", " ").replace("f1", "F1").replace("rouge l", "ROUGE-L").replace("bleu", "BLEU") for h in shown
    ]
    rows = []
    for name, scores in methods.items():
        curve = scores[by_steps].get("curve", [])
        path = " ".join(f"{x:.2f}" for x in (curve if len(curve) <= 8 else curve[:: max(1, len(curve) // 6)]))
        row = [name, tables.interval(scores[first]), *(f"{scores[other]['mean']:.3f}" for other in others), path]
        low = worst.get(name)
        rows.append([*row, f"{low['mean']:.3f} {low['task']}" if low else ""] if worst else row)
    return tables.table(title, heads, rows)


def reach(details: dict[str, Any]) -> str:
    """One sentence: what the result says of tasks that were not scored; empty where the details do not tell."""
    about, method = details.get("settings", {}), main_method(details)
    main = details.get(method, {})
    over = main.get("over_tasks")
    if over:
        unit = next(name for name in ("tasks", "classes", "authors", "documents") if name in over)
        start = "Over" if method == "meta_trained" else f"{method} over"
        return f"{start} {over[unit]} {unit}, as new ones would differ (cluster bootstrap): {tables.interval(over)}."
    if about.get("tasks") == 1:
        names = list(main.get("per_task", {}))
        name = f" ({names[0]})" if names else ""
        return f"{about['rows']} rows of one task{name}: this says nothing about other tasks."
    return ""


def subgroups(details: dict[str, Any]) -> str:
    """One sentence: how far the subgroups (data.subgroup) are apart; empty without any."""
    gap = details.get(main_method(details), {}).get("subgroup_gap")
    if gap is None:
        return ""
    low = details[main_method(details)]["worst_subgroup"]
    return (
        f"Worst subgroup: {gap['worst']}, accuracy {tables.interval(low)}; largest gap {tables.interval(gap)}, to "
        f"{gap['best']}."
    )


def headline(methods: dict[str, Any]) -> str:
    """The metric that methods are compared by."""
    scores = next(iter(methods.values()))
    return next(name for name in HEADLINES if name in scores)


def main_method(details: dict[str, Any]) -> str:
    """The method that an evaluation is of: meta_trained, or what was made of a model that never was."""
    return str(details.get("settings", {}).get("method", "meta_trained"))


def class_table(details: dict[str, Any], most: int = 20) -> Any:
    """A rich table of the main method's scores of each class, or of the `most` that are hardest by F1.

    Where answers are words: some of them, beside what was accepted. Of documents: a sentence.
    """
    name = main_method(details)
    main, model = details[name], "meta-trained model" if name == "meta_trained" else name
    if "by_position" in main:
        return f"{main['documents']} documents; evaluation_details.json has the loss by position"
    if "answers" in main:
        heads = ("task", "input", "said", "accepted")
        rows = [[one["task"], cut(one["input"], 120), one["said"], " | ".join(one["accepted"][:3])]
                for one in main["answers"][:5]]  # fmt: skip
        return tables.table(f"{model}, some of its answers", heads, rows, texts=heads)
    if "per_class" not in main:
        return f"{name}: {main['diverged']} of {details['settings']['episodes']} episodes diverged"
    per_class = main["per_class"]
    title = f"{model}, by class, over the query examples of all episodes"
    if len(per_class) > most:
        per_class = dict(sorted(per_class.items(), key=lambda item: item[1]["f1"])[:most])
        title += f"; the {most} hardest"
    rows = [[name, *(f"{scores[k]:.3f}" for k in ("precision", "recall", "f1"))] for name, scores in per_class.items()]
    return tables.table(title, ("class", "precision", "recall", "F1"), rows, texts=("class",))


def paired(details: dict[str, Any]) -> str:
    """One sentence: the meta-trained model less each other method on the same episodes; empty where there is none."""
    each = details.get("differences", {})
    metric = next((name for name in HEADLINES if all(name in one for one in each.values())), None)
    if not each or metric is None:
        return ""
    parts = [
        f"{name} {difference[metric]['mean']:+.3f} {signed(difference[metric])}" for name, difference in each.items()
    ]
    first = next(iter(each.values()))[metric]
    unit = next(name for name in ("tasks", "classes", "authors", "documents", "episodes") if name in first)
    return f"Meta-trained less each, paired, {_said(metric)} over {first[unit]} {unit}: {', '.join(parts)}."


def signed(difference: dict[str, float]) -> str:
    return f"[{difference['low']:+.3f}, {difference['high']:+.3f}]"


def verdict(methods: dict[str, Any], details: dict[str, Any]) -> str:
    """One sentence: does the meta-trained model adapt better than those that were not meta-trained?

    By paired differences where the details have them, else by whether intervals overlap.
    """
    metric = headline(methods)
    ours = methods["meta_trained"][metric]
    others = {name: scores[metric] for name, scores in methods.items() if name != "meta_trained"}
    if not others:
        return f"meta-trained: {ours['mean']:.3f}"
    less = details.get("differences", {})
    apart = {
        name: (less[name][metric]["low"], less[name][metric]["high"])
        if metric in less.get(name, {})
        else (ours["low"] - other["high"], ours["high"] - other["low"])
        for name, other in others.items()
    }
    sign = -1 if metric == "loss" else 1
    if sign < 0:  # less is better
        apart = {name: (-high, -low) for name, (low, high) in apart.items()}
    close = min(apart, key=lambda name: apart[name][0])
    ahead = min(apart, key=lambda name: apart[name][1])
    if apart[close][0] > 0:
        best = max(others, key=lambda name: sign * others[name]["mean"])
        return f"The meta-trained model adapts better than every baseline: {against(ours, others, best)}."
    if apart[ahead][1] < 0:
        return f"The meta-trained model adapts worse than {ahead}: {against(ours, others, ahead)}."
    return f"No clear difference from {close}: {against(ours, others, close)}."


def against(ours: dict[str, float], others: dict[str, Any], name: str) -> str:
    return f"{ours['mean']:.3f} against {others[name]['mean']:.3f} ({name})"


def _said(metric: str) -> str:
    return metric.replace("token_f1", "token F1")


def _relative(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
