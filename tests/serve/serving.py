"""An ASGI application asked in this process, as a server would ask it."""

import asyncio
import contextlib
import json
import threading
import time
from dataclasses import dataclass

from distmeta.config import ServeConfig
from distmeta.serve.app import Service, build_app
from distmeta.serve.batches import Base

WORDS = ["red", "blue", "green", "small", "big", "fast", "slow", "old", "new", "hot", "cold", "sharp"]
TEXTS = ["the red thing", "it is a cold blue thing", "so hot", "small", "a round flat sharp thing it is so"]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> str:
        line = self.json["error"]
        assert set(self.json) == {"error"} and line and "\n" not in line
        return line


def support(number: int, labels=("yes", "no"), each: int = 2):
    """Support set `number`, two texts of each label, its words its own."""
    chosen = [WORDS[(number + 5 * i) % len(WORDS)] for i in range(len(labels))]
    filler = ["the", "a so", "it is", "so"]
    return [{"text": f"{filler[(i + number) % 4]} {word} thing", "label": label}
            for i in range(each) for word, label in zip(chosen, labels, strict=True)]  # fmt: skip


async def ask(app, method, path, body=None, *, chunks=None, headers=None, pause_s=0.0, length=True) -> Answer:
    """One request. body: JSON, or bytes as they are. chunks: the body in parts, with pauses between them."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    parts = list(chunks) if chunks is not None else [raw]
    given = dict(headers or {})
    if length and chunks is None:
        given["content-length"] = str(len(raw))
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in given.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    at = 0
    read = []

    async def receive():
        nonlocal at
        if at == len(parts):
            await asyncio.sleep(3600)  # a client that stays and says nothing more
        if at and pause_s:
            await asyncio.sleep(pause_s)
        at += 1
        read.append(len(parts[at - 1]))
        return {"type": "http.request", "body": parts[at - 1], "more_body": at < len(parts)}

    sent = []

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    start = sent[0]
    content = b"".join(message.get("body", b"") for message in sent[1:])
    found = {k.decode(): v.decode() for k, v in start["headers"]}
    return Answer(start["status"], found | {"x-read": str(sum(read))}, content)


def asked(app, *words, **named) -> Answer:
    return asyncio.run(asyncio.wait_for(ask(app, *words, **named), 60))


class Server:
    """A service with its application, in this process."""

    def __init__(self, base: Base, directory, token: str | None = None, **limits) -> None:
        self.service = Service(base, directory, ServeConfig(**limits))
        self.app = build_app(self.service, token)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.service.worker.close()

    def ask(self, *words, **named) -> Answer:
        return asked(self.app, *words, **named)

    def add(self, rows, **more) -> str:
        answer = self.ask("POST", "/tasks", {"support": rows, **more})
        assert answer.status in (200, 201), answer.body
        return answer.json["task"]

    def predict(self, handle, texts=TEXTS):
        answer = self.ask("POST", f"/tasks/{handle}/predict", {"inputs": texts})
        assert answer.status == 200, answer.body
        return answer.json["predictions"]


@contextlib.contextmanager
def listening(app):
    """The application at a port of this machine, from a thread: its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
