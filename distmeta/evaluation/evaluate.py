"""Few-shot evaluation: the meta-trained model, and the baselines that a meta-learner has to beat.

Letters: E episodes, K inner steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distmeta import health
from distmeta.algorithms.rates import inner_loop
from distmeta.config import Config, ConfigSource, config_of, with_changes
from distmeta.config.consistency import check_refine, check_used, check_ways
from distmeta.config.documents import check_document
from distmeta.config.modules import check_trusted
from distmeta.config.paths import absolute
from distmeta.errors import InputError, nearest
from distmeta.evaluation import baselines, document_baselines
from distmeta.evaluation.baselines import Gather, Setting, main_of
from distmeta.evaluation.details import details
from distmeta.evaluation.examples import examples
from distmeta.evaluation.paired import difference
from distmeta.evaluation.reading import document_details, score_documents, unit_of
from distmeta.evaluation.regression import regression_details, score_regression
from distmeta.evaluation.scoring import Scoring, curves, score_episodes, split_meta, summarise
from distmeta.evaluation.subgroups import GAP, WORST, of_subgroups
from distmeta.evaluation.texts import score_texts, text_details
from distmeta.models.build import build_for, build_model, check_format
from distmeta.models.task_model import TaskModel
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs import notebook, tables
from distmeta.tasks import summary
from distmeta.tasks.families import check_feasible
from distmeta.tasks.splits import SPLITS

if TYPE_CHECKING:
    from distmeta.tasks.store import TaskStore


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
        return notebook.table(self._title(), ["method", f"{name}, 95% interval"], list(shown.items()))

    def _title(self) -> str:
        settings = self.details["settings"]
        return f"{settings['split']} tasks, {settings['episodes']} episodes"

    def _shown(self) -> tuple[str, dict[str, str]]:
        """The metric of most interest, and its mean and interval by method."""
        first = next(iter(self.methods.values()))
        name = next(name for name in ("accuracy", "exact_match", *first) if name in first)
        scores = {method: values[name] for method, values in self.methods.items() if name in values}
        return name, {method: tables.interval(score) for method, score in scores.items()}

    def save(self, directory: Path) -> None:
        checkpoints.write_text(directory / "evaluation.json", json.dumps(self.methods, indent=1))
        text = json.dumps(self.details, indent=1, ensure_ascii=False)
        checkpoints.write_text(directory / "evaluation_details.json", text)


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
    gather: Gather = lambda values: values,
    score: Callable[..., list[Any]] | None = None,
    is_base: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Score the meta-trained model, and with `eval.baselines` those that were not, on the same episodes.

    Episodes 0.. of the split are divided over `world` ranks; `gather` brings the parts together in order, on
    every rank that goes on to use the result. score: in the place of `score_episodes`, by ranks that all see the whole
    of an episode's score; then there are no baselines `multi_task` and `prototypes`. is_base: `meta` is the untrained
    model's.

    meta_trained: the meta-parameters, after `eval.steps` inner steps. The others: distmeta.evaluation.baselines.
    """
    evaluated = config.of_evaluation()
    fast, shared, rates = split_meta(model, meta)
    steps = config.inner.steps if config.eval.steps is None else config.eval.steps
    loop = inner_loop(config.inner, rates, steps, config.noise_seed)
    scoring = Scoring(model, fast, shared, loop, evaluated, store.pad_id, device)
    setting = Setting(scoring, [], store, split, config, rank, world, gather, score, say, is_base=is_base)
    setting = replace(setting, episodes=setting.draw(split, 0, config.eval.episodes))
    with model.of_ways(evaluated.ways):
        return _methods(setting)


