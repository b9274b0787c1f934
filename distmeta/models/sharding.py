"""A frozen base in shards: each rank keeps its part of every large frozen weight (ZeRO stage 3 of a base).

    linear layers   the weight is gathered for each product, at every derivative order, and dropped after it:
                    x W^T, dy W and all their derivatives are one autograd function that holds no weight
    embeddings      are split by columns; the ids travel to the columns, and no weight is gathered at all

At most one whole weight is alive on a rank. No hook is involved, so that any derivative may be taken.

Ranks do not run in lockstep: one has more episodes, another's rows are cut into more parts or recomputed more often.
So every rank says, over a channel of its own, what it needs next, and all of them answer what each of them asked.
A rank that has come to the end of its work answers the others, and one that fails says so: whatever the
ranks do, the same collectives are called in the same order by all.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distmeta.config import Config

P = ParamSpec("P")
R = TypeVar("R")
DONE, FAILED = -1, -2  # in the place of an index


class RankFailed(RuntimeError):
    """Another rank ended with an error of its own while this one was at work with it."""


@dataclass(frozen=True)
class Shard:
    """A rank's part of one weight: `numel` values cut into `world` equal parts, the last one padded with zeros."""

    part: Tensor  # linear: [ceil(numel / world)]; embedding: [V, ceil(D / world)]
    shape: torch.Size


