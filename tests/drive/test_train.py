"""`distmeta train` through Ray: the same numbers for any samplers, nearly so for any ranks; what it leaves."""

import json
import os
import shutil

import pytest
import small
import torch
import yaml
from ray.exceptions import ActorDiedError, RaySystemError

import distmeta
from distmeta.config import load_config, make_config
from distmeta.drive.cluster import TrainingError, ray_cluster
from distmeta.drive.train import run_group
from distmeta.errors import InputError
from distmeta.learner.worker import learn
from distmeta.runs.directory import check_resumable, run_directory
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.sampler import start_samplers


@pytest.fixture(scope="module")
def setting(undisturbed):
    """The undisturbed run's configuration, as a dictionary."""
    return yaml.safe_load((undisturbed.cwd / "tiny.yaml").read_text())


def run(setting, folder, **changes):
    return distmeta.train(small.merge(setting, {"run": {"dir": str(folder)}, **changes}))


def test_the_terminal_and_the_run_directory(undisturbed, words_csv):
    """What a person sees, and every file of the design."""
    assert "unseen tasks" in undisturbed.stdout and "meta_trained" in undisturbed.stdout
    assert "20 meta-steps, 80 episodes; results in runs/tiny" in undisturbed.stdout
    by_the_clock = (" step ", "] still ")
    assert sum(not any(x in line for x in by_the_clock) for line in undisturbed.stderr.splitlines()) <= 12
    for noise in ("Warning", "WARNING", "Traceback", "(pid=", "deprecat", "INFO"):
        assert noise not in undisturbed.stderr + undisturbed.stdout
    there = {p.name for p in undisturbed.run.iterdir() if not p.name.startswith(".")}
    assert there == {
        "config.yaml", "environment.json", "metrics.jsonl", "evaluation.json", "evaluation_details.json", "log.txt",
        "tasks.json", "prompt.txt", "checkpoints", "export", "report.html", "figures",
    }  # fmt: skip
    assert sorted(p.name for p in (undisturbed.run / "checkpoints").iterdir()) == ["step-000015", "step-000020"]
    environment = json.loads((undisturbed.run / "environment.json").read_text())
    assert {"torch", "ray", "deepspeed", "transformers", "distmeta"} <= set(environment["versions"])
    assert load_config(str(undisturbed.run / "config.yaml")).data.path == str(words_csv)


def test_metrics_and_evaluation(undisturbed):
    found = distmeta.Run(undisturbed.run)
    assert [r["step"] for r in found.metrics] == list(range(1, 21))
    assert found.metrics[-1]["tasks_seen"] == 80
    for record in found.metrics:
        assert len(record["inner_loss"]) == 3
        assert all(record[key] >= 0 for key in ("wait_s", "inner_s", "aggregate_s", "checkpoint_s"))
        assert record["inner_lr"] == 0.2 and 0 <= record["query_accuracy"] <= 1
    assert set(found.evaluation) == {"meta_trained", "no_adaptation", "fine_tuned", "multi_task", "prototypes"}
    accuracy = found.evaluation["meta_trained"]["accuracy"]
    assert accuracy["low"] <= accuracy["mean"] <= accuracy["high"] and accuracy["episodes"] == 8
    assert len(accuracy["curve"]) == 3
    assert found.checkpoint.name == "step-000020"


@pytest.mark.long
def test_samplers_change_no_number_and_runs_repeat(undisturbed, setting, ray, tmp_path):
    """Two ranks with 2 samplers (in the undisturbed run) and with 3: bit-identical, weights and all."""
    three = run(setting, tmp_path / "three", sampling={"actors": 3})
    assert small.records(three.path) == undisturbed.records
    assert small.weights(three.path) == undisturbed.weights
    assert three.evaluation == json.loads((undisturbed.run / "evaluation.json").read_text())


def test_one_rank_and_two_agree_to_rounding(undisturbed, setting, one_rank, tmp_path):
    config = make_config(small.merge(setting, {"eval": {"baselines": False}}))
    learn(config, tmp_path, build_store(config.data, config.task, config.model), [], 0, 1, torch.device("cpu"))
    first, other = small.records(tmp_path), undisturbed.records
    for key in ("outer_loss", "grad_norm"):
        assert first[0][key] == pytest.approx(other[0][key], rel=1e-6)
    assert [r["outer_loss"] for r in first] == pytest.approx([r["outer_loss"] for r in other], abs=1e-4)
    losses = [r["outer_loss"] for r in first]
    assert abs(losses[0] - losses[-1]) > 1e-2  # there was something to differ in