def _methods(setting: Setting) -> Evaluation:
    config, store, scoring, split = setting.config, setting.store, setting.scoring, setting.split
    count, text, name = config.eval.episodes, setting.text, main_of(setting)
    details_of = (
        document_details
        if setting.reads_documents
        else text_details
        if text
        else regression_details
        if config.task.has_numbers
        else partial(details, fixed_labels=config.task.family == "domain", from_sources=config.data.sources is not None)
    )
    setting.say(f"evaluating on {count} episodes ({split})")
    scored = setting.score_all(scoring, setting.episodes, curve=True)
    lost = sum(not np.isfinite(s.loss[-1]) for s in scored)
    if lost:
        setting.say(
            f"the inner loop diverged in {lost} of {count} episodes, whose rows count as wrong; use a smaller inner.lr"
        )
    methods = {name: summarise(scored) | of_subgroups(scored, store)}
    about = {
        "split": split, "episodes": count, "seed": config.run.seed, "inner_steps": setting.steps, "method": name,
        "tasks": len(store.groups[split].ids), "rows": store.groups[split].examples,
    }  # fmt: skip
    if config.eval.refine:
        about["refine"] = config.eval.refine
    more: dict[str, Any] = {"settings": about, name: details_of(scored) | {"curves": curves(scored)}}
    more[name] |= {key: methods[name][key] for key in (WORST, GAP) if key in methods[name]}
    if config.task.has_classes:
        more[name]["examples"] = examples(scored, store.shown)
    classes = config.ways or len(store.labels) if config.task.has_classes else None
    more["warnings"] = health.of_evaluation(methods[name], more[name], classes, is_base=setting.is_base)
    setting = replace(setting, scored=scored)
    of_family = document_baselines if setting.reads_documents else baselines
    rows = of_family.BASELINES if config.eval.baselines else of_family.OF_BASE if setting.is_base else {}
    for method, row in rows.items():
        if (result := row(setting)) is not None:
            methods[method] = summarise(result[0]) | of_subgroups(result[0], store)
            more[method] = result[1] | details_of(result[0])
            if not setting.is_base:
                less = difference(
                    scored, result[0], by_class=config.task.family == "classes",
                    unit=unit_of(scored) if setting.reads_documents else "tasks",
                )  # fmt: skip
                more.setdefault("differences", {})[method] = less
    return Evaluation(methods, more)


def scorer(config: Config, store: TaskStore) -> Callable[..., list[Any]]:
    """`score_episodes`, or of a family without classes its own."""
    of_family: dict[str, Callable[..., list[Any]]] = {
        "text_to_text": score_texts, "document": score_documents, "regression": score_regression,
        "policy": score_regression,
    }  # fmt: skip
    score = of_family.get(config.task.family)
    return score_episodes if score is None else partial(score, store=store)


