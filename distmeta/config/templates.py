"""A template of the user's for an example: Jinja text with {{ input }} and {{ target }}, in a sandbox.

    Question: {{ input }}
    Answer: {{ target }}

It is taken apart once, as it is rendered, into what stands before the input, between the two and after the target (a
line break, where there is nothing); every example is then written with these, so that no example depends on another.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from distmeta.errors import cut, nearest

STYLES = ("plain", "chat", "auto", "bare")
PAIRS = "Input: {{ input }}\nOutput: {{ target }}\n\n"  # plain, in family text_to_text
INPUT, TARGET = "⟦1⟧", "⟦2⟧"  # stand for the two where a template is taken apart
NAME = "<template>"  # of the template in a traceback


def of_text(task: dict[str, Any]) -> dict[str, Any]:
    """The section task with the prompt of its family: text_to_text is bare unless it says more; its plain is PAIRS."""
    if task.get("family") != "text_to_text":
        return task
    prompt = task.get("prompt", "bare")
    return {**task, "prompt": PAIRS if prompt == "plain" else prompt}


def read_prompt(value: str) -> str:
    """task.prompt as it is kept: a style, or a template's text, read from its file. Raises ValueError."""
    if value in STYLES:
        return value
    text = value
    if "{{" not in value:
        path = Path(value).expanduser()
        if not path.is_file():
            raise ValueError(
                "plain, chat, auto, bare, a Jinja template with {{ input }} and {{ target }}, or a file with one; "
                f"there is no such file.{nearest(value, STYLES)}"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the file cannot be read as text: {cut(str(error), 100)}") from None
    take_apart(text)
    return text


def take_apart(text: str) -> tuple[str, str, str]:
    """What stands before the input, between it and the target, and after the target. Raises ValueError."""
    whole = rendered(text, INPUT, TARGET)
    for mark, name in ((INPUT, "input"), (TARGET, "target")):
        if whole.count(mark) != 1:
            count = whole.count(mark)
            raise ValueError(f"the template writes {{{{ {name} }}}} {count} times; write it once, as it is")
    before, rest = whole.split(INPUT)
    if TARGET not in rest:
        raise ValueError("the template writes {{ target }} before {{ input }}; what is asked stands before its answer")
    between, after = rest.split(TARGET)
    if not between.strip():
        raise ValueError("nothing stands between {{ input }} and {{ target }}; write what asks for the target")
    for one, other in (("a b", "c"), ("", "x y"), ("Z\n9", "d")):
        if rendered(text, one, other) != f"{before}{one}{between}{other}{after}":
            raise ValueError(
                "the template writes another text around another input or target; write {{ input }} and {{ target }} "
                "once, as they are"
            )
    return before, between, after


def rendered(text: str, one: str, other: str) -> str:
    """The template with an input and a target. Raises ValueError with the line."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        template: Any = environment.from_string(text)
        return str(template.render(input=one, target=other))
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno} of the template: {error.message}") from None
    except Exception as error:  # whatever an expression of the template makes of being evaluated
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == NAME]
        where = f"line {lines[-1]} of the template" if lines else "the template"
        known = "; it may use input and target" if isinstance(error, jinja2.UndefinedError) else ""
        raise ValueError(f"{where}: {cut(str(error), 160) or type(error).__name__}{known}") from None
