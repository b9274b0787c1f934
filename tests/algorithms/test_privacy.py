"""Task-level privacy: what a task can move is bounded, noise is added once, and epsilon is the accountant's."""

import json
import math
import shutil

import numpy as np
import pytest
import small
import torch

from distmeta.algorithms import privacy
from distmeta.config import PrivacyConfig, make_config
from distmeta.config.algorithms import load_algorithm
from distmeta.errors import InputError
from distmeta.export.export import export
from distmeta.learner.gradients import meta_gradients
from distmeta.learner.ranks import share
from distmeta.learner.state import initial_values
from distmeta.learner.worker import learn
from distmeta.models.build import build_model
from distmeta.runs import checkpoint
from distmeta.search import tune
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

CPU = torch.device("cpu")
SEED = 2**61 + 5
ASKED = {"noise": 2.0, "clip": 0.05, "delta": 1e-3}


@pytest.fixture(scope="module")
def base(words_csv, tmp_path_factory):
    """A model with a vocabulary of its own, which is not made of the run's tasks."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("base")
    config = small.config(words_csv)
    store = open_store(build_store(config.data, config.task, config.model))
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=store.vocab_size, **small.BACKBONES["bert"])).save_pretrained(folder)
    shutil.copy(store.tokenizer_file, folder / "tokenizer.json")
    return folder


def private(path, base, asked=ASKED, **sections):
    own = {
        "model": {"pretrained": str(base)}, "outer": {"privacy": asked, "steps": 2}, "run": {"seed": SEED},
        "inner": {"learn_lr": "per_layer"},
    }  # fmt: skip
    return small.config(path, **small.merge(own, sections))


def setting(config):
    store = open_store(build_store(config.data, config.task, config.model))
    model = build_model(config, store.vocab_size, store.pad_id, 2)
    return store, model, initial_values(config, model)


def gradients(config, store, model, meta, episodes):
    return meta_gradients(model, meta, load_algorithm(config.algorithm), config, store, episodes, 1, CPU)[0]


def norm(grads):
    return math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))


@pytest.mark.parametrize("algorithm", ["maml", "reptile"])
def test_each_task_s_meta_gradient_is_clipped_and_all_of_it(algorithm, words_csv, base):
    sections = {"algorithm": algorithm}
    if algorithm == "reptile":
        sections |= {"inner": {"learn_lr": "none"}}
    config = private(words_csv, base, **sections)
    plain = private(words_csv, base, None, **sections)
    store, model, meta = setting(config)
    episodes = [sample_episode(store, config.task, SEED, "train", i) for i in range(4)]
    total = {name: torch.zeros_like(v) for name, v in meta.items()}
    for episode in episodes:
        mine, whole = (gradients(c, store, model, meta, [episode]) for c in (config, plain))
        assert norm(whole) > 0.05 >= norm(mine) > 0.0499
        for name, g in mine.items():  # the same direction, learnt rates included
            torch.testing.assert_close(g, whole[name] * (0.05 / norm(whole)), rtol=1e-4, atol=1e-8)
            total[name] += g
    if algorithm == "maml":
        assert any(name.startswith("log_lr") and g.abs().max() > 0 for name, g in total.items())
    together = gradients(config, store, model, meta, episodes)  # one by one, whatever would run at once
    for name, g in together.items():
        torch.testing.assert_close(g, total[name], rtol=1e-4, atol=1e-8)


def test_what_is_short_stays_and_what_is_no_number_is_left_out():
    short = {"a": torch.tensor([0.3]), "b": torch.tensor([0.4])}
    assert privacy.clipped(short, 1.0) is short
    assert all((g == 0).all() for g in privacy.clipped({**short, "c": torch.tensor([float("inf")])}, 1.0).values())
    for scale in (1e-3, 1.0, 1e3, 1e18):
        grads = {"a": torch.randn(1000) * scale, "b": torch.randn(7, 9) * scale}
        assert norm(privacy.clipped(grads, 0.1)) <= 0.1


@pytest.mark.parametrize("world", [2, 3])
def test_noise_is_added_once_for_any_number_of_ranks(world, words_csv, base):
    config = private(words_csv, base)
    store, model, meta = setting(config)
    episodes = [sample_episode(store, config.task, SEED, "train", i) for i in range(4)]
    clean = gradients(config, store, model, meta, episodes)
    alone = privacy.with_noise(clean, config, 1, 0)
    summed = {name: torch.zeros_like(g) for name, g in clean.items()}
    for rank in range(world):
        mine = [episodes[i] for i in share(4, rank, world)]
        for name, g in privacy.with_noise(gradients(config, store, model, meta, mine), config, 1, rank).items():
            summed[name] += g
    added = torch.cat([(alone[name] - clean[name]).flatten() for name in clean])
    assert float(added.std()) == pytest.approx(2.0 * 0.05, rel=0.05) and abs(float(added.mean())) < 0.005
    for name, g in alone.items():
        torch.testing.assert_close(summed[name], g, rtol=1e-4, atol=1e-6)


def test_noise_is_of_seed_and_step_alone():
    shapes = {"a": torch.Size([400, 50]), "b": torch.Size([3])}
    one = privacy.noise(shapes, 1.0, SEED, 1)
    again = privacy.noise(dict(reversed(shapes.items())), 1.0, SEED, 1)
    assert all(torch.equal(one[name], again[name]) for name in shapes)
    for other in (privacy.noise(shapes, 1.0, SEED, 2), privacy.noise(shapes, 1.0, SEED + 1, 1)):
        assert abs(np.corrcoef(one["a"].flatten(), other["a"].flatten())[0, 1]) < 0.03


def test_epsilon_is_the_library_s():
    """One task: Gaussian noise on a sum that moves by 2 B. One episode: sampled with 1/N. Its own mixture else."""
    from dp_accounting.dp_event import GaussianDpEvent, MixtureOfGaussiansDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    asked = PrivacyConfig(noise=20, clip=0.3, delta=1e-4)
    whole = PLDAccountant(value_discretization_interval=privacy.GRID).compose(GaussianDpEvent(20 / (2 * 3)), 5)
    assert privacy.epsilon(asked, 1, 3, 5) == pytest.approx(whole.get_epsilon(1e-4), rel=0.01)
    sampled = PLDAccountant(value_discretization_interval=privacy.GRID)
    sampled.compose(PoissonSampledDpEvent(1 / 10, GaussianDpEvent(20 / 2)), 500)
    assert privacy.epsilon(asked, 10, 1, 500) == pytest.approx(sampled.get_epsilon(1e-4), rel=0.01)
    chances = [0.9**2, 2 * 0.1 * 0.9, 0.1**2]
    direct = PLDAccountant(value_discretization_interval=privacy.GRID)
    direct.compose(MixtureOfGaussiansDpEvent(20, [0, 2, 4], chances), 50)
    assert privacy.epsilon(asked, 10, 2, 50) == pytest.approx(direct.get_epsilon(1e-4), rel=1e-9)


def test_epsilon_grows_with_steps_and_falls_with_tasks_and_noise():
    def of(noise=4.0, tasks=50, size=4, steps=20):
        return privacy.epsilon(PrivacyConfig(noise=noise, clip=1, delta=1e-4), tasks, size, steps)

    base = of()
    assert base < of(steps=40) and base < of(size=8) and base > of(tasks=100) and base > of(noise=8.0)
    assert of(noise=1e-3) > 1e5  # as good as none: said, in no more time than others
    assert 0 < of(tasks=2, size=4) < math.inf  # fewer tasks than episodes: a task is there more than once


@pytest.mark.usefixtures("one_rank")
def test_a_run_says_what_it_spent_and_its_export_leaves_the_seed_out(words_csv, base, tmp_path):
    config = private(words_csv, base, run={"checkpoint_every": 1}, inner={"adapt": "lora"}, outer={"base": "freeze"})
    store = build_store(config.data, config.task, config.model)
    run = tmp_path / "run"
    run.mkdir()
    learn(config, run, store, [], 0, 1, CPU)
    checkpoint.write_text(run / "environment.json", json.dumps({"store": str(store)}))
    records = small.records(run)
    tasks = len(open_store(store).groups["train"].ids)
    expected = [privacy.epsilon(config.outer.privacy, tasks, 4, step) for step in (1, 2)]
    assert [r["privacy_epsilon"] for r in records] == expected
    told = json.loads((run / "evaluation_details.json").read_text())["privacy"]
    assert told["epsilon"] == expected[-1] and told["delta"] == 1e-3
    assert f"({expected[-1]:.3g}, 0.001)-differentially private" in (run / "log.txt").read_text()
    out = export(run, tmp_path / "out")
    for name in ("README.md", "distmeta.json"):
        text = (out / name).read_text()
        assert str(SEED) not in text and "multi_task" not in text and "no_adaptation" in text
    assert f"({expected[-1]:.3g}, 0.001)-differentially private" in (out / "README.md").read_text()


@pytest.mark.usefixtures("one_rank")
def test_off_is_the_run_that_it_was_and_noise_is_what_makes_the_difference(words_csv, base, tmp_path):
    runs = {}
    wide = {"noise": 1e-9, "clip": 1e9, "delta": 1e-3}
    for name, asked in (("off", None), ("wide", wide), ("noisy", ASKED)):
        config = private(words_csv, base, asked, eval={"baselines": False, "episodes": 2}, inner={"task_batch": 1})
        store = build_store(config.data, config.task, config.model)
        place = tmp_path / name
        place.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(privacy, "epsilon", lambda *words: 0.0)
            if name == "off":
                patch.setattr(privacy, "clipped", None)  # nothing of it is asked
                patch.setattr(privacy, "noise", None)
            if name == "wide":
                patch.setattr(privacy, "noise", lambda shapes, *words: {n: torch.zeros(s) for n, s in shapes.items()})
            learn(config, place, store, [], 0, 1, CPU)
        saved = checkpoint.load(place)
        runs[name] = saved.meta, [{k: v for k, v in r.items() if k != "privacy_epsilon"} for r in small.records(place)]
    assert all(torch.equal(value, runs["wide"][0][name]) for name, value in runs["off"][0].items())
    assert runs["off"][1] == runs["wide"][1] and "privacy_epsilon" not in small.records(tmp_path / "off")[-1]
    assert any(not torch.equal(value, runs["noisy"][0][name]) for name, value in runs["off"][0].items())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"task": {"family": "classes"}}, "task.family"),
        ({"data": {"path": None, "sources": {"a": {"path": "x"}}}}, "data.sources"),
        ({"task": {"arrive_every": 10}}, "task.arrive_every"),
        ({"task": {"augment": {"resplit": True}}}, "task.augment.resplit"),
        ({"inner": {"task_batch": 4}}, "inner.task_batch"),
        ({"algorithm": "fine_tune", "inner": {"learn_lr": "none"}}, "algorithm"),
        ({"model": {"pretrained": None}}, "model.pretrained"),
        ({"run": {"seed": 7}}, "run.seed"),
        ({"cluster": {"episode": "group"}, "algorithm": "fomaml", "deepspeed": {"zero_optimization": {"stage": 3}}},
         "cluster.episode"),
        ({"outer": {"privacy": {"noise": 0}}}, "noise"),
    ],
)  # fmt: skip
def test_what_cannot_be_private_is_one_line(changes, key):
    base = {
        "data": {"path": "x"}, "model": {"pretrained": "y"}, "outer": {"privacy": ASKED}, "run": {"seed": SEED},
    }  # fmt: skip
    make_config(base)
    with pytest.raises(InputError, match=key) as told:
        make_config(small.merge(base, changes))
    assert "privacy" in str(told.value)


def test_a_search_is_refused():
    with pytest.raises(InputError, match=r"outer\.privacy"):
        tune({"outer": {"privacy": ASKED}, "run": {"seed": SEED}})
