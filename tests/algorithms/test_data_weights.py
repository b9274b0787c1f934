"""Learnt weights of the training data: their meta-gradient, what begins at 1, and rows that teach the wrong thing."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import torch

from distmeta.algorithms import data_weights
from distmeta.algorithms.rates import inner_loop
from distmeta.cli.weighing import weights
from distmeta.config import make_config
from distmeta.config.algorithms import load_algorithm
from distmeta.errors import InputError
from distmeta.inner import adapt
from distmeta.learner.gradients import load_parts, meta_gradients
from distmeta.learner.worker import learn
from distmeta.models.build import build_model
from distmeta.runs import checkpoint
from distmeta.runs.progress import closing
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


@pytest.fixture(scope="module")
def flipped_csv(tmp_path_factory, words_csv):
    """The words; of each cell the first 5 rows are trusted, and every third of the others has the wrong label."""
    head, *lines = words_csv.read_text().splitlines()
    path, met, out = tmp_path_factory.mktemp("weights") / "rows.csv", Counter(), [f"{head},good"]
    for line in lines:
        text, label, task = line.split(",")
        met[label, task] += 1
        i = met[label, task]
        wrong = {"yes": "no", "no": "yes"}[label] if i > 5 and i % 3 == 0 else label
        out.append(f"{text} {'wrong' if wrong != label else 'right'},{wrong},{task},{i <= 5}")
    path.write_text("\n".join(out) + "\n")
    return path


def train(folder, path, at=None, **sections):
    base = {
        "data": {"trusted": "good"}, "outer": {"steps": 4, "data_weights": {"by": "example", "lr": 0.25}},
        "run": {"checkpoint_every": 1}, "eval": {"baselines": False},
    }  # fmt: skip
    config = small.config(path, **small.merge(base, sections))
    folder.mkdir(exist_ok=True)

    def report(shown):
        if shown["step"] == at:
            raise KeyboardInterrupt

    store = build_store(config.data, config.task, config.model)
    learn(config, folder, store, [], 0, 1, CPU, report=report)
    return open_store(store)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("stage", [0, 3])
def test_a_run_goes_on_with_its_weights_which_move_by_the_rate_where_they_were_needed(flipped_csv, tmp_path, stage):
    zero = {"deepspeed": {"zero_optimization": {"stage": stage}}}
    store = train(tmp_path / "whole", flipped_csv, **zero)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", flipped_csv, at=2, **zero)
    train(tmp_path / "cut", flipped_csv, **zero)
    ends = [checkpoint.checkpoints_of(tmp_path / run)[0] / "meta.safetensors" for run in ("whole", "cut")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    saved = checkpoint.load(tmp_path / "whole", which="last")
    numbers = saved.meta[data_weights.NAME].numpy() / 0.25
    drawn = Counter()
    for step in range(4):
        episodes = [sample_episode(store, saved.config.task, 0, "train", 4 * step + i) for i in range(4)]
        drawn.update(set(np.concatenate([e.support.rows for e in episodes]).tolist()))
    assert np.abs(numbers).max() > 0
    for row, number in enumerate(numbers):
        assert abs(number) <= drawn[row] + 1e-5 and abs(number - round(number)) < 1e-5, (row, number, drawn[row])


@pytest.mark.usefixtures("one_rank")
def test_the_weights_of_a_run_are_a_table_to_train_on_again(flipped_csv, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "weights.parquet"
    store = train(run, flipped_csv, outer={"steps": 30}, inner={"steps": 3}, run={"checkpoint_every": 30})
    weights(str(run), out, "last", True)
    about = json.loads(capsys.readouterr().out)
    assert about["by"] == "example" and about["units"] == store.groups["train"].examples
    details = json.loads((run / "evaluation_details.json").read_text())
    assert {**details["data_weights"], "out": str(out)} == about
    assert any(line.startswith("Learnt weights: ") for line in closing(details))
    table = pq.read_table(out)
    rows = table.to_pylist()
    assert len(rows) == store.rows and table.column_names == ["text", "label", "task", "split", "good", "weight"]
    known = [
        (row["text"].endswith("wrong"), row["weight"]) for row in rows if row["split"] == "train" and not row["good"]
    ]
    means = [np.mean([w for wrong, w in known if wrong is is_wrong]) for is_wrong in (True, False)]
    assert means[0] < means[1] - 0.1, means
    assert {row["weight"] for row in rows if row["split"] != "train"} == {1.0}
    kept = [row for row in rows if row["weight"] > 0.5 or row["good"]]
    pq.write_table(pa.Table.from_pylist(kept), tmp_path / "kept.parquet")
    again = small.config(tmp_path / "kept.parquet", data={"trusted": "good"}, task={"shots": 1})
    assert open_store(build_store(again.data, again.task, again.model)).rows == len(kept)
    with pytest.raises(InputError, match="give a new file"):
        weights(str(run), out, "last", True)


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
