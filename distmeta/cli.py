"""The command line: parse, call, print. Exit 0: done, 1: failed, 2: unusable input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distmeta.errors import InputError

app = typer.Typer(
    help="Meta-train language models that learn a new task from a few examples.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure on your own configuration.", no_args_is_help=True)
app.add_typer(bench, name="bench")

Source = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE|FILE.yaml] [section.key=value ...]", help="a recipe or file, and overrides"),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on standard output and nothing else")]

Pruned = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND:SHARE", help="magnitude, units or heads, and the share that goes; repeatable"),
]
Quantised = Annotated[str | None, typer.Option(help="int8: a byte for each weight of the matrices")]


def split_source(words: list[str] | None) -> tuple[str | None, list[str]]:
    """(recipe or file, overrides) of the words after a verb. Raises InputError for two recipes."""
    sources = [word for word in words or [] if "=" not in word]
    if len(sources) > 1:
        raise InputError(
            f"{sources[1]}: one recipe or file at a time ({sources[0]} was given); an override is key=value"
        )
    return (sources[0] if sources else None), [word for word in words or [] if "=" in word]


@app.command()
def train(
    source: Source = None,
    run_dir: Annotated[str | None, typer.Option(help="run directory; default runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the newest whole checkpoint")] = False,
    as_json: Json = False,
) -> None:
    """Meta-train. Without arguments: the built-in product reviews, about a minute on two cores."""
    from distmeta.config import load_config
    from distmeta.train import train as run_training

    name, overrides = split_source(source)
    config = load_config(name, overrides + ([f"run.dir={run_dir}"] if run_dir else []))
    run = run_training(config, resume=resume, show=True)
    if as_json:
        print(json.dumps({"run": str(run.path), "checkpoint": str(run.checkpoint), "evaluation": run.evaluation}))
    else:
        from distmeta.progress import show_results

        show_results(run)


@app.command()
def pretrain(
    source: Source = None,
    run_dir: Annotated[str | None, typer.Option(help="run directory; default runs/NAME-pretrain")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the newest whole checkpoint")] = False,
    as_json: Json = False,
) -> None:
    """Train a language model on text (section pretrain), for model.pretrained; default: the built-in reviews' text."""
    from distmeta.config import load_config
    from distmeta.pretrain import pretrain as run_pretraining

    name, overrides = split_source(source)
    config = load_config(name, overrides + ([f"run.dir={run_dir}"] if run_dir else []))
    run = run_pretraining(config, resume=resume, show=True)
    if as_json:
        print(json.dumps({"run": str(run.path), "model": str(run.model), **run.summary}))
    else:
        from distmeta.progress import show_pretraining

        show_pretraining(run)


@app.command()
def pipeline(
    source: Source = None,
    run_dir: Annotated[str | None, typer.Option(help="directory; default runs/NAME")] = None,
    as_json: Json = False,
) -> None:
    """Text, language model, tasks, meta-training, scores and export in one; only what has changed runs again."""
    from distmeta.config import load_config
    from distmeta.pipeline import pipeline as run_stages

    name, overrides = split_source(source)
    config = load_config(name or "pipeline", overrides + ([f"run.dir={run_dir}"] if run_dir else []))
    done = run_stages(config, show=True)
    if as_json:
        print(json.dumps({"pipeline": str(done.path), "stages": done.stages, "evaluation": done.run.evaluation}))
    else:
        from distmeta.progress import show_pretraining, show_results, stage_table

        show_pretraining(done.pretrained)
        show_results(done.run)
        print(stage_table(done.stages))


@app.command()
def tune(
    source: Source = None,
    trials: Annotated[int | None, typer.Option(min=1, help="default: tune.trials")] = None,
    run_dir: Annotated[str | None, typer.Option(help="directory of the search; default runs/NAME-tune")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue a search that was cut off")] = False,
    as_json: Json = False,
) -> None:
    """Search inner learning rates, step counts and any other key over whole meta-training runs."""
    from distmeta.config import load_config
    from distmeta.tune import tune as run_search

    name, overrides = split_source(source)
    overrides += [f"tune.trials={trials}"] if trials else []
    config = load_config(name, overrides + ([f"tune.dir={run_dir}"] if run_dir else []))
    search = run_search(config, resume=resume, show=True)
    best = search.path / "best.yaml"
    if as_json:
        print(json.dumps({"search": str(search.path), "best": str(best), "trials": search.trials}))
    else:
        from rich.console import Console

        from distmeta.tune.results import table

        Console(width=None if sys.stdout.isatty() else 150).print(table(search))
        print(f"the best as a recipe: distmeta train {best}")


@app.command()
def evaluate(
    checkpoint: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT")],
    data: Annotated[list[str] | None, typer.Option(help="other data, in the run's columns; repeatable")] = None,
    episodes: Annotated[int | None, typer.Option(min=2, help="default: as the run's eval.episodes")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test tasks")] = "test",
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="also what was not meta-trained")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="directory for evaluation.json")] = None,
    as_json: Json = False,
) -> None:
    """Score a checkpoint on few-shot episodes, with 95% intervals."""
    from distmeta.evaluate import evaluate as score

    paths: Any = data[0] if data and len(data) == 1 else data
    result = score(checkpoint, paths, episodes, split=split, baselines=baselines, say=_note)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        result.save(out)
    if as_json:
        print(json.dumps(result.methods))
        return
    from rich.console import Console

    from distmeta.progress import class_table, evaluation_table

    console = Console()
    title = f"{split} tasks, mean and 95% interval over episodes"
    console.print(evaluation_table(result.methods, title, result.details), class_table(result.details))


