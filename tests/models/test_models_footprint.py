"""Memory: what a step's graph takes is measured, and decides how many rows run at once and which layers run again."""

import numpy as np
import pytest
import small
import torch

from distmeta.evaluation import scoring
from distmeta.evaluation.scoring import tasks_at_once
from distmeta.models import footprint
from distmeta.models.backbone import set_attention
from distmeta.models.build import build_model
from distmeta.models.footprint import fit_layers, graph_bytes, part_tokens, token_bytes
from distmeta.tasks.rows import Episode, Rows

VOCABULARY, PAD, CLASSES, CPU = 40, 0, 3, torch.device("cpu")


def made(layers=6, **inner):
    shape = {**small.BACKBONES["llama"], "num_hidden_layers": layers}
    config = small.config(
        architecture="llama", model={"config": shape}, inner={"adapt": "lora", **inner}, outer={"base": "freeze"}
    )
    model = build_model(config, VOCABULARY, PAD, CLASSES)
    set_attention(model.backbone, "exact")
    return model, config


def batch_of(model, rows):
    length = model.longest_row().input_ids.shape[1]
    ids = np.random.default_rng(0).integers(2, VOCABULARY, (1, rows, length))
    zeros = np.zeros((1, rows), np.int64)
    part = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": zeros, "store_rows": zeros, "total": rows}
    (batch,) = model.batches([part], CPU)
    return batch


@pytest.mark.parametrize("exact", [False, True])
def test_a_row_s_price_is_that_of_many(exact):
    model, _ = made()
    batch = batch_of(model, 50)
    price = token_bytes(model, exact, again=False)
    assert graph_bytes(model, batch, exact) == pytest.approx(price * batch.tokens, rel=0.15)
    assert token_bytes(model, True, again=False) > 2 * token_bytes(model, False, again=False)


@pytest.mark.parametrize("exact", [False, True])
def test_as_many_layers_run_again_as_the_budget_asks_for(exact):
    counts = []
    for share in (2.0, 0.7, 0.5, 0.01):
        model, _ = made()
        batch = batch_of(model, 50)
        budget = share * token_bytes(model, exact, again=False) * batch.tokens
        config = small.config(architecture="llama", inner={"budget_mb": budget / 2**20})
        counts.append(fit_layers(model, config, CPU, [batch], exact))
        assert model.layers.recomputed == counts[-1]
        if 0 < counts[-1] < 6:
            assert graph_bytes(model, batch, exact) < 1.1 * budget
    none, few, more, every = counts
    assert none == 0 < few < more < every == 6


def test_plenty_of_memory_leaves_layers_alone_and_other_settings_are_kept():
    model, config = made()
    assert fit_layers(model, config, CPU, [batch_of(model, 50)], True) == 0
    for memory, layers in (("walk", 0), ("layers", 6)):
        model, config = made(memory=memory, budget_mb=1e-6)
        assert fit_layers(model, config, CPU, [batch_of(model, 50)], True) == layers


def test_parts_are_of_as_many_tokens_as_the_budget_has_room_for(monkeypatch):
    model, config = made()
    assert part_tokens(model, config, CPU, True) == footprint.CPU_TOKENS
    price = token_bytes(model, True, again=False)
    for tokens, expected in ((700.5, 700), (3, footprint.LEAST_TOKENS)):
        limited = small.config(architecture="llama", inner={"budget_mb": tokens * price / 2**20})
        assert part_tokens(model, limited, CPU, True) == expected
    assert part_tokens(model, small.config(inner={"part_tokens": 77}), CPU, True) == 77


def test_nothing_drawn_and_no_gradient_stays_of_the_measurement():
    model, _ = made()
    model.train()
    before = torch.get_rng_state()
    token_bytes(model, True, again=True)
    assert torch.equal(before, torch.get_rng_state()) and model.training and model.layers.recomputed == 0
    assert all(p.grad is None for p in model.parameters())


def test_fewer_tasks_run_at_once_where_a_row_of_each_is_too_much():
    model, config = made()
    episodes = [of_rows(4, 11) for _ in range(8)]
    assert tasks_at_once(model, config, episodes, CPU, exact=True) == 16
    price = token_bytes(model, True, again=False)
    limited = small.config(architecture="llama", inner={"adapt": "lora", "budget_mb": 300 * price / 2**20})
    assert tasks_at_once(model, limited, episodes, CPU, exact=True) == 16  # 11 tokens of each
    longer = [of_rows(4, 100) for _ in range(8)]
    assert tasks_at_once(model, config, longer, CPU, exact=True) == 5
    assert tasks_at_once(model, limited, longer, CPU, exact=True) == 3


def test_fewer_tasks_run_at_once_where_their_weights_are_too_much():
    shape = {**small.BACKBONES["llama"], "hidden_size": 64, "intermediate_size": 256}
    more = {"architecture": "llama", "model": {"config": shape}}
    model = build_model(small.config(**more), VOCABULARY, PAD, CLASSES)
    copy = sum(value.nbytes for value in model.fast.values())
    for tasks in (1, 5):
        budget = (tasks + 0.5) * copy * (2 + scoring.WEIGHT_COPIES)  # of two inner steps
        config = small.config(**more, inner={"budget_mb": budget / 2**20, "steps": 2, "part_tokens": 4096})
        assert tasks_at_once(model, config, [of_rows(4, 11) for _ in range(8)], CPU, exact=True) == tasks


def of_rows(rows, length):
    rng = np.random.default_rng(0)
    offsets, labels = np.arange(rows + 1) * length, np.zeros(rows, np.int64)
    part = Rows(rng.integers(2, VOCABULARY, rows * length).astype(np.int32), offsets, labels, labels)
    return Episode(0, "task", ("a", "b", "c"), part, part)
