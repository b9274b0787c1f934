"""`distmeta submit`: the same verbs as jobs of a Ray cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distmeta.cli.words import configured, note, of_base
from distmeta.errors import InputError

Address = Annotated[
    str,
    typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="the cluster's dashboard, http://HEAD:8265"),
]


def submit(
    context: typer.Context,
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
    from distmeta.drive import submit as jobs

    arguments = tuple(words or ())
    if verb in ("status", "logs", "stop"):
        of_job(verb, arguments, address)
        return
    request = jobs.Request(
        verb, arguments, address.rstrip("/"), working_dir, tuple(exclude or ()),
        jobs.read_runtime_env(runtime_env), entrypoint_num_cpus, entrypoint_num_gpus, entrypoint_memory,
        {name: jobs.amount(value) for name, value in pairs("--entrypoint-resources", entrypoint_resources)},
        dict(pairs("--metadata", metadata)), submission_id,
    )  # fmt: skip
    job = jobs.submit(request, parsed(context.find_root().command, verb, arguments), note)
    note(f"job {job} is sent; `distmeta submit status|logs|stop {job} --address {address}`")
    if no_wait:
        print(job)
        return
    try:
        state = jobs.follow(request.address, job, jobs.write_out)
    except KeyboardInterrupt:
        note(f"no longer following; job {job} goes on")
        sys.exit(130)
    note(f"job {job}: {state.lower()}")
    if state != "SUCCEEDED":
        sys.exit(1)


def of_job(verb: str, words: tuple[str, ...], address: str) -> None:
    from distmeta.drive import submit as jobs

    if len(words) != 1:
        raise InputError(f"submit {verb}: give the id of one job")
    if verb == "logs":
        jobs.write_out(jobs.logs(address, words[0]))
    elif verb == "stop":
        print(f"{words[0]}: {jobs.stop(address, words[0]).lower()}")
    else:
        print(json.dumps(jobs.status(address, words[0])))


def parsed(command: Any, verb: str, words: tuple[str, ...]) -> Any:
    """The configuration that a verb's words give, None for a verb without one; exits 2 where it would not take them."""
    known = [name for name in command.commands if name not in ("submit", "recipes", "config")]
    if verb not in known:
        raise InputError(f"submit {verb}: no such verb; {', '.join(sorted(known))}, or status, logs, stop")
    with command.commands[verb].make_context(f"distmeta {verb}", list(words)) as context:
        params = context.params
    if verb == "evaluate":
        return of_base(params["source"], params["base"]) if params["base"] else None
    if isinstance(params.get("source", ""), str):  # it takes no recipe, but a run, or nothing
        return None
    return configured(
        params["source"], {"run.dir": params.get("run_dir")}, recipe="pipeline" if verb == "pipeline" else None
    )


def pairs(flag: str, values: list[str] | None) -> list[tuple[str, str]]:
    for pair in values or ():
        if "=" not in pair:
            raise InputError(f"{flag} {pair}: give NAME=VALUE")
    return [(pair.split("=", 1)[0], pair.split("=", 1)[1]) for pair in values or ()]
