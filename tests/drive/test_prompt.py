"""task.prompt=auto: chosen once, before the run, by what the untrained model reads better."""

import io
import json
import runpy
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import small

from distmeta.config import dump_config, make_config
from distmeta.config.templates import PAIRS
from distmeta.drive.prompt import sentence, with_prompt
from distmeta.drive.train import prepare_store
from distmeta.errors import InputError
from distmeta.evaluation.prompts import better
from distmeta.tasks.prompts import prompt_of


def configured(folder, *, template=small.CHAT, **sections):
    data = folder / "data.csv"
    if not data.exists():
        small.write_domains(data)
        small.decoder(folder / "chat")
        small.decoder(folder / "bare", template=None)
    model = {"pretrained": str(folder / ("chat" if template else "bare")), "max_tokens": 60}
    task = {"labels": "words", "shots": 2, "queries": 2, "prompt": "auto"}
    settings = {"algorithm": "fomaml", "inner": {"adapt": "lora"}, "outer": {"base": "freeze"}} | sections
    return small.config(data, model=model, task=task, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prompt")


@pytest.fixture
def here(monkeypatch):
    """The process that measures, in this one."""
    ran = []

    def run(words, input, **_):
        ran.append(words)
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdin", io.StringIO(input))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "argv", words[2:])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the module is imported already
            runpy.run_module(words[2], run_name="__main__")
        monkeypatch.undo()
        return SimpleNamespace(stdout=out.getvalue())

    monkeypatch.setattr(subprocess, "run", run)
    return ran


def test_the_better_style_is_chosen_and_told(folder, here):
    config, found = with_prompt(configured(folder), prepare_store)
    assert len(here) == 1 and set(found["scores"]) == {"plain", "chat"}
    assert all(0 <= of["accuracy"] <= 1 and of["loss"] > 0 for of in found["scores"].values())
    assert config.task.prompt == found["chosen"] == better(found["scores"])
    assert sentence(json.loads(json.dumps(found))).startswith(f"{found['chosen']} (accuracy of the untrained model")


def test_of_answers_in_words_too_and_plain_is_the_template_it_stands_for(folder, here):
    rows = [{"input": f"{word} {i}", "target": word, "task": f"t{t}", "instruction": "say it"}
            for t in range(10) for i, word in enumerate(small.PLENTY[:6])]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = configured(folder).model_dump() | {
        "task": {"family": "text_to_text", "prompt": "auto", "shots": 3, "queries": 3}
    }
    given["data"]["path"], given["model"]["answer_tokens"] = str(folder / "rows.jsonl"), 4
    config, found = with_prompt(make_config(given), prepare_store)
    assert len(here) == 1 and all(set(of) == {"token_f1", "loss"} for of in found["scores"].values())
    assert config.task.prompt == {"plain": PAIRS, "chat": "chat"}[better(found["scores"])]
    assert "token_f1 of the untrained model" in sentence(found)


def test_of_equal_accuracies_the_lower_loss_and_then_the_first_is_better():
    def found(*scores):
        return {name: {"accuracy": a, "loss": x} for name, (a, x) in zip(("plain", "chat"), scores, strict=True)}

    assert better(found((0.5, 1.0), (0.6, 9.0))) == "chat"
    assert better(found((0.5, 1.0), (0.5, 0.9))) == "chat"
    assert better(found((0.5, 1.0), (0.5, 1.0))) == "plain"


def test_without_a_template_or_validation_tasks_it_is_plain_and_nothing_is_run(folder, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    config, found = with_prompt(configured(folder, template=None), prepare_store)
    assert config.task.prompt == "plain" and "no chat template" in found["reason"]
    config, found = with_prompt(configured(folder, data={"fractions": (0.7, 0.0, 0.3)}), prepare_store)
    assert config.task.prompt == "plain" and "no meta-validation tasks" in sentence(found)


def test_a_run_that_is_continued_keeps_what_was_chosen(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    config = configured(folder, run={"dir": str(tmp_path / "run")})
    (tmp_path / "run").mkdir()
    before = config.model_copy(update={"task": config.task.model_copy(update={"prompt": "chat"})})
    (tmp_path / "run" / "config.yaml").write_text(dump_config(before))
    again, found = with_prompt(config, prepare_store, resume=True)
    assert (again.task.prompt, found) == ("chat", {})


def test_where_nothing_is_chosen_auto_is_refused():
    with pytest.raises(InputError, match="task.prompt = auto is chosen by `distmeta train`"):
        prompt_of("auto", None)


def test_a_model_that_cannot_be_measured_is_told_in_one_line(folder, monkeypatch):
    def run(words, **_):
        raise subprocess.CalledProcessError(1, words, "", "Traceback\ndistmeta.errors.InputError: it does not fit")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InputError, match=r"cannot be chosen \(it does not fit\); set task.prompt=plain or chat"):
        with_prompt(configured(folder), prepare_store)
