"""Examples from files, in streaming batches, with every unusable input named by one line.

JSONL, CSV/TSV (these also compressed), Parquet, Arrow (IPC file or stream), saved Hugging Face datasets,
and directories or globs of them, on the local disk or on any pyarrow or fsspec filesystem (`s3://`,
`gs://`, ...). JSONL is parsed line by line with the standard library: pyarrow's parser is faster but cannot
name the line that does not parse, and tokenising costs more than either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from distmeta.config import DataConfig
from distmeta.errors import InputError, cut, nearest
from distmeta.tasks import documents, images, records, regression
from distmeta.tasks.sources import Source, check_quotes, find_sources

__all__ = ["find_sources", "read_examples"]

BATCH = 8192
ROW_ROLES = ("subgroup", "trusted")  # of rows, where data.subgroup and data.trusted name columns
TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}


def read_examples(
    sources: Sequence[Source],
    data: DataConfig,
    family: str,
    settable: bool = True,
    one_task: bool = False,
    image: images.Size | None = None,
    dimensions: regression.Dimensions | None = None,
) -> Iterator[pa.RecordBatch]:
    """Batches with the string columns text, label, task (unless family classes) and split (where the data has one).

    Either all batches have a split column or none. Raises InputError for the first row that cannot be used.
    In family text_to_text the text is a record, as distmeta.tasks.records writes it, and the label the same for all; so
    it is in family regression, where the text is an example as distmeta.tasks.regression writes it. In
    family document the label is the same too, a row of a file without names is a task of its own, and there is a column
    author, empty where none is named. Where data.subgroup and data.trusted name columns, also subgroup (may be empty)
    and trusted ("1", or empty).
    settable: whether who reads can name other columns; those of a run that has ended stay. one_task: all rows are of
    one task (families text_to_text and document), which needs no column to name it. image: column text holds images,
    which become texts of this size (distmeta.tasks.images). dimensions: of family regression.
    """
    if files := [source for source in sources if source.kind == "image"]:
        if image is None or len(files) < len(sources):
            other = next((source for source in sources if source.kind != "image"), files[0])
            raise InputError(f"{other.name}: tables and image files are two data sets; give data.path one of them")
        if key := next((key for key in ROW_ROLES if getattr(data, key) is not None), None):
            raise InputError(f"{files[0].name}: image files have no columns; leave data.{key} out, or give a table")
        yield from images.read_files(files, image)
        return
    words, pairs = family == "text_to_text", family in ("text_to_text", "regression")
    file_of = documents.file_names(sources) if family == "document" else [""] * len(sources)
    has_split = True if data.splits is None and any(source.split for source in sources) else None
    for source, file in zip(sources, file_of, strict=True):
        rows = 0
        choose = partial(
            choose_columns, source=source, data=data, family=family, has_split=has_split, one_task=one_task,
            settable=settable,
        )  # fmt: skip
        layout = records.LAYOUTS.get(data.layout) if words else None
        read = _read_whole if family == "document" and source.kind == "txt" else READ[source.kind]
        for arrays, numbers in layout(source) if layout else read(source, choose):
            if has_split is None:
                has_split = "split" in arrays
            columns = {role: getattr(data, role) for role in arrays}
            made: dict[str, pa.Array] = {}
            if words:
                made["text"] = records.from_columns(arrays, columns, source, numbers)
                made["label"] = pa.array([records.ANSWER] * len(numbers), pa.large_string())
            elif dimensions is not None:
                made["text"] = regression.from_columns(arrays, columns, source, numbers, dimensions)
                made["label"] = pa.array([regression.LABEL] * len(numbers), pa.large_string())
            elif rows == 0 and source.kind in ("csv", "tsv"):
                _refuse_numeric_strings(arrays["text"], source, data.text)
            if family == "document":
                made["label"] = pa.array([documents.LABEL] * len(numbers), pa.large_string())
                if "task" not in arrays:
                    made["task"] = documents.row_names(file, source, numbers)
                made["author"] = pa.array([""] * len(numbers), pa.large_string())
            read_already = {"text"} if image is not None else set()
            if image is not None:
                named = f"'{columns['text']}' (data.text)"
                made["text"] = images.from_column(arrays["text"], image, named, source, numbers)
            for role in ("task", "split") if pairs else arrays:
                if role not in arrays or role in read_already:
                    continue
                made[role] = _strings(arrays[role], role, columns[role], source, numbers)
            for role in ROW_ROLES:  # other data, on which a run is evaluated, may be without them
                if getattr(data, role) is not None and role not in made:
                    made[role] = pa.array([""] * len(numbers), pa.large_string())
            if has_split and "split" not in made:
                made["split"] = pa.array([source.split] * len(numbers), pa.large_string())
            rows += len(numbers)
            yield pa.RecordBatch.from_pydict(made)
        if rows == 0:
            raise InputError(f"{source.name}: holds no examples")


def read_texts(sources: Sequence[Source], column: str, key: str = "") -> Iterator[pa.Array]:
    """Texts alone, as they are, nulls among them: lines of .txt files, a column of others. Raises InputError.

    key: the setting that names the column, if who reads can set it.
    """
    named, mend = (f" ({key})", f"set {key} to one of them.") if key else ("", f"rename one of them to '{column}'.")
    for source in sources:

        def choose(columns: Sequence[str], source: Source = source) -> dict[str, str]:
            if source.kind != "txt" and column not in columns:
                raise InputError(
                    f"{source.name}: no column '{column}'{named}; its columns are {', '.join(columns)}; "
                    f"{mend}{nearest(column, columns)}"
                )
            return {"text": column}

        for arrays, _ in READ[source.kind](source, choose):
            text = arrays["text"]
            text = text.dictionary_decode() if pa.types.is_dictionary(text.type) else text
            if not (pa.types.is_string(text.type) or pa.types.is_large_string(text.type) or
                    pa.types.is_string_view(text.type) or pa.types.is_null(text.type)):  # fmt: skip
                raise InputError(f"{source.name}: column '{column}'{named} holds {text.type}, not text")
            yield text.cast(pa.large_string())


def choose_columns(
    columns: Sequence[str],
    source: Source,
    data: DataConfig,
    family: str,
    has_split: bool | None = None,
    one_task: bool = False,
    settable: bool = True,
) -> dict[str, str]:
    """Which column of a file plays which role. Raises InputError for a missing one."""

    def missing(role: str, name: str, mend: str = "") -> InputError:
        if not settable:
            mend = f"the run's is '{name}': rename one of them."
        mend = mend or f"set data.{role} to one of them."
        if source.kind == "txt":
            return InputError(
                f"{source.name}: no column '{name}' (data.{role}): a .txt file is a text and has none; leave "
                f"data.{role} out, or give the texts as rows (.jsonl) that have it"
            )
        return InputError(
            f"{source.name}: no column '{name}' (data.{role}); its columns are {', '.join(columns)}; "
            f"{mend}{nearest(name, columns)}"
        )

    chosen = {}
    both = ("input", "target")
    needed = {"text_to_text": both, "regression": both, "document": ("text",)}.get(family, ("text", "label"))
    if source.kind == "txt":  # a text, and no columns
        columns = [data.text]
    for role in needed:
        chosen[role] = name = getattr(data, role)
        if name not in columns:
            raise missing(role, name)
    may_have = {"text_to_text": ("options", "instruction"), "document": () if one_task else ("author", "task")}
    for role in may_have.get(family, ()):
        if getattr(data, role) in columns:
            chosen[role] = getattr(data, role)
        elif role in data.model_fields_set and (settable or family != "document"):
            raise missing(role, getattr(data, role))
    for role in ROW_ROLES:
        if (name := getattr(data, role)) in columns:
            chosen[role] = name
        elif name is not None and settable:
            raise missing(role, name)
    for role in ("task", "split", *chosen):
        if list(columns).count(getattr(data, role)) > 1:
            name = getattr(data, role)
            raise InputError(f"{source.name}: {list(columns).count(name)} columns are named '{name}' (data.{role}); "
                             "rename all but one")  # fmt: skip
    if one_task:
        return chosen
    if family == "document":
        pass
    elif data.task in columns:
        if family != "classes":
            chosen["task"] = data.task
    elif family != "classes":
        more = ", or task.family=classes" if family == "domain" else ""
        raise missing("task", data.task, f"set data.task to the column that names the task{more}.")
    elif "task" in data.model_fields_set:
        raise missing("task", data.task)
    if data.splits is None:
        by_hash = data.split == "hash" and "hash" not in columns
        if data.split in columns:
            chosen["split"] = data.split
        elif "split" in data.model_fields_set and not by_hash:
            raise missing("split", data.split, "set data.split to one of them, or to hash for a stable hash.")
        elif has_split and source.split is None:
            mend = "other files have one, or a name that gives their split: leave it out, or set data.split=hash."
            raise missing("split", data.split, mend)
        if has_split is False and "split" in chosen:
            raise InputError(f"{source.name}: has a column '{data.split}', but the files before it have none")
    return chosen


# --- one function per file type: (source, choose) -> (role -> array, row numbers from 1) ---

Choose = Callable[[Sequence[str]], dict[str, str]]
Batches = Iterator[tuple[dict[str, pa.Array], "np.ndarray[Any, Any]"]]


def _read_jsonl(source: Source, choose: Choose) -> Batches:
    columns: dict[str, str] = {}
    names: dict[str, None] = {}  # the names of all rows so far, in order
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for number, line in source.lines():
        if not line.strip():
            continue
        where = f"{source.name} line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: does not parse as JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: holds a {type(row).__name__}; each line is one JSON object")
        if not row.keys() <= names.keys():
            names |= dict.fromkeys(row)
            now = choose(list(names))
            if begun := sorted(set(now) - set(columns) - {"options", "instruction"} if columns else ()):
                raise InputError(
                    f"{where}: the first row with '{now[begun[0]]}' (data.{begun[0]}); give all rows of the file one"
                )
            columns = now
        for role, column in columns.items():
            if column not in row and role not in ("options", "instruction"):
                raise InputError(f"{where}: no '{column}' (data.{role}).{nearest(column, row)}")
        rows.append(row)
        numbers.append(number)
        if len(rows) == BATCH:
            yield _from_python(rows, columns, source, numbers)
            rows, numbers = [], []
    if rows:
        yield _from_python(rows, columns, source, numbers)


def _read_whole(source: Source, choose: Choose) -> Batches:
    """A .txt file as one text."""
    choose([])
    yield {"text": pa.array([documents.read_text_file(source)], pa.large_string())}, np.array([1])


def _read_lines(source: Source, choose: Choose) -> Batches:
    """A text a line; empty lines count in the numbers."""
    choose([])
    lines = ((number, line) for number, line in source.lines() if line.strip())
    while batch := list(islice(lines, BATCH)):
        numbers, texts = zip(*batch)
        yield {"text": pa.array(texts, pa.large_string())}, np.array(numbers)


def _from_python(
    rows: list[dict[str, Any]], columns: dict[str, str], source: Source, numbers: list[int]
) -> tuple[dict[str, pa.Array], np.ndarray[Any, Any]]:
    arrays = {}
    for role, column in columns.items():
        values = [row.get(column) for row in rows]
        if role == "input" or role in records.LISTS:  # checked where the record is made
            arrays[role] = values
            continue
        allowed = (str,) if role in ("text", "instruction") else (str, int)
        if not set(map(type, values)) <= {*allowed, type(None)}:
            place, value = next((i, v) for i, v in enumerate(values) if v is not None and type(v) not in allowed)
            kinds = "text or whole numbers" if int in allowed else "text"
            raise InputError(
                f"{source.name} line {numbers[place]}: '{column}' (data.{role}) is {cut(json.dumps(value), 40)}; "
                f"it must hold {kinds}"
            )
        try:
            arrays[role] = pa.array([v if v is None else str(v) for v in values], pa.large_string())
        except UnicodeEncodeError as error:
            place = values.index(error.object)
            raise InputError(f"{source.name} line {numbers[place]}: '{column}' is not valid Unicode") from None
    return arrays, np.array(numbers)


def _read_csv(source: Source, choose: Choose) -> Batches:
    delimiter = "\t" if source.kind == "tsv" else ","
    check_quotes(source, delimiter)
    parse = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    read = pacsv.ReadOptions(block_size=1 << 24)
    try:
        # Twice: the first opening only reads the names, so that no unused column needs a type.
        with source.open() as stream:
            names = pacsv.open_csv(stream, read_options=read, parse_options=parse).schema.names
        if len(names) == 1 and (reason := _other_separator(names[0], delimiter)):
            raise InputError(f"{source.name}: {reason}")
        columns = choose(names)
        convert = pacsv.ConvertOptions(
            include_columns=list(dict.fromkeys(columns.values())),
            column_types={name: pa.large_string() for name in columns.values()},
            strings_can_be_null=False,
        )
        with source.open() as stream:
            reader = pacsv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert)
            yield from _numbered(source, reader, columns)
    except (pa.ArrowInvalid, OSError) as error:
        header = next(source.lines())[1]
        raise InputError(f"{source.name}: {_other_separator(header, delimiter) or cut(str(error), 200)}") from None


def _other_separator(header: str, delimiter: str) -> str | None:
    """What is wrong with a table whose columns' names have another mark between them, and the mend."""
    mark = next((mark for mark in ";\t|," if mark in header), None) if delimiter not in header else None
    if mark is None:
        return None
    name = {"\t": "a tab", ",": "a comma"}.get(mark, f"'{mark}'")
    mend = {"\t": "name it .tsv", ",": "name it .csv"}.get(
        mark,
        'write it with commas: python -c "import csv, sys; csv.writer(sys.stdout).writerows('
        f"csv.reader(sys.stdin, delimiter='{mark}'))\" < FILE > NEW_FILE",
    )
    return f"{name} stands between its columns, {cut(header, 60)}; {mend}"


