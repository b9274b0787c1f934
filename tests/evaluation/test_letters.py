"""A decoder that says the names of classes, letters or words, from a checkpoint to a new task's predictions."""

import dataclasses
import json
import re

import pytest
import small
import torch

from distmeta.config import load_config
from distmeta.drive.train import prepare_store
from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt, load_adapted
from distmeta.evaluation.evaluate import evaluate
from distmeta.evaluation.rejection import predict_or_reject
from distmeta.export.export import export
from distmeta.learner.worker import learn
from distmeta.serve.batches import Base

SUPPORT = [{"text": text, "label": label} for text, label in (
    ("the red thing", "warm"), ("hot hot", "warm"), ("a cold blue thing it is", "cool"), ("so flat", "even"),
)]  # fmt: skip
TEXTS = ["the red thing", "it is a cold blue thing", "so hot"]
CASES = {
    "in_context": {"algorithm": "in_context", "inner": {"adapt": "lora", "steps": 0}},
    "gradients": {"algorithm": "fomaml", "inner": {"adapt": "lora", "steps": 2}},
    "both": {"algorithm": "fomaml", "inner": {"adapt": "lora", "steps": 2}, "model": {"head": "context"}},
    "words in context": {
        "algorithm": "in_context",
        "inner": {"adapt": "lora", "steps": 0},
        "task": {"labels": "words", "least_shots": 1},
        "eval": {"normalise": "unconditional", "baselines": False},
    },
    "words by gradients": {
        "algorithm": "fomaml",
        "inner": {"adapt": "lora", "steps": 2},
        "task": {"labels": "words", "prompt": "Q: {{ input }}\nA: {{ target }}"},
        "eval": {"normalise": "length", "baselines": False},
    },
}


def letters(folder, **sections):
    data = folder / "data.csv"
    if not data.exists():
        small.decoder(folder / "model")
        small.write_domains(data)
    model = {"pretrained": str(folder / "model"), "max_tokens": 60} | sections.pop("model", {})
    task = {"labels": "letters", "shots": 2, "queries": 2} | sections.pop("task", {})
    outer = {"base": "freeze", "steps": 2, "meta_batch_size": 2} | sections.pop("outer", {})
    scored = {"episodes": 4, "baselines": True} | sections.pop("eval", {})
    return small.config(data, model=model, task=task, outer=outer, eval=scored, **sections)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("letters")


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("case", CASES)
def test_a_run_trains_evaluates_adapts_predicts_and_exports_by_names(case, folder, tmp_path, monkeypatch):
    config = letters(folder, **CASES[case])
    learn(config, tmp_path, prepare_store(config), [], 0, 1, torch.device("cpu"))
    methods = json.loads((tmp_path / "evaluation.json").read_text())
    gradients, in_context = "gradients" in case, "in" in case.replace("_", " ").split()
    if config.eval.baselines:
        assert ("in_context" in methods) == gradients  # the meta-trained model that adapts could read too
        assert "base_in_context" in methods and "prototypes" not in methods
        assert ("no_adaptation" in methods) == (not in_context)  # which adapts nothing
    assert evaluate(tmp_path, baselines=False).methods["meta_trained"] == methods["meta_trained"]

    # A task of three classes, where the run's had two.
    adapted = adapt(tmp_path, SUPPORT)
    assert adapted.labels == ["warm", "cool", "even"]
    first = adapted.predict(TEXTS)
    assert all(sum(of["probabilities"].values()) == pytest.approx(1, abs=1e-5) for of in first)
    again = load_adapted(adapted.save(tmp_path / "adapted")).predict(TEXTS)
    assert [of["label"] for of in again] == [of["label"] for of in first]
    assert [of["confidence"] for of in again] == pytest.approx([of["confidence"] for of in first], abs=1e-5)

    rows = [*SUPPORT[:3], {"text": "cold", "label": "cool"}]
    left_out = [adapt(tmp_path, rows[:i] + rows[i + 1 :]).scores([rows[i]["text"]])[1][0] for i in range(len(rows))]
    whole = adapt(tmp_path, rows)
    below = [sum(score <= highest + 1e-5 for score in left_out) for highest in whole.scores(TEXTS)[1]]
    typical = [of["typicality"] for of in predict_or_reject(whole, TEXTS, 0.3)]
    assert typical == pytest.approx([(1 + count) / (len(rows) + 1) for count in below], abs=1e-5)

    # Served, two tasks at once.
    base = Base(tmp_path)
    many = [{"text": f"red {i} thing", "label": "ab"[i % 2]} for i in range(60)]
    if not gradients:
        with pytest.raises(
            InputError, match=r"60 examples and a text after them may take \d+ positions, the model has 1"
        ):
            adapt(tmp_path, many)
        assert "give fewer or shorter examples" in str(base.adapt([base.asked(many)])[0])
    several = base.adapt([base.asked(SUPPORT), base.asked(SUPPORT[::-1])])
    for task, of in zip(several, base.predict([(task, TEXTS) for task in several]), strict=True):
        rows = SUPPORT if task is several[0] else SUPPORT[::-1]
        for one, same in zip(of, adapt(tmp_path, rows).predict(TEXTS), strict=True):
            assert one["probabilities"] == pytest.approx(same["probabilities"], abs=1e-4)

    # The card's own code, without distmeta: of the run, and of the task with its support set.
    pairs = [(row["text"], row["label"]) for row in SUPPORT]
    for source in ([tmp_path] if in_context else []) + [tmp_path / "adapted"]:
        out = export(source, tmp_path / f"export-{source.name}")
        about = json.loads((out / "adapter_config.json").read_text())
        assert (about["task_type"], about["target_modules"], about["r"]) == ("CAUSAL_LM", ["q_proj", "v_proj"], 8)
        assert not (out / "model.safetensors").exists()  # a PEFT adapter on the base as it was published
        reads = (out / "context.json").exists()
        assert reads == (source != tmp_path and not gradients)
        classify = by_card(out, monkeypatch)["classify"]
        for text, of in zip(TEXTS, first, strict=True):
            found = classify(pairs, text) if source == tmp_path else classify(text)
            assert found == pytest.approx(of["probabilities"], abs=1e-4)
        if reads:
            words = json.loads((out / "context.json").read_text())
            assert words["labels"] == adapted.labels and all(row["text"] in words["text"] for row in SUPPORT)


