"""What a request may hold: JSON bodies as checked rows and texts. Raises Refused with one line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from starlette.requests import Request

from distmeta.config import ServeConfig
from distmeta.errors import cut, nearest
from distmeta.serve.tasks import Refused
from distmeta.tasks.texts import fault, shown

# Columns of a row: whether it needs them, and what they hold: a text, a text or a whole number, a text or several,
# a number or several.
CLASSES = {"text": (True, "text"), "label": (True, "label")}
TEXT_TO_TEXT = {"input": (True, "text"), "target": (True, "texts"), "options": (False, "texts"),
                "instruction": (False, "text")}  # fmt: skip
DOCUMENT = {"text": (True, "text")}
REGRESSION = {"input": (True, "numbers"), "target": (True, "numbers")}
POLICY = {"task": (True, "numbers")}
# Of a task family; CLASSES of the others
COLUMNS = {"text_to_text": TEXT_TO_TEXT, "document": DOCUMENT, "regression": REGRESSION, "policy": POLICY}
MOST_LISTED = 100  # answers or options of one example
MOST_NUMBERS = 10_000  # of one input or target


async def read_body(request: Request, limits: ServeConfig) -> bytes:
    """The body, of which no more is read than may be. 413."""
    most = int(limits.body_mb * 2**20)
    too_long = Refused(413, f"the body is longer than {limits.body_mb:g} MB (serve.body_mb)")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_long
    return bytes(body)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a body."""
    try:
        value = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {cut(str(error), 200)}") from None
    if not isinstance(value, dict):
        raise Refused(400, f"the body is a JSON {type(value).__name__}; give an object")
    return value


def support_of(body: dict[str, Any], limits: ServeConfig, family: str) -> tuple[list[dict[str, Any]], int | None]:
    """(rows, steps) of POST /tasks; of documents also of POST /tasks/{handle}/more, without steps."""
    _known("the body", body, ("support",) if family == "document" else ("support", "steps"))
    columns = COLUMNS.get(family, CLASSES)
    rows = _list("support", body.get("support"), limits.rows, "examples (serve.rows)")
    for number, row in enumerate(rows):
        where = f"support, example {number}"
        if not isinstance(row, dict):
            raise Refused(400, f"{where} is {shown(row)}; give an object with {', '.join(columns)}")
        _known(where, row, columns)
        for column, (needed, kind) in columns.items():
            value, named = row.get(column), f"{where}, '{column}'"
            if value is None and needed:
                raise Refused(400, f"{where} has no '{column}'")
            if kind == "numbers":
                check_numbers(named, value)
            elif kind == "texts" and isinstance(value, list):
                for one in _list(named, value, MOST_LISTED, "texts (of an example)"):
                    check_text(named, one, limits)
            elif value is not None and not (kind == "label" and type(value) is int):  # which True is not
                check_text(named, value, limits)
    steps = body.get("steps")
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or not 0 <= steps <= limits.steps):
        raise Refused(400, f"steps is {shown(steps)}; a whole number from 0 to {limits.steps} (serve.steps)")
    return rows, steps


def rate_of(body: dict[str, Any]) -> float | None:
    """`reject` of POST /tasks/{handle}/predict, taken out of the body; None where it is not asked for."""
    rate = body.pop("reject", None)
    if rate is not None and (not isinstance(rate, int | float) or isinstance(rate, bool)):
        raise Refused(400, f"reject is {shown(rate)}; give a share of the task's own texts, such as 0.05")
    return rate


def rounds_of(body: dict[str, Any], limits: ServeConfig) -> int:
    """`refine` of POST /tasks/{handle}/predict, taken out of the body; 0 where it is not asked for."""
    rounds = body.pop("refine", 0)
    if not isinstance(rounds, int) or isinstance(rounds, bool) or not 0 <= rounds <= limits.steps:
        raise Refused(400, f"refine is {shown(rounds)}; a whole number of rounds, 0 to {limits.steps} (serve.steps)")
    return rounds


def inputs_of(body: dict[str, Any], limits: ServeConfig, family: str) -> list[Any]:
    """The inputs of POST /tasks/{handle}/predict: texts, or of families regression and policy numbers and lists."""
    _known("the body", body, ("inputs",))
    texts = _list("inputs", body.get("inputs"), limits.inputs, "texts (serve.inputs)")
    for number, text in enumerate(texts):
        if family in ("regression", "policy"):
            check_numbers(f"inputs, {number}", text)
        else:
            check_text(f"inputs, text {number}", text, limits)
    return texts


def _list(name: str, value: Any, most: int, what: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise Refused(400, f"{name} is {shown(value)}; give a list with something in it")
    if len(value) > most:
        raise Refused(413, f"{name} has {len(value)} {what.split(' (')[0]}, the limit is {most} ({what.split(' (')[1]}")
    return value


def check_text(where: str, value: Any, limits: ServeConfig) -> None:
    """Raises Refused for what no model can answer, or is too long."""
    if reason := fault(value):
        raise Refused(400, f"{where} {reason}")
    if len(value) > limits.characters:
        raise Refused(413, f"{where} has {len(value)} characters, the limit is {limits.characters} (serve.characters)")


def check_numbers(where: str, value: Any) -> None:
    """Raises Refused for what is no number or list of numbers."""
    for one in _list(where, value, MOST_NUMBERS, "numbers (of an example)") if isinstance(value, list) else [value]:
        if not isinstance(one, int | float) or isinstance(one, bool):
            raise Refused(400, f"{where} is {shown(value)}; give a number or a list of numbers")


def _known(where: str, value: dict[str, Any], allowed: Iterable[str]) -> None:
    allowed = list(allowed)
    for key in value:
        if key not in allowed:
            raise Refused(400, f"{where} has {shown(key)}; allowed are {', '.join(allowed)}.{nearest(key, allowed)}")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
