"""Pages of runs: whole in themselves, true to the run's files, safe with any name, at any moment of a run."""

import dataclasses
import html.parser
import json
import re
import shutil

import numpy as np
import pytest
import small
from safetensors.numpy import save_file
from typer.testing import CliRunner

from distmeta.cli import app
from distmeta.errors import InputError
from distmeta.runs import checkpoint, directory, report
from distmeta.runs.report import compare
from distmeta.runs.report.figures import layer_of, smooth
from distmeta.runs.report.files import read_run
from distmeta.runs.report.page import Page
from distmeta.runs.report.sections import rates as rates_of
from distmeta.runs.report.sections import sections, state
from distmeta.search import report as of_search

HOSTILE = '<script>alert("x")</script> $a_b$ & \'"'


class Outline(html.parser.HTMLParser):
    """What a browser would see of a page: tags with attributes, table cells, ids."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.cell = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self.cell)
            self.cell = None


def made(place, **changes):
    """A run as its files alone: six meta-steps, evaluated; `changes` are files' contents, None leaves one out."""
    config = small.config(place / "words.csv", inner={"learn_lr": "per_layer_step"}, run={"name": "tiny"})
    score = {"mean": 0.9, "low": 0.8766, "high": 0.9235, "episodes": 8, "curve": [0.5, 0.75, 0.9]}
    other = {"mean": 0.4, "low": 0.35, "high": 0.45, "episodes": 8}
    per_class = {name: {"precision": 0.5, "recall": 0.25, "f1": 1 / 3} for name in (HOSTILE, "yes")}
    files = {
        "environment.json": {
            "command": ["/bin/distmeta", "train", "a b.yaml"], "python": "3", "versions": {"torch": "2"},
        },
        "evaluation.json": {"meta_trained": {"accuracy": score}, "fine_tuned": {"accuracy": other}},
        "evaluation_details.json": {
            "settings": {"split": "test", "episodes": 8, "seed": 0, "inner_steps": 2},
            "meta_trained": {
                "diverged": 0, "per_class": per_class,
                "examples": [
                    {"task": "good", "text": HOSTILE, "label": "yes", "predicted": "no", "confidence": 0.8765},
                ],
                "confusion": {"labels": [HOSTILE, "yes"], "rows_are_labels": [[3, 1], [0, 4]]},
                "per_task": {HOSTILE: {"accuracy": {**other, "episodes": 5}}, "good": {"accuracy": score}},
            },
        },
        "tasks.json": {
            "splits": {name: {"rows": 6, "tasks": {HOSTILE: 6}} for name in ("train", "validation", "test")},
            "repeated": {"test in train": 2},
        },
        **changes,
    }  # fmt: skip
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.yaml").write_text(checkpoint.dump_config(config))
    records = [
        {"step": s, "tasks_seen": 4 * s, "outer_loss": 1 / s, "query_accuracy": s / 9, "inner_lr": 0.1,
         "grad_norm": 1.0, "wait_s": 0.25, "inner_s": 1.5, "aggregate_s": 0.25, "checkpoint_s": 0.0, "comm_s": 0.125}
        for s in range(1, 7)
    ]  # fmt: skip
    lines = "".join(json.dumps(record) + "\n" for record in records) + '{"step": 7, "tasks'  # it is being written
    for name, content in {"metrics.jsonl": lines, **files}.items():
        if content is not None:
            (place / name).write_text(content if isinstance(content, str) else json.dumps(content))

    def fill(draft):
        save_file(
            {"log_lr.backbone.encoder.layer.0.x": np.log([0.1, 0.3]), "other": np.ones(2)}, draft / "meta.safetensors"
        )

    checkpoint.write_directory(place / "checkpoints" / "step-000006", fill)
    return place


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return report.write(made(tmp_path_factory.mktemp("report") / "run"))


def test_it_needs_nothing_else(page):
    text = page.read_text()
    outline = Outline(text)
    assert not [tag for tag, _ in outline.tags if tag in ("script", "link", "iframe", "object", "img")]
    for tag, attrs in outline.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "style"):
                assert "//" not in value or value.startswith("data:"), (tag, value)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert {a or b for a, b in used} <= set(ids)


