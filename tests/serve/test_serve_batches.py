"""Several tasks as one batch say what each says alone, and what `distmeta.adapt` says."""

import pytest
import serving
import small
import torch

from distmeta.evaluation.adapt import adapt
from distmeta.serve.batches import MOST_ROWS, Base, repeated
from distmeta.serve.tasks import Refused, Task, TaskStore

CLASSES = {"task": {"family": "classes", "ways": 2}, "data": {"label": "task", "fractions": [0.6, 0.0, 0.4]}}
VARIANTS = {
    "all": {},
    "lora": {"inner": {"adapt": "lora", "learn_lr": "per_layer", "optimizer": "momentum", "momentum": 0.5}},
    "head": {"inner": {"adapt": "head"}},
    "prototype": {"model": {"head": "prototype"}, "inner": {"learn_lr": "per_parameter", "lr": 0.01}},
    "prototypes": {"algorithm": "prototypes", "model": {"head": "prototype"}, "inner": {"steps": 0}},
    "classes": CLASSES,
    "decoder": {"architecture": "qwen2", "inner": {"lr": 0.01}},
    "lstm": {"architecture": "lstm"},
    "in_context": {"architecture": "gpt2", "algorithm": "in_context", "inner": {"steps": 0},
                   "model": {"head": "context", "config": {**small.BACKBONES["gpt2"], "n_positions": 256}}},
}  # fmt: skip


