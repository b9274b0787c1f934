"""The corpus: cleaned text and its rows of tokens, as memory-mapped Arrow, made once for each content and setting.

    <cache>/corpus-KEY/text.arrow    text, validation: what cleaning has kept
                       rows.arrow    tokens: one record batch, the rows to train on before those held out
                       tokenizer.json    meta.json

Objective masked: a row is a text, or, of a text that is longer than model.max_tokens, each of its parts. Causal: the
texts of a split one after another, each as the tokenizer's template has it (or followed by its end token), are cut into
blocks of model.max_tokens; the last is shorter. Either way every token of the text is in one row.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.pretraining.cleaning import REMOVED, clean
from distmeta.tasks import tokenizer as tokenizers
from distmeta.tasks.build import build_store, built, cache_directory
from distmeta.tasks.readers import BATCH, read_texts
from distmeta.tasks.sources import TEXT_KINDS, Source, find_sources
from distmeta.tasks.store import open_store
from distmeta.tasks.writing import VOCABULARY_ROWS

FORMAT = 1  # part of every key: a change of what is written makes new corpora
SPLITS = ("train", "validation")
Rows = tuple[NDArray[np.int32], NDArray[np.int64]]  # tokens one after another, and the number of them in each row


@dataclass(frozen=True)
class Corpus:
    """A built corpus, opened for reading."""

    path: Path
    objective: str
    counts: dict[str, int]  # of cleaning: read, kept, characters, and removed by reason
    rows: dict[str, range]  # row numbers by split
    tokens: NDArray[np.int32] = field(repr=False)
    offsets: NDArray[np.int64] = field(repr=False)  # [rows + 1]

    @property
    def tokenizer(self) -> Tokenizer:
        return tokenizers.load_tokenizer(self.path / "tokenizer.json")

    def row(self, number: int) -> NDArray[np.int32]:
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]

    def size(self, split: str) -> int:
        """Tokens of a split."""
        rows = self.rows[split]
        return int(self.offsets[rows.stop] - self.offsets[rows.start])


def open_corpus(path: str | Path) -> Corpus:
    """Opens a corpus that `build_corpus` made. Raises InputError."""
    path = Path(path)
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        tokens = pa.ipc.open_file(pa.memory_map(str(path / "rows.arrow"))).get_batch(0).column("tokens")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: not a whole corpus ({' '.join(str(error).split())}); delete it to have it built"
        ) from None
    train, total = meta["rows"]["train"], len(tokens)
    return Corpus(
        path, meta["objective"], meta["counts"], {"train": range(train), "validation": range(train, total)},
        tokens.values.to_numpy(), tokens.offsets.to_numpy(),
    )  # fmt: skip


def build_corpus(
    config: Config, objective: str, progress: Callable[[str, int, int | None], None] | None = None
) -> Path:
    """The directory of the corpus of `config.pretrain`, built unless it is there. Raises InputError.

    objective: masked or causal. progress: is told of texts (what, done, None).
    """
    p, model = config.pretrain, config.model
    key, ready, batches = _keyed(config, objective)

    def fill(work: Path) -> None:
        counts: Counter[str] = Counter(dict.fromkeys(("read", "kept", "characters", *REMOVED), 0))
        with _named_as_here():
            _write_text(work / "text.arrow", clean(batches, p, counts), counts, progress)
        if counts["kept"] == 0:
            raise InputError(f"pretrain.path: of {counts['read']} texts none is left after cleaning: {dict(counts)}")
        tokenizer = ready or _train_tokenizer(work, counts["kept"], model.tokenizer, model.vocab_size)
        rows = _write_rows(work, tokenizer, objective, model.max_tokens)
        if rows["train"] == 0 or (p.validation_share > 0 and rows["validation"] == 0):
            raise InputError(
                f"pretrain.validation_share = {p.validation_share}: of {counts['kept']} texts none is left to "
                f"{'train on' if rows['train'] == 0 else 'validate'}; set another share, or 0"
            )
        tokenizers.save_tokenizer(tokenizer, work)
        meta = {"key": key, "objective": objective, "counts": dict(counts), "rows": rows}
        (work / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")

    return built(cache_directory(config.data) / f"corpus-{key}", fill)


def corpus_key(config: Config, objective: str) -> str:
    """What the corpus is known by: the content of its text, the tokenizer, and all that decides what is written."""
    return _keyed(config, objective)[0]


def _keyed(config: Config, objective: str) -> tuple[str, Tokenizer | None, Iterable[pa.Array]]:
    """The key, the tokenizer where it is not to be trained, and the texts."""
    p, model = config.pretrain, config.model
    ready = tokenizers.load_tokenizer(model.pretrained) if model.pretrained else None
    content, batches = _texts(config)
    facts = {
        "format": FORMAT, "content": content, "objective": objective, "max_tokens": model.max_tokens,
        "cleaning": [p.min_characters, p.max_characters, p.near_duplicates, p.validation_share],
        "tokenizer": tokenizers.fingerprint(ready) if ready else [model.tokenizer, model.vocab_size],
    }  # fmt: skip
    key = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()
    return key, ready, batches


def _texts(config: Config) -> tuple[Any, Iterable[pa.Array]]:
    """What the texts are known by, and the texts. Without a path: those of the meta-train tasks, and of no other."""
    p = config.pretrain
    if p.path is not None:
        sources = text_sources(p.path)
        return [p.text, *(source.digest() for source in sources)], read_texts(sources, p.text, "pretrain.text")
    store = open_store(build_store(config.data, config.task, config.model))
    texts = store.texts_of("train")
    return store.key, (texts.slice(begin, BATCH) for begin in range(0, len(texts), BATCH))


def text_sources(path: str | list[str]) -> list[Source]:
    """The files of pretrain.path. Raises InputError where there are none."""
    with _named_as_here():
        return find_sources(path, TEXT_KINDS, key="pretrain.path")


@contextlib.contextmanager
def _named_as_here() -> Iterator[None]:
    """The readers' errors, which speak of the section data."""
    try:
        yield
    except InputError as error:
        raise InputError(re.sub(r"\bdata\.(path|text)\b(?!\.)", r"pretrain.\1", str(error))) from None


