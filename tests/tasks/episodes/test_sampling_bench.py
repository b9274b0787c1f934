"""`distmeta bench sampling`: what it says of padding and of the object store is so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small

from distmeta.bench.sampling import padding_share, plain_config
from distmeta.tasks.episodes import Episode


def test_padding_is_counted_over_all_tokens() -> None:
    """A row of 1 token and one of 3, as support and as query: 2 of 6 in one batch."""
    rows = small.rows([2], vocabulary=50, classes=2)[0]
    rows = type(rows)(np.arange(5, 9, dtype=np.int32), np.array([0, 1, 4]), rows.labels, rows.rows)
    found = padding_share([Episode(0, "task", ("a", "b"), rows, rows)], small.config(), 0)
    assert found["one_batch_a_set"] == pytest.approx(1 / 3)
    assert found["micro_batches_a_set"] == 1  # nothing to gain
    assert found["by_length"] == found["one_batch_a_set"]


@pytest.mark.long
def test_the_command_measures_rates_and_shows_shared_memory(tmp_path: Path) -> None:
    done = small.cli("bench", "sampling", "--seconds", "0.1", "--json", "--out", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert json.loads((tmp_path / "r.json").read_text()) == found
    alone, hop = found["one_process"], found["object_store"]
    assert alone["episodes_per_s"] > alone["collated_per_s"] > 0
    assert hop["writeable_arrays"] == 0 and hop["arrays"] == 2 * 8 * 8
    assert all("plasma" in place for place in hop["memory_they_lie_in"])
    assert hop["without_copy"]["learner_cpu_us_per_episode"] > 0


def test_the_plain_data_are_of_64_tokens(tmp_path: Path) -> None:
    from distmeta.tasks import build_store, check_feasible, open_store

    config = plain_config(tmp_path, classes=30, rows=20)
    store = open_store(build_store(config.data, config.task, config.model))
    check_feasible(store, config.task)
    assert (np.diff(store.offsets) == 64).all() and store.rows == 600
