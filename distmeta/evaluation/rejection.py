"""Texts that belong to none of a task's labels: told by how the task's own examples score when they are left out.

A text's score is the highest of its classes' scores: of a prototype head the distance to the nearest class, negated; of
a linear head the largest logit. Each support example is left out in turn, the task adapted again without it, and scored
s_i as a text that the model has not learnt from. Then of a text with score s

    typicality = (1 + number of s_i <= s) / (n + 1)

is a conformal p-value (Laxhammar and Falkman 2010; Bates et al. 2023, arXiv 2104.08279): a text that is drawn as the
examples were has a typicality of at most `rate` with a probability of about `rate` (about, since the whole task has one
example more than those that the s_i come from), whatever the model. Texts of at most that are rejected.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from distmeta.algorithms.rates import inner_loop
from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.evaluation.adapt import AdaptedModel, adapted_model, predictions
from distmeta.evaluation.adaptable import Adaptable, source_of
from distmeta.evaluation.many import fit_each
from distmeta.evaluation.scoring import Scoring, row_features, tasks_at_once
from distmeta.evaluation.support import Support, read_support, tokenise
from distmeta.inner import Diverged
from distmeta.tasks.rows import Episode


def predict_or_reject(
    adapted: AdaptedModel, texts: Sequence[str], rate: float, checkpoint: str | Path | None = None
) -> list[dict[str, Any]]:
    """As `AdaptedModel.predict`, each with its "typicality"; the "label" of a text that is rejected is None.

    rate: the share of the task's own texts that may be rejected, from 1 / (examples + 1) to below 1. checkpoint: what
    the model was adapted from, where it is no longer where it was. Raises InputError.
    """
    check_rejects(adapted.config, adapted.state, rate)
    start = source_of(adapted.state, checkpoint, next(iter(adapted.params.values())).device)
    return judged(adapted, texts, scores_left_out(start, adapted), rate)


def check_rejects(config: Config, state: Mapping[str, Any], rate: float) -> None:
    """Raises InputError where a rate, a kind of model or a support set does not allow it."""
    if not 0 < rate < 1:
        raise InputError(f"reject = {rate:g}: give a share of the task's own texts that may be rejected, such as 0.05")
    has_labels = config.task.family in ("domain", "classes")
    if not has_labels or config.model.is_array:
        what = "model.image" if has_labels else f"task.family={config.task.family}"
        raise InputError(f"reject does not work with {what}; it needs texts with labels (domain or classes)")
    if "examples" not in state:
        raise InputError("this model was adapted by an earlier distmeta, which kept no examples; adapt it again")
    counts = Counter(example["label"] for example in state["examples"])
    label, least = min(counts.items(), key=lambda pair: pair[1])
    if least < 2:
        raise InputError(
            f"reject leaves each example out in turn, and label '{label}' has {least}; give two or more of each label"
        )
    n = counts.total()
    if rate < 1 / (n + 1):
        raise InputError(
            f"reject = {rate:g}: {n} examples can tell no rate below 1 / {n + 1} = {1 / (n + 1):.3f}; give a higher "
            "rate, or more examples"
        )


def scores_left_out(start: Adaptable, adapted: AdaptedModel) -> NDArray[np.float64]:
    """The score of each support example by the task without it, rising, [n]. Raises InputError."""
    config, examples = adapted.config, adapted.state["examples"]
    rows = [{config.data.text: one["text"], config.data.label: one["label"]} for one in examples]
    whole, n = read_support(rows, config, start.state, start.tokenizer), len(rows)
    steps = max(len(adapted.inner_losses) - 1, 0)
    if start.model.prototype_head and steps == 0:
        return np.sort(class_means_left_out(start, whole))
    supports = []
    for i in range(n):
        texts = [examples[j]["text"] for j in range(n) if j != i]
        others = tokenise(start.tokenizer, texts, np.delete(whole.rows.labels, i).tolist(), config)
        supports.append(replace(whole, rows=others))
    episodes = [Episode(0, "", tuple(whole.labels), one.rows, one.rows) for one in supports]
    most = 1 if start.model.in_context is not None else tasks_at_once(start.model, config, episodes, start.device)
    scores = np.zeros(n)
    for i, fitted in fit_each(start, supports, [steps] * n, most):
        if isinstance(fitted, Diverged) or not all(map(math.isfinite, fitted[1])):
            raise InputError(f"reject: without example {i} the inner loop diverges; adapt with fewer --steps")
        scores[i] = adapted_model(start, supports[i], *fitted).scores([examples[i]["text"]])[1][0]
    return np.sort(scores)


def class_means_left_out(start: Adaptable, support: Support) -> NDArray[np.float64]:
    """As `scores_left_out`, in the support set's order, of a model that does nothing but take class means."""
    config, rows = start.config, support.rows
    episode = Episode(0, "", tuple(support.labels), rows, rows)
    loop = inner_loop(config.inner, start.rates, 0)
    _, x = row_features(
        Scoring(start.model, start.fast, start.shared, loop, config, start.pad_id, start.device), [episode]
    )
    labels = torch.as_tensor(rows.labels, device=x.device)
    chosen = F.one_hot(labels, len(support.labels)).to(x.dtype)
    sums, counts = chosen.mT @ x, chosen.sum(0)
    without_it = (sums[labels] - x) / (counts[labels] - 1).unsqueeze(1)
    distances = torch.cdist(x, sums / counts.unsqueeze(1)).scatter(
        1, labels.unsqueeze(1), (x - without_it).norm(dim=1, keepdim=True)
    )
    nearest = distances.amin(1).pow(2) * start.shared["head_log_scale"].exp()
    return -nearest.double().cpu().numpy()


def judged(
    adapted: AdaptedModel, texts: Sequence[str], left_out: NDArray[np.float64], rate: float
) -> list[dict[str, Any]]:
    """Predictions with their typicality, of scores that rise."""
    adapted.check(texts)
    logits, highest = adapted.scores(texts)
    typical = (1 + np.searchsorted(left_out, highest, side="right")) / (len(left_out) + 1)
    return [
        {**one, "label": None if p <= rate else one["label"], "typicality": round(float(p), 6)}
        for one, p in zip(predictions(logits, adapted.labels), typical, strict=True)
    ]
