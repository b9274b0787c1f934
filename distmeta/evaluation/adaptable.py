"""What a new task is adapted from, and the inner loop on its support set.

Letters: T tasks of a batch, K inner steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distmeta.algorithms.rates import inner_loop
from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.evaluation.evaluate import load_model
from distmeta.evaluation.scoring import left_one_out, split_meta, stack
from distmeta.evaluation.support import Support
from distmeta.inner import adapt
from distmeta.models.backbone import positions, set_attention
from distmeta.models.batch import TextBatch
from distmeta.models.context import sequence_of
from distmeta.models.footprint import part_tokens
from distmeta.models.labels import LabelModel
from distmeta.models.language import LanguageModel
from distmeta.models.prefix import fixed_prefix
from distmeta.models.task_model import TaskModel
from distmeta.runs import checkpoint as checkpoints
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.prompts import LETTERS
from distmeta.tasks.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Of a checkpoint's state, what an adapted model needs too.
KEPT = ("format", "classes", "vocab_size", "pad_id", "compression")
Params = Mapping[str, Tensor]
Fitted = tuple[dict[str, Tensor], list[float]]  # adapted parameters, and the support loss after 0..K inner steps


@dataclass(frozen=True)
class Adaptable:
    """A model, with its weights by role, that adapts to new tasks.

    rates: logarithms of the learnt inner rates. state: of the checkpoint, with the step and what it is known by
    ("meta_step", "from"); or of an adapted model that reads on.
    """

    config: Config
    model: TaskModel
    fast: Params
    shared: Params
    rates: Params
    state: dict[str, Any]
    tokenizer_file: Path

    @property
    def values(self) -> dict[str, Tensor]:
        """All weights, as no task has changed them."""
        return {**self.fast, **self.shared}

    @property
    def pad_id(self) -> int:
        return int(self.state["pad_id"])

    @property
    def device(self) -> torch.device:
        return next(iter(self.values.values())).device

    @property
    def steps(self) -> int:
        """The inner steps of a new task, as the run evaluates."""
        return self.config.inner.steps if self.config.eval.steps is None else self.config.eval.steps

    @property
    def kept_state(self) -> dict[str, Any]:
        """Of the checkpoint's state, what an adapted model needs."""
        return {key: self.state[key] for key in (*KEPT, "meta_step", "from") if key in self.state}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_file)


