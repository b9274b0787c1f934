"""What is named on this machine means the same from any directory; what cannot be used is refused before it is used."""

import importlib
import json
import shutil
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

import distmeta
from distmeta.config import DataConfig, ModelConfig, config_of, load_config, with_changes
from distmeta.config.paths import absolute, check_hub
from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt
from distmeta.evaluation.evaluate import evaluate
from distmeta.models.backbone import model_config
from distmeta.runs import checkpoint, report
from distmeta.tasks.readers import find_sources, read_examples
from distmeta.tasks.tokenizer import load_tokenizer


def test_what_exists_is_absolute_and_the_rest_is_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lm").mkdir()
    (tmp_path / "splits.json").write_text("{}")
    keys = ["model.pretrained=lm", "data.path=[a/*.csv, 's3://b/c.csv']", "data.splits=splits.json#k"]
    config = absolute(load_config(None, [*keys, "cluster.storage=shared"]))
    assert config.model.pretrained == str(tmp_path / "lm")
    assert config.data.path == [str(tmp_path / "a/*.csv"), "s3://b/c.csv"]
    assert config.data.splits == f"{tmp_path}/splits.json#k" and config.cluster.storage == f"{tmp_path}/shared"
    assert absolute(config) == config
    assert absolute(load_config(None, ["model.pretrained=owner/name"])).model.pretrained == "owner/name"


@pytest.mark.parametrize("verb", ["pretrain", "pipeline"])
def test_text_that_is_not_there_is_refused_before_anything_is_done(verb, tmp_path):
    keys = [f"pretrain.path={tmp_path}/*.txt", f"run.dir={tmp_path}/run"]
    with pytest.raises(InputError, match=r"\*\.txt: no file matches \(pretrain\.path\)"):
        getattr(distmeta, verb)(load_config("pipeline", keys))
    assert not (tmp_path / "run").exists()


def test_a_path_to_no_model_is_said_to_be_one():
    with pytest.raises(InputError, match="runs/lm/model: no such directory"):
        absolute(load_config(None, ["model.pretrained=runs/lm/model"]))


NOTHING = types.SimpleNamespace(headers={}, request=None)
ANSWERS = {
    "no network": (
        OSError("Name or service not known"),
        "cannot be reached .Name or service not known.*local directory",
    ),
    "no such model": (RepositoryNotFoundError("404", response=NOTHING), "the hub has no model of that name"),
    "terms": (
        GatedRepoError("403", response=NOTHING),
        "accept its terms at https://huggingface.co/owner/lm, and set HF",
    ),
    "offline": (OfflineModeIsEnabled("offline mode is enabled"), "offline mode is enabled"),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("load", [load_tokenizer, lambda name: model_config(ModelConfig(pretrained=name), 0, 0)])
def test_a_hub_id_that_cannot_be_had_is_refused_after_one_question(answer, load, monkeypatch):
    asked = []

    def ask(url, timeout):
        asked.append((url, timeout <= 10))
        raise ANSWERS[answer][0]

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    with pytest.raises(InputError, match=f"model.pretrained = owner/lm: .*{ANSWERS[answer][1]}") as caught:
        load("owner/lm")
    assert len(asked) == 1 and asked[0][1] and "\n" not in str(caught.value)


def test_a_hub_id_in_the_cache_asks_nothing(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: f"/cache/{name}/{file}")
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *args, **options: pytest.fail("asked"))
    check_hub("owner/cached")


@pytest.mark.parametrize(
    "override", ["outer.betas=[0.9, 1.5]", "inner.betas=[0.9, 1.0]", "model.lora_targets=(query", f"run.seed={2**64}"]
)
def test_values_that_fail_late_are_refused_by_name(override):
    with pytest.raises(InputError, match=override.split("=")[0]):
        load_config(None, [override])


def read(path, **keys):
    data = DataConfig(**keys)
    return [row for batch in read_examples(find_sources(str(path)), data, "domain") for row in batch.to_pylist()]


