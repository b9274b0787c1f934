"""`distmeta explain`: for each text the examples that pushed its prediction, as tables, a page or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distmeta.errors import InputError, cut
from distmeta.evaluation.adapt import load_adapted
from distmeta.evaluation.influence import check_explained
from distmeta.evaluation.influence import explain as explain_texts
from distmeta.runs import tables
from distmeta.runs.checkpoint import write_text
from distmeta.tasks.texts import read_inputs

HEAD = ["example", "label", "influence", "without it"]
NOTE = (
    "influence: how much the log-probability of the label rises where the example counts more, relative to its weight; "
    "without it: what it would change by, to first order, were the example left out."
)


def explain(adapted: str, source: str, most: int, html: Path | None, checkpoint: str | None, as_json: bool) -> None:
    """Explain, and say so. Raises InputError."""
    if html is not None and html.exists():
        raise InputError(f"{html}: exists already; give a new file for the page")
    model = load_adapted(adapted)
    check_explained(model.config, model.state)
    texts = [text for text in read_inputs(source, model.text_column) if text is not None]
    found = explain_texts(model, texts, checkpoint)
    if html is not None:
        write_text(html, page(adapted, found, most))
    if as_json:
        print(json.dumps({"explanations": found}, ensure_ascii=False))
        return
    for one in found:
        rows = [[cut(text, 60), *others] for text, *others in rows_of(one, most)]
        tables.show(tables.table(title(one), HEAD, rows, texts=HEAD[:2], title_justify="left"))
    print(NOTE + (f"\npage {html}" if html is not None else ""))


def strongest(one: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """The `most` examples that pushed most, from those towards the label to those away from it."""
    ranked = sorted(one["influences"], key=lambda each: -abs(each["influence"]))[:most]
    return sorted(ranked, key=lambda each: -each["influence"])


def title(one: dict[str, Any]) -> str:
    prediction = one["prediction"]
    return f"{cut(one['text'], 100)}: {prediction['label']} ({prediction['confidence']:.3f})"


def rows_of(one: dict[str, Any], most: int) -> list[list[str]]:
    return [
        [each["text"], each["label"], f"{each['influence']:+.4f}", f"{each['without']:+.4f}"]
        for each in strongest(one, most)
    ]


def page(adapted: str, found: Sequence[dict[str, Any]], most: int) -> str:
    """A page of one table a text, a cell the darker the more an example pushed."""
    from distmeta.runs.report.page import Page, Section, Table, Text, render

    sections = []
    for one in found:
        each = strongest(one, most)
        largest = max((abs(e["influence"]) for e in each), default=0.0) or 1.0
        shades = [[0.0, abs(e["influence"]) / largest, 0.0] for e in each]
        caption = "Towards the label at the top, away from it at the bottom."
        sections.append(Section(title(one), [Table(caption, HEAD, rows_of(one, most), shades=shades)]))
    about = f"{len(found)} texts. {NOTE[0].upper()}{NOTE[1:]}"
    return render(
        Page(f"What taught {Path(adapted).name}", about, [Section("How to read it", [Text(about)]), *sections])
    )
