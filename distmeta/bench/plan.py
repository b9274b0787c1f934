"""`distmeta bench inner --plan`: the memory of a rank and the seconds of a meta-step, before the model is loaded.

A model's layers are alike, so that its first few say what all take: the learner's own meta-gradient is run on random
weights of the same shape with FEW and with MORE layers, and what it takes goes on in a straight line to the whole
depth. Bytes are those that are alive at once, counted tensor by tensor; inner.budget_mb is lowered in proportion, so
that as many steps are kept and as many rows run at once as in the whole model. No weight of the model is read.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distmeta.bench import measure
from distmeta.bench.inner import Subject, floor, gradients
from distmeta.config import Config
from distmeta.config.algorithms import load_algorithm
from distmeta.errors import InputError
from distmeta.evaluation.scoring import group_episodes, tasks_at_once, tokens_of
from distmeta.learner.gradients import is_exact
from distmeta.learner.ranks import episodes_of_rank
from distmeta.models import backbone as backbones
from distmeta.models.build import build_for
from distmeta.models.footprint import budget_bytes, token_bytes
from distmeta.models.held import loading_dtype
from distmeta.models.trial import LAYERS, rebuilt, with_layers
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.families import check_feasible
from distmeta.tasks.store import open_store

FEW, MORE = 2, 6  # layers
ROUNDS = 2  # of which the quicker one counts
STATES = {"adamw": 2, "adam": 2, "adamax": 2, "radam": 2, "cpu_adam": 2, "rmsprop": 1, "cpu_lion": 1}  # of a number
COPIES = 4  # of the meta-parameters on a rank: initial values, DeepSpeed's, their snapshot, their gradient
MEASURED = ("base", "meta", "graph", "flops", "seconds", "token")


def plan(config: Config, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Bytes of a rank by what they are of, seconds of a meta-step, whether it fits, as JSON. Raises InputError."""
    if config.cluster.episode == "group" or config.data.follow is not None:
        raise InputError("--plan is of ranks that have whole episodes of data that is there: set cluster.episode=rank")
    store = open_store(build_store(config.data, config.task, config.model, seed=config.run.seed))
    check_feasible(store, config.task)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))  # as a learner's rank has
    hf_config = backbones.model_config(config.model, store.vocab_size, store.pad_id)
    depth, world = depth_of(hf_config), config.cluster.most
    share = episodes_of_rank(config, config.outer.meta_batch_size, 0, world)
    drawn = [sample_episode(store, config.task, config.run.seed, "train", i) for i in share]
    depths = [depth] if depth <= MORE else [FEW, MORE]
    looks = []
    for layers in depths:
        say(f"a meta-gradient with {layers} of {depth} layers")
        built = as_built(config)
        model = build_for(built, store, copy=with_depth(hf_config, layers))
        looks.append(Subject(built, model.to(device), store, drawn, device))
    token = line(depths, [bytes_a_token(look) for look in looks], depth)
    points = measured(looks, token, budget_bytes(config.inner, device))
    whole = {name: line(depths, values, depth) for name, values in points.items()}
    return told(config, whole, hf_config, depth, len(drawn), device)


def measured(looks: Sequence[Subject], token: float, budget: float) -> dict[str, list[float]]:
    """What each of the shallow models takes, for the largest group of episodes that run as one; FLOPs and seconds are
    of one episode. token: bytes a token in the whole model, whose steps have `budget` bytes."""
    out: dict[str, list[float]] = {name: [] for name in MEASURED}
    for look in looks:
        of_look = bytes_a_token(look)
        look = look.with_inner(budget_mb=budget * of_look / token / 2**20)
        config, model, algorithm = look.config, look.model, load_algorithm(look.config.algorithm)
        together = tasks_at_once(model, config, look.episodes, look.device, is_exact(config))
        groups = group_episodes(look.episodes, together)
        group = max(groups, key=lambda group: len(group) * max(map(tokens_of, group)))
        look = replace(look, episodes=group)
        run = functools.partial(gradients, look, algorithm)
        values = dict(model.named_parameters()) | dict(model.named_buffers())
        learnt = model.fast.keys() | model.shared.keys()
        out["token"].append(of_look)
        out["meta"].append(sum(values[name].numel() for name in learnt))
        out["base"].append(sum(v.numel() * v.element_size() for name, v in values.items() if name not in learnt))
        out["graph"].append(measure.live_peak(run))
        out["flops"].append(floor(look, algorithm) / len(group))
        out["seconds"].append(min(measure.seconds([measure.timed(run) for _ in range(ROUNDS)])) / len(group))
    return out


def bytes_a_token(look: Subject) -> float:
    """What a step's graph keeps."""
    return token_bytes(look.model, is_exact(look.config), again=look.config.runs_layers_again)


