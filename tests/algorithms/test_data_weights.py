"""Learnt weights of the training data: their meta-gradient, what begins at 1, and rows that teach the wrong thing."""

import numpy as np
import pytest
import small
import torch

from distmeta.algorithms import data_weights
from distmeta.algorithms.rates import inner_loop
from distmeta.config import make_config
from distmeta.config.algorithms import load_algorithm
from distmeta.errors import InputError
from distmeta.inner import adapt
from distmeta.learner.gradients import load_parts, meta_gradients
from distmeta.models.build import build_model
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

CPU = torch.device("cpu")


def made(words_csv, by="example", **sections):
    config = small.config(words_csv, outer={"data_weights": {"by": by}}, **sections)
    store = open_store(build_store(config.data, config.task, config.model))
    model = build_model(config, store.vocab_size, store.pad_id, len(store.labels))
    for value in (*model.fast.values(), *model.shared.values(), *model.parameters()):
        value.data = value.data.double()
    meta = {**model.fast, **model.shared} | {n: v.double() for n, v in data_weights.initial(config, store).items()}
    return config, store, model, meta


def loss_at(config, store, model, meta, numbers, episode):
    """The query loss after adapting with weights 2 sigmoid(numbers): a second way, row by row."""
    support, query = load_parts([episode], model, config, store, CPU)

    def loss(params, batch):
        rows = model.row_scores(params, batch)[0]
        if batch.units is not None:
            rows = rows * (2 / (1 + torch.exp(-numbers)))[batch.units]
        return rows.sum() / batch.total

    fast = {n: meta[n] for n in model.fast}
    params = adapt(loss, fast, support, inner_loop(config.inner, {}), shared={n: meta[n] for n in model.shared}).params
    with torch.no_grad():
        return sum(float(loss({**{n: meta[n] for n in model.shared}, **params}, batch)) for batch in query)


@pytest.mark.parametrize("by", ["task", "example"])
def test_the_meta_gradient_of_the_weights_is_that_of_finite_differences(words_csv, by):
    config, store, model, meta = made(words_csv, by)
    numbers = torch.randn(len(meta[data_weights.NAME]), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    meta[data_weights.NAME] = numbers
    episodes = [sample_episode(store, config.task, 0, "train", i) for i in range(2)]
    grads, _ = meta_gradients(model, meta, load_algorithm("maml"), config, store, episodes, 1, CPU)
    rows = np.unique(data_weights.unit_of(config, store, np.concatenate([e.support.rows for e in episodes])))
    untouched = np.setdiff1d(np.arange(len(numbers)), rows)
    assert not grads[data_weights.NAME][untouched].any()
    for unit in rows[:4]:
        step = torch.zeros_like(numbers)
        step[unit] = 1e-4
        change = sum(
            loss_at(config, store, model, meta, numbers + step, e)
            - loss_at(config, store, model, meta, numbers - step, e)
            for e in episodes
        )
        assert float(grads[data_weights.NAME][unit]) == pytest.approx(change / 2e-4, rel=1e-5, abs=1e-9)


def test_at_their_beginning_they_change_nothing(words_csv):
    config, store, model, meta = made(words_csv)
    plain = config.model_copy(update={"outer": config.outer.model_copy(update={"data_weights": None})})
    episodes = [sample_episode(store, config.task, 0, "train", i) for i in range(2)]
    maml = load_algorithm("maml")
    weighed, sums = meta_gradients(model, meta, maml, config, store, episodes, 1, CPU)
    without = {n: v for n, v in meta.items() if n != data_weights.NAME}
    expected, expected_sums = meta_gradients(model, without, maml, plain, store, episodes, 1, CPU)
    assert sums == pytest.approx(expected_sums, rel=1e-12)
    for name, grad in expected.items():
        assert torch.allclose(weighed[name], grad, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"algorithm": "fomaml"}, "does not go through the inner steps"),
        ({"algorithm": "reptile"}, "not of query rows after adaptation"),
        ({"model": {"head": "prototype"}}, "set linear"),
        ({"outer": {"data_weights": {"by": "source"}}}, "name sources, or set by: task"),
        ({"task": {"family": "text_to_text"}}, "set domain or classes"),
    ],
)
def test_what_has_no_such_derivative_is_refused(sections, message):
    with pytest.raises(InputError, match=message):
        make_config({"outer": {"data_weights": {"by": "task"}}, **sections})
