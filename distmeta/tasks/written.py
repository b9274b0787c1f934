"""Text-to-text examples as task.prompt writes them: the instruction first, and once in a context.

    plain, Jinja   INSTRUCTION          chat   the model's own template: the instruction begins the first user's turn,
                                               each input is a user's turn, each answer the assistant's
                   Input: INPUT
                   Output: ANSWER end

An example is its head, its input with what asks for the answer, and the answer with its end. Behind another example it
has a shorter head, without an instruction: what separates two examples, and what stands before an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distmeta.config import ModelConfig
from distmeta.errors import InputError
from distmeta.tasks.counts import Counts, unknown_id
from distmeta.tasks.prompts import beginning, plain_copy, prompt_of, without_middle
from distmeta.tasks.records import Encoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BREAK = "\n\n"  # after an instruction


def encoder_of(tokenizer: Tokenizer, model: ModelConfig, prompt: str) -> Encoder:
    """What makes tokens of records under task.prompt. Raises InputError."""
    return Encoder(tokenizer, model) if prompt == "bare" else PromptEncoder(tokenizer, model, prompt)


class PromptEncoder(Encoder):
    """As `Encoder`, of a prompt with words around an input.

    What does not fit model.max_tokens loses its middle: the input, and of an instruction what is more than half of the
    room. The answer ends with the token that the template ends it with, or with the tokenizer's end.
    """

    def __init__(self, tokenizer: Tokenizer, model: ModelConfig, style: str) -> None:
        super().__init__(tokenizer, model)
        self.prompt = prompt = prompt_of(style, tokenizer)
        self._plain, self.chat, self.gap = plain_copy(tokenizer), style == "chat", prompt.gap
        whole, bare = self._plain.encode("a").ids, self.ids("a")
        self.first = [] if self.chat else list(beginning(self._plain))
        self.last = whole[len(beginning(self._plain)) + len(bare) :]
        separator = prompt.after
        added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
        closing = max((name for name in added if separator.startswith(name)), key=len, default=None)
        if closing is not None:
            self.end, separator = added[closing], separator.removeprefix(closing)
            self.ends = (self.end, *(end for end in self.ends if end != self.end))
        self.separator = separator
        self.later = tuple(self.ids(self.lead("", later=True).rstrip(" ")))
        self._asks = len(self.ids(prompt.between))
        self._frame = max(len(self.later), len(self.first) + len(self.ids(self.lead("").rstrip(" "))))
        self.room = model.max_tokens - model.answer_tokens - len(self.last)
        if (self.room - self._frame) // 2 <= self._asks:
            raise InputError(
                f"model.max_tokens = {model.max_tokens}: model.answer_tokens = {model.answer_tokens} and what task."
                f"prompt writes around an input ({self._frame + self._asks} tokens) leave too little room; raise "
                "model.max_tokens"
            )

    def ids(self, text: str) -> list[int]:
        found: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return found

    def lead(self, instruction: str, later: bool = False) -> str:
        """What stands before an input, as text."""
        if later:
            return self.separator + self.prompt.before
        about = instruction + BREAK if instruction else ""
        start = self.prompt.start
        return start + self.prompt.before + about if self.chat else about + start + self.prompt.before

    def split(
        self, texts: Sequence[str], counts: Counts | None = None, instructions: Sequence[str] = ()
    ) -> tuple[list[list[int]], list[list[int]]]:
        leads = [self.lead(instruction) for instruction in instructions or [""] * len(texts)]
        wholes = [lead + text + self.prompt.between for lead, text in zip(leads, texts, strict=True)]
        encodings = self._plain.encode_batch(wholes, add_special_tokens=False)
        heads, bodies = [], []
        for lead, encoding in zip(leads, encodings, strict=True):
            before = sum(end <= len(lead.rstrip(" ")) for _, end in encoding.offsets)
            head, body = self._fitted([*self.first, *encoding.ids[:before]], encoding.ids[before:], counts)
            heads.append(head)
            bodies.append([*body, *self.last])
        if counts is not None:
            unknown = unknown_id(self._plain)
            counts.rows += len(wholes)
            counts.tokens += sum(map(len, heads)) + sum(map(len, bodies))
            counts.unknown += sum(e.ids.count(unknown) for e in encodings) if unknown is not None else 0
        return heads, bodies

    def _fitted(self, head: list[int], body: list[int], counts: Counts | None) -> tuple[list[int], list[int]]:
        """Both within the room, together and with the head that stands in a context."""
        most = max(self.room - max(len(head), self._frame), (self.room - self._frame) // 2)
        if counts is not None:
            counts.cut += len(body) > most
        body = without_middle(body, most, self._asks)
        most = self.room - len(body)
        if counts is not None:
            counts.cut_instructions += len(head) > most
        if len(head) > most:
            begin = self._frame if self.chat else len(self.first)
            end = 1 if self.chat else self._frame - len(self.first) + 1
            about = without_middle(head[begin : len(head) - end], most - begin - end)
            head = head[:begin] + about + head[len(head) - end :]
        return head, body
