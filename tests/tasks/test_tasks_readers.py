"""Every file type gives the same examples; every unusable input one line: where, and how to mend it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from tasks_data import make_rows

from distmeta.config import DataConfig
from distmeta.errors import InputError
from distmeta.tasks.readers import find_sources, read_examples

ROWS = make_rows()


def read(path: str | Path | list[str], family: str = "domain", **data: Any) -> list[dict[str, str]]:
    paths = path if isinstance(path, list) else str(path)
    batches = list(read_examples(find_sources(paths), DataConfig(path=paths, **data), family))
    return [row for batch in batches for row in batch.to_pylist()]


def write_arrow(path: Path, table: pa.Table, stream: bool) -> None:
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table)


def write_as(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pa.Table.from_pylist(rows)
    if path.name.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif path.suffix in (".csv", ".tsv"):
        pacsv.write_csv(table, path, pacsv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ","))
    elif path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=50)
    else:
        write_arrow(path, table, stream=path.name.startswith("stream"))
    return path


KINDS = ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.parquet", "file.arrow", "stream.arrow"]


@pytest.mark.parametrize("name", KINDS)
def test_every_file_type_gives_the_same_examples(tmp_path: Path, name: str) -> None:
    assert read(write_as(tmp_path / name, ROWS)) == ROWS


def test_directories_globs_and_lists_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write_as(tmp_path / "a.jsonl", ROWS[:50])
    write_as(tmp_path / "deep" / "b.parquet", ROWS[50:])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "splits.json").write_text("{}")
    assert read(tmp_path) == ROWS
    assert read(f"{tmp_path}/**/*.[jp]*[lt]") == ROWS
    assert read([str(tmp_path / "deep"), str(tmp_path / "a.jsonl")]) == ROWS[50:] + ROWS[:50]


@pytest.mark.parametrize("path", ["memory://distmeta/sets/a.jsonl", "memory://distmeta/sets", "memory://distmeta/*/*l"])
def test_a_remote_filesystem_is_read(path: str) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://distmeta/sets/a.jsonl", "w") as file:
        file.write("\n".join(map(json.dumps, ROWS)))
    assert read(path) == ROWS


def save_dataset(folder: Path, rows: list[dict[str, Any]], metadata: dict[bytes, bytes] | None = None) -> None:
    """As `datasets.Dataset.save_to_disk` lays it out."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows).replace_schema_metadata(metadata)
    write_arrow(folder / "data-00000-of-00001.arrow", table, stream=True)
    write_arrow(folder / "cache-0123.arrow", table, stream=True)  # what `map` leaves behind: not data
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_dataset_with_class_names(tmp_path: Path) -> None:
    note = {"info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}}
    rows = [{"text": "x y", "label": 1}, {"text": "z", "label": 0}]
    save_dataset(tmp_path / "saved", rows, {b"huggingface": json.dumps(note).encode()})
    assert [r["label"] for r in read(tmp_path / "saved", "classes")] == ["good", "bad"]
    for number in (-1, 2):
        folder = tmp_path / f"with {number}"
        save_dataset(folder, [*rows, {"text": "w", "label": number}], {b"huggingface": json.dumps(note).encode()})
        with pytest.raises(InputError, match=f"row 3: 'label' is {number}, none of its 2 classes"):
            read(folder, "classes")


def test_the_folders_of_a_saved_dataset_dict_are_splits(tmp_path: Path) -> None:
    plain = [{k: row[k] for k in ("text", "label", "task")} for row in ROWS]
    save_dataset(tmp_path / "saved" / "train", plain[:20])
    save_dataset(tmp_path / "saved" / "test", plain[20:])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = read(tmp_path / "saved")
    assert [r["split"] for r in found] == ["train"] * 20 + ["test"] * (len(ROWS) - 20)


def test_whole_numbers_are_labels_and_columns_have_other_names(tmp_path: Path) -> None:
    rows = [{"q": "what", "intent": 7}, {"q": "who", "intent": 12}]
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        assert read(write_as(tmp_path / name, rows), "classes", text="q", label="intent") == [
            {"text": "what", "label": "7"},
            {"text": "who", "label": "12"},
        ]


def test_a_split_column_is_optional_only_by_its_default_name(tmp_path: Path) -> None:
    path = write_as(tmp_path / "a.jsonl", make_rows(split=False))
    assert "split" not in read(path)[0]
    assert "split" not in read(path, split="hash")[0]
    with pytest.raises(InputError, match=r"no column 'part' \(data.split\)"):
        read(path, split="part")


GOOD = '{"text": "fine", "label": "a", "task": "t"}\n'
BAD_LINES = {
    "parse": (GOOD + "{'text': 1}\n", r"data.jsonl line 2: does not parse as JSON"),
    "blank lines count": (GOOD + "\n\n{\n", r"line 4: does not parse"),
    "object": (GOOD + "[1]\n", r"line 2: holds a list"),
    "missing": (
        '{"txt": "a", "label": "b", "task": "t"}\n',
        r"no column 'text' .* txt, label, task;.*mean 'txt'",
    ),
    "missing later": (GOOD + '{"text": "a", "task": "t"}\n', r"line 2: no 'label'"),
    "number": ('{"text": 12, "label": "b", "task": "t"}\n', r"line 1: 'text' \(data.text\) is 12; .* text"),
    "fraction": ('{"text": "a", "label": 0.5, "task": "t"}\n', r"'label' .* is 0.5; .*whole numbers"),
    "null": (
        GOOD + '{"text": null, "label": "b", "task": "t"}\n',
        r"line 2: column 'text' \(data.text\) is null",
    ),
    "empty": (GOOD + '\n{"text": " ", "label": "b", "task": "t"}\n', r"line 3: column 'text' .* is empty"),
    "empty label": ('{"text": "a", "label": "", "task": "t"}\n', r"line 1: column 'label' .* is empty"),
    "task": ('{"text": "a", "label": "b"}\n', r"no column 'task' .*task.family=classes"),
    "nothing": ("", r"data.jsonl: the file is empty"),
    "blank": ("\n\n", r"data.jsonl: holds no examples"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, case: str) -> None:
    content, message = BAD_LINES[case]
    (tmp_path / "data.jsonl").write_text(content)
    expect(message, lambda: read(tmp_path / "data.jsonl"))


BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no.jsonl": (lambda p: None, "no such file"),
    "a.xlsx": (lambda p: p.write_text("x"), r"unknown file type '.xlsx'; known types: .jsonl"),
    "a.csv": (
        lambda p: p.write_text("text,label,task\n1,a,t\n2.5,b,t\n"),
        r"'text' \(data.text\) holds numbers",
    ),
    "b.csv": (lambda p: p.write_text("text,label,task\nx y,a,t\nz,,t\n"), r"row 2: column 'label' .* empty"),
    "c.csv": (lambda p: p.write_text("text,label,task\nx,a,t\nz,b\n"), r"c.csv: .*Expected 3 columns, got 2"),
    "d.csv": (lambda p: p.write_text("text,label,task\n"), r"d.csv: holds no examples"),
    "e.csv": (lambda p: p.write_bytes(b"text,label,task\n\xff\xfe,a,t\n"), r"e.csv line 2: not UTF-8 .*iconv"),
    "f.csv": (
        lambda p: p.write_text("text,label,task\nx y,a,t\n", encoding="utf-16"),
        r"f.csv: not UTF-8 .*iconv -f utf-16 ",
    ),
    "f.jsonl": (
        lambda p: p.write_text('{"text": "a", "label": "b", "task": "t"}\n', encoding="utf-16"),
        r"f.jsonl: not UTF-8 .*iconv -f utf-16 ",
    ),
    "g.csv": (lambda p: p.write_text("text;label;task\nx, y;a;t\n"), r"g.csv: ';' stands between .*delimiter=';'"),
    "h.csv": (lambda p: p.write_text("text\tlabel\ttask\nx\ta\tt\n"), r"h.csv: a tab stands .*name it .tsv"),
    "i.csv.gz": (
        lambda p: p.write_bytes(gzip.compress(b"text,label,task\n" + b"x,a,t\n" * 999)[:-20]),
        r"i.csv.gz line 1: the file breaks off here .*copy it again",
    ),
    "i.jsonl.gz": (
        lambda p: p.write_bytes(gzip.compress(GOOD.encode() * 999)[:-20]),
        r"i.jsonl.gz line 1: the file breaks off here .*copy it again",
    ),
    "j.jsonl.gz": (lambda p: p.write_text(GOOD), r"j.jsonl.gz .*it is not compressed, as its name says"),
    "a.parquet": (
        lambda p: write_as(p, [{"text": 1.5, "label": "a", "task": "t"}]),
        r"holds double, not text",
    ),
    "b.parquet": (lambda p: write_as(p, [{"text": "a", "label": None, "task": "t"}]), r"row 1: .* is null"),
    "c.parquet": (lambda p: p.write_bytes(b"PAR1 nothing"), r"c.parquet: not readable Parquet"),
    "d.parquet": (
        lambda p: write_as(p, [{"text": "a", "label": 0.5, "task": "t"}]),
        r"text or whole numbers",
    ),
    "a.arrow": (lambda p: p.write_bytes(b"nothing that is Arrow"), r"a.arrow: not readable Arrow"),
    "folder": (lambda p: p.mkdir(), r"no data file in this directory"),
    "*.none": (lambda p: None, r"no file matches"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named(tmp_path: Path, name: str) -> None:
    make, message = BAD_FILES[name]
    make(tmp_path / name)
    expect(message, lambda: read(tmp_path / name))


def test_an_unknown_filesystem_is_named() -> None:
    expect("nosuch://x/y.jsonl: ", lambda: read("nosuch://x/y.jsonl"))


def expect(message: str, what: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match=message) as caught:
        what()
    assert "\n" not in str(caught.value)


STRAY = ['"quote one{d}a', "say two{d}b", '"quote three{d}b', "say four{d}a"]


@pytest.mark.parametrize(("name", "d"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_a_quote_that_would_take_in_the_rows_after_it_is_refused_by_line(tmp_path: Path, name: str, d: str) -> None:
    head = [f"text{d}label", f"plain{d}a"]
    for lines in (STRAY, [f'x 1{d}"a', f"x 2{d}b", f'"x 3"{d}b'], [f'"never closed{d}a', f"x{d}b"]):
        (tmp_path / name).write_text("\n".join([*head, *(line.format(d=d) for line in lines)]) + "\n")
        with pytest.raises(InputError, match=rf"{name} line 3: a field begins with a quote"):
            read(tmp_path / name, "classes")


@pytest.mark.parametrize(("name", "d"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_a_quoted_text_may_have_delimiters_quotes_and_line_breaks(tmp_path: Path, name: str, d: str) -> None:
    lines = [
        f"text{d}label",
        f'"a{d}b"{d}x',
        f'"""Yes"" he said"{d}x',
        f'"of two\n\nlines ""or"" so"{d}y',
        f'5" long{d}"x"',
    ]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    texts = [row["text"] for row in read(tmp_path / name, "classes")]
    assert texts == [f"a{d}b", '"Yes" he said', 'of two\n\nlines "or" so', '5" long']
