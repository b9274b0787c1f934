"""A pretrained model that was never meta-trained, scored on a recipe's tasks: its answers are those of transformers."""

import json

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from evaluated import Setting
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from distmeta.cli import app
from distmeta.cli.jobs import parsed
from distmeta.errors import InputError
from distmeta.evaluation.evaluate import evaluate
from distmeta.evaluation.scoring import load_group, stack
from distmeta.models.build import build_model
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes import sample_episode
from distmeta.tasks.records import parse
from distmeta.tasks.store import open_store

TEXT = {"algorithm": "fomaml", "inner": {"adapt": "lora", "steps": 2}}
IN_CONTEXT = {"algorithm": "in_context", "inner": {"adapt": "lora", "steps": 0}}
LETTERS = {"labels": "letters", "shots": 3, "queries": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    small.decoder(folder / "model")
    small.write_domains(folder / "words.csv")
    rows = [
        {"input": f"{word} {'x' * (i % 3)}{i}", "target": f"{word[::-1]}{i % 2}", "task": f"t{t}",
         "instruction": f"say it {t}"}
        for t in range(8) for i in range(6) for word in [f"w{t}{i * i}"]
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


class Plain:
    """transformers alone."""

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def ids(self, text):
        return torch.tensor([self.tokenizer(text, add_special_tokens=False).input_ids])

    def answer(self, text, most):
        ids = self.ids(text)
        out = self.model.generate(ids, max_new_tokens=most, do_sample=False, attention_mask=torch.ones_like(ids))
        return self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()

    def loss(self, text, answer):
        """The mean loss of the answer's tokens, its end among them."""
        ids, before = self.ids(f"{text}{answer}</s>"), self.ids(text).shape[1]
        with torch.no_grad():
            logits = self.model(ids).logits[0, before - 1 : -1]
        return float(F.cross_entropy(logits, ids[0, before:]))


def written(style, tokenizer, about, examples, asked):
    """Examples and a question in a prompt's words, as one would write them."""
    if style == "chat":
        turns = [{"role": role, "content": text}
                 for pair in examples for role, text in zip(("user", "assistant"), pair, strict=True)]  # fmt: skip
        turns.append({"role": "user", "content": asked})
        turns[0]["content"] = f"{about}\n\n{turns[0]['content']}"
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if style == "bare":
        return "".join(f"{about}\n{text}\n{answer}</s>" for text, answer in examples) + f"{about}\n{asked}\n"
    first, second, end = ("Input: ", "\nOutput:", "\n\n") if style == "plain" else ("Q: ", "\nA:", "\n")
    shots = "".join(f"{first}{text}{second} {answer}</s>{end}" for text, answer in examples)
    return f"{about}\n\n{shots}{first}{asked}{second}"


def text_config(folder, style="bare", **sections):
    task = {"family": "text_to_text", "shots": 3, "queries": 1, "prompt": style}
    model = {"max_tokens": 70, "answer_tokens": 7, "vocab_size": 8000} | sections.pop("model", {})
    outer, data = {"base": "freeze", "steps": 2} | sections.pop("outer", {}), {"path": str(folder / "rows.jsonl")}
    return small.config(task=task, model=model, outer=outer, data=data, eval={"episodes": 6}, **sections)


def episodes_of(folder, config, count):
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"pretrained": str(folder / "model")})}
    )  # fmt: skip
    store = open_store(build_store(config.data, config.task, config.model))
    return store, [sample_episode(store, config.task, 0, "test", i) for i in range(count)]


@pytest.mark.parametrize("style", ["bare", "plain", "chat", "Q: {{ input }}\nA: {{ target }}\n"])
@pytest.mark.parametrize("sections", [TEXT, IN_CONTEXT], ids=["adapts", "reads"])
def test_answers_of_a_base_are_those_of_transformers_zero_shot_and_in_context(sections, style, folder):
    config, plain = text_config(folder, style, **sections), Plain(folder)
    space = "" if style in ("bare", "chat") else " "
    found = evaluate(config, base=folder / "model", baselines=False)
    first = ["base_adapted"] if sections is TEXT else ["base_in_context"]
    assert list(found.methods) == list(dict.fromkeys([*first, "base_zero_shot", "base_in_context"]))
    store, episodes = episodes_of(folder, config, 6)
    losses = {"base_zero_shot": [], "base_in_context": []}
    for i, episode in enumerate(episodes):
        records = [parse(store.text(int(row))) for row in episode.support.rows]
        (asked,) = (parse(store.text(int(row))) for row in episode.query.rows)
        examples = [(r.input, r.answers[0]) for r in records]
        for name, context in (("base_zero_shot", []), ("base_in_context", examples)):
            text = written(style, plain.tokenizer, asked.instruction, context, asked.input)
            told = found.details[name]["answers"][i]
            assert (told["input"], told["said"]) == (asked.input, plain.answer(text, 7))
            losses[name].append(plain.loss(text, space + asked.answers[0]))
    for name, of in losses.items():
        assert found.methods[name]["loss"]["mean"] == pytest.approx(np.mean(of), abs=1e-5)
    assert found.methods["base_zero_shot"]["loss"]["mean"] != found.methods["base_in_context"]["loss"]["mean"]
    if sections is TEXT:
        curve = found.methods["base_adapted"]["loss"]["curve"]
        assert len(curve) == 3 and curve[0] == pytest.approx(np.mean(losses["base_zero_shot"]), abs=1e-5)


