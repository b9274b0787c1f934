"""`distmeta pipeline`: from text to a meta-trained model, in stages that are skipped while nothing of theirs changes.

    corpus       text, cleaned and tokenised                         the cache
    pretrain     a language model                                    DIR/pretrain/model
    tasks        the tasks' examples in that model's tokens          the cache
    initialise   the task model, its parameters by role              DIR/initial.json
    train        meta-training, until good enough (outer.until)      DIR/train
    evaluate     scores on meta-test tasks, beside the baselines     DIR/train/evaluation.json
    export       what transformers or peft load                      DIR/train/export

A stage's inputs are the configuration keys that matter to it, the digest of its data's content and that of the stage
before. DIR/pipeline.json says of each: the digest of its inputs, its output and the digest of that, its seconds, and
whether it ran or was skipped. One that was cut off is continued; where the inputs have changed, the stage runs anew,
and the earlier result is kept under another name (train-1a2b3c4d).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distmeta.config import Config, ConfigSource, config_of, dump_config
from distmeta.config.paths import absolute
from distmeta.errors import InputError
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs import interrupt
from distmeta.runs.directory import refuse_limit

if TYPE_CHECKING:
    from distmeta.drive.train import Run
    from distmeta.pretraining.pretrain import Pretrained
    from distmeta.runs.progress import Show

RECORD = "pipeline.json"


@dataclass(frozen=True, repr=False)
class Pipeline:
    """A finished pipeline."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # a string will do

    def __repr__(self) -> str:
        stages = ", ".join(f"{name} {stage['state']}" for name, stage in self.stages.items())
        return f"Pipeline({self.path}; {stages})"

    @cached_property
    def stages(self) -> dict[str, dict[str, Any]]:
        """pipeline.json: what became of each stage."""
        stages: dict[str, dict[str, Any]] = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
        return stages

    @property
    def pretrained(self) -> Pretrained:
        from distmeta.pretraining.pretrain import Pretrained

        return Pretrained(self.path / "pretrain")

    @property
    def run(self) -> Run:
        from distmeta.drive.train import Run

        return Run(self.path / "train")


def pipeline(config: ConfigSource | None = None, *, show: Show = None, **sections: Any) -> Pipeline:
    """Run the stages that are not done, in run.dir; returns when all are. Raises InputError or TrainingError.

    config, sections: as of `train`; None: the recipe `pipeline`. show: as of `train`.
    """
    config = absolute(config_of("pipeline" if config is None else config, sections))
    from distmeta import pretrain as pretraining  # the function, as the package gives it
    from distmeta.drive.train import prepare_store, train, write_export
    from distmeta.evaluation.evaluate import evaluate
    from distmeta.pretraining.corpus import corpus_key
    from distmeta.pretraining.model import objective_of
    from distmeta.pretraining.pretrain import check, matters, prepare_corpus
    from distmeta.runs.progress import Display
    from distmeta.tasks.build import store_key

    check(config)
    refuse_limit(config, "pipeline")
    objective = objective_of(config.model, config.pretrain.objective)
    with Display(config, show) as display:
        path = directory(config)
        with checkpoints.only_holder(path / ".lock", 30):
            interrupt.keeping(f"what was done is kept in {path}; the same command continues the pipeline")
            checkpoints.write_text(path / "config.yaml", dump_config(config))
            stages = Stages(path, display.phase)
            corpus = stages.do(
                "corpus", {"content": corpus_key(config, objective)}, lambda resume: prepare_corpus(config, display)
            )
            pretrain_config = with_changes(config, run={"dir": str(path / "pretrain")})
            model = stages.do(
                "pretrain", {"corpus": seal(corpus), **keys(config, matters)},
                lambda resume: pretraining(pretrain_config, resume=resume, show=show).model, path / "pretrain",
            )  # fmt: skip
            # Scored by the stage evaluate, beside the baselines; a run cannot end without any episode.
            ours = with_changes(
                config, run={"dir": str(path / "train")}, model={"pretrained": str(model)},
                eval={"episodes": 2, "baselines": False},
            )  # fmt: skip
            tasks = stages.do(
                "tasks", {"content": store_key(ours.data, ours.task, ours.model)},
                lambda resume: prepare_store(ours, display),
            )  # fmt: skip
            made = {"tasks": seal(tasks), "model": seal(model), **keys(config, is_of_training(config))}
            stages.do("initialise", made, lambda resume: initialise(ours, tasks, path / "initial.json"))
            checkpoint = stages.do(
                "train", made, lambda resume: train(ours, resume=resume, show=show).checkpoint, path / "train"
            )

            def score(resume: bool) -> Path:
                display.phase("evaluating")
                result = evaluate(
                    checkpoint, episodes=config.eval.episodes, baselines=config.eval.baselines,
                    steps=eval_steps(config), say=display.phase,
                )  # fmt: skip
                result.details["settings"]["meta_step"] = checkpoints.step_of(checkpoint)
                result.save(path / "train")
                return path / "train" / "evaluation.json"

            scoring = {
                "episodes": config.eval.episodes,
                "baselines": config.eval.baselines,
                "steps": eval_steps(config),
            }
            scores = stages.do("evaluate", {"checkpoint": seal(checkpoint), **scoring}, score)

            def export(resume: bool) -> Path:
                write_export(path / "train", display)
                return path / "train" / "export"

            stages.do("export", {"checkpoint": seal(checkpoint), "scores": seal(scores)}, export)
    return Pipeline(path)


