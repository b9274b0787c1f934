"""Many tasks at once are each task alone; padding and the attention kernel change nothing."""

import math

import numpy as np
import pytest
import small
import torch

from distmeta.models.backbone import set_attention
from distmeta.models.batch import to_batches
from distmeta.models.build import build_model
from distmeta.models.task_model import TaskModel
from distmeta.tasks.episodes.collate import collate

VOCABULARY, PAD, CLASSES = 40, 0, 3
NOT_T5_BIAS = r"(Attention\.[qkvo]\.|DenseReluDense|layer_norm|head_weight)"
CASES = [
    *[(kind, adapt) for kind in small.BACKBONES for adapt in ("all", "lora", "head", r"bias$|[nN]orm|ln_")],
    ("t5", NOT_T5_BIAS),
]


def build(kind: str, adapt: str = "all", head: str = "linear", seed: int = 0, **model) -> TaskModel:
    config = small.config(
        architecture=kind, inner={"adapt": adapt}, model={"head": head, "lora_rank": 2, **model}, run={"seed": seed}
    )
    return build_model(config, VOCABULARY, PAD, CLASSES).double()


def spread(fast: dict, tasks: int) -> dict:
    """Other values for each task, so that a task that meets another's weights shows."""
    generator = torch.Generator().manual_seed(1)
    noise = {n: torch.randn(tasks, *v.shape, generator=generator, dtype=v.dtype) for n, v in fast.items()}
    return {name: value.detach() + 0.05 * noise[name] for name, value in fast.items()}


def run(model, params, shared, batches):
    """(loss [T], logits [T, n, C] in the episodes' order, gradients of params and of shared)."""
    leaves = {n: v.clone().requires_grad_() for n, v in params.items()}
    also = {n: v.detach().clone().requires_grad_() for n, v in shared.items()}
    parts = to_batches(batches, "cpu", model.causal)
    loss = sum(model.loss({**also, **leaves}, part) for part in parts)
    places = torch.as_tensor(np.concatenate([b["rows"] for b in batches], 1))
    logits = torch.cat([model.logits({**also, **leaves}, part) for part in parts], 1)
    ordered = torch.empty_like(logits).scatter_(1, places.unsqueeze(-1).expand_as(logits), logits)
    inputs = {**leaves, **also}
    grads = torch.autograd.grad(loss.sum(), list(inputs.values()), materialize_grads=True)
    return loss.detach(), ordered.detach(), dict(zip(inputs, grads, strict=True))


