"""Do faults leave a trace? Short runs under seeded schedules of faults, compared byte for byte with one left in peace.

    python benchmarks/chaos.py                       # 5 runs of 22 faults each
    python benchmarks/chaos.py --runs 1 --faults 11  # one of each kind

The schedule is that of tests/faults/schedule.py: SIGKILL of a sampler, of a learner rank (at a step, before, in and
after its checkpoint), of the driver; a full disk at a checkpoint (the error that the system would give); a slow sampler
and a slow learner; a truncated and a bit-flipped checkpoint. Each fault is fired exactly once, and counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "faults")]

import schedule  # noqa: E402
import small  # noqa: E402

from distmeta.bench import measure  # noqa: E402


def content(run: Path) -> dict[str, Any]:
    """What must not differ: final meta-parameters and optimizer, the records but for their seconds, the evaluation."""
    last = max((run / "checkpoints").glob("step-*"))
    return {
        "meta-parameters": (last / "meta.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "records": small.records(run),
        "evaluation": (run / "evaluation.json").read_bytes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--faults", type=int, default=22, help="of each run")
    parser.add_argument("--steps", type=int, default=40, help="meta-steps of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the others follow")
    parser.add_argument("--timeout-s", type=float, default=1200, help="of one driver, from its start to its end")
    parser.add_argument("--work", type=Path, help="where the runs go (default: a temporary directory)")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="chaos-", dir=given.work))
    data = small.write_domains(work / "words.csv")
    config = small.config(
        data, cluster={"workers": 2, "max_failures": 1000}, sampling={"actors": 2}, run={"name": "tiny"},
        outer={"steps": given.steps},
    )  # fmt: skip
    quiet = schedule.run_to_end(work / "undisturbed", config, [], given.timeout_s)
    expected = content(quiet.run)
    print(f"undisturbed: {quiet.seconds:.0f} s", flush=True)
    runs = []
    for number in range(given.runs):
        seed = given.seed + number
        faults = schedule.make_schedule(seed, given.faults, given.steps, config.run.checkpoint_every, 2)
        found = schedule.run_to_end(work / f"run-{number}", config, faults, given.timeout_s)
        here = content(found.run)
        runs.append({
            "seed": seed, "scheduled": len(faults), "fired": len(found.fired),
            "kinds": Counter(line.split(", step")[0] for line in found.fired), "seconds": found.seconds,
            "drivers": found.drivers, "differs": [name for name in expected if here[name] != expected[name]],
            "most_checkpoints": found.most_checkpoints, "allowed_checkpoints": config.run.keep + 1,
        })  # fmt: skip
        print(json.dumps(runs[-1]), flush=True)
    total = sum(run["fired"] for run in runs)
    bad = [
        run
        for run in runs
        if run["differs"] or run["fired"] != run["scheduled"] or run["most_checkpoints"] > run["allowed_checkpoints"]
    ]
    result = {
        **measure.setting({"schedules": given.seed}), "steps": given.steps, "faults": total,
        "undisturbed_s": quiet.seconds, "runs": runs, "traces": len(bad),
    }  # fmt: skip
    if given.out:
        measure.write_json(given.out, result)
    print(f"{total} faults in {len(runs)} runs, {len(bad)} runs with a trace")
    if bad:
        sys.exit(f"the runs are in {work}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
