"""Server-sent events: an answer that is sent as it is made, within a request's time."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

GRACE_S = 5.0  # beyond a request's time, for a client to read what it was sent
GONE = 499  # the status that is counted where the client went away

Event = Mapping[str, Any]


class Events:
    """Events of JSON, and [DONE]; or what `failed` makes of an exception, (status, event), as the last one.

    first: the event that was waited for before there was a response. until: the time of the loop's clock by which the
    last one must be made. ended: called with a status once all is over, however it is.
    """

    failed: Callable[[Exception], tuple[int, Event]]
    ended: Callable[[int], None]

    def __init__(self, first: Event, others: AsyncGenerator[Event, None], until: float) -> None:
        self._first, self._others, self._until = first, others, until
        self._outcome = GONE
        self._lines = self._made()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = StreamingResponse(
            self._lines, media_type="text/event-stream", headers={"cache-control": "no-cache"}
        )  # fmt: skip
        left = self._until + GRACE_S - asyncio.get_running_loop().time()
        try:
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):  # a client that does not read is left
                await asyncio.wait_for(response(scope, receive, send), max(0.0, left))
        finally:
            await self._lines.aclose()
            await self._others.aclose()  # whatever makes the events ends
            self.ended(self._outcome)

    async def _made(self) -> AsyncGenerator[bytes, None]:
        yield line(self._first)
        try:
            async for event in in_time(self._others, self._until):
                yield line(event)
            self._outcome = 200
            yield b"data: [DONE]\n\n"
        except Exception as error:
            self._outcome, event = self.failed(error)
            yield line(event)


async def in_time(events: AsyncGenerator[Event, None], until: float) -> AsyncIterator[Event]:
    """Each event; raises TimeoutError where one is not made by `until`."""
    clock = asyncio.get_running_loop().time
    while True:
        try:
            yield await asyncio.wait_for(anext(events), max(0.0, until - clock()))
        except StopAsyncIteration:
            return


def line(event: Event) -> bytes:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
