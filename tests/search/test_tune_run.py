"""`distmeta tune`, in its smallest form; test_tune_search.py has the rest, for minutes."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from distmeta.cli import app
from distmeta.config import load_config
from distmeta.search import Search

sys.path.insert(0, str(Path(__file__).parent))
import searches


@pytest.mark.usefixtures("ray")
def test_a_search_ends_with_its_table_and_a_recipe(words_csv, tmp_path, monkeypatch):
    searches.write(tmp_path, words_csv, space={"inner.lr": {"grid": [0.5]}}, scheduler="none", rivals=[])
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["tune", "tiny.yaml", "--run-dir", "search", "--json"])
    assert shown.exit_code == 0, shown.output[-3000:]
    search = Search(tmp_path / "search", "accuracy")
    assert [trial["number"] for trial in json.loads(shown.stdout)["trials"]] == [t["number"] for t in search.trials]
    (row,) = search.trials
    assert row["params"]["inner.lr"] == 0.5 and row["status"] == "completed" and row["value"] >= 0
    assert load_config(search.path / "best.yaml").inner.lr == 0.5
    assert "tune" not in yaml.safe_load((search.path / "best.yaml").read_text())
    assert pq.read_table(search.path / "results.parquet").num_rows == 1
    assert (search.path / "report.html").is_file() and list((search.path / "figures").glob("*.png"))

    def no_cluster(config):
        raise AssertionError("a search that has ended needs no Ray")

    monkeypatch.setattr("distmeta.drive.cluster.ray_cluster", no_cluster)
    before = (search.path / "best.yaml").read_bytes()
    again = CliRunner().invoke(app, ["tune", "tiny.yaml", "--run-dir", "search", "--json", "--resume"])
    assert again.exit_code == 0, again.output[-3000:]
    assert json.loads(again.stdout) == json.loads(shown.stdout)
    assert (search.path / "best.yaml").read_bytes() == before
