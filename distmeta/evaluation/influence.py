"""Which support examples taught an adapted model what it says: the derivative through adaptation by their weights.

The support loss is a sum over rows with weights w, all 1 / n:  l(theta) = sum_i w_i l_i(theta). For a text and the
label that the adapted model gives it, with theta_K(w) the weights after the K inner steps and p the probability of the
label,

    influence_i = w_i  d log p(label | text; theta_K(w)) / d w_i

is how much log p rises where example i counts a little more (relative to its weight), and without_i is what log p would
change by, to first order, were i left out and the others counted 1 / (n - 1) each. The weights are one more tensor that
the support loss reads, so the walk of the exact meta-gradient gives all n derivatives at once (distmeta.inner.walk:
d / d shared <g_k, mu_k>). With one inner step of sgd, influence is the product of two gradients of TracIn (2002.08484);
with more it is exact where that sum is not. It is the derivative of an adaptation that is run again, and no attention
map. For large steps it is not what leaving an example out does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmeta.algorithms.rates import inner_loop
from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.evaluation.adapt import AdaptedModel
from distmeta.evaluation.adaptable import Adaptable, source_of
from distmeta.evaluation.support import read_support, tokenise
from distmeta.inner import meta_gradient
from distmeta.models.backbone import set_attention
from distmeta.models.batch import TextBatch
from distmeta.models.prefix import fixed_prefix
from distmeta.models.task_model import TaskModel
from distmeta.tasks.episodes.collate import collate

WEIGHTS = "row_weights"  # among the shared tensors: of the support rows
Kind = tuple[str, TextBatch]  # "support" or "query", and a batch of it


@dataclass(frozen=True)
class Learner:
    """What an adaptation is run again with: the checkpoint's model and meta-parameters, and the support set."""

    start: Adaptable
    support: list[TextBatch]
    rows: int
    steps: int


def explain(adapted: AdaptedModel, texts: Sequence[str], checkpoint: str | Path | None = None) -> list[dict[str, Any]]:
    """For each text {"text", "prediction", "influences"}: of each support example {"row", "text", "label", "influence",
    "without"}, by falling influence on the predicted label.

    checkpoint: what the model was adapted from, where it is no longer where it was. Raises InputError.
    """
    return explained(adapted, learner_of(adapted, checkpoint), texts)


def explained(adapted: AdaptedModel, learner: Learner, texts: Sequence[str]) -> list[dict[str, Any]]:
    """As `explain`, by an adaptation that can be run again."""
    examples, predictions = adapted.state["examples"], adapted.predict(texts)
    said = [str(one["label"]) for one in predictions]
    out = []
    for text, prediction, label in zip(texts, predictions, said, strict=True):
        query = query_of(adapted, learner, text, label)
        slopes = slopes_of(learner, query)
        pushes, changes = influences(slopes), left_out(slopes)
        ranked = np.argsort(-pushes, kind="stable")
        out.append({
            "text": text, "prediction": prediction,
            "influences": [
                {"row": int(i), "text": examples[i]["text"], "label": examples[i]["label"],
                 "influence": round(float(pushes[i]), 6), "without": round(float(changes[i]), 6)}
                for i in ranked
            ],
        })  # fmt: skip
    return out


def influences(slopes: NDArray[np.float64]) -> NDArray[np.float64]:
    """w_i d log p / d w_i, [n], of slopes d loss / d w_i at w_i = 1 / n."""
    pushes: NDArray[np.float64] = -slopes / len(slopes)
    return pushes


def left_out(slopes: NDArray[np.float64]) -> NDArray[np.float64]:
    """What log p changes by, to first order, without each row, the others weighing 1 / (n - 1): [n]."""
    n = len(slopes)
    if n == 1:
        return slopes.copy()
    changes: NDArray[np.float64] = slopes / n - (slopes.sum() - slopes) * (1 / (n - 1) - 1 / n)
    return changes


def learner_of(adapted: AdaptedModel, checkpoint: str | Path | None = None) -> Learner:
    """What the adaptation is run again with. Raises InputError."""
    check_explained(adapted.config, adapted.state)
    device = next(iter(adapted.params.values())).device
    return learner_with(source_of(adapted.state, checkpoint, device), adapted)


def learner_with(start: Adaptable, adapted: AdaptedModel) -> Learner:
    """start: what the model was adapted from. Its attention has the exact kernel afterwards."""
    config, model = adapted.config, start.model
    rows = [{config.data.text: one["text"], config.data.label: one["label"]} for one in adapted.state["examples"]]
    support = read_support(rows, config, start.state, start.tokenizer)
    set_attention(model.backbone, "exact")
    parts = collate([support.rows], config.inner.buckets, start.pad_id)
    batches = fixed_prefix(model, start.values, model.batches(parts, start.device))
    return Learner(start, batches, len(rows), steps=len(adapted.inner_losses) - 1)


def check_explained(config: Config, state: Mapping[str, Any]) -> None:
    """Raises InputError where a support example has no loss of its own, or teaches by more than its gradient; or where
    an adapted model's `state` does not hold the examples."""
    if "examples" not in state and config.task.family in ("domain", "classes"):
        raise InputError("this model was adapted by an earlier distmeta, which kept no examples; adapt it again")
    for fits, key, value, mend in (
        (config.task.family in ("domain", "classes"), "task.family", config.task.family, "domain or classes"),
        (config.task.labels == "head", "task.labels", config.task.labels, "head, whose examples have their own losses"),
        (config.model.image is None, "model.image", list(config.model.image or ()), "texts, which it shows"),
        (config.model.head == "linear", "model.head", config.model.head,
         "linear: a head that is computed from the support set does not learn by its gradient alone"),
    ):  # fmt: skip
        if not fits:
            raise InputError(f"explain does not work with {key} = {value}; it needs {mend}")


def query_of(adapted: AdaptedModel, learner: Learner, text: str, label: str) -> list[TextBatch]:
    """One text with the label that was predicted for it."""
    start = learner.start
    rows = tokenise(adapted.tokenizer, [text], [adapted.labels.index(label)], adapted.config)
    parts = collate([rows], 0, start.pad_id)
    return fixed_prefix(start.model, start.values, start.model.batches(parts, start.device))


def slopes_of(
    learner: Learner, query: Sequence[TextBatch], weights: Tensor | None = None, order: Any = "exact"
) -> NDArray[np.float64]:
    """d loss(query) / d w_i for every support row, in the support set's order, [n]. weights: w; None: 1 / n each."""
    start = learner.start
    loop = inner_loop(start.config.inner, start.rates, learner.steps)
    value = next(iter(start.fast.values()))
    even = torch.full((learner.rows,), 1.0 / learner.rows, dtype=value.dtype, device=value.device)
    result = meta_gradient(
        loss_of(start.model), start.fast, [("support", b) for b in learner.support],
        [("query", b) for b in query], loop, order,
        shared={**start.shared, WEIGHTS: even if weights is None else weights}, last_inner_loss=False,
    )  # fmt: skip
    return np.asarray(result.shared_grads[WEIGHTS].double().cpu())


def loss_of(model: TaskModel) -> Any:
    """The weighted sum over the rows of a support batch, or the mean over those of a query batch."""

    def loss(params: dict[str, Tensor], part: Kind) -> Tensor:
        kind, batch = part
        rows = model.row_scores({n: v for n, v in params.items() if n != WEIGHTS}, batch)[0][0]
        if kind == "query":
            return rows.sum() / batch.total
        assert batch.order is not None
        return (rows * params[WEIGHTS][batch.order[0]]).sum()

    return loss