@pytest.mark.parametrize(("kind", "adapt"), CASES)
def test_tasks_at_once_are_tasks_one_by_one(kind, adapt):
    model = build(kind, adapt)
    assert model.takes_task_axis == (not (kind == "t5" and adapt == "all"))  # T5's relative positions have no row axis
    assert model.fast and not set(model.fast) & set(model.shared)
    if not model.takes_task_axis:
        return
    tasks = small.rows([6] * 3, VOCABULARY, CLASSES, pad=PAD)
    params = spread(model.fast, 3)
    loss, logits, grads = run(model, params, model.shared, collate(tasks, 2, PAD))
    shared = {name: torch.zeros_like(value) for name, value in model.shared.items()}
    for t, task in enumerate(tasks):
        own = {name: value[t] for name, value in params.items()}
        one_loss, one_logits, one = run(model, own, model.shared, collate([task], 1, PAD))
        torch.testing.assert_close(loss[t], one_loss[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(logits[t], one_logits[0], rtol=1e-10, atol=1e-12)
        for name in params:
            torch.testing.assert_close(grads[name][t], one[name], rtol=1e-9, atol=1e-12, msg=name)
        for name in shared:
            shared[name] += one[name]
    for name, value in shared.items():
        torch.testing.assert_close(grads[name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert any(g.abs().max() > 1e-6 for g in grads.values())


@pytest.mark.parametrize("kind", small.BACKBONES)
def test_padding_changes_no_score(kind):
    model = build(kind)
    (task,) = small.rows([8], VOCABULARY, CLASSES)
    together = run(model, model.fast, model.shared, collate([task], 1, PAD))[1][0]
    padded = collate([task], 1, PAD, multiple=16)
    assert padded[0]["input_ids"].shape[-1] == 16
    near = {"rtol": 1e-6, "atol": 1e-8}  # Llama rounds its softmax to float32
    torch.testing.assert_close(run(model, model.fast, model.shared, padded)[1][0], together, **near)
    for i in range(8):
        tokens = task.tokens[task.offsets[i] : task.offsets[i + 1]]
        one = type(task)(tokens, np.array([0, len(tokens)]), task.labels[i : i + 1], np.array([0]))
        alone = collate([one], 1, PAD)
        assert alone[0]["attention_mask"].all()
        torch.testing.assert_close(run(model, model.fast, model.shared, alone)[1][0, 0], together[i], **near)


@pytest.mark.parametrize("kind", small.BACKBONES)
def test_a_token_counts_and_a_decoder_pools_the_last(kind):
    """Without this the tests above would pass for a model that sees nothing."""
    model = build(kind)
    (task,) = small.rows([6], VOCABULARY, CLASSES)
    before = run(model, model.fast, model.shared, collate([task], 1, PAD))[1]
    for place in (task.offsets[1:] - 1, task.offsets[:-1]):  # each row's last token, each row's first
        tokens = task.tokens.copy()
        tokens[place] = (tokens[place] - 4) % (VOCABULARY - 5) + 5
        other = type(task)(tokens, task.offsets, task.labels, task.rows)
        after = run(model, model.fast, model.shared, collate([other], 1, PAD))[1]
        assert ((after - before).abs().amax(-1) > 1e-9).all()
    assert model.pooling == ("last" if kind in ("gpt2", "llama", "qwen2", "lstm") else "mean")


@pytest.mark.parametrize("kind", [kind for kind in small.BACKBONES if kind != "lstm"])
def test_attention_kernels_agree(kind):
    model = build(kind).float()
    batches = collate(small.rows([6], VOCABULARY, CLASSES), 2, PAD)
    assert set_attention(model.backbone, "exact").startswith("eager" if kind == "t5" else "distmeta")
    eager = run(model, model.fast, model.shared, batches)
    fused = set_attention(model.backbone, "first_order")
    assert fused == "sdpa"
    sdpa = run(model, model.fast, model.shared, batches)
    torch.testing.assert_close(sdpa[1], eager[1], rtol=1e-5, atol=1e-6)
    for name, grad in eager[2].items():
        torch.testing.assert_close(sdpa[2][name], grad, rtol=1e-4, atol=1e-6, msg=name)


def test_features_of_one_length_under_a_linear_head():
    """A decoder's states may be as long as they like: the scores of a head on them begin near chance."""
    model = build("llama", "all", distance="cosine")
    (batch,) = to_batches(collate(small.rows([9] * 2, VOCABULARY, CLASSES), 1, PAD), "cpu", model.causal)
    x = model.features(model.fast, batch)
    torch.testing.assert_close(x.norm(dim=-1), torch.full_like(x[..., 0], 8.0))
    assert float(model.loss({**model.fast, **model.shared}, batch).mean()) < 1.1 * math.log(CLASSES)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_prototype_head_is_the_nearest_class_mean(kind, distance):
    model = build(kind, "all", head="prototype", distance=distance)
    assert set(model.shared) == {"head_log_scale"} and "head_log_scale" not in model.fast
    support, query = (collate(small.rows([9] * 2, VOCABULARY, CLASSES, seed=s), 0, PAD) for s in (0, 1))
    support, query = (to_batches(part, "cpu", model.causal) for part in (support, query))
    values = {**model.shared, "head_log_scale": torch.tensor(-0.3, dtype=torch.float64)}
    params = {**values, **model.fast}
    head = model.start(params, support)
    for t in range(2):
        x = torch.cat([model.features(params, b)[t] for b in support])
        y = torch.cat([b.labels[t] for b in support])
        q = torch.cat([model.features(params, b)[t] for b in query])
        assert (distance == "cosine") == torch.allclose(x.norm(dim=1), torch.ones_like(x[:, 0]))
        centres = torch.stack([x[y == c].mean(0) for c in range(CLASSES)])
        expected = (-np.exp(-0.3) * torch.cdist(q, centres).pow(2)).log_softmax(-1)
        found = torch.cat([model.logits({**params, **head}, b)[t] for b in query]).log_softmax(-1)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
