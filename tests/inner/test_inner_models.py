"""Transformers of five families, from config: exact order, all paths the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from inner_networks import F64, Named, close, differ, task, unrolled
from torch import Tensor

from distmeta.inner import InnerLoop, adapt, meta_gradient

transformers = pytest.importorskip("transformers")

VOCAB, WIDTH, LENGTH, CLASSES = 17, 8, 5, 3
KINDS = ["bert", "gpt2", "llama", "qwen2", "t5"]
CAUSAL = {"gpt2", "llama", "qwen2"}
SINGLE = {"llama", "qwen2", "t5"}


def build(kind: str) -> Any:
    usual = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 16,
    }
    if kind == "bert":
        config = transformers.BertConfig(**usual)
    elif kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=16)
    elif kind == "llama":
        config = transformers.LlamaConfig(**usual, num_key_value_heads=1)
    elif kind == "qwen2":
        config = transformers.Qwen2Config(**usual, num_key_value_heads=1)
    else:
        config = transformers.T5Config(
            vocab_size=VOCAB, d_model=WIDTH, d_kv=4, d_ff=12, num_layers=1, num_heads=2, decoder_start_token_id=0
        )
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").to(F64).eval()
    for p in model.parameters():
        # Wider than the usual 0.02, so that second derivatives are worth a test.
        p.data.add_(0.1 * torch.randn(p.shape, dtype=F64))
    return model


def make_loss(kind: str, model: Any) -> Callable[[Named, dict[str, Tensor]], Tensor]:
    """Mean cross-entropy of a linear head on the mean hidden state; masks and positions come with the batch."""

    def loss(p: Named, batch: dict[str, Tensor]) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": batch["ids"], "attention_mask": batch["mask"]}
        if kind == "t5":
            inputs |= {"decoder_input_ids": batch["ids"][:, :2], "decoder_attention_mask": batch["decoder_mask"]}
        elif kind != "bert":
            inputs |= {"position_ids": batch["positions"]}
        if kind != "bert":
            inputs |= {"use_cache": False}
        body = {n: t for n, t in p.items() if n != "head"}
        out = torch.func.functional_call(model, body, (), inputs).last_hidden_state
        return torch.nn.functional.cross_entropy(out.mean(1) @ p["head"], batch["labels"], reduction="sum") / 4

    return loss


def rows(kind: str, n: int, seed: int, tasks: int | None = None) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    lead = () if tasks is None else (tasks,)
    lowest = torch.finfo(F64).min
    mask = torch.full((LENGTH, LENGTH), lowest, dtype=F64).triu(1) if kind in CAUSAL else torch.zeros(LENGTH, LENGTH)
    mask = mask.to(F64).expand(n, 1, LENGTH, LENGTH).clone()
    if kind == "t5":
        mask = mask[:, :, :1]
    mask[-1, ..., -1] = lowest
    decoder_mask = torch.full((2, 2), lowest, dtype=F64).triu(1).expand(n, 1, 2, 2)
    return {
        # Not 0: that is BERT's padding_idx, whose row torch gives no gradient although the loss depends on it.
        "ids": torch.randint(1, VOCAB, (*lead, n, LENGTH), generator=g),
        "labels": torch.randint(CLASSES, (*lead, n), generator=g),
        "mask": mask.expand(*lead, *mask.shape),
        "decoder_mask": decoder_mask.expand(*lead, *decoder_mask.shape),
        "positions": torch.arange(LENGTH).expand(*lead, n, LENGTH),
    }


def parameters(model: Any) -> Named:
    named = {n: p.detach() for n, p in model.named_parameters()}
    return {**named, "head": torch.randn(WIDTH, CLASSES, generator=torch.Generator().manual_seed(9), dtype=F64)}


@pytest.mark.parametrize("kind", KINDS)
def test_exact_equals_finite_differences_and_double_backward(kind: str) -> None:
    model = build(kind)
    loss, params = make_loss(kind, model), parameters(model)
    support, query = rows(kind, 4, 1), rows(kind, 4, 2)
    inner = InnerLoop(steps=2, lr=0.1, memory="walk")
    found = meta_gradient(loss, params, support, query, inner)

    leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
    value = unrolled(loss, leaves, support, query, 2, lambda k, n: 0.1)
    expected = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    assert differ(found.grads, dict(zip(params, expected, strict=True))) < 1e-10

    # The derivative along a random direction in all parameters, of the whole function.
    g = torch.Generator().manual_seed(3)
    drawn = {n: torch.randn(p.shape, generator=g, dtype=F64) for n, p in params.items()}
    length = sum(float(t.square().sum()) for t in drawn.values()) ** 0.5
    along = {n: t / length for n, t in drawn.items()}

    def at(t: float) -> float:
        moved = {n: p + t * along[n] for n, p in params.items()}
        return float(loss(adapt(loss, moved, support, inner, last_inner_loss=False).params, query))

    # Some families compute norms and softmax in float32 whatever their dtype: differences see that rounding.
    h = 1e-3
    slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    assert slope == pytest.approx(
        sum(float((found.grads[n] * along[n]).sum()) for n in params), rel=1e-3 if kind in SINGLE else 1e-6
    )

    first = meta_gradient(loss, params, support, query, inner, "first_order")
    assert differ(first.grads, found.grads) > 0.2
    approximate = meta_gradient(loss, params, support, query, inner, "finite_difference")
    assert differ(approximate.grads, found.grads) < (5e-3 if kind in SINGLE else 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_task_axis_and_micro_batches(kind: str) -> None:
    """The head and one layer adapt; the rest is frozen inside the loss. vmap equals task by task."""
    model = build(kind)
    model.requires_grad_(False)
    tasks, loss, all_params = 2, make_loss(kind, model), parameters(model)
    chosen = [n for n in all_params if ".1." in n or "layers.1" in n or n == "head" or "decoder" in n]
    assert 1 < len(chosen) < len(all_params)
    params = {n: torch.stack([all_params[n], 0.9 * all_params[n]]) for n in chosen}
    support, query = rows(kind, 4, 1, tasks), rows(kind, 4, 2, tasks)
    split = [{n: t[:, a:b] for n, t in support.items()} for a, b in ((0, 1), (1, 4))]
    inner = InnerLoop(steps=2, lr=torch.tensor(0.2, dtype=F64), memory="walk")
    both = meta_gradient(loss, params, split, query, inner, task_axis=True)
    for t in range(tasks):
        one = meta_gradient(
            loss, task(params, t), task(support, t), task(query, t), InnerLoop(steps=2, lr=inner.lr, memory="unroll")
        )
        tolerance = 1e-6 if kind in SINGLE else 1e-10
        assert differ(task(both.grads, t), one.grads) < tolerance
        assert close(both.lr_grads[t], one.lr_grads, tolerance)  # type: ignore[index, arg-type]