@app.command()
def adapt(
    checkpoint: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT")],
    support: Annotated[str, typer.Option(help="file of labelled examples")],
    out: Annotated[Path, typer.Option(help="new directory for the adapted model")],
    steps: Annotated[int | None, typer.Option(min=0, help="inner steps; default: as the run evaluates")] = None,
    as_json: Json = False,
) -> None:
    """Adapt a meta-trained model to a new task from a few labelled examples."""
    from distmeta.adapt import adapt as fit

    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: not empty; give a new directory for the adapted model")
    adapted = fit(checkpoint, support, steps=steps)
    adapted.save(out)
    report = {"out": str(out), "labels": adapted.labels, "support_loss": adapted.inner_losses}
    if as_json:
        print(json.dumps(report))
    else:
        path = " -> ".join(f"{x:.3f}" for x in adapted.inner_losses)
        print(f"adapted to {', '.join(adapted.labels) or 'the task'}: support loss {path}\nsaved in {out}")


@app.command()
def predict(
    adapted: Annotated[str, typer.Argument(metavar="ADAPTED")],
    texts: Annotated[str, typer.Option("--input", help="data file, .txt with a text a line, or - for standard input")],
) -> None:
    """Labels, or answers, of texts by an adapted model: one JSON line each."""
    from distmeta.adapt import load_adapted, read_texts

    model = load_adapted(adapted)
    for prediction in model.predict(list(read_texts(texts, model.text_column))):
        print(json.dumps(prediction, ensure_ascii=False))