def evaluate(
    source: ConfigSource | None,
    data: str | Sequence[str] | None = None,
    episodes: int | None = None,
    *,
    split: str = "test",
    baselines: bool | None = None,
    steps: int | None = None,
    ways: int | None = None,
    shots: int | None = None,
    refine: int | None = None,
    checkpoint: str | int = "best",
    base: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Evaluate a checkpoint, or one of a run's, in this process, on its own data or on `data`.

    checkpoint: of a run, best (by eval.best; the newest where there is none), last, or a meta-step.

    split: train, validation or test tasks. steps: inner steps; None: as the run evaluates. ways, shots: of an episode;
    None: as the run trained. Other ways need a prototype head. refine: rounds of soft k-means on each query set, which
    is then classified together (eval.refine); None: as the run evaluates. `data` is read with the run's columns and
    tokenizer; all of its tasks count as `split` unless it has a split column.

    base: the directory or hub id of a pretrained model that was never meta-trained, which is then what is scored, on
    the episodes of a run of the recipe, file or configuration `source` (None: the recipe `default`). There is no
    meta_trained then: base_adapted is the model after the recipe's inner steps, base_in_context and base_zero_shot are
    a language model with the support set before its eyes and without. Raises InputError.
    """
    asked = {"episodes": episodes, "baselines": baselines, "steps": steps, "ways": ways, "shots": shots,
             "refine": refine}  # fmt: skip
    check_split(split)
    if base is not None:
        if data is not None:
            raise InputError("data belongs to a run; with base give the recipe's own key: data.path=PATH")
        return evaluate_base(str(base), source, asked, split, say)
    if not isinstance(source, str | Path):
        raise InputError("evaluate: name a run or a checkpoint; a configuration goes with base=MODEL_DIR")
    saved = checkpoints.load(source, which=checkpoint)
    config = with_asked(saved.config, asked)
    if data is not None:
        path = data if isinstance(data, str) else list(data)
        other = {"path": path, "splits": None, "sources": None, "follow": None, "trusted": None}
        config = config.model_copy(update={"data": config.data.model_copy(update=other)})
    store = store_of(saved, config, only=split if data is not None else None)
    check_tasks(store, config, split)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(replace(saved, config=config)).to(device)
    meta = {name: value.to(device) for name, value in saved.meta.items()}
    result = evaluate_methods(model, meta, store, config, device, split=split, say=say)
    result.details["settings"]["meta_step"] = saved.step
    return result


def evaluate_base(
    base: str, source: ConfigSource | None, asked: Mapping[str, Any], split: str, say: Callable[[str], None]
) -> Evaluation:
    """Score the pretrained model `base`, never meta-trained, as a run of the configuration `source` is scored.

    asked: keys of the section eval. Raises InputError.
    """
    from distmeta.models.trial import check_model
    from distmeta.tasks.build import build_store, cache_directory, check_data
    from distmeta.tasks.store import open_store

    before = config_of(source).model.pretrained
    if before not in (None, base):
        raise InputError(f"model.pretrained = {before}: base names the model, {base}; leave model.pretrained out")
    config = absolute(with_asked(config_of(source, {"model": {"pretrained": base}}), asked))
    check_used(config)
    check_data(config.data, config.task, config.model)
    store = open_store(build_store(config.data, config.task, config.model))
    check_tasks(store, config, split)
    check_model(config, cache_directory(config.data), len(store.labels))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_for(config, store).to(device)
    meta = {**model.fast, **model.shared}
    result = evaluate_methods(model, meta, store, config, device, split=split, is_base=True, say=say)
    result.details["settings"]["base"] = base
    return result


def with_asked(config: Config, asked: Mapping[str, Any]) -> Config:
    """`config` with what is asked of its section eval. Raises InputError."""
    try:
        check_ways("ways", asked["ways"], config)
        config = with_changes(config, "eval", **asked)
        if config.task.family == "document":
            check_document(config)
        check_refine(config)
    except ValueError as error:
        raise InputError(str(error)) from None
    return config


def check_tasks(store: TaskStore, config: Config, split: str) -> None:
    """Raises InputError unless the store has tasks of the split, with enough examples for an episode."""
    if split not in store.groups or len(store.groups[split].ids) == 0:
        splits = [name for name, groups in store.groups.items() if len(groups.ids)]
        raise InputError(f"split = {split}: the data has no such tasks; it has {', '.join(splits)}")
    check_feasible(store, config.of_evaluation().task, [split])


def check_split(split: str) -> None:
    """Raises InputError unless `split` is a split's name."""
    if split not in SPLITS:
        raise InputError(f"split = {split}: no such split; give one of {', '.join(SPLITS)}.{nearest(split, SPLITS)}")


def load_model(saved: checkpoints.Checkpoint) -> TaskModel:
    """The model of a checkpoint at its initial values; its meta-parameters are `saved.meta`. Raises InputError."""
    check_trusted(saved.config, saved.path)
    state = saved.state
    model = build_model(
        saved.config, state["vocab_size"], state["pad_id"], state["classes"], labels=len(state["labels"])
    )
    check_format(saved.path, saved.format, model)
    model.load_state_dict(saved.base, strict=False)
    return model


def store_of(saved: checkpoints.Checkpoint, config: Config, only: str | None = None) -> TaskStore:
    """The task store of a checkpoint's data, or of other that `config` names. Raises InputError."""
    from distmeta.tasks.build import build_store
    from distmeta.tasks.sources import MissingData
    from distmeta.tasks.store import open_store

    check_trusted(saved.config, saved.path)
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
