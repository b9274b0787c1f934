"""The few-shot language model: prompt to answer (family text_to_text), with the loss on the answer's tokens alone.

A row of the task store is a prompt and then the answer, and its label is where the answer begins. A decoder reads the
row as it is; an encoder-decoder reads the prompt and writes the answer. Either way the states that predict an answer's
tokens meet the model's own output layer, and no other state does.

Letters: T tasks, n rows of a task in a batch, N = T n, L tokens, M tokens of the longest answer, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.inner.frozen import frozen_linear
from distmeta.models import backbone as backbones
from distmeta.models import calls, context
from distmeta.models.batch import TextBatch, to_batch
from distmeta.models.held import NARROW, hold, loading_dtype
from distmeta.models.output import NO_TOKEN, token_losses
from distmeta.models.sharding import Shards
from distmeta.models.task_model import Params, TaskModel

NO_POSITIONS = 8192  # tokens of a text, where the model's configuration sets no limit


class LanguageModel(TaskModel):
    """As `TaskModel`, with token scores in the place of class scores, [T, n, M, V], and one class, the answer.

    Parameters that hold a support set (`read_support`) are read in context; so are those of algorithm=in_context.
    """

    def __init__(self, model: Any, config: Config) -> None:
        of_document = config.task.family == "document"
        self._answer_tokens = config.task.chunk_tokens if of_document else config.model.answer_tokens
        output = model.get_output_embeddings()
        self._output = output.weight, getattr(output, "bias", None)
        self._shape_scores(model)
        self.seq2seq = bool(model.config.is_encoder_decoder)
        start = getattr(model.config, "decoder_start_token_id", None)
        self.start_id = int(start if start is not None else model.config.pad_token_id or 0)
        self.reads_support, self.adapts = config.model.head == "context", config.inner.steps > 0
        self._support_length = self.longest_support(config)
        backbone = model if self.seq2seq else model.base_model
        if self.seq2seq:
            for stack in (model.get_encoder(), model.get_decoder()):  # one module, so that it is replaced as one
                stack.set_input_embeddings(model.get_input_embeddings())
            model.set_output_embeddings(nn.Identity())  # logits are then the states that the output layer reads
        super().__init__(backbone, 1, config)
        self.classes_differ = False
        self.keeps_keys = not self.seq2seq and self.keeps_context(self._trial_length)
        if self.reads_support:
            self.check_support()

    def longest_support(self, config: Config) -> int:
        """Tokens of the longest support set and a row after it."""
        return (config.most_shots + 1) * config.model.max_tokens

    def _shape_scores(self, model: Any) -> None:
        """What a family does to its scores beside a linear layer: a scale, a soft cap (Gemma 2), an offset (BART)."""
        hf_config = model.config
        self.score_cap = getattr(hf_config, "final_logit_softcapping", None)
        self.score_scale = (getattr(hf_config, "logit_scale", None) or 1.0) / (
            getattr(hf_config, "logits_scaling", None) or 1.0
        )
        self._offset = (getattr(model, "final_logits_bias", None),)  # held as `_output` is, until there is a module
        if self._offset[0] is not None:  # [1, V]; the states are not as wide
            del model._buffers["final_logits_bias"]
            model.register_buffer("final_logits_bias", torch.zeros(1, 1), persistent=False)

    def check_support(self) -> None:
        """Raises InputError where a support set and a row after it are longer than the model reads in context."""
        kind = self.backbone.config.model_type  # type: ignore[union-attr]
        if self.seq2seq:
            raise InputError(
                f"model.head = context: {kind}, an encoder-decoder, does not read a support set in context; leave "
                "model.head out (and take another algorithm than in_context), or choose a decoder, such as gpt2"
            )
        if not self.keeps_context(self._support_length):
            raise InputError(
                f"in context, {kind} does not give its ordinary states over {self._support_length} tokens (a sliding "
                "window is shorter, or its keys and values cannot be kept); lower task.shots or model.max_tokens, or "
                "choose another model, such as gpt2 or llama"
            )

    def _add_head(self, generator: torch.Generator) -> None:
        weight, bias = self._output
        names = {id(p): name for name, p in self.named_parameters()}
        self.output_name = names.get(id(weight), "output_weight")
        if self.output_name == "output_weight":
            self.output_weight = nn.Parameter(weight.detach())
        self.output_bias = nn.Parameter(bias.detach()) if bias is not None else None
        del self._output
        (offset,) = self._offset
        del self._offset
        self.register_buffer("score_offset", offset[0].clone() if offset is not None else None, persistent=False)
        self.in_context = None  # is said by the parameters, for this model

    def _ordinary(self, backbone: nn.Module) -> Tensor:
        if not self.seq2seq:
            return super()._ordinary(backbone)
        self.causal = False
        return torch.empty(0)  # build_language_model compares its scores

    def _choose_way(self, expected: Tensor) -> tuple[calls.Way, float]:
        return (calls.WAYS[1], 0.0) if self.seq2seq else super()._choose_way(expected)

    def _choose_attention(self) -> None:
        if not self.seq2seq:
            super()._choose_attention()

    def _trial_label(self, length: int) -> int:
        """Where the answer begins."""
        return max(1, length - self._answer_tokens)

    def _try_task_axis(self) -> bool:
        return self.seq2seq or super()._try_task_axis()

    def _lowest(self, names: Iterable[str]) -> int:
        if self.seq2seq or self.reads_support:
            return 0
        return min(super()._lowest(names), max(0, len(self.layers) - 1))  # the last layer is always run

    def _check_layers(self) -> None:
        if self.seq2seq:
            self.entry = 0
            self.layers.can_prune = self.layers.can_enter = False
        else:
            super()._check_layers()

    def _rows_read(self, batch: TextBatch) -> Tensor | None:
        if "mask2" in self.way:  # it may leave its mask out, and then all rows see all others
            return None
        if batch.answer_at is None:  # a trial's
            return torch.stack([batch.last - 1, batch.last], 1).clamp(min=0)
        return batch.answer_at if 2 * batch.answer_at.shape[1] <= batch.input_ids.shape[1] else None

    @property
    def starts(self) -> bool:
        return self.reads_support and not self.adapts  # else it is read once there is nothing more to adapt

    @property
    def leaves_one_out(self) -> bool:
        """Whether an inner loss is of each support row behind the others of its set."""
        return self.reads_support

    @contextlib.contextmanager
    def reading(self, reads: bool = True) -> Iterator[None]:
        """Within it the model reads its support set, or does not, whatever it was made to do."""
        before, self.reads_support = self.reads_support, reads
        try:
            yield
        finally:
            self.reads_support = before

    def sets(
        self, support: Sequence[Mapping[str, Any]], query: Sequence[Mapping[str, Any]], device: torch.device | str,
        training: bool, names: Sequence[Sequence[str]] = (),
    ) -> tuple[list[TextBatch], list[TextBatch]]:  # fmt: skip
        if self.reads_support:
            support = [following(part, part["rows"] > 0) for part in support]
            query = [following(part, np.ones_like(part["rows"], bool)) for part in query]
        return self.batches(support, device), self.batches(query, device)

    def batches(self, parts: Sequence[Mapping[str, Any]], device: torch.device | str) -> list[TextBatch]:
        return [self._batch(part, device) for part in parts]

    def _batch(self, part: Mapping[str, Any], device: torch.device | str) -> TextBatch:
        """Tokens to predict, and where from. All of it is known before anything is on the device."""
        ids = torch.as_tensor(part["input_ids"]).flatten(0, 1)
        kept = torch.as_tensor(part["attention_mask"]).flatten(0, 1)
        begin = torch.as_tensor(part["labels"]).flatten().unsqueeze(1)  # [N, 1]
        place = begin + torch.arange(int((kept.sum(1) - begin[:, 0]).max()))  # [N, M]
        is_kept = place < kept.sum(1, keepdim=True)
        place = place.clamp(max=ids.shape[1] - 1)
        answer = torch.where(is_kept, ids.gather(1, place), NO_TOKEN)
        if self.seq2seq:
            longest = int(begin.max())
            prompt = kept[:, :longest] * (torch.arange(longest) < begin)
            part = {
                **part,
                "input_ids": part["input_ids"][..., :longest],
                "attention_mask": prompt.view(*part["input_ids"].shape[:2], longest).numpy(),
            }
        batch = to_batch(part, device, causal=not self.seq2seq)
        return replace(batch, answer=answer.to(device), answer_at=(place - 1).to(device))

    def _pooled(self, batch: TextBatch, states: Tensor | None = None) -> Tensor:
        """The states that predict the answer's tokens, [N, M, D], from the layer `entry` on if `states` are given."""
        assert batch.answer_at is not None
        rows = self._rows_read(batch) if self.layers.can_prune else None
        out = self.layers.from_states(lambda: self._last_states(batch), self.entry, states, rows)
        return out if self.seq2seq or rows is not None else at_positions(out, batch.answer_at)

    def _last_states(self, batch: TextBatch) -> Tensor:
        if not self.seq2seq:
            return super()._last_states(batch)
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": self.attention_mask(batch)}
        if batch.answer is None:
            raise ValueError("an encoder-decoder needs a batch of its own making (LanguageModel.batches)")
        return self._states_of(decoder_input_ids=shifted(batch.answer, self.start_id), use_cache=False, **inputs)

    def _states_of(self, **given: Any) -> Tensor:
        """States that the output layer reads, of an encoder-decoder."""
        if self.autocast is None:
            states: Tensor = self.backbone(**given).logits
            return states
        with torch.autocast(next(self.backbone.parameters()).device.type, self.autocast, cache_enabled=False):
            states = self.backbone(**given).logits
        return states.float()

    def features(self, params: Mapping[str, Tensor], batch: TextBatch) -> Tensor:
        """The states that predict the answer's tokens, by task, [T, n, M, D]."""
        assert batch.answer_at is not None
        if context.KEPT in params:
            rows = batch.labels.shape[1]
            states: Tensor = self.under(params, lambda: context.states_after(
                self._run, params, self.embeddings()(batch.input_ids), batch.keep, rows
            ))  # fmt: skip
            states = at_positions(states, batch.answer_at)
        else:
            prepared = params[batch.states] if isinstance(batch.states, str) else batch.states
            states = self.under(params, lambda: self._pooled(batch, prepared))
        return states.view(*batch.labels.shape, *states.shape[1:])

    def logits(self, params: Params, batch: TextBatch) -> Tensor:
        """Scores of each token of the vocabulary in each place of the answers, [T, n, M, V]."""
        return self.scores(params, self.features(params, batch))

    def scores(self, params: Mapping[str, Tensor], states: Tensor) -> Tensor:
        """What the output layer makes of states [T, n, M, D]: [T, n, M, V]."""
        weight = params.get(self.output_name)
        if weight is None:
            weight = self.get_parameter(self.output_name)
        bias: Tensor | None = params.get("output_bias", self.output_bias)
        if self.autocast is None and weight.dtype in NARROW:  # as its files have it
            out: Tensor = frozen_linear(states, weight)
        else:  # a frozen weight may be bfloat16, losses are not
            out = states.to(weight.dtype) @ (weight.mT if weight.dim() == 2 else weight.mT.unsqueeze(1))
        out = out.to(states.dtype)
        if bias is not None:
            out = out + (bias if bias.dim() == 1 else bias[:, None, None])
        if self.score_scale != 1.0:
            out = out * self.score_scale
        if self.score_cap is not None:
            out = self.score_cap * torch.tanh(out / self.score_cap)
        offset: Any = self.score_offset
        return out if offset is None else out + offset

    def foretold(self, batch: TextBatch) -> Tensor:
        """Which places of `next_scores` there are: tokens of a row but its first, [N, L - 1]; of an encoder-decoder,
        tokens of the answers, [N, M]."""
        if not self.seq2seq:
            return batch.keep[:, 1:] > 0
        assert batch.answer is not None
        return batch.answer != NO_TOKEN

    def next_scores(self, params: Mapping[str, Tensor], batch: TextBatch) -> Tensor:
        """Scores of the next token in each place that `foretold` names, without any support set, [m, V]."""
        states: Tensor = self.under(params, lambda: self._pooled(batch) if self.seq2seq else self._last_states(batch))
        places = self.foretold(batch)
        return self.scores(params, states[:, : places.shape[1]][places].view(1, 1, -1, states.shape[-1]))[0, 0]

    def loss_and_hits(self, params: Params, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Each task's part of its mean, over rows, of the mean cross-entropy of an answer's tokens, [T]; and of the
        share of its tokens that are the likeliest ones after the right ones before them, [T]."""
        losses, hits, counts = self.by_row(params, batch)
        counts = counts.clamp(min=1).to(losses.dtype)  # a context of one example of each class asks for none
        return (losses / counts).sum(1) / batch.total, (hits / counts).sum(1) / batch.total

    def by_row(self, params: Params, batch: TextBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row's answer: its negative log-likelihood, how many tokens are right, how many there are; [T, n]."""
        losses, hits = self.by_token(params, batch)
        assert batch.answer is not None
        return losses.sum(2), hits.sum(2), (batch.answer != NO_TOKEN).view(losses.shape).sum(2)

    def by_token(self, params: Params, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Of each token of the answers: its negative log-likelihood, and whether it is the likeliest; [T, n, M]."""
        states = self.features(params, batch)
        assert batch.answer is not None
        learnt = [name for name in (self.output_name, "output_bias") if name in params]

        def score(states: Tensor, *values: Tensor) -> Tensor:
            return self.scores(dict(zip(learnt, values, strict=True)), states)

        values = [params[name] for name in learnt]
        return token_losses(score, self.output_rows(params), states, batch.answer.view(states.shape[:3]), values)

    def output_rows(self, params: Mapping[str, Tensor]) -> int:
        """Tokens that the output layer scores."""
        weight = params.get(self.output_name)
        return int((self.get_parameter(self.output_name) if weight is None else weight).shape[-2])

    def read_support(self, params: Params, support: Sequence[TextBatch]) -> Params:
        """What a decoder keeps of the support set (distmeta.models.context): parameters that answer in context."""
        if not self.keeps_keys:
            self.check_support()
        kept: Params = self.under(params, lambda: context.read_rows(self._run, self.embeddings(), support))
        return kept

    def start(self, params: Params, support: list[TextBatch]) -> Params:
        return self.read_support(params, support)

    def settle(self, params: Params, support: Sequence[TextBatch]) -> Params:
        return self.read_support(params, support[0].read or support) if self.reads_support else {}

    def longest_text(self) -> int:
        """Tokens that a prompt and its answer, and a support set before them, may have together."""
        limit = backbones.positions(self.backbone) or NO_POSITIONS
        if self.seq2seq or not self.keeps_keys or self.keeps_context(limit):
            return limit
        return max(self._trial_length, self._support_length if self.reads_support else 0)


def following(part: Mapping[str, Any], chosen: NDArray[np.bool_]) -> Mapping[str, Any]:
    """A part of `distmeta.tasks.episodes.collate` whose `chosen` rows [T, n] stand behind another example: they have
    the head of these (distmeta.tasks.written) in the place of their own."""
    if "heads" not in part:
        return part
    later, heads, length = part["later"], part["heads"], part["input_ids"].shape[2]
    tokens = np.broadcast_to(later.astype(np.int64), (*chosen.shape, len(later)))
    own = (part["attention_mask"] > 0) & ~(chosen[:, :, None] & (np.arange(length) < heads[:, :, None]))
    ids = np.concatenate([tokens, part["input_ids"]], 2)
    kept = np.concatenate([np.broadcast_to(chosen[:, :, None], tokens.shape), own], 2)
    order = np.argsort(~kept, 2, kind="stable")[:, :, : int(kept.sum(2).max())]  # padding keeps its place, at the end
    return {
        **part, "input_ids": np.take_along_axis(ids, order, 2),
        "attention_mask": np.take_along_axis(kept, order, 2).astype(np.int64),
        "labels": np.where(chosen, part["labels"] - heads + len(later), part["labels"]),
    }  # fmt: skip


def at_positions(states: Tensor, place: Tensor) -> Tensor:
    """states [N, L, D] at place [N, M]: [N, M, D]."""
    return states.gather(1, place.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


def shifted(answer: Tensor, first: int) -> Tensor:
    """What a decoder is given to predict `answer` [N, M]: the token before each, `first` before the first."""
    before = answer[:, :-1].clamp(min=0)  # a place beyond the end is not scored
    return torch.cat([torch.full_like(answer[:, :1], first), before], 1)


def build_language_model(
    config: Config,
    vocab_size: int,
    pad_id: int,
    copy: Any = None,
    kind: Callable[[Any, Config], LanguageModel] = LanguageModel,
    shards: Shards | None = None,
) -> LanguageModel:
    """The language model that a configuration describes, or that of `copy`, as a `kind`; its base in `shards`. Raises
    InputError."""
    dtype = loading_dtype(config) if copy is None else torch.float32
    whole = backbones.build_language_model(config.model, vocab_size, pad_id, config.run.seed, copy, dtype)
    if config.model.pretrained is not None and copy is None:
        backbone = whole if whole.config.is_encoder_decoder else whole.base_model
        hold(whole, backbone, config, shards, whole.get_output_embeddings().weight)
    if shards is not None:
        whole.to(shards.device)
    limit = backbones.positions(whole.base_model)
    length = calls.trial_length(whole, min(config.model.max_tokens, limit or config.model.max_tokens))
    ids, keep = (x.to(whole.device) for x in calls.trial(whole.config, length))
    with calls.shaken(whole, config.model.pretrained is None):
        expected = ordinary_scores(whole, ids, keep)
        model = kind(whole, config)
        model.way, model.difference = choose_way(model, ids, keep, expected)
    return model


def ordinary_scores(whole: Any, ids: Tensor, keep: Tensor) -> Tensor:
    """The scores of a whole language model, [3, L, V] or, of an encoder-decoder, those of its first 3 places."""
    more = {"decoder_input_ids": ids[:, :3]} if whole.config.is_encoder_decoder else {}
    try:
        with torch.no_grad():
            scores: Tensor = whole(input_ids=ids, attention_mask=keep, **more).logits
    except Exception as error:  # whatever a family's own code makes of being called
        raise calls.NoCall(
            f"model: {whole.config.model_type} fails at {ids.shape[1]} tokens of text alone, with transformers' own "
            f"call: {calls.reason(error)}"
        ) from None
    return scores


def choose_way(model: LanguageModel, ids: Tensor, keep: Tensor, expected: Tensor) -> tuple[calls.Way, float]:
    """How the model is called so that its scores are the whole model's. Raises InputError."""
    batch = model._trial_batch(ids.shape[1])

    def run(way: calls.Way) -> Tensor:
        model.way = way
        if not model.seq2seq:
            return model.scores({}, TaskModel._last_states(model, batch))
        mask = model.attention_mask(batch)
        states = model._states_of(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :3], use_cache=False)
        return model.scores({}, states)

    kind = str(model.backbone.config.model_type)  # type: ignore[union-attr]
    if model.seq2seq:
        return calls.choose(kind, run, expected, None, (calls.WAYS[1], calls.WAYS[3]))
    try:
        return calls.choose(kind, run, expected, keep, (model.way,))
    except InputError as error:
        raise InputError(
            f"model: {kind} makes its scores by more than a linear layer of its last states ({error}); choose another "
            "family, such as gpt2 or llama"
        ) from None
