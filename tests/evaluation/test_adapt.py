"""From a few labelled examples to an adapted model on disk, and its predictions."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from small import checkpoint_of

import distmeta
from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt, load_adapted
from distmeta.evaluation.evaluate import load_model
from distmeta.evaluation.scoring import Scoring, score_episodes, split_meta
from distmeta.export.export import export
from distmeta.inner import InnerLoop
from distmeta.runs import checkpoint
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

TEXTS = ["the red thing", "it is a cold blue thing", "so hot", "small", "a round flat sharp thing it is so"]


def rows(*pairs):
    return [{"text": text, "label": label} for text, label in pairs]


def tasks(*pairs):
    return [{"text": text, "task": label} for text, label in pairs]


SUPPORT = rows(("the red thing", "yes"), ("hot hot", "yes"), ("a cold blue thing it is", "no"), ("so flat", "no"))


@pytest.fixture(scope="module")
def domain(tmp_path_factory, words_csv):
    return checkpoint_of(tmp_path_factory.mktemp("domain") / "step-000001", words_csv)


@pytest.fixture(scope="module")
def ways(tmp_path_factory, words_csv):
    """Two ways over the classes task0, task1, ... of the same file, its column `task` called the label."""
    return checkpoint_of(tmp_path_factory.mktemp("ways") / "step-000001", words_csv, **CLASSES)


CLASSES = {"task": {"family": "classes", "ways": 2}, "data": {"label": "task", "fractions": [0.6, 0.0, 0.4]}}
VARIANTS = {
    "all": {},
    "lora": {"inner": {"adapt": "lora", "learn_lr": "per_layer"}},
    "prototype": {"model": {"head": "prototype"}, "inner": {"learn_lr": "per_parameter", "lr": 0.01}},
    "decoder": {"architecture": "qwen2", "inner": {"lr": 0.01}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_predicts_the_same(variant, tmp_path, words_csv):
    source = checkpoint_of(tmp_path / "step-000001", words_csv, **VARIANTS[variant])
    adapted = adapt(source, SUPPORT)
    assert len(adapted.inner_losses) == 2 + 1 and adapted.inner_losses[-1] < adapted.inner_losses[0]
    found = adapted.predict(TEXTS * 60)  # more than a batch
    assert len(found) == 300 and found[:5] == found[5:10]
    adapted.save(tmp_path / "out")
    loaded = load_adapted(tmp_path / "out")
    assert loaded.predict(TEXTS * 60) == found
    assert loaded.labels == ["no", "yes"] and loaded.inner_losses == adapted.inner_losses
    for prediction in found:
        assert set(prediction) == {"label", "confidence", "probabilities"}
        assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        best = max(prediction["probabilities"], key=prediction["probabilities"].get)
        assert prediction["label"] == best and prediction["confidence"] == prediction["probabilities"][best]
    alone = [adapted.predict([text])[0] for text in TEXTS]
    for one, many in zip(alone, found, strict=False):
        assert one["probabilities"] == pytest.approx(many["probabilities"], abs=1e-5)


def test_what_is_read_in_context_is_saved_and_answers_the_same(tmp_path, words_csv):
    long = {"head": "context", "config": {**small.BACKBONES["gpt2"], "n_positions": 256}}
    source = checkpoint_of(
        tmp_path / "step-000001", words_csv, architecture="gpt2", algorithm="in_context", model=long, inner={"steps": 0}
    )
    adapted = adapt(source, SUPPORT)
    found = adapted.predict(TEXTS)
    assert len(adapted.inner_losses) == 1
    adapted.save(tmp_path / "out")
    assert load_adapted(tmp_path / "out").predict(TEXTS) == found
    turned = [{**row, "label": {"yes": "no", "no": "yes"}[row["label"]]} for row in SUPPORT]
    other = adapt(source, turned).predict(TEXTS)
    assert other[0]["probabilities"] != pytest.approx(found[0]["probabilities"], abs=1e-7)  # it has read the labels
    with pytest.raises(InputError, match="has no Hugging Face form"):
        export(tmp_path / "out", tmp_path / "export")


def test_adapting_is_what_evaluation_does(tmp_path, words_csv):
    """The same support set and steps: `predict` says what the evaluation counted, also of what does not adapt."""
    source = checkpoint_of(tmp_path / "step-000001", words_csv, inner={"adapt": "head"})
    saved = checkpoint.load(source)
    store = open_store(build_store(saved.config.data, saved.config.task, saved.config.model))
    episode = sample_episode(store, saved.config.task, 0, "test", 3)
    fast, shared, _ = split_meta(load_model(saved), saved.meta)
    loop = InnerLoop(steps=2, lr=0.2)
    scoring = Scoring(load_model(saved), fast, shared, loop, saved.config, 0, torch.device("cpu"))
    (scored,) = score_episodes(scoring, [episode])

    def texts(part):
        return [(store.text(row), store.labels[label]) for row, label in zip(part.rows, part.labels, strict=True)]

    found = adapt(source, rows(*texts(episode.support))).predict([text for text, _ in texts(episode.query)])
    losses = [-np.log(p["probabilities"][label]) for p, (_, label) in zip(found, texts(episode.query), strict=True)]
    assert np.mean(losses) == pytest.approx(scored.loss[-1], abs=1e-5)
    right = [p["label"] == label for p, (_, label) in zip(found, texts(episode.query), strict=True)]
    assert sum(right) == int((scored.predicted[-1] == scored.labels).sum())


def test_steps_and_label_order(ways):
    still = adapt(ways, tasks(("red", "b"), ("blue", "a")), steps=0)
    assert still.labels == ["b", "a"]  # as they come
    assert len(still.inner_losses) == 1
    assert len(adapt(ways, tasks(("red", "b"), ("blue", "a")), steps=4).inner_losses) == 5


def test_a_prototype_head_takes_any_number_of_labels(tmp_path, words_csv):
    source = checkpoint_of(tmp_path / "step-000001", words_csv, model={"head": "prototype"}, **CLASSES)
    adapted = adapt(source, tasks(*((text, str(i)) for i, text in enumerate(TEXTS))), steps=0)
    found = adapted.predict(TEXTS)
    assert list(found[0]["probabilities"]) == ["0", "1", "2", "3", "4"]
    assert [p["label"] for p in found] == adapted.labels  # each support text is nearest to itself
    adapted.save(tmp_path / "out")
    assert load_adapted(tmp_path / "out").predict(TEXTS) == found


def test_unusable_support_is_one_line(domain, ways, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "one.jsonl").write_text('{"text": "a", "label": "yes"}\n{"text": "b", "label": "yes"}\n')
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "yes"}\n{"text": "b"\n')
    cases = [
        (domain, rows(("red", "yes"), ("blue", "maybe")), "label 'maybe' is not one the model knows: no, yes"),
        (domain, rows(("red", "yes"), ("blue", "yes")), "one label only \\('yes'\\)"),
        (ways, tasks(("red", "a"), ("blue", "b"), ("hot", "c")), "3 labels, but the model was meta-trained for 2"),
        (ways, [], "no example in it"),
        (ways, [{"text": "red"}], "support, example 0: no 'task'"),
        (ways, [{"text": 3, "task": "a"}], "'text' is 3, not a text"),
        (domain, tmp_path / "empty.csv", "empty.csv: the file is empty"),
        (domain, tmp_path / "header.csv", "header.csv: holds no examples"),
        (domain, tmp_path / "one.jsonl", "one.jsonl: one label only"),
        (domain, tmp_path / "bad.jsonl", "bad.jsonl line 2"),
        (domain, tmp_path / "absent.csv", "absent.csv: no such file"),
        (tmp_path, SUPPORT, "not a run .* and not a checkpoint"),
    ]
    for source, support, expected in cases:
        with pytest.raises(InputError, match=expected) as caught:
            adapt(source, support)
        assert "\n" not in str(caught.value)


def test_what_is_there_is_never_overwritten(domain, tmp_path):
    adapted = adapt(domain, SUPPORT)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(InputError, match="exists already"):
            adapted.save(tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    adapted.save(tmp_path / "empty")
    assert sorted(p.name for p in (tmp_path / "empty").iterdir()) == [
        "adapted.json", "adapted.safetensors", "config.yaml", "manifest.json", "tokenizer.json",
    ]  # fmt: skip


def test_what_is_no_adapted_model_is_one_line(domain, tmp_path):
    with pytest.raises(InputError, match="not an adapted model"):
        load_adapted(domain)
    adapted = adapt(domain, SUPPORT).save(tmp_path / "out")
    content = (adapted / "adapted.safetensors").read_bytes()
    (adapted / "adapted.safetensors").write_bytes(content[:-1] + b"?")
    with pytest.raises(InputError, match="damaged: adapted.safetensors was changed"):
        load_adapted(adapted)


def test_fewer_steps_than_none_are_refused(domain):
    with pytest.raises(InputError, match="steps = -1: 0 or more"):
        adapt(domain, SUPPORT, steps=-1)


def test_what_has_no_text_is_refused(tmp_path, words_csv):
    for architecture in ("bert", "gpt2"):
        source = checkpoint_of(tmp_path / architecture, words_csv, architecture=architecture)
        adapted = adapt(source, SUPPORT, steps=0)
        assert adapted.predict([]) == []
        for text, reason in ((" ", "not a text"), (3, "is 3, not a text"), ("half \ud83d", "surrogate")):
            with pytest.raises(InputError, match=f"^text 1 .*{reason}"):
                adapted.predict(["fine", text])


def test_a_file_without_the_run_s_column_says_what_to_rename(domain, tmp_path):
    (tmp_path / "a.csv").write_text("body,label\nred,yes\nblue,no\n")
    with pytest.raises(InputError, match="no column 'text'.*the run's is 'text': rename one of them"):
        adapt(domain, tmp_path / "a.csv")


@pytest.mark.long
def test_the_two_verbs(domain, tmp_path):
    """adapt and predict in processes of their own, once each."""
    lines = "".join(json.dumps(row) + "\n" for row in SUPPORT)
    (tmp_path / "support.jsonl").write_text(lines)
    done = small.cli("adapt", str(domain), "--support", "support.jsonl", "--out", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["labels"] == ["no", "yes"]
    predicted = small.cli("predict", "out", "--input", "-", cwd=tmp_path, stdin="\n\n".join(TEXTS))
    assert predicted.returncode == 0, predicted.stderr
    printed = [json.loads(line) for line in predicted.stdout.splitlines()]
    assert printed[::2] == load_adapted(tmp_path / "out").predict(TEXTS) and printed[1::2] == [None] * 4
    again = small.cli("adapt", str(domain), "--support", "support.jsonl", "--out", "out", cwd=tmp_path)
    assert again.returncode == 2 and len(again.stderr.strip().splitlines()) == 1


def test_a_run_through_python(undisturbed):
    adapted = distmeta.adapt(undisturbed.run, SUPPORT)
    assert {p["label"] for p in adapted.predict(TEXTS)} <= {"yes", "no"}


def test_nothing_that_is_loaded_can_run_code():
    forbidden = re.compile(
        r"torch\.load|pickle\.(load|Unpickler)|np\.load\(|allow_pickle=True|joblib|dill|trust_remote_code=True"
        r"|yaml\.(load|unsafe_load|full_load)\(|\beval\(|\bexec\(|use_safetensors=False"
    )
    for file in Path(distmeta.__file__).parent.rglob("*.py"):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            code = re.sub(r"\.eval\(", ".", line)  # a model's evaluation mode
            assert not forbidden.search(code), f"{file}:{number}: {line}"


def test_a_task_that_is_not_learnt_and_unknown_words_are_told(domain, tmp_path, capsys):
    from distmeta.cli import predict

    adapted = adapt(domain, SUPPORT, steps=0)
    assert adapted.warnings == () and adapted.unknown(TEXTS) == ""
    same = rows(*((text, label) for text in ("hot", "so") for label in ("yes", "no")))  # nothing tells them apart
    line = adapt(domain, same).warnings[0]
    assert re.search(r"support loss ends at 0\.\d+, which is chance \(ln 2 = 0.693\).*not learnt.*inner\.lr", line)
    strange = rows(("zyx wvu tsr", "yes"), ("qpo nml", "no"))
    assert "unknown words: 5 of 9 tokens (56%) are not in the vocabulary" in adapt(domain, strange).warnings[-1]
    (tmp_path / "in.txt").write_text("zyx wvu tsr\n")
    predict(str(adapted.save(tmp_path / "adapted")), str(tmp_path / "in.txt"))
    assert "warning: unknown words: 3 of 5 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("prompt", ["bare", "plain"])
def test_a_support_set_without_room_in_context_loses_its_oldest_examples_and_says_so(prompt, tmp_path):
    lines = [{"input": f"in {i}", "target": f"out {t}", "task": f"t{t}"} for t in range(6) for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    long = {"config": {**small.BACKBONES["gpt2"], "n_positions": 128}, "tokenizer": "bpe", "vocab_size": 400}
    source = checkpoint_of(
        tmp_path / "step-000001", tmp_path / "rows.jsonl", architecture="gpt2", algorithm="in_context",
        task={"family": "text_to_text", "shots": 1, "queries": 2, "prompt": prompt}, inner={"steps": 0},
        model={"max_tokens": 50, "answer_tokens": 8, **long},
    )  # fmt: skip
    support = [{"input": f"in {i}", "target": f"out {i}"} for i in range(60)]
    adapted = adapt(source, support)
    left_out = adapted.state["left_out"]
    assert 0 < left_out < 60 and any(f"the first {left_out} examples were left out" in w for w in adapted.warnings)
    kept = adapt(source, support[left_out:])
    assert kept.warnings == () and kept.predict(["in 9"]) == adapted.predict(["in 9"])
