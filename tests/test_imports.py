"""Imports run one way, from the mathematics to the command line; the mathematics knows neither Ray nor DeepSpeed."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import distmeta

ROOT = Path(distmeta.__file__).parent
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
# A name may import those before it, at the top of a file or in a function; a package is one name. The folders are those
# of the README's table, in its order.
LAYOUT = README.split("## How it is laid out")[1].split("\nRead first")[0]
FOLDERS = re.findall(r"`(?:distmeta/)?(\w+)/`", "".join(re.findall(r"^\|(.*?)\|", LAYOUT, re.M)))
ORDER = [
    "errors",
    "health",
    "versions",
    *(name for name in FOLDERS if (ROOT / name / "__init__.py").exists()),
    "__main__",
]
PURE = {"errors", "health", "inner", "config", "algorithms", "models"}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import; those for type checkers alone are left out."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


def sources() -> Iterator[tuple[str, Path]]:
    """Each file with the name in ORDER that it belongs to; distmeta/__init__.py only forwards."""
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).with_suffix("").parts[0]
        if own != "__init__":
            yield own, path


def test_no_import_runs_upward():
    wrong = []
    for own, path in sources():
        for line, name in imported(path):
            package, _, rest = name.partition(".")
            if package == "distmeta" and rest:
                target = rest.partition(".")[0]
                if target in ORDER and ORDER.index(target) > ORDER.index(own):
                    wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_file_has_its_place_in_the_order():
    assert {own for own, _ in sources()} == set(ORDER)


def test_no_circle_between_files():
    modules = {".".join(("distmeta", *p.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): p
               for _, p in sources()}  # fmt: skip
    targets = {}
    for module, path in modules.items():
        names = {name for _, name in imported(path)}
        known = {n if n in modules else n.rpartition(".")[0] for n in names}
        targets[module] = (known & set(modules)) - {module}
    done: set[str] = set()
    while ready := {m for m in modules if m not in done and targets[m] <= done}:
        done |= ready
    assert done == set(modules), f"a circle among {sorted(set(modules) - done)}"


def test_the_mathematics_imports_neither_ray_nor_deepspeed():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for own, path in sources()
        if own in PURE
        for line, name in imported(path)
        if name.partition(".")[0] in ("ray", "deepspeed")
    ]
    assert not wrong, "\n".join(wrong)
