"""What encoding lost of texts: those that were cut to fit, and tokens that are not in the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distmeta.health import Sign, sign

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORTH_SAYING = 0.2  # of all tokens, unknown
MOST_UNKNOWN = 0.5


@dataclass
class Counts:
    """Of encoded texts: rows, those cut to fit, tokens, and those that the vocabulary does not know.

    Of text_to_text `cut` is of inputs, cut_answers of answers to learn, cut_instructions of instructions, which a
    bare prompt counts as its input.
    """

    rows: int = 0
    cut: int = 0
    tokens: int = 0
    unknown: int = 0
    cut_answers: int = 0
    cut_instructions: int = 0

    def add(self, encodings: Iterable[Any], unknown_id: int | None) -> None:
        for encoding in encodings:
            ids = encoding.ids
            self.rows += 1
            self.cut += bool(encoding.overflowing)
            self.tokens += len(ids)
            self.unknown += ids.count(unknown_id) if unknown_id is not None else 0


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The token that stands for what the vocabulary lacks; None where there is none, as with byte-level pairs."""
    name = getattr(tokenizer.model, "unk_token", None)
    if name is None and type(tokenizer.model).__name__ == "Unigram":
        name = "<unk>"
    number: int | None = tokenizer.token_to_id(name) if name is not None else None
    return number


def signs(counts: Mapping[str, int], max_tokens: int) -> list[Sign]:
    """As distmeta.health has them, of `Counts` as a dictionary, which is empty for a store of before."""
    out = []
    answer = counts.get("answer_tokens", 0)
    room = f"{max_tokens} tokens" + (f", less {answer} for the answer" if answer else "")
    if counts.get("cut"):
        out.append(sign(
            f"texts are cut to fit: {counts['cut']:,} of {counts['rows']:,} rows are longer than {room}",
            "model.max_tokens (raise)",
        ))  # fmt: skip
    if counts.get("cut_instructions"):
        out.append(sign(
            f"instructions are cut to fit: {counts['cut_instructions']:,} of {counts['rows']:,} rows have one that "
            f"leaves too little of {room} for the input", "model.max_tokens (raise)",
        ))  # fmt: skip
    if counts.get("cut_answers"):
        out.append(sign(
            f"answers are cut to fit: {counts['cut_answers']:,} of {counts['rows']:,} rows have one that is longer "
            f"than {answer} tokens, its end among them", "model.answer_tokens (raise)",
        ))  # fmt: skip
    if counts and counts["unknown"] > WORTH_SAYING * counts["tokens"]:
        out.append(sign(unknown_words(counts), "model.vocab_size (raise), or model.tokenizer (bpe)"))
    return out


def unknown_words(counts: Mapping[str, int]) -> str:
    share = counts["unknown"] / counts["tokens"]
    return (
        f"unknown words: {counts['unknown']:,} of {counts['tokens']:,} tokens ({share:.0%}) are not in the vocabulary"
    )
