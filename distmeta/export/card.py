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
    "accuracy", "f1", "precision", "recall", "exact_match", "token_f1", "rouge_l", "bleu", "perplexity", "loss", "ece",
)  # fmt: skip
POOLING = {
    "first": "return states[:, 0]",
    "last": "return states[torch.arange(len(texts)), keep.sum(1) - 1]",
    "mean": "return (states * keep.unsqueeze(-1)).sum(1) / keep.sum(1, keepdim=True)",
}


def model_card(trained: Trained, described: dict[str, Any]) -> str:
    """README.md, with the front matter of the Hugging Face hub."""
    parts = [f"---\n{front_matter(trained, described)}\n---", f"# {trained.config.run.name}", summary(trained)]
    parts += [training(trained, described), evaluation(described), usage(trained, described), files(trained)]
    return "\n\n".join(part for part in parts if part) + "\n"


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
        named = ", ".join(trained.labels or ["a task in words"])
        return (
            f"{what} for {named}: {base}, meta-trained with distmeta and adapted to this task by {config.algorithm}'s "
            "inner loop."
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


def training(trained: Trained, described: dict[str, Any]) -> str:
    """Data, algorithm, steps and seeds."""
    config = trained.config
    task, inner, outer = config.task, config.inner, config.outer
    tasks = described.get("tasks")
    counted = ", ".join(f"{count} {split}" for split, count in tasks.items()) if tasks else ""
    unit = "classes" if task.family == "classes" else "tasks"
    shrunk = trained.about.get("compression", {})
    rows = {
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
    lines = [f"| {key} | {value} |" for key, value in rows.items() if value]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines])


