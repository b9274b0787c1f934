"""The command line: quick to start, and one clear line for what it cannot use."""

import json
import resource
import subprocess
import sys

import pytest

CLI = [sys.executable, "-m", "distmeta.cli"]


def run(*words, cwd=None, stdin=None):
    return subprocess.run([*CLI, *words], capture_output=True, text=True, cwd=cwd, input=stdin, timeout=120)


def test_import_is_light():
    heavy = ("torch", "ray", "deepspeed", "transformers")
    code = f"import sys, distmeta, distmeta.config, distmeta.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_package_offers_its_public_names_and_their_modules():
    code = (
        "import distmeta; assert sorted(dir(distmeta)) == sorted([*distmeta.__all__, '__version__'])\n"
        "import distmeta.train as t, distmeta.evaluate as e\n"
        "from distmeta.train import TrainingError, train\n"
        "assert t is distmeta.train is t.train is train and t.TrainingError is TrainingError\n"
        "assert e.Evaluation is distmeta.Evaluation and e.evaluate is distmeta.evaluate"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
        (["config", "no-such-recipe"], "no recipe of that name"),
        (["config", "absent.yaml"], "absent.yaml: no such file"),
        (["config", "deepspeed.zero_optimization.stage=7"], "stage"),
        (["config", "outer.until=good"], "accuracy>=0.9"),
        (["config", "outer.until=0.9"], "eval.every"),
        (["config", "=3"], "section.key=value"),
    ],
)
def test_unusable_input_is_one_line_and_exit_2(words, expected, tmp_path):
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_verb_or_option_is_no_traceback():
    for words in (["tarin"], ["config", "--jsno"]):
        done = run(*words)
        assert done.returncode == 2 and "Traceback" not in done.stderr and words[-1] in done.stderr


def test_json_is_one_document_and_config_round_trips(tmp_path):
    printed = run("config", "default", "inner.lr=0.05", "--json")
    assert json.loads(printed.stdout)["inner"]["lr"] == 0.05
    (tmp_path / "mine.yaml").write_text(run("config", "inner.lr=0.05").stdout)
    assert (
        json.loads(run("config", str(tmp_path / "mine.yaml"), "--json").stdout)["inner"]
        == json.loads(printed.stdout)["inner"]
    )