def _read_parquet(source: Source, choose: Choose) -> Batches:
    try:
        with source.filesystem.open_input_file(source.path) as stream:
            # Not pre-buffered: that keeps what was read until the end of the file.
            file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
            columns = choose(file.schema_arrow.names)
            only = list(dict.fromkeys(columns.values()))
            names = _class_names(file.schema_arrow, columns.get("label"))
            yield from _numbered(source, file.iter_batches(BATCH, columns=only), columns, names)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{source.name}: not readable Parquet: {cut(str(error), 200)}") from None


def _read_arrow(source: Source, choose: Choose) -> Batches:
    try:
        with source.filesystem.open_input_file(source.path) as stream:
            try:
                file = pa.ipc.open_file(stream)
                schema, batches = file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
            except pa.ArrowInvalid:
                stream.seek(0)
                batches = pa.ipc.open_stream(stream)
                schema = batches.schema
            columns = choose(schema.names)
            yield from _numbered(source, batches, columns, _class_names(schema, columns.get("label")))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{source.name}: not readable Arrow: {cut(str(error), 200)}") from None


READ: dict[str, Callable[[Source, Choose], Batches]] = {
    "jsonl": _read_jsonl, "csv": _read_csv, "tsv": _read_csv, "parquet": _read_parquet, "arrow": _read_arrow,
    "txt": _read_lines,
}  # fmt: skip