class Stages:
    """The record of a pipeline, and the one way to do a stage."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say
        self.known: dict[str, dict[str, Any]] = {}
        if (path / RECORD).is_file():
            self.known = json.loads((path / RECORD).read_text(encoding="utf-8"))

    def do(self, name: str, inputs: dict[str, Any], run: Callable[[bool], Path], place: Path | None = None) -> Path:
        """The output of a stage, which is run unless it is there, whole, and made from these inputs.

        run(resume): makes the output; resume: an attempt with the same inputs was cut off. place: the stage's own
        directory, moved aside where it holds what was made from others.
        """
        made_from, before = digest(inputs), self.known.get(name, {})
        same = before.get("inputs") == made_from
        if same and before.get("output") and before["digest"] == (content := seal(Path(before["output"]))) is not None:
            self.say(f"{name}: unchanged, skipped")
            self._note(name, {**before, "digest": content, "state": "skipped"})
            return Path(before["output"])
        if not same and place is not None and place.exists():
            aside = aside_of(place, before.get("inputs", "before")[:8])
            os.replace(place, aside)
            self.say(f"{name}: its inputs have changed; the earlier result is in {aside}")
        self.say(f"{name}: begins" if not same else f"{name}: continues")
        self._note(name, {"inputs": made_from, "state": "begun"})
        began = time.monotonic()
        output = run(same)
        seconds = round(time.monotonic() - began, 3)
        self._note(name, {
            "inputs": made_from, "output": str(output), "digest": seal(output), "seconds": seconds, "state": "run",
        })  # fmt: skip
        return output

    def _note(self, name: str, what: dict[str, Any]) -> None:
        self.known[name] = what
        checkpoints.write_text(self.path / RECORD, json.dumps(self.known, indent=1))


def directory(config: Config) -> Path:
    """The pipeline's directory, new or its own. Raises InputError where something else is in it."""
    path = Path(config.cluster.storage or ".") / (config.run.dir or f"runs/{config.run.name}")
    if path.exists() and not (path / RECORD).is_file():
        entries = [entry.name for entry in path.iterdir() if entry.name not in (".lock", "config.yaml")]
        if entries:
            raise InputError(f"run.dir = {path}: holds {entries[0]} and is no pipeline's; give another run.dir")
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def seal(path: Path) -> str | None:
    """The digest of an output's content; None where it is missing or damaged."""
    if path.is_file():
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    if (path / checkpoints.MANIFEST).is_file():  # names the SHA-256 of every file
        return seal(path / checkpoints.MANIFEST) if checkpoints.damage(path) is None else None
    return seal(path / "meta.json") if (path / "meta.json").is_file() else None  # of a store or corpus: has its key


def aside_of(place: Path, inputs: str) -> Path:
    """Where a stage's earlier result is moved to: a name that nothing has yet."""
    aside, number = place.with_name(f"{place.name}-{inputs}"), 1
    while aside.exists():
        number += 1
        aside = place.with_name(f"{place.name}-{inputs}-{number}")
    return aside


def digest(inputs: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(inputs, sort_keys=True).encode(), digest_size=16).hexdigest()


def keys(config: Config, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """The configuration's values by dotted key, of those that are wanted."""
    from distmeta.runs.directory import flatten

    return {key: value for key, value in flatten(config.model_dump(mode="json")).items() if wanted(key)}


def is_of_training(config: Config) -> Callable[[str], bool]:
    """Which keys make the meta-trained weights what they are; the tasks and the language model have digests."""
    from distmeta.runs.directory import is_resumable

    more = {"outer.steps", "outer.until", "outer.stop_after", "eval.every", "eval.best"}
    if config.eval.every:
        more |= {"eval.validation_episodes", "eval.steps"}
    return lambda key: key in more or not (is_resumable(key) or key == "model.pretrained")


def eval_steps(config: Config) -> int:
    return config.inner.steps if config.eval.steps is None else config.eval.steps


def with_changes(config: Config, **sections: dict[str, Any]) -> Config:
    """Other values of some keys, by section."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=changes) for name, changes in sections.items()}
    )


def initialise(config: Config, tasks: Path, file: Path) -> Path:
    """Build the task model as meta-training begins with it, and write down how many numbers play which role."""
    from distmeta.learner.state import initial_values
    from distmeta.models.build import build_for
    from distmeta.tasks.store import open_store

    store = open_store(tasks)
    model = build_for(config, store)
    rates = {name: w for name, w in initial_values(config, model).items() if name not in {**model.fast, **model.shared}}
    roles = {
        "adapted by the inner loop": sum(w.numel() for w in model.fast.values()),
        "learnt by the outer loop alone": sum(w.numel() for w in model.shared.values()),
        "inner learning rates": sum(w.numel() for w in rates.values()),
        "all of the model": sum(w.numel() for w in model.parameters()),
    }  # fmt: skip
    checkpoints.write_text(file, json.dumps({"pretrained": config.model.pretrained, "numbers": roles}, indent=1))
    return file
