"""Reading documents: scores against a plain loop over a transformers model, and the meta-gradient of their sum."""

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from torch.func import functional_call

from distmeta.algorithms.rates import inner_loop
from distmeta.bench.check import check_meta_gradient, small_version
from distmeta.config.algorithms import load_algorithm
from distmeta.evaluation.evaluate import evaluate_methods
from distmeta.evaluation.reading import (
    passage_of,
    score_documents,
    score_long_context,
    scored_bytes,
)
from distmeta.evaluation.scoring import Scoring
from distmeta.learner.gradients import meta_gradients
from distmeta.models.backbone import set_attention
from distmeta.models.build import build_model
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store
from distmeta.tasks.tokenizer import load_tokenizer

TASK = {"family": "document", "chunks": 4, "chunk_tokens": 6, "context_tokens": 5, "shots": 5, "queries": 10}


def config_of(adapt="mlp", algorithm="maml", **inner):
    return small.config(
        None, "gpt2", task=TASK, algorithm=algorithm, model={"max_tokens": 11},
        inner={"steps": 3, "lr": 0.3, "adapt": adapt, "clip": 1.0} | inner, outer={"base": "freeze"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def made():
    config = config_of()
    store = open_store(build_store(config.data, config.task, config.model))
    episodes = [sample_episode(store, config.task, 0, "test", i) for i in range(5)]
    return config, store, episodes


def model_of(config, store):
    model = build_model(config, store.vocab_size, store.pad_id, 1)
    for value in (*model.fast.values(), *model.parameters()):
        value.data = value.data.double()
    return model


def scoring_of(model, config, store):
    return Scoring(
        model, model.fast, model.shared, inner_loop(config.inner, {}), config, store.pad_id, torch.device("cpu")
    )


def plain(model, config, episode, params):
    """(nll of every scored token, chunk by chunk, as one graph in params): a loop over the ordinary model."""
    tokens, task = torch.as_tensor(passage_of(episode), dtype=torch.int64), config.task
    set_attention(model.backbone, "exact")
    everything = {n: p.detach() for n, p in model.named_parameters()}
    fast, losses = dict(params), []
    for k in range(task.chunks):
        begin = k * task.chunk_tokens
        row = tokens[max(0, begin - task.context_tokens) : begin + task.chunk_tokens]
        scored = task.chunk_tokens - (k == 0)
        named = {n.removeprefix("backbone."): v for n, v in {**everything, **fast}.items() if n.startswith("backbone.")}
        states = functional_call(model.backbone, named, (row[None],), {"use_cache": False}).last_hidden_state[0]
        logits = states @ named["wte.weight"].T
        nll = F.cross_entropy(logits[:-1], row[1:], reduction="none")[-scored:]
        losses.append(nll)
        if k == task.chunks - 1:
            return losses
        grads = torch.autograd.grad(nll.mean(), list(fast.values()), create_graph=True)
        norm = torch.sqrt(sum((g * g).sum() for g in grads))
        scale = torch.clamp(config.inner.clip / norm, max=1.0)
        fast = {n: v - config.inner.lr * scale * g for (n, v), g in zip(fast.items(), grads, strict=True)}
    raise AssertionError


def test_every_token_is_scored_before_the_step_on_it(made):
    config, store, episodes = made
    model = model_of(config, store)
    scored = score_documents(scoring_of(model, config, store), episodes, store=store)
    for one, episode in zip(scored, episodes, strict=True):
        params = {n: v.detach().requires_grad_() for n, v in model.fast.items()}
        expected = torch.cat(plain(model, config, episode, params)).detach().numpy()
        np.testing.assert_allclose(one.nll, expected, rtol=1e-6)
        assert one.chunk.tolist() == [0] * 5 + [1] * 6 + [2] * 6 + [3] * 6


def test_without_steps_and_with_a_long_context(made):
    config, store, episodes = made
    model = build_model(config, store.vocab_size, store.pad_id, 1)  # torch's fused kernel: float64 and a float32 mask
    scoring = scoring_of(model, config, store)
    still = score_documents(scoring.without_steps, episodes, store=store)
    whole = score_long_context(scoring, episodes, store=store)
    tokens = torch.as_tensor(passage_of(episodes[0]), dtype=torch.int64)
    states = model.backbone(tokens[None]).last_hidden_state[0]
    expected = F.cross_entropy((states @ model.backbone.wte.weight.T)[:-1], tokens[1:], reduction="none")
    np.testing.assert_allclose(whole[0].nll, expected.detach().numpy(), rtol=1e-4)
    np.testing.assert_allclose(still[0].nll[:5], expected[:5].detach().numpy(), rtol=1e-4)  # all that comes before it
    assert abs(still[0].nll[11:] - expected[11:].detach().numpy()).max() > 1e-4


def test_bits_are_per_byte_of_what_is_scored(made):
    from tokenizers import Tokenizer, decoders, models

    pieces = Tokenizer(models.BPE({"▁ab": 0, "▁é": 1, "d": 2}, []))
    pieces.decoder = decoders.Metaspace()
    assert scored_bytes(pieces, [0, 1, 2]) == len(" éd".encode())
    config, store, episodes = made
    scored = score_documents(scoring_of(model_of(config, store), config, store), episodes[:1], store=store)[0]
    words = load_tokenizer(store.tokenizer_file).decode(passage_of(episodes[0]).tolist())
    assert scored.bytes == len(words.partition(" ")[2]) + 1
    assert scored.metrics()["bits_per_byte"] == pytest.approx(scored.nll.sum() / np.log(2) / scored.bytes)


@pytest.mark.parametrize("memory", ["walk", "unroll", "layers"])
def test_the_meta_gradient_is_of_the_mean_over_chunks(made, memory):
    config, store, episodes = made
    config = config_of(memory=memory)
    model = model_of(config, store)
    grads, sums = meta_gradients(
        model, dict(model.fast), load_algorithm("maml"), config, store, episodes, 1, torch.device("cpu")
    )
    params = {n: v.detach().requires_grad_() for n, v in model.fast.items()}
    means = [torch.stack([nll.mean() for nll in plain(model, config, e, params)]).mean() for e in episodes]
    total = torch.stack(means).sum()
    expected = torch.autograd.grad(total, list(params.values()))
    assert sums[0] == pytest.approx(total.item(), rel=1e-6)
    for (name, grad), one in zip(grads.items(), expected, strict=True):
        assert float((grad - one).norm()) < 1e-6 * float(one.norm()), name
    assert len(sums) == 2 + config.task.chunks


def test_layers_below_the_lowest_adapted_one_change_nothing(made):
    _, store, episodes = made
    results = []
    for adapt in ("h[.]1[.]mlp", "last_quarter_mlp"):
        config = config_of(adapt)
        model = model_of(config, store)
        assert model.entry == 1
        results.append(meta_gradients(
            model, dict(model.fast), load_algorithm("maml"), config, store, episodes, 1, torch.device("cpu")
        ))  # fmt: skip
        params = {n: v.detach().requires_grad_() for n, v in model.fast.items()}
        means = [torch.stack([nll.mean() for nll in plain(model, config, e, params)]).mean() for e in episodes]
        expected = torch.autograd.grad(torch.stack(means).sum(), list(params.values()))
        for (name, grad), one in zip(results[-1][0].items(), expected, strict=True):
            assert float((grad - one).norm()) < 1e-6 * float(one.norm()), name
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("algorithm", ["fomaml", "reptile", "multi_task", "finite_difference", "fine_tune"])
def test_every_algorithm_reads(made, algorithm):
    _, store, episodes = made
    config = config_of(algorithm=algorithm)
    model = model_of(config, store)
    module = load_algorithm(algorithm)
    grads, sums = meta_gradients(model, dict(model.fast), module, config, store, episodes, 1, torch.device("cpu"))
    params = {n: v.detach().requires_grad_() for n, v in model.fast.items()}
    if algorithm == "multi_task":  # the same sum, without a step
        still = config.model_copy(update={"inner": config.inner.model_copy(update={"lr": 1e-30})})
        means = [torch.stack([nll.mean() for nll in plain(model, still, e, params)]).mean() for e in episodes]
        total = torch.stack(means).sum()
        expected = torch.autograd.grad(total, list(params.values()))
        assert sums[0] == pytest.approx(total.item(), rel=1e-6)
        for (name, grad), one in zip(grads.items(), expected, strict=True):
            assert float((grad - one).norm()) < 1e-5 * float(one.norm()), name
    moved = sum(float(g.abs().sum()) for g in grads.values())
    assert (moved > 0) == (algorithm != "fine_tune")


def test_the_table_has_every_method(made):
    config, store, _ = made
    config = config.model_copy(update={"eval": config.eval.model_copy(update={"episodes": 6})})
    model = build_model(config, store.vocab_size, store.pad_id, 1)
    meta = {n: v.clone() for n, v in (model.fast | model.shared).items()}
    result = evaluate_methods(model, meta, store, config, torch.device("cpu"))
    assert list(result.methods) == ["meta_trained", "no_adaptation", "naive", "long_context", "meta_trained_no_steps"]
    for scores in result.methods.values():
        assert set(scores) == {"loss", "perplexity", "bits_per_byte", "token_accuracy", "loss_by_chunk"}
        assert len(scores["loss_by_chunk"]["curve"]) == config.task.chunks
    assert len(result.details["meta_trained"]["by_position"]) == config.task.passage_tokens - 1
    assert result.details["differences"]["naive"]["loss"]["documents"] == 6
    assert result.details["naive"]["tried"]


@pytest.mark.parametrize(("architecture", "optimizer"), [("gpt2", "adam"), ("llama", "momentum")])
def test_finite_differences_agree_with_the_summed_objective(architecture, optimizer):
    """In float64, along random directions of the initial weights, of what is shared, and of the learnt rates."""
    config = small.config(
        None, architecture, task=TASK, model={"max_tokens": 11}, outer={"base": "train"},
        inner={"steps": 3, "lr": 0.05, "adapt": "mlp", "clip": 0.5, "learn_lr": "per_layer", "optimizer": optimizer},
    )  # fmt: skip
    store = open_store(build_store(config.data, config.task, config.model))
    found = check_meta_gradient(small_version(config, 2), store)
    assert [finding.verdict for finding in found] == ["exact second order"] * 3
    assert all(finding.error < 2e-7 for finding in found), found  # what is left is the differences' own
