"""Answers and errors as OpenAI's API writes them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from distmeta.serve.pieces import Piece, Scored

CODES = {401: "invalid_api_key", 404: "model_not_found", 413: "request_too_large", 503: "overloaded", 504: "timeout"}


@dataclass
class Answer:
    """What the pieces of an answer have come to."""

    text: str = ""
    scored: list[Scored] = field(default_factory=list)
    finish: str | None = None
    tokens: int = 0

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.scored += piece.scored
        self.finish = piece.finish
        self.tokens += piece.tokens


@dataclass(frozen=True)
class Writing:
    """How the answers of a request are written. top: as of `Settings`; prompt_tokens: of all its prompts."""

    chat: bool
    model: str
    fingerprint: str
    top: int | None
    prompt_tokens: int
    number: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = [self._choice(i, answer, self._said(answer.text)) for i, answer in enumerate(answers)]
        return self._head("") | {"choices": choices, "usage": self._usage(answers)}

    def chunk(self, number: int, piece: Piece, first: bool) -> dict[str, Any]:
        """A piece of the answer `number`; first: of this answer."""
        field = self._said(piece.text)
        if self.chat:
            role = {"role": "assistant"} if first else {}
            field = {"delta": role | ({"content": piece.text} if first or piece.text else {})}
        return self._head(".chunk") | {"choices": [self._choice(number, piece, field)]}

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The chunk after all others, where it is asked for."""
        return self._head(".chunk") | {"choices": [], "usage": self._usage(answers)}

    def _head(self, part: str) -> dict[str, Any]:
        kind = f"chat.completion{part}" if self.chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.number}", "object": kind, "created": self.created,
            "model": self.model, "system_fingerprint": self.fingerprint,
        }  # fmt: skip

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}

    def _choice(self, number: int, answer: Answer | Piece, field: dict[str, Any]) -> dict[str, Any]:
        scored = None
        if self.top is not None:
            scored = of_chat(answer.scored) if self.chat else of_completion(answer.scored, self.top)
        return {"index": number, **field, "logprobs": scored, "finish_reason": answer.finish}

    def _usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        generated = sum(answer.tokens for answer in answers)
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": generated,
                "total_tokens": self.prompt_tokens + generated}  # fmt: skip


def of_completion(scored: Sequence[Scored], top: int) -> dict[str, Any]:
    return {
        "tokens": [in_words(s.token) for s in scored],
        "token_logprobs": [s.logprob for s in scored],
        "top_logprobs": [{in_words(token): value for token, value in s.others} for s in scored] if top else None,
        "text_offset": [s.begin for s in scored],
    }


def of_chat(scored: Sequence[Scored]) -> dict[str, Any]:
    return {
        "content": [
            one(s.token, s.logprob) | {"top_logprobs": [one(token, value) for token, value in s.others]} for s in scored
        ],
        "refusal": None,
    }


def one(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": in_words(token), "logprob": logprob, "bytes": list(token)}


def in_words(token: bytes) -> str:
    return token.decode(errors="replace")


def listed(handle: str, created: int) -> dict[str, Any]:
    """A task among the models. created: seconds of 1970."""
    return {"id": handle, "object": "model", "created": created, "owned_by": "distmeta"}


def refusal(status: int, line: str) -> dict[str, Any]:
    """An error."""
    kind = "authentication_error" if status == 401 else "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": line, "type": kind, "param": None, "code": CODES.get(status)}}
