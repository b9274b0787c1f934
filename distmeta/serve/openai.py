"""The routes of OpenAI's API, for clients that people have: the model of a request is the handle of a task.

    GET  /v1/models, /v1/models/HANDLE   the tasks
    POST /v1/completions                 inputs of the task, answered
    POST /v1/chat/completions            a conversation, by the model's own chat template, answered

A task that classifies answers with a label, as one token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from distmeta.config import ServeConfig
from distmeta.serve import requests
from distmeta.serve.answers import Language, Settings, label_answers
from distmeta.serve.batches import Base
from distmeta.serve.events import Event, Events
from distmeta.serve.metrics import Metrics
from distmeta.serve.parameters import Chat, Completion, checked, prompts_of, turns_of
from distmeta.serve.pieces import Piece
from distmeta.serve.shapes import Answer, Writing, listed
from distmeta.serve.tasks import Refused, Task, TaskStore
from distmeta.serve.worker import Worker

T = TypeVar("T")
Pieces = AsyncGenerator[list[tuple[int, Piece]], None]  # each step's: which answer, and what it adds to it


class OpenAI:
    """Handlers of the routes. What they raise is for `distmeta.serve.app.endpoint` to answer."""

    def __init__(self, base: Base, store: TaskStore, worker: Worker, limits: ServeConfig, metrics: Metrics) -> None:
        self.base, self.store, self.worker, self.limits, self.metrics = base, store, worker, limits, metrics
        self.language = Language(base) if base.config.task.is_language else None

    async def models(self, request: Request) -> Response:
        made = await asyncio.to_thread(self.store.made)
        return JSONResponse({"object": "list", "data": [listed(handle, created) for handle, created in made.items()]})

    async def model(self, request: Request) -> Response:
        task = await asyncio.to_thread(self.store.get, request.path_params["handle"])
        made = await asyncio.to_thread(self.store.made)
        return JSONResponse(listed(task.handle, made.get(task.handle, 0)))

    async def completions(self, request: Request) -> Response | Events:
        until = self._until()
        body = checked(Completion, requests.parse(await requests.read_body(request, self.limits)), self.limits)
        return await self._answer(request, body, prompts_of(body, self.limits), until)

    async def chat(self, request: Request) -> Response | Events:
        until = self._until()
        body = checked(Chat, requests.parse(await requests.read_body(request, self.limits)), self.limits)
        return await self._answer(request, body, [turns_of(body, self.limits)], until)

    def _until(self) -> float:
        return asyncio.get_running_loop().time() + self.limits.seconds

    async def _answer(
        self, request: Request, body: Completion | Chat, inputs: Sequence[Any], until: float
    ) -> Response | Events:
        if (choices := len(inputs) * body.n) > self.limits.answers:
            raise Refused(413, f"{choices} answers at once, the limit is {self.limits.answers} (serve.answers)")
        task = await asyncio.to_thread(self.store.get, body.model)
        settings = Settings(
            body.most, body.n, body.temperature, body.top_p, body.seed, tuple(filter(None, body.stop)),
            body.alternatives,
        )  # fmt: skip
        prepare = self._labels if self.language is None else partial(self._words, self.language)
        most = min(self.limits.max_tokens, body.most or body.usual)
        pieces, prompt_tokens = await asyncio.to_thread(prepare, task, inputs, settings, most)
        answers = [Answer() for _ in range(choices)]
        writing = Writing(isinstance(body, Chat), task.handle, self.base.checkpoint, settings.top, prompt_tokens)
        if body.stream:
            events = self._chunks(pieces, answers, writing, body.stream_options.include_usage)
            return Events(await unless_gone(request, anext(events)), events, until)
        await unless_gone(request, drained(self._chunks(pieces, answers, writing, False)))
        return JSONResponse(writing.whole(answers))

    async def _chunks(
        self, pieces: Pieces, answers: Sequence[Answer], writing: Writing, usage: bool
    ) -> AsyncGenerator[Event, None]:
        """A chunk for each piece, which is added to its answer. usage: whether the last one is of that."""
        self.metrics.tokens.labels("prompt").inc(writing.prompt_tokens)
        begun = set()
        async with aclosing(pieces):
            async for step in pieces:
                for number, piece in step:
                    answers[number].add(piece)
                    self.metrics.tokens.labels("completion").inc(piece.tokens)
                    if piece.text or piece.scored or piece.finish:
                        yield writing.chunk(number, piece, first=number not in begun)
                        begun.add(number)
        if usage:
            yield writing.usage(answers)

    def _words(
        self, language: Language, task: Task, inputs: Sequence[Any], settings: Settings, most: int
    ) -> tuple[Pieces, int]:
        """The pieces of a language model's answers, of `most` tokens, and how many tokens the prompts have."""
        prompts = [language.prompt(task, asked) for asked in inputs]
        most = min([most, *(language.room(task, ids, settings) for ids in prompts)])
        answers = partial(language.answers, task, prompts, settings, most)
        return self.worker.stream(answers, len(prompts) * settings.n), sum(map(len, prompts))

    def _labels(self, task: Task, inputs: Sequence[Any], settings: Settings, most: int) -> tuple[Pieces, int]:
        """As `_words`, of a task that classifies: a label is one token."""
        if self.base.config.task.has_numbers:
            raise Refused(400, "this task is of numbers, which are no text; POST /tasks/HANDLE/predict")
        if any(not isinstance(asked, str) and len(asked) > 1 for asked in inputs):
            raise Refused(400, "messages: this task classifies a text; give that alone, as one user turn")
        texts = [asked if isinstance(asked, str) else asked[0]["content"] for asked in inputs]

        async def pieces() -> Pieces:
            predictions = await self.worker.do("predict", (task, texts))
            yield list(enumerate(label_answers(predictions, settings)))

        return pieces(), self.base.tokens_of(texts)


async def drained(events: AsyncGenerator[Event, None]) -> None:
    async with aclosing(events):
        async for _ in events:
            pass


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What the work comes to. Raises ClientDisconnect, and ends the work, where the client goes away before its end."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait([working, leaving])
