"""The DeepSpeed engine over the meta-parameters, and nothing else.

The engine never sees a forward or a backward pass: the meta-gradient is computed from snapshots of the
meta-parameters, and handed over whole. That is exact at every order, since no hook of DeepSpeed's meets a graph.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distmeta.algorithms import data_weights
from distmeta.algorithms.rates import PREFIX
from distmeta.config import Config
from distmeta.config.paths import age_s
from distmeta.errors import InputError
from distmeta.versions import gather_one_by_one

SMALL = 1 << 20  # numbers: smaller meta-parameters are joined for DeepSpeed


class Divided:
    """For DeepSpeed: a model whose parameters `names` are divided over all ranks (its `mpu`). All ranks make it."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)
        ranks = range(dist.get_world_size())
        self._all = dist.new_group(ranks)
        self._alone = [dist.new_group([rank]) for rank in ranks][dist.get_rank()]

    def get_model_parallel_rank(self) -> int:
        return dist.get_rank()

    def get_model_parallel_world_size(self) -> int:
        return dist.get_world_size()

    def get_model_parallel_group(self) -> Any:
        return self._all

    def get_data_parallel_rank(self) -> int:
        return 0

    def get_data_parallel_world_size(self) -> int:
        return 1

    def get_data_parallel_group(self) -> Any:
        return self._alone