@pytest.mark.long
def test_a_finished_run_can_be_resumed(undisturbed, setting, ray, tmp_path):
    """By one rank more, with its samplers gone: nothing is trained, the evaluation is made again."""
    shutil.copytree(undisturbed.run, tmp_path / "again")
    content = small.merge(setting, {"run": {"dir": str(tmp_path / "again")}, "sampling": {"actors": 0}})
    found = distmeta.train(content, resume=True)
    assert small.records(found.path) == undisturbed.records
    assert small.weights(found.path) == undisturbed.weights
    assert found.evaluation == json.loads((undisturbed.run / "evaluation.json").read_text())


@pytest.mark.long
def test_meta_validations_beside_two_ranks_find_what_the_ranks_do(ray, words_csv, tmp_path):
    found = []
    for beside in (0, 1):
        done = distmeta.train(
            small.config(
                words_csv, cluster={"workers": 2}, outer={"steps": 5}, run={"dir": str(tmp_path / str(beside))},
                eval={"every": 2, "beside": beside, "validation_episodes": 5, "baselines": False},
            )
        )  # fmt: skip
        scores = {r.get("validated", r["step"]): r["validation"] for r in done.metrics if "validation" in r}
        found.append((scores, (done.checkpoint / "meta.safetensors").read_bytes()))
    assert found[0] == found[1] and list(found[0][0]) == [2, 4, 5]


def test_an_error_of_a_learner_is_one_line_and_leaves_nothing(setting, ray, tmp_path):
    with pytest.raises(InputError, match="model.config.hidden_sise"):
        run(setting, tmp_path / "runs" / "bad", model={"config": {"hidden_sise": 16}}, cluster={"workers": 1})
    assert not (tmp_path / "runs").exists()