def told(
    config: Config, found: dict[str, float], hf_config: Any, depth: int, episodes: int, device: torch.device
) -> dict[str, Any]:
    """What a person is told. found: of one rank and one episode, of the whole model."""
    stage = int(config.deepspeed["zero_optimization"]["stage"])
    world, numbers = config.cluster.most, found["meta"]
    stored = loading_dtype(config)
    if stage == 3 and config.model.dtype == "float32":
        found["base"] *= stored.itemsize / 4  # widened for each product
    of_files = f"torch.{config.model.dtype}" == str(stored) == str(getattr(hf_config, "dtype", None))
    is_mapped = config.model.pretrained is not None and of_files and config.model.quantise is None
    mapped = is_mapped and device.type == "cpu"
    states = STATES.get(config.outer.optimizer, int(config.outer.momentum > 0)) * 4 * numbers
    parts = {
        "base": found["base"] / (world if stage == 3 else 1),
        "meta_parameters": 4 * numbers * COPIES,
        "optimizer": states / (world if stage else 1),
        "meta_gradient": found["graph"],
    }
    private = sum(parts.values()) - (parts["base"] if mapped else 0)
    room, ranks = memory_available(device), world if device.type == "cpu" else 1
    rate = measure.matrix_rate(dtype=torch.float32)
    return {
        **measure.setting({"run.seed": config.run.seed}),
        "algorithm": config.algorithm, "dtype": config.model.dtype, "layers": depth, "ranks": world,
        "max_tokens": config.model.max_tokens, "episodes_of_a_rank": episodes,
        "bytes": {name: round(value) for name, value in parts.items()},
        "base_is_mapped": mapped, "private_bytes": round(private), "bytes_a_token": round(found["token"]),
        "available_bytes": room, "fits": private * ranks <= room,
        "flops": found["flops"] * episodes, "matrix_gflops_per_s": rate / 1e9,
        "floor_s": found["flops"] * episodes / rate, "seconds": found["seconds"] * episodes,
        "advice": advice(config, parts, private * ranks <= room),
    }  # fmt: skip


def advice(config: Config, parts: dict[str, float], fits: bool) -> str:
    """What to change where it does not fit: what the largest part is of."""
    if fits:
        return ""
    largest = max(parts, key=lambda name: parts[name])
    if largest == "meta_gradient":
        again = "" if config.runs_layers_again else ", or set inner.memory=layers"
        now = config.inner.part_tokens or "by inner.budget_mb"
        return f"lower inner.part_tokens (now {now}) or model.max_tokens{again}"
    if largest == "base":
        return "raise cluster.workers with deepspeed.zero_optimization.stage=3, or take a smaller model.pretrained"
    if config.inner.adapt != "lora":
        return "set inner.adapt=lora and outer.base=freeze, so that fewer numbers are learnt"
    return "lower model.lora_rank, or raise deepspeed.zero_optimization.stage"


def line(depths: Sequence[int], values: Sequence[float], depth: int) -> float:
    """The value at `depth` of the straight line through one or two points."""
    if len(depths) == 1:
        return float(values[0])
    return values[0] + (depth - depths[0]) * (values[1] - values[0]) / (depths[1] - depths[0])


def as_built(config: Config) -> Config:
    """The configuration for a model of random weights that has the roles of the pretrained one."""
    base = config.outer.base
    if base == "auto":
        base = "freeze" if config.model.pretrained is not None else "train"
    return config.model_copy(update={
        "model": config.model.model_copy(update={"pretrained": None}),
        "outer": config.outer.model_copy(update={"base": base}),
    })  # fmt: skip


def depth_of(hf_config: Any) -> int:
    """Layers of a model, of the deeper stack where there are two."""
    tree = hf_config.to_dict()
    return max(value for key, value in tree.items() if LAYERS.fullmatch(str(key)) and isinstance(value, int))


def with_depth(hf_config: Any, layers: int) -> Any:
    """The configuration with so many layers, each as it is. Raises InputError."""
    made = rebuilt(copy.deepcopy(hf_config), lambda tree, names: with_layers(tree, layers, narrow=False))
    if made is None:
        raise InputError(f"--plan: {hf_config.model_type} takes no other number of layers")
    return made


def memory_available(device: torch.device) -> int:
    """Bytes that the machine, or the GPU, has left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(row.split()[1]) for row in lines if row.startswith("MemAvailable:"))


def sentences(result: dict[str, Any]) -> list[str]:
    """The plan in words."""
    gb = {name: value / 2**30 for name, value in result["bytes"].items()}
    base = f"base {gb['base']:.2f} GB ({'mapped from its file' if result['base_is_mapped'] else 'held'})"
    first = (
        f"a rank takes {result['private_bytes'] / 2**30:.2f} GB of its own: meta-gradient {gb['meta_gradient']:.2f}, "
        f"meta-parameters {gb['meta_parameters']:.2f}, optimizer {gb['optimizer']:.2f}; {base}; Python and its "
        "libraries come on top"
    )
    second = (
        f"a meta-step takes {result['seconds']:.1f} s for the {result['episodes_of_a_rank']} episodes of a rank "
        f"({result['algorithm']}, {result['dtype']}, texts of up to {result['max_tokens']} tokens); no less than "
        f"{result['floor_s']:.1f} s at {result['matrix_gflops_per_s']:.0f} GFLOP/s"
    )
    have = f"{result['available_bytes'] / 2**30:.1f} GB are free for {result['ranks']} ranks on this machine"
    return [first, second, f"it fits: {have}" if result["fits"] else f"it does not fit: {have}; {result['advice']}"]
