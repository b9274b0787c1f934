"""The section `data`: where the tasks are read from."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from distmeta.config.base import Section
from distmeta.config.images import read_descriptions


class SourceConfig(Section):
    """One of several data sources. What is not given is as in the section data."""

    path: str | list[str]
    text: str | None = None
    label: str | None = None
    task: str | None = None
    author: str | None = None
    input: str | None = None
    target: str | None = None
    options: str | None = None
    instruction: str | None = None
    split: str | None = None
    splits: dict[str, list[str]] | str | None = None
    fractions: tuple[float, float, float] | None = None


class DataConfig(Section):
    """Where the tasks are read from. Without a path and sources: the built-in product reviews."""

    path: str | list[str] | None = Field(None, description="files, directories or globs, local or a filesystem URI")
    sources: dict[str, SourceConfig] | None = Field(
        None, description="several data sources by name, instead of data.path; task.mixture says how they are mixed"
    )
    text: str = Field("text", description="column that holds the text")
    label: str = Field("label", description="column that holds the label (families domain and classes)")
    task: str = Field(
        "task",
        description="column that names the task (families domain, text_to_text and regression), or the document that "
        "a row goes on with (family document; without such a column each row is a document)",
    )
    author: str = Field(
        "author", description="family document: column that names what several documents share, where there is one: a "
        "hash keeps them in one split, and intervals are over authors"
    )  # fmt: skip
    input: str = Field(
        "input",
        description="families text_to_text and regression: column that holds the input (regression: numbers)",
    )
    target: str = Field(
        "target",
        description="families text_to_text and regression: column that holds the answer, or a list of accepted ones "
        "(regression: numbers)",
    )
    options: str = Field(
        "options",
        description="family text_to_text: column that holds a list of options to choose from, if any",
    )
    instruction: str = Field(
        "instruction", description="family text_to_text: column that holds the task's instruction, if any"
    )
    descriptions: dict[str, str] | str | None = Field(
        None, description="model.head=words: what is read of a class: a template such as 'a photo of a {label}', a "
        "table of descriptions by label, or a JSON file with one, which is kept in the run; null, and where a table "
        "has none: the label's own words"
    )  # fmt: skip
    subgroup: str | None = Field(
        None, description="families domain and classes: column that names a row's subgroup, to score subgroups apart "
        "and tell the largest gap between two; null: none"
    )  # fmt: skip
    trusted: str | None = Field(
        None, description="families domain and classes: column that is true in rows whose labels are right; query sets "
        "of meta-train episodes are drawn from these alone, support sets from all rows; null: from all rows"
    )  # fmt: skip
    layout: Literal["table", "natural_instructions", "crossfit", "metaicl"] = Field(
        "table", description="family text_to_text: how the files hold tasks; table: in the columns named above"
    )
    split: str = Field(
        "split",
        description="column that says train, validation or test; without it the files' names decide (train-0.parquet, "
        "test.csv), else a stable hash; hash: always a stable hash",
    )
    splits: dict[str, list[str]] | str | None = Field(
        None,
        description="tasks or classes of train, validation and test, as lists; or JSON_FILE or JSON_FILE#KEY "
        "that holds them",
    )
    fractions: tuple[float, float, float] = Field(
        (0.6, 0.2, 0.2), description="shares of tasks or classes by stable hash"
    )
    follow: float | None = Field(
        None,
        gt=0,
        description="seconds to wait for another file, if you add files to data.path while the run learns "
        "(task.arrive_every); null: data.path does not grow",
    )
    cache: str | None = Field(
        None, description="directory of token caches; null: in cluster.storage, else ~/.cache/distmeta"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_are_not_choices(cls, values: Any) -> Any:
        """A column that is named as it is by default may be absent, also when a written configuration is read."""
        if not isinstance(values, dict):
            return values
        if values.get("layout") == "metaicl":
            values = {"target": "output", **values}
        return {k: v for k, v in values.items() if k not in cls.model_fields or v != cls.model_fields[k].default}

    @model_validator(mode="after")
    def _one_or_several(self) -> DataConfig:
        if self.sources is not None:
            if self.path is not None or self.splits is not None:
                key = "path" if self.path is not None else "splits"
                raise ValueError(f"data.{key} and data.sources: give each source its own {key} instead")
            for name in self.sources:
                if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                    raise ValueError(f"data.sources: the name {name!r} may hold letters, digits and . _ - only")
                self.of(name)
            if not self.sources:
                raise ValueError("data.sources is empty: name at least one source, or give data.path")
        return self

    def of(self, name: str) -> DataConfig:
        """Source `name` alone: its own keys over those of this section."""
        assert self.sources is not None
        source = self.sources[name].model_dump(exclude_none=True)
        shared = {key: getattr(self, key) for key in self.model_fields_set - {"sources"}}
        return DataConfig(**{**shared, **source})

    @field_validator("descriptions")
    @classmethod
    def _reads_table(cls, value: Any) -> Any:
        return read_descriptions(value)

    @field_validator("fractions")
    @classmethod
    def _sums_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("three shares of at least 0 that add up to 1")
        return value
