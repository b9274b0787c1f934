"""model.dtype: products in bfloat16, meta-parameters and their gradients in float32, at every order."""

import pytest
import small
import test_models_language as language
import torch

from distmeta.config.algorithms import load_algorithm
from distmeta.inner import InnerLoop
from distmeta.learner.gradients import group_gradient, meta_gradients
from distmeta.models.backbone import set_attention
from distmeta.models.build import build_model
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store


@pytest.mark.parametrize("architecture", small.BACKBONES)
@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
def test_bfloat16_is_float32_to_its_precision(architecture, algorithm, words_csv):
    found = []
    for dtype in ("float32", "bfloat16"):
        config = small.config(
            words_csv, architecture, algorithm=algorithm, model={"dtype": dtype}, inner={"adapt": "lora"},
            outer={"base": "freeze"},
        )  # fmt: skip
        store = open_store(build_store(config.data, config.task, config.model))
        model = build_model(config, store.vocab_size, store.pad_id, len(store.labels))
        frozen = {p.dtype for n, p in model.named_parameters() if n not in model.fast and p.dim() > 1}
        assert frozen == {getattr(torch, dtype)}
        generator = torch.Generator().manual_seed(0)
        meta = {n: v + 0.05 * torch.randn(v.shape, generator=generator) for n, v in (model.fast | model.shared).items()}
        episodes = [sample_episode(store, config.task, 0, "train", i) for i in range(4)]
        grads, sums = meta_gradients(
            model, meta, load_algorithm(algorithm), config, store, episodes, 1, torch.device("cpu")
        )
        assert {g.dtype for g in grads.values()} == {torch.float32}
        found.append((torch.cat([g.flatten() for g in grads.values()]), sums[0]))
    (exact, loss), (rough, rough_loss) = found
    assert rough_loss == pytest.approx(loss, rel=5e-3)
    assert not torch.equal(exact, rough)
    assert float((exact - rough).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("memory", ["walk", "layers"])
@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_of_language_models_too(kind, algorithm, memory):
    """Near the gradient in float64, whose difference from float32 is nothing beside bfloat16's."""
    found = {}
    for dtype in (torch.float64, torch.bfloat16):
        name = "bfloat16" if dtype is torch.bfloat16 else "float32"
        config = language.configured(
            kind, model={"dtype": name}, algorithm=algorithm, inner={"adapt": "lora", "memory": memory},
            outer={"base": "freeze"},
        )  # fmt: skip
        model = build_model(config, language.VOCABULARY, language.PAD, 1)
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        model = model.double() if wide is torch.float64 else model
        generator = torch.Generator().manual_seed(0)
        fast = {n: (v + 0.1 * torch.randn(v.shape, generator=generator)).to(wide) for n, v in model.fast.items()}
        set_attention(model.backbone, load_algorithm(algorithm).ORDER)
        sets = [model.batches(collate(language.texts(1, seed=s), 1, language.PAD), "cpu") for s in (0, 1)]
        loop = InnerLoop(steps=2, lr=0.1, memory="walk")
        result, grads = group_gradient(model, fast, {}, load_algorithm(algorithm), loop, tuple(sets), ["a"])
        assert {g.dtype for g in grads.values()} == {wide}
        found[dtype] = torch.cat([g.flatten().double() for g in grads.values()]), float(result.loss)
    (exact, loss), (rough, rough_loss) = found.values()
    assert rough_loss == pytest.approx(loss, rel=5e-3)
    assert 1e-5 < float((exact - rough).norm() / exact.norm()) < 0.05
