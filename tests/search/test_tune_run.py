"""`distmeta tune`, in its smallest form; test_tune_search.py has the rest, for minutes."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from distmeta.config import load_config

sys.path.insert(0, str(Path(__file__).parent))
import searches


@pytest.mark.slow
def test_a_search_ends_with_its_table_and_a_recipe(words_csv, tmp_path):
    rates = [0.5, 0.02]
    search = searches.start(
        tmp_path, words_csv, space={"inner.lr": {"grid": rates}}, searcher="grid", scheduler="none", rivals=[],
        max_concurrent=2,
    ).finished(300)  # fmt: skip
    assert [row["params"]["inner.lr"] for row in search.trials] == rates
    assert all(row["status"] == "completed" for row in search.trials)
    best = max(search.trials, key=lambda row: row["value"])
    assert load_config(search.path / "best.yaml").inner.lr == best["params"]["inner.lr"]
    assert "tune" not in yaml.safe_load((search.path / "best.yaml").read_text())
    assert pq.read_table(search.path / "results.parquet").num_rows == 2
    assert (search.path / "report.html").is_file() and list((search.path / "figures").glob("*.png"))
