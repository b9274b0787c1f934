"""The few-shot classifier: a backbone, a head, and which of its parameters adapt, are meta-learnt, or are frozen.

Letters: T tasks, n rows of a task in a batch, N = T n, L tokens, D width, C classes of an episode.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.models import attention, calls, context
from distmeta.models import backbone as backbones
from distmeta.models.batch import TextBatch, to_batch
from distmeta.models.fast_shards import FastShards
from distmeta.models.layers import add_lora, chosen, give_task_axis, without_task_axis
from distmeta.models.partial import Layers, check, lowest_layer, why_not_again

Params = dict[str, Tensor]
# Squared distances of unit vectors differ by less than 4, so that a scale of width^-1/2 would leave all classes alike.
UNIT_LENGTH_SCALE = 10.0
LINEAR_LENGTH = 8.0  # of features under a linear head, whose scores move by their squared length times inner.lr


class TaskModel(nn.Module):
    """Text to class logits, as pure functions of a dictionary of parameters.

    Its own parameters are the values before meta-training and never change; every function takes the running
    values by name. Fast weights may carry a leading task axis [T, ...]; then the batch holds T tasks' rows.

    fast:    initial values of what the inner loop adapts (meta-learnt).
    adapted: all that the inner loop adapts: `fast`, and a number each in the place of a prototype head's tensors,
             whose values and classes are the episode's.
    shared:  what the outer loop alone learns.
    The rest is frozen.

    entry: the layer that a batch's states are given to, since nothing below it adapts: 0 (run from the text on), or
    the number of layers (the states are pooled features). prefix_shared: names in `shared` that are below it.
    reads_sets: whether a row's states depend on the other rows of its set, which then is never taken apart.
    tower: the path of the part of the backbone that reads rows, where another part reads something else.
    """

    reads_sets, tower = False, ""

    def __init__(self, backbone: nn.Module, classes: int, config: Config, labels: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = classes
        self.prototype_head = config.model.head == "prototype"
        self.unit_length = config.model.distance == "cosine"
        self.length = 1.0 if self.prototype_head else LINEAR_LENGTH  # of features, where it is fixed
        self.in_context = config.model.context if config.model.head == "context" else None
        self._inputs = backbones.accepted_inputs(backbone)
        self._most_tokens = min(backbones.positions(backbone) or config.model.max_tokens, config.model.max_tokens)
        self._trial_length = calls.trial_length(backbone, self._most_tokens)
        self.token_bytes: dict[tuple[bool, bool], float] = {}  # as distmeta.models.footprint measures them
        self._fresh = config.model.pretrained is None
        self.work_unit = 1  # tokens of a row that cost what one of a text does
        self.autocast: torch.dtype | None = None  # float32 while calls and layers are tried out below
        with calls.shaken(backbone, self._fresh):
            expected = self._ordinary(backbone)
            give_task_axis(backbone)
            self.way, self.difference = self._choose_way(expected)
        self.pooling = config.model.pooling
        if self.pooling == "auto":
            self.pooling = "last" if self.causal else "mean"
        # transformers 5.24 renames it
        self._cache_name = "cache" if "cache" in self._inputs else "past_key_values"
        width = int(backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]
        if config.inner.adapt == "lora":
            m = config.model
            add_lora(backbone, m.lora_rank, m.lora_alpha, m.lora_targets, config.run.seed)
        self.width = width
        self._add_head(torch.Generator().manual_seed(config.run.seed))
        # Whether a class means something else in each episode, so that tasks could not share the head.
        self.classes_differ = config.task.family == "classes" or config.task.permute_labels or self.starts
        self.pooled = labels > 0 and config.algorithm == "multi_task" and self.classes_differ
        for name, value in self.pooled_head(labels, config.run.seed).items() if self.pooled else ():
            self.register_parameter(name, nn.Parameter(value))
        self.to(next(backbone.parameters()).device).requires_grad_(False)
        self.fast, self.shared = self._roles(config)
        computed = ("head_weight", "head_bias") if self.prototype_head else ()
        self.adapted: Params = self.fast | {name: torch.zeros(()) for name in computed}
        fixed = {f"backbone.{name}" for name in without_task_axis(backbone)}
        self.takes_task_axis = not (fixed & set(self.fast))
        self.fast_shards: FastShards | None = None  # where all parameters are parts, for a group that adapts together
        if self.takes_task_axis and "positions" not in self.way and self.fast.keys() - {"head_weight", "head_bias"}:
            self.takes_task_axis = self._try_task_axis()
        self.layers = Layers(backbone, self.tower)
        self.entry = 0 if self.in_context or self.reads_sets else self._lowest(self.fast)
        with calls.shaken(backbone, self._fresh):
            self._choose_attention()
            self._check_layers()
        if config.runs_layers_again:
            self._run_layers_again()
        self.entry_is_pooled = self.entry == max(1, len(self.layers))
        self.prefix_shared = tuple(name for name in self.shared if self._lowest([name]) < self.entry)
        if self.entry_is_pooled:
            self.prefix_shared = tuple(name for name in self.shared if name.startswith("backbone."))
        self.eval()  # no dropout unless it is asked for

    def _add_head(self, generator: torch.Generator) -> None:
        classes, width = self.classes, self.width
        if self.prototype_head:
            scale = UNIT_LENGTH_SCALE if self.unit_length else width**-0.5
            self.head_log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        else:
            self.head_weight = nn.Parameter(torch.randn(classes, width, generator=generator) * 0.02)
            self.head_bias = nn.Parameter(torch.zeros(classes))
        if self.in_context:
            self.head_labels = nn.Parameter(torch.randn(classes, width, generator=generator) * 0.02)
            self.head_ask = nn.Parameter(torch.randn(width, generator=generator) * 0.02)

    def _roles(self, config: Config) -> tuple[Params, Params]:
        values = dict(self.named_parameters())
        adapt = config.inner.adapt
        is_head = {name for name in values if name.startswith("head_") and name != "head_log_scale"}
        outer_only = {"head_log_scale", "pooled_weight", "pooled_bias"}
        if adapt == "all":
            fast = values.keys() - outer_only
        elif adapt == "lora":
            fast = {name for name in values if "lora_" in name} | is_head
        elif adapt == "head":
            fast = is_head
        else:
            fast = chosen(adapt, values.keys() - outer_only)
            if not fast:
                raise InputError(f"inner.adapt = {adapt}: matches no parameter; names are such as {sorted(values)[:6]}")
        base = config.trains_base
        shared = {name for name in values if name not in fast and (base or name.startswith(("head_", "pooled_")))}
        return {n: v for n, v in values.items() if n in fast}, {n: v for n, v in values.items() if n in shared}

    def _lowest(self, names: Iterable[str]) -> int:
        """The layer below which none of the parameters is; the number of layers (at least 1) if only the head's are."""
        paths = [name.removeprefix("backbone.") for name in names if name.startswith("backbone.")]
        return lowest_layer(paths, self.layers.path, len(self.layers)) if paths else max(1, len(self.layers))

    def _check_layers(self) -> None:
        """Try on a small batch what `Layers` may leave out of this architecture."""
        inside = [self.entry] if 0 < self.entry < max(1, len(self.layers)) else []
        batch = self._trial_batch()
        check(self.layers, lambda: self._last_states(batch), self._rows_read(batch), inside)
        if inside and not self.layers.can_enter:
            self.entry = 0

    def _rows_read(self, batch: TextBatch) -> Tensor | None:
        """The positions of each row that are read of the last layer, [N, M]; None: all."""
        # A decoder's own mask may be left out where no row is padded, and the first row then sees all others.
        if self.pooling == "mean" or (self.pooling == "first" and self.causal and "mask2" in self.way):
            return None
        return (torch.zeros_like(batch.last) if self.pooling == "first" else batch.last).unsqueeze(1)

    def _ordinary(self, backbone: nn.Module) -> Tensor:
        """The states of the ordinary call on a trial's rows; they tell whether the model is `causal`."""
        device = next(backbone.parameters()).device
        ids, keep = (x.to(device) for x in calls.trial(backbone.config, self._trial_length))
        states = calls.ordinary_states(backbone, ids, keep, self._inputs)
        self.causal = calls.sees_only_before(states)
        return states

    def _choose_way(self, expected: Tensor) -> tuple[calls.Way, float]:
        batch, full = self._trial_batch(), self._trial_batch(rows=2)  # without padding there may be no mask, or another

        def run(way: calls.Way) -> Tensor:
            self.way = way
            states = TaskModel._last_states(self, batch)
            return torch.cat([TaskModel._last_states(self, full)[:1], states[1:]])

        kind = self.backbone.config.model_type  # type: ignore[union-attr]
        return calls.choose(str(kind), run, expected, batch.keep)

    def _choose_attention(self) -> None:
        batch = self._trial_batch()
        attention.choose(self.backbone, lambda: self._last_states(batch)[batch.keep.bool()], self.causal)

    def _run_layers_again(self) -> None:
        """Raises InputError where layers that are run again give another gradient."""
        if self.why_not_again:
            raise InputError(
                f"model: {self.backbone.config.model_type} cannot run its layers again on the way back "  # type: ignore[union-attr]
                f"({self.why_not_again}); set inner.memory=walk, and leave model.activation_checkpointing out"
            )
        self.layers.recomputed = len(self.layers)

    @functools.cached_property
    def why_not_again(self) -> str | None:
        """Why layers cannot be run again on the way back; None where that gives the same gradient."""
        batch, values = self._trial_row(self._trial_length), (self.fast | self.shared).items()
        params = {n: v.detach().requires_grad_() for n, v in values if n.startswith("backbone.")}

        def gradient() -> Tensor:
            loss = self.under(params, lambda: self._last_states(batch)).square().mean()
            grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
            return torch.cat([g.flatten() for g in grads])

        return why_not_again(self.layers, gradient) if params else None

    def longest_row(self) -> TextBatch:
        """One row of as many tokens as a text may have."""
        return self._trial_row(self._most_tokens)

    def _trial_row(self, length: int) -> TextBatch:
        return self.batches([self._trial_part(length, rows=1)], next(self.backbone.parameters()).device)[0]

    def _trial_part(self, length: int | None = None, rows: int = 3) -> dict[str, Any]:
        """Rows as of `distmeta.tasks.episodes.collate`."""
        length = length or self._trial_length
        ids, keep = calls.trial(self.backbone.config, length)
        return {
            "input_ids": ids[:rows].unsqueeze(0).numpy(), "attention_mask": keep[:rows].unsqueeze(0).numpy(),
            "labels": np.full((1, rows), self._trial_label(length)), "store_rows": np.zeros((1, rows)), "total": rows,
        }  # fmt: skip

    def _trial_label(self, length: int) -> int:
        """Of a row of `length` tokens: a class."""
        return 0

    def _trial_batch(self, length: int | None = None, rows: int = 3) -> TextBatch:
        return to_batch(self._trial_part(length, rows), next(self.backbone.parameters()).device, self.causal)

    def _try_task_axis(self) -> bool:
        """Whether tasks with weights of their own give what they give together, in a model that makes its positions."""
        batch = self._trial_batch()
        order = torch.tensor([0, 2, 2, 0], device=batch.keep.device)
        fast = {name: value.expand(2, *value.shape) for name, value in self.fast.items() if "backbone." in name}
        try:
            with torch.no_grad():
                expected = self._last_states(batch)[order]
                states = self.under(fast, lambda: self._last_states(batch.of_rows(order)))
        except Exception:  # a family's own code, on weights of another shape
            return False
        rows = batch.keep[order].bool() if states.shape[1] == batch.keep.shape[1] else slice(None)
        return calls.difference(states[rows], expected[rows]) <= calls.SAME

    def keeps_context(self, length: int) -> bool:
        """Whether rows of `length` tokens have the same states when their second half reads kept keys and values."""
        if not self.causal:
            return False
        length = calls.trial_length(self.backbone, length)
        batch = self._trial_batch(length)
        try:
            with torch.no_grad(), calls.shaken(self.backbone, self._fresh):
                whole = TaskModel._last_states(self, batch)
                pairs = context.in_two_halves(self._run, self.embeddings()(batch.input_ids), whole, calls.gap(length))
        except Exception:  # whatever a family's own code makes of being called in another way
            return False
        return calls.difference(*pairs) <= calls.SAME

    @property
    def starts(self) -> bool:
        """Whether a task begins with tensors that are computed from its support set, by `start`."""
        return self.prototype_head or self.in_context is not None

    @contextlib.contextmanager
    def of_ways(self, ways: int | None) -> Iterator[None]:
        """Within it a prototype head is as wide as episodes of `ways` classes; None: as it is."""
        before, self.classes = self.classes, ways or self.classes
        try:
            yield
        finally:
            self.classes = before

    def forward(self, function: Callable[[], Any]) -> Any:
        """function() under the parameters in use; for `under` alone, which says what these are."""
        return function()

    def under(self, params: Mapping[str, Tensor], function: Callable[[], Any]) -> Any:
        """function() with the backbone's running parameters, those of `params`, in place."""
        running = {name: value for name, value in params.items() if name.startswith("backbone.")}
        return functional_call(self, running, (function,), tie_weights=False)

    def _pooled(self, batch: TextBatch, states: Tensor | None = None) -> Tensor:
        """Pooled features [N, D], from the layer `entry` on if `states` are given."""
        rows = self._rows_read(batch) if self.layers.can_prune else None
        out = self.layers.from_states(lambda: self._last_states(batch), self.entry, states, rows)
        if self.pooling == "mean":
            keep = batch.keep.unsqueeze(-1).to(out.dtype)
            return (out * keep).sum(1) / keep.sum(1)
        if rows is not None or self.pooling == "first":
            return out[:, 0]
        return out[torch.arange(out.shape[0], device=out.device), batch.last]

    def _last_states(self, batch: TextBatch) -> Tensor:
        """The backbone's last hidden states, [N, L, D]."""
        arguments = self._arguments(batch)
        if self.autocast is None:
            states: Tensor = self.backbone(**arguments).last_hidden_state
            return states
        # cache_enabled: a weight that was cast in one derivative's graph must not be used in another's
        with torch.autocast(batch.input_ids.device.type, self.autocast, cache_enabled=False):
            states = self.backbone(**arguments).last_hidden_state
        return states.float()

    def _arguments(self, batch: TextBatch) -> dict[str, Any]:
        """What the backbone is called with, by `way`."""
        arguments: dict[str, Any] = {
            "input_ids": batch.input_ids, "attention_mask": self.attention_mask(batch), "use_cache": False,
        }  # fmt: skip
        if "positions" in self.way:
            arguments["position_ids"] = batch.positions
        if "types" in self.way and not self.causal:
            arguments["token_type_ids"] = torch.zeros_like(batch.input_ids)
        return {k: v for k, v in arguments.items() if k in self._inputs}

    def attention_mask(self, batch: TextBatch) -> Tensor | None:
        return batch.mask if "mask4" in self.way else batch.keep.long()

    def features(self, params: Mapping[str, Tensor], batch: TextBatch) -> Tensor:
        """Pooled features by task, [T, n, D]; at a fixed length where the distance is the cosine's."""
        states = params[batch.states] if isinstance(batch.states, str) else batch.states
        at_hand = states is not None and self.entry_is_pooled
        pooled = states if at_hand else self.under(params, lambda: self._pooled(batch, states))
        assert pooled is not None
        pooled = pooled.view(*batch.labels.shape, -1)
        return self.length * F.normalize(pooled, dim=-1) if self.unit_length else pooled

    def prefix_states(self, params: Mapping[str, Tensor], batch: TextBatch) -> Tensor:
        """What the layers below `entry` make of the rows: [N, L, D], or pooled features [N, D]."""
        states: Tensor = self.under(params, lambda: (
            self._pooled(batch) if self.entry_is_pooled
            else self.layers.entry_states(lambda: self._last_states(batch), self.entry)
        ))  # fmt: skip
        return states

    def logits(self, params: Params, batch: TextBatch) -> Tensor:
        """Class scores, [T, n, C]. `params` holds the head and whatever differs from the initial values."""
        x: Tensor
        if self.in_context == "channel":
            x = self._in_context(params, lambda p, embed: context.channel(
                self._run, embed, p["head_labels"], p["table"], params, batch
            ))  # fmt: skip
            return x
        if self.in_context == "direct":
            x = self._in_context(params, lambda p, embed: context.direct(
                self._run, embed, p["head_ask"], params, batch
            ))  # fmt: skip
        else:
            x = self.features(params, batch)
        return self.head_scores(params, x)

    def head_scores(self, params: Params, x: Tensor) -> Tensor:
        """Class scores of features [T, n, D], [T, n, C]."""
        weight = params.get("head_weight", getattr(self, "head_weight", None))
        bias = params.get("head_bias", getattr(self, "head_bias", None))
        assert weight is not None and bias is not None, "start() sets a prototype head"
        return x @ weight.mT + (bias if bias.dim() == 1 else bias.unsqueeze(1))

    def loss(self, params: Params, batch: TextBatch) -> Tensor:
        """Each task's part of its mean cross-entropy, [T]; over the parts of a set it adds up to the mean."""
        return self.loss_and_hits(params, batch)[0]

    def loss_and_hits(self, params: Params, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """As `loss`, and likewise each task's part of its accuracy, [T]."""
        losses, hits = self.row_scores(params, batch)
        return losses.sum(1) / batch.total, hits.sum(1) / batch.total

    def row_scores(self, params: Params, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Each row's cross-entropy, and whether its label has the highest score, [T, n] each."""
        scores = self.logits(params, batch)
        losses = F.cross_entropy(scores.flatten(0, 1), batch.labels.flatten(), reduction="none")
        return losses.view(batch.labels.shape), scores.argmax(-1) == batch.labels

    def batches(self, parts: Sequence[Mapping[str, Any]], device: torch.device | str) -> list[TextBatch]:
        """Parts of `distmeta.tasks.episodes.collate` as this model reads them."""
        return [to_batch(part, device, self.causal) for part in parts]

    def sets(
        self, support: Sequence[Mapping[str, Any]], query: Sequence[Mapping[str, Any]], device: torch.device | str,
        training: bool, names: Sequence[Sequence[str]] = (),
    ) -> tuple[list[TextBatch], list[TextBatch]]:  # fmt: skip
        """Parts of support and query sets as this model reads them, to train on or to score. names: each task's labels,
        for a model that says them."""
        return self.batches(support, device), self.batches(query, device)

    def settle(self, params: Params, support: Sequence[TextBatch]) -> Params:
        """What is computed of the support set after adaptation, beside the fast weights."""
        return {}

    def _in_context(self, params: Params, function: Callable[[Params, Any], Any]) -> Any:
        """function(heads, embed) under the running parameters; "table" among the heads: token embeddings, [V, D]."""
        heads = {name: params.get(name, getattr(self, name)) for name in ("head_labels", "head_ask")}
        embed = self.embeddings()
        return self.under(params, lambda: function({**heads, "table": embed.weight}, embed))

    def embeddings(self) -> Any:
        """The backbone's module that embeds token ids, under `under` with the running parameters."""
        return self.backbone.get_input_embeddings()  # type: ignore[operator]

    def _run(self, embedded: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """The backbone's last states of embedded rows, with a cache of keys and values."""
        arguments = {
            "inputs_embeds": embedded, "attention_mask": mask, "position_ids": positions, "use_cache": True,
            self._cache_name: cache,
        }  # fmt: skip
        if self.autocast is None:
            states: Tensor = self.backbone(**arguments).last_hidden_state
            return states
        with torch.autocast(embedded.device.type, self.autocast, cache_enabled=False):
            states = self.backbone(**arguments).last_hidden_state
        return states.float()

    def pooled_head(self, labels: int, seed: int) -> Params:
        """Initial values of a classifier over all classes of the data."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(labels, self.width, generator=generator) * 0.02
        return {"pooled_weight": weight, "pooled_bias": torch.zeros(labels)}

    def pooled_loss(self, params: Params, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """As `loss_and_hits`, of a classifier over all classes of the data; a hit is one among the batch's."""
        assert batch.ways is not None, "classes are numbered by the learner"
        scores = self.features(params, batch) @ params["pooled_weight"].mT + params["pooled_bias"]  # [T, n, G]
        labels = batch.ways.gather(1, batch.labels)
        losses = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        among = scores.gather(2, batch.ways.unsqueeze(1).expand(-1, scores.shape[1], -1))
        return losses.sum(1) / batch.total, (among.argmax(-1) == batch.labels).sum(1) / batch.total

    def start(self, params: Params, support: list[TextBatch]) -> Params:
        """The prototype head of an episode: logits = scale * -|x - c|^2 (proto-MAML, arXiv 1903.03096, section 3.1).

        head_weight [T, C, D] = 2 s c and head_bias [T, C] = -s |c|^2, with c the class means over the support set
        and s = exp(head_log_scale), meta-learnt. Differentiable with respect to `params`. Or what the model, learning
        in context, keeps of the support set.
        """
        if self.in_context:
            of_channel = self.in_context == "channel"
            context_start: Params = self._in_context(params, lambda p, embed: context.read(
                self._run, embed, p["head_labels"], support, of_channel
            ))  # fmt: skip
            return context_start
        sums: Tensor | float = 0.0
        counts: Tensor | float = 0.0
        for batch in support:
            x = self.features(params, batch)
            chosen = F.one_hot(batch.labels, self.classes).to(x.dtype)  # [T, n, C]
            sums = sums + chosen.mT @ x
            counts = counts + chosen.sum(1)
        assert isinstance(counts, Tensor), "a support set has at least one part"
        centres = sums / counts.clamp(min=1).unsqueeze(-1)
        scale = params["head_log_scale"].exp()
        return {"head_weight": 2 * scale * centres, "head_bias": -scale * centres.pow(2).sum(-1)}
