"""What a model sees, as text."""

import json
import re

import small

from distmeta.tasks.build import build_store
from distmeta.tasks.shown import shown
from distmeta.tasks.store import open_store


def seen(config):
    return shown(open_store(build_store(config.data, config.task, config.model)), config)


def test_letters_are_shown_as_one_context(tmp_path):
    data, model = small.write_domains(tmp_path / "data.csv"), {"pretrained": str(small.decoder(tmp_path / "m"))}
    text = seen(
        small.config(data, task={"labels": "letters", "shots": 3, "queries": 2}, model=model | {"max_tokens": 90})
    )
    parts = text.split("\n\n")
    assert len(parts) == 4 and parts[3] == ""
    assert all(part.startswith("Input: ") and part[-10:-1] == "\nLabel:⇒ " for part in parts[:3])
    assert {part[-1] for part in parts[:3]} <= {"A", "B"}


def test_answers_in_context_have_their_instruction_once(tmp_path):
    rows = [{"input": f"in {i}", "target": f"out {i}", "task": f"t{t}", "instruction": "copy"}
            for t in range(8) for i in range(6)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small.decoder(tmp_path / "m")
    base = {"pretrained": str(tmp_path / "m"), "max_tokens": 60, "answer_tokens": 8}
    task = {"family": "text_to_text", "prompt": "plain", "shots": 3, "queries": 2}
    for algorithm in ("in_context", "fomaml"):
        sections = {"algorithm": algorithm, "inner": {"adapt": "lora", "steps": int(algorithm == "fomaml")}}
        text = seen(small.config(tmp_path / "rows.jsonl", task=task, model=base, **sections))
        one = "Input: in .\nOutput:⇒ out .</s>"
        together = f"copy\n\n{one}(\n\n{one}){{2}}" if algorithm == "in_context" else f"(copy\n\n{one}\n?){{3}}"
        assert re.fullmatch(together, text), text


def test_words_are_shown_as_the_prompt_writes_them(tmp_path):
    data, model = small.write_domains(tmp_path / "data.csv"), {"pretrained": str(small.decoder(tmp_path / "m"))}
    task = {"labels": "words", "shots": 3, "queries": 2, "prompt": "Q: {{ input }}\nA: {{ target }}\n--\n"}
    text = seen(small.config(data, task=task, model=model | {"max_tokens": 90}))
    parts = text.split("\n--\n")
    assert len(parts) == 4 and parts[3] == ""
    assert all(part.startswith("Q: ") for part in parts[:3])
    assert {part.partition("\nA:⇒ ")[2] for part in parts[:3]} <= {"yes", "no"}


def test_a_classifier_is_shown_its_special_tokens_and_an_answer_follows_its_prompt(words_csv):
    rows = seen(small.config(words_csv)).split("\n")
    assert len(rows) == 3 and all(row.startswith("[CLS]") and "[SEP]⇒ " in row for row in rows)
    text = {"family": "text_to_text", "shots": 3, "queries": 2}
    answers = seen(small.config(architecture="gpt2", task=text, model={"max_tokens": 30, "answer_tokens": 6}))
    assert all(row.count("⇒") == 1 for row in answers.split("\n") if row)
