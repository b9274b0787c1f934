"""One trial: a run directory like any other, its learner group in a process of its own, its scores told to Ray Tune.

    run_trial (in Tune's actor)  starts  learn (a Ray task)  starts  samplers and the learner group
               ^--- follows metrics.jsonl of the run directory ---'

The learners know nothing of Tune. When Tune stops a trial, `report` ends its thread, the task is cancelled, and what
the task owns (Ray Train's controller, learners, samplers) dies with it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distmeta import checkpoint as checkpoints
from distmeta.config import Config, make_config
from distmeta.errors import InputError
from distmeta.learner.elastic import release
from distmeta.tune.space import Params, with_params

POLL_S = 0.2
GRACE_S = 5.0  # how long a group may take to end when its trial is stopped
ENDED = ("completed", "stopped", "failed")  # a trial that is one of these is not run again


def trial_dir(sweep_dir: Path, number: int) -> Path:
    return sweep_dir / "trials" / f"trial-{number:04d}"


def read_record(run_dir: Path) -> dict[str, Any]:
    """trial.json: number, kind, params, status and what else is known; {} before the trial was begun."""
    try:
        found: dict[str, Any] = json.loads((run_dir / "trial.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def update_record(run_dir: Path, **changes: Any) -> dict[str, Any]:
    run_dir.mkdir(parents=True, exist_ok=True)
    record = {**read_record(run_dir), **changes}
    checkpoints.write_text(run_dir / "trial.json", json.dumps(record, indent=1, ensure_ascii=False))
    return record


def trial_config(base: Config, kind: str, params: Params, run_dir: Path) -> Config:
    """The configuration of a trial's run. kind: `search`, or how a rival learns its inner rates."""
    changes: Params = {**params, "run.dir": str(run_dir), "run.name": run_dir.name}
    if kind != "search":
        changes["inner.learn_lr"] = kind
    return with_params(base, changes)


def best_count(record: dict[str, Any], metric: str) -> dict[str, Any]:
    """The score of a meta-validation at its best number of adaptation steps, 0..K being scored at once."""
    curve = record["validation_curves"][metric]
    means: list[float] = curve["mean"]
    k = means.index(min(means) if metric == "loss" else max(means))
    return {"value": means[k], "low": curve["low"][k], "high": curve["high"][k], "adapt_steps": k, "curve": means}


