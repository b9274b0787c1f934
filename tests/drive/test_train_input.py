"""Unusable data at `distmeta train`: exit code 2, one line, before Ray is started, and nothing is left."""

import re
import time

import pytest
import small

from distmeta.config import load_config, make_config
from distmeta.config.algorithms import ALGORITHMS, load_algorithm
from distmeta.config.consistency import check_used, learns_only_fast
from distmeta.drive.cluster import check_gpus, check_reachable
from distmeta.drive.train import prepare_store
from distmeta.errors import InputError

GOOD = [f"word{i} number {i},class{i % 6}" for i in range(120)]
CLASSES = ["task.family=classes", "task.ways=2", "task.shots=2", "task.queries=3"]


def csv(*lines, header="text,label"):
    return "\n".join([header, *lines]) + "\n"


CASES = {
    "missing file": ("absent.csv", None, [], "absent.csv: no such file"),
    "empty file": ("a.csv", "", [], "a.csv: the file is empty"),
    "missing column": ("a.csv", csv(*GOOD, header="body,label"), [], "a.csv: no column 'text'"),
    "unparsable line": ("a.jsonl", '{"text": "a", "label": "b"}\n{"text": \n', [], "a.jsonl line 2"),
    "too few examples": ("a.csv", csv(*GOOD), ["task.shots=18"], "has 20 examples"),
    "class in two splits": (
        "a.csv", csv("a b,c1,train", "a c,c1,test", header="text,label,split"), [],
        "class 'c1' is in two splits, train and test",
    ),
    "numeric text": ("a.csv", csv(*(f"{i},c{i % 6}" for i in range(90))), [], "holds numbers"),
    "more ways than classes": ("a.csv", csv(*GOOD), ["task.ways=5"], "task.ways=5 is more than"),
    "no such model": ("a.csv", csv(*GOOD), ["model.pretrained=nowhere"], "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_one_line_and_leaves_nothing(case, tmp_path, monkeypatch):
    name, content, words, expected = CASES[case]
    if content is not None:
        (tmp_path / name).write_text(content)
    monkeypatch.setenv("DISTMETA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # were Ray asked for, this would be the complaint
    began = time.monotonic()
    # transformers reads HF_HUB_OFFLINE when it is imported
    command = small.cli if case == "no such model" else small.command
    done = command("train", f"data.path={name}", *CLASSES, *words, cwd=tmp_path)
    spent = time.monotonic() - began
    assert done.returncode == 2, done.stderr
    (line,) = [text for text in done.stderr.splitlines() if not text.endswith("reading tasks")]
    assert line.startswith("distmeta: ") and expected in line
    assert done.stdout == ""
    assert {p.name for p in tmp_path.iterdir()} <= {name, "cache"}
    assert not list(tmp_path.glob("cache/.*"))  # a store that was begun is taken away again
    assert spent < 10  # half a second where the machine is idle; Ray alone takes longer


def test_a_directory_that_is_no_checkpoint_is_one_line(tmp_path):
    done = small.command("evaluate", ".", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("distmeta: .: not a run (no checkpoints/) and not a checkpoint")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"outer": {"rate_lr": 0.1}}, "outer.rate_lr = 0.1"),
        ({"outer": {"momentum": 0.9}}, "outer.momentum = 0.9"),
        ({"inner": {"momentum": 0.5}}, "inner.momentum = 0.5"),
        ({"inner": {"adam_root": "constant"}}, "inner.adam_root = constant"),
        ({"inner": {"clip_norm": "constant"}}, "inner.clip_norm = constant"),
        ({"inner": {"memory": "unroll", "snapshots": 2}}, "inner.snapshots = 2"),
        ({"algorithm": "reptile", "inner": {"adapt": "head"}}, "outer.base = auto"),
        ({"algorithm": "reptile", "inner": {"adapt": "lora"}, "outer": {"base": "train"}}, "outer.base = train"),
    ],
)  # fmt: skip
def test_what_a_new_run_would_leave_without_effect_is_refused_and_one_that_exists_is_read(sections, key):
    config = small.config(None, **sections)  # what a checkpoint has is read
    with pytest.raises(InputError, match=f"^{re.escape(key)} .* set .*out"):
        check_used(config)


