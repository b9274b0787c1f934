"""Cleaning of text, on Arrow batches: what a text becomes, and which texts go, with a count for every reason.

a text      without control characters and invisible marks, white space as single spaces, Unicode NFC, trimmed
removed     empty; shorter or longer than the limits; a duplicate, equal to an earlier text that was kept; a near
            duplicate, whose letters and digits, in lower case and one after another, are those of an earlier one
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distmeta.config import PretrainConfig

REMOVED = ("empty", "too_short", "too_long", "duplicate", "near_duplicate")
# Soft hyphen, zero-width space, direction marks, word joiner and its kin, byte order mark. The zero-width joiners stay:
# Persian, Indic scripts and emoji are written with them.
INVISIBLE = "[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
SPACE = r"[\p{Cc}\p{Z}]+"  # control characters, line ends among them, and every kind of space


def normalise(texts: pa.Array) -> pa.Array:
    """Each text as it is kept (large strings to large strings); what is normal stays as it is."""
    visible = pc.replace_substring_regex(texts, INVISIBLE, "")
    spaced = pc.replace_substring_regex(visible, SPACE, " ")
    return pc.utf8_trim_whitespace(pc.utf8_normalize(spaced, form="NFC"))


def fingerprints(texts: pa.Array) -> pa.Array:
    """Letters, marks and digits of each text in lower case; a text without any: itself."""
    bare = pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\p{L}\p{M}\p{N}]+", "")
    return pc.if_else(pc.equal(bare, ""), texts, bare)


def clean(batches: Iterable[pa.Array], rules: PretrainConfig, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    """Batches of what is kept, as (text, validation), in the order in which it came.

    validation: whether a text is held out, by its hash alone. `counts` is filled as the batches are read: read, kept,
    characters, and each of REMOVED. Memory: some 200 bytes for each text that is kept.
    """
    seen: dict[bytes, bytes] = {}  # what may occur once -> the text that had it first
    limit = int(rules.validation_share * 2**64)
    for raw in batches:
        texts = normalise(pc.fill_null(raw, ""))
        length = pc.utf8_length(texts).to_numpy()
        too_short, too_long = length < rules.min_characters, length > rules.max_characters
        why = np.select([length == 0, too_short, too_long], REMOVED[:3], "kept").astype(object)
        strings = texts.to_pylist()
        once = fingerprints(texts).to_pylist() if rules.near_duplicates else strings
        digests = [b""] * len(texts)
        for i in np.flatnonzero(why == "kept"):
            digests[i] = key = digest(strings[i])
            first = seen.setdefault(digest(once[i]) if rules.near_duplicates else key, key)
            if first is not key:
                why[i] = "duplicate" if first == key else "near_duplicate"
        kept = why == "kept"
        counts.update(Counter(why.tolist()) | {"read": len(texts), "characters": int(length[kept].sum())})
        held_out = [int.from_bytes(digests[i][:8], "big") < limit for i in np.flatnonzero(kept)]
        chosen = texts.filter(pa.array(kept))
        yield pa.RecordBatch.from_pydict({"text": chosen, "validation": pa.array(held_out, pa.bool_())})


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
