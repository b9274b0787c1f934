"""Few-shot evaluation: the meta-trained model, and the baselines that a meta-learner has to beat.

Letters: E episodes, K inner steps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distmeta import health
from distmeta.algorithms.rates import inner_loop
from distmeta.config import Config, with_changes
from distmeta.config.consistency import check_ways
from distmeta.errors import InputError, nearest
from distmeta.evaluation.pooled import train_pooled
from distmeta.evaluation.scoring import (
    Scored,
    Scoring,
    curves,
    details,
    score_episodes,
    score_prototypes,
    split_meta,
    summarise,
)
from distmeta.evaluation.texts import in_context, reads_in_context, score_texts, text_details
from distmeta.models.build import build_model, check_format
from distmeta.models.task_model import TaskModel
from distmeta.runs import checkpoint as checkpoints
from distmeta.tasks import summary
from distmeta.tasks.episodes.episode import Episode, sample_episode
from distmeta.tasks.families import check_feasible
from distmeta.tasks.splits import SPLITS

if TYPE_CHECKING:
    from distmeta.tasks.store import TaskStore

FINE_TUNE_FACTORS = (0.3, 1.0, 3.0)  # of inner.lr: what a fine-tuned baseline may choose from on meta-validation
FINE_TUNE_LENGTH = 4  # it takes this many times the inner steps


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The result of `evaluate`: `methods` as in evaluation.json, `details` as in evaluation_details.json."""

    methods: dict[str, Any]
    details: dict[str, Any]

    def __repr__(self) -> str:
        name, shown = self._shown()
        scores = ", ".join(f"{method} {text}" for method, text in shown.items())
        return f"Evaluation({self._title()}; {name} {scores})"

    def _repr_html_(self) -> str:
        """A table, in notebooks."""
        name, shown = self._shown()
        rows = "".join(f"<tr><td>{method}</td><td>{text}</td></tr>" for method, text in shown.items())
        return (
            f"<table><caption>{self._title()}</caption><tr><th>method</th><th>{name}, 95% interval</th></tr>"
            f"{rows}</table>"
        )

    def _title(self) -> str:
        settings = self.details["settings"]
        return f"{settings['split']} tasks, {settings['episodes']} episodes"

    def _shown(self) -> tuple[str, dict[str, str]]:
        """The metric of most interest, and its mean and interval by method."""
        first = next(iter(self.methods.values()))
        name = next(name for name in ("accuracy", "exact_match", *first) if name in first)
        scores = {method: values[name] for method, values in self.methods.items() if name in values}
        return name, {method: f"{s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for method, s in scores.items()}

    def save(self, directory: Path) -> None:
        checkpoints.write_text(directory / "evaluation.json", json.dumps(self.methods, indent=1))
        text = json.dumps(self.details, indent=1, ensure_ascii=False)
        checkpoints.write_text(directory / "evaluation_details.json", text)


Params = dict[str, Tensor]
Gather = Callable[[list[Scored]], list[Scored]]


def evaluate_methods(
    model: TaskModel,
    meta: Mapping[str, Tensor],
    store: TaskStore,
    config: Config,
    device: torch.device,
    *,
    split: str = "test",
    rank: int = 0,
    world: int = 1,
    gather: Gather = lambda mine: mine,
    score: Callable[..., list[Scored]] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Score the meta-trained model, and with `eval.baselines` those that were not, on the same episodes.

    Episodes 0.. of the split are divided over `world` ranks; `gather` brings the parts together in order, on
    every rank that goes on to use the result. score: in the place of `score_episodes`, by ranks that all see the whole
    of an episode's score; then there is no baseline `prototypes`.

    meta_trained: the meta-parameters, after `eval.steps` inner steps. no_adaptation: the same before the first.
    fine_tuned: the untrained initial weights, adapted by the same inner optimizer with several times the steps
    and a learning rate chosen on meta-validation (or -train) episodes where there are any. multi_task: likewise,
    from weights trained on the pooled meta-train tasks for as many steps as the run has (it may choose not to
    adapt). prototypes: nearest class mean of the untrained initial features; where answers are words there are none,
    and in_context is the meta-trained decoder that reads the support set instead of adapting to it. base_in_context:
    where a model reads its support set and names classes by letters, the pretrained one that does so untrained.
    """
    with model.of_ways(config.of_evaluation().ways):
        return _methods(model, meta, store, config, device, split, (rank, world), gather, score, say)


def _methods(
    model: TaskModel, meta: Mapping[str, Tensor], store: TaskStore, config: Config, device: torch.device, split: str,
    share: tuple[int, int], gather: Gather, score: Callable[..., list[Scored]] | None, say: Callable[[str], None],
) -> Evaluation:  # fmt: skip
    (rank, world), in_training, config = share, config, config.of_evaluation()
    text = config.task.family == "text_to_text"
    scored_by = score or scorer(config, store)
    count, seed = config.eval.episodes, config.run.seed
    mine = [sample_episode(store, config.task, seed, split, i) for i in _share(count, rank, world)]
    fast, shared, rates = split_meta(model, meta)
    steps = config.inner.steps if config.eval.steps is None else config.eval.steps
    scoring = Scoring(model, fast, shared, inner_loop(config.inner, rates, steps), config, store.pad_id, device)
    fixed, several = config.task.family == "domain", config.data.sources is not None
    details_of: Callable[[list[Any]], dict[str, Any]] = (
        text_details if text else partial(details, fixed_labels=fixed, from_sources=several)
    )

    say(f"evaluating on {count} episodes ({split})")
    trained = gather(scored_by(scoring, mine))
    about: dict[str, Any] = {"split": split, "episodes": count, "seed": seed, "inner_steps": steps}
    lost = sum(not np.isfinite(s.loss[-1]) for s in trained)
    if lost:
        say(f"the inner loop diverged in {lost} of {count} episodes, whose rows count as wrong; use a smaller inner.lr")
    methods = {"meta_trained": summarise(trained)}
    more: dict[str, Any] = {"settings": about, "meta_trained": details_of(trained) | {"curves": curves(trained)}}
    about |= {"tasks": len(store.groups[split].ids), "rows": store.groups[split].examples}
    classes = None if text else config.ways or len(store.labels)
    more["warnings"] = health.of_evaluation(methods["meta_trained"], more["meta_trained"], classes)
    if not config.eval.baselines:
        return Evaluation(methods, more)

    reads = config.task.labels != "head" and config.model.head == "context"
    if not reads or steps:
        start = [s.at_start() for s in trained]
        methods["no_adaptation"], more["no_adaptation"] = summarise(start), details_of(start)
    constant = config.inner.model_copy(update={"learn_lr": "none", "schedule": "constant"})
    tuned = inner_loop(constant, {}, max(1, steps) * FINE_TUNE_LENGTH)
    # The rate is chosen on tasks that are not those scored; data given to `evaluate` may have none.
    others = (name for name in ("validation", "train") if name != split)
    held = next((name for name in others if _can_be_drawn(store, config, name)), None)
    few = [sample_episode(store, config.task, seed, held, i) for i in _share(24, rank, world)] if held else []

    def fine_tuned(name: str, fast: Params, shared: Params, factors: Sequence[float]) -> None:
        """Adapt from other initial weights, at the best of the rates."""

        def scored(lr: float, episodes: list[Episode]) -> list[Scored]:
            begun = dataclasses.replace(scoring, fast=fast, shared=shared, loop=dataclasses.replace(tuned, lr=lr))
            return gather(scored_by(begun, episodes, curve=False))

        lrs = [config.inner.lr * factor for factor in factors] if held else [config.inner.lr]
        found = [goodness(summarise(scored(lr, few))) for lr in lrs] if held else [0.0]
        best = lrs[max(range(len(lrs)), key=found.__getitem__)]
        say(f"baseline {name}: {tuned.steps} steps at lr {best:g}" + (f" (chosen on {held} episodes)" if held else ""))
        result = scored(best, mine)
        methods[name] = summarise(result)
        more[name] = {"steps": tuned.steps, "lr": best, "chosen_on": held, **details_of(result)}

    untrained = dataclasses.replace(scoring, fast=model.fast, shared=model.shared)
    if reads:
        say("baseline base_in_context: the model as it was pretrained reads the support set")
        at_once = dataclasses.replace(untrained, loop=dataclasses.replace(scoring.loop, steps=0))
        result = gather(scored_by(at_once, mine))
        methods["base_in_context"], more["base_in_context"] = summarise(result), details_of(result)
        if not config.inner.steps:
            return Evaluation(methods, more)
    fine_tuned("fine_tuned", dict(model.fast), dict(model.shared), FINE_TUNE_FACTORS)
    if score is None:
        if _can_be_drawn(store, in_training, "train"):
            say(f"baseline multi_task: {config.outer.steps} steps on pooled tasks")
            fine_tuned("multi_task", *train_pooled(model, store, in_training, device), (0.0, *FINE_TUNE_FACTORS))
        if text:
            if reads_in_context(model, config):
                say("in context: the meta-trained model reads the support set, and nothing is adapted")
                result = gather(in_context(store)(scoring, mine))
                methods["in_context"], more["in_context"] = summarise(result), details_of(result)
            return Evaluation(methods, more)
        if config.task.labels != "head":
            return Evaluation(methods, more)
        say("baseline prototypes")
        result = gather(score_prototypes(untrained, mine))
        methods["prototypes"] = summarise(result)
        more["prototypes"] = details_of(result)
    return Evaluation(methods, more)


def _can_be_drawn(store: TaskStore, config: Config, split: str) -> bool:
    """Whether a split has tasks, with the examples that episodes of `config` need."""
    try:
        check_feasible(store, config.task, [split])
    except InputError:
        return False
    return len(store.groups[split].ids) > 0


def scorer(config: Config, store: TaskStore) -> Callable[..., list[Any]]:
    """`score_episodes`, or where answers are words `score_texts`."""
    return partial(score_texts, store=store) if config.task.family == "text_to_text" else score_episodes


def goodness(summary: Mapping[str, Any]) -> float:
    """What a rate is chosen by: accuracy, or where answers are words the loss, downwards."""
    return float(summary["accuracy"]["mean"] if "accuracy" in summary else -summary["loss"]["mean"])


def _share(count: int, rank: int, world: int) -> range:
    """This rank's consecutive share of range(count)."""
    return range(rank * count // world, (rank + 1) * count // world)


def evaluate(
    source: str | Path,
    data: str | Sequence[str] | None = None,
    episodes: int | None = None,
    *,
    split: str = "test",
    baselines: bool | None = None,
    steps: int | None = None,
    ways: int | None = None,
    shots: int | None = None,
    checkpoint: str | int = "best",
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Evaluate a checkpoint, or one of a run's, in this process, on its own data or on `data`.

    checkpoint: of a run, best (by eval.best; the newest where there is none), last, or a meta-step.

    split: train, validation or test tasks. steps: inner steps; None: as the run evaluates. ways, shots: of an episode;
    None: as the run trained. Other ways need a prototype head. `data` is read with the run's columns and tokenizer; all
    of its tasks count as `split` unless it has a split column. Raises InputError.
    """
    saved = checkpoints.load(source, which=checkpoint)
    asked = {"episodes": episodes, "baselines": baselines, "steps": steps, "ways": ways, "shots": shots}
    check_split(split)
    try:
        check_ways("ways", ways, saved.config)
    except ValueError as error:
        raise InputError(str(error)) from None
    config = with_changes(saved.config, "eval", **asked)
    if data is not None:
        path = data if isinstance(data, str) else list(data)
        config = config.model_copy(
            update={
                "data": config.data.model_copy(update={"path": path, "splits": None, "sources": None, "follow": None})
            }
        )
    store = _store_of(saved, config, only=split if data is not None else None)
    if split not in store.groups or len(store.groups[split].ids) == 0:
        there = [name for name, groups in store.groups.items() if len(groups.ids)]
        raise InputError(f"split = {split}: the data has no such tasks; it has {', '.join(there)}")
    check_feasible(store, config.of_evaluation().task, [split])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(saved).to(device)
    meta = {name: value.to(device) for name, value in saved.meta.items()}
    result = evaluate_methods(model, meta, store, config, device, split=split, say=say)
    result.details["settings"]["meta_step"] = saved.step
    return result


def check_split(split: str) -> None:
    """Raises InputError unless `split` is a split's name."""
    if split not in SPLITS:
        raise InputError(f"split = {split}: one of {', '.join(SPLITS)}.{nearest(split, SPLITS)}")


def load_model(saved: checkpoints.Checkpoint) -> TaskModel:
    """The model of a checkpoint at its initial values; its meta-parameters are `saved.meta`."""
    state = saved.state
    model = build_model(
        saved.config, state["vocab_size"], state["pad_id"], state["classes"], labels=len(state["labels"])
    )
    check_format(saved.path, saved.format, model)
    model.load_state_dict(saved.base, strict=False)
    return model


def _store_of(saved: checkpoints.Checkpoint, config: Config, only: str | None) -> TaskStore:
    from distmeta.tasks.build import build_store
    from distmeta.tasks.sources import MissingData
    from distmeta.tasks.store import open_store

    labels = saved.state["labels"] if config.task.family == "domain" else None
    # The run's own task: other ways could divide the classes among splits otherwise.
    task = saved.config.task
    try:
        path = build_store(
            config.data, task, config.model, tokenizer_file=saved.tokenizer_file, labels=labels, only=only
        )
    except MissingData as error:
        if only is not None:
            raise
        raise InputError(
            f"{error}: the run's data is no longer there; say with --data where it is now, or give other data"
        ) from None
    store = open_store(path)
    if only is None:
        _refuse_trained(store, saved)
    return store


def _refuse_trained(store: TaskStore, saved: checkpoints.Checkpoint) -> None:
    """Raises InputError where the data now tests, or validates by, what the run was trained on."""
    folder = saved.path.resolve().parent
    before = summary.read(folder.parent) if folder.name == "checkpoints" else {}
    if not before:
        return
    unit = summary.unit_of(before)
    names = store.labels if store.family == "classes" else store.tasks
    for split in ("test", "validation"):
        trained = [n for i in store.groups[split].ids if (n := names[i]) in before["splits"]["train"][unit]]
        if trained:
            raise InputError(
                f"the run's data has changed, or how it is divided: '{trained[0]}' is in the split {split} now, and "
                f"the run was trained on it ({len(trained)} such {unit}); bring the data back, or name other data "
                "with --data"
            )
