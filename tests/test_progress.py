"""What a person sees of a run while it goes on."""

import json
import time

import small

from distmeta.runs import progress


def test_a_log_line_is_one_line_in_a_file_and_follows_the_meta_step_it_speaks_of(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "POLL_S", 0.02)
    config = small.config()
    for name in ("metrics.jsonl", "log.txt"):
        (tmp_path / name).touch()
    long = "evaluating " + "word " * 60
    with progress.Display(config, show=True) as display:
        display.follow(tmp_path)
        record = {"step": config.outer.steps, "outer_loss": 1.0, "query_accuracy": 0.5}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        (tmp_path / "log.txt").write_text(long + "\n")
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("] ")[1].split()[0] for line in lines] == ["run", "step", "evaluating"]
    assert lines[-1].endswith(long)
