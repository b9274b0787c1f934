"""One trial: a run directory like any other, its learner group in a process of its own, its scores told to Ray Tune.

    Trial (Tune's actor)  starts  learn (a Ray task)  starts  samplers and the learner group
         ^--- reads metrics.jsonl of the run directory ---'

The learners know nothing of Tune. It is a class and not a function since Tune waits for the end of a class's `cleanup`:
a trial that is stopped has ended its learners, and given back what they held, before Tune starts another.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from distmeta.config import Config, make_config
from distmeta.drive.cluster import TrainingError, resources
from distmeta.drive.elastic import release
from distmeta.drive.train import prepare_store, run_learners
from distmeta.errors import InputError
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.directory import write_setting
from distmeta.runs.interrupt import STOP
from distmeta.runs.journal import records
from distmeta.search.runs import (
    ENDED,
    best_count,
    is_saved,
    read_record,
    trial_config,
    trial_dir,
    update_record,
    validations,
)
from distmeta.search.space import Params

REPORTED = "told.json"
POLL_S = 0.2
GRACE_S = 60.0  # how long a group may take to end when its trial is stopped


class Trial(tune.Trainable):  # type: ignore[misc]
    """A result for each meta-validation of the run, the last one once the run has ended."""

    def setup(self, config: dict[str, Any], sweep_dir: str, base: dict[str, Any], store: str) -> None:
        # Tune copies the whole of `config` from another trial when it exploits it; the name stays this trial's own.
        self.number = int(self.trial_name.removeprefix("trial-"))
        self.run_dir = trial_dir(Path(sweep_dir), self.number)
        self.point, self.base, self.store = config, make_config(base), store
        self.before = read_record(self.run_dir)
        self.over = self.before.get("status") in ENDED  # of a search that is resumed: its scores stand
        self.params: Params = self.before.get("params") or config["params"]
        self.reported, self.last = 0, dict[str, Any]()
        self.group: Any = None

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]
        """Go on after a wait, telling nothing again; under population-based training perhaps from a better trial's."""
        if (Path(checkpoint_dir) / REPORTED).exists():
            self.reported = json.loads((Path(checkpoint_dir) / REPORTED).read_text(encoding="utf-8"))
            return
        if not (Path(checkpoint_dir) / checkpoints.MANIFEST).exists():
            return  # it was paused before its first checkpoint
        self.params = self.point["params"]
        self.reported = adopt(Path(checkpoint_dir), self.run_dir, self.before.get("params", {}), self.params)

    def save_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]
        """What was told last: the step; under population-based training, which copies it, the run's checkpoint."""
        if self.base.tune.scheduler != "pbt":
            (Path(checkpoint_dir) / REPORTED).write_text(json.dumps(self.reported), encoding="utf-8")
        elif is_saved(self.run_dir, self.reported):
            saved = self.run_dir / "checkpoints" / f"step-{self.reported:06d}"
            shutil.copytree(saved, checkpoint_dir, dirs_exist_ok=True)

    def step(self) -> dict[str, Any]:
        keeps = self.base.tune.scheduler == "pbt"
        if self.group is None and not self.over:
            self._begin()
        while True:
            ended = self.over or bool(ray.wait([self.group], timeout=POLL_S)[0])
            reason = self._outcome() if ended and not self.over else None
            new = [record for record in validations(self.run_dir) if record["step"] > self.reported]
            ready = [r for r in new if ended or (r["step"] < new[-1]["step"] or not self._is_last(r))]
            ready = [r for r in ready if ended or not keeps or is_saved(self.run_dir, r["step"])]
            if reason is not None:
                update_record(self.run_dir, status="failed", reason=reason)
                return {**self.last, "done": True}
            if ready:
                self.reported, self.last = ready[0]["step"], self._result(ready[0])
                return {**self.last, "done": ended and len(ready) == 1}
            if ended:
                return {**self.last, "done": True}

    def cleanup(self) -> None:
        """End the learner group; Tune waits for it.

        The learners are asked to: a group that is cut off may be started again by Ray Train's controller, before the
        controller ends too, and what was reserved for it then stays reserved.
        """
        if self.group is not None and not ray.wait([self.group], timeout=0)[0]:
            (self.run_dir / STOP).touch()
        if self.group is not None and not ray.wait([self.group], timeout=GRACE_S)[0]:
            ray.cancel(self.group)
            if not ray.wait([self.group], timeout=GRACE_S)[0]:
                ray.cancel(self.group, force=True)
        if self.group is not None:
            release(self.run_dir)

    def _begin(self) -> None:
        config = trial_config(self.base, self.point["kind"], self.params, self.run_dir)
        kept = {"number": self.number, "kind": self.point["kind"], "params": self.params}
        update_record(self.run_dir, **kept, status="running", reason="")
        (self.run_dir / STOP).unlink(missing_ok=True)  # here, so that none that comes after is missed
        task = ray.remote(learn).options(num_cpus=0, max_retries=0)  # type: ignore[attr-defined]
        self.group = task.remote(config.model_dump(mode="json"), str(self.run_dir), self.store, _sections(self.base))

    def _outcome(self) -> str | None:
        """Raises what a second attempt may mend; else None, or the reason why the run cannot be: a bad value, NaN."""
        try:
            ray.get(self.group)
        except (InputError, TrainingError) as error:
            if isinstance(error, InputError) or (self.run_dir / "error.json").exists():
                return str(error).strip().splitlines()[-1]
            raise
        return None

    def _is_last(self, record: dict[str, Any]) -> bool:
        """Whether it is the run's last validation, which is told once the run has been evaluated as well."""
        return bool(record["step"] >= trial_config(self.base, "search", self.params, self.run_dir).outer.steps)

    def _result(self, record: dict[str, Any]) -> dict[str, Any]:
        scored = best_count(record, self.base.tune.metric, self.base.inner.steps)
        values = {self.base.tune.metric: scored["value"], "adapt_steps": scored["adapt_steps"], "step": record["step"]}
        return values | {"outer_loss": record["outer_loss"], "inner_lr": record["inner_lr"]}


