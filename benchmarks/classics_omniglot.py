"""Omniglot, a small part of it: N-way 1-shot on characters of unseen alphabets (Vinyals et al. 2016; Finn et al. 2017).

Meta-train: the 136 characters of Korean, Latin, Balinese, Greek and Early Aramaic, each in four rotations, a rotation
being a class of its own: 544 classes. Meta-test: the 106 characters of Japanese (katakana), Sanskrit and Tagalog,
upright only. 20 drawings of each, 28 x 28. (The published figures are of 1,200 characters in training.)

The network is MAML's for Omniglot: four blocks of a 3 x 3 convolution with stride 2, batch norm and ReLU, the mean over
places, a linear layer. Batch norm takes the statistics of the batch at hand, in training and at test, so that the query
images of an episode are classified together (transductively), as in the paper.

Letters: T tasks, W ways, n images of a task.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from classics_shared import Named, Trained, figure, generator, mean_over_tasks, parameters, shown, stack, train
from torch import Tensor, nn
from torch.func import functional_call

from distmeta.inner import InnerLoop, adapt, meta_gradient

Batch = tuple[Tensor, Tensor]  # images [T, n, 1, 28, 28], labels [T, n]


def network(ways: int, filters: int) -> nn.Module:
    blocks = []
    for inputs in (1, filters, filters, filters):
        conv = nn.Conv2d(inputs, filters, 3, stride=2, padding=1, bias=False)
        blocks += [conv, nn.BatchNorm2d(filters, track_running_stats=False), nn.ReLU()]
    return nn.Sequential(*blocks, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(filters, ways))


def loss(module: nn.Module, params: Named, batch: Batch) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy, accuracy) of one task."""
    scores = functional_call(module, params, (batch[0],))
    return F.cross_entropy(scores, batch[1]), (scores.argmax(-1) == batch[1]).float().mean()


