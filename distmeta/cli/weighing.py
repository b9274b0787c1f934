"""`distmeta weights`: the learnt weights of a run's data, as a table to filter it by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from distmeta.cli.words import Chosen, Json
from distmeta.errors import InputError


def weights(
    run: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT")],
    out: Annotated[Path, typer.Option(help="new file, .parquet: each row of the data with its weight")],
    checkpoint: Chosen = "best",
    as_json: Json = False,
) -> None:
    """Write the weights that a run has learnt of its data (outer.data_weights)."""
    import pyarrow.parquet as pq

    from distmeta.algorithms import data_weights
    from distmeta.evaluation.evaluate import store_of
    from distmeta.runs import checkpoint as checkpoints

    if out.exists() or out.suffix != ".parquet":
        raise InputError(f"{out}: give a new file that ends in .parquet")
    saved = checkpoints.load(run, which=checkpoint)
    if data_weights.NAME not in saved.meta:
        raise InputError(f"{run}: this run has learnt no weights of its data; train with outer.data_weights")
    store, numbers = store_of(saved, saved.config), saved.meta[data_weights.NAME]
    if len(numbers) != len(data_weights.units(saved.config, store)):
        raise InputError(f"{run}: the run's data has changed since; bring it back")
    pq.write_table(data_weights.table(saved.config, store, numbers), out)
    about = data_weights.described(saved.config, store, numbers)
    print(json.dumps({**about, "out": str(out)}, ensure_ascii=False) if as_json
          else f"{data_weights.sentence(about)}\ntable {out}")  # fmt: skip