@app.command()
def serve(
    checkpoint: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT")],
    limits: Annotated[list[str] | None, typer.Argument(metavar="[serve.key=value ...]")] = None,
    host: Annotated[str, typer.Option(help="another than loopback needs a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    tasks: Annotated[Path | None, typer.Option(help="directory of adapted tasks; default: tasks in the run")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="processes that each have the model")] = 1,
    memory_mb: Annotated[float | None, typer.Option(help="as serve.memory_mb")] = None,
    token_file: Annotated[Path | None, typer.Option(help="default: the variable DISTMETA_TOKEN, if it is set")] = None,
) -> None:
    """Serve adaptation over HTTP: support sets in, tasks and their predictions out."""
    from distmeta.serve.server import serve as run_server

    overrides = [*(limits or []), *([] if memory_mb is None else [f"serve.memory_mb={memory_mb}"])]
    run_server(
        checkpoint, overrides, host=host, port=port, tasks=tasks, replicas=replicas, token_file=token_file, say=_note
    )


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT|ADAPTED")],
    out: Annotated[Path, typer.Option(help="new directory")],
    prune: Pruned = None,
    quantise: Quantised = None,
    merge: Annotated[
        bool, typer.Option("--merge/--adapter", help="LoRA: added to the weights, or an adapter of its own")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a Hugging Face or PEFT directory, with a model card, that loads without distmeta."""
    from distmeta.export import export as write

    write(source, out, prune=prune or (), quantise=quantise, merge=merge)
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
    as_json: Json = False,
) -> None:
    """Write a checkpoint of a smaller model, which adapt, evaluate and export take like any other."""
    from distmeta.compress import compress as write

    write(source, out, prune or (), quantise)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(json.dumps({"out": str(out), "bytes": size}) if as_json else f"{out}: {size / 1e6:.2f} MB")


@app.command()
def report(
    source: Annotated[str, typer.Argument(metavar="RUN|SEARCH")],
    as_json: Json = False,
) -> None:
    """Write report.html and figures/ of a run or a search, finished or not: one file that needs no network."""
    from distmeta import report as of_run
    from distmeta.tune import report as of_search

    page = (of_search if of_search.is_search(source) else of_run).write(source)
    print(json.dumps({"report": str(page)}) if as_json else page)


@app.command()
def check(
    source: Source = None,
    ranks: Annotated[int, typer.Option(min=2, help="processes of the sharded comparison")] = 2,
    as_json: Json = False,
) -> None:
    """Prove the meta-gradient's order and the sharded step on the configuration's own model; exit 1 if one differs."""
    from distmeta import check as checks
    from distmeta.config import load_config

    name, overrides = split_source(source)
    found = checks.check(load_config(name, overrides), ranks, _note)
    if as_json:
        print(json.dumps(checks.report(found)))
    else:
        from rich.console import Console

        Console().print(checks.table(found))
    if not all(finding.agrees for finding in found):
        sys.exit(1)


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes: complete runs by name."""
    from distmeta.config import RECIPES, recipe_names

    about = {}
    for name in recipe_names():
        first = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\n", 1)[0]
        about[name] = first.lstrip("# ").strip()
    if as_json:
        print(json.dumps(about))
    else:
        for name, line in about.items():
            print(f"{name:24} {line}")


@app.command()
def config(source: Source = None, as_json: Json = False) -> None:
    """Print everything that a run would use, defaults included."""
    from distmeta.config import dump_config, load_config

    name, overrides = split_source(source)
    loaded = load_config(name, overrides)
    print(json.dumps(loaded.model_dump(mode="json")) if as_json else dump_config(loaded), end="\n" if as_json else "")


@bench.command()
def inner(
    source: Source = None,
    rounds: Annotated[int, typer.Option(min=1, help="interleaved rounds after a warm-up")] = 3,
    memory: Annotated[bool, typer.Option(help="peak memory too: a new process for each variant")] = True,
    out: Annotated[Path | None, typer.Option(help="file for the JSON document")] = None,
    as_json: Json = False,
) -> None:
    """Time, peak memory and multiple of the FLOP floor of the inner loop's variants, and what `auto` chooses."""
    from distmeta.bench.inner import bench_inner, sentences, table
    from distmeta.bench.measure import write_json
    from distmeta.config import load_config

    name, overrides = split_source(source)
    result = bench_inner(load_config(name, overrides), rounds, say=_note, memory=memory)
    if out is not None:
        write_json(out, result)
    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console

    Console().print(table(result), *sentences(result), sep="\n")


@bench.command()
def sampling(
    source: Source = None,
    seconds: Annotated[float, typer.Option(help="of each measurement")] = 2.0,
    out: Annotated[Path | None, typer.Option(help="file for the JSON document")] = None,
    as_json: Json = False,
) -> None:
    """Episodes a second and core, padding, the object store's hop: of a recipe, or of 5-way 5-shot 64-token texts."""
    from distmeta.bench.measure import write_json
    from distmeta.bench.sampling import bench_sampling, sentence, table
    from distmeta.config import load_config

    name, overrides = split_source(source)
    config = load_config(name, overrides) if source else None
    result = bench_sampling(config, seconds, say=_note)
    if out is not None:
        write_json(out, result)
    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console

    Console().print(table(result), sentence(result), sep="\n")


@bench.command()
def scaling(
    source: Source = None,
    workers: Annotated[str, typer.Option(help="numbers of learner ranks")] = "1,2",
    samplers: Annotated[str, typer.Option(help="numbers of sampler actors")] = "1",
    mode: Annotated[
        str, typer.Option(help="weak: the meta-batch grows with the ranks; strong: it stays")
    ] = "weak,strong",
    steps: Annotated[int, typer.Option(help="meta-steps of a run")] = 100,
    repeats: Annotated[int, typer.Option(help="runs of each point, interleaved")] = 3,
    timed: Annotated[str | None, typer.Option(help="SECONDS,DEVIATION of a task, waited instead of computed")] = None,
    out: Annotated[Path | None, typer.Option(help="file for the JSON document; a plot beside it")] = None,
    as_json: Json = False,
) -> None:
    """Tasks per second over numbers of ranks and samplers, their efficiency, and where the time goes."""
    from distmeta.bench.measure import write_json
    from distmeta.bench.scaling import bench_scaling, plot, table

    name, overrides = split_source(source)
    result = bench_scaling(
        name, overrides, workers=_numbers("--workers", workers, int), samplers=_numbers("--samplers", samplers, int),
        modes=mode.split(","), steps=steps, repeats=repeats, say=_note,
        timed=None if timed is None else tuple(_numbers("--timed", timed, float, 2)),
    )  # fmt: skip
    if out is not None:
        write_json(out, result)
        plot(result, out.with_suffix(".png"))
    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console

    Console(width=140 if not sys.stdout.isatty() else None).print(table(result))


def _numbers(flag: str, text: str, kind: Any, count: int | None = None) -> list[Any]:
    """The numbers of a list with commas."""
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or (count is not None and len(found) != count):
        raise InputError(f"{flag} {text}: {count or 'some'} numbers with commas between them")
    return found


Address = Annotated[
    str,
    typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="the cluster's dashboard, http://HEAD:8265"),
]


@app.command(context_settings={"ignore_unknown_options": True})
def submit(
    verb: Annotated[str, typer.Argument(metavar="VERB", help="train, tune, evaluate, ...; or status, logs, stop")],
    address: Address,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="...", help="the verb's own arguments and options; or a job's id")
    ] = None,
    working_dir: Annotated[Path, typer.Option(help="directory that the job is sent")] = Path(),
    exclude: Annotated[list[str] | None, typer.Option(help="of it, what is not sent; repeatable")] = None,
    runtime_env: Annotated[Path | None, typer.Option(help="YAML file, Ray's runtime environment")] = None,
    entrypoint_num_cpus: Annotated[float | None, typer.Option(min=0)] = None,
    entrypoint_num_gpus: Annotated[float | None, typer.Option(min=0)] = None,
    entrypoint_memory: Annotated[float | None, typer.Option(min=0, help="megabytes")] = None,
    entrypoint_resources: Annotated[list[str] | None, typer.Option(help="NAME=AMOUNT; repeatable")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; repeatable")] = None,
    submission_id: Annotated[str | None, typer.Option(help="the job's id; default: one is made")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="do not follow the job's output")] = False,
) -> None:
    """Run a verb as a job of a Ray cluster, and follow it; or `submit status|logs|stop JOB`."""
    from distmeta import submit as jobs

    given = tuple(words or ())
    if verb in ("status", "logs", "stop"):
        _job(verb, given, address)
        return
    request = jobs.Request(
        verb, given, address.rstrip("/"), working_dir, tuple(exclude or ()),
        jobs.read_runtime_env(runtime_env), entrypoint_num_cpus, entrypoint_num_gpus, entrypoint_memory,
        {name: jobs.amount(value) for name, value in _pairs("--entrypoint-resources", entrypoint_resources)},
        dict(_pairs("--metadata", metadata)), submission_id,
    )  # fmt: skip
    job = jobs.submit(request, _parsed(verb, given), _note)
    _note(f"job {job} is sent; `distmeta submit status|logs|stop {job} --address {address}`")
    if no_wait:
        print(job)
        return
    try:
        state = jobs.follow(request.address, job, jobs.write_out)
    except KeyboardInterrupt:
        _note(f"no longer following; job {job} goes on")
        sys.exit(130)
    _note(f"job {job}: {state.lower()}")
    if state != "SUCCEEDED":
        sys.exit(1)


