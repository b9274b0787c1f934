"""The documentation: links lead somewhere, code runs, commands and configurations are accepted, and what is
generated is current."""

import difflib
import re
import runpy
import shlex
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import small
import typer
import yaml

import distmeta
from distmeta.cli import app
from distmeta.cli.words import split_source
from distmeta.config import config_of, load_config, make_config

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
READ = [ROOT / "README.md", ROOT / "cluster" / "README.md", *PAGES]
WITH_CODE = [page for page in PAGES if page.name != "api.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, kind: str) -> list[str]:
    return [content for found, content in BLOCK.findall(page.read_text()) if found == kind]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "code", BLOCK.sub("", page.read_text()))
    out = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            out.append(link)
    return out


@pytest.mark.parametrize("page", READ, ids=name)
def test_links_lead_somewhere(page):
    assert not broken(page)


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, with `code`\n[a](gone.md) [b](#a-title-with-code) [c](#no-title) [d](https://x.org/y)\n"
    )
    assert broken(page) == ["gone.md", "#no-title"]


def test_every_page_can_be_reached_from_the_readme():
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", (ROOT / "README.md").read_text()))
    assert linked == {page.name for page in PAGES}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory of its own; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def trains_at_once(monkeypatch):
    """`distmeta.train` refuses what it would refuse, and leaves an untrained run."""

    def train(config=None, *, resume=False, show=None, **sections):
        config = config_of(config, sections)
        run = small.checkpoint_of(Path(config.run.dir), config.data.path, eval={"baselines": False})
        distmeta.evaluate(run, episodes=2).save(run)
        (run / "metrics.jsonl").write_text('{"step": 1, "outer_loss": 1.0}\n')
        return distmeta.Run(run)

    monkeypatch.setattr("distmeta.drive.train.train", train)


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code_and_commands(page, place, trains_at_once):
    run_page(page, place)


@pytest.mark.long
def test_the_page_on_python_with_a_real_run(place):
    run_page(ROOT / "docs" / "python.md", place)


def run_page(page, place):
    """A block that begins with a comment like `# mine/half.py` is also that file."""
    if page.name == "python.md":
        exec(blocks(ROOT / "docs" / "tutorial.md", "python")[0], {})  # reviews.csv
    namespace = {"__name__": page.stem}
    for code in blocks(page, "python"):
        file = re.match(r"# ([\w/]+\.py)\n", code)
        if file:
            (place / file[1]).parent.mkdir(parents=True, exist_ok=True)
            (place / file[1]).write_text(code)
        for run in re.findall(r'[(]"(runs/\w+)"', code):  # what the command before it would have left, but untrained
            if not (place / run).exists():
                small.checkpoint_of(place / run, place / "reviews.csv")
        exec(compile(code, page.name, "exec"), namespace)
    for test in [value for key, value in namespace.items() if key.startswith("test_")]:
        test()
    for command in commands(page):
        accept(command)
    for content in blocks(page, "yaml"):
        make_config(yaml.safe_load(content))


def commands(page: Path) -> list[list[str]]:
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("distmeta ")]


def accept(words: list[str]) -> None:
    """Raises unless the command line takes the words, and a configuration their recipe and overrides."""
    words = words[2:] if words[0] == "--module" else words  # which stands before the verb
    command, rest = typer.main.get_command(app), list(words)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    with command.make_context(words[0], rest) as context:
        found = context.params
    if words[0] == "submit" and found["verb"] not in ("status", "logs", "stop"):
        small.parsed(found["verb"], tuple(found["words"]))
    if isinstance(found.get("source"), str | None):
        return
    source, overrides = split_source(found["source"])
    if str(source).startswith("runs/"):  # a file that a command before this one writes
        source = None
    load_config(source, overrides)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("trian default", "trian"),
        ("train default inner.steps=few", "inner.steps"),
        ("train default inner.stepz=3", "inner.stepz"),
        ("train default --fast", "--fast"),
        ("bench speed", "speed"),
        ("submit train default inner.lr=-1 --address http://HEAD:8265", "inner.lr"),
    ],
)
def test_a_command_that_would_be_refused_is_found(line, said):
    with pytest.raises(Exception, match=said):
        accept(shlex.split(line))


@pytest.mark.parametrize("words", [("export", "runs/a", "--out", "hub"), ("report", "runs/a")])
def test_a_verb_whose_source_is_a_run_can_be_submitted(words):
    assert small.parsed(words[0], words[1:]) is None


def test_api_is_what_the_docstrings_say():
    made = runpy.run_path(str(ROOT / "docs" / "make_api.py"))["page"]()
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == made, "run python docs/make_api.py"


def test_the_configuration_s_page_is_what_the_fields_say():
    made = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))["page"]()
    page = ROOT / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == made, "run python docs/make_configuration.py"


def test_what_users_call_by_name_has_not_changed_unseen():
    made = runpy.run_path(str(ROOT / "docs" / "make_signatures.py"))["page"]().splitlines()
    recorded = (ROOT / "docs" / "signatures.txt").read_text(encoding="utf-8").splitlines()
    changed = [line for line in difflib.unified_diff(recorded, made, lineterm="", n=0) if not line.startswith("@@")]
    assert not changed, "if users are meant to see this change: python docs/make_signatures.py\n" + "\n".join(changed)


def test_measured_figures_are_what_the_records_say(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from make_results import wrong
    from measured.reading import record

    assert list(wrong()) == []
    monkeypatch.setitem(record("letters")["base"][0], "mean", 0.123)
    assert [line.split(":")[0] for line in wrong()] == ["docs/algorithms.md", "docs/llm.md", "README.md"]


def test_no_record_names_a_place_of_the_machine_that_made_it():
    records = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert len(records) > 50
    place = re.compile(r"(?<![\w.])/(home|root|tmp|work|mnt|Users|var)/")
    assert [file.name for file in records if place.search(file.read_text(encoding="utf-8"))] == []


def test_the_wheel_holds_what_the_package_needs_and_nothing_else(tmp_path):
    if find_spec("setuptools") is None or find_spec("pip") is None:
        pytest.skip("the wheel is built with pip and setuptools, which are not both in this environment")
    copy = tmp_path / "source"  # a build leaves files beside what it builds
    copy.mkdir()
    for part in ("pyproject.toml", "README.md", "LICENSE", "distmeta", "tests", "benchmarks"):
        (copy / part).symlink_to(ROOT / part)
    build = [sys.executable, "-m", "pip", "wheel", str(copy), "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, "--quiet", "--no-index"], check=True, capture_output=True, timeout=240)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {file for file in archive.namelist() if ".dist-info/" not in file}
    package = ROOT / "distmeta"
    wanted = {p for p in package.rglob("*") if p.suffix in (".py", ".yaml", ".html", ".jinja", ".typed")}
    assert held == {p.relative_to(ROOT).as_posix() for p in wanted}
    assert {"distmeta/py.typed", "distmeta/runs/report/page.html", "distmeta/recipes/default.yaml"} <= held