class Shards:
    """The shards of a model's frozen weights, and the way to use them. Counts the bytes of gathered weights.

    alive: bytes of gathered weights at this moment; peak: their largest number so far. (`peak` may be set to 0.)
    """

    def __init__(self, device: torch.device, timeout_s: float) -> None:
        self.device = device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.weights: list[Shard] = []
        self.alive = self.peak = 0
        self.seconds = 0.0  # in communication, so far; on a GPU without what runs on after a call
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)
        self._talk = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self._open = False

    def add_linear(
        self, weight: Tensor, dtype: torch.dtype | None = None, in_place: bool = False
    ) -> Callable[[], Tensor]:
        """Keep this rank's part of `weight` [O, I], of which nothing else is read, in `dtype` or its own; returns a
        function that gathers the whole. in_place: the part may stay where it is."""
        size, dtype = -(-weight.numel() // self.world), dtype or weight.dtype
        part = weight.detach().reshape(-1)[self.rank * size :][:size]
        if not in_place or (len(part), part.dtype, part.device) != (size, dtype, self.device):
            shard = torch.zeros(size, dtype=dtype, device=self.device)
            shard[: part.numel()] = part
            part = shard
        self.weights.append(Shard(part, weight.shape))
        return functools.partial(self.gather, len(self.weights) - 1)

    def add_embedding(self, weight: Tensor, dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
        """Keep this rank's columns of `weight` [V, D], in `dtype` or its own; returns a function from ids [...] to rows
        [..., D]."""
        size = -(-weight.shape[1] // self.world)
        shard = torch.zeros(weight.shape[0], size, dtype=dtype or weight.dtype, device=self.device)
        part = weight.detach()[:, self.rank * size :][:, :size]
        shard[:, : part.shape[1]] = part
        self.weights.append(Shard(shard, weight.shape))
        return functools.partial(self.look_up, len(self.weights) - 1)

    def gather(self, index: int) -> Tensor:
        """The whole weight [O, I]; its memory is used again as soon as the caller has let go of it."""
        out = self._answer(index, None)
        assert out is not None
        return out

    def look_up(self, index: int, ids: Tensor) -> Tensor:
        """Rows [..., D] of an embedding for ids [...]."""
        out = self._answer(index, ids)
        assert out is not None
        return out

    def describe(self) -> str:
        """One line for a person."""
        whole = sum(s.shape.numel() * s.part.element_size() for s in self.weights) / 1e6
        return f"frozen base: {len(self.weights)} weights of {whole:.1f} MB in shards over {self.world} ranks"

    @contextmanager
    def together(self) -> Iterator[None]:
        """A stretch of work that all ranks of the group enter, and leave together. Weights are used within it only."""
        self._open = True
        try:
            yield
            self._join()
        except RankFailed:
            raise
        except Exception:
            if self._open:
                self._exchange(FAILED, 0)
            raise
        finally:
            self._open = False

    def _answer(self, index: int, ids: Tensor | None) -> Tensor | None:
        assert self._open, "weights in shards are used by all ranks together"
        began = time.perf_counter()
        out = self._serve(self._exchange(index, 0 if ids is None else ids.numel()), index, ids)
        self.seconds += time.perf_counter() - began
        return out

    def _join(self) -> None:
        """Give the others what they need until they have come to their end too."""
        while True:
            requests = self._exchange(DONE, 0)
            if bool((requests[:, 0] == DONE).all()):
                return
            self._serve(requests, DONE, None)

    def _exchange(self, index: int, count: int) -> Tensor:
        """[world, 2]: the index that each rank needs next, and its number of ids."""
        request = torch.tensor([index, count])
        requests = torch.empty(self.world * 2, dtype=request.dtype)
        try:
            dist.all_gather_into_tensor(requests, request, group=self._talk)
        except RuntimeError:
            self._open = False  # a rank is gone: there is nobody to tell
            raise
        requests = requests.view(self.world, 2)
        failed = (requests[:, 0] == FAILED).nonzero().flatten().tolist()
        if failed and index != FAILED:
            self._open = False
            raise RankFailed(f"rank {failed[0]} stopped with an error of its own")
        return requests

    def _serve(self, requests: Tensor, index: int, ids: Tensor | None) -> Tensor | None:
        """Carry out what was asked for; returns this rank's part of it."""
        out = None
        rows = requests.tolist()
        for wanted in sorted({i for i, _ in rows if i >= 0}):
            shard = self.weights[wanted]
            if shard.part.dim() == 2:
                columns = self._columns(shard, max(n for i, n in rows if i == wanted), ids if index == wanted else None)
            else:
                columns = self._whole(shard, [r for r, (i, _) in enumerate(rows) if i == wanted])
            out = columns if index == wanted else out
        return out

    def _whole(self, shard: Shard, wanting: list[int]) -> Tensor | None:
        size = shard.part.numel()
        whole = None
        if self.rank in wanting:
            whole = self._space(size * self.world * shard.part.element_size()).view(shard.part.dtype)
        if len(wanting) == self.world:
            dist.all_gather_into_tensor(whole, shard.part)
        else:
            for r in wanting:
                parts = list(torch.split(whole, size)) if whole is not None and r == self.rank else None
                dist.gather(shard.part, parts, dst=r)
        return None if whole is None else self._count(whole[: shard.shape.numel()].view(shard.shape))

    def _columns(self, shard: Shard, count: int, ids: Tensor | None) -> Tensor | None:
        counts = torch.zeros(count, dtype=torch.int64, device=self.device)
        if ids is not None:
            counts[: ids.numel()] = ids.reshape(-1)
        every = torch.empty(self.world * count, dtype=torch.int64, device=self.device)
        dist.all_gather_into_tensor(every, counts)
        sent = shard.part[every]  # [world * count, columns]
        came = torch.empty_like(sent)
        dist.all_to_all_single(came, sent)
        if ids is None:
            return None
        rows = came.view(self.world, count, -1)[:, : ids.numel()].transpose(0, 1).reshape(ids.numel(), -1)
        return rows[:, : shard.shape[1]].view(*ids.shape, shard.shape[1])

    def _space(self, size: int) -> Tensor:
        """Bytes to gather into: one buffer for all weights, in turn; new ones if the last weight is still held."""
        if self.alive:
            return torch.empty(size, dtype=torch.uint8, device=self.device)
        if self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._buffer[:size]

    def _count(self, weight: Tensor) -> Tensor:
        """Count a gathered weight for as long as it is held by anybody."""
        size = weight.numel() * weight.element_size()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(weight, self._freed, size)
        return weight

    def _freed(self, size: int) -> None:
        self.alive -= size


def persistence_threshold(config: Config) -> int:
    """Up to how many numbers a weight counts as small."""
    return int(config.deepspeed["zero_optimization"].get("stage3_param_persistence_threshold", 100_000))


def frozen_shards(config: Config, device: torch.device) -> Shards | None:
    """Where the frozen base of a group goes: ZeRO stage 3 of several ranks, which all call it; else None."""
    grouped = dist.is_initialized() and dist.get_world_size() > 1
    if config.deepspeed["zero_optimization"]["stage"] != 3 or config.cluster.episode == "group" or not grouped:
        return None
    return Shards(device, config.run.timeout_s)


def together(model: nn.Module) -> AbstractContextManager[None]:
    """The stretch of work in which `model` is run: of all ranks where its base is in shards, else of this one alone."""
    shards = getattr(model, "frozen_shards", None)
    return shards.together() if isinstance(shards, Shards) else nullcontext()


def all_together(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function of (model, ...), or of (what has a model, ...), `together`."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        with together(first if isinstance(first, nn.Module) else first.model):
            return function(*args, **kwargs)

    return run