def tasks_of(base: Base, supports, steps=None) -> list[Task]:
    found = base.adapt([base.asked(rows, steps) for rows in supports])
    for task in found:
        if isinstance(task, Exception):
            raise task
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_batched_is_one_by_one_is_adapt(variant, tmp_path, words_csv):
    source = small.checkpoint_of(tmp_path / "step-000001", words_csv, **VARIANTS[variant])
    column = "task" if variant == "classes" else "label"
    base = Base(source)
    assert base.batched == (variant != "in_context")
    supports = [serving.support(t, each=2 + t % 2) for t in range(5)]  # two shapes
    texts = [(serving.TEXTS * 8)[: (3, 1, MOST_ROWS + 7, 5, 4)[t]] for t in range(5)]
    tasks = tasks_of(base, supports)
    together = base.predict(list(zip(tasks, texts, strict=True)))
    for t, rows in enumerate(supports):
        own = adapt(source, [{"text": r["text"], column: r["label"]} for r in rows])
        assert own.inner_losses == pytest.approx(tasks[t].about["support_loss"], abs=1e-5)
        assert tasks[t].about["labels"] == own.labels
        alone = base.predict([(tasks[t], texts[t])])[0]
        for expected, one, many in zip(own.predict(texts[t]), alone, together[t], strict=True):
            assert many["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
            assert one["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
            assert list(many["probabilities"]) == own.labels and set(many) == set(expected)
    assert together[0][0]["probabilities"] != pytest.approx(together[1][0]["probabilities"], abs=1e-4)


def test_class_means_are_refined_as_an_adapted_model_refines_them(tmp_path, words_csv):
    source = small.checkpoint_of(tmp_path / "step-000001", words_csv, **VARIANTS["prototypes"])
    base, supports = Base(source), [serving.support(t, each=2 + t) for t in range(2)]
    tasks = tasks_of(base, supports)
    found = base.refine([(task, serving.TEXTS, 3) for task in tasks])
    for rows, predictions in zip(supports, found, strict=True):
        own = adapt(source, [{"text": r["text"], "label": r["label"]} for r in rows]).predict(serving.TEXTS, 3)
        for one, expected in zip(predictions, own, strict=True):
            assert one["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_tasks_of_another_number_of_labels_have_heads_of_their_own(tmp_path, words_csv):
    source = small.checkpoint_of(tmp_path / "step-000001", words_csv, model={"head": "prototype"}, **CLASSES)
    base = Base(source)
    supports = [serving.support(0), serving.support(1, ("a", "b", "c")), serving.support(2)]
    tasks = tasks_of(base, supports)
    found = base.predict([(task, serving.TEXTS) for task in tasks])
    for rows, predictions in zip(supports, found, strict=True):
        own = adapt(source, [{"text": r["text"], "task": r["label"]} for r in rows]).predict(serving.TEXTS)
        for one, expected in zip(predictions, own, strict=True):
            assert one["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_one_bad_support_set_is_its_own_fault(tmp_path, words_csv):
    base = Base(small.checkpoint_of(tmp_path / "step-000001", words_csv))
    bad = [{"text": "red", "label": "yes"}] * 4
    good, refused, other = base.adapt([base.asked(rows) for rows in (serving.support(0), bad, serving.support(1))])
    assert isinstance(good, Task) and isinstance(other, Task) and "one label only" in str(refused)


def test_a_diverging_task_does_not_take_others_along(tmp_path, words_csv):
    """At this rate the loss of every task is infinite after some steps: each is told, alone or among others."""
    base = Base(small.checkpoint_of(tmp_path / "step-000001", words_csv, inner={"lr": 1e30}))
    supports = [serving.support(0), serving.support(1)]
    together = base.adapt([base.asked(rows, 5) for rows in supports])
    alone = [base.adapt([base.asked(rows, 5)])[0] for rows in supports]
    for refused in together + alone:
        assert isinstance(refused, Refused) and refused.status == 422


def test_text_to_text_goes_one_by_one(tmp_path):
    data = tmp_path / "words.jsonl"
    import json

    pairs = [(a, b) for a in ("red", "blue", "hot", "cold") for b in ("red", "blue", "hot", "cold")]
    lines = [{"task": f"t{t}", "input": f"{a} {b} thing", "target": a if t % 2 else b, "options": [a, b]}
             for t in range(6) for a, b in pairs]  # fmt: skip
    data.write_text("\n".join(map(json.dumps, lines)))
    source = small.checkpoint_of(
        tmp_path / "step-000001", data, architecture="gpt2", task={"family": "text_to_text"},
        inner={"adapt": "lora", "lr": 0.01}, model={"answer_tokens": 4},
    )  # fmt: skip
    base = Base(source)
    assert not base.batched
    for options in ({"options": ["red", "hot"]}, {}):
        rows = [{"input": "red thing", "target": "red", **options}, {"input": "hot thing", "target": "hot", **options}]
        (task,) = tasks_of(base, [rows])
        store = TaskStore(tmp_path / "tasks", base.checkpoint, 0, 9, base.device)
        store.put(task)
        found = base.predict([(store.get(task.handle), ["red blue thing", "hot"])])[0]
        assert found == adapt(source, rows).predict(["red blue thing", "hot"])


def test_rows_are_cut_and_repeated():
    (rows,) = small.rows([5], 50, 2)
    part = rows.part(1, 3)
    longer = repeated(part, 4)
    texts = [longer.tokens[a:b].tolist() for a, b in zip(longer.offsets, longer.offsets[1:], strict=False)]
    expected = [rows.tokens[rows.offsets[i] : rows.offsets[i + 1]].tolist() for i in (1, 2, 1, 1)]
    assert texts == expected and longer.labels.tolist() == [rows.labels[i] for i in (1, 2, 1, 1)]


def test_a_handle_is_a_function_of_checkpoint_rows_and_steps(tmp_path, words_csv):
    base = Base(small.checkpoint_of(tmp_path / "step-000001", words_csv))
    again = Base(small.checkpoint_of(tmp_path / "again" / "step-000001", words_csv))
    other = Base(small.checkpoint_of(tmp_path / "other" / "step-000001", words_csv, run={"seed": 1}))
    rows = serving.support(0)
    handle = base.asked(rows).handle
    assert handle == again.asked([dict(reversed(row.items())) for row in rows]).handle == base.asked(rows, 2).handle
    assert len({handle, other.asked(rows).handle, base.asked(rows, 3).handle, base.asked(rows[::-1]).handle}) == 4
    assert base.device == torch.device("cuda" if torch.cuda.is_available() else "cpu")