def on_device(saved: checkpoints.Checkpoint, device: torch.device | None = None) -> Adaptable:
    """A checkpoint's model at its meta-parameters. device: None: a GPU where there is one."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(saved)
    name_any(model)
    fast, shared, rates = ({n: v.to(device) for n, v in d.items()} for d in split_meta(model, saved.meta))
    set_attention(model.backbone, "first_order")
    source = {"path": str(saved.path.resolve()), "digest": checkpoints.digest(saved.path)}
    state = {**saved.state, "meta_step": saved.step, "from": source}
    return Adaptable(saved.config, model.to(device), fast, shared, rates, state, saved.tokenizer_file)


def source_of(state: Mapping[str, Any], checkpoint: str | Path | None, device: torch.device) -> Adaptable:
    """What a model with this `state` was adapted from; checkpoint: where that has moved. Raises InputError."""
    try:
        saved = checkpoints.load(Path(checkpoint or state["from"]["path"]))
    except InputError as error:
        raise InputError(f"what the model was adapted from is needed ({error}); name it with --checkpoint") from None
    if checkpoints.digest(saved.path) != state["from"]["digest"]:
        raise InputError(
            f"{saved.path}: is not the checkpoint that the model was adapted from; name it with --checkpoint"
        )
    return on_device(saved, device)


def name_any(model: TaskModel) -> None:
    """A model that names classes by letters takes as many as there are."""
    if isinstance(model, LabelModel) and model.tokens.labels:
        model.classes = len(LETTERS)


def without_pooled(shared: Params) -> dict[str, Tensor]:
    """Shared parameters without those of training alone."""
    return {name: value for name, value in shared.items() if not name.startswith("pooled_")}


def newest(support: Support, start: Adaptable) -> Support:
    """The support set without its first examples, where a language model that reads it has no room for all of them."""
    model, limit = start.model, positions(start.model.backbone)
    if limit is None or isinstance(model, LabelModel) or not (isinstance(model, LanguageModel) and model.reads_support):
        return support
    rows, room = support.rows, limit - start.config.model.max_tokens
    first = int(np.argmax(rows.offsets[-1] - rows.offsets[:-1] <= room))
    if first == 0:
        return support  # it fits, or no example alone does
    return replace(support, rows=rows.part(first, len(rows.labels)), about=support.about | {"left_out": first})


def check_room_for(support: Support, start: Adaptable) -> None:
    """Raises InputError where a model that reads its support set has too few positions for it and a text after it."""
    model, limit = start.model, positions(start.model.backbone)
    reads = model.in_context is not None or (isinstance(model, LanguageModel) and model.reads_support)
    if not reads or limit is None:
        return
    rows, need = support.rows, len(support.rows.tokens) + start.config.model.max_tokens
    if isinstance(model, LabelModel):
        names = [len(name) for name in model.tokens.of(support.labels)]
        each = [names[label] + len(model.tokens.after) for label in rows.labels]
        need += len(model.tokens.start) + sum(each) + max(names)
    elif model.in_context is not None:
        need += len(rows.labels) + 1
    if need > limit:
        raise InputError(
            f"support: {len(rows.labels)} examples and a text after them may take {need} positions, the model has "
            f"{limit}; give fewer or shorter examples"
        )


def fit(start: Adaptable, supports: Sequence[Support], steps: int | None = None) -> list[Fitted]:
    """The adapted parameters, and the support loss after 0..K inner steps, of each of T support sets.

    Several at once go through the base as one batch, the fast weights with a task axis: only where
    `model.takes_task_axis`, and the sets have equal numbers of rows and, with a prototype head, of labels. A task
    whose loss diverges among several is found by its last loss, which is no finite number; alone it raises Diverged.
    """
    model, config, tasks = start.model, start.config, len(supports)
    if supports[0].labels and model.prototype_head:
        model.classes = len(supports[0].labels)
    steps = start.steps if steps is None else steps
    for support in supports:
        check_room_for(support, start)
    rows, names = [s.rows for s in supports], [s.labels for s in supports]
    cut = partial(collate, buckets=config.inner.buckets, pad_id=start.pad_id)
    batches, _ = model.sets(cut(rows), [], start.device, False, names)
    reads = isinstance(model, LanguageModel) and model.leaves_one_out
    if isinstance(model, LanguageModel) and reads and steps > 0:
        limited = partial(cut, part_tokens=part_tokens(model, config, start.device, exact=False))
        batches = left_one_out(model, rows, batches, limited)
    elif not reads:
        batches = fixed_prefix(model, start.values, batches)

    def loss(params: dict[str, Tensor], batch: TextBatch) -> Tensor:
        return model.loss(params, batch).sum()

    fast = start.fast if tasks == 1 else stack(start.fast, tasks)
    loop = inner_loop(config.inner, start.rates, steps, config.noise_seed)
    result = adapt(
        loss if tasks == 1 else model.loss, fast, batches, loop,
        shared=start.shared,
        start=model.start if model.starts and not reads else None, task_axis=False if tasks == 1 else "native",
        check=tasks == 1, last_inner_loss=steps > 0 or not reads,
    )  # fmt: skip
    with torch.no_grad():
        params = result.params | model.settle({**start.shared, **result.params}, batches)
    if tasks == 1:
        return [(params, result.inner_losses.tolist())]
    # what `start` computes has an axis of its own, of one task where it is alone
    by_task = {name: value if name in fast else value.unsqueeze(1) for name, value in params.items()}
    return [({n: v[t].clone() for n, v in by_task.items()}, result.inner_losses[t].tolist()) for t in range(tasks)]


def read_tokens(start: Adaptable, support: Support) -> list[int]:
    """The tokens of a support set, in the order in which a model that reads it does."""
    parts = collate([support.rows], start.config.inner.buckets, start.pad_id)
    batches, _ = start.model.sets(parts, [], "cpu", False, [support.labels])
    ids, kept = sequence_of(batches)
    tokens: list[int] = ids[kept > 0].tolist()
    return tokens
