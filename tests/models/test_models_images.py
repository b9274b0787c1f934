"""Models of images: the convolutional network, transformers' own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

from distmeta.config import make_config
from distmeta.errors import InputError
from distmeta.evaluation.scoring import Scoring, score_episodes
from distmeta.export.arrays import write_arrays
from distmeta.inner import InnerLoop, meta_gradient
from distmeta.models.arrays import without_running_statistics
from distmeta.models.build import build_model
from distmeta.tasks.rows import Episode, Rows

SIZE = (1, 8, 8)
VIT = {"architecture": "vit", "config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                                         "intermediate_size": 32, "patch_size": 4}}  # fmt: skip
CONV4 = {"architecture": "conv4", "config": {"hidden_size": 12, "num_hidden_layers": 2}}
RESNET = {"architecture": "resnet", "config": {"depths": [1], "hidden_sizes": [8], "embedding_size": 8,
                                               "downsample_in_first_stage": False}}  # fmt: skip
BATCH = {"config": {"hidden_size": 12, "num_hidden_layers": 2, "norm": "batch"}}


def config(model=CONV4, **sections):
    base = {"model": {"image": list(SIZE), **model}, "task": {"ways": 3, "shots": 1, "queries": 2},
            "inner": {"lr": 0.3, "steps": 2}}  # fmt: skip
    return make_config({**base, **sections})


def build(model=CONV4, **sections):
    return build_model(config(model, **sections), 257, 256, 3).double()


def part(seed, tasks=1, n=6):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 256, (tasks, n, 64))
    rows = np.tile(np.arange(n), (tasks, 1))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": rows % 3, "rows": rows, "store_rows": rows,
            "total": n}  # fmt: skip


def batches(model, *seeds, tasks=1):
    return [model.batches([part(seed, tasks)], "cpu") for seed in seeds]


def test_conv4_is_convolutions_of_stride_two():
    model = build()
    (batch,) = batches(model, 0)[0]
    states = F.layer_norm(batch.input_ids.view(-1, *SIZE).double() / 127.5 - 1, SIZE)
    for block in model.backbone.layers:
        weight = block.conv.weight.view(12, -1, 3, 3)
        states = F.conv2d(states, weight, stride=2, padding=1)
        states = F.relu(F.group_norm(states, 1, block.norm.weight, block.norm.bias))
    expected = states.mean((2, 3)).view(1, 6, -1)
    torch.testing.assert_close(model.features({**model.fast, **model.shared}, batch), expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_takes_the_statistics_of_each_task_s_set_and_no_others():
    model = build(BATCH)
    (both,) = batches(model, 0, tasks=2)[0]
    params = {**model.fast, **model.shared}
    found = model.features(params, both)
    for t in range(2):
        states = F.layer_norm(both.input_ids.view(2, -1, *SIZE)[t].double() / 127.5 - 1, SIZE)
        for block in model.backbone.layers:
            states = F.conv2d(states, block.conv.weight.view(12, -1, 3, 3), stride=2, padding=1)
            states = F.relu(F.batch_norm(states, None, None, block.norm.weight, block.norm.bias, training=True))
        torch.testing.assert_close(found[t], states.mean((2, 3)), rtol=1e-4, atol=1e-5)
    beside = model.logits(params, both.of_rows(torch.tensor([0, 1, 2])))[0, 0]
    assert (beside - model.logits(params, both)[0, 0]).abs().max() > 1e-3  # of other images, other scores


@pytest.mark.parametrize("model", [BATCH, RESNET])
@pytest.mark.parametrize("adapt_what", ["all", "head"])
def test_a_model_with_batch_norm_reads_a_set_whole_whatever_runs_together(model, adapt_what):
    c = config(model, inner={"adapt": adapt_what, "steps": 1, "lr": 0.1})
    model = build_model(c, 257, 256, 3)
    assert model.reads_sets and model.entry == 0 and model.takes_task_axis == (c.model.architecture == "conv4")
    rng = np.random.default_rng(0)

    def rows(n):
        tokens = rng.integers(0, 256, n * 64).astype(np.int32)
        return Rows(tokens, np.arange(0, n * 64 + 1, 64), np.arange(n) % 3, np.arange(n))

    episodes = [Episode(i, "task", ("a", "b", "c"), rows(6), rows(9)) for i in range(3)]
    tiny = c.model_copy(update={"inner": c.inner.model_copy(update={"part_tokens": 64})})
    scoring = Scoring(model, model.fast, model.shared, InnerLoop(steps=1, lr=0.1), tiny, 256, torch.device("cpu"))
    together = score_episodes(scoring, episodes)
    alone = [score_episodes(scoring, [episode])[0] for episode in episodes]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.confidence, other.confidence, rtol=1e-4)


@pytest.mark.parametrize("model", [CONV4, VIT])
def test_an_image_s_scores_are_its_own(model):
    model = build(model)
    (batch,) = batches(model, 0)[0]
    params = {**model.fast, **model.shared}
    alone = model.logits(params, batch.of_rows(torch.tensor([3])))
    torch.testing.assert_close(alone[0, 0], model.logits(params, batch)[0, 3])


def test_vit_is_transformers_own():
    model = build(VIT)
    (batch,) = batches(model, 0)[0]
    pixels = (batch.input_ids.view(-1, *SIZE).double() / 255 - 0.5) / 0.5
    expected = model.backbone(pixel_values=pixels.float().double()).last_hidden_state.mean(1)
    torch.testing.assert_close(model.features({**model.fast, **model.shared}, batch)[0], expected)


@pytest.mark.parametrize(
    ("model", "adapt_what"),
    [(CONV4, "all"), (CONV4, "lora"), (BATCH, "all"), (RESNET, "all"), (VIT, "all"), (VIT, "head")],
)
def test_the_exact_meta_gradient_is_that_of_the_loss_after_adaptation(model, adapt_what):
    model = build({**model, "lora_targets": "all-linear"}, inner={"adapt": adapt_what, "steps": 2, "lr": 0.3})
    support, query = batches(model, 1, 2)
    shared = {name: value.detach() for name, value in model.shared.items()}
    fast = {name: value.detach() + 0.01 for name, value in model.fast.items()}
    loop = InnerLoop(steps=2, lr=0.3)

    def after(params):
        return meta_gradient(lambda p, b: model.loss(p, b).sum(), params, support, query, loop, "exact", shared=shared)

    found = after(fast)
    generator = torch.Generator().manual_seed(0)
    direction = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in fast.items()}
    ends = [after({n: v + e * direction[n] for n, v in fast.items()}).loss for e in (1e-6, -1e-6)]
    along = sum((found.grads[n] * direction[n]).sum() for n in fast)
    torch.testing.assert_close(along, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-8)


def test_tasks_with_weights_of_their_own_run_together():
    model = build()
    assert model.takes_task_axis
    (both,) = batches(model, 3, tasks=2)[0]
    own = [{n: v + 0.1 * t for n, v in model.fast.items()} for t in range(2)]
    found = model.logits({**model.shared, **{n: torch.stack([w[n] for w in own]) for n in own[0]}}, both)
    for t in range(2):
        whole = part(3, 2)
        alone = {n: v[t : t + 1] if isinstance(v, np.ndarray) else v for n, v in whole.items()}
        expected = model.logits({**model.shared, **own[t]}, model.batches([alone], "cpu")[0])
        torch.testing.assert_close(found[t], expected[0])


@pytest.mark.parametrize("model", [VIT, RESNET, {**CONV4, "lora_targets": "all-linear"}])
def test_an_export_is_the_transformers_directory_of_the_model(model, tmp_path):
    c = config(model, inner={"adapt": "lora" if "lora_targets" in model else "all"})
    model = build_model(c, 257, 256, 3)
    values = {n: v.detach() + 0.02 * torch.randn_like(v) for n, v in {**model.fast, **model.shared}.items()}
    write_arrays(model, values, c, {"head_weight": values["head_weight"]}, {"labels": None}, tmp_path)
    plain = AutoModel.from_pretrained(tmp_path)
    if model.reads_sets:
        without_running_statistics(plain)
    (batch,) = batches(model, 0)[0]
    states = plain(pixel_values=batch.input_ids.view(-1, *SIZE).float() / 127.5 - 1).last_hidden_state
    expected = states.mean((2, 3)) if states.dim() == 4 else states.mean(1)
    torch.testing.assert_close(model.features(values, batch)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model", "why"), [
    ({"architecture": "bert"}, "bert takes no images"),
    ({"config": {"norm": "group"}}, "norm = group: layer or batch"),
])  # fmt: skip
def test_a_model_that_cannot_read_images_is_refused(model, why):
    with pytest.raises(InputError, match=why):
        build(model)
