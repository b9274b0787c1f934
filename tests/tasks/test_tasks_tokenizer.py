"""Trained tokenizers are deterministic and complete; pretrained ones keep what is theirs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from distmeta.errors import InputError
from distmeta.tasks.tokenizer import (
    SPECIAL,
    as_transformers,
    encode,
    fingerprint,
    load_tokenizer,
    save_tokenizer,
    special_ids,
    train_tokenizer,
)

TEXTS = ["The kettle, it boils!", "屋里很暖和，真好。", "old kettle boils boils", "ＡＢＣ　e\u0301\n\t🙂"] * 3


@pytest.mark.parametrize("level", ["word", "wordpiece", "character"])
def test_special_tokens_template_and_limits(level: str) -> None:
    tokenizer = train_tokenizer(TEXTS, level, 60)
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == list(range(5))
    ids = tokenizer.encode("boils unseen").ids
    assert (ids[0], ids[-1]) == (2, 3)
    special = special_ids(tokenizer)
    assert (special.pad, special.cls, special.sep) == (0, 2, 3) and special.vocab_size <= 60


def test_characters_round_trip() -> None:
    tokenizer = train_tokenizer(TEXTS, "character", 200)
    for text in ("屋里很暖和，真好。", "ＡＢＣ　\n\t🙂", "The kettle, it boils!"):
        encoding = tokenizer.encode(text)
        assert tokenizer.decode(encoding.ids) == text
        assert len(encoding.ids) == len(text) + 2
    assert 1 in tokenizer.encode("龍").ids


def test_words_split_at_punctuation_and_chinese_characters() -> None:
    tokens = train_tokenizer(TEXTS, "word", 200).encode("Kettle, 屋里!").tokens
    assert tokens == ["[CLS]", "kettle", ",", "屋", "里", "!", "[SEP]"]


@pytest.mark.parametrize("level", ["word", "wordpiece", "character"])
def test_training_is_the_same_in_another_process(level: str) -> None:
    texts = [f"w{i % 7} x{i % 5}y z{i}" for i in range(300)]
    code = (
        "import sys, json; from distmeta.tasks.tokenizer import train_tokenizer;"
        "print(json.dumps(train_tokenizer(json.load(sys.stdin), sys.argv[1], 120).to_str()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, level],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == train_tokenizer(texts, level, 120).to_str()


def test_encoding_is_ragged_and_cut() -> None:
    tokenizer = train_tokenizer(TEXTS, "word", 200)
    flat, lengths = next(encode(tokenizer, [["kettle", "the kettle it boils old kettle"]], max_tokens=5))
    assert lengths.tolist() == [3, 5] and flat.dtype == np.int32
    assert flat[-1] == special_ids(tokenizer).sep  # the cut keeps the template


def pretrained(folder: Path, config: dict[str, object]) -> Path:
    """A decoder's tokenizer: an end token, no template, no pad token."""
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2, "<p>": 3, "<unk>": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_decoder_pads_with_its_end_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pretrained(tmp_path / "eos", {"eos_token": {"content": "<eos>"}}))
    assert special_ids(tokenizer).pad == 0 and special_ids(tokenizer).cls is None
    assert tokenizer.encode("a b").ids == [1, 2]
    assert special_ids(load_tokenizer(pretrained(tmp_path / "pad", {"pad_token": "<p>"}))).pad == 3


def test_a_pretrained_template_is_kept(tmp_path: Path) -> None:
    folder = pretrained(tmp_path / "m", {"eos_token": "<eos>"})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).encode("a b").ids == [1, 2, 0]


def test_a_tokenizer_without_a_tokenizer_json_comes_through_transformers(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "hello", "world"]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert load_tokenizer(tmp_path).encode("hello world").ids == [2, 5, 6, 3]


def test_unusable_tokenizers_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json: not a tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"neither a pad nor an end token"):
        tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        load_tokenizer(tmp_path)


def test_an_answer_ends_with_the_named_token_and_generation_with_any_of_the_models(tmp_path: Path) -> None:
    """As SmolLM2's: the vocabulary has <|endoftext|> too, which is not what ends an answer."""
    folder = pretrained(tmp_path / "m", {"eos_token": "<|im_end|>", "bos_token": "<s>", "chat_template": "{{ x }}"})
    words = ["<|endoftext|>", "a", "<|im_end|>", "<s>", "<|eot|>"]
    Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="a")).save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 2, 99]}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 0, "vocab_size": 5}))
    tokenizer = load_tokenizer(folder)
    special = special_ids(tokenizer)
    assert (special.end, special.ends) == (2, (2, 4))

    save_tokenizer(tokenizer, tmp_path)  # as a store and a checkpoint keep it
    assert special_ids(load_tokenizer(tmp_path / "tokenizer.json")) == special
    stock = as_transformers(load_tokenizer(tmp_path / "tokenizer.json"), 8, False)
    assert (stock.eos_token, stock.bos_token, stock.chat_template) == ("<|im_end|>", "<s>", "{{ x }}")
    (tmp_path / "tokenizer_config.json").unlink()  # a checkpoint of before keeps the end that it was trained with
    assert special_ids(load_tokenizer(tmp_path / "tokenizer.json")).ends == (0,)
    assert fingerprint(tokenizer, ends=True) != fingerprint(load_tokenizer(tmp_path / "tokenizer.json"), ends=True)


def test_a_tokenizer_that_is_not_of_the_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 30522}))
    with pytest.raises(InputError, match=r"its tokenizer has \d tokens and its embedding 30,522.*beside its weights"):
        load_tokenizer(tmp_path)


def test_a_model_with_a_sentencepiece_file_alone_is_told_what_it_lacks(tmp_path, monkeypatch):
    import transformers

    def fails(*_, **__):
        raise ValueError("`tiktoken` is required to read a `tiktoken` file. Install it with `pip install tiktoken`.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fails)
    with pytest.raises(InputError, match=r"it has no tokenizer\.json; convert it where sentencepiece is installed"):
        load_tokenizer(tmp_path)
