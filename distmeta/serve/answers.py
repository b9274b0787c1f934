"""What a task answers in words, a token a step: prompts in, pieces of text out. No HTTP.

A prompt of /v1/completions is an input of the task, as those of POST /tasks/HANDLE/predict. The messages of
/v1/chat/completions are written by the model's own chat template; where it has none they are what a support set would
be: each user turn an input, each answer before the last one an example's.
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distmeta.errors import cut
from distmeta.evaluation import documents
from distmeta.evaluation.texts import as_rows
from distmeta.models import context
from distmeta.models.generate import GREEDY, Generation, sampler
from distmeta.models.language import LanguageModel
from distmeta.serve.batches import Base
from distmeta.serve.pieces import Growing, Piece, Scored
from distmeta.serve.tasks import Refused, Task
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.prompts import plain_copy, templated
from distmeta.tasks.tokenizer import named_tokens
from distmeta.tasks.written import BREAK, PromptEncoder, encoder_of

Turns = Sequence[Mapping[str, str]]  # role (system, user, assistant) and content; the last is a user's
Pieces = Iterator[list[tuple[int, Piece]]]  # a step: which answer, and what it adds to it
NO_LIMIT = 1 << 30
NEVER = -9999.0  # the log-probability of what has none, which JSON cannot write


@dataclass(frozen=True)
class Settings:
    """How answers are made. top: alternatives of a token that are told with it; None: no log-probabilities are."""

    most: int | None = None  # tokens of an answer that are asked for
    n: int = 1  # answers of a prompt
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    top: int | None = None

    @property
    def drawn(self) -> int:
        """The seed, or one of the moment."""
        return secrets.randbits(63) if self.seed is None else self.seed


class Language:
    """A base of family text_to_text or document, asked in words."""

    def __init__(self, base: Base) -> None:
        assert isinstance(base.model, LanguageModel)
        self.base, self.model, self.tokenizer = base, base.model, base.tokenizer
        lengths = {"max_tokens": NO_LIMIT, "answer_tokens": NO_LIMIT // 2}
        model, prompt = base.config.model.model_copy(update=lengths), base.config.task.prompt
        self.encoder = encoder_of(base.tokenizer, model, prompt)
        self.longest = self.model.longest_text()
        self._plain = plain_copy(base.tokenizer)
        # A task that was learnt under another template answers turns that are written by it.
        chats = prompt in ("bare", "chat") and "chat_template" in named_tokens(base.tokenizer)
        self._template = templated(base.tokenizer) if chats else None

    def prompt(self, task: Task, asked: str | Turns) -> list[int]:
        """Tokens of a prompt, for an input or a conversation. A document goes on with it, after what was read last."""
        if self.base.family == "document":
            text = asked if isinstance(asked, str) else "".join(f"{turn['content']}\n" for turn in asked)
            return [*documents.place_of(task.about).tail, *documents.tokens_of(self.tokenizer, text)]
        return self.of_text(task, asked) if isinstance(asked, str) else self.of_turns(task, asked)

    def of_text(self, task: Task, text: str) -> list[int]:
        """A prompt of the task for an input."""
        about = self._instruction(task)
        return self.encoder.prompts([text], None, [about], later=context.KEPT in task.params)[0]

    def of_turns(self, task: Task, turns: Turns) -> list[int]:
        """A prompt of a conversation. The task's instruction is before its first input, unless a system turn is."""
        if self._template is not None:
            return self._by_template(task, turns)
        system = "\n".join(turn["content"] for turn in turns if turn["role"] == "system")
        about, ids = system or self._instruction(task), list[int]()
        for turn in turns:
            if turn["role"] == "user":
                later = bool(ids) or context.KEPT in task.params
                ids += self.encoder.prompts([turn["content"]], None, [about], later)[0]
            elif turn["role"] == "assistant":
                if self.model.seq2seq:
                    raise Refused(400, "messages: an encoder-decoder reads one user turn, without answers before it")
                ids += self.encoder.answers([turn["content"]])[0]
        return ids

    def _by_template(self, task: Task, turns: Turns) -> list[int]:
        written, behind = [dict(turn) for turn in turns], self.encoder.later is not None and context.KEPT in task.params
        instruction = self._instruction(task)
        if instruction and not behind and all(turn["role"] != "system" for turn in turns):
            first = next(turn for turn in written if turn["role"] == "user")
            between = BREAK if self.encoder.later is not None else "\n"
            first["content"] = f"{instruction}{between}{first['content']}"
        try:
            assert self._template is not None
            text = self._template.apply_chat_template(written, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program of the model's authors
            raise Refused(400, f"messages: the model's chat template refuses them ({cut(str(error), 200)})") from None
        if behind and isinstance(self.encoder, PromptEncoder):  # the support set has begun the conversation
            text = self.encoder.separator + text.removeprefix(self.encoder.prompt.start)
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def _instruction(self, task: Task) -> str:
        """What a prompt of the task is to begin with."""
        return str(task.about["answers"]["instruction"]) if self.base.config.task.instructions else ""

    def room(self, task: Task, prompt: Sequence[int], settings: Settings) -> int:
        """How many tokens an answer may have. 400: where what is asked for is longer than the model reads."""
        before = int(task.params[context.KEPT].sum()) if context.KEPT in task.params else 0
        left = self.longest - before - len(prompt)
        if left < (settings.most or 1):
            read = f"{before} of the support set and " if before else ""
            wanted = f" and max_tokens = {settings.most}" if settings.most else ""
            raise Refused(
                400, f"the model reads {self.longest} tokens: {read}{len(prompt)} of the prompt{wanted} are more; "
                "shorten the prompt, or lower max_tokens"
            )  # fmt: skip
        return settings.most or left

    def answers(self, task: Task, prompts: Sequence[list[int]], settings: Settings, most: int) -> Pieces:
        """Each step's pieces of the answers; number p * n + i is the i-th of prompt p. most: tokens of an answer.

        The same seed gives the same answers: nothing of another request is in their batch.
        """
        numbers = [p for p in range(len(prompts)) for _ in range(settings.n)]
        rows = as_rows([prompts[p] for p in numbers], [[self.encoder.end]] * len(numbers))
        (part,) = collate([rows], 1, self.base.pad_id)
        (batch,) = self.model.batches([part], self.base.device)
        pick = sampler(settings.temperature, settings.top_p, settings.drawn, self.base.device)
        generation = Generation(
            self.model, {**self.base.start.shared, **task.params}, replace(batch, states=None), self.encoder.ends, pick
        )
        texts = [Growing(self.tokenizer, settings.stops) for _ in numbers]
        for step in range(1, most + 1):
            before = generation.running.tolist()
            token, scores = generation.step()
            picked = scores.gather(-1, token.unsqueeze(-1)).squeeze(-1).tolist()
            top = scores.topk(min(settings.top or 0, scores.shape[-1]), -1)
            others = [
                list(zip(*both, strict=True)) for both in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
            ids, goes_on = token.tolist(), generation.running.tolist()
            pieces = []
            for row, number in enumerate(part["rows"][0].tolist()):
                if not before[row]:
                    continue
                if not goes_on[row]:
                    pieces.append((number, texts[number].end("stop", 1)))
                    continue
                piece = texts[number].add(ids[row], picked[row], others[row], settings.top is not None)
                if piece.finish is None and step == most:
                    last = texts[number].end("length")
                    piece = Piece(piece.text + last.text, piece.scored + last.scored, last.finish)
                if piece.finish is not None:
                    generation.running[row] = False
                pieces.append((number, piece))
            yield pieces
            if not generation.running.any():
                return


def label_answers(predictions: Sequence[Mapping[str, Any]], settings: Settings) -> list[Piece]:
    """What a task that classifies answers: a label, as one token of a vocabulary that holds the task's labels."""
    draw = random.Random(settings.drawn)
    out = []
    for prediction in predictions:
        chances: dict[str, float] = prediction["probabilities"]
        ordered = sorted(chances, key=lambda label: -chances[label])
        others = tuple((label.encode(), logarithm(chances[label])) for label in ordered[: settings.top or 0])
        for _ in range(settings.n):
            label = draw_label(chances, ordered, settings, draw)
            scored = Scored(label.encode(), logarithm(chances[label]), others, 0)
            text = label[: min([len(label), *(end for stop in settings.stops if (end := label.find(stop)) >= 0)])]
            out.append(Piece(text, (scored,) if settings.top is not None else (), "stop"))
    return out


def draw_label(chances: Mapping[str, float], ordered: Sequence[str], settings: Settings, draw: random.Random) -> str:
    """As `sampler` draws a token."""
    if settings.temperature < GREEDY:
        return ordered[0]
    best = logarithm(chances[ordered[0]])
    weights = [math.exp((logarithm(chances[label]) - best) / settings.temperature) for label in ordered]
    whole, before = sum(weights), 0.0
    for place, weight in enumerate(weights):
        if place and before >= settings.top_p * whole:
            weights[place] = 0.0
        before += weight
    return draw.choices(ordered, weights)[0]


def logarithm(chance: float) -> float:
    return math.log(chance) if chance > 0 else NEVER
