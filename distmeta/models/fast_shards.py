"""All parameters of a model in shards that may change: fast weights of a model too large for one rank.

Each rank keeps an equal flat part of every parameter (padded with zeros). A module gathers its own parameters when it
is run, and drops them after; the backward pass gathers each weight that it needs again, and hands each rank its part
of the gradient, summed over ranks:

    forward    shard -> all_gather -> weight      what autograd would save of it is saved as the way to it
    backward   weight's gradient -> reduce_scatter -> shard's gradient

So a loss is a function of shards like any other, and what is elementwise (an inner step, a difference, a sum) is done
on shards as they are. Ranks run the same modules in the same order, each on rows of its own; `told` compares it.
"""

from __future__ import annotations

import time
import weakref
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from distmeta.errors import InputError
from distmeta.models.layers import TaskConv1D, TaskLinear


@dataclass(frozen=True)
class Way:
    """To a parameter, or a view of it, from this rank's shard."""

    shard: Tensor
    name: str
    dtype: torch.dtype
    view: tuple[Any, Any, Any]  # size, strides, offset in the whole


class FastShards:
    """A model's parameters in shards over the group of all ranks; one rank alone holds them whole.

    alive: bytes of gathered parameters at this moment; peak: their largest number so far. (`peak` may be set to 0.)
    shapes: of the whole parameters, by name.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        grouped = dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
        self.shapes: dict[str, torch.Size] = {}
        self.alive = self.peak = 0
        self.seconds = 0.0  # in communication, so far; on a GPU without what runs on after a call
        self.autocast: torch.dtype | None = None  # linear layers' weights travel in it
        self._open: dict[int, tuple[Tensor, str]] = {}  # gathered now, by address: (shard, name)
        self._order = 0  # checksum of the collectives so far

    def cut(self, value: Tensor) -> Tensor:
        """This rank's part of a whole parameter, [ceil(numel / world)]."""
        size = -(-value.numel() // self.world)
        own = torch.zeros(size, dtype=value.dtype, device=self.device)
        part = value.detach().reshape(-1)[self.rank * size :][:size]
        own[: part.numel()] = part
        return own

    def keep(self, name: str, value: Tensor) -> Tensor:
        """What a rank keeps of a whole tensor of a checkpoint: its part of what is like a parameter, else all."""
        return self.cut(value) if value.shape == self.shape_of(name) else value.to(self.device)

    def has_part_of(self, name: str, value: Tensor) -> bool:
        """Whether `value` is a shard; a learnt rate may be one number for a whole parameter."""
        return value.dim() == 1 and self.shape_of(name) is not None

    def shape_of(self, name: str) -> torch.Size | None:
        """The whole shape of a parameter; of a tensor like it, KEY/NAME or KEY.NAME; None where it is not in shards."""
        name = name.rsplit("/", 1)[-1]
        return self.shapes[name] if name in self.shapes else self.shapes.get(name.partition(".")[2])

    def take(self, module: nn.Module, prefix: str = "") -> None:
        """Leave of all parameters in `module` this rank's part; its modules gather them as they are run."""
        for path, part in module.named_modules(prefix=prefix):
            own = {name: p for name, p in part._parameters.items() if p is not None}
            for name, p in own.items():
                if p.dim() == 0:
                    raise InputError(f"cluster.episode = group: {path}.{name} is a single number; use episode=rank")
                self.shapes[f"{path}.{name}"] = p.shape
                part._parameters[name] = nn.Parameter(self.cut(p.detach()), requires_grad=False)
            if own:
                part.forward = partial(self._run, part, {name: f"{path}.{name}" for name in own})

    def whole(self, name: str, shard: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The whole parameter (or a tensor like it), differentiable with respect to its shard."""
        out: Tensor = _Gather.apply(shard, self, name, dtype or shard.dtype)  # type: ignore[no-untyped-call]
        return out

    def told(self, values: list[float]) -> list[float]:
        """Sums over ranks. Raises RuntimeError where the ranks did not gather the same parameters in the same order."""
        if self.world == 1:
            return values
        mine = torch.tensor([*values, float(self._order)], dtype=torch.float64, device=self.device)
        every = torch.empty(self.world * len(mine), dtype=mine.dtype, device=self.device)
        dist.all_gather_into_tensor(every, mine)
        table = every.view(self.world, -1).cpu()
        if bool((table[:, -1] != table[0, -1]).any()):
            raise RuntimeError("the ranks ran different modules of the model: its order depends on the text (experts?)")
        return table[:, :-1].sum(0).tolist()  # type: ignore[no-any-return]

    def _run(self, module: nn.Module, names: dict[str, str], *args: Any, **kwargs: Any) -> Any:
        """The module's forward pass with its own parameters whole, which nothing keeps afterwards."""
        shards = dict(module._parameters)
        narrow = self.autocast if isinstance(module, TaskLinear | TaskConv1D) else None
        opened = []
        try:
            for name, full_name in names.items():
                shard: Any = shards[name]
                weight: Any = self.whole(full_name, shard, narrow)
                opened.append(weight.untyped_storage().data_ptr())
                self._open[opened[-1]] = shard.detach(), full_name
                module._parameters[name] = weight
            del weight
            with saved_tensors_hooks(self._pack, self._unpack):
                return type(module).forward(module, *args, **kwargs)
        finally:
            module._parameters.update(shards)
            for address in opened:
                self._open.pop(address, None)

    def _pack(self, tensor: Tensor) -> Tensor | Way:
        found = self._open.get(tensor.untyped_storage().data_ptr())
        if found is None:
            return tensor
        return Way(*found, tensor.dtype, (tensor.size(), tensor.stride(), tensor.storage_offset()))

    def _unpack(self, saved: Tensor | Way) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        whole = self.collect(saved.shard, saved.name, saved.dtype)
        return whole.as_strided(*saved.view)

    def collect(self, shard: Tensor, name: str, dtype: torch.dtype) -> Tensor:
        """The whole of a parameter from all ranks, counted for as long as anybody holds any of it."""
        shape = self.shape_of(name)
        assert shape is not None, f"{name} is not in shards"
        own = shard.detach().to(dtype)
        began = time.perf_counter()
        if self.world == 1:
            flat = own.clone() if own.data_ptr() == shard.data_ptr() else own
        else:
            flat = torch.empty(own.numel() * self.world, dtype=dtype, device=self.device)
            dist.all_gather_into_tensor(flat, own)
        self._spoke("gather", name, began)
        size = flat.numel() * flat.element_size()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(flat.untyped_storage(), self._freed, size)
        return flat[: shape.numel()].view(shape)

    def scatter(self, whole: Tensor, name: str, like: Tensor) -> Tensor:
        """The sum over ranks of this rank's part of `whole`, in the shape and dtype of the shard `like`."""
        flat = whole.to(like.dtype).reshape(-1)
        began = time.perf_counter()
        if self.world > 1:
            padded = like.numel() * self.world - flat.numel()
            flat = torch.nn.functional.pad(flat, (0, padded)) if padded else flat
            own = torch.empty_like(like)
            dist.reduce_scatter_tensor(own, flat.contiguous())
            flat = own
        self._spoke("scatter", name, began)
        return flat

    def _spoke(self, kind: str, name: str, began: float) -> None:
        self._order = zlib.crc32(f"{kind} {name}".encode(), self._order)
        self.seconds += time.perf_counter() - began

    def _freed(self, size: int) -> None:
        self.alive -= size


class _Gather(torch.autograd.Function):
    """A shard to the whole parameter; the gradient of the whole to the shard's, summed over ranks."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor, shards: FastShards, name: str, dtype: torch.dtype) -> Tensor:
        ctx.shards, ctx.name, ctx.like = shards, name, torch.empty_like(shard, device="meta")
        return shards.collect(shard, name, dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Any:
        like = torch.empty_like(ctx.like, device=grad.device)
        return ctx.shards.scatter(grad, ctx.name, like), None, None, None
