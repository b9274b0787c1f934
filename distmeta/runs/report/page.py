"""A page: one file of HTML that holds its style and its figures, and asks nothing of the network.

A page is sections of blocks; `page.html` says how each kind looks. Every text is escaped there, since names of tasks
and labels are the user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from distmeta.runs.report import plots


@dataclass(frozen=True)
class Text:
    kind: ClassVar[str] = "text"
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Code:
    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Table:
    """The first cell of a row is its header. marked: rows that stand out. shades: 0..1 for each cell but the first."""

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: Sequence[int] = ()
    shades: Sequence[Sequence[float]] | None = None


@dataclass(frozen=True)
class Picture:
    """figure: matplotlib's. name: of figures/NAME.png, and of the element. alt: what it shows, in words."""

    kind: ClassVar[str] = "picture"
    name: str
    figure: Any
    alt: str
    caption: str

    @property
    def svg(self) -> str:
        return plots.svg(self.figure, self.name, self.alt)


@dataclass(frozen=True)
class Folded:
    kind: ClassVar[str] = "folded"
    summary: str
    blocks: Sequence[Block]


Block = Text | Code | Table | Picture | Folded


@dataclass(frozen=True)
class Section:
    """blocks, or the reason why there are none."""

    title: str
    blocks: Sequence[Block] = ()
    reason: str = ""


@dataclass(frozen=True)
class Page:
    title: str
    about: str
    sections: Sequence[Section] = field(default_factory=list)

    @property
    def shown(self) -> list[Section]:
        return [section for section in self.sections if section.blocks]

    @property
    def absent(self) -> list[Section]:
        return [section for section in self.sections if not section.blocks]

    @property
    def pictures(self) -> list[Picture]:
        return [block for section in self.shown for block in section.blocks if isinstance(block, Picture)]


def render(page: Page) -> str:
    """The HTML document. Called within `plots.style()`, as the figures are drawn."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("distmeta.runs.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html").render(page=page)
