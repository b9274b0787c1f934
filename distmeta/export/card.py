"""The model card of an export: what the model is, how it was made, how well it does, how to use it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from distmeta.algorithms.privacy import sentence
from distmeta.algorithms.schedule import schedule_of
from distmeta.tasks.summary import built_in

if TYPE_CHECKING:
    from distmeta.export.export import Trained

METRICS = (
    "accuracy", "f1", "precision", "recall", "exact_match", "token_f1", "rouge_l", "bleu", "option_accuracy",
    "perplexity", "loss", "ece", "option_ece",
)  # fmt: skip
POOLING = {
    "first": "states[:, 0]",
    "last": "states[torch.arange(len(texts)), keep.sum(1) - 1]",
    "mean": "(states * keep.unsqueeze(-1)).sum(1) / keep.sum(1, keepdim=True)",
}


def model_card(trained: Trained, described: dict[str, Any]) -> str:
    """README.md, with the front matter of the Hugging Face hub; card.md.jinja has its words and its code."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("distmeta.export", ""), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    methods = described.get("evaluation", {})
    says = trained.config.task.labels != "head"
    reads = trained.config.task.family == "document"
    of = of_document if reads else of_labels if says else of_language if trained.is_language else of_classifier
    use = of(trained)
    return environment.get_template("card.md.jinja").render(
        trained=trained, config=trained.config, front_matter=front_matter(trained, described),
        summary=summary(trained), training=training(trained, described), methods=methods,
        metrics=[name for name in METRICS if name in methods.get("meta_trained", ())], on=described.get("evaluated_on"),
        tokenizer=described["tokenizer_class"], **use,
    )  # fmt: skip


def front_matter(trained: Trained, described: dict[str, Any]) -> str:
    """YAML that the hub reads: library, base, tags and the results of the evaluation."""
    from huggingface_hub import EvalResult, ModelCardData

    config = trained.config
    base = config.model.pretrained
    seq2seq = trained.is_language and getattr(trained.model, "seq2seq", False)
    kind = "text2text-generation" if seq2seq else "text-generation" if trained.is_language else "text-classification"
    ours = described.get("evaluation", {}).get("meta_trained", {})
    results = [
        EvalResult(
            task_type=kind, task_name=f"few-shot {kind.replace('-', ' ')}",
            dataset_type=Path(data_name(trained)).stem, dataset_name=data_name(trained), dataset_split="test",
            metric_type=name, metric_name=f"{name} after adaptation", metric_value=round(ours[name]["mean"], 4),
        )
        for name in METRICS
        if name in ours
    ]  # fmt: skip
    return ModelCardData(
        library_name="peft" if trained.is_adapter else "transformers",
        pipeline_tag=kind if trained.is_language else "feature-extraction",
        base_model=base if base is not None and not os.path.isdir(base) else None,
        tags=["meta-learning", "few-shot", kind, "distmeta", config.algorithm],
        model_name=config.run.name,
        eval_results=results or None,
    ).to_yaml()


def data_name(trained: Trained) -> str:
    """The data by the last part of its path: a card says no more of the machine that it was written on."""
    data = trained.config.data
    if data.sources is not None:
        return ", ".join(sorted(data.sources))
    paths = [data.path] if isinstance(data.path, str) else data.path
    return ", ".join(Path(p).name for p in paths) if paths else built_in(trained.config)


def summary(trained: Trained) -> str:
    config = trained.config
    base = Path(config.model.pretrained).name if config.model.pretrained else f"a new {config.model.architecture}"
    what = "A LoRA adapter" if trained.is_adapter else "A language model" if trained.is_language else "A transformer"
    if "adapted" in trained.about:
        named = ", ".join(trained.labels or ["a task in words" if config.task.family != "document" else "a text"])
        return (
            f"{what} for {named}: {base}, meta-trained with distmeta and adapted to this task by {config.algorithm}'s "
            "inner loop."
        )
    if config.task.family == "document":
        return (
            f"{what} meta-trained with distmeta from {base} to learn while it reads: a gradient step on each chunk of "
            f"{config.task.chunk_tokens} tokens. As it is, it is where reading begins."
        )
    if not config.inner.steps:
        return (
            f"{what} meta-trained with distmeta from {base}: it reads a few labelled examples of a new task, and "
            "learns from them without a gradient step."
        )
    return (
        f"{what} meta-trained with distmeta from {base}: initial weights from which {config.inner.steps} gradient "
        "steps on a few labelled examples of a new task are enough. As it is, it is where adaptation begins."
    )


