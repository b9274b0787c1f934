"""Write the tables of measured figures into the pages, from benchmarks/results/*.json:  python docs/make_results.py

A table of measured/ stands in its page between `<!-- table NAME -->` and `<!-- end -->`, and is replaced. Sentences are
written by hand; measured/ lists the figures in them as they have to read, and `--check` (a test runs it) names each
page in which a table or such a figure is not what the records say.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from measured import TABLES, sentences

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.S)


def written(text: str) -> str:
    """A page with its tables made anew."""
    return MARKED.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def wrong() -> Iterator[str]:
    """A line for each table and each sentence that does not say what the records say."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if written(text) != text:
            yield f"{page.relative_to(ROOT)}: its tables are not what the records say; run python docs/make_results.py"
    for name, sentence in sentences():
        if " ".join(sentence.split()) not in " ".join((ROOT / name).read_text(encoding="utf-8").split()):
            yield f"{name}: by the records it has to say {sentence!r}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit("\n".join(wrong()) or 0)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (made := written(text)) != text:
            page.write_text(made, encoding="utf-8")
