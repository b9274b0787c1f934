"""Running a transformer in part: only the layers above cached states, and in the last layer only the rows read.

What a layer's attention needs beside its own rows are the keys and values of all rows, and a Hugging Face layer takes
these from a cache if it is given one. So one mechanism serves every family whose layers pass one tensor on and know a
cache (BERT, RoBERTa, GPT-2, Llama, Qwen, Mistral, ...), without a line for any of them. A model that is not of that
kind is run whole: `check` compares on the actual model before anything is left out.

Letters: N rows, L tokens, M of them that are read, D width.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from distmeta.models import calls
from distmeta.models.recompute import recompute

CACHE_NAMES = ("cache", "past_key_values")  # of a layer's argument, from and before transformers 5.24
Run = Callable[[], Tensor]  # one forward pass of the model, returning its last hidden states


class Layers:
    """The layers of a Hugging Face model, each of which asks here what to do when the model calls it."""

    def __init__(self, backbone: nn.Module, tower: str = "") -> None:
        self.path, self.layers = find_layers(backbone, tower)
        self._states: Tensor | None = None  # given at the entry of layer `_entry`
        self._entry = 0
        self._stop = False  # at layer `_entry`, and hand over what comes in
        self._rows: Tensor | None = None  # [N, M]: in the last layer, the positions that are read of each row
        for number, layer in enumerate(self.layers):
            layer.forward = partial(self._layer, number, layer.forward)
        embeddings = getattr(backbone, "embeddings", None)  # with positions and a norm of its own, as in BERT
        if isinstance(embeddings, nn.Module):
            embeddings.forward = partial(self._embeddings, embeddings.forward)
        last = inspect.signature(type(self.layers[-1]).forward).parameters if self.layers else {}
        self.can_enter = self.can_prune = bool(self.layers)
        self._names = list(last)[1:]  # without self
        self.recomputed = 0  # layers from the entry on that are run again on the way back, and keep their inputs alone
        self._again = False  # within such a layer
        self._pads = False  # to L rows what is read, for a model that counts them (GPT-2)
        self._cache = next((name for name in CACHE_NAMES if name in last), "")
        self.can_prune &= bool(self._cache)

    def __len__(self) -> int:
        return len(self.layers)

    def entry_states(self, run: Run, entry: int) -> Tensor:
        """What layer `entry` is given, [N, L, D]; the layers from it on are not run."""
        self._entry, self._stop = entry, True
        try:
            run()
        except _Reached as reached:
            states: Tensor = reached.states
            return states
        finally:
            self._stop = False
        raise RuntimeError(f"layer {entry} of {self.path} was not called")

    def from_states(self, run: Run, entry: int, states: Tensor | None, rows: Tensor | None) -> Tensor:
        """Last hidden states: from layer `entry` on if `states` are given; [N, M, D] of the `rows` [N, M] if given."""
        self._entry, self._states, self._rows = entry, states, rows
        try:
            out: Tensor = run()
            return out if rows is None else out[:, : rows.shape[1]]
        finally:
            self._states = self._rows = None

    def try_rows(self, run: Run, rows: Tensor, expected: Tensor) -> bool:
        """Whether the last layer gives the `expected` [N, M, D] when it runs these rows only."""
        for self._pads in (False, True):
            with contextlib.suppress(Exception):  # whatever a family's own code makes of being called in another way
                if _near(self.from_states(run, 0, None, rows), expected):
                    return True
        return False

    def try_entry(self, run: Run, entry: int, expected: Tensor) -> bool:
        """Whether the layers from `entry` on give the `expected` [N, L, D] when they are given what it was given."""
        with contextlib.suppress(Exception):
            return _near(self.from_states(run, entry, self.entry_states(run, entry), None), expected)
        return False

    def _embeddings(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._states is None else self._states

    def _layer(self, number: int, forward: Callable[..., Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
        if self._states is not None:
            if number < self._entry:
                return hidden
            if number == self._entry:
                hidden = self._states
        if self._stop and number == self._entry:
            raise _Reached(hidden)
        again = self._entry <= number < self._entry + self.recomputed
        if again and torch.is_grad_enabled() and not self._again:
            return self._recompute(number, forward, hidden, args, kwargs)
        return self._once(number, forward, hidden, args, kwargs)

    def _once(self, number: int, forward: Callable[..., Any], hidden: Tensor, args: Any, kwargs: Any) -> Any:
        if self._rows is None or number < len(self.layers) - 1:
            return forward(hidden, *args, **kwargs)
        arguments = dict(zip(self._names, (hidden, *args), strict=False)) | kwargs
        return self._read_rows(forward, hidden, arguments, self._rows)

    def _recompute(self, number: int, forward: Callable[..., Any], hidden: Tensor, args: Any, kwargs: Any) -> Any:
        """The layer as a function of all that a derivative may be taken of: its input, others' outputs, its weights."""
        layer = self.layers[number]
        parameters = dict(layer.named_parameters())
        learnt = [name for name, value in parameters.items() if value.requires_grad]
        leaves, spec = tree_flatten((args, kwargs))
        beside = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]  # T5: position biases
        writes = any(hasattr(x, "update") for x in leaves)  # a cache, which a second run would change again
        if writes or not (learnt or beside or hidden.requires_grad):
            return self._once(number, forward, hidden, args, kwargs)
        rows = self._rows

        def run(hidden: Tensor, *tensors: Tensor) -> Any:
            values = parameters | dict(zip(learnt, tensors, strict=False))
            inputs = list(leaves)
            for i, x in zip(beside, tensors[len(learnt) :], strict=True):
                inputs[i] = x
            args, kwargs = tree_unflatten(inputs, spec)
            before, self._again, self._rows = self._rows, True, rows
            try:
                return functional_call(layer, values, (hidden, *args), kwargs, tie_weights=False)
            finally:
                self._again, self._rows = False, before

        inputs = [parameters[name] for name in learnt] + [leaves[i] for i in beside]
        return recompute(run, hidden, *inputs, draws=layer.training)

    def _read_rows(
        self, forward: Callable[..., Any], hidden: Tensor, arguments: dict[str, Any], rows: Tensor
    ) -> Tensor:
        """The last layer for some rows of each text: keys and values of all rows, everything else of those."""
        cache = _Keys()
        with contextlib.suppress(_Reached):
            forward(**{**arguments, self._cache: cache})
        length = hidden.shape[1]
        arguments[self._names[0]] = at(hidden, rows, 1)
        mask = arguments.get("attention_mask")
        if mask is not None and mask.shape[-2] > 1:
            arguments["attention_mask"] = at(mask, rows, 2)
        if arguments.get("position_ids") is not None:
            arguments["position_ids"] = at(arguments["position_ids"], rows, 1)
        if arguments.get("position_embeddings") is not None:
            arguments["position_embeddings"] = tuple(at(t, rows, 1) for t in arguments["position_embeddings"])
        assert cache.keys is not None and cache.keys.shape[-2] == length
        out: Tensor = forward(**{**arguments, self._cache: cache})
        return F.pad(out, (0, 0, 0, length - out.shape[1])) if self._pads else out