def _write_text(
    path: Path, batches: Iterable[pa.RecordBatch], counts: Counter[str], progress: Callable[..., None] | None
) -> None:
    schema = pa.schema([("text", pa.large_string()), ("validation", pa.bool_())])
    with pa.ipc.new_file(str(path), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            if progress:
                progress("cleaning texts", counts["read"], None)


def _kept(work: Path, split: str) -> Iterator[list[str]]:
    """The cleaned texts of a split, in batches."""
    with pa.memory_map(str(work / "text.arrow")) as mapped:
        file = pa.ipc.open_file(mapped)
        for i in range(file.num_record_batches):
            batch = file.get_batch(i)
            wanted = batch.column("validation").to_numpy(zero_copy_only=False) == (split == "validation")
            if wanted.any():
                yield batch.column("text").filter(pa.array(wanted)).to_pylist()


def _train_tokenizer(work: Path, kept: int, level: str, vocab_size: int) -> Tokenizer:
    """From the text to train on alone, evenly spaced if there is very much of it."""
    every = -(-kept // VOCABULARY_ROWS)
    texts = (text for i, text in enumerate(chain.from_iterable(_kept(work, "train"))) if i % every == 0)
    return tokenizers.train_tokenizer(texts, level, vocab_size)


def _write_rows(work: Path, tokenizer: Tokenizer, objective: str, max_tokens: int) -> dict[str, int]:
    """rows.arrow; returns the number of rows by split."""
    cut = blocks if objective == "causal" else lines
    rows, tokens = dict.fromkeys(SPLITS, 0), 0
    with open(work / "tokens.spool", "wb") as flat_file, open(work / "ends.spool", "wb") as ends_file:
        np.zeros(1, np.int64).tofile(ends_file)
        for split in SPLITS:
            for flat, lengths in cut(tokenizer, _kept(work, split), max_tokens):
                flat.tofile(flat_file)
                (tokens + np.cumsum(lengths)).tofile(ends_file)
                tokens, rows[split] = tokens + len(flat), rows[split] + len(lengths)
    with pa.memory_map(str(work / "ends.spool")) as ends, _buffer(work / "tokens.spool", tokens) as flat_buffer:
        offsets = pa.Array.from_buffers(pa.int64(), sum(rows.values()) + 1, [None, ends.read_buffer()])
        values = pa.Array.from_buffers(pa.int32(), tokens, [None, flat_buffer])
        batch = pa.RecordBatch.from_pydict({"tokens": pa.LargeListArray.from_arrays(offsets, values)})
        with pa.ipc.new_file(str(work / "rows.arrow"), batch.schema) as writer:
            writer.write_batch(batch)
    for left in work.glob("*.spool"):
        left.unlink()
    return rows


def lines(tokenizer: Tokenizer, batches: Iterable[list[str]], max_tokens: int) -> Iterator[Rows]:
    """Rows of a text each; a longer text in parts, each within the template."""
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.no_padding()
    plain.enable_truncation(max_tokens)
    for texts in batches:
        whole = plain.encode_batch(texts)
        yield _flat([part.ids for encoding in whole for part in (encoding, *encoding.overflowing)])


def blocks(tokenizer: Tokenizer, batches: Iterable[list[str]], max_tokens: int) -> Iterator[Rows]:
    """Rows of `max_tokens` tokens, whatever text they are of; the last is shorter."""
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    marked = plain.num_special_tokens_to_add(False) > 0
    end = [] if marked else [tokenizers.special_ids(tokenizer).pad]  # a decoder's end token, by which it is padded too
    rest: list[int] = []
    for texts in batches:
        for encoding in plain.encode_batch(texts):
            rest += [*encoding.ids, *end]
        whole = len(rest) // max_tokens * max_tokens
        yield _flat([rest[begin : begin + max_tokens] for begin in range(0, whole, max_tokens)])
        rest = rest[whole:]
    if rest:
        yield _flat([rest])


def _flat(rows: list[list[int]]) -> Rows:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths


@contextlib.contextmanager
def _buffer(path: Path, size: int) -> Iterator[Any]:
    """The content of a file, which may be empty."""
    if size == 0:
        yield pa.py_buffer(b"")
        return
    with pa.memory_map(str(path)) as mapped:
        yield mapped.read_buffer()
