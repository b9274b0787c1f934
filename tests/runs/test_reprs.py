"""What Python and a notebook show of a result: one line, and a table."""

import json

import distmeta


def test_a_run(tmp_path):
    run = distmeta.Run(str(tmp_path))
    assert repr(run) == f"Run({tmp_path}; not evaluated yet)" == run._repr_html_()
    assert run.path == tmp_path
    score = {"mean": 0.5, "low": 0.25, "high": 0.75}
    (tmp_path / "evaluation.json").write_text(json.dumps({"meta_trained": {"accuracy": score}}))
    details = {"settings": {"split": "test", "episodes": 7}}
    (tmp_path / "evaluation_details.json").write_text(json.dumps(details))
    assert repr(run) == (
        f"Run({tmp_path}; Evaluation(test tasks, 7 episodes; accuracy meta_trained 0.500 [0.250, 0.750]))"
    )
    assert "<td>0.500 [0.250, 0.750]</td>" in run._repr_html_()


def test_a_search(tmp_path):
    search = distmeta.Search(str(tmp_path), "accuracy")
    row = {"number": 0, "kind": "search", "params": {"inner.lr": 0.1}, "value": 0.5, "low": 0.25, "high": 0.75,
           "status": "completed", "reason": "", "seconds": 2.0, "adapt_steps": 1, "meta_steps": 9}  # fmt: skip
    search.__dict__["trials"] = [row, row | {"number": 1, "value": None, "status": "failed", "reason": "<no memory>"}]
    assert repr(search) == (
        f"Search({tmp_path}; 2 trials, the best: accuracy 0.500 [0.250, 0.750] by {{'inner.lr': 0.1}})"
    )
    assert "failed: &lt;no memory&gt;" in search._repr_html_()
    search.__dict__["trials"] = [row | {"value": None, "status": "failed"}]
    assert repr(search).endswith("the best: none was scored)")


def test_pretraining_and_a_pipeline(tmp_path):
    assert repr(distmeta.Pretrained(str(tmp_path))).endswith("; not finished yet)")
    summary = {"train": {"perplexity": {"before": 200.0, "after": 35.5}}}
    (tmp_path / "pretraining.json").write_text(json.dumps(summary))
    assert repr(distmeta.Pretrained(tmp_path)) == f"Pretrained({tmp_path}; train perplexity 200.00 -> 35.50)"
    (tmp_path / "pipeline.json").write_text(json.dumps({"corpus": {"state": "done"}, "pretrain": {"state": "skipped"}}))
    assert repr(distmeta.Pipeline(str(tmp_path))) == f"Pipeline({tmp_path}; corpus done, pretrain skipped)"
