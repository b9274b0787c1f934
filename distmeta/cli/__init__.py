"""The command line: parse, call, print. Exit 0: done, 1: failed, 2: unusable input, 130: Ctrl-C, 143: SIGTERM."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distmeta.cli.bench import bench
from distmeta.cli.jobs import submit
from distmeta.cli.settings import config, recipes
from distmeta.cli.weighing import weights
from distmeta.cli.words import (
    Chosen,
    Json,
    Loud,
    Quiet,
    Source,
    configured,
    note,
    of_base,
    one_run,
    shown,
    silent,
    split_source,
)
from distmeta.config.modules import trust_module
from distmeta.errors import InputError
from distmeta.runs import interrupt

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench, name="bench")

Pruned = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND:SHARE", help="magnitude, units or heads, and the share that goes; repeatable"),
]
Quantised = Annotated[str | None, typer.Option(help="int8: a byte for each weight of the matrices")]


def show_version(value: bool) -> None:
    if value:
        from distmeta import __version__

        print(f"distmeta {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", callback=show_version, is_eager=True)
    ] = False,
    module: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PACKAGE.MODULE:NAME", help="code that a model.module or task.environment in a checkpoint may run"
        ),
    ] = None,
) -> None:
    """Meta-train language models that learn a new task from a few examples."""
    for path in module or ():
        trust_module(path)


@app.command()
def train(
    source: Source = None,
    run_dir: Annotated[str | None, typer.Option(help="run directory; default runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the newest whole checkpoint")] = False,
    seeds: Annotated[str | None, typer.Option(help="such as 0,1,2: a run for each, then a table over them")] = None,
    loud: Loud = None,
    as_json: Json = False,
) -> None:
    """Meta-train. Without arguments: the built-in product reviews, two to four minutes on two cores."""
    from distmeta.drive.train import train as run_training

    if seeds is not None:
        from distmeta.cli.seeds import train_seeds

        train_seeds(*split_source(source), run_dir, seeds, resume, loud, as_json)
        return
    run = run_training(configured(source, {"run.dir": run_dir}), resume=resume, show=shown(loud))
    if as_json:
        evaluation = run.evaluation if run.is_evaluated else None  # null: ended by run.max_hours
        print(json.dumps({"run": str(run.path), "checkpoint": str(run.checkpoint), "evaluation": evaluation}))
    elif run.is_evaluated:
        from distmeta.runs.progress import show_results

        show_results(run)


@app.command()
def pretrain(
    source: Source = None,
    run_dir: Annotated[str | None, typer.Option(help="run directory; default runs/NAME-pretrain")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the newest whole checkpoint")] = False,
    loud: Loud = None,
    as_json: Json = False,
) -> None:
    """Train a language model on text (section pretrain), for model.pretrained; default: the built-in reviews' text."""
    from distmeta.pretraining.pretrain import pretrain as run_pretraining

    run = run_pretraining(configured(source, {"run.dir": run_dir}), resume=resume, show=shown(loud))
    if as_json:
        summary = {"model": str(run.model), **run.summary} if run.is_finished else {"model": None}  # by run.max_hours
        print(json.dumps({"run": str(run.path), **summary}))
    elif run.is_finished:
        from distmeta.runs.progress import show_pretraining

        show_pretraining(run)


@app.command()
def pipeline(
    source: Source = None,
    run_dir: Annotated[str | None, typer.Option(help="directory; default runs/NAME")] = None,
    loud: Loud = None,
    as_json: Json = False,
) -> None:
    """Text, language model, tasks, meta-training, scores and export in one; only what has changed runs again."""
    from distmeta.pretraining.pipeline import pipeline as run_stages

    done = run_stages(configured(source, {"run.dir": run_dir}, recipe="pipeline"), show=shown(loud))
    if as_json:
        print(json.dumps({"pipeline": str(done.path), "stages": done.stages, "evaluation": done.run.evaluation}))
    else:
        from distmeta.runs.progress import show_pretraining, show_results, stage_table

        show_pretraining(done.pretrained)
        show_results(done.run)
        print(stage_table(done.stages))