class MetaEngine:
    """Sharded meta-parameters: snapshot, step, and their whole state for checkpoints.

    ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054): stage 1 shards the optimizer's state, 2 what is left of the
    gradients between hand-over and step, 3 the meta-parameters themselves between two snapshots.

    divided: of a model whose parameters are each rank's own part (distmeta.models.fast_shards): steps are of parts.

    All ranks of the group call every method in the same order.
    """

    averaged_over: int  # the ranks whose gradients a step takes the mean of

    def __init__(
        self, values: Mapping[str, Tensor], config: Config, device: torch.device, divided: Divided | None = None
    ) -> None:
        os.environ.setdefault("DS_ACCELERATOR", device.type)
        import deepspeed
        from deepspeed.utils import groups, logger

        import_muon()
        gather_one_by_one()
        logger.setLevel("ERROR")
        groups.mpu = None  # that of an engine before this one, which DeepSpeed would go by
        self._divided = divided
        self.averaged_over = dist.get_world_size() if divided is None else 1
        if device.type == "cpu":
            # DeepSpeed would compile its shared-memory collective at the first start (40 s and a compiler);
            # gloo carries adapter-sized gradients as well.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.seconds = 0.0  # so far, in the reduction of gradients and the gathering of snapshots
        self.shapes = {name: v.shape for name, v in values.items()}
        self.whole_shapes = dict(self.shapes)  # where they differ, `shapes` are of what this rank has
        zero = dict(config.deepspeed["zero_optimization"])
        if divided is not None:  # what is divided already is not divided again
            zero = {key: value for key, value in zero.items() if key == "offload_optimizer"}
            zero["stage"] = 1 if zero else 0
        self.stage = int(zero["stage"])
        self._joined = join_small(self.shapes, config) if divided is None else [[name] for name in self.shapes]
        module = nn.Module()
        module.values = nn.ParameterList(nn.Parameter(self._flat(names, values)) for names in self._joined)
        self._params: list[nn.Parameter] = list(module.values)
        for names, p in self._each():
            p.model_parallel = divided is not None and names[0] in divided.names  # type: ignore[attr-defined]
        # DeepSpeed sets a whole bucket of 5e8 numbers aside, however few there are to reduce.
        zero.setdefault("reduce_bucket_size", max(1, min(500_000_000, sum(p.numel() for p in self._params))))
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            **config.deepspeed,
            "zero_optimization": zero,
        }
        self._engine, _, _, _ = deepspeed.initialize(
            model=module.to(device),
            optimizer=make_optimizer({names[0]: p for names, p in self._each()}, config),
            config=settings,
            dist_init_required=False,
            mpu=divided,
        )

    def snapshot(self) -> dict[str, Tensor]:
        """Whole copies of the meta-parameters by name, detached."""
        began = time.perf_counter()
        with self._whole():
            out = {name: part for names, p in self._each() for name, part in self._parts(names, p.detach().clone())}
        self.seconds += time.perf_counter() - began
        return out

    def step(self, grads: Mapping[str, Tensor], lr: float) -> float:
        """One outer step with the mean over ranks of `grads`; returns the global gradient norm before clipping."""
        set_lr(self._optimizer, lr)
        began = time.perf_counter()
        if self.stage == 0:
            self._set_grads(grads)
            if self._divided is None:
                self._engine.allreduce_gradients()
            norm = self._grad_norm()
            self.seconds += time.perf_counter() - began
            self._engine.step()
            return norm
        # Stage 3 takes gradients of whole parameters only. DeepSpeed reduces what its own backward pass finds: that of
        # the sum of p g, whose gradient is g.
        with self._whole():
            given = [self._flat(names, grads).to(dtype=p.dtype, device=p.device) for names, p in self._each()]
            self._engine.backward(torch.stack([(p * g).sum() for p, g in zip(self._params, given)]).sum())
        self.seconds += time.perf_counter() - began
        with torch.no_grad():  # DeepSpeed before 0.19 writes into views in it
            self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def _whole(self) -> AbstractContextManager[object]:
        """Within it, no parameter is a shard: stage 3 gathers, any other has them whole all the time."""
        if self.stage < 3:
            return nullcontext()
        import deepspeed

        gathered: AbstractContextManager[object] = deepspeed.zero.GatheredParameters(self._params)
        return gathered

    def _set_grads(self, grads: Mapping[str, Tensor]) -> None:
        for names, p in self._each():
            p.grad = self._flat(names, grads).to(dtype=p.dtype, device=p.device)

    def _grad_norm(self) -> float:
        """Over all parameters, those of other ranks included; what every rank has is counted once."""
        everything = self._divided is None or dist.get_rank() == 0
        counted = [p for p in self._params if everything or p.model_parallel]  # type: ignore[attr-defined]
        square = torch.stack([torch.linalg.vector_norm(p.grad).square() for p in counted]).sum()
        if self._divided is not None:
            dist.all_reduce(square)
        return float(square.sqrt())

    def _each(self) -> Iterator[tuple[list[str], nn.Parameter]]:
        """What DeepSpeed holds, with the names of the meta-parameters that lie in it one after another."""
        return zip(self._joined, self._params, strict=True)

    def _flat(self, names: list[str], values: Mapping[str, Tensor]) -> Tensor:
        """One tensor of one dimension, of its own memory."""
        return torch.cat([values[name].detach().reshape(-1) for name in names])

    def _parts(self, names: list[str], flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Views by name of what `_flat` has joined."""
        sizes = [self.shapes[name].numel() for name in names]
        for name, part in zip(names, torch.split(flat.view(-1), sizes), strict=True):
            yield name, part.view(self.shapes[name])

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer inside; from stage 1 on its parameters are this rank's flat shards."""
        outer: Any = self._engine.optimizer
        inside: torch.optim.Optimizer = outer if self.stage == 0 else outer.optimizer
        return inside

    def parameters(self, names: Collection[str]) -> dict[str, Tensor]:
        """Whole copies of some of the meta-parameters, on the CPU; `names` may be others than those of its peers."""
        return {name: value.to("cpu", copy=True) for name, value in self.snapshot().items() if name in names}

    def optimizer_state(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """ "KEY/NAME" -> whole optimizer state of each meta-parameter, on the CPU. Gathered from all ranks.

        names: of those that this rank keeps, which may be others than those of its peers; None: all.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        keys = _state_keys(self._optimizer)
        self._link_states()
        out = {}
        for joined, p in self._each():
            for key in keys:
                value = self._optimizer.state[p][key] if self.stage == 0 else safe_get_full_optimizer_state(p, key)
                for name, part in self._parts(joined, value.detach()):
                    if names is None or name in names:
                        out[f"{key}/{name}"] = part.to("cpu", copy=True)
        return out

    def load_optimizer_state(self, saved: Mapping[str, Tensor], steps: int) -> None:
        """Take over what `optimizer_state` gave, at this or another world size, after `steps` outer steps."""
        keys = sorted({name.split("/", 1)[0] for name in saved})
        for p in self._shards():  # a fresh optimizer has no state before its first step
            self._optimizer.state[p] = {key: torch.zeros_like(p) for key in keys}
            if type(self._optimizer).__module__.startswith("deepspeed"):
                self._optimizer.state[p]["step"] = steps
            elif not isinstance(self._optimizer, torch.optim.SGD):
                self._optimizer.state[p]["step"] = torch.tensor(float(steps))
        self._link_states()
        for names, p in self._each():
            for key in keys:
                of_key = {name: saved[f"{key}/{name}"] for name in names}
                self._set_state(p, key, self._flat(names, of_key).to(p.device))

    def _link_states(self) -> None:
        """Shards to parameters. DeepSpeed does it once, after its first step on the first group, as if it were all."""
        if self.stage in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _shards(self) -> list[Tensor]:
        """What the torch optimizer steps on."""
        if self.stage == 3:  # its groups are filled for the time of a step only
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _set_state(self, p: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.stage == 0:
            self._optimizer.state[p][key].copy_(value.view(p.shape))
        elif self.stage < 3:
            safe_set_full_optimizer_state(p, value.view(p.shape), key)
        else:  # the last shard is padded, which DeepSpeed's own setter of whole values overlooks
            sharded: Any = p
            size = sharded.ds_tensor.numel()
            flat = torch.zeros(size * dist.get_world_size(), dtype=value.dtype, device=value.device)
            flat[: value.numel()] = value.flatten()
            safe_set_local_optimizer_state(p, flat[size * dist.get_rank() :][:size], key)


def import_muon() -> None:
    """DeepSpeed's Muon, which it imports in its reduction of gradients, whatever the optimizer. No optimizer here uses
    it; to set a compiler up for its functions would take 1.5 s of a CPU."""
    name, before = "TORCHDYNAMO_DISABLE", os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ[name] = "1"
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        os.environ.pop(name)
        os.environ.update({} if before is None else {name: before})


def join_small(shapes: Mapping[str, torch.Size], config: Config) -> list[list[str]]:
    """Names in their order, those of tensors below SMALL together until there are SMALL numbers of them.

    DeepSpeed's hand-over, its step and every gathered state cost Python and a collective for each parameter: with 57
    small ones 3.8 ms a step at stage 1, joined 1.5 ms; and a checkpoint takes as many collectives as there are states.
    What has an outer rate of its own is not joined with what has not.
    """
    joined: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        alike = bool(joined) and own_settings(name, config) == own_settings(joined[-1][0], config)
        if shape.numel() >= SMALL:
            joined.append([name])
            room = 0
        elif alike and shape.numel() <= room:
            joined[-1].append(name)
            room -= shape.numel()
        else:
            joined.append([name])
            room = SMALL - shape.numel()
    return joined


def own_settings(name: str, config: Config) -> dict[str, Any]:
    """What the outer optimizer does otherwise with a meta-parameter: learnt inner rates, and weights of data.

    Adam without means is the sign of a gradient: a weight that had none stays.
    """
    outer = config.outer
    if name == data_weights.NAME and outer.data_weights is not None:
        return {"lr": outer.data_weights.lr, "betas": (0.0, 0.0), "eps": 1e-12, "weight_decay": 0.0}
    return {"lr": outer.rate_lr} if outer.rate_lr is not None and name.split(".")[0] == PREFIX else {}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The outer rate of the next step; learnt inner rates have theirs in the same proportion as at first."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def _state_keys(optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's states that are shaped like the parameter."""
    return sorted(
        {
            key
            for p, state in optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor) and value.shape == p.shape and key != "step"
        }
    )


def make_optimizer(named: Mapping[str, nn.Parameter], config: Config) -> torch.optim.Optimizer:
    """The outer optimizer over parameters by name. Raises InputError."""
    outer = config.outer
    params: list[dict[str, Any]] = [{"params": [], "factor": 1.0}]
    for name, p in named.items():
        own = own_settings(name, config)
        group = next((g for g in params if {k: g[k] for k in g if k not in ("params", "factor")} == own), None)
        if group is None:
            group = {"params": [], "factor": own["lr"] / outer.lr, **own}
            params.append(group)
        group["params"].append(p)
    if outer.optimizer in ("cpu_adam", "cpu_lion"):
        return deepspeed_optimizer(params, config)
    common: dict[str, Any] = {"lr": outer.lr, "weight_decay": outer.weight_decay}
    if outer.optimizer == "sgd":
        return torch.optim.SGD(params, momentum=outer.momentum, **common)
    if outer.optimizer == "rmsprop":
        return torch.optim.RMSprop(params, momentum=outer.momentum, eps=outer.eps, **common)
    kinds: dict[str, Any] = {
        "adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "adamax": torch.optim.Adamax, "radam": torch.optim.RAdam,
    }  # fmt: skip
    made: torch.optim.Optimizer = kinds[outer.optimizer](params, betas=outer.betas, eps=outer.eps, **common)
    return made


def deepspeed_optimizer(params: list[dict[str, Any]], config: Config) -> torch.optim.Optimizer:
    """DeepSpeed's vectorised AdamW or Lion (Chen et al. 2023, arXiv 2302.06675), for state in the host's memory.

    DeepSpeed compiles it at its first use on a machine. Raises InputError where it cannot, or the state is on a GPU.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.lion import DeepSpeedCPULion
    from torch.utils.cpp_extension import _get_build_directory

    outer = config.outer
    name = f"outer.optimizer = {outer.optimizer}"
    offload = config.deepspeed["zero_optimization"].get("offload_optimizer") or {}
    if params[0]["params"][0].device.type != "cpu" and offload.get("device") != "cpu":
        raise InputError(
            f"{name}: it steps in the host's memory, the state is on a GPU; set zero_optimization.stage and "
            "zero_optimization.offload_optimizer={device: cpu} of deepspeed, or outer.optimizer=adamw"
        )
    common: dict[str, Any] = {"lr": outer.lr, "betas": outer.betas, "weight_decay": outer.weight_decay}
    wait_for_build(Path(_get_build_directory(outer.optimizer, False)) / "lock", name)
    try:
        made: torch.optim.Optimizer = (
            DeepSpeedCPULion(params, **common)
            if outer.optimizer == "cpu_lion"
            else DeepSpeedCPUAdam(params, eps=outer.eps, **common)
        )
        return made
    except ValueError:  # earlier releases have no Lion for a machine without a GPU
        import deepspeed

        raise InputError(
            f"{name}: DeepSpeed {deepspeed.__version__} has none for this machine; install a later one, or take adamw"
        ) from None
    except RuntimeError as error:
        reason = str(error.__cause__ or error).partition(":")[0]  # what follows is the compiler's command
        raise InputError(
            f"{name}: DeepSpeed could not compile it ({reason}); install a C++ compiler and ninja, or take adamw"
        ) from None


def wait_for_build(lock: Path, name: str, most_s: float = 600.0) -> None:
    """Wait for the end of a build that another process has begun, as its lock says: torch would wait for a killed one.

    Raises InputError where the lock is older than most_s, and no process of this machine holds it.
    """
    while lock.exists():
        with contextlib.suppress(OSError):
            if age_s(lock) > most_s and not is_open(lock):
                raise InputError(
                    f"{name}: {lock} is left of a build that was killed; remove this file, unless another machine is "
                    "building there just now"
                )
        time.sleep(0.1)


def is_open(path: Path) -> bool:
    """Whether a process of this machine, of those that this one may ask about, has the file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if link.samefile(path):
                return True
    return False
