"""The section of `distmeta serve`."""

from __future__ import annotations

from pydantic import Field

from distmeta.config.base import Section


class ServeConfig(Section):
    """Limits of the service: what goes beyond one is refused with a line that names it. Each replica has its own."""

    memory_mb: float = Field(512, ge=0, description="megabytes of adapted tasks in memory; others are read from disk")
    tasks: int = Field(10_000, ge=1, description="most adapted tasks in the directory of tasks")
    rows: int = Field(1000, ge=1, description="most examples of a support set")
    steps: int = Field(100, ge=0, description="most inner steps that a request may set")
    inputs: int = Field(1000, ge=1, description="most texts in a request for predictions")
    characters: int = Field(20_000, ge=1, description="most characters of one text, label or answer")
    body_mb: float = Field(16, gt=0, description="largest body of a request, in megabytes")
    seconds: float = Field(60, gt=0, description="most seconds of a request, from its first line to its answer")
    waiting: int = Field(1000, ge=1, description="most requests that wait for the model at the same time")
    batch_tasks: int = Field(16, ge=1, description="most tasks in one batch")
    wait_ms: float = Field(4, ge=0, description="milliseconds to wait for other requests to join a batch")
    answers: int = Field(
        32,
        ge=1,
        description="most answers of /v1 that are generated at the same time, taking turns token by token; further "
        "requests wait; n times the prompts of one request may not exceed it",
    )
    max_tokens: int = Field(1024, ge=1, description="most tokens in an answer of /v1")
