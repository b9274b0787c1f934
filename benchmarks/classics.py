"""The classics of meta-learning, with the inner loop of distmeta and nothing else of it: do they come out?

    python benchmarks/classics.py sinusoid
    python benchmarks/classics.py omniglot --ways 5 --data DIR       DIR holds omniglot_small/data.parquet
    python benchmarks/classics.py navigation

Each is a torch.nn.Module, a loss of its parameters, and `distmeta.inner`; the protocols are in classics_NAME.py. On one
thread. What was trained is kept in --run-dir, from which a run that was cut off continues. Prints a table and writes
benchmarks/results/classics_NAME.json. No row of the data is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import classics_navigation
import classics_omniglot
import classics_sinusoid
import torch
from classics_shared import RESULTS

from distmeta.bench.measure import setting, write_json

CLASSICS = {"sinusoid": classics_sinusoid, "omniglot": classics_omniglot, "navigation": classics_navigation}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="name", required=True)

    def command(name: str, seeds: int, **defaults: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, description=CLASSICS[name].__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        command.add_argument("--seeds", type=int, nargs="+", default=list(range(seeds)))
        command.add_argument("--run-dir", type=Path, default=Path("runs") / "classics")
        command.add_argument("--out", type=Path, default=None)
        for key, value in defaults.items():
            command.add_argument(
                f"--{key.replace('_', '-')}", type=type(value), default=value, help=f"default: {value}"
            )
        return command

    sinusoid = command("sinusoid", 3, points=10, steps=30_000, meta_batch=25, tasks=1000)
    sinusoid.add_argument("--no-compile", dest="compiled", action="store_false")
    omniglot = command(
        "omniglot", 1, ways=5, filters=32, steps=1500, meta_batch=16, queries=5, inner_steps=1, inner_lr=0.4,
        eval_steps=3, episodes=600,
    )  # fmt: skip
    omniglot.add_argument("--data", type=Path, required=True)
    command(
        "navigation", 3, steps=400, meta_batch=20, trajectories=20, horizon=20, inner_lr=0.05, outer_lr=1e-3, tasks=400
    )
    return parser.parse_args()


def table(name: str, result: dict[str, Any]) -> Any:
    from rich.table import Table

    classic = CLASSICS[name]
    out = Table(title=f"{name}: mean [95% interval]")
    out.add_column("method")
    for heading in classic.COLUMNS:
        out.add_column(heading, justify="right")
    for row in classic.rows(result):
        out.add_row(*row)
    return out


def main() -> None:
    from rich.console import Console

    options = arguments()
    torch.set_num_threads(1)
    result = CLASSICS[options.name].run(options)
    suffix = f"_{options.ways}way" if options.name == "omniglot" else ""
    out = options.out or RESULTS / f"classics_{options.name}{suffix}.json"
    write_json(out, {**setting({str(seed): seed for seed in options.seeds}), **result})
    console = Console(width=140)
    console.print(table(options.name, result))
    for claim, held in result["holds"].items():
        console.print(f"[{'green' if held else 'red'}]{claim}: {'holds' if held else 'MISSED'}[/]")
    console.print(str(out))


if __name__ == "__main__":
    main()
