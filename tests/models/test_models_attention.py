"""Attention for exact orders: transformers' own numbers, in one block or several, and their second derivatives."""

import pytest
import small
import torch
from transformers.models.t5 import modeling_t5

from distmeta.models import attention as own
from distmeta.models.build import build_model
from distmeta.models.task_model import TaskModel

N, H, G, L, D = 2, 4, 2, 11, 3


class Module(torch.nn.Module):
    num_key_value_groups = H // G


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (N, H, L, D), (N, G, L, D), (N, G, L, D)
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


def masks():
    low = torch.finfo(torch.float64).min
    future = torch.full((L, L), low, dtype=torch.float64).triu_(1)[None, None]
    padded = torch.zeros(N, 1, 1, L, dtype=torch.float64)
    padded[1, ..., -3:] = low
    return {"none": None, "padded": padded, "causal": future, "both": torch.minimum(future, padded)}


def reference(query, key, value, mask):
    key, value = (x.repeat_interleave(H // G, 1) for x in (key, value))
    scores = query @ key.mT * D**-0.5
    return (torch.softmax(scores if mask is None else scores + mask, -1) @ value).transpose(1, 2)


def derivatives(function, mask):
    """The output, its gradients, and the gradients of a product of these."""
    inputs = tensors()
    generator = torch.Generator().manual_seed(1)
    out = function(*inputs, mask)
    first = torch.autograd.grad((out * torch.randn(out.shape, generator=generator)).sum(), inputs, create_graph=True)
    loss = sum((g * torch.randn(g.shape, generator=generator)).sum() for g in first)
    return out, *first, *torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("block", [4, 11, 128])
@pytest.mark.parametrize("name", ["none", "padded", "causal", "both"])
def test_numbers_and_two_derivatives_are_those_of_plain_attention(name, block):
    mask = masks()[name]
    expected = derivatives(reference, mask)
    causal = name in ("causal", "both")
    found = derivatives(lambda *x: own.attention(Module(), *x, causal=causal, block=block)[0], mask)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_in_blocks_no_matrix_of_the_length_squared_is_kept():
    kept = []
    query, key, value = tensors()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        out = own.attention(Module(), query, key, value, causal=True, block=4)[0]
        torch.autograd.grad(out.sum(), (query, key, value), create_graph=True)
    assert max(kept) < N * H * L * L
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        own.attention(Module(), query, key, value, causal=True, block=128)
    assert max(kept) == N * H * L * L


def test_no_future_key_is_read_by_a_causal_block():
    query, key, value = tensors()
    before = own.attention(Module(), query, key, value, causal=True, block=4)[0]
    with torch.no_grad():
        key[:, :, 8:], value[:, :, 8:] = float("nan"), float("nan")
    after = own.attention(Module(), query, key, value, causal=True, block=4)[0]
    assert torch.equal(before[:, :8], after[:, :8]) and bool(after[:, 8:].isnan().all())


@pytest.mark.parametrize(("kind", "name"), [
    ("llama", "distmeta_causal_128"), ("gpt2", "distmeta_causal_128"), ("bert", "distmeta_128"), ("t5", "eager"),
])  # fmt: skip
def test_a_model_takes_it_for_exact_orders_where_its_states_are_the_same(kind, name):
    model = build_model(small.config(architecture=kind), 40, 0, 3)
    if kind != "t5" or hasattr(modeling_t5, "eager_attention_forward"):  # which of old calls no kernel by its name
        assert getattr(model.backbone, "exact_attention", "eager") == name
    assert model.backbone.config._attn_implementation == "eager"


def test_a_model_whose_states_would_be_others_keeps_its_own(monkeypatch):
    attend = own.attend
    monkeypatch.setattr(own, "attend", lambda *args: 1.01 * attend(*args))
    model = build_model(small.config(architecture="llama"), 40, 0, 3)
    assert isinstance(model, TaskModel) and not hasattr(model.backbone, "exact_attention")