def by_card(out, monkeypatch):
    """What the code of an export's card defines."""
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    monkeypatch.chdir(out)
    names = {}
    exec(code, names)
    return names


def test_an_answer_in_words_that_is_learnt_in_context_is_exported_with_its_support_set(folder, tmp_path, monkeypatch):
    small.decoder(folder / "words")
    rows = [{"task": f"t{t}", "input": f"{word} thing", "target": word} for t in range(6) for word in small.PLENTY]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = small.checkpoint_of(
        tmp_path / "step-000001", tmp_path / "data.jsonl", task={"family": "text_to_text"}, outer={"base": "freeze"},
        model={"pretrained": str(folder / "words"), "max_tokens": 60, "answer_tokens": 8}, **CASES["in_context"],
    )  # fmt: skip
    support = [{"input": "a cold thing", "target": "blue"}, {"input": "hot", "target": "red"}]
    adapted = adapt(source, support)
    adapted.save(tmp_path / "adapted")
    out = export(tmp_path / "adapted", tmp_path / "export")
    answer = by_card(out, monkeypatch)["answer"]
    inputs = ["a hot thing", "cold", "so flat"]
    assert [answer(text) for text in inputs] == [one["text"] for one in adapted.predict(inputs)]
    assert json.loads((out / "context.json").read_text())["text"] == "a cold thing\nblue</s>hot\nred</s>"
    state = {key: value for key, value in adapted.state.items() if key != "context"}
    dataclasses.replace(adapted, state=state).save(tmp_path / "older")
    with pytest.raises(InputError, match="adapt to that again"):
        export(tmp_path / "older", tmp_path / "again")


def test_a_letter_means_another_label_in_another_episode(folder):
    from distmeta.tasks.episodes import sample_episode
    from distmeta.tasks.store import open_store

    config = letters(folder, **CASES["in_context"])
    store = open_store(prepare_store(config))
    orders = {sample_episode(store, config.task, 0, "train", i).label_names for i in range(12)}
    assert orders == {("no", "yes"), ("yes", "no")}


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"model": {"head": "prototype"}}, "model.head = prototype: it has no features"),
        ({"algorithm": "anil", "outer": {"base": "train"}}, "inner.adapt = head: there is no head"),
        ({"algorithm": "proto_maml"}, "model.head = prototype"),
        ({"inner": {"adapt": "head"}}, "inner.adapt = head: there is no head"),
        ({"task": {"family": "classes", "ways": 27, "labels": "letters"}}, "task.ways = 27: there are 26 letters"),
        ({"task": {"family": "text_to_text", "labels": "letters"}}, "task.labels = letters: there are no labels"),
        ({"task": {"labels": "head", "prompt": "chat"}}, "task.prompt = chat belongs to a language model"),
        ({"eval": {"normalise": "length"}}, "eval.normalise = length belongs to task.labels=words, and to the options"),
        ({"task": {"labels": "words", "permute_labels": True}}, "a label keeps its words in every episode"),
        ({"task": {"augment": {"token_dropout": 0.1}, "labels": "letters"}}, "task.augment = on"),
        ({"cluster": {"episode": "group"}}, "cluster.episode = group|group"),
        ({"model": {"head": "context"}, "task": {"shots": 1}}, "task.shots = 1: with inner.steps above 0"),
        ({"model": {"head": "context"}, "task": {"least_shots": 1}}, "task.least_shots = 1: the inner loss in context"),
        ({"task": {"least_shots": 3}}, "task.least_shots = 3: more than task.shots = 2; lower it"),
        ({"task": {"least_ways": 2}}, "task.least_ways = 2: task.family = domain has no number of ways"),
        ({"task": {"family": "classes", "least_ways": 6}}, "task.least_ways = 6: more than task.ways = 5"),
        ({"task": {"family": "classes", "least_ways": 2, "labels": "head"}}, "the head of this model has one number"),
    ],
)
def test_what_letters_do_not_go_with_is_refused(folder, sections, line):
    with pytest.raises(InputError, match=line):
        letters(folder, **sections)


@pytest.mark.parametrize("labels", ["letters", "words"])
def test_a_context_that_does_not_fit_is_refused_before_anything_starts(folder, labels):
    config = letters(folder, **CASES["in_context"], task={"labels": labels, "shots": 8})
    with pytest.raises(InputError, match=r"may take 1\d{3} positions, the model has 1024; lower task.shots"):
        prepare_store(config)


def test_without_a_pretrained_decoder_letters_are_refused_before_anything_starts(tmp_path):
    from distmeta.config.consistency import check_used

    with pytest.raises(InputError, match="task.labels = letters needs a pretrained decoder"):
        check_used(load_config("llm"))
