"""The command line: quick to start, and one clear line for what it cannot use."""

import json
import resource
import subprocess
import sys

import pytest
import small
from typer.testing import CliRunner

import distmeta
from distmeta.cli import app
from distmeta.config import load_config
from distmeta.errors import InputError

CLI = [sys.executable, "-m", "distmeta.cli"]


def run(*words, cwd=None, stdin=None):
    return subprocess.run([*CLI, *words], capture_output=True, text=True, cwd=cwd, input=stdin, timeout=120)


def test_import_is_light():
    heavy = ("torch", "ray", "deepspeed", "transformers")
    code = f"import sys, distmeta, distmeta.config, distmeta.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_package_offers_its_public_names():
    assert sorted(dir(distmeta)) == sorted([*distmeta.__all__, "__version__"])
    assert all(getattr(distmeta, name).__name__ == name for name in distmeta.__all__)
    from distmeta.drive.train import train

    assert train is distmeta.train


def test_help_is_quick():
    run("--help")  # compiles what is not compiled yet
    best = min(_seconds("--help") for _ in range(3))
    assert best < 1.0


def _seconds(*words):
    """Of a processor, so that other work on the machine does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(*words).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["config", "inner.stpes=3"], "unknown key 'inner.stpes'"),
        (["config", "inner.stpes=3"], "Did you mean 'steps'?"),
        (["config", "outer.steps=many"], "outer.steps = 'many'"),
        (["config", "algorithm=mamll"], "Did you mean 'maml'?"),
        (["config", "architecture=gpt2"], "Did you mean model.architecture?"),
        (["config", "inner.meta_batch_size=3"], "Did you mean outer.meta_batch_size?"),
        (["config", "no-such-recipe"], "no recipe of that name"),
        (["config", "absent.yaml"], "absent.yaml: no such file"),
        (["config", "deepspeed.zero_optimization.stage=7"], "stage"),
        (["config", "outer.until=good"], "accuracy>=0.9"),
        (["config", "outer.until=0.9", "eval.every=0"], "eval.every"),
        (["config", "=3"], "section.key=value"),
    ],
)
def test_unusable_input_is_one_line_and_exit_2(words, expected, tmp_path):
    done = small.command(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_verb_or_option_is_no_traceback(tmp_path):
    for words in (["tarin"], ["config", "--jsno"]):
        done = small.command(*words, cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr and words[-1] in done.stderr


def test_a_key_that_stands_twice_is_refused_with_its_lines(tmp_path):
    (tmp_path / "twice.yaml").write_text("inner:\n  lr: 0.1\n  steps: 2\n  lr: 0.2\n")
    (tmp_path / "section.yaml").write_text("inner: {lr: 0.1}\nouter: {steps: 2}\ninner: {steps: 3}\n")
    for name, reason in (("twice", "line 4: the key 'lr' stands in line 2"), ("section", "line 3: the key 'inner'")):
        with pytest.raises(InputError, match=reason):
            load_config(tmp_path / f"{name}.yaml")


def test_data_in_the_place_of_a_recipe_is_told_where_it_belongs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ok.csv").write_text("text,label,task\n")
    (tmp_path / "folder").mkdir()
    for name in ("ok.csv", "folder"):
        with pytest.raises(InputError, match=f"give data.path={name}$"):
            load_config(name)


def test_the_version_and_help_by_one_letter():
    shown = CliRunner().invoke(app, ["--version"])
    assert shown.exit_code == 0 and shown.stdout.strip() == f"distmeta {distmeta.__version__}"
    for words in (["-h"], ["train", "-h"]):
        assert "Usage" in CliRunner().invoke(app, words).stdout


def test_json_is_one_document_and_config_round_trips(tmp_path):
    printed = small.command("config", "default", "inner.lr=0.05", "--json", cwd=tmp_path)
    assert json.loads(printed.stdout)["inner"]["lr"] == 0.05
    (tmp_path / "mine.yaml").write_text(small.command("config", "inner.lr=0.05", cwd=tmp_path).stdout)
    assert (
        json.loads(small.command("config", "mine.yaml", "--json", cwd=tmp_path).stdout)["inner"]
        == json.loads(printed.stdout)["inner"]
    )


@pytest.mark.parametrize(("words", "show"), [([], True), (["--quiet"], False), (["-q"], False), (["-v"], "steps")])
def test_quiet_and_verbose_reach_the_run(words, show, monkeypatch):
    shown = []
    monkeypatch.setattr("distmeta.drive.train.train", lambda config, resume, show: shown.append(show) or Ended())
    result = CliRunner().invoke(app, ["train", "default", *words])
    assert result.exit_code == 0 and shown == [show]


class Ended:
    """A run that run.max_hours has ended."""

    is_evaluated = False


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("distmeta tr", {"train"}),
        ("distmeta train --re", {"--resume"}),
        ("distmeta train questions_", {"questions_t5"}),
    ],
)
def test_a_shell_completes_verbs_options_and_recipes(line, offers):
    words = line.split()
    environment = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_DISTMETA_COMPLETE": "complete_bash"}
    result = CliRunner().invoke(app, [], prog_name="distmeta", env=environment)
    assert set(result.stdout.split()) == offers
