"""Texts to answer: one a line or row, whatever the file is."""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmeta.errors import InputError
from distmeta.tasks.texts import read_inputs

# Characters that Python's splitlines takes for the end of a line, and no reader of lines does.
WITHIN = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\rh"
TEXTS = ["one", None, WITHIN, "two, three", "caf\xe9 \U0001f600"]


def write(path):
    text = [text or "" for text in TEXTS]
    if path.suffix == ".txt":
        path.write_bytes("\ufeff".encode() + "\r\n".join(text).encode())
    elif path.suffix == ".csv":
        quoted = "".join(f'"{one}",x\r\n' for one in text)
        path.write_bytes("\ufefftext,other\r\n".encode() + quoted.encode())
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"text": TEXTS}), path)
    else:
        lines = [json.dumps({"text": one}, ensure_ascii=False) for one in text]
        content = "\ufeff".encode() + "\n".join(lines).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_each_line_or_row_is_one_text_and_a_blank_one_keeps_its_place(name, tmp_path):
    assert list(read_inputs(str(write(tmp_path / name)), "text")) == TEXTS


def test_lines_of_standard_input_are_texts_or_json_objects(monkeypatch):
    content = b'one\n\n{"text": "two", "other": 3}\n{"text": null}\n   \n"quoted"\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert list(read_inputs("-", "text")) == ["one", None, "two", None, None, '"quoted"']
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo"))
    assert list(read_inputs("-", "text")) == ["one", None, "two"]


REFUSED = {
    "latin.txt": (b"fine\ncaf\xe9\n", "latin.txt line 2: not UTF-8 .*iconv"),
    "latin.jsonl": (b'{"text": "caf\xe9"}\n', "latin.jsonl line 1: not UTF-8 .*iconv"),
    "latin.csv": (b"text,x\ncaf\xe9,1\n", "latin.csv line 2: not UTF-8 .*iconv"),
    "number.txt": (b'fine\n{"text": 3}\n', "number.txt line 2: the text is 3, not a text"),
    "half.txt": (b"fine\n{half\n", "half.txt line 2: does not parse as JSON"),
    "surrogate.jsonl": (b'{"text": "\\ud83d"}\n', "surrogate.jsonl line 1: the text has half of a surrogate"),
    "other.jsonl": (b'{"txt": "a"}\n', "other.jsonl line 1: no 'text'; it has txt"),
    "list.jsonl": (b'["a"]\n', "list.jsonl line 1: no 'text'; it is a list of 1"),
    "other.csv": (b"txt,x\na,1\n", "other.csv: no column 'text'; its columns are txt, x; rename .* mean 'txt'"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 999)[:-20], "cut.jsonl.gz line [0-9]+: the file breaks off"),
    "a.pdf": (b"x", "a.pdf: unknown file type"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_one_line(name, tmp_path):
    content, reason = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        list(read_inputs(str(tmp_path / name), "text"))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="absent.txt: no such file"):
        list(read_inputs(str(tmp_path / "absent.txt"), "text"))
