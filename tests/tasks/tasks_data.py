"""Small data for the tests of tasks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WORDS = [
    "red",
    "blue",
    "green",
    "heavy",
    "light",
    "old",
    "new",
    "warm",
    "cold",
    "soft",
    "屋",
    "里",
    "很",
    "暖",
]


def make_rows(tasks: int = 6, labels: int = 3, each: int = 8, split: bool = True) -> list[dict[str, Any]]:
    """`each` different texts of different lengths for every task and label."""
    words = ["train", "train", "val", "test", "train", "test"]
    return [
        {
            "text": f"item {i} of {label} in {task}: "
            + " ".join(WORDS[(i * 3 + k) % len(WORDS)] for k in range(i % 7)),
            "label": f"label{label}",
            "task": f"task{task}",
            **({"split": words[task % 6]} if split else {}),
        }
        for task in range(tasks)
        for label in range(labels)
        for i in range(each)
    ]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)
