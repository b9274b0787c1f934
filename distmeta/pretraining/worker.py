"""The pretraining loop, from top to bottom: what one rank does from its start to the last step.

    rows of the step -> loss of this rank's share -> gradient, summed over ranks -> AdamW -> record -> checkpoint

A step's rows and masks are functions of (corpus, seed, step), and the loss is a mean over all that the whole batch
predicts, so that the number of ranks changes rounding alone (dropout, if on, draws on each rank anew). Gradients travel
as one vector of a fixed order: torch's DistributedDataParallel lays its buckets anew after the first step, so that
three ranks or more that continue a run would add up in another order than before.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distmeta.config import Config, PretrainConfig
from distmeta.errors import InputError
from distmeta.export.export import tokenizer_class
from distmeta.learner.process import run_rank
from distmeta.learner.ranks import all_sum, share
from distmeta.models.backbone import accepted_inputs
from distmeta.pretraining.batches import Batches, predicted, seed_of, summed_loss
from distmeta.pretraining.corpus import Corpus, open_corpus
from distmeta.pretraining.model import build_language_model, parameters
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.interrupt import EVALUATING, LEAVE
from distmeta.runs.journal import Journal, Log
from distmeta.tasks import tokenizer as tokenizers

Loss = dict[str, float]  # by split, mean over what is predicted, nats


class PretrainingDiverged(ArithmeticError):
    """The loss left the finite numbers; the message names the step."""


def pretrain_worker(settings: dict[str, Any]) -> None:
    """Entry point under Ray Train. `settings` as pretrain.py makes them."""

    def body(config: Config, run_dir: Path, rank: int, world: int, device: torch.device) -> None:
        learn(config, run_dir, Path(settings["corpus"]), rank, world, device)

    run_rank(settings, body, (PretrainingDiverged,))


def learn(config: Config, run_dir: Path, corpus_path: Path, rank: int, world: int, device: torch.device) -> None:
    """Pretrain on one rank of a torch.distributed group, from the newest whole checkpoint of `run_dir` if any."""
    p, seed = config.pretrain, config.run.seed
    corpus = open_corpus(corpus_path)
    causal = corpus.objective == "causal"
    words = tokenizers.special_ids(corpus.tokenizer)
    model = build_language_model(config.model, corpus.objective, words.vocab_size, words.pad, seed).to(device)
    tokenizer = transformers_tokenizer(corpus, config, model)
    batches = Batches(corpus, tokenizer, p.mask_probability, seed)
    optimizer = make_optimizer(model, p)
    rate = rate_over_steps(p, optimizer)
    log = Log(run_dir)
    begin = start(run_dir, model, optimizer, log.say if rank == 0 else lambda line: None)

    def validate() -> Loss:
        return {split: mean_loss(model, batches, split, config, rank, world, device) for split in held(corpus)}

    before = begin.before or validate()
    journal = Journal(run_dir, begin.step, begin.record) if rank == 0 else None
    if rank == 0:  # a group that died between writing a checkpoint and this left one too many
        checkpoints.prune(run_dir, config.run.keep, begin.step)
    tokens_seen = begin.tokens_seen
    for step in range(begin.step + 1, p.steps + 1):
        began = time.perf_counter()
        batch = batches.of_step(step, p.batch_size)
        tokens_seen += int(batch.mask.sum())
        targets = max(1, predicted(batch, causal))
        model.train(config.model.dropout > 0)
        torch.manual_seed(seed_of(seed, 2, step, rank))  # of dropout
        optimizer.zero_grad(set_to_none=False)
        loss = torch.zeros((), device=device)
        for rows in parts(share(p.batch_size, rank, world), p.micro_batch):
            with products(config, device):
                part_loss = summed_loss(model, batch.part(rows, device), causal) / targets
            part_loss.backward()  # type: ignore[no-untyped-call]
            loss += part_loss.detach()
        loss = sum_gradients(model, loss)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), p.clip)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise PretrainingDiverged(f"step {step}: loss {loss:g}, gradient norm {norm:g}; lower pretrain.lr")
        for group in optimizer.param_groups:
            group["lr"] = p.lr * rate(step - 1)
        optimizer.step()
        record: dict[str, Any] = {
            "step": step, "loss": float(loss), "tokens_seen": tokens_seen, "grad_norm": float(norm),
            "lr": optimizer.param_groups[0]["lr"],
        }  # fmt: skip
        if p.every and (step % p.every == 0 or step == p.steps) and corpus.rows["validation"]:
            held_out = mean_loss(model, batches, "validation", config, rank, world, device)
            record["validation"] = {"loss": held_out, "perplexity": perplexity(held_out)}
        record["seconds"] = time.perf_counter() - began
        (leaves,) = all_sum([float(rank == 0 and (run_dir / LEAVE).exists())])
        if journal:
            journal.write(record)
            if step % config.run.checkpoint_every == 0 or step == p.steps or leaves:
                journal.sync()
                save(run_dir, config, corpus, model, optimizer, State(step, tokens_seen, before, record))
        if leaves and step < p.steps:
            return
    if rank == 0:
        (run_dir / LEAVE).unlink(missing_ok=True)  # it came with the last step
        (run_dir / EVALUATING).touch()
    after = validate()
    if rank == 0:
        save_model(run_dir / "model", model, tokenizer)
        report = summary(config, corpus, model, tokens_seen, before, after)
        report["tokenizer_class"] = tokenizer_class(run_dir / "model", tokenizer)
        checkpoints.write_text(run_dir / "pretraining.json", json.dumps(report, indent=1))


def transformers_tokenizer(corpus: Corpus, config: Config, model: Any) -> Any:
    """The corpus' tokenizer with its special tokens named; a new decoder's configuration then knows its end token."""
    causal = corpus.objective == "causal"
    takes_types = "token_type_ids" in accepted_inputs(model) and not causal
    tokenizer = tokenizers.as_transformers(corpus.tokenizer, config.model.max_tokens, takes_types, ends=causal)
    if corpus.objective == "masked" and tokenizer.mask_token is None:
        raise InputError(
            f"model.pretrained = {config.model.pretrained}: its tokenizer has no mask token ([MASK] or <mask>), which "
            "objective masked needs"
        )
    if causal and config.model.pretrained is None:
        for about in (model.config, model.generation_config):
            about.bos_token_id, about.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
            about.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def make_optimizer(model: Any, p: PretrainConfig) -> torch.optim.AdamW:
    """AdamW; biases and the scales of norms do not decay."""
    named = parameters(model).values()
    decays = {"params": [w for w in named if w.dim() > 1], "weight_decay": p.weight_decay}
    stays = {"params": [w for w in named if w.dim() <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([decays, stays], lr=p.lr)


def rate_over_steps(p: PretrainConfig, optimizer: torch.optim.Optimizer) -> Any:
    """The factor of the rate after so many steps: transformers' schedule as a function."""
    from transformers import get_scheduler

    name = "constant_with_warmup" if p.schedule == "constant" else p.schedule
    return get_scheduler(name, optimizer, round(p.warmup * p.steps), p.steps).lr_lambdas[0]