def test_a_hostile_name_is_a_name(page):
    text = page.read_text()
    assert "<script" not in text
    assert any(HOSTILE in row for row in Outline(text).rows)


def test_figures_say_what_they_show_in_words_and_exist_as_files(page):
    figures = [attrs for tag, attrs in Outline(page.read_text()).tags if tag == "svg"]
    assert len(figures) == 5 and all(f["role"] == "img" and len(f["aria-label"]) > 20 for f in figures)
    names = {file.name for file in (page.parent / "figures").iterdir()}
    assert names == {f"{name}.png" for name in ("result", "learning", "adaptation", "rates", "time")}
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in (page.parent / "figures").iterdir())


def test_colours_are_the_page_s(page):
    svg = re.findall(r"<svg.*?</svg>", page.read_text(), re.DOTALL)
    for figure in svg:
        assert "currentColor" in figure and "var(--series-0)" in figure
        assert not re.search(r"#(?:000000|ffffff|24292e|1f5fa8)\b", figure)


def test_numbers_are_those_of_the_files(page):
    rows = Outline(page.read_text()).rows
    assert ["meta-trained", "0.900 [0.877, 0.923]"] in rows and ["fine tuned", "0.400 [0.350, 0.450]"] in rows
    assert ["accuracy", "0.500", "0.750", "0.900"] in rows
    assert ["backbone.encoder.layer.0.x", "0.1", "0.3"] in rows
    assert rows.index([HOSTILE, "0.400 [0.350, 0.450]", "5"]) < rows.index(["good", "0.900 [0.877, 0.923]", "8"])
    assert ["inner loops and meta-gradients", "inner_s", "9.0", "75.0%", "1500.0"] in rows
    assert ["together", "", "12.0", "100.0%", "2000.0"] in rows  # comm_s is a part of another
    assert [HOSTILE, "3", "1"] in rows and [HOSTILE, "0.500", "0.250", "0.333"] in rows
    text = page.read_text()
    assert "The meta-trained model adapts better than every baseline: 0.900 against 0.400" in text
    assert "distmeta train &#39;a b.yaml&#39;" in text and "6 of 20" in text


def test_a_report_says_when_how_long_of_what_commit_and_with_how_much_memory(tmp_path):
    about = {"started": "2026-11-29T10:00:00+00:00", "ended": "2026-11-29T11:02:05+00:00", "continued": 0,
             "commit": "0123abcd+", "peak_mb": {"resident": 812.4}}  # fmt: skip
    run = made(tmp_path / "run", **{"environment.json": about})
    rows = Outline(report.write(run).read_text()).rows
    assert ["started", "2026-11-29 10:00:00+00:00; it took 1 h 2 min"] in rows and ["commit", "0123abcd+"] in rows
    assert ["peak memory", "812 MB of the first rank"] in rows and ["meta-learnt numbers", "4"] in rows
    assert ["starting, evaluation, export", "", "3713.0", "", ""] in rows  # all of the time
    (run / "environment.json").write_text(json.dumps({**about, "continued": 1}))
    rows = Outline(report.write(run).read_text()).rows
    assert ["started", "2026-11-29 10:00:00+00:00"] in rows  # a run that lay still in between took nobody knows what


def test_a_run_that_is_continued_keeps_the_day_of_its_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no repository
    config = small.config(tmp_path / "words.csv")
    monkeypatch.setattr(directory, "now", lambda: "2026-11-29T10:00:00+00:00")
    directory.write_setting(tmp_path, config, tmp_path / "store")
    directory.note(tmp_path, ended="2026-11-29T10:05:00+00:00", peak_mb={"resident": 1.0})
    run = read_run(tmp_path)
    assert run.took == 300 and run.environment["commit"] is None and run.environment["peak_mb"] == {"resident": 1.0}
    monkeypatch.setattr(directory, "now", lambda: "2026-11-30T10:00:00+00:00")
    directory.write_setting(tmp_path, config, tmp_path / "store")
    run = read_run(tmp_path)
    assert run.environment["started"] == "2026-11-29T10:00:00+00:00" and run.environment["continued"] == 1
    assert run.took is None and "ended" not in run.environment


