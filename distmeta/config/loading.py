"""A configuration from a recipe or file, and dotted overrides; and back to YAML.

A recipe is a YAML file that states only what differs from the defaults; overrides are `inner.lr=0.05`. An unknown
key or an unusable value is one line that names the key, the value, what is allowed and the nearest match.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from distmeta.config.algorithms import entry, with_settings
from distmeta.config.rates import without_rates
from distmeta.config.sections import Config
from distmeta.config.trees import merge, nested
from distmeta.errors import InputError, nearest

ConfigSource = Config | dict[str, Any] | str | Path  # what a caller in Python names a configuration by
RECIPES = Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(source: str) -> Path:
    """The YAML file that `source`, a recipe's name or a file, stands for. Raises InputError."""
    if source in recipe_names():
        return RECIPES / f"{source}.yaml"
    path = Path(source)
    if path.exists() and path.suffix not in (".yaml", ".yml"):
        raise InputError(f"{source}: is neither a recipe nor a .yaml file; to train on it, give data.path={source}")
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise InputError(f"{source}: no such file; give a YAML file, or one of the recipes {', '.join(recipe_names())}")
    raise InputError(
        f"{source}: no recipe of that name, and not a .yaml file; recipes: {', '.join(recipe_names())}."
        + nearest(source, recipe_names())
    )


def load_config(source: str | Path | None = None, overrides: list[str] | None = None) -> Config:
    """The configuration of a recipe or YAML file (default: the recipe `default`) with dotted overrides.

    An algorithm that an override asks for brings its settings, over the file's. A recipe's rates are for the weights
    that it begins from: with another model.pretrained they are those that fit it. Raises InputError, in one line.
    """
    return laid_over(source, [parse_override(override) for override in overrides or []], "the command line")


def laid_over(source: str | Path | None, parsed: list[dict[str, Any]], where: str) -> Config:
    """`load_config` with overrides as nested dictionaries. where: what a refusal calls the place that they are from."""
    path = recipe_path(str(source or "default"))
    content = alone = read_yaml(path)
    for override in parsed:
        if "algorithm" in override:
            content = with_settings(content, entry(override["algorithm"]), over=True)
    of_base = (content.get("model") or {}).get("pretrained")
    over: dict[str, Any] = {}
    for override in parsed:
        over = merge(over, override)
    if path.parent == RECIPES and of_base is None and (over.get("model") or {}).get("pretrained") is not None:
        content = without_rates(content)
    content = merge(content, over)
    content = with_settings(content, entry(content.get("algorithm", "maml")), over=False)
    try:
        return make_config(content, where=str(path))
    except InputError:
        # The file is at fault if it is refused without the overrides too.
        make_config(with_settings(alone, entry(alone.get("algorithm", "maml")), over=False), where=str(path))
        return make_config(content, where)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file. Raises InputError, also for a key that stands in it twice."""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
        check_keys(yaml.compose(text, Loader=yaml.SafeLoader), path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; a configuration is a mapping of sections")
    return content


def check_keys(node: yaml.Node | None, path: Path) -> None:
    """Raises InputError where a mapping has a key twice, of which YAML would silently take the last."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            check_keys(child, path)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line, name = key.start_mark.line + 1, str(key.value)
        if name in lines:
            raise InputError(f"{path} line {line}: the key '{name}' stands in line {lines[name]} already; keep one")
        lines[name] = line
        check_keys(value, path)


def config_of(source: ConfigSource | None, sections: Mapping[str, Any] | None = None) -> Config:
    """The configuration that a caller in Python names: one that is made, nested dictionaries, a recipe or YAML file.

    None: the recipe `default`. sections: laid over it. Raises InputError.
    """
    over = dict(sections or {})
    if isinstance(source, Config):
        return make_config(merge(source.model_dump(mode="json"), over)) if over else source
    if source is None or isinstance(source, str | Path):
        return laid_over(source, [over], "the arguments")
    if isinstance(source, dict):
        return make_config(merge(source, over))
    raise InputError(
        f"configuration: is {type(source).__name__}; give a Config, a dictionary of sections such as "
        "{'outer': {'steps': 100}}, or the name of a recipe or a YAML file"
    )


def with_changes(config: Config, section: str, **changes: Any) -> Config:
    """`config` with keys of a section changed to what is not None, each checked. Raises InputError."""
    changes = {key: value for key, value in changes.items() if value is not None}
    if not changes:
        return config
    old = getattr(config, section)
    try:
        new = type(old).model_validate({**old.model_dump(), **changes})
    except ValidationError as error:
        raise InputError(_one_line(error)) from None
    return config.model_copy(update={section: new})


def make_config(content: dict[str, Any], where: str = "configuration") -> Config:
    """A checked configuration from nested dictionaries. Raises InputError."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{where}: {_one_line(error)}") from None


def dump_config(config: Config) -> str:
    """The whole configuration as YAML; `make_config(yaml.safe_load(...))` gives it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_override(override: str) -> dict[str, Any]:
    """`section.key=value` as nested dictionaries. Raises InputError."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override}: an override is section.key=value, such as inner.lr=0.05")
    if key == "task.prompt" and "{{" in text:  # a template is no YAML; shells have no line break in plain words
        return nested({key: text.replace("\\n", "\n")})
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return nested({key: value})


def _one_line(error: ValidationError) -> str:
    first, *rest = error.errors()
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known, last = _keys_beside(first["loc"]), str(first["loc"][-1])
        elsewhere = [f"{name}.{last}" for name in Config.model_fields if last in _keys_beside((name, last))]
        named = f" Did you mean {' or '.join(elsewhere)}?" if elsewhere else ""
        hint = (
            nearest(last, known, cutoff=0.8) or named or nearest(last, known)
        )  # a slip of the pen before another place
        line = f"unknown key '{key}'; allowed here: {', '.join(known)}.{hint}"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        line = f"{key} = {first['input']!r}: {reason}" if key else reason
    return line + (f" (and {len(rest)} more)" if rest else "")


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Config
    for part in location[:-1]:
        if part in getattr(model, "model_fields", ()):  # else the name of a source, whose keys are those of all sources
            model = _section_of(model.model_fields[part].annotation)
    return list(getattr(model, "model_fields", ()))


def _section_of(annotation: Any) -> Any:
    """The section within a type such as dict[str, Section] | None."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next((section for a in get_args(annotation) if (section := _section_of(a)) is not None), None)