def _job(verb: str, words: tuple[str, ...], address: str) -> None:
    from distmeta import submit as jobs

    if len(words) != 1:
        raise InputError(f"submit {verb}: give the id of one job")
    if verb == "logs":
        jobs.write_out(jobs.logs(address, words[0]))
    elif verb == "stop":
        print(f"{words[0]}: {jobs.stop(address, words[0]).lower()}")
    else:
        print(json.dumps(jobs.status(address, words[0])))


def _parsed(verb: str, words: tuple[str, ...]) -> Any:
    """The configuration that a verb's words give, None for a verb without one; exits 2 where it would not take them."""
    from distmeta.config import load_config

    command = typer.main.get_command(app)
    known = [name for name in command.commands if name not in ("submit", "recipes", "config")]  # type: ignore[attr-defined]
    if verb not in known:
        raise InputError(f"submit {verb}: no such verb; {', '.join(sorted(known))}, or status, logs, stop")
    with command.commands[verb].make_context(f"distmeta {verb}", list(words)) as context:  # type: ignore[attr-defined]
        found = context.params
    if "source" not in found:
        return None
    name, overrides = split_source(found["source"])
    name = name or ("pipeline" if verb == "pipeline" else None)
    return load_config(name, overrides + ([f"run.dir={found['run_dir']}"] if found.get("run_dir") else []))


def _pairs(flag: str, given: list[str] | None) -> list[tuple[str, str]]:
    for pair in given or ():
        if "=" not in pair:
            raise InputError(f"{flag} {pair}: give NAME=VALUE")
    return [(pair.split("=", 1)[0], pair.split("=", 1)[1]) for pair in given or ()]


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def main() -> None:
    """Entry point of the console script."""
    try:
        app(standalone_mode=False)
    except InputError as error:
        print(f"distmeta: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("distmeta: interrupted; `--resume` continues a training run from its newest checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        _fail(error)


def _fail(error: Exception) -> None:
    from distmeta.train import TrainingError

    if hasattr(error, "exit_code"):  # typer brings its own copy of click's errors
        if hasattr(error, "show"):
            error.show()
        sys.exit(error.exit_code)
    if isinstance(error, TrainingError | ArithmeticError | TimeoutError):
        print(f"distmeta: {error}", file=sys.stderr)
        sys.exit(1)
    raise error


if __name__ == "__main__":
    main()
