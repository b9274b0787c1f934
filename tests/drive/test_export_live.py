"""The export that a run's first rank writes of its own model: what `distmeta export` makes of the checkpoint."""

import pytest
import small
import torch

from distmeta.drive.train import export_live, finish, prepare_store
from distmeta.export import export
from distmeta.learner.worker import learn

CASES = {
    "whole": ("bert", {}),
    "adapter and its base": ("llama", {"inner": {"adapt": "lora"}, "outer": {"base": "freeze"}}),
    "encoder-decoder": ("t5", {"inner": {"adapt": "lora"}}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_live_models_export_is_the_checkpoints(case, words_csv, one_rank, tmp_path):
    architecture, sections = CASES[case]
    short = {"outer": {"steps": 2}, "run": {"checkpoint_every": 2}, "eval": {"episodes": 2}}
    config = small.config(words_csv, architecture, **small.merge(short, sections))
    run = tmp_path / "run"
    run.mkdir()
    model = learn(config, run, prepare_store(config), [], 0, 1, torch.device("cpu"))
    (run / "export").mkdir()
    (run / "export" / "of an earlier end").touch()
    export_live(run, model)
    whole = export.export(run, tmp_path / "out")
    names = {str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file()}
    assert names == {str(f.relative_to(run / "export")) for f in (run / "export").rglob("*") if f.is_file()}
    for name in names - {"manifest.json"}:
        there = (run / "export" / name).read_bytes().replace(str(run / "export").encode(), str(whole).encode())
        assert there == (whole / name).read_bytes(), name


def test_of_a_model_in_parts_the_driver_writes_it(words_csv, one_rank, tmp_path, monkeypatch):
    config = small.config(words_csv, outer={"steps": 1}, run={"checkpoint_every": 1}, eval={"episodes": 2})
    model = learn(config, tmp_path, prepare_store(config), [], 0, 1, torch.device("cpu"))
    model.frozen_shards = object()
    export_live(tmp_path, model)
    assert not (tmp_path / "export").exists()
    monkeypatch.setattr("distmeta.drive.train.write_report", lambda run_dir, display: None)
    finish(tmp_path, None)
    assert (tmp_path / "export" / "model.safetensors").is_file()
