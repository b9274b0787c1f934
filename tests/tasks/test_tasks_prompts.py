"""How a classification is written for a decoder: the model's own template, and a question that no cut takes away."""

import pytest
import small

from distmeta.config import Config, TaskConfig
from distmeta.errors import InputError
from distmeta.tasks.counts import Counts
from distmeta.tasks.prompts import chat_prompt, encode, label_tokens
from distmeta.tasks.tokenizer import load_tokenizer

LETTERS = TaskConfig(labels="letters", family="classes")
CHAT = TaskConfig(labels="letters", family="classes", prompt="chat")
SYSTEM = "{% if messages[0]['role'] != 'system' %}<s>system\nBe kind.</s>\n{% endif %}" + small.CHAT
NUMBERED = "{% for m in messages %}<s>{{ loop.index }} {{ m['content'] }}</s>\n{% endfor %}"
THINKING = small.CHAT.replace("<s>assistant\n{% endif %}", "<s>assistant\n<think>{% endif %}")


def config(task):
    return Config(task=task)


def tokenizer_of(folder, **settings):
    return load_tokenizer(small.decoder(folder, **settings))


def words(tokenizer, ids):
    return tokenizer.decode(list(ids), skip_special_tokens=False)


def test_a_chat_is_taken_apart_at_its_turns(tmp_path):
    prompt = chat_prompt(tokenizer_of(tmp_path, template=SYSTEM))
    assert prompt.start == "<s>system\nBe kind.</s>\n"
    assert prompt.example("red") == "<s>user\nred</s>\n<s>assistant\n"
    assert (prompt.gap, prompt.after) == ("", "</s>\n")


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (None, "has no chat template"),
        (NUMBERED, "writes later turns in another way"),
        (THINKING, "writes later turns in another way"),
        ("{{ raise_exception('only one turn') }}", "template fails .*only one turn"),
        ("{{ messages[0]['content'] }}", "template fails .*leaves a turn out"),
    ],
)
def test_a_template_that_cannot_hold_several_examples_is_refused(tmp_path, template, line):
    with pytest.raises(InputError, match=f"task.prompt = chat: .*{line}.*set task.prompt=plain"):
        label_tokens(config(CHAT), tokenizer_of(tmp_path, template=template))


@pytest.mark.parametrize("begin", [False, True])
def test_what_a_tokenizer_puts_before_a_text_is_put_before_a_context_once(tmp_path, begin):
    tokenizer = tokenizer_of(tmp_path, begin=begin)
    tokens = label_tokens(config(LETTERS), tokenizer)
    assert tokens.start == ((0,) if begin else ())
    assert [words(tokenizer, [i]) for i in tokens.labels[:3]] == [" A", " B", " C"]
    assert words(tokenizer, tokens.after) == "\n\n"
    flat, _ = next(encode(tokenizer, [["so red"]], LETTERS, 40))
    assert words(tokenizer, flat) == "Input: so red\nLabel:"


def test_a_cut_takes_the_middle_and_is_counted(tmp_path):
    tokenizer, counts = tokenizer_of(tmp_path), Counts()
    flat, lengths = next(encode(tokenizer, [["0123456789" * 4, "blue"]], LETTERS, 30, counts))
    assert lengths.tolist() == [30, len("Input: blue\nLabel:")]
    assert words(tokenizer, flat[:30]) == "Input: 0123456723456789\nLabel:"
    assert (counts.rows, counts.cut, counts.tokens) == (2, 1, 48)


def test_a_tokenizer_without_letters_is_refused(tmp_path):
    with pytest.raises(InputError, match="not one token for each of the letters A to Z"):
        label_tokens(config(LETTERS), tokenizer_of(tmp_path, letters="ABC"))
