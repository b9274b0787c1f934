"""`distmeta compress`: a checkpoint of a smaller model, which adapts, is evaluated and is exported like any other.

Its config.yaml describes the smaller model as one built from its configuration; frozen weights, which no published
model brings any more, lie in base.safetensors. With int8 the matrices are stored so, and are float32 again once loaded:
the inner loop goes on from the rounded values. An inner loop that adapts a pruned weight fills it again; with
inner.adapt=lora the base stays as it was pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from distmeta.config import Config, make_config
from distmeta.errors import InputError
from distmeta.evaluation.adapt import check_new
from distmeta.evaluation.evaluate import load_model
from distmeta.models import compression
from distmeta.models.compression import Prune
from distmeta.models.layers import merge_lora
from distmeta.models.task_model import TaskModel
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.checkpoint import Checkpoint

# Of a published configuration, what is not of the model's form or is given by the task model.
NOT_FORM = ("architectures", "dtype", "torch_dtype", "model_type", "transformers_version", "vocab_size", "pad_token_id",
            "bos_token_id", "eos_token_id", "is_encoder_decoder", "use_cache", "_name_or_path")  # fmt: skip


def compress(
    source: str | Path, out: str | Path, prune: Sequence[str] = (), quantise: str | None = None,
    checkpoint: str | int = "best",
) -> Path:  # fmt: skip
    """Write the compressed form of a checkpoint, or of one of a run's, to the new directory `out`.

    prune: `KIND:SHARE`, one after another; quantise: int8. checkpoint: of a run, best (by eval.best; the newest where
    there is none), last, or a meta-step. Raises InputError.
    """
    check_new(Path(out))
    wanted = [compression.parse_prune(text) for text in prune]
    check_quantise(quantise)
    if not wanted and quantise is None:
        raise InputError("compress: nothing to do; give --prune KIND:SHARE or --quantise int8")
    return write(compressed(checkpoints.load(source, which=checkpoint), wanted, quantise), Path(out))


def check_quantise(kind: str | None) -> None:
    if kind not in (None, "int8"):
        raise InputError(f"--quantise {kind}: only int8 is supported")


def compressed(saved: Checkpoint, prune: Sequence[Prune], quantise: str | None) -> Checkpoint:
    """The checkpoint of the smaller model, its weights as they will be once loaded again. Raises InputError."""
    if saved.config.task.is_language:
        raise InputError(
            f"compress: task.family = {saved.config.task.family} is not supported: export the model, and compress that"
        )
    if saved.config.model.head == "context":
        raise InputError("compress: model.head = context is not supported; it needs model.head=linear or prototype")
    steps = [f"{kind}:{share:g}" for kind, share in prune]
    before = saved.state.get("compression", {"prune": [], "quantise": None})
    state = {**saved.state, "compression": {
        "prune": before["prune"] + steps, "quantise": quantise or before["quantise"]
    }}  # fmt: skip
    out = on_its_own(replace(saved, state=state), load_model(saved))
    for one in prune:
        model = load_model(out)
        tensors, sizes = compression.pruned(model.backbone, {**out.base, **out.meta}, one)
        out = with_sizes(out, sizes)
        meta = {name: tensors[name] for name in out.meta}
        out = replace(out, meta=meta, base={name: tensors[name] for name in out.base})
    if out.state["compression"]["quantise"]:
        meta, base = (compression.restore(quantised(tensors)) for tensors in (out.meta, out.base))
        out = replace(out, meta=meta, base=base)
    return out


def on_its_own(saved: Checkpoint, model: TaskModel) -> Checkpoint:
    """The same checkpoint, its model built from its configuration, with the frozen weights beside."""
    base = {
        f"backbone.{name}": value.detach().float().contiguous()
        for name, value in model.backbone.named_parameters()
        if f"backbone.{name}" not in saved.meta
    }
    config = saved.config
    if config.model.pretrained is None:
        return replace(saved, base=base)
    from transformers import AutoConfig

    published = AutoConfig.from_pretrained(config.model.pretrained, trust_remote_code=False)
    known = set(AutoConfig.for_model(published.model_type).to_dict())
    form = {k: v for k, v in published.to_diff_dict().items() if k in known and k not in NOT_FORM and v is not None}
    changes = {"pretrained": None, "architecture": published.model_type, "config": form}
    outer = {"base": config.outer.base if config.outer.base != "auto" else "freeze"}
    vocabulary = model.backbone.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    state = {**saved.state, "vocab_size": int(vocabulary)}
    return replace(saved, config=changed(config, model=changes, outer=outer), base=base, state=state)


def with_sizes(saved: Checkpoint, sizes: Mapping[str, int]) -> Checkpoint:
    from transformers import AutoConfig

    if not sizes:
        return saved
    fields = saved.config.model.config
    names = AutoConfig.for_model(saved.config.model.architecture).attribute_map
    fixed = {k: v for k, v in fields.items() if names.get(k, k) not in sizes}  # a key may have two names
    if {"num_attention_heads", "num_key_value_heads"} & sizes.keys():
        hf_config: Any = load_model(saved).backbone.config
        fixed["head_dim"] = hf_config.head_dim  # by default it would follow the number of heads
    return replace(saved, config=changed(saved.config, model={"config": {**fixed, **sizes}}))


def changed(config: Config, **sections: Mapping[str, Any]) -> Config:
    dump = config.model_dump(mode="json")
    return make_config({**dump, **{name: {**dump[name], **keys} for name, keys in sections.items()}})


def quantised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return compression.quantise(tensors, compression.matrices(tensors))


def write(saved: Checkpoint, out: Path) -> Path:
    from safetensors.torch import save_file

    stored = quantised if saved.state["compression"]["quantise"] else dict

    def fill(draft: Path) -> None:
        save_file(stored(saved.meta), draft / "meta.safetensors")
        if saved.base:
            save_file(stored(saved.base), draft / "base.safetensors")
        checkpoints.write_rest(draft, saved.config, saved.state, saved.tokenizer_file)

    checkpoints.write_directory(out, fill)
    return out


def merged(saved: Checkpoint) -> Checkpoint:
    """The checkpoint of a LoRA run with its pairs added to the weights, as a model without them. Raises InputError."""
    if saved.config.inner.adapt != "lora":
        raise InputError(f"--merge: the run has no adapter (inner.adapt = {saved.config.inner.adapt})")
    model = load_model(saved)
    values = {f"backbone.{name}": value.detach() for name, value in model.backbone.named_parameters()} | saved.meta
    values = {name: value for name, value in values.items() if not name.startswith("log_lr")}
    meta = {name: value.float().contiguous() for name, value in merge_lora(values, model).items()}
    config = changed(saved.config, inner={"adapt": "all", "learn_lr": "none"})
    return replace(saved, config=config, meta=meta, base={}, state={**saved.state, "merged": True})