def products(config: Config, device: torch.device) -> Any:
    """Matrix products in model.dtype; weights, gradients and the loss are float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.model.dtype == "bfloat16")


def parts(rows: range, size: int) -> list[range]:
    """Consecutive rows at most `size` at a time; 0: all at once."""
    return [rows[begin : begin + (size or len(rows))] for begin in range(0, len(rows), size or len(rows) or 1)]


def sum_gradients(model: Any, loss: Tensor) -> Tensor:
    """Sums over the ranks of all gradients, in place, and of `loss`, which is returned."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return loss
    grads = [w.grad if w.grad is not None else torch.zeros_like(w) for w in parameters(model).values()]
    flat = torch.cat([loss.reshape(1), *(g.reshape(-1) for g in grads)])
    dist.all_reduce(flat)
    total, *summed = torch.split(flat, [1, *(g.numel() for g in grads)])
    for weight, g in zip(parameters(model).values(), summed, strict=True):
        weight.grad = g.view_as(weight)
    return total[0]


@torch.no_grad()
def mean_loss(
    model: Any, batches: Batches, split: str, config: Config, rank: int, world: int, device: torch.device
) -> float:
    """Over at most pretrain.validation_rows of a split, its batches divided over the ranks; the same on all of them."""
    p, causal = config.pretrain, batches.corpus.objective == "causal"
    model.eval()
    rows = min(p.validation_rows, len(batches.corpus.rows[split]))
    sums = [0.0, 0.0]
    for number in share(-(-rows // p.batch_size), rank, world):
        batch = batches.of_validation(split, number, p.batch_size, p.validation_rows)
        for part in parts(range(len(batch.ids)), p.micro_batch):
            with products(config, device):
                sums[0] += float(summed_loss(model, batch.part(part, device), causal))
        sums[1] += predicted(batch, causal)
    total, count = all_sum(sums)
    return total / max(1.0, count)


def held(corpus: Corpus) -> list[str]:
    """The splits that have rows."""
    return [split for split, rows in corpus.rows.items() if rows]


def perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


# --- what is written ---


@dataclass(frozen=True)
class State:
    """Where a run is, beside its weights and their optimizer's state."""

    step: int = 0
    tokens_seen: int = 0
    before: Loss | None = None  # the losses before the first step
    record: dict[str, Any] | None = None  # of the step


def save(run_dir: Path, config: Config, corpus: Corpus, model: Any, optimizer: torch.optim.AdamW, state: State) -> None:
    """Write the checkpoint of a step: model.safetensors, optimizer.safetensors ("exp_avg/NAME" ...), state.json."""
    from safetensors.torch import save_file

    named = {name: w.detach().cpu().contiguous() for name, w in parameters(model).items()}
    moments = {
        f"{key}/{name}": optimizer.state[w][key].cpu().contiguous()
        for name, w in parameters(model).items()
        for key in ("exp_avg", "exp_avg_sq")
    }

    def fill(draft: Path) -> None:
        save_file(named, draft / "model.safetensors")
        save_file(moments, draft / "optimizer.safetensors")
        checkpoints.write_rest(draft, config, vars(state), corpus.path / "tokenizer.json")

    checkpoints.write_directory(run_dir / "checkpoints" / f"step-{state.step:06d}", fill)
    checkpoints.prune(run_dir, config.run.keep, state.step)


def start(run_dir: Path, model: Any, optimizer: torch.optim.AdamW, say: Any) -> State:
    """Put model and optimizer where the newest whole checkpoint left them, if there is one."""
    path = checkpoints.newest_whole(run_dir, say)
    if path is None:
        return State()
    written = checkpoints.read_state(path / "state.json")
    state = State(**{key: value for key, value in written.items() if key != "format"})
    weights = checkpoints.read_tensors(path, "model")
    moments = checkpoints.read_tensors(path, "optimizer")
    with torch.no_grad():
        for name, w in parameters(model).items():
            w.copy_(weights[name])
            optimizer.state[w] = {
                "step": torch.tensor(float(state.step)),
                **{key: moments[f"{key}/{name}"].to(w.device) for key in ("exp_avg", "exp_avg_sq")},
            }
    say(f"continuing from {path.name}")
    return state


def save_model(path: Path, model: Any, tokenizer: Any) -> None:
    """A Hugging Face directory: the model with its language-model head, and its tokenizer."""
    # Where accelerate is installed, save_pretrained imports DeepSpeed, which then says aloud what it looked for.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    model.eval()

    def fill(draft: Path) -> None:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)

    checkpoints.write_directory(path, fill)


def summary(config: Config, corpus: Corpus, model: Any, tokens_seen: int, before: Loss, after: Loss) -> dict[str, Any]:
    """pretraining.json."""
    report: dict[str, Any] = {
        "objective": corpus.objective, "steps": config.pretrain.steps, "tokens_seen": tokens_seen,
        "parameters": sum(w.numel() for w in parameters(model).values()), "cleaning": corpus.counts,
        "tokens": {split: corpus.size(split) for split in corpus.rows},
        "rows": {split: len(rows) for split, rows in corpus.rows.items()},
    }  # fmt: skip
    for split in held(corpus):
        loss = {"before": before[split], "after": after[split]}
        report[split] = {"loss": loss, "perplexity": {when: perplexity(value) for when, value in loss.items()}}
    return report