class _Reached(Exception):
    """Not an error: the part of the model that was asked for has been run."""

    def __init__(self, states: Any = None) -> None:
        super().__init__()
        self.states = states


class _Keys:
    """Stands in for a cache of keys and values: keeps the first ones it sees, and gives them from then on."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
            raise _Reached
        return self.keys, self.values

    def get_seq_length(self, *_: Any) -> int:
        return 0


def at(tensor: Tensor, rows: Tensor, dim: int) -> Tensor:
    """Elements rows[n] of `dim` in tensor [N or 1, ...], of which the dim then has M: rows is [N, M]."""
    index = rows.view(len(rows), *[1] * (dim - 1), -1, *[1] * (tensor.dim() - dim - 1))
    shape = list(tensor.shape)
    shape[0], shape[dim] = rows.shape
    return tensor.expand(len(rows), *tensor.shape[1:]).gather(dim, index.expand(shape))


def find_layers(backbone: nn.Module, tower: str = "") -> tuple[str, list[nn.Module]]:
    """The path and the modules of the longest list of layers of one kind, below the path `tower`; ("", []) where there
    is none."""
    best: tuple[str, list[nn.Module]] = ("", [])
    for path, module in backbone.named_modules():
        if not path.startswith(tower):
            continue
        if isinstance(module, nn.ModuleList) and len(module) > len(best[1]) and len({type(m) for m in module}) == 1:
            best = (path, list(module))
    return best


def lowest_layer(names: list[str], path: str, layers: int) -> int:
    """The lowest of the layers below which no parameter in `names` is; `layers` if none is in or below a layer.

    A name that is neither a layer's nor that of a norm after the last counts as below all of them.
    """
    lowest = layers
    for name in names:
        rest = name.removeprefix(f"{path}.")
        if rest != name:
            lowest = min(lowest, int(rest.split(".")[0]))
        elif name.split(".")[0] not in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
            return 0
    return lowest


def check(layers: Layers, run: Run, rows: Tensor | None, entries: list[int]) -> None:
    """Leave to `layers` only what gives the same numbers as the whole model, in evaluation mode, on this batch."""
    layers.can_prune &= rows is not None
    if not (layers.can_prune or entries):
        return
    with torch.no_grad():
        whole = run()
        if layers.can_prune and rows is not None:
            layers.can_prune = layers.try_rows(run, rows, at(whole, rows, 1))
        layers.can_enter = all(layers.try_entry(run, entry, whole) for entry in entries)


def why_not_again(layers: Layers, gradient: Callable[[], Tensor]) -> str | None:
    """Why `layers` cannot be run again on the way back; None where `gradient` gives the same with them and without."""
    if not len(layers):
        return "its layers cannot be told apart"
    before, layers.recomputed = layers.recomputed, len(layers)
    try:
        again = gradient()
        layers.recomputed = 0
        apart = calls.difference(again, gradient())
    except Exception as error:  # whatever a family's own code makes of being called twice
        return calls.reason(error)
    finally:
        layers.recomputed = before
    return None if apart <= calls.SAME else "it gives another gradient then"


def _near(a: Tensor, b: Tensor) -> bool:
    return a[:, :1].shape == b[:, :1].shape and torch.allclose(a[:, : b.shape[1]].double(), b.double(), 1e-4, 1e-5)
