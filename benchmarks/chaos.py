"""Do faults leave a trace? Short runs under seeded faults, compared byte for byte with one left in peace.

    python benchmarks/chaos.py --out chaos.json            # 1 run of 28 faults from inside, 2 of about 40 from outside
    python benchmarks/chaos.py --out chaos.json --most 1   # the next of these runs alone; goes on from what is in --out

From inside, by the schedule of tests/faults/schedule.py: SIGKILL of a sampler, of a learner rank (at a step, before, in
and after its checkpoint), of the driver; SIGINT and SIGTERM of the driver at a step; a rank that refuses late; a full
disk at a checkpoint (the error that the system would give); a slow sampler and a slow learner; a truncated and a
bit-flipped checkpoint. From outside, by tests/faults/outside.py: Ctrl-C, Ctrl-C twice and SIGTERM at random moments,
double starts, and starts that are refused at every stage. Each fault is counted where it was fired.
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

import outside  # noqa: E402
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
    parser.add_argument("--inside", type=int, default=1, help="runs with faults from inside")
    parser.add_argument("--faults", type=int, default=28, help="of each of these")
    parser.add_argument("--outside", type=int, default=2, help="runs with faults from outside")
    parser.add_argument("--rounds", type=int, default=5, help="of each of these: starts that a signal ends")
    parser.add_argument("--most", type=int, help="runs that are done now; default: all")
    parser.add_argument("--timeout-s", type=float, default=1200, help="of one driver, from its start to its end")
    parser.add_argument("--work", type=Path, help="where the runs go (default: a temporary directory)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runs = json.loads(options.out.read_text())["runs"] if options.out.exists() else []
    todo = [("inside", seed) for seed in range(options.inside)] + [("outside", seed) for seed in range(options.outside)]
    todo = [one for one in todo if one not in [(run["faults_from"], run["seed"]) for run in runs]]
    for side, seed in todo[: options.most]:
        work = Path(tempfile.mkdtemp(prefix="chaos-", dir=options.work))
        runs.append((inside if side == "inside" else outside_of)(work, seed, options))
        print(json.dumps(runs[-1]), flush=True)
        total, bad = sum(run["fired"] for run in runs), [run for run in runs if run["traces"]]
        result = {**measure.setting({"runs": "seed of each"}), "faults": total, "with_traces": len(bad), "runs": runs}
        measure.write_json(options.out, result)
        print(f"{total} faults in {len(runs)} runs, {len(bad)} runs with a trace")
        if runs[-1]["traces"]:
            sys.exit(f"the run is in {work}")
        shutil.rmtree(work)


def inside(work: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Two ranks and two samplers, 40 meta-steps."""
    config = small.config(
        small.write_domains(work / "words.csv"), cluster={"workers": 2, "max_failures": 1000}, sampling={"actors": 2},
        run={"name": "tiny"}, outer={"steps": 40}, eval={"baselines": False},
    )  # fmt: skip
    quiet = schedule.run_to_end(work / "undisturbed", config, [], options.timeout_s)
    faults = schedule.make_schedule(seed, options.faults, config.outer.steps, config.run.checkpoint_every, 2)
    disturbed = schedule.run_to_end(work / "disturbed", config, faults, options.timeout_s)
    traces = differences(quiet.run, disturbed.run)
    if len(disturbed.fired) != len(faults):
        traces.append(f"{len(faults)} faults were due")
    if disturbed.most_checkpoints > config.run.keep + 1:
        traces.append(f"{disturbed.most_checkpoints} checkpoints at once")
    kinds = Counter(line.split(", step")[0] for line in disturbed.fired)
    return described("inside", seed, kinds, disturbed.drivers, quiet.seconds, disturbed.seconds, traces)


def outside_of(work: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One rank that samples by itself, 200 meta-steps; of odd seeds two ranks and a sampler."""
    config = small.config(
        small.write_domains(work / "words.csv"), cluster={"workers": 1 + seed % 2}, sampling={"actors": seed % 2},
        run={"checkpoint_every": 20}, outer={"steps": 200}, eval={"baselines": False},
    )  # fmt: skip
    quiet = outside.run_to_end(work / "undisturbed", config, work / "words.csv", seed, 0)
    disturbed = outside.run_to_end(work / "disturbed", config, work / "words.csv", seed, options.rounds)
    traces = [*disturbed.wrong, *differences(quiet.run, disturbed.run)]
    return described("outside", seed, disturbed.fired, disturbed.rounds + 1, quiet.seconds, disturbed.seconds, traces)


def differences(quiet: Path, disturbed: Path) -> list[str]:
    expected, here = content(quiet), content(disturbed)
    return [f"other {name}" for name in expected if here[name] != expected[name]]


def described(
    side: str, seed: int, kinds: Counter[str], drivers: int, quiet_s: float, seconds: float, traces: list[str]
) -> dict[str, Any]:
    return {
        "faults_from": side, "seed": seed, "fired": sum(kinds.values()), "kinds": dict(sorted(kinds.items())),
        "drivers": drivers, "undisturbed_s": quiet_s, "seconds": seconds, "traces": traces,
    }  # fmt: skip


if __name__ == "__main__":
    main()
