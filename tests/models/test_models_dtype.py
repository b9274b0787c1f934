"""model.dtype: products in bfloat16, meta-parameters and their gradients in float32, at every order."""

import pytest
import small
import torch

from distmeta.config.algorithms import load_algorithm
from distmeta.learner.gradients import meta_gradients
from distmeta.models.build import build_model
from distmeta.tasks.build import build_store
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
