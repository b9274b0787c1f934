"""Meta-training as a plain single-process script does it: torch, transformers, a peer's inner loop, one padded batch.

    python benchmarks/plain_intents.py --config RUN.yaml --peer higher --threads 2 --out DIR

The other side of benchmarks/time_to_quality.py. It takes the same configuration as distmeta and, from distmeta, what
must be the same: the episodes, the schedule of the outer learning rate, the optimizer. Model, inner loop, meta-step and
meta-validation are its own. Proto-MAML (arXiv 1903.03096) with LoRA and an inner rate for each tensor, at exact order.
Writes DIR/metrics.jsonl, with the keys of distmeta's that it has; stops at `outer.until`, if given, or `outer.steps`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from workloads import LoraLinear, padded

from distmeta.algorithms.schedule import outer_lr
from distmeta.config import Config, load_config
from distmeta.config.consistency import parse_until
from distmeta.learner.engine import make_optimizer
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.rows import Rows
from distmeta.tasks.store import open_store

Named = dict[str, Tensor]
HEAD = ("head_weight", "head_bias")


class Classifier(nn.Module):
    """BERT with LoRA on query and value, mean pooling, and a head that an episode's prototypes set."""

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        from transformers import AutoModel

        self.backbone = AutoModel.from_pretrained(
            config.model.pretrained, dtype=torch.float32, attn_implementation="eager", add_pooling_layer=False
        ).eval()
        self.requires_grad_(False)
        generator = torch.Generator().manual_seed(config.run.seed)
        rank, scale = config.model.lora_rank, config.model.lora_alpha / config.model.lora_rank
        for path, linear in list(self.backbone.named_modules()):
            if re.search(r"(query|value)$", path):
                bound = linear.in_features**-0.5
                a = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
                linear.__class__ = LoraLinear
                linear.lora_A = nn.Parameter(a)
                linear.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))
                linear.scale = scale
        width = self.backbone.config.hidden_size
        self.head_log_scale = nn.Parameter(torch.tensor(-0.5 * math.log(width)))
        self.head_weight = nn.Parameter(torch.zeros(classes, width))
        self.head_bias = nn.Parameter(torch.zeros(classes))

    def forward(self, batch: Named, what: str = "loss") -> Tensor:
        mask = batch.get("attention_mask")
        states = self.backbone(batch["input_ids"], attention_mask=mask).last_hidden_state
        if mask is None:
            x = states.mean(1)
        else:
            keep = mask.unsqueeze(-1).to(states.dtype)
            x = (states * keep).sum(1) / keep.sum(1)
        if what == "features":
            return x
        logits = F.linear(x, self.head_weight, self.head_bias)
        return logits if what == "logits" else F.cross_entropy(logits, batch["labels"])

    def head(self, support: Named, graph: bool) -> Named:
        """logits = -scale |x - centre|^2, but for what all classes share."""
        with torch.set_grad_enabled(graph):
            x = self(support, "features")
            chosen = F.one_hot(support["labels"], self.head_bias.numel()).to(x.dtype)
            centres = (chosen.T @ x) / chosen.sum(0).unsqueeze(1)
            scale = self.head_log_scale.exp()
            return {"head_weight": 2 * scale * centres, "head_bias": -scale * centres.square().sum(1)}


# A peer adapts: (module, support, rates by name, steps, graph) -> a function of (batch, "loss" or "logits").
Adapted = Callable[[Named, str], Tensor]


def hand(module: Classifier, support: Named, rates: Named, steps: int, graph: bool) -> Adapted:
    """torch.autograd.grad over functional_call."""
    fast = {name: p.clone() for name, p in module.named_parameters() if "lora_" in name}
    fast |= module.head(support, graph)
    if not graph:
        fast = {name: p.detach().requires_grad_() for name, p in fast.items()}
    for _ in range(steps):
        loss = functional_call(module, fast, (support,))
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=graph)
        fast = {name: p - rates[name] * g for (name, p), g in zip(fast.items(), grads, strict=True)}
        if not graph:
            fast = {name: p.detach().requires_grad_() for name, p in fast.items()}
    return lambda batch, what: functional_call(module, fast, (batch, what))


