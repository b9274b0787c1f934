"""An answer as its tokens come: pieces of text that hold whole characters, up to a stop sequence. No model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNKNOWN = "\ufffd"  # what bytes that are no character, or not yet, are decoded to
MOST_BYTES = 3  # of a character that is not all there


@dataclass(frozen=True)
class Scored:
    """A token that was said, and its log-probability. begin: characters of the answer before it."""

    token: bytes
    logprob: float
    others: tuple[tuple[bytes, float], ...]  # the likeliest in its place, in their order
    begin: int


@dataclass(frozen=True)
class Piece:
    """What one step adds to an answer. finish: why it is the last, stop or length; None: it is not."""

    text: str
    scored: tuple[Scored, ...] = ()
    finish: str | None = None
    tokens: int = 1  # that were generated for it


@dataclass
class Growing:
    """An answer's text so far. stops: what ends it, and is left out."""

    tokenizer: Tokenizer
    stops: Sequence[str] = ()
    _ids: list[int] = field(default_factory=list)
    _said: int = 0  # characters that have left
    _whole: int = 0  # characters of the text whose bytes are all there
    _scored: list[Scored] = field(default_factory=list)

    def add(
        self, token: int, logprob: float = 0.0, others: Sequence[tuple[int, float]] = (), scores: bool = False
    ) -> Piece:
        """The next token. scores: whether pieces tell log-probabilities."""
        if scores:
            named = tuple((token_bytes(self.tokenizer, other), value) for other, value in others)
            self._scored.append(Scored(token_bytes(self.tokenizer, token), logprob, named, self._whole))
        self._ids.append(token)
        text = self._decoded()
        self._whole = len(text) - min(MOST_BYTES, len(text) - len(text.rstrip(UNKNOWN)))
        return self._piece(text[: self._whole], None)

    def end(self, finish: str, tokens: int = 0) -> Piece:
        """What was still held back. tokens: generated since the last piece."""
        return self._piece(self._decoded(), finish, tokens)

    def _decoded(self) -> str:
        text: str = self.tokenizer.decode(self._ids, skip_special_tokens=True)
        return text

    def _piece(self, text: str, finish: str | None, tokens: int = 1) -> Piece:
        text = text[self._said :]
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            text, finish = text[: min(places)], "stop"
        elif finish is None:
            text = text[: len(text) - held_back(text, self.stops)]
        self._said += len(text)
        scored = [s for s in self._scored if s.begin < self._said or (finish is not None and not places)]
        self._scored = self._scored[len(scored) :]
        return Piece(text, tuple(scored), finish, tokens)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of `text` with which a stop sequence may have begun."""
    sizes = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(sizes, default=0)


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """What a token stands for within a text: of a byte-level tokenizer perhaps a part of a character."""
    token = tokenizer.id_to_token(token_id) or ""
    if "ByteLevel" in repr(tokenizer.decoder) and (letters := [byte_letters().get(letter) for letter in token]):
        return token.encode() if None in letters else bytes(byte for byte in letters if byte is not None)
    if re.fullmatch("<0x[0-9A-F]{2}>", token):  # of a tokenizer that falls back on bytes
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()


@lru_cache(maxsize=1)
def byte_letters() -> dict[str, int]:
    """The letters by which a byte-level tokenizer writes bytes: what can be printed is itself."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}
