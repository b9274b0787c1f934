"""What each split of a store holds, and the texts that stand in two of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distmeta.config import Config, TaskConfig
from distmeta.health import Sign, sign
from distmeta.tasks import counts
from distmeta.tasks.passages import too_short
from distmeta.tasks.splits import SPLITS
from distmeta.tasks.store import TaskStore

PAIRS = (("validation", "train"), ("test", "train"), ("test", "validation"))
FILE = "tasks.json"  # in the run directory
PART = 1 << 18  # rows that are compared at once


def summary(store: TaskStore, task: TaskConfig | None = None) -> dict[str, Any]:
    """{splits, repeated, encoding}: by split its rows, and those of each task and class; then the texts in two splits.

    short: with `task`, of the family document: how many documents of each split are shorter than an episode.

    encoding: rows, those cut to max_tokens, tokens, unknown ones, and the answers cut to answer_tokens.
    repeated: by "test in train" and so on, how many rows of the first split have a text that stands in the second too.
    """
    splits: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        groups = store.groups[split]
        names = store.labels if store.family == "classes" else store.tasks
        each = {names[i]: int(n) for i, n in zip(groups.ids.tolist(), groups.count.sum(1).tolist(), strict=True)}
        unit = "classes" if store.family == "classes" else "tasks"
        splits[split] = {"rows": groups.examples, unit: each}
        if store.family == "domain":
            totals = groups.count.sum(0).tolist()
            splits[split]["classes"] = {name: int(n) for name, n in zip(store.labels, totals, strict=True)}
    lost = {"encoding": {**store.encoding, "max_tokens": store.max_tokens}} if store.encoding else {}
    reads = task is not None and task.family == "document"
    short = {split: count for split, count in too_short(store, task).items() if count} if reads and task else {}
    return {"splits": splits, "repeated": repeated(store), **lost, **({"short": short} if short else {})}


def unit_of(content: dict[str, Any]) -> str:
    """What the splits of a summary divide: tasks or classes."""
    return "tasks" if "tasks" in content["splits"]["train"] else "classes"


def repeated(store: TaskStore) -> dict[str, int]:
    """Rows of a split whose text, in any case and without space around it, stands in another; no row is left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = {split: store.texts_of(split) for split in SPLITS}

    def parts(split: str) -> Any:
        for begin in range(0, len(texts[split]), PART):
            yield pc.utf8_lower(pc.utf8_trim_whitespace(texts[split].slice(begin, PART)))

    def unique(arrays: Any) -> Any:
        return pc.unique(pa.chunked_array([pc.unique(array) for array in arrays], texts["train"].type))

    rows = {}
    for one, other in PAIRS:
        of_one = unique(parts(one))
        in_both = unique(part.filter(pc.is_in(part, value_set=of_one)) for part in parts(other))
        rows[f"{one} in {other}"] = sum(pc.sum(pc.is_in(part, value_set=in_both)).as_py() for part in parts(one))
    return {pair: count for pair, count in rows.items() if count}


def read(run_dir: Path) -> dict[str, Any]:
    """What `summary` said of a run's tasks; empty where the run has no such file, as those of before have not."""
    try:
        content: dict[str, Any] = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return content


def signs(content: dict[str, Any]) -> list[Sign]:
    """The texts in two splits, those cut to fit or too short, and unknown words as signs of distmeta.health."""
    line = sentence(content.get("repeated", {}))
    lost = content.get("encoding", {})
    out = [sign(line, "the data, or how data.split divides it")] if line else []
    if short := content.get("short"):
        each = ", ".join(f"{count:,} of {split}" for split, count in short.items())
        out.append(sign(f"documents shorter than an episode are never drawn: {each}", "task.chunks (lower)"))
    return out + counts.signs(lost, lost.get("max_tokens", 0))


def sentence(counts: dict[str, int]) -> str:
    """One line about the texts in two splits; empty where there are none."""
    if not counts:
        return ""
    rows = ", ".join(f"{n:,} row{'s' if n > 1 else ''} of {pair}" for pair, n in counts.items())
    return f"texts stand in two splits: {rows}"


def headline(content: dict[str, Any]) -> str:
    """One line: how many tasks or classes, and how many rows, each split has."""
    unit = unit_of(content)
    each = (f"{name} {len(of[unit]):,} ({of['rows']:,} rows)" for name, of in content["splits"].items())
    later = "; more arrive (data.follow)" if content.get("follows") else ""
    return f"{unit}: {', '.join(each)}{later}"


def built_in(config: Config) -> str:
    """What a run without data of its own learns from."""
    suites = {"text_to_text": "questions", "document": "ledgers", "regression": "sinusoids", "policy": "goals"}
    if config.task.environment is not None:
        return f"tasks of {config.task.environment}"
    of_images = "images with words" if config.model.head == "words" else "glyphs"
    return f"built-in {of_images if config.model.image else suites.get(config.task.family, 'product reviews')}"
