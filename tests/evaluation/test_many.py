"""Many tasks adapted to at once are each what `distmeta adapt` makes of it alone."""

import json
import math

import pytest
import small

from distmeta.cli.adapting import adapt as adapt_command
from distmeta.errors import InputError
from distmeta.evaluation import many
from distmeta.evaluation.adapt import adapt, load_adapted
from distmeta.evaluation.many import adapt_each, folder_name

TEXTS = ["the red thing", "it is a cold blue thing", "so hot"]
IN_CONTEXT = {"algorithm": "in_context", "inner": {"adapt": "lora", "steps": 0}}
WORDS = {"task": {"family": "text_to_text"}, "model": {"answer_tokens": 8}}
KINDS = {
    "classes": {"inner": {"adapt": "lora"}},
    "letters": {"task": {"labels": "letters"}, **IN_CONTEXT},
    "words": {**WORDS, "inner": {"adapt": "lora", "lr": 0.05}},
    "words in context": {**WORDS, **IN_CONTEXT},
}


def support_of(number, each=2):
    words = {"yes": small.PLENTY[number], "no": small.PLENTY[number + 6]}
    return [{"text": f"{filler} {word} thing", "label": label}
            for filler in ("the", "a so")[:each] for label, word in words.items()]  # fmt: skip


def made(kind, folder):
    """(a checkpoint of the kind, rows of five tasks by name, of two sizes)."""
    sections = {name: dict(of) if isinstance(of, dict) else of for name, of in KINDS[kind].items()}
    answers = "words" in kind
    data = folder / "data.jsonl"
    if answers:
        data.write_text("\n".join(json.dumps({"task": f"t{t}", "input": f"{word} thing", "target": word})
                                  for t in range(6) for word in small.PLENTY))  # fmt: skip
    else:
        data = small.write_domains(folder / "data.csv")
    if kind != "classes":
        small.decoder(folder / "model")
        sections["model"] = {"pretrained": str(folder / "model"), "max_tokens": 60, **sections.get("model", {})}
    sets = {f"set/{t}": support_of(t, each=1 + t % 2) for t in range(5)}
    if answers:
        sets = {name: [{"input": row["text"], "target": row["label"], "instruction": name} for row in rows]
                for name, rows in sets.items()}  # fmt: skip
    return small.checkpoint_of(folder / "step-000001", data, **sections), sets


@pytest.mark.parametrize("kind", KINDS)
def test_many_tasks_are_what_each_is_alone(kind, tmp_path, monkeypatch):
    source, sets = made(kind, tmp_path)
    (tmp_path / "sets.jsonl").write_text(
        "\n".join(json.dumps({**row, "topic": name}) for name, rows in sets.items() for row in rows)
    )
    batches, fit = [], many.fit
    monkeypatch.setattr(many, "fit", lambda *given: batches.append(len(given[1])) or fit(*given))
    together = {
        name: adapted.save(tmp_path / "out" / folder_name(name))
        for name, adapted in adapt_each(source, str(tmp_path / "sets.jsonl"), "topic")
    }
    assert set(together) == set(sets) and sorted(batches) == [2, 3]
    for name, rows in sets.items():
        alone, one = adapt(source, rows), load_adapted(together[name])
        assert one.inner_losses == pytest.approx(alone.inner_losses, abs=1e-5) and one.labels == alone.labels
        assert all(map(math.isfinite, one.inner_losses))  # one example of each label too
        assert one.state == alone.state  # the instruction, and the text of what is read in context
        for expected, found in zip(alone.predict(TEXTS), one.predict(TEXTS), strict=True):
            assert found.keys() == expected.keys() and found.get("text") == expected.get("text")
            assert found["confidence"] == pytest.approx(expected["confidence"], abs=1e-4)


def test_each_file_of_a_directory_is_a_task_and_leaves_as_peft(tmp_path, capsys):
    source, sets = made("letters", tmp_path)
    (tmp_path / "sets").mkdir()
    for name, rows in sets.items():
        (tmp_path / "sets" / f"{name[-1]}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    adapt_command(str(source), str(tmp_path / "sets"), tmp_path / "out", "file", True, None, "best", True)
    report = json.loads(capsys.readouterr().out)
    assert set(report["tasks"]) == set("01234") and report["failed"] == {}
    for name, of in report["tasks"].items():
        folder = tmp_path / "out" / name
        assert of["out"] == str(folder) and of["labels"] == ["yes", "no"]
        assert {"adapter_config.json", "adapter_model.safetensors", "context.json"} <= {
            f.name for f in folder.iterdir()
        }
        assert all(row["text"] in (folder / "context.json").read_text() for row in sets[f"set/{name}"])
    with pytest.raises(
        InputError, match="48 examples and a text after them may take 1[0-9]* positions, the model has 1024"
    ):
        adapt(source, sets["set/1"] * 12)


def test_a_task_that_diverges_is_told_and_the_others_are_there(tmp_path, capsys, monkeypatch):
    source, sets = made("classes", tmp_path)
    (tmp_path / "sets.jsonl").write_text(
        "\n".join(json.dumps({**row, "task": name}) for name, rows in sets.items() for row in rows)
    )
    fit = many.fit

    def diverging(*given):
        return [(params, [*losses[:-1], float("nan")] if len(losses) and i == 0 else losses)
                for i, (params, losses) in enumerate(fit(*given))]  # fmt: skip

    monkeypatch.setattr(many, "fit", diverging)
    with pytest.raises(ArithmeticError, match="2 of 5 tasks could not be adapted to: set/0, set/1"):
        adapt_command(str(source), str(tmp_path / "sets.jsonl"), tmp_path / "out", "task", False, None, "best", False)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"set%2F2", "set%2F3", "set%2F4"}
    assert "warning: set/1: the inner loop diverges" in capsys.readouterr().err
    with pytest.raises(InputError, match="not empty"):
        adapt_command(str(source), str(tmp_path / "sets.jsonl"), tmp_path / "out", "task", False, None, "best", False)


def test_what_cannot_be_adapted_to_is_one_line_before_any_is(tmp_path, monkeypatch):
    source, _ = made("classes", tmp_path)
    monkeypatch.setattr(many, "fit", None)
    good = [{**row, "task": "good"} for row in support_of(0)]
    for rows, each, line in (
        ([*good, {"text": "red", "label": "yes", "task": "bad"}], "task", "task bad: one label only"),
        (good, "topic", "no column 'topic'"),
        ([{**row, "task": "."} for row in good], "task", "cannot name a directory"),
    ):
        (tmp_path / "sets.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(InputError, match=line):
            list(adapt_each(source, str(tmp_path / "sets.jsonl"), each))
    whole = small.checkpoint_of(tmp_path / "whole" / "step-000001", tmp_path / "data.csv", inner={"adapt": "all"})
    with pytest.raises(InputError, match="--peft writes LoRA adapters, and inner.adapt of .* is all"):
        adapt_command(str(whole), "sets.jsonl", tmp_path / "no", "task", True, None, "best", False)