@pytest.mark.parametrize("key", ["task.chunks", "task.chunk_tokens", "task.context_tokens", "data.author"])
def test_sizes_of_documents_are_of_documents(key):
    section, name = key.split(".")
    with pytest.raises(InputError, match=f"{key} = 3 is of task.family=document, and not of domain: leave it out"):
        check_used(make_config({section: {name: 3 if section == "task" else "3"}}))


@pytest.mark.parametrize("key", ["task.shots", "task.queries", "task.least_shots"])
def test_sizes_of_examples_are_not_of_documents(key):
    with pytest.raises(InputError, match=f"{key} = 3 is of tasks with examples"):
        check_used(load_config("documents", [f"{key}=3"]))


def test_no_algorithm_changes_the_task_family():
    with pytest.raises(InputError, match="algorithm = online is defined by task.family=domain"):
        load_config("documents", ["algorithm=online"])


@pytest.mark.parametrize(
    "sections",
    [
        {"outer": {"rate_lr": 0.1}, "inner": {"learn_lr": "scalar"}},
        {"inner": {"adam_root": "constant", "optimizer": "adam", "clip": 1.0, "clip_norm": "constant"}},
        {"outer": {"momentum": 0.9, "optimizer": "sgd"}},
        {"outer": {"momentum": 0.0}, "inner": {"momentum": 0.9}},  # as they are by themselves
        {"inner": {"momentum": 0.5, "optimizer": "momentum"}},
        {"algorithm": "reptile"},
        {"algorithm": "reptile", "inner": {"adapt": "lora"}, "outer": {"base": "freeze"}},
        {"algorithm": "fomaml", "inner": {"adapt": "head"}},
    ],
)
def test_what_has_an_effect_is_accepted(sections):
    check_used(small.config(None, **sections))


def test_modules_and_algorithms_say_the_same_of_what_they_learn():
    for name in ALGORITHMS:
        assert learns_only_fast(name) == getattr(load_algorithm(name), "LEARNS_ONLY_FAST", False)


def test_gpus_that_there_are_not_are_refused_before_ray_starts():
    with pytest.raises(InputError, match="cluster.gpus_per_worker = 64 .* this machine has"):
        check_gpus(small.config(None, cluster={"gpus_per_worker": 64}))


def test_tokens_lie_where_all_nodes_see_them(tmp_path, monkeypatch):
    monkeypatch.delenv("DISTMETA_CACHE", raising=False)
    store = prepare_store(make_config({"cluster": {"storage": str(tmp_path)}}))
    assert store.parent == tmp_path / "cache"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nobody.invalid:6379"])
def test_a_cluster_that_is_not_there_is_one_line_at_once(address):
    began = time.monotonic()
    with pytest.raises(InputError, match=f"cluster.address = {address}: no Ray cluster answers there") as error:
        check_reachable(address)
    assert time.monotonic() - began < 15 and "\n" not in str(error.value)
    check_reachable("auto")


def test_a_model_that_there_is_not_is_one_line_before_anything_is_started(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTMETA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="bertt: not a transformers model type. Did you mean 'bert'"):
        prepare_store(make_config({"model": {"architecture": "bertt"}}))
    with pytest.raises(InputError, match="/no/where: no such directory"):
        prepare_store(make_config({"model": {"pretrained": "/no/where"}}))
    with pytest.raises(InputError, match="task.family = classes needs data.path"):
        prepare_store(make_config({"task": {"family": "classes"}}))


def test_a_mistake_is_said_to_be_where_it_is(tmp_path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("inner: {lr: 0.1}\n")
    bad.write_text("inner: {lr: -0.1}\n")
    with pytest.raises(InputError, match=r"^the command line: inner.lr = -1"):
        load_config(good, ["inner.lr=-1"])
    with pytest.raises(InputError, match=r"^.*bad.yaml: inner.lr = -0.1"):
        load_config(bad, ["outer.lr=0.1"])
    assert load_config(bad, ["inner.lr=0.2"]).inner.lr == 0.2
