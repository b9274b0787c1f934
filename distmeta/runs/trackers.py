"""Experiment trackers that follow a run: TensorBoard, Weights & Biases, MLflow.

A thread of the driver reads metrics.jsonl as it grows, so that no rank waits for a tracker, and a tracker that fails
ends alone. RUN/trackers.json keeps the last meta-step that each has, from where a continued run goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from distmeta.config import Config
from distmeta.errors import InputError, cut
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.directory import flatten
from distmeta.runs.progress import Tail

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
POLL_S = 1.0
FILE = "trackers.json"


class Tracker(Protocol):
    """identity: what the tracker calls the run, so that a continued run is the same there; "" where it needs none."""

    identity: str

    def __init__(self, config: Config, run_dir: Path, identity: str) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard."""

    identity = ""

    def __init__(self, config: Config, run_dir: Path, identity: str) -> None:
        from tensorboardX import SummaryWriter

        # Without a suffix two sessions that begin in the same second write to one file.
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), filename_suffix=f".{time.time_ns()}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run in the project run.name; WANDB_MODE=offline keeps it in RUN/wandb."""

    def __init__(self, config: Config, run_dir: Path, identity: str) -> None:
        import wandb

        self._run = wandb.init(
            project=config.run.name, name=run_dir.name, id=identity or None, resume="allow", dir=str(run_dir),
            config=config.model_dump(mode="json"),
        )  # fmt: skip
        self.identity = str(self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """A run in the experiment run.name, at MLFLOW_TRACKING_URI or where MLflow stores by default."""

    def __init__(self, config: Config, run_dir: Path, identity: str) -> None:
        import mlflow

        self._client = mlflow.MlflowClient()
        if not identity:
            there = self._client.get_experiment_by_name(config.run.name)
            experiment = there.experiment_id if there else self._client.create_experiment(config.run.name)
            identity = self._client.create_run(experiment, run_name=run_dir.name).info.run_id
            for name, value in flatten(config.model_dump(mode="json"), mark="/").items():
                self._client.log_param(identity, name, cut(str(value), 500))
        self._client.update_run(identity, status="RUNNING")
        self.identity = identity

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self.identity, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self.identity)


KINDS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow}


def check(key: str, names: Sequence[str]) -> None:
    """Raises InputError where the package of a tracker is not installed. key: the configuration key that names them."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise InputError(
                f"{key} = {name}: the package {PACKAGES[name]} is not installed; pip install 'distmeta[{name}]'"
            )


@contextlib.contextmanager
def following(config: Config, run_dir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Every tracker of run.trackers is sent the run's records while the block runs, and its scores at the end.

    Raises InputError, before the block, where a tracker does not start.
    """
    if not config.run.trackers:
        yield
        return
    follower = Follower(config, run_dir, say)
    thread = threading.Thread(target=follower.watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        follower.stop.set()
        thread.join()
        follower.end()


class Follower:
    """What has been sent to which tracker."""

    def __init__(self, config: Config, run_dir: Path, say: Callable[[str], None]) -> None:
        self.run_dir, self.say, self.stop = run_dir, say, threading.Event()
        self._records = Tail(run_dir / "metrics.jsonl", from_end=False)
        self._trackers: dict[str, Tracker] = {}
        self._steps: dict[str, int] = {}
        before = read(run_dir)
        for name in config.run.trackers:
            known = before.get(name, {})
            self._steps[name] = known.get("step", 0)
            try:
                self._trackers[name] = KINDS[name](config, run_dir, known.get("identity", ""))
            except Exception as error:  # each has errors of its own
                raise InputError(
                    f"run.trackers = {name}: does not start ({cut(' '.join(str(error).split()), 200)}); leave it out, "
                    "or set it up as its documentation says (WANDB_MODE=offline, MLFLOW_TRACKING_URI)"
                ) from error

    def watch(self) -> None:
        while not self.stop.wait(POLL_S):
            self.send()

    def send(self) -> None:
        """What metrics.jsonl has that a tracker has not; a continued run's records of the same steps are the same."""
        lines = self._records.lines()
        for line in lines:
            with contextlib.suppress(ValueError):  # half a line of a process that was killed
                record = json.loads(line)
                self._log(record["step"], flatten({name: record[name] for name in record if name != "step"}, mark="/"))
        if lines:
            self._keep()

    def end(self) -> None:
        """The rest, and evaluation.json, if the run has come to its end."""
        self.send()
        evaluation = self.run_dir / "evaluation.json"
        if evaluation.is_file():
            scores = json.loads(evaluation.read_text(encoding="utf-8"))
            means = {m: {metric: one["mean"] for metric, one in by.items()} for m, by in scores.items()}
            values = flatten({"evaluation": means}, mark="/")
            for name, tracker in list(self._trackers.items()):
                self._try(name, partial(tracker.log, self._steps[name], values))
        self._keep()
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker.close)

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        for name, tracker in list(self._trackers.items()):
            if step > self._steps[name]:
                self._try(name, partial(tracker.log, step, numbers))
                self._steps[name] = step

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._trackers.pop(name, None)
            reason = cut(" ".join(str(error).split()), 200)
            self.say(f"run.trackers: {name} has failed ({reason}); the run goes on without it")

    def _keep(self) -> None:
        known = {name: {"step": self._steps[name], "identity": one.identity} for name, one in self._trackers.items()}
        checkpoints.write_text(self.run_dir / FILE, json.dumps({**read(self.run_dir), **known}, indent=1))


def read(run_dir: Path) -> dict[str, dict[str, Any]]:
    """trackers.json; {} where no tracker has followed the run."""
    try:
        known: dict[str, dict[str, Any]] = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return known
