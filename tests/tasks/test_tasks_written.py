"""Text to text under a template: what the model reads is what one would write, and a cut keeps the question."""

import numpy as np
import pytest
import small
import yaml

from distmeta.config import dump_config, make_config
from distmeta.config.templates import PAIRS
from distmeta.errors import InputError
from distmeta.models.language import following
from distmeta.runs.checkpoint import read_config
from distmeta.tasks.build import store_key
from distmeta.tasks.counts import Counts, signs
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.records import Record, encode_records
from distmeta.tasks.rows import Rows
from distmeta.tasks.tokenizer import load_tokenizer, train_tokenizer
from distmeta.tasks.written import encoder_of

ABOUT = "Say it again, but backwards."


def encoder(tokenizer, style=PAIRS, max_tokens=90, answer_tokens=8):
    model = small.config(architecture="gpt2", model={"max_tokens": max_tokens, "answer_tokens": answer_tokens}).model
    return encoder_of(tokenizer, model, style)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(small.decoder(tmp_path_factory.mktemp("m")))


def text(tokenizer, ids):
    return tokenizer.decode(list(ids), skip_special_tokens=False)


def test_rows_alone_and_behind_another_are_what_one_would_write(tokenizer):
    made = encoder(tokenizer)
    records = [Record(f"in {'x' * i}", (f"out {i}",), instruction=ABOUT) for i in (3, 0, 1)]
    of = encode_records(made, records, True)
    offsets = np.concatenate([[0], np.cumsum(of.lengths)])
    assert text(tokenizer, of.tokens[: offsets[1]]) == f"{ABOUT}\n\nInput: in xxx\nOutput: out 3</s>"
    rows = Rows(of.tokens, offsets, of.begins.astype(np.int64), np.arange(3), of.heads, np.array(made.later, np.int32))
    parts = [following(part, part["rows"] > 0) for part in collate([rows], 2, 1)]
    whole = {}
    for part in parts:
        for i, row in enumerate(part["rows"][0]):
            ids = part["input_ids"][0, i][part["attention_mask"][0, i] > 0]
            begin = part["labels"][0, i]
            whole[row] = text(tokenizer, ids[:begin]), text(tokenizer, ids[begin:])
    assert whole[0] == (f"{ABOUT}\n\nInput: in xxx\nOutput:", " out 3</s>")
    assert whole[1] == ("\n\nInput: in \nOutput:", " out 0</s>")
    assert whole[2] == ("\n\nInput: in x\nOutput:", " out 1</s>")
    assert text(tokenizer, made.prompts(["in"], None, [ABOUT], later=True)[0]) == "\n\nInput: in\nOutput:"


def test_an_answer_ends_as_the_template_ends_it(tokenizer):
    chat = encoder(tokenizer, "chat")
    (answer,) = chat.answers(["red"])
    assert text(tokenizer, answer) == "red</s>" and chat.end in chat.ends
    assert text(tokenizer, chat.prompts(["in"], None, [""], later=True)[0]) == "\n<s>user\nin</s>\n<s>assistant\n"
    other = encoder(tokenizer, "{{ input }} => {{ target }}<s>\n")
    assert text(tokenizer, other.answers(["red"])[0]) == " red<s>" and other.ends[:2] == (0, 1)
    assert text(tokenizer, other.later) == "\n"


@pytest.mark.parametrize("style", [PAIRS, "chat"])
def test_what_does_not_fit_keeps_the_question_and_is_counted_by_kind(style, tokenizer):
    made, counts = encoder(tokenizer, style), Counts()
    room = 90 - 8
    cases = [("in", ABOUT), ("0123456789" * 12, ABOUT), ("ab", "talk " * 40), ("0123456789" * 12, "talk " * 40)]
    prompts = made.prompts([case[0] for case in cases], counts, [case[1] for case in cases])
    for prompt in prompts:
        assert text(tokenizer, prompt).endswith(made.prompt.between) and len(prompt) <= room
    short = text(tokenizer, prompts[2])
    assert short.startswith(("talk talk", "<s>user\ntalk")) and "ab" in short
    longest = text(tokenizer, prompts[1]).removesuffix(made.prompt.between)
    assert ABOUT in longest and longest.endswith("789") and "012" in longest  # its middle is what is lost
    behind = made.prompts([case[0] for case in cases], None, [case[1] for case in cases], later=True)
    assert max(map(len, behind)) <= room
    made.answers(["abc", "d" * 20], counts)
    assert (counts.rows, counts.cut, counts.cut_instructions, counts.cut_answers) == (4, 2, 2, 1)
    lines = [str(sign) for sign in signs(vars(counts) | {"answer_tokens": 8}, 90)]
    assert len(lines) == 3 and any("instructions are cut" in line for line in lines)


def test_a_tokenizer_s_own_words_stand_around_a_prompt_once():
    own = train_tokenizer(["input : output a b c"] * 3, "word", 300)
    made = encoder(own, max_tokens=40)
    begin, end = (own.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    (alone,), (later,) = (made.prompts(["a b"], None, ["c"], later=later) for later in (False, True))
    assert (alone[0], alone[-1], alone.count(begin)) == (begin, end, 1)
    assert (later[-1], later.count(begin)) == (end, 0)


def test_room_for_nothing_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"model.max_tokens = 32: .* leave too little room; raise model.max_tokens"):
        encoder(tokenizer, max_tokens=32)


def test_bare_is_the_default_and_what_runs_of_before_were_written_with(tmp_path, tokenizer):
    given = {"task": {"family": "text_to_text"}, "model": {"answer_tokens": 8, "max_tokens": 60}}
    bare, plain = (make_config({**given, "task": given["task"] | more}) for more in ({}, {"prompt": "plain"}))
    assert (bare.task.prompt, plain.task.prompt) == ("bare", PAIRS)
    keys = {store_key(one.data, one.task, one.model) for one in (bare, plain, make_config(plain.model_dump()))}
    assert len(keys) == 2
    (tmp_path / "new.yaml").write_text(dump_config(plain))
    assert read_config(tmp_path / "new.yaml") == plain
    old = yaml.safe_load(dump_config(bare))
    old["task"]["prompt"] = "plain"  # as it was written while there was one form
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    assert read_config(tmp_path / "old.yaml") == bare
    with pytest.raises(InputError, match="task.prompt = bare: what asks for the class"):
        make_config({"task": {"labels": "words", "prompt": "bare"}})
