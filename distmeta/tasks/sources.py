"""Finding the data files: files, directories, globs, on the local disk or a pyarrow or fsspec filesystem."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from distmeta.errors import InputError, cut

KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
TEXT_KINDS = {**KINDS, ".txt": "txt"}  # where text alone is wanted
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")


class MissingData(InputError):
    """Data that is not where it is said to be."""


@dataclass(frozen=True)
class Source:
    """One data file."""

    name: str  # as messages call it
    path: str  # within its filesystem
    filesystem: Any
    kind: str
    split: str | None = None  # the folder's name, in a saved DatasetDict

    def open(self) -> Any:
        """A sequential, decompressed input stream."""
        return self.filesystem.open_input_stream(self.path, compression="detect")

    def lines(self) -> Iterator[tuple[int, str]]:
        """As `lines`, of this file."""
        with self.open() as stream:
            yield from lines(io.BufferedReader(stream, 1 << 20), self.name)

    def digest(self) -> str:
        """Of the content for a local file; of path, size and time of change for a remote one."""
        hashed = hashlib.blake2b(self.kind.encode(), digest_size=16)
        hashed.update((self.split or "").encode())
        if isinstance(self.filesystem, pafs.LocalFileSystem):
            with open(self.path, "rb") as file:
                while chunk := file.read(1 << 20):
                    hashed.update(chunk)
        else:
            info = self.filesystem.get_file_info(self.path)
            hashed.update(f"{self.name}\0{info.size}\0{info.mtime_ns}".encode())
        return hashed.hexdigest()


def lines(stream: Iterable[Any], name: str) -> Iterator[tuple[int, str]]:
    """The number, from 1, and the text of each line of a stream of bytes or text, blank ones too, without its end.

    A line ends at a line feed alone, before which a carriage return goes: form feeds and the line separators of Unicode
    are characters of a text. Raises InputError for what is not UTF-8, and for a stream that breaks off.
    """
    raw = iter(stream)
    for number in itertools.count(1):
        try:
            line = next(raw, None)
            if line is None:
                return
            if number == 1 and isinstance(line, bytes) and (encoding := utf_16(line)):
                raise InputError(f"{name}: {not_utf8('its first characters are of UTF-16', encoding)}")
            text = line if isinstance(line, str) else line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{name} line {number}: {not_utf8(error.reason)}") from None
        except (OSError, EOFError, pa.ArrowException) as error:
            raise InputError(f"{name} line {number}: {broken_off(error)}") from None
        yield number, text.removesuffix("\n").removesuffix("\r")


def check_quotes(source: Source, delimiter: str) -> None:
    """Raises InputError where a quote that opens a field would take in the rows after its own.

    A quoted text may have line breaks, if its quote closes at the end of the field. Where tabs part the fields it may
    not have these too: quotes in such files mostly stand for themselves.
    """
    opened = 0  # the line of the quote that is open
    for number, line in source.lines():
        if opened:
            end = _closing(line, 0)
            inside, after = (line, "") if end < 0 else (line[:end], line[end + 1 :])
            if (after and not after.startswith(delimiter)) or (delimiter == "\t" and "\t" in inside):
                break
            if end < 0:
                continue
            line, opened = after, 0
        start = _unclosed(line, delimiter) if '"' in line else -1
        if start >= 0:
            opened = number
            if delimiter == "\t" and "\t" in line[start:]:
                break
    if opened:
        raise InputError(
            f"{source.name} line {opened}: a field begins with a quote and does not end with one, and so it takes "
            'in the rows after it; write the quotes of its text twice and one around it, as in """Yes"" he said"'
        )


def _unclosed(line: str, delimiter: str) -> int:
    """Where the field begins whose quote does not close in this line; -1: there is none."""
    place = 0
    while True:
        if line.startswith('"', place):
            end = _closing(line, place + 1)
            if end < 0:
                return place
            place = end + 1
        place = line.find(delimiter, place) + 1
        if place == 0:
            return -1


def _closing(line: str, place: int) -> int:
    """Where a quoted field closes, from `place` on; -1: not in this line."""
    while (end := line.find('"', place)) >= 0 and line.startswith('""', end):
        place = end + 2
    return end


def not_utf8(reason: str, encoding: str = "latin1") -> str:
    return f"not UTF-8 ({reason}); convert it, as `iconv -f {encoding} -t utf-8` does"