@app.command()
def tune(
    source: Source = None,
    trials: Annotated[int | None, typer.Option(min=1, help="default: tune.trials")] = None,
    run_dir: Annotated[str | None, typer.Option(help="directory of the search; default runs/NAME-tune")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue a search that was cut off")] = False,
    loud: Loud = None,
    as_json: Json = False,
) -> None:
    """Search inner learning rates, step counts and any other key over whole meta-training runs."""
    from distmeta.search import tune as run_search

    search = run_search(
        configured(source, {"tune.trials": trials, "tune.dir": run_dir}), resume=resume, show=shown(loud)
    )
    best = search.path / "best.yaml"
    if as_json:
        print(json.dumps({"search": str(search.path), "best": str(best), "trials": search.trials}))
    else:
        from distmeta.runs.tables import show
        from distmeta.search.results import table

        show(table(search), less=("seconds", "meta-steps"))
        print(f"the best as a recipe: distmeta train {best}")


@app.command()
def evaluate(
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN|CHECKPOINT", help="with --base: [RECIPE|FILE.yaml] [section.key=value ...]"),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL_DIR", help="score a pretrained model, never meta-trained, on a recipe")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="other data, in the run's columns; repeatable")] = None,
    episodes: Annotated[int | None, typer.Option(min=2, help="default: as the run's eval.episodes")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test tasks")] = "test",
    ways: Annotated[
        int | None, typer.Option(min=2, help="classes of an episode, with a prototype head; default: as trained")
    ] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="examples of each class; default: as trained")] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="inner steps; default: as the run evaluates")] = None,
    refine: Annotated[
        int | None, typer.Option(min=0, help="class means: rounds in which they move to a query set, as a whole")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="also what was not meta-trained")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="directory for evaluation.json")] = None,
    checkpoint: Chosen = "best",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score a checkpoint, or a pretrained model as it comes, on few-shot episodes, with 95% intervals."""
    from distmeta.evaluation.evaluate import evaluate as score

    paths: Any = data[0] if data and len(data) == 1 else data
    result = score(
        of_base(source, base) if base else one_run(source), paths, episodes, split=split, ways=ways, shots=shots,
        steps=steps, refine=refine, baselines=baselines, checkpoint=checkpoint, base=base,
        say=silent if quiet else note,
    )  # fmt: skip
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        result.save(out)
    if as_json:
        print(json.dumps(result.methods))
        return
    from distmeta.runs.progress import LESS, class_table, closing, evaluation_table
    from distmeta.runs.tables import show

    title = f"{split} tasks, mean and 95% interval over episodes"
    show(evaluation_table(result.methods, title, result.details), class_table(result.details), less=LESS)
    for line in closing(result.details):
        print(line)


@app.command()
def adapt(
    source: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT")],
    support: Annotated[str, typer.Option(help="file of labelled examples; with --each of many tasks")],
    out: Annotated[
        Path, typer.Option(help="new directory for the adapted model; with --each it holds one for each task")
    ],
    each: Annotated[
        str | None,
        typer.Option(metavar="COLUMN|file", help="a task for each value of this column, or for each file of --support"),
    ] = None,
    peft: Annotated[bool, typer.Option("--peft", help="write what PEFT loads, as `distmeta export` does")] = False,
    steps: Annotated[int | None, typer.Option(min=0, help="inner steps; default: as the run evaluates")] = None,
    checkpoint: Chosen = "best",
    as_json: Json = False,
) -> None:
    """Adapt a meta-trained model to a new task from a few labelled examples, or to many tasks at once."""
    from distmeta.cli.adapting import adapt as fit

    fit(source, support, out, each, peft, steps, checkpoint, as_json)


@app.command()
def predict(
    adapted: Annotated[str, typer.Argument(metavar="ADAPTED")],
    source: Annotated[str, typer.Option("--input", help="data file, .txt with a text a line, or - for standard input")],
    more: Annotated[
        int | None, typer.Option("--continue", min=1, help="family document: write so many tokens after each text")
    ] = None,
    reject: Annotated[
        float | None, typer.Option(metavar="RATE", help="no label for texts that fit none; share of the task's lost")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="--reject: what it was adapted from, where that has moved")
    ] = None,
    refine: Annotated[
        int | None, typer.Option(metavar="ROUNDS", min=1, help="class means move to the texts, as a whole")
    ] = None,
) -> None:
    """Labels, or answers, of texts by an adapted model: one JSON line each, null for a blank line.

    --reject 0.05 gives no label to texts that are less typical of the task than 95% of its own examples.

    --refine 4 lets class means (algorithm=prototypes) move to the texts for four rounds, which are then labelled as a
    whole: what a text is called depends on the others.

    A model that has read a document gives the loss per token of each text, or with --continue what comes after it.
    """
    from distmeta.cli.adapting import predict as run

    run(adapted, source, more, reject, checkpoint, refine or 0)


@app.command()
def explain(
    adapted: Annotated[str, typer.Argument(metavar="ADAPTED")],
    source: Annotated[str, typer.Option("--input", help="data file, .txt with a text a line, or - for standard input")],
    most: Annotated[int, typer.Option(min=1, help="examples that are shown of each text")] = 10,
    html: Annotated[Path | None, typer.Option(help="also write a page, to this new file")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="what it was adapted from, where that has moved: a run or a checkpoint")
    ] = None,
    as_json: Json = False,
) -> None:
    """For each text, the support examples that pushed its prediction towards its label and away from it."""
    from distmeta.cli.explaining import explain as run

    run(adapted, source, most, html, checkpoint, as_json)


@app.command()
def serve(
    source: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT")],
    limits: Annotated[list[str] | None, typer.Argument(metavar="[serve.key=value ...]")] = None,
    host: Annotated[str, typer.Option(help="address to listen at; any but loopback needs a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    tasks: Annotated[Path | None, typer.Option(help="directory of adapted tasks; default: tasks in the run")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="processes that each have the model")] = 1,
    memory_mb: Annotated[float | None, typer.Option(help="as serve.memory_mb")] = None,
    token_file: Annotated[Path | None, typer.Option(help="default: the variable DISTMETA_TOKEN, if it is set")] = None,
    checkpoint: Chosen = "best",
) -> None:
    """Serve adaptation over HTTP: support sets in, tasks and their predictions out."""
    from distmeta.serve.server import serve as run_server

    overrides = [*(limits or []), *([] if memory_mb is None else [f"serve.memory_mb={memory_mb}"])]
    run_server(
        source, overrides, host=host, port=port, tasks=tasks, replicas=replicas, token_file=token_file,
        checkpoint=checkpoint, say=note,
    )  # fmt: skip


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT|ADAPTED")],
    out: Annotated[Path, typer.Option(help="new directory")],
    prune: Pruned = None,
    quantise: Quantised = None,
    merge: Annotated[
        bool, typer.Option("--merge/--adapter", help="LoRA: added to the weights, or an adapter of its own")
    ] = False,
    checkpoint: Chosen = "best",
    as_json: Json = False,
) -> None:
    """Write a Hugging Face or PEFT directory, with a model card, that loads without distmeta."""
    from distmeta.export.export import export as write

    write(source, out, prune=prune or (), quantise=quantise, merge=merge, checkpoint=checkpoint)
    written = sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())
    if as_json:
        print(json.dumps({"out": str(out), "files": written}))
    else:
        print(f"{', '.join(written)}\nin {out}; {out / 'README.md'} says how to load them")


@app.command()
def compress(
    source: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT")],
    out: Annotated[Path, typer.Option(help="new directory")],
    prune: Pruned = None,
    quantise: Quantised = None,
    checkpoint: Chosen = "best",
    as_json: Json = False,
) -> None:
    """Write a checkpoint of a smaller model, which adapt, evaluate and export take like any other."""
    from distmeta.export.compress import compress as write

    write(source, out, prune or (), quantise, checkpoint)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(json.dumps({"out": str(out), "bytes": size}) if as_json else f"{out}: {size / 1e6:.2f} MB")


@app.command()
def report(
    sources: Annotated[list[str], typer.Argument(metavar="RUN|SEARCH ...")],
    as_json: Json = False,
) -> None:
    """Write report.html and figures/ of a run or a search, finished or not; of several runs print a table of them."""
    from distmeta.runs import report as of_run
    from distmeta.search import report as of_search

    if len(sources) > 1:
        from distmeta.runs.report import compare
        from distmeta.runs.tables import show

        runs = compare.compared(sources)
        print(json.dumps({"runs": runs})) if as_json else show(compare.table(runs), less=("recall", "precision"))
        return
    page = (of_search if of_search.is_search(sources[0]) else of_run).write(sources[0])
    print(json.dumps({"report": str(page)}) if as_json else page)


@app.command()
def check(
    source: Source = None,
    ranks: Annotated[int, typer.Option(min=2, help="processes of the sharded comparison")] = 2,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Prove the meta-gradient's order and the sharded step on the configuration's own model; exit 1 if one differs."""
    from distmeta.bench import check as checks

    findings = checks.check(configured(source), ranks, silent if quiet else note)
    if as_json:
        print(json.dumps(checks.report(findings)))
    else:
        from distmeta.runs.tables import show

        show(checks.table(findings))
    if not all(finding.agrees for finding in findings):
        sys.exit(1)


