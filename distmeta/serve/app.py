"""The HTTP part: an ASGI application over a base, a store and a worker. README.md (Serving) has its requests."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from distmeta.config import ServeConfig
from distmeta.errors import InputError
from distmeta.serve import requests, shapes
from distmeta.serve.batches import Asked, Base
from distmeta.serve.events import GONE, Events
from distmeta.serve.metrics import Metrics
from distmeta.serve.openai import OpenAI
from distmeta.serve.tasks import Refused, Task, TaskStore
from distmeta.serve.worker import Worker

Handler = Callable[[Request], Awaitable[Response | Events]]
Shape = Callable[[int, str], dict[str, Any]]
LISTED = 1000  # handles of one GET /tasks
log = logging.getLogger(__name__)


class Service:
    """What one replica does: tasks from support sets, predictions from tasks."""

    def __init__(self, base: Base, directory: Path, limits: ServeConfig) -> None:
        self.base, self.limits, self.metrics = base, limits, Metrics()
        self.store = TaskStore(directory, base.checkpoint, limits.memory_mb * 2**20, limits.tasks, base.device)
        self.worker = Worker(
            {"adapt": self._adapt, "predict": base.predict, "reject": base.reject, "refine": base.refine,
             "explain": base.explain},
            4 * limits.batch_tasks,
            limits.wait_ms / 1000,
            limits.waiting, lambda kind, size: self.metrics.batch.labels(kind).observe(size), limits.answers,
        )  # fmt: skip
        self.openai = OpenAI(base, self.store, self.worker, limits, self.metrics)

    def _adapt(self, several: Any) -> list[Any]:
        """A task for each request, in the model's thread; the same support set, however often and when, once."""
        new: dict[str, Asked] = {}
        known: dict[str, Any] = {}
        for asked in several:
            if asked.handle not in known and asked.handle not in new:
                found = self.store.find(asked.handle)
                if found is None:
                    new[asked.handle] = asked
                else:
                    known[asked.handle] = found
        for handle, task in zip(new, self.base.adapt(list(new.values())), strict=True):
            known[handle] = task
            if isinstance(task, Task):
                try:
                    self.store.put(task)
                except Refused as error:
                    known[handle] = error
        return [known[asked.handle] for asked in several]

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request, and what there is after it: any replica may be asked next."""
        self.metrics.answered(endpoint, status, seconds)
        tasks, size = self.store.in_memory
        self.metrics.in_memory.set(tasks)
        self.metrics.bytes.set(size)
        self.metrics.waiting.set(self.worker.waiting)

    async def add(self, request: Request) -> Response:
        body = requests.parse(await requests.read_body(request, self.limits))
        rows, steps = requests.support_of(body, self.limits, self.base.family)
        return await self._task(self.base.asked(rows, steps))

    async def more(self, request: Request) -> Response:
        """A document goes on: another task, which has read what the one before had, and this."""
        if self.base.family != "document":
            raise Refused(400, "more is for a document (task.family=document); POST /tasks with all examples instead")
        body = requests.parse(await requests.read_body(request, self.limits))
        rows, _ = requests.support_of(body, self.limits, self.base.family)
        before = await asyncio.to_thread(self.store.get, request.path_params["handle"])
        return await self._task(self.base.more(before, rows))

    async def _task(self, asked: Asked) -> Response:
        task = await asyncio.to_thread(self.store.find, asked.handle)
        status = 200
        if task is None:
            await asyncio.to_thread(self.store.room)
            task, status = await self.worker.do("adapt", asked), 201
        return JSONResponse(described(task), status)

    async def predict(self, request: Request) -> Response:
        body = requests.parse(await requests.read_body(request, self.limits))
        rate, rounds = requests.rate_of(body), requests.rounds_of(body, self.limits)
        if rate is not None and rounds:
            raise Refused(400, "refine and reject are different questions; leave one of them out")
        texts = requests.inputs_of(body, self.limits, self.base.family)
        task = await asyncio.to_thread(self.store.get, request.path_params["handle"])
        asked = ("predict", (task, texts)) if rate is None else ("reject", (task, texts, rate))
        if rounds:
            asked = ("refine", (task, texts, rounds))
        return JSONResponse({"predictions": await self.worker.do(*asked)})

    async def explain(self, request: Request) -> Response:
        """Which support examples taught each prediction."""
        body = requests.parse(await requests.read_body(request, self.limits))
        texts = requests.inputs_of(body, self.limits, self.base.family)
        task = await asyncio.to_thread(self.store.get, request.path_params["handle"])
        return JSONResponse({"explanations": await self.worker.do("explain", (task, texts))})

    async def show(self, request: Request) -> Response:
        return JSONResponse(described(await asyncio.to_thread(self.store.get, request.path_params["handle"])))

    async def list(self, request: Request) -> Response:
        after = request.query_params.get("after", "")
        handles = [handle for handle in await asyncio.to_thread(self.store.list) if handle > after]
        more = {"more": f"/tasks?after={handles[LISTED - 1]}"} if len(handles) > LISTED else {}
        return JSONResponse({"tasks": handles[:LISTED], **more})

    async def delete(self, request: Request) -> Response:
        await asyncio.to_thread(self.store.delete, request.path_params["handle"])
        return Response(status_code=204)

    async def health(self, request: Request) -> Response:
        if not self.worker.alive:
            raise Refused(503, "the model's thread has ended; start the server again")
        return JSONResponse({"status": "ok", "checkpoint": self.base.checkpoint, "meta_step": self.base.step})

    async def count(self, request: Request) -> Response:
        on_disk = len(await asyncio.to_thread(self.store.list))
        return Response(self.metrics.text(on_disk), media_type="text/plain; version=0.0.4; charset=utf-8")


def build_app(service: Service, token: str | None = None) -> Starlette:
    """The application; with a token everything but GET /health asks for `Authorization: Bearer TOKEN`."""
    guarded = partial(endpoint, service, token)
    openai = partial(guarded, shape=shapes.refusal)
    routes = [
        Route("/tasks", guarded("add", service.add), methods=["POST"]),
        Route("/tasks", guarded("list", service.list), methods=["GET"]),
        Route("/tasks/{handle}/more", guarded("more", service.more), methods=["POST"]),
        Route("/tasks/{handle}/explain", guarded("explain", service.explain), methods=["POST"]),
        Route("/tasks/{handle}/predict", guarded("predict", service.predict), methods=["POST"]),
        Route("/tasks/{handle}", guarded("show", service.show), methods=["GET"]),
        Route("/tasks/{handle}", guarded("delete", service.delete), methods=["DELETE"]),
        Route("/v1/models", openai("models", service.openai.models), methods=["GET"]),
        Route("/v1/models/{handle}", openai("model", service.openai.model), methods=["GET"]),
        Route("/v1/completions", openai("completions", service.openai.completions), methods=["POST"]),
        Route("/v1/chat/completions", openai("chat", service.openai.chat), methods=["POST"]),
        Route("/health", endpoint(service, None, "health", service.health), methods=["GET"]),
        Route("/metrics", guarded("metrics", service.count), methods=["GET"]),
    ]

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.worker.close)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        shape = shapes.refusal if request.url.path.startswith("/v1/") else plain
        line = f"{request.method} {request.url.path[:100]}: {error.detail}"
        return JSONResponse(shape(error.status_code, line), error.status_code)

    return Starlette(routes=routes, lifespan=life, exception_handlers={HTTPException: unknown})


def plain(status: int, line: str) -> dict[str, Any]:
    """An error's JSON."""
    return {"error": line}


