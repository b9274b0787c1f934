"""`distmeta adapt`: one task, or many, each to a directory of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from distmeta.errors import InputError
from distmeta.evaluation.adapt import AdaptedModel, load_adapted, losses_in_words
from distmeta.evaluation.adapt import adapt as adapt_one
from distmeta.evaluation.many import adapt_each, folder_name
from distmeta.evaluation.rejection import predict_or_reject
from distmeta.export.export import of_adapted, write
from distmeta.runs import checkpoint as checkpoints
from distmeta.tasks.texts import read_inputs


def adapt(
    source: str, support: str, out: Path, each: str | None, peft: bool, steps: int | None, checkpoint: str | int,
    as_json: bool,
) -> None:  # fmt: skip
    """Adapt, save, and say so. Raises InputError; ArithmeticError where some of many tasks could not be adapted to."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: not empty; give a new directory for the adapted model")
    if peft:
        check_lora(source, checkpoint)
    if each is None:
        model = adapt_one(source, support, steps=steps, checkpoint=checkpoint)
        report = saved(model, out, peft)
        print(json.dumps(report) if as_json else line(report, model.reads_documents))
        return
    reports, failed = {}, {}
    for name, adapted in adapt_each(source, support, each, steps=steps, checkpoint=checkpoint):
        if isinstance(adapted, str):
            failed[name] = adapted
            print(f"warning: {name}: {adapted}", file=sys.stderr)
            continue
        reports[name] = saved(adapted, out / folder_name(name), peft, f"{name}: ")
        if not as_json:
            print(f"{name}: {line(reports[name])}")
    if as_json:
        print(json.dumps({"out": str(out), "tasks": reports, "failed": failed}))
    if failed:
        raise ArithmeticError(
            f"{len(failed)} of {len(failed) + len(reports)} tasks could not be adapted to: {', '.join(failed)}"
        )


def check_lora(source: str, checkpoint: str | int) -> None:
    """Raises InputError for a run that adapts something else, before anything is loaded."""
    config = checkpoints.read_config(checkpoints.resolve(source, checkpoint) / "config.yaml")
    adapts = config.inner.adapt
    if config.model.is_array:
        raise InputError(f"--peft writes adapters of models of texts, which {source} is not; leave --peft out")
    if adapts != "lora":
        raise InputError(f"--peft writes LoRA adapters, and inner.adapt of {source} is {adapts}; leave --peft out")


def saved(adapted: AdaptedModel, out: Path, peft: bool, where: str = "") -> dict[str, Any]:
    """The report of an adapted model that is written to `out`."""
    if peft:
        write(of_adapted(adapted), out)
    else:
        adapted.save(out)
    for warning in adapted.warnings:
        print(f"warning: {where}{warning}", file=sys.stderr)
    return {"out": str(out), "labels": adapted.labels, "support_loss": adapted.inner_losses}


def line(report: dict[str, Any], reads: bool = False) -> str:
    """What was done, for a person. reads: a document, whose losses are as many as it has chunks."""
    losses = report["support_loss"]
    if reads:
        average = (
            f": {sum(losses) / len(losses):.3f} nats per token, each chunk before the step on it" if losses else ""
        )
        return f"read {len(losses)} chunks{average}\nsaved in {report['out']}"
    what = ", ".join(report["labels"]) or "the task"
    return f"adapted to {what}{losses_in_words(losses, ': ')}\nsaved in {report['out']}"


def predict(
    adapted: str, source: str, more: int | None, reject: float | None, checkpoint: str | None, refine: int
) -> None:
    """Print a line for each text. Raises InputError."""
    if more and reject is not None:
        raise InputError("--continue and --reject are of different models; leave one of them out")
    if checkpoint is not None and reject is None:
        raise InputError(f"--checkpoint {checkpoint} is used by --reject alone; leave it out")
    if refine and (more or reject is not None):
        raise InputError(f"--refine {refine} gives labels alone; leave it out, or --continue and --reject")
    model = load_adapted(adapted)
    reads = model.config.model
    texts = list(read_inputs(source, model.text_column, reads.image, reads.dimensions is not None))
    nonempty = [text for text in texts if text is not None]
    if warning := model.unknown(nonempty):
        print(f"warning: {warning}", file=sys.stderr)
    if more:
        said = [{"text": model.continue_text(text, more)} for text in nonempty]
    else:
        said = (
            model.predict(nonempty, refine)
            if reject is None
            else predict_or_reject(model, nonempty, reject, checkpoint)
        )
    predictions = iter(said)
    for text in texts:
        print(json.dumps(None if text is None else next(predictions), ensure_ascii=False))
