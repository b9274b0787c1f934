"""Runs of family text_to_text: trained, scored, adapted and asked, as a user does it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import small
import torch

import distmeta
from distmeta import health
from distmeta.drive.train import prepare_store
from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt, load_adapted
from distmeta.evaluation.scoring import Scoring, summarise
from distmeta.evaluation.texts import TextScored, fit_whole, score_texts, text_details
from distmeta.learner.worker import learn
from distmeta.tasks.records import Record
from distmeta.tasks.tokenizer import train_tokenizer

SMALL = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2},
}


def configured(kind="gpt2", **sections):
    base = {
        "model": {"max_tokens": 24, "answer_tokens": 4, "vocab_size": 300, "config": SMALL[kind]},
        "task": {"family": "text_to_text", "shots": 4, "queries": 4},
        "outer": {"steps": 3, "meta_batch_size": 2},
        "eval": {"episodes": 3},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values} if isinstance(values, dict) else values
    return small.config(architecture=kind, **base)


def learnt(config, folder):
    folder.mkdir()
    learn(config, folder, prepare_store(config), [], 0, 1, torch.device("cpu"))
    return folder, json.loads((folder / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def run(one_rank, tmp_path_factory):
    """A run whose tasks have options: yes or no, by what the word in the input is."""
    folder = tmp_path_factory.mktemp("text")
    words = {"fruit": ["apple", "pear", "plum", "fig"], "tool": ["saw", "axe", "file", "drill"]}
    rows = [
        {"input": f"a {word}", "target": ["yes", "yeah"] if kind == asked else "no", "options": ["yes", "no"],
         "task": f"is a {asked} {i}", "instruction": f"is it a {asked}"}
        for i in range(3) for asked in words for kind, found in words.items() for word in found
    ]  # fmt: skip
    path = folder / "yes.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = configured(data={"path": str(path)}, run={"checkpoint_every": 3})
    return learnt(config, folder / "run")


def test_a_run_is_scored_in_words_and_by_loss(run):
    _, methods = run
    assert set(methods) == {"meta_trained", "no_adaptation", "fine_tuned", "multi_task", "in_context"}
    for scores in methods.values():
        assert {"exact_match", "token_f1", "rouge_l", "bleu", "chrf", "perplexity", "loss"} <= set(scores)
        assert scores["option_accuracy"] == scores["exact_match"]
        assert 0 <= scores["option_ece"]["mean"] <= 1 and "free_match" in scores
    assert len(methods["meta_trained"]["loss"]["curve"]) == 3
    assert methods["meta_trained"]["loss"]["curve"][0] == pytest.approx(methods["no_adaptation"]["loss"]["mean"])
    details = json.loads((run[0] / "evaluation_details.json").read_text())["meta_trained"]
    assert details["worst_task"]["task"] in details["per_task"]
    assert all(answer["said"] in ("yes", "no") for answer in details["answers"])
    assert details["options"]["accuracy"] == pytest.approx(methods["meta_trained"]["option_accuracy"]["mean"])


def test_an_adapted_model_answers_with_an_option(run, tmp_path):
    rows = [{"input": "a pear", "target": "yes", "options": ["yes", "no"]},
            {"input": "a saw", "target": "no", "options": ["yes", "no"]}]  # fmt: skip
    found = adapt(run[0], rows, steps=80)
    assert found.inner_losses[-1] < found.inner_losses[0]
    said = found.predict(["a pear", "a saw"])
    assert [one["text"] for one in said] == ["yes", "no"]
    assert all(0.5 < one["confidence"] <= 1 for one in said)
    again = load_adapted(found.save(tmp_path / "adapted"))
    assert again.predict(["a pear", "a saw"]) == said


def test_an_adapted_model_answers_freely_and_alone_as_among_others(run, tmp_path):
    path = tmp_path / "few.csv"
    path.write_text("input,target\na pear,yes\na saw,no\n")
    found = adapt(run[0], path, steps=60)
    texts = ["a pear", "a saw", "a longer line about a pear"]
    said = found.predict(texts)
    assert [one["text"] for one in said[:2]] == ["yes", "no"]
    for text, together in zip(texts, said, strict=True):
        (alone,) = found.predict([text])
        assert alone["text"] == together["text"]
        assert alone["confidence"] == pytest.approx(together["confidence"], abs=1e-4)


def test_a_bad_support_row_is_one_line(run):
    with pytest.raises(InputError, match=r"support, example 1: 'target' \(data.target\) is empty"):
        adapt(run[0], [{"input": "a", "target": "b"}, {"input": "c"}])
    with pytest.raises(InputError, match="support: no example in it"):
        adapt(run[0], [])


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_scores_by_groups_are_scores_one_by_one(kind, tmp_path):
    config = configured(kind, inner={"adapt": "lora"}, eval={"baselines": False, "episodes": 4})
    store, found = prepare_store(config), []
    from distmeta.algorithms.rates import inner_loop
    from distmeta.models.build import build_model
    from distmeta.tasks.episodes.episode import sample_episode
    from distmeta.tasks.store import open_store

    store = open_store(store)
    model = build_model(config, store.vocab_size, store.pad_id, 1)
    episodes = [sample_episode(store, config.task, 0, "test", i) for i in range(4)]
    for tasks in (4, 1):
        fit = config.model_copy(update={"inner": config.inner.model_copy(update={"task_batch": tasks})})
        loop = inner_loop(config.inner, {})
        scoring = Scoring(model, model.fast, model.shared, loop, fit, store.pad_id, torch.device("cpu"))
        found.append(score_texts(scoring, episodes, store=store))
    for together, alone in zip(*found, strict=True):
        order = [alone.records.index(record) for record in together.records]
        assert [alone.said[-1][i] for i in order] == list(together.said[-1])
        np.testing.assert_allclose(together.loss, alone.loss, rtol=1e-5)
        assert len(together.loss) == 3 and len(together.said) == 2


def test_metrics_take_the_best_of_the_accepted_answers():
    record = Record("q", ("a red lamp", "lamp"))
    scored = TextScored("t", ("answer",), (record, record), np.array([1.0, 0.5]), np.array([1.0, np.log(2)]),
                        np.array([0.0, 0.5]), (("x", "x"), ("lamp", "blue chair")), np.ones(2, bool))  # fmt: skip
    found = scored.metrics()
    assert found["exact_match"].tolist() == [0.5] and found["perplexity"][-1] == pytest.approx(2.0)
    assert scored.at_start().metrics()["exact_match"].tolist() == [0.0]
    nothing = (*[np.array([np.nan])] * 2, np.zeros(1))
    diverged = TextScored("t", ("answer",), (record,), *nothing, (("x",),), np.ones(1, bool)).metrics()
    assert all(np.isfinite(values).all() for values in diverged.values())


def test_options_and_free_answers_are_scored_side_by_side():
    record = Record("q", ("lamp",), ("lamp", "chair"))
    numbers = [np.array([1.0])] * 3
    optional = TextScored("t", ("answer",), (record, record), *numbers, (("lamp", "chair"),), np.ones(2, bool),
                          (np.array([0.9, 0.6]),), (("a lamp!", "red"),))  # fmt: skip
    open_one = TextScored("t", ("answer",), (Record("q", ("x",)),), *numbers, (("x",),), np.ones(1, bool))
    found = summarise([open_one, optional])  # data may have both
    assert (found["exact_match"]["mean"], found["exact_match"]["episodes"]) == (0.75, 2)
    assert (found["option_accuracy"]["mean"], found["option_accuracy"]["episodes"]) == (0.5, 1)
    assert found["option_ece"]["mean"] == pytest.approx((0.1 + 0.6) / 2)
    assert found["free_match"]["mean"] == 0.5
    assert text_details([open_one, optional])["options"]["rows"] == 2
    assert "options" not in text_details([open_one])


def test_answers_too_long_to_be_said_are_scored_whole_and_counted():
    """The reference is never cut with the answer; the scores of the rows that can be answered stand beside."""
    tokenizer = train_tokenizer(["a red lamp stands here"] * 3, "word", 300)
    rows = (Record("q", ("a red lamp stands here",)), Record("q", ("a red", "lamp lamp lamp")),
            Record("q", ("a red lamp stands here",), ("a red lamp stands here",)))  # fmt: skip
    fits = fit_whole(rows, tokenizer, most=4)  # three tokens and the end
    assert fits.tolist() == [False, True, True]
    numbers = [np.array([1.0])] * 3
    scored = TextScored("t", ("answer",), rows[:2], *numbers, (("a red lamp", "a red"),), fits[:2])
    assert scored.metrics()["exact_match"].tolist() == [0.5]
    details = text_details([scored])
    assert {k: details["fitting_answers"][k] for k in ("rows", "of", "exact_match")} == {
        "rows": 1, "of": 2, "exact_match": 1.0,
    }  # fmt: skip
    (warning,) = health.of_evaluation({"loss": {}}, details, None)
    assert warning["what"].startswith("1 of 2 right answers are longer") and "answer_tokens" in warning["key"]
    assert "fitting_answers" not in text_details([replace(scored, fits=np.ones(2, bool))])


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"model": {"head": "prototype"}}, "model.head = prototype: an answer has no class"),
        ({"task": {"permute_labels": True}}, "task.permute_labels = true"),
        ({"algorithm": "anil"}, "algorithm = anil"),
        ({"model": {"answer_tokens": 24}}, "model.answer_tokens = 24"),
        ({"task": {"ways": 3}}, "task.ways belongs to task.family=classes"),
    ],
)
def test_what_does_not_go_together_is_one_line(sections, says):
    with pytest.raises(InputError, match=says):
        configured(**sections)
    with pytest.raises(InputError, match="data.layout = crossfit belongs to task.family=text_to_text"):
        distmeta.train(small.config(data={"layout": "crossfit"}))


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(("kind", "adapt", "head"), [("gpt2", "lora", "linear"), ("t5", "all", "linear"),
                                                     ("gpt2", "lora", "context")])  # fmt: skip
def test_an_export_answers_as_its_card_says(kind, adapt, head, tmp_path):
    """The card's own code, without distmeta, gives the answers of the adapted model."""
    from distmeta.evaluation.adapt import adapt as fit
    from distmeta.export.export import export

    config = configured(
        kind, inner={"adapt": adapt}, eval={"baselines": False}, run={"checkpoint_every": 3}, model={"head": head}
    )
    folder, _ = learnt(config, tmp_path / "run")
    rows = [{"input": f"{word} from oslo bought two red lamps", "target": word} for word in ("anna", "hugo", "ines")]
    found = fit(folder, rows, steps=20)
    texts = [row["input"] for row in rows] + ["jonas from oslo bought two blue boats", "ines bought red lamps " * 20]
    said = [one["text"] for one in found.predict(texts)]
    out = export(found.save(tmp_path / "adapted"), tmp_path / "out")
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0].replace('"."', repr(str(out)))
    names: dict = {}
    exec(code, names)
    assert [names["answer"](text) for text in texts] == said
    export(folder, tmp_path / "initial")