def training(trained: Trained, described: dict[str, Any]) -> dict[str, str]:
    """Data, algorithm, steps and seeds, by what they are called; some are empty."""
    config = trained.config
    task, inner, outer = config.task, config.inner, config.outer
    tasks = described.get("tasks")
    counted = ", ".join(f"{count} {split}" for split, count in tasks.items()) if tasks else ""
    unit = "classes" if task.family == "classes" else "tasks"
    shrunk = trained.about.get("compression", {})
    return {
        "base": f"rounded to {config.model.quantise} in training (model.quantise); on the base as it was published, "
        "answers may differ a little"
        if config.model.quantise
        else "",
        "data": data_name(trained) + (f" ({unit}: {counted})" if counted else ""),
        "episodes": f"{task.shots} support and {task.queries} query examples"
        + (f", family {task.family}" if trained.is_language else f" of each class, family {task.family}")
        + (f", {config.ways} ways" if config.ways else ""),
        "algorithm": config.algorithm,
        "inner loop": f"{inner.steps} steps of {inner.optimizer} at {inner.lr:g}, learn_lr {inner.learn_lr}, "
        f"adapts {inner.adapt}",
        "outer loop": f"{outer.optimizer} at {outer.lr:g} ({schedule_of(config)[0]}), meta-batches of "
        f"{outer.meta_batch_size}",
        "meta-steps": str(trained.about["meta_steps"]),
        "episodes seen": str(trained.about.get("tasks_seen", "")),
        "seed": str(described.get("seed", "")),
        "privacy": sentence(described["privacy"]) if "privacy" in described else "",
        "support loss by inner step": " ".join(f"{x:.3f}" for x in trained.about.get("adapted", [])),
        "compression": " ".join([*shrunk.get("prune", []), shrunk.get("quantise") or ""]).strip(),
        "distmeta": described["distmeta"],
    }


def of_language(trained: Trained) -> dict[str, Any]:
    """What the code needs for answers of an adapted model, or of the initial weights, by greedy decoding."""
    from distmeta.tasks.tokenizer import load_tokenizer
    from distmeta.tasks.written import PromptEncoder, encoder_of

    config = trained.config
    encoder = encoder_of(load_tokenizer(trained.tokenizer_file), config.model, config.task.prompt)
    seq2seq = getattr(trained.model, "seq2seq", False)
    return {
        "kind": "AutoModelForSeq2SeqLM" if seq2seq else "AutoModelForCausalLM", "seq2seq": seq2seq,
        "encoder": encoder, "prompt": encoder.prompt if isinstance(encoder, PromptEncoder) else None,
        "base": repr(trained.config.model.pretrained),
    }  # fmt: skip


def of_document(trained: Trained) -> dict[str, Any]:
    """What the code needs to continue a text."""
    return {"kind": "AutoModelForCausalLM", "seq2seq": False, "base": repr(trained.config.model.pretrained)}


def of_labels(trained: Trained) -> dict[str, Any]:
    """What the code needs for the class of a text, by the letter or the words that are likeliest after it."""
    from distmeta.tasks.prompts import label_tokens, prompt_of
    from distmeta.tasks.tokenizer import load_tokenizer

    task, tokenizer = trained.config.task, load_tokenizer(trained.tokenizer_file)
    prompt = prompt_of(task.prompt, tokenizer)
    return {
        "before": repr(prompt.before), "between": repr(prompt.between), "gap": repr(prompt.gap),
        "tokens": label_tokens(trained.config, tokenizer), "normalise": trained.config.eval.normalise or "none",
        "reads": trained.config.model.head == "context", "kind": "AutoModelForCausalLM",
        "base": repr(trained.config.model.pretrained),
    }  # fmt: skip


def of_classifier(trained: Trained) -> dict[str, Any]:
    """What the code needs for features, and class scores where the head is a linear one."""
    pretrained = trained.config.model.pretrained
    published = trained.is_adapter and trained.base_is_published
    dropped = isinstance(getattr(trained.model.backbone, "pooler", None), nn.Identity) and not published
    return {
        "kind": "AutoModelForTextEncoding" if trained.is_encoder_alone else "AutoModel",
        "base": repr(pretrained) if trained.base_is_published else 'f"{folder}/base"',
        "pooled": POOLING[trained.model.pooling], "head": _head(trained),
        "pooler": dropped and ("the pretrained base's" if pretrained else "as initialised"),
    }  # fmt: skip


def _head(trained: Trained) -> str:
    named = []
    if "head_weight" in trained.values:
        named.append("`head_weight` [classes, width] and `head_bias` [classes] of the linear head")
    if "head_log_scale" in trained.values:
        named.append("`head_log_scale`, the logarithm of the scale of a head set from class means")
    if any(name.split(".")[0] == "log_lr" for name in trained.values):
        named.append("`inner_lr`, the learnt inner learning rates")
    return "; ".join(named) or "empty"
