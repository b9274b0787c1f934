"""The section of `distmeta serve`."""

from __future__ import annotations

from pydantic import Field

from distmeta.config.base import Section


class ServeConfig(Section):
    """Limits of the service: what goes beyond one is refused with a line that names it. Each replica has its own."""

    memory_mb: float = Field(512, ge=0, description="adapted tasks kept in memory; those beyond it are read from disk")
    tasks: int = Field(10_000, ge=1, description="most adapted tasks in the directory")
    rows: int = Field(1000, ge=1, description="most examples of a support set")
    steps: int = Field(100, ge=0, description="most inner steps that a request may ask for")
    inputs: int = Field(1000, ge=1, description="most texts of a request for predictions")
    characters: int = Field(20_000, ge=1, description="most characters of one text, label or answer")
    body_mb: float = Field(16, gt=0, description="largest body of a request, in megabytes")
    seconds: float = Field(60, gt=0, description="longest time of a request, from its first line to its answer")
    waiting: int = Field(1000, ge=1, description="most requests that wait for the model at once")
    batch_tasks: int = Field(16, ge=1, description="most tasks that go through the base as one batch")
    wait_ms: float = Field(4, ge=0, description="milliseconds to wait for other requests that may join a batch")
    answers: int = Field(
        32,
        ge=1,
        description="most answers of /v1 that are generated at once, a token each in turn; further requests "
        "wait; n times the prompts of one request may not exceed it",
    )
    max_tokens: int = Field(1024, ge=1, description="most tokens of an answer of /v1")
