"""lm-evaluation-harness scores a run, an adapted model and an export: the log-likelihoods are transformers'."""

import json

import pytest
import small
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt
from distmeta.export.export import export
from distmeta.export.harness import harness_model, likelihoods, load_decoder, rolling, tokens_of, written

PAIRS = [("a red", " thing"), ("", "blue"), ("so cold ", "it is"), ("x" * 30, "y")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    small.decoder(folder / "m")
    rows = [{"input": f"{word} thing", "target": word, "task": f"t{t}"} for t in range(6) for word in small.PLENTY]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small.checkpoint_of(
        folder / "step-000001", folder / "rows.jsonl", algorithm="in_context",
        task={"family": "text_to_text", "shots": 2, "queries": 2}, inner={"adapt": "lora", "steps": 0},
        model={"pretrained": str(folder / "m"), "max_tokens": 40, "answer_tokens": 8}, outer={"base": "freeze"},
    )  # fmt: skip
    return folder


def by_hand(folder, before, after):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = tokenizer(before, add_special_tokens=False).input_ids or [0]
    ids = torch.tensor([first + tokenizer(after, add_special_tokens=False).input_ids])
    with torch.no_grad():
        scores = model(ids).logits[0].log_softmax(-1)
    each = [(scores[i - 1, ids[0, i]], scores[i - 1].max()) for i in range(len(first), ids.shape[1])]
    return float(sum(score for score, _ in each)), all(score == most for score, most in each)


def test_log_likelihoods_are_those_of_transformers(folder):
    decoder = load_decoder(folder / "m")
    found = likelihoods(decoder, [tokens_of(decoder, *pair) for pair in PAIRS])
    for (before, after), (value, greedy) in zip(PAIRS, found, strict=True):
        space = before[len(before.rstrip()) :]
        expected = by_hand(folder / "m", before.rstrip(), space + after)
        assert value == pytest.approx(expected[0], abs=1e-4) and greedy == expected[1]
    whole = rolling(decoder, "a red thing")
    assert whole == pytest.approx(by_hand(folder / "m", "", "a red thing")[0], abs=1e-4)
    short = decoder._replace(limit=6)  # in windows of five tokens, each behind the token before it
    parts = [("", "a red"), ("d", " thin"), ("n", "g")]
    assert rolling(short, "a red thing") == pytest.approx(sum(by_hand(folder / "m", *p)[0] for p in parts), abs=1e-4)
    answer = written(decoder, "a red thing", {"until": ["\n"], "max_gen_toks": 5})
    assert "\n" not in answer and written(decoder, "a red thing", {"max_gen_toks": 5}).startswith(answer)


def test_a_checkpoint_its_export_and_an_adapted_model_are_asked_alike(folder, tmp_path):
    source = folder / "step-000001"
    export(source, tmp_path / "out")
    pairs = [[0, 5, 9], [4, 6]], [[7], [8, 9, 10]]
    base, trained, exported = (likelihoods(load_decoder(of), pairs) for of in (folder / "m", source, tmp_path / "out"))
    for one, other in zip(trained, exported, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4)
    assert trained[0][0] != pytest.approx(base[0][0], abs=1e-3)
    adapt(source, [{"input": "hot", "target": "red"}, {"input": "cold", "target": "blue"}]).save(tmp_path / "adapted")
    adapted = load_decoder(tmp_path / "adapted")
    assert len(adapted.context) > 10
    whole = [([*adapted.context, *before], after) for before, after in pairs]
    behind = likelihoods(adapted._replace(context=()), whole)
    assert likelihoods(adapted, pairs) == behind and behind[0][0] != trained[0][0]


def test_what_is_no_decoder_is_refused(words_csv, tmp_path):
    with pytest.raises(InputError, match="the harness asks a decoder"):
        load_decoder(small.checkpoint_of(tmp_path / "step-000001", words_csv))


def test_the_harness_itself_runs_a_task_of_a_file(folder, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    rows = [{"question": f"{word} thing is", "choices": [word, "not"], "answer": 0} for word in small.PLENTY]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "colours.yaml").write_text(json.dumps({
        "task": "colours", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }))  # fmt: skip
    tasks = pytest.importorskip("lm_eval.tasks").TaskManager(include_path=str(tmp_path), include_defaults=False)
    model = harness_model(folder / "step-000001")
    found = lm_eval.simple_evaluate(model=model, tasks=["colours"], task_manager=tasks, bootstrap_iters=0)
    decoder = load_decoder(folder / "step-000001")
    right = [
        a[0] > b[0]
        for row in rows
        for a, b in [likelihoods(decoder, [tokens_of(decoder, row["question"], f" {c}") for c in row["choices"]])]
    ]
    assert found["results"]["colours"]["acc,none"] == pytest.approx(sum(right) / len(right))
