"""Episodes whose loss or meta-gradient is not finite, dropout by episode, and what an algorithm is told of its run."""

import inspect
from types import SimpleNamespace

import pytest
import small
import torch

from distmeta.config.algorithms import load_algorithm
from distmeta.inner import Diverged
from distmeta.learner import worker
from distmeta.learner.gradients import meta_gradients
from distmeta.learner.skipped import OuterDiverged
from distmeta.learner.state import initial_values
from distmeta.models.build import build_model
from distmeta.runs import checkpoint
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

CPU = torch.device("cpu")


class Setting:
    """A model and episodes; `lost` are the indices of those whose query loss is made infinite."""

    def __init__(self, path, **sections):
        self.config = small.config(path, **sections)
        self.store = open_store(build_store(self.config.data, self.config.task, self.config.model))
        self.model = build_model(self.config, self.store.vocab_size, self.store.pad_id, 2)
        self.meta = initial_values(self.config, self.model)

    def gradients(self, indices, algorithm=None, step=1, skipped=None):
        episodes = [sample_episode(self.store, self.config.task, 0, "train", i) for i in indices]
        algorithm = algorithm or load_algorithm(self.config.algorithm)
        return meta_gradients(
            self.model, self.meta, algorithm, self.config, self.store, episodes, step, CPU, skipped=skipped
        )


def spoiling(names, where):
    """MAML that gives a loss, or a meta-gradient, that is not finite for the tasks of these names."""
    maml = load_algorithm("maml")

    def meta_gradient(*arguments, names: list, **options):
        result = maml.meta_gradient(*arguments, names=names, **options)
        if spoilt & set(names):
            if where == "loss":
                raise Diverged(1, 2, float("nan"), "support", names=sorted(spoilt & set(names)))
            first = next(iter(result.grads))
            result.grads[first] = result.grads[first] * float("inf")
        return result

    spoilt = set(names)
    return SimpleNamespace(ORDER=maml.ORDER, meta_gradient=meta_gradient)


@pytest.mark.parametrize("where", ["loss", "meta-gradient"])
def test_an_episode_that_is_not_finite_is_in_no_sum(words_csv, where):
    setting = Setting(words_csv)
    names = [sample_episode(setting.store, setting.config.task, 0, "train", i).task for i in range(4)]
    kept = [i for i in range(4) if names[i] != names[1]]
    skipped = []
    grads, sums = setting.gradients(range(4), spoiling(names[1:2], where), skipped=skipped)
    expected, of_kept = setting.gradients(kept)
    assert len(skipped) == 4 - len(kept) and names[1] in str(skipped[0]) and where in str(skipped[0])
    assert all(torch.allclose(g, expected[name], atol=1e-6) for name, g in grads.items())
    assert sums == pytest.approx(of_kept, rel=1e-5)
    with pytest.raises(Diverged):
        setting.gradients(range(4), spoiling(names[1:2], where))


def test_dropout_draws_masks_by_episode_whatever_the_rank(words_csv):
    """As many ranks as episodes, or one: the same sums; two episodes, and two meta-steps, have masks of their own."""
    setting = Setting(words_csv, model={"dropout": 0.4})
    together, sums = setting.gradients(range(4))
    apart = [setting.gradients([i]) for i in range(4)]
    for name, g in together.items():
        assert torch.allclose(g, sum(grads[name] for grads, _ in apart), rtol=1e-4, atol=1e-7), name
    assert sums == pytest.approx([sum(each) for each in zip(*(s for _, s in apart), strict=True)])
    seeds = []

    def meta_gradient(*arguments, **options):
        seeds.append(arguments[4].seed)
        return load_algorithm("maml").meta_gradient(*arguments, **options)

    for step in (1, 2):
        setting.gradients(range(4), SimpleNamespace(ORDER="exact", meta_gradient=meta_gradient), step)
    assert len(set(seeds)) == 8


def test_an_algorithm_is_told_the_share_of_the_run_that_lies_behind(words_csv):
    setting = Setting(words_csv)
    told = []

    def meta_gradient(*arguments, progress: float, pooled=None, **options):
        told.append(progress)
        return load_algorithm("maml").meta_gradient(*arguments, **options)

    for step in (1, 11, 20):
        setting.gradients([0], SimpleNamespace(ORDER="exact", meta_gradient=meta_gradient), step)
    assert told == [0.0, 0.5, 0.95]  # of outer.steps=20: the first meta-step has nothing behind it


def run(folder, path, lost, monkeypatch, at=None, **outer):
    """lost: {meta-step: episodes of it that are not finite}."""
    plain = meta_gradients

    def gradients(*arguments, **options):
        given = inspect.signature(plain).bind(*arguments, **options).arguments
        step, skipped = given["step"], given["skipped"]
        skipped += [Diverged(1, 2, float("nan"), "query", names=[f"t{i}"]) for i in range(lost.get(step, 0))]
        return plain(*arguments, **options)

    def report(shown):
        if shown["step"] == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(worker, "meta_gradients", gradients)
    sections = {"outer": {"steps": 6, **outer}, "run": {"checkpoint_every": 1}, "eval": {"baselines": False}}
    config = small.config(path, **sections)
    folder.mkdir(exist_ok=True)
    worker.learn(config, folder, build_store(config.data, config.task, config.model), [], 0, 1, CPU, report=report)
    return folder


def test_a_run_counts_what_it_skips_and_ends_above_its_share(tmp_path, words_csv, one_rank, monkeypatch):
    whole = run(tmp_path / "whole", words_csv, {2: 1, 4: 2}, monkeypatch)
    records = small.records(whole)
    assert [record.get("skipped", 0) for record in records] == [0, 1, 0, 2, 0, 0]
    assert checkpoint.load(whole).state["skipped"] == 3
    # Sums are over all four here, and the mean is over those that are left.
    clean = small.records(run(tmp_path / "clean", words_csv, {}, monkeypatch))
    assert records[1]["outer_loss"] == pytest.approx(clean[1]["outer_loss"] * 4 / 3)
    assert records[1]["query_accuracy"] == pytest.approx(clean[1]["query_accuracy"] * 4 / 3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", words_csv, {2: 1, 4: 2}, monkeypatch, at=3)
    assert small.records(run(tmp_path / "cut", words_csv, {2: 1, 4: 2}, monkeypatch)) == records
    with pytest.raises(
        OuterDiverged, match=r"meta-step 4: .*4 of 16 episodes so far are skipped, more than outer.max_s"
    ):
        run(tmp_path / "more", words_csv, {2: 1, 4: 3}, monkeypatch)
    with pytest.raises(OuterDiverged, match="outer.max_skipped = 0 allows"):
        run(tmp_path / "none", words_csv, {2: 1}, monkeypatch, max_skipped=0.0)
    assert "3 of 16 episodes so far are skipped" in (whole / "log.txt").read_text()
