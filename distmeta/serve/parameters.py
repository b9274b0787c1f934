"""Bodies of POST /v1/completions and /v1/chat/completions as checked values. Raises Refused, 400 with one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from distmeta.config import ServeConfig
from distmeta.errors import cut, nearest
from distmeta.serve import requests
from distmeta.serve.tasks import Refused
from distmeta.tasks.texts import shown

# What would change an answer and is not done, with the values that change nothing, which clients send.
NEUTRAL: dict[str, Sequence[Any]] = {
    "best_of": [1], "echo": [False], "suffix": [""], "logit_bias": [{}], "presence_penalty": [0],
    "frequency_penalty": [0], "response_format": [{"type": "text"}], "tools": [[]], "tool_choice": ["none", "auto"],
    "functions": [[]], "function_call": ["none", "auto"], "modalities": [["text"]],
}  # fmt: skip
# What changes no answer.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
CHOICES_OF_TOKEN = 20  # most alternatives of a token, as OpenAI has it

Texts = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class Shape(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )


class StreamOptions(Shape):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Parameters(Shape):
    """Of both routes. The defaults are OpenAI's. usual: tokens of an answer, where max_tokens is left out."""

    usual: ClassVar[int]
    model: str
    n: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Texts = Field([], max_length=4)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(None, ge=1)

    @property
    def most(self) -> int | None:
        """Tokens of an answer that are asked for."""
        return self.max_tokens


class Completion(Parameters):
    usual = 16
    prompt: Texts = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=CHOICES_OF_TOKEN)

    @property
    def alternatives(self) -> int | None:
        """Of each token, beside its log-probability; None: neither is asked for."""
        return self.logprobs


class Message(Shape):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, value: Any) -> Any:
        """Clients send an answer back as it came, with what it says nothing of."""
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class Chat(Parameters):
    usual = 1 << 30
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=CHOICES_OF_TOKEN)

    @property
    def most(self) -> int | None:
        """As `Parameters.most`; max_tokens is the older name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """As `Completion.alternatives`."""
        return self.top_logprobs if self.logprobs else None


Body = TypeVar("Body", Completion, Chat)


def checked(kind: type[Body], body: dict[str, Any], limits: ServeConfig) -> Body:
    """The parameters of a body: null is left out, what changes nothing too."""
    chosen = {}
    for name, value in body.items():
        if name in NEUTRAL and name not in kind.model_fields:
            if value is not None and value not in NEUTRAL[name]:
                raise Refused(400, f"{name} is {shown(value)}, which this server does not do; leave it out")
        elif value is not None and name not in IGNORED:
            chosen[name] = value
    try:
        settings = kind.model_validate(chosen)
    except ValidationError as error:
        raise Refused(400, one_line(error, kind)) from None
    if isinstance(settings, Chat) and settings.top_logprobs and not settings.logprobs:
        raise Refused(400, f"top_logprobs is {settings.top_logprobs}, which needs logprobs: true")
    if settings.most is not None and settings.most > limits.max_tokens:
        raise Refused(400, f"max_tokens is {settings.most}, the limit is {limits.max_tokens} (serve.max_tokens)")
    return settings


def one_line(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first fault, by the parameter's name."""
    first = error.errors(include_url=False, include_input=True)[0]
    name = ".".join(str(part) for part in first["loc"]) or "the body"
    if first["type"] == "extra_forbidden":
        hint = nearest(name, kind.model_fields)
        return f"{cut(name, 60)} is no parameter that this server knows; leave it out.{hint}"
    if first["type"] == "missing":
        return f"{name} is missing"
    return f"{cut(name, 60)} is {shown(first['input'])}: {cut(first['msg'], 200)}"


def prompts_of(body: Completion, limits: ServeConfig) -> list[str]:
    """The inputs of a completion."""
    for number, text in enumerate(body.prompt):
        requests.check_text(f"prompt {number}", text, limits)
    return body.prompt


def turns_of(body: Chat, limits: ServeConfig) -> list[dict[str, str]]:
    """The turns of a conversation: system turns, then a user's and an assistant's by turns, a user's the last."""
    turns = []
    for number, message in enumerate(body.messages):
        where = f"messages, number {number}"
        text = message.content if isinstance(message.content, str) else parts_of(message.content, where)
        requests.check_text(where, text, limits)
        turns.append({"role": ROLES[message.role], "content": text})
    spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
    if len(spoken) % 2 == 0 or spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        raise Refused(400, "messages: user and assistant must speak by turns, the user first and last")
    return turns


def parts_of(content: Sequence[dict[str, Any]], where: str) -> str:
    """Content that is given in parts, of text alone."""
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise Refused(400, f"{where}: has a part of type {shown(part.get('type'))}; this server reads text alone")
    return "".join(part["text"] for part in content)