def evaluation(described: dict[str, Any]) -> str:
    """Each method's metrics with their 95% intervals; empty where this checkpoint was not evaluated."""
    methods = described.get("evaluation")
    if not methods:
        return "## Evaluation\n\nThis checkpoint was not evaluated."
    about = described["evaluated_on"]
    shown = [name for name in METRICS if name in methods["meta_trained"]]
    lines = [f"| method | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    for method, scores in methods.items():
        cells = [f"{s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for s in (scores[name] for name in shown)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    text = (
        f"Mean and 95% interval over {about['episodes']} episodes of tasks kept apart from training "
        f"({about['split']}), after {about['inner_steps']} inner steps"
        + (f", seed {about['seed']}." if "seed" in about else ".")
    )
    return "\n".join(["## Evaluation", "", text, "", *lines])


def usage(trained: Trained, described: dict[str, Any]) -> str:
    """Code without distmeta: features, and class scores where the head is a linear one."""
    config, tokenizer = trained.config, described["tokenizer_class"]
    if config.task.labels == "letters":
        return letters_usage(trained, tokenizer)
    if trained.is_language:
        return language_usage(trained, tokenizer)
    kind = "AutoModelForTextEncoding" if trained.is_encoder_alone else "AutoModel"
    peft = "from peft import PeftModel\n" if trained.is_adapter else ""
    loader = f"{kind}.from_pretrained"
    if trained.is_int8:
        peft, loader = f"from distmeta.models.compression import load_int8\n{peft}", "load_int8"
    if trained.is_adapter:
        base = repr(config.model.pretrained) if trained.base_is_published else 'f"{folder}/base"'
        load = f"model = PeftModel.from_pretrained({loader}({base}), folder).eval()"
    else:
        load = f"model = {loader}(folder).eval()"
    if "head_weight" in trained.values:
        scores = '''

def logits(texts):
    """Scores of the classes, [N, C]."""
    return features(texts) @ head["head_weight"].T + head["head_bias"]'''
    else:
        scores = '''

def logits(texts, support_texts, support_labels):
    """Scores of the classes 0..C-1 of a support set, [N, C], before any inner step."""
    x, y = features(support_texts), torch.tensor(support_labels)
    centres = torch.stack([x[y == c].mean(0) for c in range(int(y.max()) + 1)])
    scale = head["head_log_scale"].exp()
    return 2 * scale * features(texts) @ centres.T - scale * centres.pow(2).sum(-1)'''
    pooled = POOLING[trained.model.pooling]
    if trained.model.unit_length:
        length = "" if trained.model.length == 1 else f"{trained.model.length:g} * "
        pooled = f"x = {pooled.removeprefix('return ')}\n    return {length}torch.nn.functional.normalize(x, dim=-1)"
    return f'''## Use

{"With distmeta for its int8 weights" if trained.is_int8 else "Without distmeta"}, in the directory of this card:

```python
import torch
{peft}from safetensors.torch import load_file
from transformers import {tokenizer if trained.is_int8 else f"{kind}, {tokenizer}"}

folder = "."
tokenizer = {tokenizer}.from_pretrained(folder)
{load}
head = load_file(f"{{folder}}/head.safetensors")


@torch.no_grad()
def features(texts):
    """What the head reads, [N, D]."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length={config.model.max_tokens}, return_tensors="pt")
    states, keep = model(**batch).last_hidden_state, batch["attention_mask"]
    {pooled}
{scores}
```

To adapt it to a new task, give the checkpoint that this was made from to `distmeta adapt`.'''


def language_usage(trained: Trained, tokenizer: str) -> str:
    """Code without distmeta: answers of an adapted model, or of the initial weights, by greedy decoding."""
    from distmeta.tasks.records import Encoder
    from distmeta.tasks.tokenizer import load_tokenizer

    encoder = Encoder(load_tokenizer(trained.tokenizer_file), trained.config.model)
    seq2seq = getattr(trained.model, "seq2seq", False)
    kind = "AutoModelForSeq2SeqLM" if seq2seq else "AutoModelForCausalLM"
    new = "found[0, 1:]" if seq2seq else "found[0, ids.shape[1] :]"
    return f'''## Use

Without distmeta, in the directory of this card:

```python
import torch
from transformers import {kind}, {tokenizer}

folder = "."
tokenizer = {tokenizer}.from_pretrained(folder)
model = {kind}.from_pretrained(folder).eval()


def answer(prompt):
    """A prompt is the instruction, if there is one, a line break, and the input."""
    cut = tokenizer(prompt, truncation=True, max_length={encoder.room})["input_ids"]
    ids = torch.tensor([cut + {encoder.boundary}])
    found = model.generate(
        ids, max_new_tokens={trained.config.model.answer_tokens}, do_sample=False, eos_token_id={list(encoder.ends)},
        pad_token_id={encoder.end},
    )
    return tokenizer.decode({new}, skip_special_tokens=True).strip()
```

To adapt it to a new task, give the checkpoint that this was made from to `distmeta adapt`.'''


def letters_usage(trained: Trained, tokenizer: str) -> str:
    """Code without distmeta: the class of a text, by the letter that is likeliest after it."""
    from distmeta.tasks.prompts import label_tokens, prompt_of
    from distmeta.tasks.tokenizer import load_tokenizer

    config, read = trained.config, trained.config.model.head == "context"
    own = load_tokenizer(trained.tokenizer_file)
    prompt, tokens = prompt_of(config.task.prompt, own), label_tokens(config.task, own)
    given, labels = ("support, text", "[]") if read else ("text", repr(trained.labels or []))
    context = (
        """
    for example, label in support:
        if label not in labels:
            labels.append(label)
        ids += asked(example) + [LETTERS[labels.index(label)]] + AFTER"""
        if read
        else ""
    )
    what = (
        "support: pairs of a text and its label, in any order; several of each label."
        if read
        else "By the letters A, B, ... in the order of the labels."
    )
    return f'''## Use

Without distmeta, in the directory of this card:

```python
import torch
from transformers import AutoModelForCausalLM, {tokenizer}

folder = "."
tokenizer = {tokenizer}.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
LETTERS = {list(tokens.labels)}
START, AFTER = {list(tokens.start)}, {list(tokens.after)}


def asked(text):
    """The tokens of an example, up to its letter."""
    return tokenizer({prompt.before!r} + text + {prompt.between!r}, add_special_tokens=False)["input_ids"]


def classify({given}):
    """Each label's probability. {what}"""
    ids, labels = list(START), {labels}{context}
    with torch.no_grad():
        scores = model(torch.tensor([ids + asked(text)])).logits[0, -1, LETTERS[: len(labels)]]
    return dict(zip(labels, scores.softmax(0).tolist()))
```

`distmeta adapt` and `distmeta predict` do the same with the checkpoint that this was made from.'''


def files(trained: Trained) -> str:
    if trained.is_language:
        return "## Files\n\n- `distmeta.json`: the inner loop, the names of the parameters that adapt."
    lines = ["- `head.safetensors`: " + _head(trained) + "."]
    lines.append("- `distmeta.json`: pooling, labels, the inner loop, the names of the parameters that adapt.")
    if trained.is_int8:
        lines.append("- `model_int8.safetensors`: int8 matrices and float32 scales of their rows, for `load_int8`.")
    if trained.is_adapter and not trained.base_is_published:
        lines.append("- `base/`: the base, which was not a published model, or was trained.")
    dropped = isinstance(getattr(trained.model.backbone, "pooler", None), nn.Identity)
    if dropped and not (trained.is_adapter and trained.base_is_published):
        own = "the pretrained base's" if trained.config.model.pretrained else "as initialised"
        lines.append(f"- The pooler in the weights is {own}; it was not trained, and nothing here uses it.")
    return "\n".join(["## Files", "", *lines])


def _head(trained: Trained) -> str:
    named = []
    if "head_weight" in trained.values:
        named.append("`head_weight` [classes, width] and `head_bias` [classes] of the linear head")
    if "head_log_scale" in trained.values:
        named.append("`head_log_scale`, the logarithm of the scale of a head set from class means")
    if any(name.split(".")[0] == "log_lr" for name in trained.values):
        named.append("`inner_lr`, the learnt inner learning rates")
    return "; ".join(named) or "empty"
