"""Write docs/api.md, the public names with their signatures and docstrings:  python docs/make_api.py"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = ("distmeta", "distmeta.inner")
WIDTH = 100  # of a signature that stays on one line
PLAIN = (type(None), bool, int, float, str, tuple)  # defaults that are shown as they are


def page() -> str:
    """The whole of api.md."""
    parts = [
        "# The Python interface",
        "Made by `python docs/make_api.py` from the docstrings; change those, not this file. The configuration's keys "
        "with their values are printed by `distmeta config`.",
    ]
    for package in PACKAGES:
        module = importlib.import_module(package)
        parts += [f"## {package}", str(inspect.getdoc(module))]
        parts += [entry(name, getattr(module, name)) for name in sorted(module.__all__, key=str.lower)]
    return "\n\n".join(parts) + "\n"


def entry(name: str, value: Any) -> str:
    """One public name: heading, signature, docstring, and for a class its public members."""
    if not callable(value) or not hasattr(value, "__module__") or value.__module__ == "typing":
        return f"### {name}\n\n" + code(f"{name} = {value}".replace("typing.", ""))
    file = Path(str(inspect.getsourcefile(value)))
    package = next(folder for folder in file.parents if folder.name == "distmeta")
    place = file.relative_to(package.parent).as_posix()
    parts = [f"### {name}", f"[`{place}`](../{place})"]
    if not (inspect.isclass(value) and issubclass(value, Exception) and "__init__" not in vars(value)):
        parts.append(code(signature(name, value)))
    parts += documented(name, value)
    for member, found in vars(value).items() if inspect.isclass(value) else ():
        if isinstance(found, property | functools.cached_property) and inspect.getdoc(found):
            parts += [f"`{name}.{member}`", *documented(member, found)]
        elif inspect.isfunction(found) and not member.startswith("_") and inspect.getdoc(found):
            parts += [code(signature(f"{name}.{member}", found)), *documented(member, found)]
    return "\n\n".join(parts)


def documented(name: str, value: Any) -> list[str]:
    """The docstring as it stands, in a block, since its layout means something; [] where a dataclass made its own."""
    text = inspect.getdoc(value) or ""
    return [] if not text or text.startswith(f"{name}(") else [f"```text\n{text}\n```"]


def signature(name: str, value: Any) -> str:
    """name(parameters) -> result, annotations as they are written, one parameter a line where it is long."""
    signature = inspect.signature(value)
    shown, starred = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        text = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {written(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {parameter.default!r}" if isinstance(parameter.default, PLAIN) else " = ..."
        shown.append(text)
    result = "" if inspect.isclass(value) else f" -> {written(signature.return_annotation)}"
    line = f"{name}({', '.join(shown)}){result}"
    return line if len(line) <= WIDTH else f"{name}(\n" + "".join(f"    {one},\n" for one in shown) + f"){result}"


def written(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)  # pydantic's are resolved, with their modules


def code(text: str) -> str:
    text = text.replace("'", '"')  # as the source has it
    return f"```python\n{text}\n```"


if __name__ == "__main__":
    (HERE / "api.md").write_text(page(), encoding="utf-8")
