"""`distmeta export`: directories that transformers and peft load without distmeta.

    config.json  model.safetensors             the whole backbone (model_int8.safetensors: distmeta.models.compression.
                                               load_int8 reads it, transformers does not); or, for a LoRA run,
    adapter_config.json  adapter_model.safetensors  and base/ where the base is not a published model as it is
    tokenizer.json  tokenizer_config.json      for AutoTokenizer
    model.safetensors with its output layer    of a language model; or adapter_* alone, where its LoRA is on the base
                                               as it was published; and no head
    head.safetensors                           the classifier's head, and learnt inner learning rates
    distmeta.json                              pooling, labels, inner loop: what the numbers above are used with
    README.md                                  the model card, with the few lines that use all this

Everything is read from a checkpoint or an adapted model, and written whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distmeta.algorithms.privacy import guarantee
from distmeta.algorithms.rates import PREFIX
from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.evaluation.adapt import AdaptedModel, check_new, load_adapted
from distmeta.evaluation.evaluate import load_model
from distmeta.export.arrays import write_arrays
from distmeta.export.card import model_card
from distmeta.export.compress import check_quantise, compressed, merged
from distmeta.export.language import Adapter, save_adapter, write_language
from distmeta.models.arrays import ArrayModel
from distmeta.models.compression import parse_prune, restore, save_int8
from distmeta.models.layers import TaskConv1D, TaskLinear, is_turned
from distmeta.models.task_model import TaskModel
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.checkpoint import Checkpoint
from distmeta.tasks.tokenizer import as_transformers, load_tokenizer

LORA = ("lora_A", "lora_B")
PRIVATE = ("meta_trained", "no_adaptation")  # methods that know meta-train tasks by the meta-parameters alone


@dataclass(frozen=True)
class Trained:
    """What is exported, of a meta-trained model or of one adapted to a task."""

    config: Config
    model: TaskModel
    values: Mapping[str, Tensor]  # by the model's names: all that differs from how it begins; log rates too
    labels: list[str] | None  # of the head's rows; None where they are an episode's own
    tokenizer_file: Path
    about: dict[str, Any] = field(default_factory=dict)  # meta_steps, tasks_seen, adapted, evaluation, tasks
    context: list[int] | None = None  # tokens of the support set that an adapted model reads before each text

    @property
    def is_language(self) -> bool:
        return self.config.task.is_language or self.config.task.labels != "head"

    @property
    def is_adapter(self) -> bool:
        """Whether it leaves as a PEFT directory: LoRA, of a language model on the published base alone."""
        return self.config.inner.adapt == "lora" and (self.base_is_published or not self.is_language)

    @property
    def is_whole(self) -> bool:
        """Whether the model has all that leaves: other ranks may have parts of it."""
        in_shards = self.model.fast_shards is not None or getattr(self.model, "frozen_shards", None) is not None
        return not in_shards or (self.is_adapter and self.base_is_published)

    @property
    def is_encoder_alone(self) -> bool:
        """Whether the backbone is the encoder of an encoder-decoder."""
        from transformers import AutoConfig

        hf_config: Any = self.model.backbone.config
        return bool(AutoConfig.for_model(hf_config.model_type).is_encoder_decoder)

    @property
    def is_int8(self) -> bool:
        return bool(self.about.get("compression", {}).get("quantise"))

    @property
    def base_is_published(self) -> bool:
        """Whether the base is the pretrained model as it is; else it is written beside the adapter."""
        moved = any(name.startswith(("backbone.", "output_")) and not name.endswith(LORA) for name in self.values)
        return self.config.model.pretrained is not None and not moved


def export(
    source: str | Path, out: str | Path, *, prune: Sequence[str] = (), quantise: str | None = None, merge: bool = False,
    checkpoint: str | int = "best",
) -> Path:  # fmt: skip
    """Write the export of a checkpoint, one of a run's or an adapted model to the new directory `out`.

    checkpoint: of a run, best (by eval.best; the newest where there is none), last, or a meta-step. merge: LoRA pairs
    are added to the weights. prune (`KIND:SHARE`, one after another) and quantise (int8): of what is
    then there, as in distmeta.export.compress. Raises InputError.
    """
    check_new(Path(out))
    return write(read(source, prune=prune, quantise=quantise, merge=merge, checkpoint=checkpoint), Path(out))


def read(
    source: str | Path, *, prune: Sequence[str] = (), quantise: str | None = None, merge: bool = False,
    checkpoint: str | int = "best", model: TaskModel | None = None,
) -> Trained:  # fmt: skip
    """What `source`, a run, a checkpoint or an adapted model, holds, or its smaller form. Raises InputError.

    model: that of `source`, where it has been built already.
    """
    wanted = [parse_prune(text) for text in prune]
    check_quantise(quantise)
    source = Path(source)
    labels: list[str] | None
    context: list[int] | None = None
    if (source / "adapted.json").is_file():
        if checkpoint != "best":
            raise InputError(f"--checkpoint {checkpoint}: {source} is an adapted model; leave --checkpoint out")
        adapted = load_adapted(source)
        trained = of_adapted(adapted)
        if not (merge or wanted or quantise):
            return trained
        base = restore(checkpoints.read_tensors(source, "base"))
        state = {**adapted.state, "labels": []}
        saved = Checkpoint(source, trained.config, state, dict(trained.values), {}, base)
        labels, about, context = trained.labels, trained.about, trained.context
    else:
        saved = checkpoints.load(source, which=checkpoint)
        task = saved.config.task
        fixed = task.family == "domain" and not (task.permute_labels or task.augment.permute_labels)
        about = {"meta_steps": saved.step, "tasks_seen": saved.state.get("tasks_seen", "")}
        if saved.config.outer.privacy is not None:
            about["privacy"] = guarantee(saved.config, saved.state["record"]["privacy_epsilon"])
        labels = saved.state["labels"] if fixed and saved.config.model.head == "linear" else None
    if saved.config.model.quantise is not None and (merge or wanted or quantise):
        raise InputError(
            f"export: the base was rounded in training (model.quantise={saved.config.model.quantise}), so that LoRA "
            "fits that base and leaves as an adapter alone; leave --merge, --prune and --quantise out"
        )
    if saved.config.model.is_array and quantise:
        raise InputError(
            f"export: --quantise {quantise} is for models of texts; leave it out (distmeta compress --quantise writes "
            "a smaller checkpoint)"
        )
    if merge:
        saved = merged(saved)
    if wanted or quantise:
        saved = compressed(saved, wanted, quantise)
    if "compression" not in saved.state and "adapted" not in about:
        about |= _of_run(saved)
    about |= {key: saved.state[key] for key in ("compression", "merged") if key in saved.state}
    model = load_model(saved) if model is None else model
    return Trained(saved.config, model, saved.meta, labels, saved.tokenizer_file, about, context)


def of_adapted(adapted: AdaptedModel) -> Trained:
    """What an adapted model holds. Raises InputError for one that reads a support set of which it has no text."""
    context = adapted.state.get("context")
    if getattr(adapted.model, "reads_support", False) and context is None:
        raise InputError(
            f"export: {adapted.tokenizer_file.parent} was adapted by an older version, which kept no text of its "
            "support set; adapt to that again"
        )
    about = {"meta_steps": adapted.state["meta_step"], "adapted": adapted.inner_losses}
    about |= {key: adapted.state[key] for key in ("compression", "merged") if key in adapted.state}
    values = {name: value.cpu() for name, value in adapted.params.items()}
    return Trained(adapted.config, adapted.model, values, adapted.labels, adapted.tokenizer_file, about, context)


def write(trained: Trained, out: Path) -> Path:
    """Fill `out`, whole or not at all; an earlier export there is replaced. Raises InputError."""
    if trained.config.model.head == "context" and not trained.is_language:
        raise InputError(
            "model.head = context: learning in context by label embeddings has no Hugging Face form; adapt the "
            "checkpoint with `distmeta adapt` instead"
        )
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Where accelerate is installed, save_pretrained imports DeepSpeed, which then says aloud what it looked for.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(trained.model, ArrayModel):
        made = trained.model.cpu(), trained.values, trained.config, head_tensors(trained), described(trained)
        checkpoints.write_directory(out, partial(write_arrays, *made))
        return out
    backbone = trained.model.cpu().backbone
    if trained.is_encoder_alone and not trained.is_language:
        from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING

        if type(backbone.config) not in MODEL_FOR_TEXT_ENCODING_MAPPING:
            raise InputError(
                f"export: {backbone.config.model_type}: transformers has no model for its encoder alone; "  # type: ignore[union-attr]
                "distmeta adapt, predict and serve take the checkpoint"
            )
    if backbone.config.model_type == "lstm":  # type: ignore[union-attr]
        raise InputError(
            "export: lstm: transformers has no LSTM to load it as; distmeta adapt and evaluate take the checkpoint"
        )
    if trained.is_language:
        tokenizer = stock_tokenizer(trained, backbone)
        about = described(trained) | {"tokenizer_class": type(tokenizer).__name__}
        adapter = peft_adapter(trained, str(trained.config.model.pretrained)) if trained.is_adapter else None
        return write_language(trained, tokenizer, about, out, adapter)
    plain = stock_model(trained) if not (trained.is_adapter and trained.base_is_published) else None
    if plain is not None and trained.labels is not None:
        plain.config.id2label = dict(enumerate(trained.labels))  # type: ignore[union-attr]
        plain.config.label2id = {label: i for i, label in enumerate(trained.labels)}  # type: ignore[union-attr]
    tokenizer = stock_tokenizer(trained, backbone)

    def fill(draft: Path) -> None:
        from safetensors.torch import save_file

        if trained.is_adapter:
            where = draft / "base"
            base = trained.config.model.pretrained if plain is None else str((out / "base").resolve())
            save_adapter(peft_adapter(trained, str(base)), draft)
        else:
            where = draft
        if plain is not None:
            where.mkdir(exist_ok=True)
            if trained.is_int8:
                save_int8(plain, where)
            else:
                plain.save_pretrained(where)  # type: ignore[operator]
            if trained.is_adapter:
                tokenizer.save_pretrained(where)
        tokenizer.save_pretrained(draft)
        save_file(head_tensors(trained), draft / "head.safetensors")
        about = described(trained) | {"tokenizer_class": tokenizer_class(draft, tokenizer)}
        (draft / "distmeta.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
        (draft / "README.md").write_text(model_card(trained, about), encoding="utf-8")

    checkpoints.write_directory(out, fill)
    return out


def stock_model(trained: Trained) -> nn.Module:
    """transformers' own model with the trained weights; LoRA pairs are left out.

    It has parts that the task model dropped (BERT's pooler): a pretrained base's own, else their values at the run's
    seed, so that loading it draws nothing at random. Raises InputError for an encoder that has no class of its own.
    """
    from transformers import AutoModel, AutoModelForTextEncoding

    model, backbone = trained.config.model, trained.model.backbone
    hf_config: Any = backbone.config
    kind: Any = AutoModelForTextEncoding if trained.is_encoder_alone else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trained.config.run.seed)
        try:
            if model.pretrained is not None:
                plain = kind.from_pretrained(
                    model.pretrained, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
                )
            else:
                plain = kind.from_config(hf_config, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"export: {hf_config.model_type}: transformers has no model for it: {reason}") from None
    weights = {name: value for name, value in backbone.state_dict().items() if not name.endswith(LORA)}
    weights |= {
        name.removeprefix("backbone."): value
        for name, value in trained.values.items()
        if name.startswith("backbone.") and not name.endswith(LORA)
    }
    target = plain.get_encoder() if trained.is_encoder_alone else plain
    loaded = target.load_state_dict(weights, strict=False)
    absent = [name for name in loaded.missing_keys if "pooler" not in name]
    if absent or loaded.unexpected_keys:
        raise InputError(
            f"export: {hf_config.model_type}: its weights do not fit transformers' model, such as "
            f"{(absent + loaded.unexpected_keys)[0]}"
        )
    stock: nn.Module = plain.eval()
    return stock


def peft_adapter(trained: Trained, base: str) -> Adapter:
    """(adapter_config.json, adapter_model.safetensors) of peft, for a base by its name or directory."""
    model, backbone = trained.config.model, trained.model.backbone
    task = "FEATURE_EXTRACTION"
    prefix = "encoder." if trained.is_encoder_alone and not trained.is_language else ""
    if trained.is_language:
        both = getattr(trained.model, "seq2seq", False)
        task = "SEQ_2_SEQ_LM" if both else "CAUSAL_LM"
        prefix = "" if both else f"{backbone.base_model_prefix}."
    weights, targets = {}, []
    for name, value in trained.values.items():
        if name.startswith("backbone.") and name.endswith(LORA):
            path, matrix = name.removeprefix("backbone.").rsplit(".", 1)
            weights[f"base_model.model.{prefix}{path}.{matrix}.weight"] = value.cpu().contiguous()
            targets.append(prefix + path)
    transposed = {is_turned(backbone.get_submodule(t.removeprefix(prefix))) for t in targets}
    config = {
        "peft_type": "LORA", "task_type": task, "base_model_name_or_path": base, "inference_mode": True,
        "r": model.lora_rank, "lora_alpha": model.lora_alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": short_names(list(dict.fromkeys(targets)), prefix, backbone),
        "fan_in_fan_out": transposed == {True},
    }  # fmt: skip
    return config, weights


def short_names(targets: list[str], prefix: str, backbone: nn.Module) -> list[str]:
    """The targets by the last part of their names, which is what servers of adapters read, where that is as exact."""
    last = sorted({name.rsplit(".", 1)[-1] for name in targets})
    linear = (prefix + name for name, m in backbone.named_modules() if isinstance(m, TaskLinear | TaskConv1D))
    return last if {name for name in linear if name.rsplit(".", 1)[-1] in last} == set(targets) else targets


def head_tensors(trained: Trained) -> dict[str, Tensor]:
    """The head ([C, D] and [C], or the logarithm of a prototype head's scale), and inner rates under inner_lr."""
    out = {}
    for name, value in trained.values.items():
        if name in ("head_weight", "head_bias"):
            value = value.squeeze(0) if value.dim() > {"head_weight": 2, "head_bias": 1}[name] else value
            out[name] = value[: len(trained.labels)] if trained.labels else value
        elif name.startswith("head_"):
            out[name] = value
        elif name.split(".")[0] == PREFIX:
            out["inner_lr" + name.removeprefix(PREFIX).replace(".backbone.", ".")] = value.exp()
    return {name: value.cpu().contiguous() for name, value in out.items()}


def described(trained: Trained) -> dict[str, Any]:
    """distmeta.json."""
    from importlib.metadata import version

    config, model = trained.config, trained.model
    seed = {"seed": config.run.seed} if config.outer.privacy is None else {}  # which makes the noise
    rounded = {"base_rounded_to": config.model.quantise} if config.model.quantise else {}
    return {
        "distmeta": version("distmeta"), "algorithm": config.algorithm, **seed, **rounded,
        "pooling": model.pooling, "head": config.model.head, "distance": config.model.distance,
        "labels": trained.labels,
        "max_tokens": config.model.max_tokens, "inner": config.inner.model_dump(mode="json"),
        "adapts": sorted(name.removeprefix("backbone.") for name in model.fast), **trained.about,
    }  # fmt: skip


def stock_tokenizer(trained: Trained, backbone: nn.Module) -> Any:
    """The checkpoint's tokenizer as transformers'."""
    takes_types = "token_type_ids" in trained.model._inputs and not trained.model.causal
    return as_transformers(load_tokenizer(trained.tokenizer_file), trained.config.model.max_tokens, takes_types)


def tokenizer_class(folder: Path, tokenizer: Any) -> str:
    """The class that reads the tokenizer in `folder` as it is.

    For some architectures (Qwen2) AutoTokenizer takes the family's own splitting of words, whatever is written.
    """
    from transformers import AutoTokenizer

    words = sorted(tokenizer.get_vocab())
    probes = [" ".join(words[:200]), " ".join(words[-200:]), "The quick, brown fox: 12 don't ünïcode 中文."]
    same = (
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False)(probes)["input_ids"]
        == tokenizer(probes)["input_ids"]
    )
    return "AutoTokenizer" if same else "PreTrainedTokenizerFast"


def _of_run(saved: checkpoints.Checkpoint) -> dict[str, Any]:
    """The evaluation and the numbers of tasks that a checkpoint's run wrote, if it lies in its run."""
    from distmeta.tasks.store import open_store

    run = saved.path.parent.parent
    out: dict[str, Any] = {}
    try:
        details = json.loads((run / "evaluation_details.json").read_text(encoding="utf-8"))
        if details["settings"].get("meta_step") == saved.step:  # not of another checkpoint of the run
            out["evaluation"] = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
            out["evaluated_on"] = details["settings"]
            if saved.config.outer.privacy is not None:
                out["evaluation"] = {name: out["evaluation"][name] for name in PRIVATE if name in out["evaluation"]}
                out["evaluated_on"] = {key: value for key, value in details["settings"].items() if key != "seed"}
    except (OSError, ValueError, KeyError):
        pass
    try:
        store = open_store(json.loads((run / "environment.json").read_text(encoding="utf-8"))["store"])
        out["tasks"] = {split: len(groups.ids) for split, groups in store.groups.items()}
    except (OSError, ValueError, KeyError):
        pass
    return out
