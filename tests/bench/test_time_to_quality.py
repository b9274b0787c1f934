"""Time to quality: the plain scripts compute what distmeta computes, and the watch counts what it should."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small
import torch

from distmeta.algorithms.rates import initial_log_rates, inner_loop
from distmeta.config.algorithms import load_algorithm
from distmeta.evaluation.scoring import Scoring, score_episodes, split_meta
from distmeta.learner.gradients import meta_gradients
from distmeta.models.build import build_model
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import plain_intents
    import time_to_quality

    return plain_intents, time_to_quality


@pytest.fixture(scope="module")
def intents(tmp_path_factory):
    """A tiny BERT with its tokenizer, as a directory, and 12 classes in a CSV; the recipe's configuration for them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("intents")
    rng = random.Random(0)
    lines = ["text,label"]
    lines += [
        f"{' '.join(rng.sample(small.PLENTY, rng.randint(1, 5)))} {word},{word}"
        for word in (f"w{i}" for i in range(12))
        for _ in range(8)
    ]
    (place / "data.csv").write_text("\n".join(lines) + "\n")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *small.PLENTY, *(f"w{i}" for i in range(12))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        place / "model"
    )
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), **{**small.BACKBONES["bert"], "num_hidden_layers": 2})).save_pretrained(
        place / "model"
    )
    splits = {
        name: [f"w{i}" for i in range(4 * n, 4 * n + 4)] for n, name in enumerate(("train", "validation", "test"))
    }
    return small.config(
        place / "data.csv",
        model={"pretrained": str(place / "model"), "head": "prototype", "max_tokens": 32},
        data={"splits": splits}, task={"family": "classes", "ways": 3, "shots": 1, "queries": 4},
        inner={"adapt": "lora", "learn_lr": "per_layer", "lr": 0.3, "steps": 3},
        outer={"until": "accuracy>=0.99", "steps": 3}, eval={"every": 2, "validation_episodes": 6},
    )  # fmt: skip


@pytest.mark.parametrize("peer", ["hand-written", "higher"])
def test_a_plain_script_has_distmetas_meta_gradient_and_accuracy(peer, scripts, intents):
    if peer == "higher":
        pytest.importorskip("higher")
    plain, _ = scripts
    config, cpu = intents, torch.device("cpu")
    store = open_store(build_store(config.data, config.task, config.model))
    model = build_model(config, store.vocab_size, store.pad_id, 3)
    module = plain.Classifier(config, 3)
    values = dict(module.named_parameters())
    meta = {**model.fast, **model.shared, **initial_log_rates(config.inner, model.adapted)}
    for name in {**model.fast, **model.shared}:
        torch.testing.assert_close(values[name], meta[name], msg=name)  # the same initial values
    generator = torch.Generator().manual_seed(1)
    meta = {n: v + 0.2 * torch.randn(v.shape, generator=generator) for n, v in meta.items()}
    with torch.no_grad():
        for name in {**model.fast, **model.shared}:
            values[name].copy_(meta[name])
    log_rates = {n.removeprefix("log_lr."): v.clone().requires_grad_() for n, v in meta.items() if "log_lr" in n}
    names = [name for name, p in values.items() if p.requires_grad and name not in plain.HEAD]
    names += [f"log_lr.{name}" for name in log_rates]
    assert sorted(names) == sorted(meta)

    episodes = [sample_episode(store, config.task, 0, "train", i) for i in range(3)]
    expected, sums = meta_gradients(model, meta, load_algorithm("maml"), config, store, episodes, 1, cpu)
    found = [
        plain.meta_gradient(plain.PEERS[peer], module, log_rates, e.support, e.query, config.inner.steps)
        for e in episodes
    ]
    assert sum(loss for loss, _ in found) == pytest.approx(sums[0], rel=1e-5)
    for i, name in enumerate(names):
        total = sum(grads[i] for _, grads in found)
        torch.testing.assert_close(total, expected[name], rtol=1e-3, atol=2e-6, msg=lambda m, at=name: f"{at}: {m}")

    fast, shared, rates = split_meta(model, meta)
    held = [sample_episode(store, config.task, 0, "validation", i) for i in range(6)]
    loop = inner_loop(config.inner, rates)
    scored = score_episodes(Scoring(model, fast, shared, loop, config, store.pad_id, cpu), held)
    for episode, score in zip(held, scored, strict=True):
        of_plain = plain.accuracy(plain.PEERS[peer], module, log_rates, episode.support, episode.query, 3)
        assert of_plain == pytest.approx((score.predicted[-1] == score.labels).mean())


def test_a_plain_script_learns_validates_at_the_cadence_and_stops_at_the_target(scripts, intents, tmp_path):
    plain, _ = scripts
    plain.train(intents, plain.hand, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [1, 2, 3] and [("validation" in r) for r in records] == [False, True, False]
    assert len({r["outer_loss"] for r in records}) == 3
    easy = intents.model_copy(update={"outer": intents.outer.model_copy(update={"until": "accuracy>=0.01"})})
    plain.train(easy, plain.hand, tmp_path)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_seconds_of_processes_that_have_ended_count(scripts):
    _, script = scripts
    burn = "import time\nwhile time.process_time() < 0.6: pass\n"
    both = f"import subprocess, sys, time\n{burn}subprocess.run([sys.executable, '-c', {burn!r}])\ntime.sleep(0.5)"
    process = subprocess.Popen([sys.executable, "-c", both])
    tree, core_s = script.Tree(process.pid), 0.0
    while process.poll() is None:
        core_s = tree.core_s()
        time.sleep(0.02)
    assert 1.1 < core_s < 1.6


def test_the_target_ends_the_count_and_the_first_meta_step_begins_it(scripts):
    _, script = scripts
    records = [
        {"step": i, "outer_loss": 1.0, "inner_s": 3.0, "wait_s": 1.0} | ({"validation": {"accuracy": a}} if a else {})
        for i, a in ((1, None), (2, 0.5), (3, None), (4, 0.9), (5, 0.95))
    ]
    seen = [(14.0, 20.0), (20.0, 30.0), (24.0, 34.0), (30.0, 44.0), (34.0, 50.0)]
    samples = [(0.0, 0.0), (10.0, 15.0), *seen]
    run = script.timeline(records, seen, samples)
    found = script.to_target(run, 0.9)
    assert found["reached"] and found["steps"] == 4 and found["accuracy"] == 0.9
    assert (found["wall_s"], found["core_s"]) == (30.0, 44.0)
    assert found["from_first_step_wall_s"] == 20.0 and found["from_first_step_core_s"] == pytest.approx(29.0)
    assert found["step_s"] == 4.0 and found["validations_s"] == pytest.approx(4.0)  # two, of 2 s each
    never = script.to_target(run, 0.99)
    assert not never["reached"] and never["steps"] == 5

    other = {**run, "steps": [{**s, "outer_loss": 1.1, "wall_s": 2 * s["wall_s"]} for s in run["steps"]]}
    both = script.derived({"ours": [run, run], "theirs": [other]}, 0.9)
    assert both["disagreement"][0] == pytest.approx({"ours": 0.0, "theirs": 0.1})
    assert both["systems"]["ours"]["reached"] == 2 and both["systems"]["theirs"]["mean"]["wall_s"] == 60.0
