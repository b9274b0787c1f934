"""Cleaning: a fixed point, nothing invisible left, and every text that goes is counted under what it went for."""

import random
import unicodedata
from collections import Counter

import pyarrow as pa
import pytest

from distmeta.config import PretrainConfig
from distmeta.errors import InputError
from distmeta.pretraining.cleaning import REMOVED, clean, fingerprints, normalise
from distmeta.tasks.readers import read_texts
from distmeta.tasks.sources import TEXT_KINDS, find_sources

ODD = "\u200b\u00ad\ufeff\u202e\u2028\u00a0\u3000\t\r\n\x00\x07\x85 \u0301\u0323\u1100\u1161e\u212b中x9!"


def cleaned(texts, size=3, **rules):
    counts = Counter()
    batches = [pa.array(texts[at : at + size], pa.large_string()) for at in range(0, len(texts), size)]
    rows = [row for b in clean(batches, PretrainConfig(**rules), counts) for row in b.to_pylist()]
    assert counts["read"] == len(texts) and counts["kept"] == len(rows)
    assert counts["read"] == counts["kept"] + sum(counts[reason] for reason in REMOVED)
    return [row["text"] for row in rows], counts, [row["validation"] for row in rows]


def test_normalising_is_a_fixed_point_and_leaves_nothing_invisible():
    rng = random.Random(0)
    texts = ["".join(rng.choices(ODD, k=rng.randrange(12))) for _ in range(1000)]
    once = normalise(pa.array(texts, pa.large_string()))
    assert normalise(once).equals(once)
    for text in once.to_pylist():
        assert text == unicodedata.normalize("NFC", text) == text.strip() and "  " not in text
        assert not any(unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in "\u200b\u00ad\ufeff\u202e" for c in text)


def test_joiners_that_scripts_are_written_with_stay():
    persian, family = "می\u200cخواهم", "👩\u200d👧"
    assert normalise(pa.array([persian, family], pa.large_string())).to_pylist() == [persian, family]


def test_each_reason_is_counted_and_the_first_of_its_kind_stays():
    texts = [
        "Good kettle!",
        None,
        " \u200b\t",
        "Good  kettle!",
        "good-kettle",
        "no",
        "x" * 30,
        "good kettle 2",
        "!?",
        "?!",
    ]
    kept, counts, _ = cleaned(texts, min_characters=2, max_characters=20)
    assert kept == ["Good kettle!", "no", "good kettle 2", "!?", "?!"]
    assert {r: counts[r] for r in REMOVED} == {
        "empty": 2, "too_short": 0, "too_long": 1, "duplicate": 1, "near_duplicate": 1
    }  # fmt: skip
    assert counts["characters"] == sum(map(len, kept))
    assert cleaned(["a", "bb"], min_characters=2)[1]["too_short"] == 1
    assert cleaned(texts, near_duplicates=False)[0].count("good-kettle") == 1


def test_what_is_removed_does_not_depend_on_the_batches():
    rng = random.Random(1)
    texts = [rng.choice(["a b", "A b", "a, b", "c", ""]) + str(rng.randrange(40)) for _ in range(500)]
    first = cleaned(texts, size=500)
    assert cleaned(texts, size=31) == first and len(first[0]) < 300
    assert len(set(fingerprints(pa.array(first[0])).to_pylist())) == len(first[0])


def test_held_out_is_a_share_by_each_text_alone():
    texts = [f"text number {i}" for i in range(600)]
    kept, _, held = cleaned(texts, size=150, validation_share=0.1)
    assert 0.07 < sum(held) / len(held) < 0.13
    again, _, same = cleaned(texts[::-1], size=70, validation_share=0.1)
    assert dict(zip(again, same)) == dict(zip(kept, held))
    assert not any(cleaned(texts, validation_share=0)[2])


def read(path, column="text"):
    return [t for batch in read_texts(find_sources(str(path), TEXT_KINDS), column) for t in batch.to_pylist()]


def test_lines_files_and_columns_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo \n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n{"text": null}\n')
    (tmp_path / "c.csv").write_text("text,label\nfour,1\n")
    assert [t and t.strip() for t in read(tmp_path)] == ["one", "two", "three", None, "four"]
    with pytest.raises(InputError, match=r"unknown file type '.txt'"):  # data of tasks have labels
        find_sources(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"fine\n\xff\xfe\n", r"a.txt line 2: not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a.jsonl line 2: does not parse as JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', r"a.jsonl line 2: 'text' .* is 3; it must hold text"),
        ("a.csv", b"review,label\nx,1\n", r"no column 'text'; .*review"),
        ("a.txt", b"", "the file is empty"),
    ],
)
def test_bad_lines_are_named(name, content, expected, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=expected):
        read(tmp_path / name)