def utf_16(start: bytes) -> str | None:
    """The name of the UTF-16 that a text that begins so is in, if it is."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    return {(False, True): "utf-16le", (True, False): "utf-16be"}.get((start[:1] == b"\0", start[1:2] == b"\0"))


def broken_off(error: Exception) -> str:
    """Of a file whose stream ends in an error: what is wrong, and the mend."""
    if "incorrect header" in str(error):
        return "it is not compressed, as its name says; rename it"
    return f"the file breaks off here ({cut(str(error), 200)}); copy it again"


def filesystem_of(path: str) -> tuple[Any, str]:
    """The filesystem of a local path or URI, and the path within it. Raises InputError."""
    if "://" not in path:
        return pafs.LocalFileSystem(), str(Path(path).expanduser())
    try:
        return pafs.FileSystem.from_uri(path)  # type: ignore[no-any-return]
    except (pa.ArrowException, OSError, ValueError):
        pass
    try:
        import fsspec

        filesystem, inner = fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise InputError(f"data.path = {path}: this filesystem needs a package: {error}") from None
    except (ValueError, OSError) as error:
        raise InputError(f"data.path = {path}: {cut(str(error), 200)}") from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), inner


def find_sources(
    paths: str | Sequence[str],
    kinds: Mapping[str, str] = KINDS,
    json_too: bool = False,
    first: bool = False,
    key: str = "",
) -> list[Source]:
    """The data files that `paths` (files, directories, globs) stand for, in a stable order.

    kinds: by suffix. json_too: a .json file in a directory is data, and not a note about the data beside it.
    first: the first of them alone. key: the setting that names the paths, if one does.
    """
    try:
        sources = list_sources(paths, kinds, json_too)[: 1 if first else None]
    except MissingData as error:
        raise MissingData(f"{error} ({key})" if key else str(error)) from None
    if not sources:
        raise InputError("data.path is an empty list; name at least one file, directory or glob")
    for source in sources:
        if source.filesystem.get_file_info(source.path).size == 0:
            raise InputError(f"{source.name}: the file is empty")
    return sources


def list_sources(paths: str | Sequence[str], kinds: Mapping[str, str] = KINDS, json_too: bool = False) -> list[Source]:
    """As `find_sources`; a file may still be empty."""
    sources: list[Source] = []
    for path in [paths] if isinstance(paths, str) else paths:
        filesystem, inner = filesystem_of(path)
        sources += _expand(filesystem, path, inner, kinds, json_too)
    return sources


def _expand(filesystem: Any, shown: str, inner: str, kinds: Mapping[str, str], json_too: bool = False) -> list[Source]:
    kind = filesystem.get_file_info(inner).type
    if kind == pafs.FileType.File:
        return [_source(filesystem, inner, shown, kinds)]
    scheme = shown.partition("://")[0] + "://" if "://" in shown else ""
    if kind == pafs.FileType.Directory:
        files = _in_directory(filesystem, inner.rstrip("/"), scheme, kinds, json_too=json_too)
        if not files:
            raise InputError(f"{shown}: no data file in this directory; known types: {', '.join(kinds)}")
        return files
    if not glob.has_magic(inner):
        raise MissingData(f"{shown}: no such file or directory")
    if isinstance(filesystem, pafs.LocalFileSystem):
        matches = sorted(glob.glob(inner, recursive=True))
    else:
        base = "/".join(takewhile(lambda part: not glob.has_magic(part), inner.split("/")[:-1]))
        listed = filesystem.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
        matches = sorted(info.path for info in listed if fnmatch.fnmatch(info.path.lstrip("/"), inner.lstrip("/")))
    if not matches:
        raise MissingData(f"{shown}: no file matches")
    return [source for match in matches for source in _expand(filesystem, scheme + match, match, kinds, json_too)]


def _in_directory(
    filesystem: Any,
    path: str,
    scheme: str,
    kinds: Mapping[str, str],
    split: str | None = None,
    json_too: bool = False,
) -> list[Source]:
    def note(name: str) -> Any:
        if filesystem.get_file_info(f"{path}/{name}").type != pafs.FileType.File:
            return None
        try:
            with filesystem.open_input_stream(f"{path}/{name}") as stream:
                return json.loads(stream.read())
        except ValueError:
            raise InputError(f"{scheme}{path}/{name}: not readable JSON; is the saved dataset complete?") from None

    parts, state = note("dataset_dict.json"), note("state.json")
    try:
        if parts is not None:
            names = [str(name) for name in parts["splits"]]
            return [s for name in names for s in _in_directory(filesystem, f"{path}/{name}", scheme, kinds, name)]
        if state is not None:
            files = [f"{path}/{entry['filename']}" for entry in state["_data_files"]]
            return [_source(filesystem, file, scheme + file, kinds, split) for file in files]
    except (KeyError, TypeError):
        raise InputError(f"{scheme}{path}: not a saved Hugging Face dataset that can be read") from None
    listed = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    paths = {info.path for info in listed}
    # A cache of ours below the data (data.cache) is not data.
    stores = {n.removesuffix("/rows.arrow") for n in paths if n.endswith("/rows.arrow")}
    stores = {store for store in stores if f"{store}/tokenizer.json" in paths}
    # A .json file beside data describes it (splits.json, dataset_info.json); named itself, it is JSONL.
    suffixes = set(kinds) - (set() if json_too else {".json"})
    matches = []
    for info in sorted(listed, key=lambda info: info.path):
        folder, _, file = info.path.rpartition("/")
        below = info.path[len(path) :].strip("/").split("/")
        hidden = file.startswith("cache-") or folder in stores or any(p.startswith((".", "_")) for p in below)
        if info.type == pafs.FileType.File and not hidden and _suffix(file) in suffixes:
            matches.append(_source(filesystem, info.path, scheme + info.path, kinds, split))
    return matches


def _suffix(path: str) -> str:
    suffixes = Path(path.lower()).suffixes
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _source(filesystem: Any, path: str, shown: str, kinds: Mapping[str, str], split: str | None = None) -> Source:
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        raise InputError(f"{shown}: no such file")
    kind = kinds.get(_suffix(path))
    if kind is None:
        raise InputError(f"{shown}: unknown file type '{Path(path).suffix}'; known types: {', '.join(kinds)}")
    if kind in ("parquet", "arrow") and path.lower().endswith(COMPRESSED):
        raise InputError(f"{shown}: compressed {kind} cannot be memory-mapped; decompress it")
    return Source(shown, path, filesystem, kind, split)
