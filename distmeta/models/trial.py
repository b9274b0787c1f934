"""Whether distmeta can run a model: found out in the driver on a small copy of it, before anything is started.

The copy has two layers, few words and random weights. It is built and compared as the ranks build and compare the
model itself (distmeta.models.calls). What has passed is remembered on disk, by configuration and versions.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distmeta.config import Config, ModelConfig
from distmeta.errors import InputError, nearest
from distmeta.tasks.prompts import label_tokens_of

WORDS, PAD = 512, 1
WIDTH, EXPERTS = 256, 16  # of the copy's feed-forward layers, at most
MOST = 200_000_000  # parameters of a copy that is still tried here; beyond, the ranks say it
LAYERS = re.compile(r"(n_layers?|num_(hidden_|encoder_|decoder_)?layers|(encoder|decoder)_layers)")
WIDE = re.compile(r"\w*intermediate_size|(\w+_)?ffn_(hidden_size|dim)|d_ff|n_inner")
MANY = re.compile(r"(n|num)_(local_|routed_)?experts")
SENSES = re.compile("vision|image|audio|video|speech")
Tree = dict[str, Any]
FREE = (
    "vocab_size",
    "tokenizer",
    "dtype",
    "quantise",
    "dropout",
    "distance",
    "lora_rank",
    "lora_alpha",
    "activation_checkpointing",
)


def check_model(config: Config, cache: Path, classes: int | None = None) -> None:
    """Raises InputError, with the family's name and why, for a model that distmeta cannot run. cache: a directory.

    classes: of the data, where the configuration does not say how many an episode has.
    """
    task = {"family": config.task.family, "classes": config.ways or 2, "algorithm": config.algorithm}
    if config.model.head == "context":
        task["shots"] = config.task.shots
    if config.task.labels != "head":
        from distmeta.models.labels import check_room

        check_room(config, label_tokens_of(config), config.ways or classes or 2, limit_of(config))
        task["labels"] = config.task.labels
    elif config.task.family == "text_to_text" and config.model.head == "context":
        need, limit = (config.most_shots + 1) * config.model.max_tokens, limit_of(config)
        if limit is not None and need > limit:
            raise InputError(
                f"model.head = context: a support set and a text after it may take {need} positions, the model has "
                f"{limit}; lower task.shots or model.max_tokens"
            )
    if config.runs_layers_again:
        task["recomputed"] = True
    attempt = try_arrays if config.model.is_array else try_model
    if config.model.module is not None:
        attempt(config)  # whose code may be another one the next time
        return
    once(cache, config.model, {**task, "adapt": config.inner.adapt}, lambda: attempt(config))
    if config.model.pretrained is not None:
        check_weights(config.model.pretrained)


def limit_of(config: Config) -> int | None:
    """Positions that the model has."""
    from distmeta.models.backbone import model_config, position_limit

    return position_limit(model_config(config.model, WORDS, PAD))


def check_weights(pretrained: str) -> None:
    """Raises InputError where the files of a directory's weights are not there or not whole; their headers are read."""
    from safetensors import SafetensorError, safe_open

    folder = Path(pretrained).expanduser()
    if not folder.is_dir():
        return  # of the hub
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file() and not (folder / "model.safetensors").is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    for name in sorted(names):
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except FileNotFoundError:
            raise InputError(
                f"model.pretrained = {pretrained}: no {name} in it; give a directory with all weights as safetensors"
            ) from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"model.pretrained = {pretrained}: {name} is damaged ({error}); copy it again") from None


