"""outer.worst_subgroup: what rows count, how that follows the losses, and that a run goes on with it."""

import json

import numpy as np
import pytest
import small
import torch

from distmeta.algorithms import subgroups
from distmeta.config import make_config
from distmeta.config.algorithms import load_algorithm
from distmeta.errors import InputError
from distmeta.learner.gradients import load_parts, meta_gradients
from distmeta.learner.worker import learn
from distmeta.models.build import build_model
from distmeta.runs import checkpoint
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows_csv(tmp_path_factory, words_csv):
    """The words, with a column of subgroups: one in five rows of each cell is in `few`."""
    head, *lines = words_csv.read_text().splitlines()
    path = tmp_path_factory.mktemp("subgroups") / "rows.csv"
    path.write_text("\n".join([f"{head},dialect", *(f"{line},{'few' if i % 5 == 0 else 'many'}"
                                                    for i, line in enumerate(lines))]) + "\n")  # fmt: skip
    return path


def configured(path, **sections):
    base = {"data": {"subgroup": "dialect"}, "outer": {"worst_subgroup": True}}
    return small.config(path, **small.merge(base, sections))


@pytest.mark.parametrize("task_batch", [1, 4])
def test_the_outer_loss_is_the_weighted_sum_of_the_subgroups_losses(rows_csv, task_batch):
    """And so is its meta-gradient; the losses of subgroups come along, to be followed."""
    config = configured(rows_csv, inner={"task_batch": task_batch})
    store = open_store(build_store(config.data, config.task, config.model))
    model = build_model(config, store.vocab_size, store.pad_id, len(store.labels))
    meta, maml = {**model.fast, **model.shared}, load_algorithm("maml")
    episodes = [sample_episode(store, config.task, 0, "train", i) for i in range(4)]

    def of(counts):
        return meta_gradients(model, meta, maml, config, store, episodes, 1, CPU, counts=counts)

    (few, few_sums), (many, many_sums) = of([1.0, 0.0]), of([0.0, 1.0])
    both, sums = of([3.0, 0.5])
    assert store.subgroups == ["few", "many"]
    assert sums[0] == pytest.approx(3 * few_sums[0] + 0.5 * many_sums[0], rel=1e-5)
    for name, grad in both.items():
        assert torch.allclose(grad, 3 * few[name] + 0.5 * many[name], rtol=1e-4, atol=1e-6), name
    known = len(sums) - 4
    number = np.concatenate([store.subgroup_ids[e.query.rows] for e in episodes])
    assert sums[known + 2 :] == [(number == 0).sum(), (number == 1).sum()]
    rows = len(load_parts(episodes[:1], model, config, store, CPU)[1][0].labels[0])
    assert rows <= config.task.queries * 2
    assert sums[known] / 8 == pytest.approx(few_sums[0], rel=1e-5)  # 8 query rows: a mean over rows
    plain_sums = of([])[1]
    assert sums[1:known] == pytest.approx(plain_sums[1:], rel=1e-6)


def test_subgroups_with_a_higher_loss_count_more_and_all_of_them_one():
    store = type("Store", (), {"subgroups": ["a", "b"], "subgroup_shares": {"a": 0.8, "b": 0.2}})()
    q = subgroups.uniform(store)
    assert subgroups.factors(q, store) == [0.5 / 0.8, 0.5 / 0.2]
    for _ in range(20):
        q = subgroups.raised(q, [8.0, 6.0, 8.0, 2.0], store)  # mean losses 1 and 3
    assert sum(q.values()) == pytest.approx(1) and q["b"] / q["a"] == pytest.approx(np.exp(20 * subgroups.STEP * 2))


def train(folder, path, at=None, **sections):
    config = configured(
        path,
        **small.merge({"outer": {"steps": 4}, "run": {"checkpoint_every": 1}, "eval": {"baselines": False}}, sections),
    )
    folder.mkdir(exist_ok=True)

    def report(shown):
        if shown["step"] == at:
            raise KeyboardInterrupt

    learn(config, folder, build_store(config.data, config.task, config.model), [], 0, 1, CPU, report=report)
    return folder


@pytest.mark.usefixtures("one_rank")
def test_a_run_tells_its_weights_and_goes_on_with_them(rows_csv, tmp_path):
    whole = train(tmp_path / "whole", rows_csv)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", rows_csv, at=2)
    again = train(tmp_path / "cut", rows_csv)
    weights = [record["subgroup_weights"] for record in small.records(whole)]
    assert weights == [record["subgroup_weights"] for record in small.records(again)] and len(weights) == 4
    assert weights[0] != weights[-1]
    ends = [checkpoint.checkpoints_of(run)[0] / "meta.safetensors" for run in (whole, again)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    scores = json.loads((whole / "evaluation.json").read_text())["meta_trained"]
    assert {"accuracy:few", "accuracy:many", "worst_subgroup", "subgroup_gap"} <= set(scores)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"subgroup": None}}, "data.subgroup = null: name the column"),
        ({"algorithm": "reptile"}, "algorithm = reptile"),
        ({"task": {"family": "text_to_text"}}, "data.subgroup does not work with task.family = text_to_text"),
        ({"data": {"sources": {"a": {"path": "a.csv"}}}}, "data.sources = several"),
    ],
)
def test_where_it_would_mean_nothing_it_is_refused(sections, message):
    base = {"data": {"subgroup": "dialect"}, "outer": {"worst_subgroup": True}}
    with pytest.raises(InputError, match=message):
        make_config(small.merge(base, sections))
