"""`distmeta bench`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from distmeta.cli.words import Json, Quiet, Source, configured, note, silent, split_source
from distmeta.errors import InputError
from distmeta.runs.tables import show

bench = typer.Typer(help="Measure on your own configuration.", no_args_is_help=True)


@bench.command()
def inner(
    source: Source = None,
    rounds: Annotated[int, typer.Option(min=1, help="interleaved rounds after a warm-up")] = 3,
    memory: Annotated[bool, typer.Option(help="peak memory too: a new process for each variant")] = True,
    plan: Annotated[
        bool, typer.Option("--plan", help="memory of a rank and seconds of a meta-step, without loading the model")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="file for the JSON document")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time, peak memory and multiple of the FLOP floor of the inner loop's variants, and what `auto` chooses."""
    if plan:
        from distmeta.bench import plan as plans

        planned = plans.plan(configured(source), say=silent if quiet else note)
        tell(planned, out, as_json, lambda: show(*plans.sentences(planned)))
        return
    from distmeta.bench.inner import bench_inner, sentences, table

    result = bench_inner(configured(source), rounds, say=silent if quiet else note, memory=memory)
    tell(result, out, as_json, lambda: show(table(result), *sentences(result), less=("low-high",)))


@bench.command()
def sampling(
    source: Source = None,
    seconds: Annotated[float, typer.Option(help="of each measurement")] = 2.0,
    out: Annotated[Path | None, typer.Option(help="file for the JSON document")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Episodes a second and core, padding, the object store's hop: of a recipe, or of 5-way 5-shot 64-token texts."""
    from distmeta.bench.sampling import bench_sampling, sentence, table

    result = bench_sampling(configured(source) if source else None, seconds, say=silent if quiet else note)
    tell(result, out, as_json, lambda: show(table(result), sentence(result)))


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
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Tasks per second over numbers of ranks and samplers, their efficiency, and where the time goes."""
    from distmeta.bench.scaling import bench_scaling, plot, table

    name, overrides = split_source(source)
    result = bench_scaling(
        name, overrides, workers=numbers("--workers", workers, int), samplers=numbers("--samplers", samplers, int),
        modes=mode.split(","), steps=steps, repeats=repeats, say=silent if quiet else note,
        timed=None if timed is None else tuple(numbers("--timed", timed, float, 2)),
    )  # fmt: skip
    tell(result, out, as_json, lambda: show(table(result), less=("checkpoint", "aggregate", "peers")))
    if out is not None:
        plot(result, out.with_suffix(".png"))


def tell(result: dict[str, Any], out: Path | None, as_json: bool, show_it: Callable[[], None]) -> None:
    """Write a result to the file `out`, if any, and print it: as JSON, or as `show_it` does."""
    from distmeta.bench.measure import write_json

    if out is not None:
        write_json(out, result)
    if as_json:
        print(json.dumps(result))
    else:
        show_it()


def numbers(flag: str, text: str, kind: Any, count: int | None = None) -> list[Any]:
    """The numbers of a list with commas."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count):
        raise InputError(f"{flag} {text}: {count or 'some'} numbers with commas between them")
    return values
