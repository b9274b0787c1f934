"""`distmeta pretrain`: from text to a language model that meta-training begins with.

    RUN/config.yaml  environment.json  log.txt
        metrics.jsonl      a record per step: step, loss, tokens_seen, seconds, lr, grad_norm; validation now and then
        pretraining.json   loss and perplexity before and after, tokens, what cleaning removed and why
        checkpoints/       step-NNNNNN: safetensors and JSON
        model/             a Hugging Face directory with the language-model head, for model.pretrained

The driver: the corpus, the run directory, Ray. What a rank does is in distmeta.pretraining.worker.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distmeta.config import Config, ConfigSource, config_of
from distmeta.config.paths import absolute
from distmeta.errors import InputError
from distmeta.runs import interrupt
from distmeta.runs.directory import run_directory, write_setting
from distmeta.runs.journal import records

if TYPE_CHECKING:
    from distmeta.runs.progress import Display, Show

# The keys that make a pretraining run; what is in pretrain.path is known by its content.
OF_MODEL = ("pretrained", "architecture", "config", "tokenizer", "vocab_size", "max_tokens", "dtype", "dropout")
FREE = ("pretrain.path", "pretrain.every", "pretrain.validation_rows", "pretrain.micro_batch")


@dataclass(frozen=True, repr=False)
class Pretrained:
    """A finished pretraining run."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # a string will do

    def __repr__(self) -> str:
        if not self.is_finished:
            return f"Pretrained({self.path}; not finished yet)"
        split = "validation" if "validation" in self.summary else "train"
        perplexity = self.summary[split]["perplexity"]
        return f"Pretrained({self.path}; {split} perplexity {perplexity['before']:.2f} -> {perplexity['after']:.2f})"

    @property
    def model(self) -> Path:
        """The Hugging Face directory, for model.pretrained."""
        return self.path / "model"

    @property
    def is_finished(self) -> bool:
        """Whether the run has come to its end; one that run.max_hours ended has not."""
        return (self.path / "pretraining.json").is_file() and not (self.path / interrupt.LEAVE).exists()

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, one a step."""
        return list(records(self.path))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """pretraining.json."""
        summary: dict[str, Any] = json.loads((self.path / "pretraining.json").read_text(encoding="utf-8"))
        return summary


def pretrain(
    config: ConfigSource | None = None, *, resume: bool = False, show: Show = None, **sections: Any
) -> Pretrained:
    """Train a language model as config.pretrain and config.model say; returns when the run has ended.

    config, sections, show: as of `train`. resume: continue the newest run of that name (or the one in run.dir) from
    its newest whole checkpoint; without one it begins anew. A run that run.max_hours has ended has no model yet.
    Raises InputError (nothing was written), TrainingError, or KeyboardInterrupt once the last whole step is saved.
    """
    config = absolute(config_of(config, sections))
    check(config)
    ends_at = interrupt.deadline(config.run.max_hours, time.monotonic())
    from distmeta.drive.cluster import ray_cluster
    from distmeta.runs import trackers
    from distmeta.runs.progress import Display

    trackers.check("run.trackers", config.run.trackers)
    config = as_run(config)
    with Display(config, show) as display:
        display.waiting("reading text")
        corpus = prepare_corpus(config, display)
        with run_directory(config, resume, corpus, may_differ=lambda key: not matters(key)) as (run_dir, _):
            interrupt.driving(run_dir)
            write_setting(run_dir, config, corpus)
            with trackers.following(config, run_dir, display.phase):
                display.waiting("starting Ray")
                with ray_cluster(config) as cluster:
                    interrupt.check()
                    display.follow(run_dir, "pretraining", config.pretrain.steps)
                    run_ranks(config, run_dir, corpus, cluster, ends_at)
            if (run_dir / interrupt.LEAVE).exists():
                display.phase(f"run.max_hours = {config.run.max_hours:g} is over; {interrupt.farewell()}")
    return Pretrained(run_dir)


def check(config: Config) -> None:
    """Raises InputError for what a configuration of another verb may hold, and for a path of no text."""
    from distmeta.pretraining.corpus import text_sources

    if config.pretrain.path is not None:
        text_sources(config.pretrain.path)
    if config.pretrain.batch_size < config.cluster.fewest:
        raise InputError(
            f"pretrain.batch_size = {config.pretrain.batch_size} is less than cluster.workers = "
            f"{config.cluster.shown}: every rank needs a row; lower cluster.workers"
        )


def as_run(config: Config) -> Config:
    """The configuration of the run itself: a name of its own, and no samplers."""
    run = config.run.model_copy(update={"name": f"{config.run.name}-pretrain"})
    return config.model_copy(update={"run": run, "sampling": config.sampling.model_copy(update={"actors": 0})})


def matters(key: str) -> bool:
    """Whether the value of a dotted key is part of what a pretraining run is."""
    section, _, name = key.partition(".")
    if section == "model":
        return name.split(".")[0] in OF_MODEL
    return key == "run.seed" or (section == "pretrain" and not any(f"{key}.".startswith(f"{free}.") for free in FREE))


def prepare_corpus(config: Config, display: Display | None = None) -> Path:
    """The corpus of the run, cleaned and tokenised unless it is in the cache. Raises InputError."""
    from distmeta.pretraining.corpus import build_corpus
    from distmeta.pretraining.model import check_model, objective_of
    from distmeta.tasks.build import cache_directory

    data = config.data
    if config.cluster.storage and not (data.cache or os.environ.get("DISTMETA_CACHE")):
        data = data.model_copy(update={"cache": f"{config.cluster.storage}/cache"})  # ranks read it on other nodes
    objective = objective_of(config.model, config.pretrain.objective)
    check_model(config.model, objective, cache_directory(data))
    return build_corpus(config.model_copy(update={"data": data}), objective, display.counted if display else None)


def run_ranks(config: Config, run_dir: Path, corpus: Path, cluster: Any, ends_at: float | None = None) -> None:
    """Start the ranks, and wait for their end, or until `ends_at` (interrupt.wait).

    Of a range of ranks there are as many as there is room for at the start.
    """
    from distmeta.drive.cluster import check_room
    from distmeta.drive.train import raise_failure, run_group
    from distmeta.pretraining.worker import pretrain_worker

    c = config.cluster
    gpus = check_room(config, cluster)
    room = int(cluster.cpus // c.cpus_per_worker)
    size = max(c.fewest, min(c.most, room, config.pretrain.batch_size, int(cluster.gpus // gpus) if gpus else room))
    (run_dir / "error.json").unlink(missing_ok=True)
    try:
        failure = interrupt.wait(
            lambda: run_group(pretrain_worker, config, run_dir, {"corpus": str(corpus)}, size, gpus, c.max_failures),
            run_dir, ends_at,
        )  # fmt: skip
    finally:
        shutil.rmtree(run_dir / ".ray", ignore_errors=True)
    raise_failure(config, run_dir, failure)