def _sections(config: Config) -> str:
    """What a task store is made of."""
    dump = config.model_dump(mode="json")
    return json.dumps([dump["data"], dump["task"], dump["model"]], sort_keys=True)


def learn(config: dict[str, Any], run_dir: str, store: str, shared: str) -> None:
    """A run from its newest checkpoint to its evaluation. `store` is the sweep's, unless the trial changes tasks."""

    made, path = make_config(config), Path(run_dir)
    store_path = Path(store) if _sections(made) == shared else prepare_store(made)
    release(path)  # what an attempt before this one may have left
    with checkpoints.only_holder(path / ".lock", made.run.timeout_s):
        write_setting(path, made, store_path)
        run_learners(made, path, store_path, resources(local=False))


def adopt(source: Path, run_dir: Path, before: Params, now: Params) -> int:
    """The step that a checkpoint of Tune's is of; a checkpoint of another trial becomes this run's only one.

    The weights and the outer optimizer's state of the better trial are copied as they are, with the journal of how
    they came to be; the run's log says so.
    """
    donor = checkpoints.read_config(source / "config.yaml").run.dir
    step = int(json.loads((source / "state.json").read_text(encoding="utf-8"))["step"])  # whatever it is called
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
        checkpoints.begin(draft)
        whole = json.loads((source / checkpoints.MANIFEST).read_text(encoding="utf-8"))["files"]
        for file in [*whole, checkpoints.MANIFEST]:
            shutil.copy2(source / file, draft / file)  # and not what Tune has put beside them
        draft.rename(target)
        lines = [json.dumps(r) + "\n" for r in records(Path(donor or "")) if r["step"] <= step]
        checkpoints.write_text(run_dir / "metrics.jsonl", "".join(lines))
    changed = ", ".join(f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v)
    name = Path(donor or "").name
    with (run_dir / "log.txt").open("a", encoding="utf-8") as stream:
        stream.write(f"exploit: weights of {name} at step {step}; {changed or 'nothing else changed'}\n")
    history = [*read_record(run_dir).get("history", []), {"from": name, "step": step, "params": now, "at": time.time()}]
    update_record(run_dir, history=history)
    return step