app.command()(recipes)
app.command()(config)
app.command()(weights)
app.command(context_settings={"ignore_unknown_options": True})(submit)


def main() -> None:
    """Entry point of the console script."""
    interrupt.catch()
    try:
        code = app(standalone_mode=False)  # typer returns 130 for a KeyboardInterrupt
    except KeyboardInterrupt:
        code = 130
    except InputError as error:
        print(f"distmeta: {error}", file=sys.stderr)
        code = 2
    except Exception as error:
        code = interrupt.exit_code() or _fail(error)  # an interrupt shows as many kinds of errors
    if interrupt.exit_code():
        came_to_its_end = code in (None, 0)  # some library's code had swallowed the interrupt, or it came too late
        line = "interrupted too late: the command had come to its end" if came_to_its_end else interrupt.farewell()
        print(f"distmeta: {line}", file=sys.stderr)
        code = interrupt.exit_code()
    sys.exit(code)


def _fail(error: Exception) -> int:
    """The exit code of an error, which is printed; what is no error for a person is raised again."""
    from distmeta.drive.cluster import TrainingError

    if hasattr(error, "exit_code"):  # typer brings its own copy of click's errors
        if hasattr(error, "show"):
            error.show()
        return int(error.exit_code)
    if isinstance(error, TrainingError | ArithmeticError | TimeoutError):
        print(f"distmeta: {error}", file=sys.stderr)
        return 1
    raise error