def read(folder: Path) -> dict[str, tuple[Tensor, list[str]]]:
    """By split: drawings [classes, 20, 28, 28] in 0 and 1, and the names alphabet/character of the classes."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "omniglot_small" / "data.parquet", columns=["bits", "label", "split"]).to_pydict()
    bits = np.stack([np.frombuffer(b, np.uint8) for b in table["bits"]])
    images = torch.from_numpy(np.unpackbits(bits, axis=1)[:, :784].reshape(-1, 28, 28).astype(np.float32))
    labels, splits = np.array(table["label"]), np.array(table["split"])
    out = {}
    for split in ("train", "test"):
        names = sorted(set(labels[splits == split]))
        out[split] = (torch.stack([images[torch.from_numpy(labels == name)][:20] for name in names]), names)
    return out


def with_rotations(drawings: Tensor) -> Tensor:
    """[4 classes, 20, 28, 28]: each class in four rotations, which count as four classes."""
    return torch.cat([drawings.rot90(quarter, (-2, -1)) for quarter in range(4)])


def episodes(drawings: Tensor, tasks: int, ways: int, queries: int, *key: object) -> tuple[Batch, Batch]:
    """(support, query) of 1-shot episodes that depend on the key alone; all drawings of an episode are different."""
    g = generator("omniglot", ways, queries, *key)
    sets = []
    for _ in range(tasks):
        classes = torch.randperm(len(drawings), generator=g)[:ways]
        picks = torch.rand(ways, drawings.shape[1], generator=g).argsort(1)[:, : 1 + queries]
        sets.append(drawings[classes.unsqueeze(1), picks])
    images = torch.stack(sets).unsqueeze(3)  # [T, W, 1 + queries, 1, 28, 28]
    labels = torch.arange(ways).view(1, ways, 1).expand(tasks, ways, 1 + queries)
    support, query = ((images[:, :, s].flatten(1, 2), labels[:, :, s].flatten(1)) for s in (slice(1), slice(1, None)))
    return support, query


def meta_train(drawings: Tensor, order: Any, seed: int, options: Any, file: Path) -> Trained:
    module, start = parameters(functools.partial(network, options.ways, options.filters), seed)
    loop = InnerLoop(steps=options.inner_steps, lr=options.inner_lr, memory="unroll")
    one = functools.partial(loss, module)

    def gradient(params: Named, step: int) -> tuple[Named, float]:
        support, query = episodes(drawings, options.meta_batch, options.ways, options.queries, "train", seed, step)
        result = meta_gradient(one, stack(params, options.meta_batch), support, query, loop, order, task_axis=True,
                              has_aux=True, last_inner_loss=False)  # fmt: skip
        return mean_over_tasks(result.grads), float(result.loss.mean())

    return train(start, gradient, options.steps, 1e-3, file, every=50)


def accuracies(drawings: Tensor, params: Named, options: Any, at_once: int = 20) -> Tensor:
    """After 0..eval_steps steps on meta-test episodes of 15 queries of each class, [E, eval_steps + 1]."""
    module, _ = parameters(functools.partial(network, options.ways, options.filters), 0)
    one, loop = functools.partial(loss, module), InnerLoop(steps=options.eval_steps, lr=options.inner_lr)
    rows = []
    for first in range(0, options.episodes, at_once):
        tasks = min(at_once, options.episodes - first)
        support, query = episodes(drawings, tasks, options.ways, 15, "test", first)
        result = adapt(one, stack(params, tasks), support, loop, task_axis=True, has_aux=True, trajectory=True,
                      last_inner_loss=False)  # fmt: skip
        assert result.trajectory is not None
        with torch.no_grad():
            rows.append(torch.stack([torch.vmap(one)(fast, query)[1] for fast in result.trajectory], 1))
    return torch.cat(rows)


def run(options: Any) -> dict[str, Any]:
    sets = read(options.data)
    training, test = with_rotations(sets["train"][0]), sets["test"][0]
    methods = {}
    curves = {}
    for order in ("exact", "first_order"):
        by_seed, seconds, steps = [], [], []
        for seed in options.seeds:
            file = options.run_dir / f"omniglot-{options.ways}-{order}-{seed}.safetensors"
            trained = meta_train(training, order, seed, options, file)
            by_seed.append(accuracies(test, trained.params, options))
            seconds.append(trained.seconds)
            steps.append(len(trained.losses))
        curves[order] = by_seed
        methods[order] = {
            **{f"accuracy_after_{k}": figure([c[:, k] for c in by_seed]) for k in range(options.eval_steps + 1)},
            "seconds": seconds, "meta_steps": steps,
        }  # fmt: skip
    gain = figure([a[:, -1] - b[:, -1] for a, b in zip(curves["exact"], curves["first_order"], strict=True)])
    last = methods["exact"][f"accuracy_after_{options.eval_steps}"]
    holds = {"exact at least equal to first order": gain["mean"] >= 0}
    if options.ways == 5:
        holds["exact above 85%"] = last["low"] > 0.85
    return {
        "protocol": {
            "ways": options.ways, "shots": 1, "test_queries": 15, "episodes": options.episodes,
            "training_classes": len(training), "test_classes": len(test),
            "training_alphabets": sorted({name.split("/")[0] for name in sets["train"][1]}),
            "test_alphabets": sorted({name.split("/")[0] for name in sets["test"][1]}),
            "rotations": "four of each training class, as classes of their own; none at test",
            "filters": options.filters, "inner_lr": options.inner_lr, "inner_steps": options.inner_steps,
            "eval_steps": options.eval_steps, "meta_batch": options.meta_batch, "training_queries": options.queries,
            "meta_steps": options.steps, "outer": "Adam 1e-3", "batch_norm": "statistics of the batch at hand",
        },
        "methods": methods,
        "exact_less_first_order": gain,
        "holds": holds,
    }  # fmt: skip


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    last = result["protocol"]["eval_steps"]
    ways = result["protocol"]["ways"]
    return [
        (f"MAML, {name.replace('_', ' ')}, {ways}-way",
         *(shown({k: 100 * m[f"accuracy_after_{n}"][k] for k in ("mean", "low", "high")}, 1) for n in (0, 1, last)),
         f"{sum(m['seconds']) / len(m['seconds']):.0f}")
        for name, m in result["methods"].items()
    ]  # fmt: skip


COLUMNS = ("accuracy after 0", "after 1 step", "after the last", "seconds a seed")