def with_higher(module: Classifier, support: Named, rates: Named, steps: int, graph: bool) -> Adapted:
    """higher's innerloop_ctx; learnt rates are its `override`, a parameter group each."""
    import higher

    named = {name: p for name, p in module.named_parameters() if name in rates}
    optimizer = torch.optim.SGD([{"params": [p]} for p in named.values()], lr=1.0)
    options = {"copy_initial_weights": False, "track_higher_grads": graph}
    override = {"lr": [rates[name] for name in named]}
    with higher.innerloop_ctx(module, optimizer, override=override, **options) as (fast, inner):
        head = module.head(support, graph)
        names = [name for name, _ in module.named_parameters()]
        start = [head.get(name, p) for name, p in zip(names, fast.fast_params, strict=True)]
        if not graph:
            start = [p.detach().requires_grad_(name in rates) for name, p in zip(names, start, strict=True)]
        fast.update_params(start)
        for _ in range(steps):
            inner.step(fast(support))
    return lambda batch, what: fast(batch, what)


PEERS = {"hand-written": hand, "higher": with_higher}


def meta_gradient(
    peer: Callable[..., Adapted], module: Classifier, log_rates: Named, support: Rows, query: Rows, steps: int
) -> tuple[float, list[Tensor]]:
    """(query loss, its derivatives with respect to the module's meta-parameters and the logarithms of the rates)."""
    rates = {name: value.exp() for name, value in log_rates.items()}
    loss = peer(module, padded(support), rates, steps, True)(padded(query), "loss")
    return float(loss.detach()), list(torch.autograd.grad(loss, [*learnt(module), *log_rates.values()]))


def learnt(module: Classifier) -> list[Tensor]:
    """LoRA and the scale of the head, whose weight and bias are an episode's own."""
    return [p for name, p in module.named_parameters() if p.requires_grad and name not in HEAD]


def accuracy(peer: Callable[..., Adapted], module: Classifier, log_rates: Named, support: Rows, query: Rows,
             steps: int) -> float:  # fmt: skip
    """Of an episode's query set after adaptation; no graph is kept."""
    rates = {name: value.exp().detach() for name, value in log_rates.items()}
    adapted = peer(module, padded(support), rates, steps, False)
    batch = padded(query)
    with torch.no_grad():
        return float((adapted(batch, "logits").argmax(-1) == batch["labels"]).double().mean())


def train(config: Config, peer: Callable[..., Adapted], out: Path) -> None:
    store = open_store(build_store(config.data, config.task, config.model))
    assert config.ways is not None
    target = parse_until(config.outer.until)[2] if config.outer.until else math.inf
    module = Classifier(config, config.ways)
    adapted = [name for name, _ in module.named_parameters() if "lora_" in name or name in HEAD]
    log_rates = {name: torch.tensor(math.log(config.inner.lr), requires_grad=True) for name in adapted}
    params = [*learnt(module), *log_rates.values()]
    optimizer = make_optimizer({str(i): p for i, p in enumerate(params)}, config)
    batch, steps, seed = config.outer.meta_batch_size, config.inner.steps, config.run.seed
    kernel = module.backbone.set_attn_implementation
    with (out / "metrics.jsonl").open("w", encoding="utf-8") as journal:
        for step in range(1, config.outer.steps + 1):
            began = time.perf_counter()
            kernel("eager")  # fused attention has no second derivative
            total, losses = [torch.zeros_like(p) for p in params], 0.0
            for index in range((step - 1) * batch, step * batch):
                episode = sample_episode(store, config.task, seed, "train", index)
                loss, grads = meta_gradient(peer, module, log_rates, episode.support, episode.query, steps)
                losses += loss
                for a, g in zip(total, grads, strict=True):
                    a += g
            for p, g in zip(params, total, strict=True):
                p.grad = g / batch
            for group in optimizer.param_groups:
                group["lr"] = outer_lr(config, step)
            norm = torch.nn.utils.clip_grad_norm_(params, config.deepspeed["gradient_clipping"])
            optimizer.step()
            record = {"step": step, "outer_loss": losses / batch, "grad_norm": float(norm)}
            record["inner_s"] = time.perf_counter() - began
            if step % config.eval.every == 0:
                kernel("sdpa")
                episodes = (
                    sample_episode(store, config.task, seed, "validation", i)
                    for i in range(config.eval.validation_episodes)
                )
                scores = [accuracy(peer, module, log_rates, e.support, e.query, steps) for e in episodes]
                record["validation"] = {"accuracy": sum(scores) / len(scores)}
            journal.write(json.dumps(record) + "\n")
            journal.flush()
            if record.get("validation", {}).get("accuracy", 0.0) >= target:
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML, as distmeta takes it")
    parser.add_argument("--peer", choices=list(PEERS), default="higher")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    train(load_config(options.config), PEERS[options.peer], options.out)


if __name__ == "__main__":
    main()