def endpoint(service: Service, token: str | None, name: str, handler: Handler, shape: Shape = plain) -> Handler:
    """A handler within its time, whose failures are JSON of one line, counted. shape: (status, line) -> that JSON."""

    async def answer(request: Request) -> Response | Events:
        began = time.perf_counter()

        def count(status: int) -> None:
            service.answered(name, status, time.perf_counter() - began)

        def failed(error: Exception) -> tuple[int, dict[str, Any]]:
            status, line = reason(error, service.limits)
            return status, shape(status, line)

        try:
            if token is not None and not allowed(request, token):
                raise Refused(401, "missing or wrong token; send the header Authorization: Bearer TOKEN")
            response = await asyncio.wait_for(handler(request), service.limits.seconds)
        except Exception as error:
            response = refusal(*failed(error))
        if isinstance(response, Events):
            response.failed, response.ended = failed, count
        else:
            count(response.status_code)
        return response

    return answer


def reason(error: Exception, limits: ServeConfig) -> tuple[int, str]:
    """The status and the line of a request that failed."""
    if isinstance(error, Refused):
        return error.status, str(error)
    if isinstance(error, InputError):
        return 400, str(error)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return 504, f"not done within {limits.seconds:g} seconds (serve.seconds)"
    if isinstance(error, ClientDisconnect):
        return GONE, "the client went away"
    log.error("request failed", exc_info=error)
    return 500, "internal error; the log below /tmp/ray/session_latest/logs/serve says more"


def refusal(status: int, content: dict[str, Any]) -> Response:
    """An answer that is an error. What the client still sends is not waited for."""
    headers = {"connection": "close"} if status in (401, 408, 413, 504) else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(content, status, headers=headers)


def allowed(request: Request, token: str) -> bool:
    """Compared in constant time."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return hmac.compare_digest(given.strip().encode(), token.encode()) and kind.lower() == "bearer"


def described(task: Task) -> dict[str, Any]:
    """A task as the service tells of it."""
    about = {name: task.about[name] for name in ("labels", "support_loss", "steps", "rows")}
    return {"task": task.handle, **about, "bytes": task.bytes}
