"""Write docs/signatures.txt, what users call by name and a change would break:  python docs/make_signatures.py

Of Python: the public names of distmeta and distmeta.inner, and what the pages import beside these. Of the command line:
every verb, argument and option. A test compares the file with the code, so that none of it changes unseen.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from distmeta.cli import app

HERE = Path(__file__).parent
MADE = runpy.run_path(str(HERE / "make_api.py"))
PAGES = [HERE.parent / "README.md", *sorted(HERE.glob("*.md")), *sorted((HERE.parent / "examples").glob("*.py"))]


def page() -> str:
    """The whole of signatures.txt."""
    names = {(package, name) for package in MADE["PACKAGES"] for name in importlib.import_module(package).__all__}
    names |= {name for path in PAGES for name in imported(path)}
    python = [line for package, name in sorted(names) for line in signatures(package, name)]
    return "\n".join(["# Python", *python, "", "# Command line", *verb("distmeta", typer.main.get_command(app)), ""])


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every `from distmeta... import name` of a page's Python blocks, or of a Python file."""
    text = path.read_text(encoding="utf-8")
    for code in [text] if path.suffix == ".py" else re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
        for node in ast.walk(ast.parse(code)) if "from distmeta" in code else ():
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "distmeta":
                yield from ((str(node.module), alias.name) for alias in node.names)


def signatures(package: str, name: str) -> list[str]:
    """A line for a public name, and one for each public member of a class."""
    value, full = getattr(importlib.import_module(package), name), f"{package}.{name}"
    if not inspect.isclass(value) and not inspect.isfunction(value):
        return [f"{full} = {value}".replace("typing.", "")]
    if inspect.isclass(value) and (issubclass(value, Exception) or hasattr(value, "model_fields")):
        return [full]  # the keys of a section of the configuration stand in configuration.md
    lines = [line(full, value)]
    for member, attribute in vars(value).items() if inspect.isclass(value) else ():
        if member.startswith("_"):
            continue
        if isinstance(attribute, property | functools.cached_property):
            lines.append(f"{full}.{member}")
        elif inspect.isfunction(attribute) and attribute.__qualname__.startswith(value.__name__):
            lines.append(line(f"{full}.{member}", attribute))
    return lines


def line(name: str, value: Any) -> str:
    """name(parameters) -> result, on one line."""
    return re.sub(r"\s+", " ", MADE["signature"](name, value)).replace("( ", "(").replace(", )", ")")


def verb(name: str, command: Any) -> Iterator[str]:
    """A line for a verb with its arguments, and one for each of its options with its default, if it has one."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    yield " ".join([name, *(p.metavar or p.name.upper() for p in arguments)])
    for option in command.params:
        if option.param_type_name == "option":
            value = [] if option.is_flag else [option.metavar or "VALUE"]
            shown = ["(required)"] if option.required else [f"= {option.default}"] if option.default else []
            yield " ".join([name, "/".join([*option.opts, *option.secondary_opts]), *value, *shown])
    for part, inner in getattr(command, "commands", {}).items():
        yield from verb(f"{name} {part}", inner)


if __name__ == "__main__":
    (HERE / "signatures.txt").write_text(page(), encoding="utf-8")