def _numbered(source: Source, batches: Any, columns: dict[str, str], class_names: list[str] | None = None) -> Batches:
    line = 1
    for batch in batches:
        if len(batch) == 0:
            continue
        arrays = {role: batch.column(batch.schema.get_field_index(name)) for role, name in columns.items()}
        if class_names and pa.types.is_integer(arrays["label"].type):
            _refuse_no_class(arrays["label"], class_names, columns["label"], source, line)
            arrays["label"] = pa.array(class_names, pa.large_string()).take(arrays["label"])
        yield arrays, np.arange(line, line + len(batch))
        line += len(batch)


def _refuse_no_class(numbers: pa.Array, names: list[str], column: str, source: Source, line: int) -> None:
    """Raises InputError for a number that is no class: -1 stands for unlabelled rows in Hugging Face datasets."""
    outside = pc.or_(pc.less(numbers, 0), pc.greater_equal(numbers, len(names)))
    first = pc.index(pc.fill_null(outside, False), True).as_py()
    if first >= 0:
        raise InputError(
            f"{source.name} row {line + first}: '{column}' is {numbers[first]}, none of its {len(names)} classes "
            "(-1: not labelled); leave such rows out"
        )


def _class_names(schema: pa.Schema, column: str | None) -> list[str] | None:
    """The names behind integer labels, which Hugging Face datasets keeps in the schema's metadata."""
    try:
        note = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return [str(name) for name in note["names"]] if note["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None


def _refuse_numeric_strings(texts: pa.Array, source: Source, column: str) -> None:
    try:
        pc.cast(texts.slice(0, 1000), pa.float64())
    except pa.ArrowInvalid:
        return
    raise InputError(f"{source.name}: column '{column}' (data.text) holds numbers; set data.text to a column of text")


def _strings(array: pa.Array, role: str, column: str, source: Source, numbers: np.ndarray[Any, Any]) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    name = f"column '{column}' (data.{role})"
    if not text and not pa.types.is_null(kind):
        if role == "text":
            raise InputError(f"{source.name}: {name} holds {kind}, not text; set data.text to a column of text")
        if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise InputError(f"{source.name}: {name} holds {kind}; it must hold text or whole numbers")
    strings = array.cast(pa.large_string())
    if role == "author" or role in ROW_ROLES:  # which a document or a row may be without
        strings = pc.utf8_trim_whitespace(pc.fill_null(strings, ""))
        return _truths(strings, name, source, numbers) if role == "trusted" else strings
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(strings), ""), True)
    first = pc.index(empty, True).as_py()
    if first >= 0:
        what = "null" if not strings[first].is_valid else "empty"
        word = "line" if source.kind == "jsonl" else "row"
        raise InputError(f"{source.name} {word} {numbers[first]}: {name} is {what}")
    return strings


def _truths(strings: pa.Array, name: str, source: Source, numbers: np.ndarray[Any, Any]) -> pa.Array:
    """ "1" where a row's word means true, else ""."""
    lower = pc.utf8_lower(strings)
    first = pc.index(pc.is_in(lower, pa.array(list(TRUTHS), pa.large_string())), False).as_py()
    if first >= 0:
        word = "line" if source.kind == "jsonl" else "row"
        raise InputError(f"{source.name} {word} {numbers[first]}: {name} is {strings[first]}; it must be true or false")
    is_true = pc.is_in(lower, pa.array([word for word, true in TRUTHS.items() if true], pa.large_string()))
    return pc.if_else(is_true, "1", "").cast(pa.large_string())
