"""All parameters of a model in shards that may change: fast weights of a model too large for one rank.

Each rank keeps an equal flat part of every parameter (padded with zeros). A module gathers its large parameters when it
is run, and drops them after; the backward pass gathers each weight that it needs again, and hands each rank its part
of the gradient, summed over ranks. The small ones (norms, biases) are gathered together, once for each loss:

    forward    shard -> all_gather -> weight      what autograd would save of it is saved as the way to it
    backward   weight's gradient -> reduce_scatter -> shard's gradient

So a loss is a function of shards like any other, and what is elementwise (an inner step, a difference, a sum) is done
on shards as they are. Ranks run the same modules in the same order, each on rows of its own; `told` compares it.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
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

    A parameter of at most `threshold` numbers is small.

    alive: bytes of gathered parameters at this moment; peak: their largest number so far. (`peak` may be set to 0.)
    shapes: of the whole parameters, by name.
    """

    def __init__(self, device: torch.device, threshold: int = 0) -> None:
        self.device, self.threshold = device, threshold
        grouped = dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
        self.shapes: dict[str, torch.Size] = {}
        if device.type == "cpu":
            keep_heap_whole()
        self.small: list[str] = []
        self.alive = self.peak = 0
        self.seconds = 0.0  # in communication, so far; on a GPU without what runs on after a call
        self.autocast: torch.dtype | None = None  # linear layers' weights travel in it
        self._open: dict[int, tuple[Tensor, str]] = {}  # gathered now, by address: (shard, name)
        self._order = 0  # checksum of the collectives so far

    def cut(self, value: Tensor) -> Tensor:
        """This rank's part of a whole parameter, [ceil(numel / world)], in at least float32; nothing else is read."""
        size = -(-value.numel() // self.world)
        dtype = torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype
        shard = torch.zeros(size, dtype=dtype, device=self.device)
        part = value.detach().reshape(-1)[self.rank * size :][:size]
        shard[: part.numel()] = part
        return shard

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

    def without_padding(self, name: str, shard: Tensor) -> Tensor:
        shape = self.shape_of(name)
        if shape is None or not self.has_part_of(name, shard):
            return shard
        return shard[: max(0, shape.numel() - self.rank * len(shard))]

    def take_large(self, module: nn.Module, prefix: str) -> None:
        """Leave of the large parameters in `module` this rank's part; its modules gather them as they are run."""
        for path, part in module.named_modules(prefix=prefix):
            pieces = {
                name: p for name, p in part._parameters.items() if p is not None and p.numel() > max(1, self.threshold)
            }
            for name, p in pieces.items():
                self._take(part, name, f"{path}.{name}", p)
            if pieces:
                part.forward = partial(self._run, part, {name: f"{path}.{name}" for name in pieces})

    def take_small(self, module: nn.Module) -> None:
        """Leave this rank's part of all others as well: `module` is run with what `whole` makes of them from now on."""
        for path, part in module.named_modules():
            for name, p in part._parameters.items():
                full_name = f"{path}.{name}".strip(".")
                if p is not None and full_name not in self.shapes:
                    self._take(part, name, full_name, p)
                    self.small.append(full_name)

    def _take(self, part: nn.Module, name: str, full_name: str, p: Tensor) -> None:
        if p.dim() == 0:
            raise InputError(f"cluster.episode = group: parameter {full_name} is a single number; use episode=rank")
        self.shapes[full_name] = p.shape
        part._parameters[name] = nn.Parameter(self.cut(p), requires_grad=False)

    def whole(
        self, names: Sequence[str], shards: Sequence[Tensor], dtype: torch.dtype | None = None
    ) -> tuple[Tensor, ...]:
        """Whole parameters, gathered at once, differentiable with respect to their shards (all of one dtype)."""
        out: tuple[Tensor, ...] = _Gather.apply(self, tuple(names), dtype or shards[0].dtype, *shards)  # type: ignore[no-untyped-call]
        return out

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        """Sums over ranks. Raises RuntimeError where the ranks did not gather the same parameters in the same order."""
        if self.world == 1:
            return values
        sent = torch.tensor([*values, float(self._order)], dtype=torch.float64, device=self.device)
        every = torch.empty(self.world * len(sent), dtype=sent.dtype, device=self.device)
        dist.all_gather_into_tensor(every, sent)
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
                (weight,) = self.whole([full_name], [shard], narrow)
                opened.append(weight.untyped_storage().data_ptr())
                self._open[opened[-1]] = shard.detach(), full_name
                module._parameters[name] = cast(Any, weight)
            del weight
            with saved_tensors_hooks(self._pack, self._unpack):
                return type(module).forward(module, *args, **kwargs)
        finally:
            module._parameters.update(shards)
            for address in opened:
                self._open.pop(address, None)

    def _pack(self, tensor: Tensor) -> Tensor | Way:
        source = self._open.get(tensor.untyped_storage().data_ptr())
        if source is None:
            return tensor
        return Way(*source, tensor.dtype, (tensor.size(), tensor.stride(), tensor.storage_offset()))

    def _unpack(self, saved: Tensor | Way) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        (whole,) = self.collect([saved.name], [saved.shard], saved.dtype)
        return whole.as_strided(*saved.view)

    def collect(self, names: Sequence[str], shards: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Whole parameters from all ranks, each counted for as long as anybody holds any of it."""
        began = time.perf_counter()
        whole = _joined([shard.detach() for shard in shards]).to(dtype)
        flat = torch.empty(whole.numel() * self.world, dtype=dtype, device=self.device)
        if self.world == 1:
            flat.copy_(whole)
        else:
            dist.all_gather_into_tensor(flat, whole)
        out = []
        for name, part in zip(names, torch.split(flat.view(self.world, -1), [len(s) for s in shards], 1), strict=True):
            shape = self.shape_of(name)
            assert shape is not None, f"{name} is not in shards"
            value = part.reshape(-1) if len(names) == 1 else part.clone().view(-1)
            self._count(value)
            out.append(value[: shape.numel()].view(shape))
        self._spoke("gather", names, began)
        return tuple(out)

    def scatter(self, names: Sequence[str], wholes: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, ...]:
        """The sums over ranks of this rank's parts of whole tensors, float32."""
        began = time.perf_counter()
        rows = []
        for value, size in zip(wholes, sizes, strict=True):
            flat = value.float().reshape(-1)
            missing = size * self.world - flat.numel()
            rows.append((F.pad(flat, (0, missing)) if missing else flat).view(self.world, size))
        parts = rows[0] if len(rows) == 1 else torch.cat(rows, 1)
        if self.world == 1:
            part = parts[0]
        elif dist.get_backend() == "gloo":  # whose own reduce_scatter takes twice as long
            came = torch.empty_like(parts)
            dist.all_to_all_single(came, parts.contiguous())
            part = came.sum(0)
        else:
            part = torch.empty_like(parts[0])
            dist.reduce_scatter_tensor(part, parts.contiguous())
        self._spoke("scatter", names, began)
        return tuple(torch.split(part, list(sizes)))

    def _count(self, value: Tensor) -> None:
        size = value.numel() * value.element_size()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(value.untyped_storage(), self._freed, size)

    def _freed(self, size: int) -> None:
        self.alive -= size

    def _spoke(self, kind: str, names: Sequence[str], began: float) -> None:
        self._order = zlib.crc32(f"{kind} {' '.join(names)}".encode(), self._order)
        self.seconds += time.perf_counter() - began


def keep_heap_whole() -> None:
    """Have glibc return large blocks as they are freed: weights that come and go would leave holes between shards."""
    m_mmap_threshold = -3
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 1 << 20)


def give_heap_back() -> None:
    """Have glibc return what is free between blocks in use, as after a model that was tried and let go."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


class _Gather(torch.autograd.Function):
    """Shards to whole parameters; the gradients of these to the shards', summed over ranks."""

    @staticmethod
    def forward(
        ctx: Any, shards: FastShards, names: tuple[str, ...], dtype: torch.dtype, *parts: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.shards, ctx.names, ctx.sizes = shards, names, [shard.numel() for shard in parts]
        return shards.collect(names, parts, dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, None, *ctx.shards.scatter(ctx.names, grads, ctx.sizes)