def test_a_split_that_begins_later_is_refused_and_not_dropped(tmp_path):
    rows = [{"text": "a", "label": "x", "task": "t"}, {"text": "b", "label": "y", "task": "u", "split": "test"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="line 2: the first row with 'split'"):
        read(file)


def test_two_columns_of_one_name_are_refused(tmp_path):
    columns = [pa.array(["a"]), pa.array(["x"]), pa.array(["t"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, ["text", "label", "task", "text"]), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="2 columns are named 'text'"):
        read(tmp_path / "rows.parquet")


def test_a_configuration_is_named_in_python_by_a_recipe_a_file_or_sections(tmp_path):
    (tmp_path / "mine.yaml").write_text("outer: {steps: 7}")
    assert config_of(None) == config_of("default") == load_config("default")
    assert config_of(tmp_path / "mine.yaml").outer.steps == config_of({"outer": {"steps": 7}}).outer.steps == 7
    assert config_of(load_config("intents")) == config_of("intents")
    over = {"outer": {"steps": 7}}  # laid over each of them, as the command line's overrides are
    for source in (None, "default", load_config("default")):
        assert config_of(source, over) == load_config("default", ["outer.steps=7"])
    algorithm = config_of("default", {"algorithm": "anil"})
    assert algorithm == load_config("default", ["algorithm=anil"]) and algorithm.inner.adapt == "head"
    with pytest.raises(InputError, match=r"the arguments: unknown key 'outer.stps'.*'steps'"):
        config_of("default", {"outer": {"stps": 7}})
    for wrong, reason in (("nothing", "no recipe of that name"), ({"outre": 1}, "outre.*'outer'"), (3, "is int; give")):
        with pytest.raises(InputError, match=reason):
            config_of(wrong)


def test_a_run_is_used_from_any_directory_and_from_another_place(undisturbed, words_csv, tmp_path, monkeypatch):
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(undisturbed.run, copy)
    monkeypatch.chdir(tmp_path)
    of_copy = evaluate("elsewhere/copy", str(words_csv), 4, baselines=False).methods
    assert of_copy["meta_trained"]["accuracy"]["episodes"] == 4
    assert report.write("elsewhere/copy") == Path("elsewhere/copy/report.html")
    rows = [{"text": "red", "label": "yes"}, {"text": "blue", "label": "no"}]
    assert adapt("elsewhere/copy", rows).labels == ["no", "yes"]


def test_a_run_that_has_ended_is_not_begun_again(undisturbed, tmp_path, monkeypatch, capsys):
    """Without Ray, from another directory; a run of which more is asked is continued."""
    copy = tmp_path / "copy"
    shutil.copytree(undisturbed.run, copy)
    monkeypatch.chdir(tmp_path)
    of_run = checkpoint.read_config(copy / "config.yaml")
    config = of_run.model_copy(update={"run": of_run.run.model_copy(update={"dir": "copy"})})

    def begun(*words):
        raise RuntimeError("begun")

    driver, written = importlib.import_module("distmeta.drive.train"), []
    monkeypatch.setattr(driver, "ray_cluster", begun)
    for name in ("export", "report"):
        monkeypatch.setattr(driver, f"write_{name}", lambda *words, name=name: written.append(name))
    run = distmeta.train(config, resume=True, show=True)
    assert written == []
    (copy / "report.html").unlink()  # as where the driver was killed while its learners went on
    distmeta.train(config, resume=True)
    assert written == ["report"]
    shutil.rmtree(copy / "export")
    distmeta.train(config, resume=True)
    assert written == ["report", "export", "report"]
    assert run.path == copy and run.evaluation == json.loads((undisturbed.run / "evaluation.json").read_text())
    assert "has ended; there is nothing to continue" in capsys.readouterr().err
    for changes in ({"outer": {"steps": 21}}, {"eval": {"episodes": 9}}):
        section, keys = next(iter(changes.items()))
        with pytest.raises(RuntimeError, match="begun"):
            distmeta.train(with_changes(config, section, **keys), resume=True)
