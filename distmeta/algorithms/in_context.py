"""In-context learning, meta-trained (MetaICL, Min et al. 2022, arXiv 2110.15943, section 3): model-based.

    minimise over theta   E_task  -log p( label | text, support set; theta )      the forward pass is the learner

The decoder reads the support set once, and what it keeps of it (keys and values) is its state of the task; see
distmeta.models.context, with the channel variant (`model.context=channel`, arXiv 2108.04106). Labels are learnt
embeddings in the place of words, so that a label means what the support set says. Unbiased. Cost of a task: one
gradient over support and query sets. A new task costs one forward pass over its support set.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from distmeta import inner

ORDER = "first_order"  # one derivative only, so fused attention serves
ADAPTS = False


def meta_gradient(loss: Any, params: Any, support: Any, query: Any, loop: Any, **options: Any) -> inner.MetaGradient:
    """The support set is read, and never scored: what stands for its loss is the query set's."""
    result = inner.meta_gradient(loss, params, support, query, loop, order="exact", last_inner_loss=False, **options)
    return dataclasses.replace(result, inner_losses=result.loss.unsqueeze(-1))