def test_runs_side_by_side_with_what_differs(tmp_path):
    one, two = (made(tmp_path / name) for name in ("one", "two"))
    (two / "evaluation.json").unlink()
    text = (one / "config.yaml").read_text().replace("learn_lr: per_layer_step", "learn_lr: none")
    (two / "config.yaml").write_text(text)
    shown = CliRunner().invoke(app, ["report", str(one), str(two)])
    assert shown.exit_code == 0 and "0.900 [0.877, 0.923]" in shown.stdout
    records = compare.compared([one, two])
    assert [record["settings"] for record in records] == [
        {"inner.learn_lr": "per_layer_step"}, {"inner.learn_lr": "none"},
    ]  # fmt: skip
    assert records[0]["scores"]["accuracy"]["mean"] == 0.9 and records[1]["scores"] is None
    shown = compare.table(records)
    assert [list(column.cells) for column in shown.columns][1:] == [
        ["0.900 [0.877, 0.923]", "-"], ["6", "6"], ["12", "12"], ["per_layer_step", "none"],
    ]  # fmt: skip


def test_the_same_run_gives_the_same_page(page):
    before = page.read_bytes()
    assert report.write(page.parent).read_bytes() == before


@pytest.mark.parametrize(
    ("absent", "titles"),
    [
        ("evaluation.json", {"Result", "Adaptation to a new task", "By task", "By class"}),
        ("evaluation_details.json", {"By task", "By class"}),
        ("metrics.jsonl", {"Learning curves", "Where the time went"}),
        ("environment.json", {"Environment"}),
        ("tasks.json", {"Splits"}),
    ],
)
def test_what_has_no_data_is_left_out_with_a_reason(tmp_path, absent, titles):
    run = read_run(made(tmp_path / "run", **{absent: None}))
    page = Page("run", state(run), sections(run))
    assert {section.title for section in page.absent} == titles and all(section.reason for section in page.absent)
    assert len(page.shown) + len(page.absent) == 11
    assert ("unfinished, 6 of 20 meta-steps" in page.about) == (absent == "evaluation.json")


def test_a_run_that_has_only_begun_and_one_that_ended_early(tmp_path):
    run = made(tmp_path / "run", **{"metrics.jsonl": None, "evaluation.json": None, "evaluation_details.json": None})
    shutil.rmtree(run / "checkpoints")
    text = report.write(run).read_text()
    shown, told = text.split("Not in this report")
    assert "unfinished, 0 of 20" in shown
    titles = ["What was run", "Splits", "Environment", "How to reproduce it"]
    assert re.findall(r"<h2 id=.*?>(.*?)</h2>", shown) == titles
    assert "<li>Where the time went: no meta-step is recorded yet (no metrics.jsonl)</li>" in told
    (run / "error.json").write_text(json.dumps({"kind": "input", "message": "outer loss nan <b>"}))
    assert "ended early at meta-step 0 of 20: outer loss nan &lt;b&gt;" in report.write(run).read_text()


def test_without_baselines(tmp_path):
    score = {"mean": 0.9, "low": 0.88, "high": 0.92, "episodes": 8, "curve": [0.5, 0.9]}
    text = report.write(
        made(tmp_path / "run", **{"evaluation.json": {"meta_trained": {"accuracy": score}}})
    ).read_text()
    assert "No baselines were scored" in text and "meta-trained: 0.900" in text


