"""Checkpoints are whole or absent, and say what is wrong with them."""

import json
import os

import pytest
import small
import torch

from distmeta.errors import InputError
from distmeta.runs import checkpoint


@pytest.fixture
def run(tmp_path):
    write(tmp_path / "run", 1)
    write(tmp_path / "run", 2)
    return tmp_path / "run"


def write(run, step):
    tokenizer = run.parent / "tokenizer.json"
    tokenizer.write_text("{}")
    meta = {"a": torch.arange(6.0).view(2, 3) + step, "b": torch.tensor(1.5)}
    path = run / "checkpoints" / f"step-{step:06d}"
    checkpoint.save(path, small.config(), {"step": step}, meta, {"exp_avg/a": meta["a"] * 2}, tokenizer)
    return path


def test_round_trip(run):
    loaded = checkpoint.load(run, optimizer=True)
    assert loaded.step == 2 and loaded.path.name == "step-000002"
    assert torch.equal(loaded.meta["a"], torch.arange(6.0).view(2, 3) + 2)
    assert loaded.meta["b"].shape == ()
    assert torch.equal(loaded.optimizer["exp_avg/a"], loaded.meta["a"] * 2)
    assert loaded.config == small.config()
    assert checkpoint.load(loaded.path).optimizer == {}


def test_steps_are_numbers_and_other_names_are_not_checkpoints(run):
    for name in ("step-1000000", "step-999999", ".tmp-step-000003-1", "step-old"):
        (run / "checkpoints" / name).mkdir()
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints_of(run)] == [1000000, 999999, 2, 1]


def test_prune_keeps_the_newest_and_never_the_last_whole_one_away(run):
    write(run, 3)
    (run / "checkpoints" / ".tmp-step-000009-1").mkdir()
    (run / "checkpoints" / "step-000009").mkdir()  # damaged; the run went back to step 3
    checkpoint.prune(run, 1, 3)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000003", "step-000009"]
    said = []
    assert checkpoint.newest_whole(run, said.append) == run / "checkpoints" / "step-000003"
    assert len(said) == 1 and "step-000009" in said[0] and "manifest.json is missing" in said[0]


def test_a_write_that_fails_leaves_what_was_there(run, monkeypatch):
    before = checkpoint.resolve(run)
    content = (before / "meta.safetensors").read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write(run, 2)
    with pytest.raises(OSError, match="no space left"):
        write(run, 3)
    assert checkpoint.resolve(run) == before and (before / "meta.safetensors").read_bytes() == content
    assert len(list((run / "checkpoints").iterdir())) == 2


def test_of_two_processes_that_write_one_new_directory_the_first_is_kept(tmp_path, monkeypatch):
    """Neither draft is the other's, and what was written first is not replaced."""
    out = tmp_path / "out"

    def fill(draft):
        (draft / "file").write_text("second")
        with monkeypatch.context() as other:  # a process that begins and ends meanwhile
            other.setattr(os, "getpid", lambda: 1)
            checkpoint.write_directory(out, lambda draft: (draft / "file").write_text("first"))
        assert (draft / "file").read_text() == "second"

    with pytest.raises(InputError, match="another process has just written it"):
        checkpoint.write_directory(out, fill)
    assert (out / "file").read_text() == "first" and checkpoint.damage(out) is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_the_manifest_is_written_last(run, monkeypatch):
    """Whatever is there when the process dies, a directory without a manifest is not whole."""
    order = []
    original = checkpoint.write_text
    monkeypatch.setattr(
        checkpoint,
        "write_text",
        lambda path, text: (order.append(sorted(p.name for p in path.parent.iterdir())), original(path, text)),
    )
    path = write(run, 4)
    assert order == [sorted(p.name for p in path.iterdir() if p.name != "manifest.json")]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda p: (p / "manifest.json").write_text("{"), "manifest.json is not readable"),
        (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json is not readable"),
        (lambda p: (p / "manifest.json").write_text('{"files": {"a": 1}}'), "manifest.json is not readable"),
        (lambda p: (p / "manifest.json").write_text('{"files": {}}'), "manifest.json names no files"),
        (lambda p: (p / "meta.safetensors").write_bytes(b""), "meta.safetensors has 0 bytes"),
        (lambda p: (p / "tokenizer.json").write_text("[]"), "tokenizer.json was changed"),
        (lambda p: (p / "config.yaml").unlink(), "config.yaml is missing"),
    ],
)
def test_damage_is_named(run, spoil, expected):
    path = checkpoint.resolve(run)
    assert checkpoint.damage(path) is None
    spoil(path)
    assert expected in checkpoint.damage(path)
    with pytest.raises(InputError, match=f"damaged checkpoint: {expected}"):
        checkpoint.load(path)
    assert checkpoint.load(run).step == 1


def test_what_is_no_checkpoint_is_one_line(tmp_path, run):
    (tmp_path / "file").write_text("x")
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    for path, expected in [
        (tmp_path / "absent", "no such run or checkpoint"),
        (tmp_path / "file", "not a run"),
        (tmp_path, "not a run"),
        (tmp_path / "new", "no whole checkpoint in it. It has none yet"),
    ]:
        with pytest.raises(InputError, match=expected) as caught:
            checkpoint.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_configuration_that_does_not_parse_is_one_line(tmp_path):
    for content in ("a: [", "inner: {lr: -1}", "- 1"):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(InputError) as caught:
            checkpoint.read_config(tmp_path / "config.yaml")
        assert "\n" not in str(caught.value)


def test_one_process_holds_a_run(tmp_path):
    with (
        checkpoint.only_holder(tmp_path / ".lock", 0),
        pytest.raises(InputError, match=rf"process {os.getpid()} on .+ is training this run"),
        checkpoint.only_holder(tmp_path / ".lock", 0.3),
    ):
        raise AssertionError
    with checkpoint.only_holder(tmp_path / ".lock", 0):
        pass


def test_write_text_is_whole(tmp_path):
    checkpoint.write_text(tmp_path / "a.json", json.dumps({"a": 1}))
    checkpoint.write_text(tmp_path / "a.json", json.dumps({"a": 2}))
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def rewrite_state(path, change):
    """A checkpoint whose state.json is another, with a manifest that fits."""
    state = change(json.loads((path / "state.json").read_text()))
    (path / "state.json").write_text(json.dumps(state))
    (path / "manifest.json").unlink()
    files = {f.name: {"bytes": f.stat().st_size, "sha256": checkpoint._sha256(f)} for f in path.iterdir()}
    (path / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


def test_a_checkpoint_that_names_no_format_opens_with_the_first_and_its_run_keeps_it(run, tmp_path):
    new = checkpoint.load(run)
    rewrite_state(new.path, lambda state: {k: v for k, v in state.items() if k != "format"})
    old = checkpoint.load(run)
    assert (new.format, old.format) == (checkpoint.FORMAT, 1)
    assert all(torch.equal(old.meta[name], value) for name, value in new.meta.items())
    assert checkpoint.load(write(run, 3)).format == 1
    assert checkpoint.load(write(tmp_path / "another", 1)).format == checkpoint.FORMAT


def test_a_checkpoint_of_a_format_to_come_is_refused_by_name(run):
    rewrite_state(checkpoint.resolve(run), lambda state: state | {"format": 99})
    with pytest.raises(InputError, match="format 99 by a newer distmeta.*upgrade"):
        checkpoint.load(run)