def validations(run_dir: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl that hold a meta-validation; whole lines only."""
    found = []
    for record in records(run_dir):
        if "validation_curves" in record:
            found.append(record)
    return found


def records(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of metrics.jsonl, which may be growing."""
    try:
        text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return  # the last line of a process that is writing it, or was killed


def run_trial(given: dict[str, Any], sweep_dir: str, base: dict[str, Any], store: str) -> None:
    """What Ray Tune calls. `given`: params (and number, kind, as they were when the trial began)."""
    import ray
    from ray import tune

    from distmeta.train import TrainingError

    # Tune copies the whole of `given` from another trial when it exploits it; the name stays this trial's own.
    number = int(tune.get_context().get_trial_name().removeprefix("trial-"))
    run_dir = trial_dir(Path(sweep_dir), number)
    config_base = make_config(base)
    metric, keeps = config_base.tune.metric, config_base.tune.scheduler == "pbt"
    before = read_record(run_dir)

    def tell(record: dict[str, Any]) -> None:
        scored = best_count(record, metric)
        values = {metric: scored["value"], "adapt_steps": scored["adapt_steps"], "step": record["step"]}
        values |= {"outer_loss": record["outer_loss"], "inner_lr": record["inner_lr"]}
        if keeps and is_saved(run_dir, record["step"]):
            saved = run_dir / "checkpoints" / f"step-{record['step']:06d}"
            tune.report(values, checkpoint=tune.Checkpoint.from_directory(str(saved)))
        else:
            tune.report(values)

    if before.get("status") in ENDED:  # of a search that is resumed: its scores stand, schedulers see them again
        for record in validations(run_dir):
            tell(record)
        return
    source = tune.get_checkpoint()  # under population-based training: this trial's own, or a better one's
    params = given["params"] if source is not None else before.get("params") or given["params"]
    config = trial_config(config_base, given["kind"], params, run_dir)
    told = 0
    if source is not None:
        with source.as_directory() as copied:
            if step_in(Path(copied)) >= config.outer.steps and (run_dir / "evaluation.json").exists():
                return  # it was told at its end that another is better, with no meta-step left to learn from that
            told = adopt(Path(copied), run_dir, before.get("params", {}), params)
    update_record(run_dir, number=number, kind=given["kind"], params=params, status="running", reason="")

    ref = learner_task().remote(config.model_dump(mode="json"), str(run_dir), store, _sections(config_base))
    ended = False
    try:
        while not ended:
            ended = bool(ray.wait([ref], timeout=POLL_S)[0])
            for record in validations(run_dir):
                is_last = record["step"] >= config.outer.steps
                if record["step"] > told and (
                    ended or not keeps or (not is_last and is_saved(run_dir, record["step"]))
                ):
                    tell(record)
                    told = record["step"]
        try:
            ray.get(ref)
        except (InputError, TrainingError, ArithmeticError) as error:
            if (run_dir / "error.json").exists() or isinstance(error, InputError):
                # What a second attempt would meet again: an unusable value, an inner or outer loop that diverged.
                reason = str(error).strip().splitlines()[-1]
                update_record(run_dir, status="failed", reason=reason)
                return
            raise
    finally:
        if not ended:
            ray.cancel(ref)  # as by an interrupt: Ray Train's controller ends its group
            if not ray.wait([ref], timeout=GRACE_S)[0]:
                ray.cancel(ref, force=True)
        release(run_dir)


def is_saved(run_dir: Path, step: int) -> bool:
    return (run_dir / "checkpoints" / f"step-{step:06d}" / checkpoints.MANIFEST).exists()


def _sections(config: Config) -> str:
    """What a task store is made of."""
    dump = config.model_dump(mode="json")
    return json.dumps([dump["data"], dump["task"], dump["model"]], sort_keys=True)


def learner_task() -> Any:
    """`learn` as a Ray task: a process that holds no CPU itself and is not begun anew when it dies."""
    import ray

    return ray.remote(learn).options(num_cpus=0, max_retries=0)  # type: ignore[attr-defined]


def learn(config: dict[str, Any], run_dir: str, store: str, shared: str) -> None:
    """A run from its newest checkpoint to its evaluation. `store` is the sweep's, unless the trial changes tasks."""
    import ray

    from distmeta.train import _resources, prepare_store, run_learners, write_setting

    made, path = make_config(config), Path(run_dir)
    own = Path(store) if _sections(made) == shared else prepare_store(made)
    release(path)  # what an attempt before this one may have left
    with checkpoints.only_holder(path / ".lock", made.run.timeout_s):
        write_setting(path, made, own)
        run_learners(made, path, own, _resources(ray, local=False))


def step_in(checkpoint: Path) -> int:
    """The meta-step of a checkpoint, whatever its directory is called."""
    return int(json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"])


def adopt(source: Path, run_dir: Path, before: Params, now: Params) -> int:
    """The step that a checkpoint of Tune's is of; a checkpoint of another trial becomes this run's only one.

    The weights and the outer optimizer's state of the better trial are copied as they are, with the journal of how
    they came to be; the run's log says so.
    """
    donor = checkpoints.read_config(source / "config.yaml").run.dir
    step = step_in(source)
    if donor == str(run_dir):
        return step
    release(run_dir)
    with checkpoints.only_holder(run_dir / ".learner.lock", 120):  # the learners that Tune has just stopped are gone
        reason = checkpoints.damage(source)
        if reason is not None:
            raise OSError(f"{source}: {reason}")
        for name in ("evaluation.json", "evaluation_details.json"):  # learners are ahead of what Tune has heard
            (run_dir / name).unlink(missing_ok=True)
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        target = run_dir / "checkpoints" / f"step-{step:06d}"
        draft = checkpoints.draft_of(target)
        shutil.copytree(source, draft)
        draft.rename(target)
        told = [json.dumps(r) + "\n" for r in records(Path(donor or "")) if r["step"] <= step]
        checkpoints.write_text(run_dir / "metrics.jsonl", "".join(told))
    changed = ", ".join(f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v)
    name = Path(donor or "").name
    with (run_dir / "log.txt").open("a", encoding="utf-8") as stream:
        stream.write(f"exploit: weights of {name} at step {step}; {changed or 'nothing else changed'}\n")
    history = [*read_record(run_dir).get("history", []), {"from": name, "step": step, "params": now, "at": time.time()}]
    update_record(run_dir, history=history)
    return step