def once(cache: Path, model: ModelConfig, more: dict[str, Any], attempt: Callable[[], None]) -> None:
    """Calls `attempt` unless it has passed before, for the same model and versions. A cache may be unwritable."""
    content: dict[str, Any] = {"model": model.model_dump(mode="json", exclude=set(FREE)), **more}
    content["versions"] = {name: version(name) for name in ("distmeta", "torch", "transformers")}
    if model.pretrained is not None:
        file = Path(model.pretrained).expanduser() / "config.json"
        content["file"] = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
    from distmeta.models.fast_shards import give_heap_back

    name = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
    passed = cache / "models" / name
    if passed.is_file():
        return
    attempt()
    give_heap_back()
    with contextlib.suppress(OSError):
        passed.parent.mkdir(parents=True, exist_ok=True)
        work = passed.with_name(f"{name}.{os.getpid()}")
        work.write_text("", encoding="utf-8")
        os.replace(work, passed)


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def try_model(config: Config) -> None:
    """As `check_model`, without the cache."""
    from distmeta.models import backbone as backbones

    hf_config = backbones.model_config(config.model, WORDS, PAD)
    refuse_by_name(config.model, hf_config)
    check_names(config, hf_config)

    def build(hf_config: Any) -> None:
        from distmeta.models.build import build_model

        plain = {"pretrained": None, "dtype": "float32", "lora_targets": "auto", "quantise": None}
        model = config.model.model_copy(update=plain)
        inner = config.inner.model_copy(update={"adapt": "all"})
        build_model(
            config.model_copy(update={"model": model, "inner": inner}), WORDS, PAD, config.ways or 2, copy=hf_config
        )

    try_copy(hf_config, config.model, build)


def try_arrays(config: Config) -> None:
    """As `try_model`, of a model of images or vectors, whose size is a part of what is tried."""
    from distmeta.models import backbone as backbones
    from distmeta.models.build import build_model

    if config.model.module is not None:
        build_model(config, 0, 0, config.ways or 2)
        return
    hf_config = backbones.model_config(config.model, 0, 0)
    plain = config.model.model_copy(update={"pretrained": None})
    build_model(config.model_copy(update={"model": plain}), 0, 0, config.ways or 2, copy=hf_config)


def try_copy(hf_config: Any, model: ModelConfig, build: Callable[[Any], None]) -> None:
    """build(a small copy of hf_config). Raises InputError.

    What fails may do so for being small: more layers, and the whole where it is not too large, are then tried.
    """
    from distmeta.models.calls import NoCall, reason

    failure: InputError | None = None
    for made in (small_copy(hf_config, 2), small_copy(hf_config, 8), rebuilt(hf_config, with_words)):
        if made is None or size(made) > MOST:
            continue
        try:
            build(made)
            return
        except InputError as error:
            failure = error
        except Exception as error:  # whatever a family's own code makes of being called
            failure = InputError(
                f"model: {hf_config.model_type} cannot be run here ({reason(error)}); choose another family, such as "
                "bert, llama, qwen2 or t5"
            )
    whole = made is not None and size(made) <= MOST
    if failure is not None and (whole or not isinstance(failure, NoCall)):  # else the ranks try the model itself
        line = re.sub(r"^model(\.architecture = [^:]*)?: ", lambda _: f"{named(model)}: ", str(failure))
        raise InputError(line) from None


def named(model: ModelConfig) -> str:
    return (
        f"model.pretrained = {model.pretrained}" if model.pretrained else f"model.architecture = {model.architecture}"
    )


def refuse_by_name(model: ModelConfig, hf_config: Any) -> None:
    """Raises InputError for quantised weights, and for models of more than text."""
    kind = hf_config.model_type
    quantised = getattr(hf_config, "quantization_config", None)
    if quantised is not None:
        way = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
        raise InputError(
            f"{named(model)}: its weights are quantised ({getattr(way, 'value', way)}), which cannot be meta-trained; "
            "give the model that it was made from, in float32 or bfloat16"
        )
    senses = sorted(name for name in getattr(hf_config, "sub_configs", {}) if SENSES.search(name))
    if senses:
        raise InputError(
            f"{named(model)}: {kind} reads more than text ({', '.join(senses)}); distmeta trains models of text, such "
            "as bert, llama, qwen2 or t5"
        )


def check_names(config: Config, hf_config: Any) -> None:
    """Raises InputError where inner.adapt or model.lora_targets name nothing in the whole model; no weight is made."""
    adapt = config.inner.adapt
    if adapt in ("all", "head") or (skeleton := skeleton_of(config, hf_config)) is None:
        return
    if adapt == "lora":
        from distmeta.models.layers import add_lora, give_task_axis

        give_task_axis(skeleton)
        add_lora(skeleton, 1, 1.0, config.model.lora_targets, 0)
        return
    from distmeta.models.layers import LAST_QUARTER, chosen

    words = config.task.is_language or config.task.labels != "head"
    heads = ["output_weight"] if words else ["head_weight", "head_bias"]
    heads += ["head_labels", "head_ask"] if config.model.head == "context" and not words else []
    names = [f"backbone.{name}" for name, _ in skeleton.named_parameters()] + heads
    if not chosen(adapt, names):
        some = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})
        raise InputError(
            f"inner.adapt = {adapt}: not all, lora or head, and as a regular expression it matches no parameter."
            f"{nearest(adapt, ['all', 'lora', 'head', LAST_QUARTER, *parts_of(names)])} Names are such as {some[:6]}"
        )


