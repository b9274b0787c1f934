"""Some query examples as the meta-trained model labels them, for a person to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from distmeta.errors import cut
from distmeta.evaluation.scoring import Scored
from distmeta.tasks import images

MOST = 5  # of each kind
LONGEST = 300  # characters of a text


def examples(scored: Sequence[Scored], text: Callable[[int], str]) -> list[dict[str, Any]]:
    """The most certain mistakes after the last step, and as many that are right, each text once.

    text: of an example of the task store. Each has task, text, label, predicted and confidence.
    """
    mistakes = sorted(predicted(scored, right=False), key=lambda answer: -answer[0])
    shown: dict[int, dict[str, Any]] = {}
    for kind in (mistakes, predicted(scored, right=True)):
        most = len(shown) + MOST
        for confidence, row, about in kind:
            if len(shown) == most:
                break
            shown.setdefault(row, {**about, "text": shorter(text(row)), "confidence": confidence})
    return list(shown.values())


def shorter(text: str) -> str:
    """A text that fits in a table; an image stays whole."""
    return text if text.startswith(images.DATA) else cut(text, LONGEST)


def predicted(scored: Sequence[Scored], right: bool) -> Iterator[tuple[float, int, dict[str, Any]]]:
    """(confidence, row of the store, task, label and prediction) of the query rows that are right, or of the others."""
    for s in scored:
        if s.rows is not None:
            for i in ((s.predicted[-1] == s.labels) == right).nonzero()[0]:
                label, prediction = (s.label_names[k] for k in (s.labels[i], s.predicted[-1][i]))
                about = {"task": s.task, "label": label, "predicted": prediction}
                yield float(s.confidence[-1][i]), int(s.rows[i]), about
