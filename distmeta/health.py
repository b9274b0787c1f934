"""Signs that a run learns nothing, or that its inner loop does, from its records and its evaluation alone.

Each is {what, key}: what was seen, and the key to change.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from statistics import mean
from typing import Any

Sign = dict[str, str]

WINDOW = 10  # meta-steps that a sign is looked for over
PATIENCE = 30  # meta-steps after which a loss should have fallen
GRADIENT = 1000.0
ONE_CLASS = 0.98  # of all predictions


class Watch:
    """Follows the records of metrics.jsonl, and says each sign once, when it is first seen.

    warnings: the signs in the newest records; what a run has got over is no longer among them.

    classes: of an episode; None where answers are words.
    """

    def __init__(self, classes: int | None, say: Callable[[str], None]) -> None:
        self.classes, self.say = classes, say
        self.recent: deque[Mapping[str, Any]] = deque(maxlen=WINDOW)
        self.first: list[float] = []
        self.warnings: list[Sign] = []
        self.reported: set[str] = set()

    def see(self, record: Mapping[str, Any]) -> None:
        self.recent.append(record)
        if record["step"] <= WINDOW:
            self.first.append(record["outer_loss"])
        if len(self.recent) < WINDOW:
            return
        start = mean(self.first) if len(self.first) == WINDOW else None
        self.warnings = of_records(list(self.recent), self.classes, start)
        for warning in self.warnings:
            name = warning["key"] + warning["what"].split(":")[0]
            if name not in self.reported:
                self.reported.add(name)
                self.say(f"meta-step {record['step']}: {sentence(warning)}")


def sentence(warning: Sign) -> str:
    return f"warning: {warning['what']}; change {warning['key']}"


def of_records(records: list[Mapping[str, Any]], classes: int | None, first_loss: float | None = None) -> list[Sign]:
    """Signs in consecutive records. first_loss: the mean of the run's first steps, where it is known."""
    out = []
    step, loss = records[-1]["step"], mean(r["outer_loss"] for r in records)
    accuracy = mean(r.get("query_accuracy", 0.0) for r in records)
    at_chance = classes is not None and is_chance(loss, accuracy, classes)
    if at_chance and step >= 2 * WINDOW and classes is not None:
        out.append(sign(
            f"training stands at chance: loss {loss:.3f} (ln {classes} = {math.log(classes):.3f}), accuracy "
            f"{accuracy:.3f} (1/{classes} = {1 / classes:.3f})", "outer.lr (lower), or inner.lr"
        ))  # fmt: skip
    elif first_loss is not None and step >= PATIENCE and accuracy < 0.9 and loss > first_loss:
        out.append(sign(
            f"the outer loss has not fallen: {loss:.3f}, {first_loss:.3f} in the first {WINDOW} meta-steps",
            "outer.lr (lower), or outer.steps",
        ))  # fmt: skip
    path = [r["inner_loss"] for r in records if len(r.get("inner_loss", ())) > 1]
    if path:
        out += inner_signs(mean(p[0] for p in path), mean(p[-1] for p in path))
    norm = mean(r["grad_norm"] for r in records)
    if norm > GRADIENT:
        out.append(sign(f"the gradient is very large: norm {norm:.0f}", "inner.lr (lower), or model.distance=cosine"))
    return out


def inner_signs(before: float, after: float) -> list[Sign]:
    """Of the support loss before the first inner step and at the last."""
    if max(abs(before), abs(after)) < 1e-6:
        return [sign("the support loss is 0 before any inner step: there is nothing to adapt by",
                     "model.distance (cosine)")]  # fmt: skip
    if after - before > 0.05 * abs(before):
        return [sign(f"the inner loop raises the support loss: {before:.3g} to {after:.3g}", "inner.lr (lower)")]
    if after - before > -0.001 * abs(before):
        return [sign(f"the inner loop does nothing: support loss {before:.4g} to {after:.4g}", "inner.lr (raise)")]
    return []


def of_evaluation(
    scores: Mapping[str, Any], details: Mapping[str, Any], classes: int | None, is_base: bool = False
) -> list[Sign]:
    """Signs in the scores of the meta-trained model, as in evaluation.json, and their details.

    is_base: it was not meta-trained, so that there is nothing to change in its training.
    """
    out = []
    accuracy, loss = scores.get("accuracy"), scores["loss"]
    if accuracy and classes and not is_base and accuracy["low"] <= 1 / classes:
        out.append(sign(
            f"on unseen tasks the model is not above chance: accuracy {accuracy['mean']:.3f} [{accuracy['low']:.3f}, "
            f"{accuracy['high']:.3f}], 1/{classes} = {1 / classes:.3f}", "outer.lr, or outer.steps"
        ))  # fmt: skip
    table = details.get("confusion", {}).get("rows_are_labels")
    if table and not is_base:
        by_class = [sum(column) for column in zip(*table, strict=True)]
        if max(by_class) > ONE_CLASS * sum(by_class):
            name = details["confusion"]["labels"][by_class.index(max(by_class))]
            share = max(by_class) / sum(by_class)
            out.append(sign(f"one class is nearly always predicted: {name}, {share:.0%} of rows", "outer.lr (lower)"))
    fit = details.get("fitting_answers")
    if fit:
        out.append(sign(
            f"{fit['of'] - fit['rows']:,} of {fit['of']:,} right answers are longer than a model may say, and cannot "
            f"be matched; without them: exact match {fit['exact_match'] or 0:.3f}", "model.answer_tokens (raise)",
        ))  # fmt: skip
    curve = loss.get("curve", [])
    if len(curve) > 1 and curve[-1] - curve[0] > 0.2 * abs(curve[0]):
        out.append(sign(
            f"adaptation makes it worse: loss {curve[0]:.3g} before and {curve[-1]:.3g} after the inner steps",
            "inner.lr (lower), or inner.steps",
        ))  # fmt: skip
    return out


def is_chance(loss: float, accuracy: float, classes: int) -> bool:
    return loss > 0.98 * math.log(classes) and accuracy < 1 / classes + 0.05


def sign(what: str, key: str) -> Sign:
    return {"what": what, "key": key}