def parts_of(names: list[str]) -> list[str]:
    return sorted({part for name in names for part in name.split(".") if not part.isdecimal()})


def skeleton_of(config: Config, hf_config: Any) -> Any:
    """The backbone with names and shapes and no values; None where the family makes some of them as it is built."""
    import torch
    from transformers import AutoModel, AutoModelForSeq2SeqLM

    words = config.task.is_language
    both = bool(getattr(hf_config, "is_encoder_decoder", False))
    try:
        with torch.device("meta"):
            model = (AutoModelForSeq2SeqLM if words and both else AutoModel).from_config(
                copy.deepcopy(hf_config), trust_remote_code=False
            )
            return model.get_encoder() if both and not words else model
    except Exception:  # whatever a family's own code makes of having no values; the copy says what is wrong
        return None


def size(hf_config: Any) -> int:
    """Parameters, without a value made; 0 where that cannot be told."""
    import torch
    from transformers import AutoModel

    try:
        with torch.device("meta"):
            model = AutoModel.from_config(copy.deepcopy(hf_config), trust_remote_code=False)
    except Exception:  # as in `skeleton_of`
        return 0
    return sum(p.numel() for p in model.parameters())


def small_copy(hf_config: Any, layers: int) -> Any:
    """The configuration with few words, `layers` layers and narrow feed-forward layers; None where it takes no such."""
    return rebuilt(hf_config, lambda tree, names: with_layers(with_words(tree, names), layers))


def rebuilt(hf_config: Any, change: Callable[[Tree, Tree], Tree]) -> Any:
    tree = copy.deepcopy(hf_config.to_dict())
    for name in ("auto_map", "transformers_version", "dtype", "id2label", "label2id"):
        tree.pop(name, None)
    tree = change(tree, hf_config.attribute_map)
    try:
        return type(hf_config).from_dict(tree)
    except Exception:  # each family validates in its own way
        return None


def with_words(tree: Tree, names: Tree) -> Tree:
    """With a vocabulary of WORDS; special tokens that are then no words any more become the first ones."""
    changed = {key: with_words(value, {}) if isinstance(value, dict) else value for key, value in tree.items()}
    for words in (names.get("vocab_size", "vocab_size"), "unpadded_vocab_size"):
        if isinstance(changed.get(words), int):
            changed[words] = WORDS
    for key, value in changed.items():
        if str(key).endswith("token_id") and isinstance(value, int) and value >= WORDS:
            changed[key] = PAD if key == "pad_token_id" else PAD + 1
        elif str(key).endswith("token_id") and isinstance(value, list):
            changed[key] = PAD + 1
    return changed


def with_layers(tree: Tree, layers: int, narrow: bool = True) -> Tree:
    """With so many layers: the first ones, or the first of two kinds. narrow: each with a small feed-forward layer."""
    changed = {
        key: with_layers(value, layers, narrow) if isinstance(value, dict) else value for key, value in tree.items()
    }
    depths: dict[str, int] = {
        key: value for key, value in changed.items() if LAYERS.fullmatch(str(key)) and isinstance(value, int)
    }
    kinds = changed.get("layer_types")
    second = next((i for i, kind in enumerate(kinds) if kind != kinds[0]), 1) if isinstance(kinds, list) else 1
    for key, value in changed.items():
        if key in depths:
            changed[key] = min(layers, depths[key])
        elif narrow and WIDE.fullmatch(str(key)) and isinstance(value, int):
            changed[key] = min(WIDTH, value)
        elif narrow and MANY.fullmatch(str(key)) and isinstance(value, int):
            changed[key] = min(EXPERTS, value)
        elif isinstance(value, list) and len(value) > layers and len(value) in depths.values():  # one entry a layer
            changed[key] = [value[0], value[second]] if layers == 2 else value[:layers]
    return changed
