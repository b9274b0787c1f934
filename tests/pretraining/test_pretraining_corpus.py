"""From text to rows of tokens: no token is lost, nothing held out is trained on, the key knows all that matters."""

import itertools

import numpy as np
import pytest
import small

from distmeta.errors import InputError
from distmeta.pretraining.corpus import blocks, build_corpus, corpus_key, lines, open_corpus
from distmeta.pretraining.model import objective_of
from distmeta.tasks.reviews import make_reviews
from distmeta.tasks.tokenizer import special_ids, train_tokenizer

TEXTS = [f"{a} {b} " * n for n, (a, b) in enumerate(itertools.permutations(["red", "blue", "hot", "cold"], 2), 1)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, "word", 50)


def rows_of(cut, tokenizer, size, limit):
    batches = [TEXTS[at : at + size] for at in range(0, len(TEXTS), size)]
    found = list(cut(tokenizer, batches, limit))
    flat, lengths = np.concatenate([f for f, _ in found]), np.concatenate([n for _, n in found])
    return np.split(flat, np.cumsum(lengths)[:-1])


def encoded(tokenizer):
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return ids


@pytest.mark.parametrize("size", [1, 5, 12])
def test_packing_loses_no_token(tokenizer, size):
    rows = rows_of(blocks, tokenizer, size, 7)
    assert [len(row) for row in rows[:-1]] == [7] * (len(rows) - 1) and 0 < len(rows[-1]) <= 7
    assert np.concatenate(rows).tolist() == list(itertools.chain.from_iterable(encoded(tokenizer)))


def test_a_tokenizer_without_template_gets_an_end_after_each_text(tokenizer):
    from tokenizers import Tokenizer, processors

    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    flat = np.concatenate(rows_of(blocks, plain, 5, 7))
    assert (flat == special_ids(plain).pad).sum() == len(TEXTS) and flat[-1] == special_ids(plain).pad


def test_lines_that_are_too_long_go_on_in_another_row(tokenizer):
    rows = rows_of(lines, tokenizer, 5, 8)
    whole = encoded(tokenizer)
    cls, sep = special_ids(tokenizer).cls, special_ids(tokenizer).sep
    assert all(len(row) <= 8 and row[0] == cls and row[-1] == sep for row in rows)
    inside = [token for row in rows for token in row[1:-1].tolist()]
    assert inside == [token for ids in whole for token in ids[1:-1]]
    assert len(rows) == sum(-(-(len(ids) - 2) // 6) for ids in whole)


def text_file(folder, texts):
    path = folder / "text.txt"
    path.write_text("\n".join(texts) + "\n")
    return str(path)


def config(path, architecture="bert", **pretrain):
    return small.config(None, architecture, pretrain={"path": path, "validation_share": 0.3, **pretrain})


def test_nothing_held_out_is_trained_on_and_counts_add_up(tmp_path):
    texts = [f"{a} {b} thing" for a, b in itertools.product(small.PLENTY, small.PLENTY)]
    made = config(text_file(tmp_path, [*texts, *texts[:5], texts[9].upper()]))
    corpus = open_corpus(build_corpus(made, "masked"))
    rows = {split: {tuple(corpus.row(i)) for i in corpus.rows[split]} for split in corpus.rows}
    assert rows["train"] and rows["validation"] and not rows["train"] & rows["validation"]
    assert sum(map(len, rows.values())) == len(texts) == corpus.counts["kept"]
    assert corpus.counts["duplicate"] == 5 and corpus.counts["near_duplicate"] == 1
    assert corpus.size("train") + corpus.size("validation") == len(corpus.tokens)


def test_without_a_path_only_meta_train_text_is_read():
    corpus = open_corpus(build_corpus(small.config(model={"vocab_size": 500}), "causal"))
    table = make_reviews()
    train = [row["text"] for row in table.to_pylist() if row["split"] == "train"]
    assert corpus.counts["read"] == len(train)
    known = corpus.tokenizer.get_vocab()
    assert "kettle" in known and "canoe" not in known  # a product of a meta-test task


def test_the_key_knows_content_and_settings(tmp_path):
    path = text_file(tmp_path, TEXTS)
    key = corpus_key(config(path), "masked")
    others = [
        corpus_key(config(path), "causal"), corpus_key(config(path, near_duplicates=False), "masked"),
        corpus_key(config(path, validation_share=0.2), "masked"), corpus_key(config(path, max_characters=99), "masked"),
        corpus_key(small.config(pretrain={"path": path, "validation_share": 0.3}, model={"max_tokens": 8}), "masked"),
    ]  # fmt: skip
    moved = tmp_path / "moved"
    moved.mkdir()
    assert corpus_key(config(text_file(moved, TEXTS), steps=3), "masked") == key
    others.append(corpus_key(config(text_file(tmp_path, TEXTS[:-1])), "masked"))
    assert len({key, *others}) == len(others) + 1


@pytest.mark.parametrize(
    ("texts", "changes", "expected"),
    [
        (["one"], {"min_characters": 9}, r"pretrain.path: of 1 texts none is left .*'too_short': 1"),
        (["one"], {}, "pretrain.validation_share = 0.3: of 1 texts none is left to"),
        (None, {"path": "absent.txt"}, r"absent.txt: no such file or directory \(pretrain.path\)"),
    ],
)
def test_text_that_cannot_be_used_is_one_line_and_leaves_nothing(texts, changes, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTMETA_CACHE", str(tmp_path / "cache"))
    path = changes.get("path") or text_file(tmp_path, texts)
    with pytest.raises(InputError, match=expected):
        build_corpus(config(path, **{k: v for k, v in changes.items() if k != "path"}), "masked")
    assert not any((tmp_path / "cache").glob("*") if (tmp_path / "cache").exists() else ())


def test_the_objective_is_the_architectures():
    found = {
        name: objective_of(small.config(architecture=name).model, "auto") for name in ("bert", "gpt2", "llama", "qwen2")
    }
    assert found == {"bert": "masked", "gpt2": "causal", "llama": "causal", "qwen2": "causal"}
    for name, asked, expected in (
        ("bert", "causal", "bert sees the tokens that come after"),
        ("gpt2", "masked", "set pretrain.objective=causal"),
        ("t5", "auto", "t5 is an encoder-decoder"),
        ("lstm", "auto", "lstm has no language-model head"),
    ):
        with pytest.raises(InputError, match=expected):
            objective_of(small.config(architecture=name).model, asked)