@pytest.mark.parametrize("style", ["bare", "chat", "Q: {{ input }}\nA: {{ target }}\n"])
def test_an_inner_loss_in_context_is_of_each_example_behind_the_others(style, folder):
    """And in training each query row is behind the whole set, as it is read in use once the weights have adapted."""
    sections = TEXT | {"model": {"head": "context", "pretrained": str(folder / "model")}}
    config, plain = text_config(folder, style, **sections), Plain(folder)
    store, episodes = episodes_of(folder, config, 2)
    model = build_model(config, store.vocab_size, store.pad_id, 1)
    support, query = load_group(episodes, model, config, store.pad_id, torch.device("cpu"), training=True)
    fast, space = stack(model.fast, 2), "" if style in ("bare", "chat") else " "
    inner, outer = (sum(model.loss(fast, batch) for batch in part) for part in (support, query))
    reads, asked = load_group(episodes, model, config, store.pad_id, torch.device("cpu"))
    settled = {**fast, **model.settle(fast, reads)}
    used = sum(model.loss(settled, batch) for batch in asked)
    for t, episode in enumerate(episodes):
        rows = [parse(store.text(int(row))) for row in (*episode.support.rows, *episode.query.rows)]
        pairs = [(r.input, r.answers[0]) for r in rows]
        losses = []
        for i, (text, answer) in enumerate(pairs):
            before = [pair for j, pair in enumerate(pairs[:3]) if j != i]
            losses.append(
                plain.loss(written(style, plain.tokenizer, rows[0].instruction, before, text), space + answer)
            )
        assert float(inner[t]) == pytest.approx(np.mean(losses[:3]), abs=1e-5)
        assert float(outer[t]) == pytest.approx(losses[3], abs=1e-5) == pytest.approx(float(used[t]), abs=1e-5)


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_letters_of_a_base_are_those_of_transformers(style, folder):
    task = {**LETTERS, "prompt": style}
    config = small.config(
        folder / "words.csv", task=task, model={"max_tokens": 90}, outer={"base": "freeze"}, eval={"episodes": 4},
        **IN_CONTEXT,
    )  # fmt: skip
    plain = Plain(folder)
    found = evaluate(config, base=folder / "model")
    assert list(found.methods) == ["base_in_context"]  # without the support set a letter means nothing
    store, episodes = episodes_of(folder, config, 4)
    before_letter, after = (" ", "\n\n") if style == "plain" else ("", "</s>\n")
    numbers = [int(plain.ids(f"{before_letter}{letter}")[0, 0]) for letter in "AB"]

    def asked(text):
        return f"Input: {text}\nLabel:" if style == "plain" else f"<s>user\n{text}</s>\n<s>assistant\n"

    right, losses = [], []
    for episode in episodes:
        context = ""
        for row, label in zip(episode.support.rows, episode.support.labels):
            context += f"{asked(store.text(int(row)))}{before_letter}{'AB'[label]}{after}"
        for row, label in zip(episode.query.rows, episode.query.labels):
            with torch.no_grad():
                among = plain.model(plain.ids(context + asked(store.text(int(row))))).logits[0, -1, numbers]
            right.append(int(among.argmax()) == label)
            losses.append(float(F.cross_entropy(among, torch.tensor(int(label)))))
    assert found.methods["base_in_context"]["accuracy"]["mean"] == pytest.approx(np.mean(right))
    assert found.methods["base_in_context"]["loss"]["mean"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_labels_in_their_own_words_are_scored_without_a_support_set_too(folder):
    task = {**LETTERS, "labels": "words"}
    sections = {"task": task, "model": {"max_tokens": 90}, "outer": {"base": "freeze"}, "eval": {"episodes": 4}}
    read = evaluate(small.config(folder / "words.csv", **sections, **IN_CONTEXT), base=folder / "model")
    assert list(read.methods) == ["base_in_context", "base_zero_shot"]
    adapts = evaluate(small.config(folder / "words.csv", **sections, **TEXT), base=folder / "model", baselines=False)
    assert list(adapts.methods) == ["base_adapted", "base_zero_shot", "base_in_context"]
    for name in ("base_zero_shot", "base_in_context"):  # the same, whether the recipe adapts or reads
        ours, same = (of.methods[name]["loss"]["mean"] for of in (read, adapts))
        assert ours == pytest.approx(same, abs=1e-5)
    assert len({of["loss"]["mean"] for of in adapts.methods.values()}) == 3


@pytest.mark.parametrize(
    ("sections", "rows"),
    [
        (TEXT, ["no_adaptation", "in_context", "base_zero_shot", "base_in_context", "fine_tuned", "multi_task"]),
        (IN_CONTEXT, ["no_adaptation", "base_zero_shot", "base_in_context", "fine_tuned", "multi_task"]),
        (TEXT | {"model": {"head": "context"}},
         ["no_adaptation", "base_zero_shot", "base_in_context", "fine_tuned", "multi_task"]),
        (TEXT | {"algorithm": "fine_tune"},  # the base itself
         ["no_adaptation", "in_context", "fine_tuned", "multi_task"]),
    ],
    ids=["adapts", "reads", "does both", "is the base"],
)  # fmt: skip
def test_the_table_of_a_run_has_every_row_once(sections, rows, folder):
    """Of values that are not the pretrained ones; without its support set a model that reads is no_adaptation."""
    given = text_config(folder, **{"run": {"name": "x"}, **sections}).model_dump()
    given["model"]["pretrained"] = str(folder / "model")
    setting = Setting(None, **given)
    generator = torch.Generator().manual_seed(0)
    moved = {n: v + 0.05 * torch.randn(v.shape, generator=generator) for n, v in setting.meta.items()}
    setting.meta = setting.meta if sections.get("algorithm") == "fine_tune" else moved
    found = setting.methods(eval={"episodes": 3})
    assert list(found.methods) == ["meta_trained", *rows] and list(found.details["differences"]) == rows
    losses = {name: of["loss"]["mean"] for name, of in found.methods.items()}
    assert len(set(losses.values())) == len(losses)
    assert found.details["fine_tuned"]["steps"] >= 1 and found.details["fine_tuned"]["chosen_on"] == "validation"


def test_the_steps_that_are_asked_for_and_baselines_as_of_a_run(folder):
    config = text_config(folder, **TEXT, run={"name": "x"})
    found = evaluate(config, base=folder / "model", steps=1, episodes=3)
    assert list(found.methods) == ["base_adapted", "base_zero_shot", "base_in_context", "fine_tuned"]
    assert len(found.methods["base_adapted"]["loss"]["curve"]) == 2 and "differences" not in found.details
    reads = evaluate(text_config(folder, **IN_CONTEXT), base=folder / "model", episodes=3)
    for name, score in found.methods["fine_tuned"].items():  # which reads no support set while it adapts
        assert reads.methods["fine_tuned"][name]["mean"] == pytest.approx(score["mean"], rel=1e-5)
    none = evaluate(config, base=folder / "model", steps=0, episodes=3, baselines=False)
    assert list(none.methods) == ["base_zero_shot", "base_in_context"]
    for name in none.methods:
        assert none.methods[name] == found.methods[name]
    head = small.config(
        folder / "words.csv", model={"head": "prototype", "max_tokens": 60}, outer={"steps": 2}, eval={"episodes": 3}
    )
    assert list(evaluate(head, base=folder / "model").methods) == ["base_adapted", "no_adaptation", "fine_tuned",
                                                                   "prototypes"]  # fmt: skip


def test_the_command_line_scores_a_base_on_a_recipe(folder):
    words = ["evaluate", "--base", str(folder / "model"), "llm", f"data.path={folder / 'words.csv'}", "task.shots=1",
             "task.family=domain", "task.ways=null", "--episodes", "3"]  # fmt: skip
    shown = CliRunner().invoke(app, [*words, "--json"])
    assert list(json.loads(shown.stdout)) == ["base_in_context"], shown.output
    table = CliRunner().invoke(app, words)
    assert "base_in_context, by class" in table.stdout and "meta" not in table.stdout.lower()


def test_what_does_not_go_with_a_base_is_refused(folder):
    config, model = text_config(folder, **TEXT), folder / "model"
    for asked, line in (
        ({"data": "other.csv"}, "data belongs to a run; with base give the recipe's own key: data.path=PATH"),
        ({"split": "tset"}, "split = tset"), ({"shots": 40}, "task.shots"), ({"ways": 3}, "ways = 3"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=line):
            evaluate(config, base=model, **asked)
    with pytest.raises(InputError, match="base names the model"):
        evaluate({"model": {"pretrained": "gpt2"}}, base=model)
    with pytest.raises(InputError, match="no such directory"):
        evaluate(config, base=folder / "nothing" / "here")
    with pytest.raises(InputError, match="name a run or a checkpoint; a configuration goes with base"):
        evaluate(config)
    for words, line in (
        (["evaluate", "runs/x", "inner.lr=1"], "inner.lr=1: a key of a recipe goes with --base MODEL_DIR"),
        (["evaluate"], "name one run or checkpoint, or a pretrained model by --base"),
        (["evaluate", "--base", str(model), "llm", "model.pretrained=gpt2"], "--base names the model"),
    ):
        found = CliRunner().invoke(app, words)
        assert isinstance(found.exception, InputError) and line in str(found.exception)


def test_a_base_is_sent_to_a_cluster_with_what_its_recipe_says(folder):
    import typer

    words = ("--base", str(folder / "model"), "llm", "data.path=x.csv", "task.ways=3")
    config = parsed(typer.main.get_command(app), "evaluate", words)
    assert config.model.pretrained == str(folder / "model") and config.task.ways == 3
    assert parsed(typer.main.get_command(app), "evaluate", ("runs/llm",)) is None
