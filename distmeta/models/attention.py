"""Attention that may be differentiated twice, in blocks of queries where texts are long.

Fused kernels have no double backward (pytorch #117974), and serve where no derivative of a derivative is taken. The
plain form has one, and keeps matrices of the length squared for it. In blocks, each block's matrix is made again for
each derivative and dropped: what autograd keeps are queries, keys and values. Keys that a block cannot see are left
out, and keys of grouped heads are not copied.

Letters: N rows, H heads, G key heads, L queries, S keys, D width of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmeta.inner.derivatives import is_twice
from distmeta.models import calls
from distmeta.models.recompute import recompute

BLOCK = 128  # queries; texts of no more are one block, which is not run again
TRIAL_BLOCK = 3  # where a model is tried on short texts


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    block: int = BLOCK,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [N, H, L, D], key and value [N, G, S, D] -> ([N, L, H, D], no weights).

    causal: a query sees no key after it, whatever the mask says. Raises NotImplementedError where a family asks for
    more than a mask: a soft cap, a position bias, sinks.
    """
    if more := [name for name in ("softcap", "position_bias", "s_aux") if others.get(name) is not None]:
        raise NotImplementedError(f"attention with {more[0]}")
    rows, heads, length, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    drop = dropout if module.training else 0.0
    if drop == 0 and not is_twice():
        return fused(module, query, key, value, attention_mask, scale)
    grouped = query.reshape(rows, key.shape[1], -1, length, width)
    if length <= block or drop > 0:
        out = attend(grouped, key, value, attention_mask, scale, drop)
    else:
        out = in_blocks(grouped, key, value, attention_mask, scale, block, causal and key.shape[2] == length)
    return out.reshape(rows, heads, length, -1).transpose(1, 2).contiguous(), None


def fused(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, None]:
    """As `attention`, by PyTorch's kernel; the mask says what is seen."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if mask is not None:
        mask = mask.to(query.dtype).clamp(min=torch.finfo(query.dtype).min)
    out: Tensor = sdpa_attention_forward(module, query, key, value, mask, scaling=scale, is_causal=False)[0]
    return out, None


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, drop: float = 0.0) -> Tensor:
    """query [N, G, H/G, L, D], key and value [N, G, S, D] -> [N, G, H/G, L, D]; weights in at least float32."""
    rows, groups, each, length, width = query.shape
    scores = torch.matmul(query.reshape(rows, groups, each * length, width), key.mT) * scale
    scores = scores.view(rows, groups, each, length, -1)
    if mask is not None:
        scores = scores + mask.unsqueeze(2)
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    weights = F.dropout(weights, drop, training=drop > 0).view(rows, groups, each * length, -1)
    return torch.matmul(weights, value).view(rows, groups, each, length, -1)


def in_blocks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, block: int, causal: bool
) -> Tensor:
    """`attend`, a block of queries after the other, each of which is run again for a derivative."""
    out = []
    for first, last in blocks(query.shape[3], block):
        seen = last if causal else key.shape[2]
        part = mask
        if mask is not None:
            part = mask[..., first:last, :seen] if mask.shape[-2] > 1 else mask[..., :seen]

        def run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = part) -> Tensor:
            return attend(query, key, value, mask, scale)

        out.append(recompute(run, query[..., first:last, :], key[..., :seen, :], value[..., :seen, :]))
    return torch.cat(out, 3)


def blocks(length: int, block: int) -> Iterator[tuple[int, int]]:
    return ((first, min(length, first + block)) for first in range(0, length, block))


def register() -> None:
    """Make this attention known to transformers, with the eager form's masks."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for causal in (False, True):
        for block in (BLOCK, TRIAL_BLOCK):
            name = name_of(causal, block)
            ALL_ATTENTION_FUNCTIONS.register(name, partial(attention, causal=causal, block=block))
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def name_of(causal: bool, block: int = BLOCK) -> str:
    """The name under which transformers knows it."""
    return f"distmeta{'_causal' if causal else ''}_{block}"


def choose(backbone: Any, run: Callable[[], Tensor], causal: bool) -> None:
    """Have `backbone` take this attention for exact orders, if the states that `run` gives with it are its own.

    In both of its forms, that which is differentiated twice and that which is not.
    """
    register()
    before, is_same = backbone.config._attn_implementation, []
    for twice in (True, False):
        with contextlib.suppress(Exception), torch.set_grad_enabled(twice):
            expected = run()
            backbone.set_attn_implementation(name_of(causal, TRIAL_BLOCK))  # fails where no attention can be replaced
            is_same.append(calls.difference(run(), expected) <= calls.SAME)
        backbone.set_attn_implementation(before)
    if is_same == [True, True]:
        backbone.exact_attention = name_of(causal)
