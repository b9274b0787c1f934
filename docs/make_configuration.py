"""Write docs/configuration.md, every key with its values and default:  python docs/make_configuration.py"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from distmeta.config.keys import Key, keys

HERE = Path(__file__).parent


def page() -> str:
    """The whole of configuration.md."""
    parts = [
        "# The configuration\n\n"
        "Made by `python docs/make_configuration.py` from the fields in `distmeta/config/`; change those, not "
        "this file. `distmeta config --keys SECTION` and `distmeta config --explain KEY` print the same, and `distmeta "
        "config RECIPE` prints the values of a recipe.\n"
    ]
    for section, fields in groupby(keys(), key=lambda key: key.name.partition(".")[0]):
        rows = "\n".join(row(key) for key in fields)
        parts.append(f"## {section}\n\n| key | values | default | |\n|---|---|---|---|\n{rows}\n")
    return "\n".join(parts)


def row(key: Key) -> str:
    """A row of a table."""
    cells = (f"`{key.name}`", key.values, f"`{key.default}`", key.description)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    (HERE / "configuration.md").write_text(page(), encoding="utf-8")