def test_a_machine_too_busy_for_ray_to_start_is_one_line(monkeypatch):
    def init(**_):
        raise RaySystemError("Failed to connect to GCS.\nPlease check if the GCS server is running")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    with (
        pytest.raises(TrainingError, match=r"Ray did not start on this machine \(.*connect to GCS") as caught,
        ray_cluster(small.config()),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_lost_cluster_is_one_line(monkeypatch, tmp_path):
    class Trainer:
        def __init__(self, *_, **__):
            pass

        def fit(self):
            raise ActorDiedError()

    monkeypatch.setattr("ray.train.torch.TorchTrainer", Trainer)
    with pytest.raises(TrainingError, match=f"controller has gone.* in {tmp_path}; --resume"):
        run_group(print, small.config(), tmp_path, {}, size=1, gpus=0, restarts=0)


@pytest.mark.parametrize(("gpus", "before", "after"), [(0, None, None), (1, None, "1"), (1, "0", "0")])
def test_ranks_on_gpus_are_watched_unless_told_otherwise(monkeypatch, tmp_path, gpus, before, after):
    name = "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR"
    monkeypatch.setenv(name, before or "")  # so that it is put back
    if before is None:
        monkeypatch.delenv(name)
    seen = []

    class Trainer:
        def __init__(self, *_, **__):
            seen.append(os.environ.get(name))

        def fit(self):
            pass

    monkeypatch.setattr("ray.train.torch.TorchTrainer", Trainer)
    run_group(print, small.config(), tmp_path, {}, size=1, gpus=gpus, restarts=0)
    assert seen == [after]


def test_a_cluster_too_small_is_refused(setting, ray, tmp_path):
    with pytest.raises(InputError, match="need 64.5 CPU"):
        run(setting, tmp_path / "big", cluster={"workers": 64}, outer={"meta_batch_size": 64})
    assert not (tmp_path / "big").exists()


def test_resuming_as_another_run_is_refused(undisturbed):
    before = {p: p.read_bytes() for p in undisturbed.run.rglob("*") if p.is_file()}
    done = small.command("train", "tiny.yaml", "inner.lr=0.1", "--resume", cwd=undisturbed.cwd)
    assert done.returncode == 2
    assert "--resume: inner.lr is 0.1 but" in done.stderr.splitlines()[-1]
    assert {p: p.read_bytes() for p in undisturbed.run.rglob("*") if p.is_file()} == before


def test_what_may_change_between_a_run_and_its_continuation(undisturbed, setting):
    store = undisturbed.run / json.loads((undisturbed.run / "environment.json").read_text())["store"]

    def resumable(**changes):
        from distmeta.config import make_config

        check_resumable(undisturbed.run, make_config(small.merge(setting, changes)), store)

    resumable()
    resumable(cluster={"workers": 1}, sampling={"actors": 0}, eval={"episodes": 30}, outer={"steps": 40},
              run={"checkpoint_every": 1, "keep": 5}, deepspeed={"zero_optimization": {"stage": 2}})  # fmt: skip
    for changes, says in (
        ({"outer": {"lr": 0.5}}, "outer.lr is 0.5 but"),
        ({"run": {"seed": 1}}, "run.seed is 1 but"),
        ({"deepspeed": {"gradient_clipping": 0.5}}, "deepspeed.gradient_clipping is 0.5 but"),
        ({"data": {"text": "label"}}, "data.text is 'label' but"),
    ):
        with pytest.raises(InputError, match=says):
            resumable(**changes)
    with pytest.raises(InputError, match="the data or its tokenizer is not what"):
        check_resumable(undisturbed.run, load_config(str(undisturbed.run / "config.yaml")), store.with_name("other"))


def test_run_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny, store = small.config(run={"name": "a"}), tmp_path

    def claim(config=tiny, resume=False):
        with run_directory(config, resume, store) as (path, fresh):
            assert fresh
            (path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
            (path / "environment.json").write_text(json.dumps({"store": str(store)}))
        return path.name

    def resumed(config):
        with run_directory(config, True, store) as (path, fresh):
            return path.name, fresh

    assert [claim(), claim(), claim(small.config(run={"name": "a-b"}))] == ["a", "a-2", "a-b"]
    assert resumed(tiny) == ("a-2", False)  # the newest of that name; a-b is another run
    own = small.config(run={"dir": "mine"})
    assert claim(own) == "mine"
    with pytest.raises(InputError, match="run.dir = mine: not empty"):
        claim(own)
    assert resumed(own) == ("mine", False)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".lock").touch()  # a driver killed before it had written its configuration
    assert claim(small.config(run={"dir": "begun"}), resume=True) == "begun"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        claim(small.config(run={"dir": "file"}))


def test_a_directory_is_one_process_s_alone_and_keeps_its_checkpoints(tmp_path, monkeypatch):
    """Claimed at the same instant: the next number, or a refusal; a refusal takes away what it wrote, and only that."""
    monkeypatch.chdir(tmp_path)
    named, placed = small.config(run={"name": "a"}), small.config(run={"dir": "mine"})
    with run_directory(named, False, tmp_path) as (first, _), run_directory(named, False, tmp_path) as (second, _):
        assert (first.name, second.name) == ("a", "a-2")
    with (
        run_directory(placed, False, tmp_path),
        pytest.raises(InputError, match="run.dir = mine: not empty"),
        run_directory(placed, False, tmp_path),
    ):
        raise AssertionError("two processes in one directory")
    for name, late in (("early", False), ("late", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".notes").write_text("a person's")
        with (
            pytest.raises(InputError, match="a sampler has no store"),
            run_directory(small.config(run={"dir": name}), False, tmp_path) as (path, _),
        ):
            (path / "config.yaml").touch()
            if late:
                (path / "checkpoints" / "step-000005").mkdir(parents=True)
            raise InputError("a sampler has no store")
        assert (tmp_path / name / ".notes").read_text() == "a person's"
        assert (tmp_path / name / "config.yaml").exists() == late
        assert (tmp_path / name / "checkpoints" / "step-000005").exists() == late


def test_samplers_at_one_rank(undisturbed, setting, ray, one_rank, tmp_path):
    """None and two sampler actors feeding the learner's loop in this process."""
    config = make_config(small.merge(setting, {"outer": {"steps": 8}, "eval": {"baselines": False}}))
    store = build_store(config.data, config.task, config.model)
    found = []
    for actors in (0, 2):
        samplers = start_samplers(store, config.task, config.run.seed, actors)
        path = tmp_path / str(actors)
        path.mkdir()
        learn(config, path, store, samplers, 0, 1, torch.device("cpu"))
        found.append((small.records(path), (path / "checkpoints/step-000008/meta.safetensors").read_bytes()))
        for sampler in samplers:
            ray.kill(sampler)
    assert found[0] == found[1]