def test_a_real_run_has_its_report(undisturbed):
    text = (undisturbed.run / "report.html").read_text()
    rows = Outline(text).rows
    for name, scores in json.loads((undisturbed.run / "evaluation.json").read_text()).items():
        shown = [f"{s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for s in scores.values()]
        assert [name.replace("meta_trained", "meta-trained").replace("_", " "), *shown] in rows
    curves = json.loads((undisturbed.run / "evaluation_details.json").read_text())["meta_trained"]["curves"]
    assert len(curves["accuracy"]["low"]) == 3 and "bands: 95% intervals" in text
    assert {"result.png", "learning.png", "adaptation.png", "time.png"} <= {
        file.name for file in (undisturbed.run / "figures").iterdir()
    }


def test_its_command_runs_from_any_directory(tmp_path, monkeypatch):
    run = made(tmp_path / "a run", **{"environment.json": {"command": ["distmeta", "train"], "directory": "/there"}})
    monkeypatch.chdir(tmp_path)
    text = report.write("a run").read_text()
    assert f"&#39;{run.resolve()}/config.yaml&#39; --run-dir again" in text and "As it was started, in /there:" in text


def test_a_search(tmp_path):
    sweep = made(tmp_path / "sweep", **{"evaluation.json": None, "evaluation_details.json": None})
    for number, (lr, value) in enumerate([(0.5, 0.7), (0.02, 0.8), (0.1, None)]):
        trial = sweep / "trials" / f"trial-{number:04d}"
        trial.mkdir(parents=True)
        about = {"number": number, "kind": "search", "params": {"inner.lr": lr, "inner.steps": 2}}
        status = {"status": "failed" if value is None else "completed", "reason": "" if value else HOSTILE}
        (trial / "trial.json").write_text(json.dumps({**about, **status}))
        curve = {"mean": [0.3, value], "low": [0.2, 0.1], "high": [0.4, 0.9]}
        record = {"step": 4, "validation_curves": {"accuracy": curve}}
        (trial / "metrics.jsonl").write_text(json.dumps(record if value else {"step": 1}) + "\n")
    assert of_search.is_search(sweep)
    text = of_search.write(sweep).read_text()
    outline = Outline(text)
    assert "Trial 1: meta-validation accuracy 0.800 [0.100, 0.900] after 1 adaptation steps" in text
    assert [row[0] for row in outline.rows if len(row) == 8] == ["trial", "1", "0", "2"]
    assert any(f"failed: {HOSTILE}" in row for row in outline.rows) and "<script" not in text
    assert sum(tag == "svg" for tag, _ in outline.tags) == 3
    for trial in (sweep / "trials").iterdir():
        (trial / "metrics.jsonl").unlink()
    assert "Best trial: no trial has been scored" in of_search.write(sweep).read_text()


def test_a_path_that_is_no_run_is_one_line(tmp_path, page):
    for path, why in ((tmp_path / "none", "no such directory"), (tmp_path, "no config.yaml")):
        with pytest.raises(InputError, match=why):
            report.write(path)
    done = small.command("report", "none", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no such directory" in done.stderr
    done = small.command("report", str(page.parent), "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout) == {"report": str(page)}
    (page.parent / "evaluation.json").write_text("{")
    with pytest.raises(InputError, match=r"evaluation\.json: not readable"):
        report.write(page.parent)


def test_rates_of_every_kind_have_a_row_and_a_dot(tmp_path):
    rates = {"head_bias": np.array([0.1, 0.2, 0.4]), "head_log_scale": np.array(0.3)}
    for kind, found, shown in (
        ("per_parameter", rates, ["head_log_scale", "0.3", "0.3", "0.3"]),
        ("per_layer_step", {"head_bias": np.array([0.1, 0.3])}, ["head_bias", "0.1", "0.3"]),
        ("per_step", {"": np.array([0.1, 0.3])}, ["all parameters", "0.1", "0.3"]),
        ("scalar", {"": np.array(0.1)}, ["all parameters", "0.1"]),
    ):
        run = read_run(made(tmp_path / kind))
        inner = run.config.inner.model_copy(update={"learn_lr": kind})
        run = dataclasses.replace(run, config=run.config.model_copy(update={"inner": inner}), rates=found)
        picture, folded = rates_of(run).blocks
        (table,) = folded.blocks
        assert list(table.rows[-1]) == shown and len(table.head) == len(shown)
        points = sum(line.get_marker() == "o" and len(line.get_xdata()) for line in picture.figure.axes[0].lines)
        assert points == (2 if kind != "scalar" else 1)


def test_smoothing_and_layers():
    assert smooth(np.array([1.0, 2.0, 6.0])) == pytest.approx([1.5, 3.0, 4.0])
    assert smooth(np.full(100, 3.0)) == pytest.approx(np.full(100, 3.0))
    names = ("backbone.encoder.layer.0.a.weight", "backbone.h.11.c_attn.weight", "head_bias", "backbone.wte.weight", "")
    assert [layer_of(name) for name in names] == ["encoder.layer.0", "h.11", "head", "wte", "all parameters"]
