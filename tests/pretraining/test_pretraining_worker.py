"""The pretraining loop: the loss is its formula, perplexity falls, ranks agree, a run that is continued is the same."""

import json
import shutil

import numpy as np
import pytest
import small
import torch

import distmeta
from distmeta.config import dump_config
from distmeta.errors import InputError
from distmeta.models.build import build_model
from distmeta.pretraining.batches import NOT_PREDICTED, Batches, predicted, summed_loss
from distmeta.pretraining.corpus import build_corpus, open_corpus
from distmeta.pretraining.model import build_language_model, objective_of
from distmeta.pretraining.worker import PretrainingDiverged, learn, transformers_tokenizer
from distmeta.runs import checkpoint, interrupt
from distmeta.runs.journal import Journal
from distmeta.tasks.build import build_store
from distmeta.tasks.store import open_store
from distmeta.tasks.tokenizer import special_ids

STEPS = 24


def configured(architecture="bert", **sections):
    short = {
        "pretrain": {"steps": STEPS, "batch_size": 12, "lr": 0.01, "every": 8, "validation_rows": 64},
        "run": {"checkpoint_every": 8, "timeout_s": 60},
    }
    return small.config(None, architecture, **small.merge(short, sections))


def corpus_of(config):
    return build_corpus(config, objective_of(config.model, "auto"))


def run_alone(config, place):
    place.mkdir(parents=True, exist_ok=True)
    learn(config, place, corpus_of(config), 0, 1, torch.device("cpu"))
    return place


def records(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def weights(run):
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run_alone(configured(), tmp_path_factory.mktemp("masked") / "run")


def test_a_run_that_is_asked_to_leave_saves_that_step_and_ends_with_the_same_bytes(undisturbed, tmp_path, monkeypatch):
    def write(journal, record):
        recorded(journal, record)
        if record["step"] in (5, 18):
            (tmp_path / interrupt.LEAVE).touch()

    recorded = Journal.write
    monkeypatch.setattr(Journal, "write", write)
    for last in (6, 19):  # the request is seen in the step after, and 6 and 19 are no multiples of checkpoint_every
        run_alone(configured(), tmp_path)
        assert checkpoint.step_of(checkpoint.newest_whole(tmp_path)) == last == records(tmp_path)[-1]["step"]
        assert not (tmp_path / "model").exists()
        interrupt.driving(tmp_path)
    run_alone(configured(), tmp_path)
    assert records(tmp_path) == records(undisturbed) and weights(tmp_path) == weights(undisturbed)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return run_alone(configured("llama"), tmp_path_factory.mktemp("causal") / "run")


def built(config):
    corpus = open_corpus(corpus_of(config))
    words = special_ids(corpus.tokenizer)
    model = build_language_model(config.model, corpus.objective, words.vocab_size, words.pad, 0)
    return model, Batches(corpus, transformers_tokenizer(corpus, config, model), 0.15, 0)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_loss_is_its_formula_and_transformers_own(architecture):
    """Over what is to be predicted, -log of the softmax at the token; unpadded rows one by one give the same."""
    model, batches = built(configured(architecture))
    causal = architecture == "gpt2"
    batch = batches.of_step(1, 12)
    with torch.no_grad():
        found = float(summed_loss(model, batch, causal))
        reference = 0.0
        for ids, mask, labels in zip(batch.ids, batch.mask, batch.labels):
            length = int(mask.sum())
            logits = model(input_ids=ids[None, :length]).logits[0].double().log_softmax(-1)
            for at in range(length):
                wanted = int(labels[at])
                if wanted != NOT_PREDICTED and not (causal and at == 0):
                    reference -= float(logits[at - 1 if causal else at, wanted])
        own = model(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels).loss
    assert found == pytest.approx(reference, rel=1e-5)
    assert found / predicted(batch, causal) == pytest.approx(float(own), rel=1e-5)


def test_masks_are_berts_and_hide_no_special_token():
    """15% of the tokens are to be predicted; of these 80% are masked, 10% random, 10% as they were."""
    _, batches = built(configured())
    of = [batches.of_step(step, 200) for step in range(1, 6)]
    whole = [batches.corpus.row(i) for i in batches.corpus.rows["train"]]
    known = {tuple(row) for row in whole}
    hidden = masked = kept = tokens = 0
    special = torch.tensor(batches.tokenizer.all_special_ids)
    for batch in of:
        chosen = batch.labels != NOT_PREDICTED
        assert not torch.isin(batch.labels[chosen], special).any() and not (chosen & (batch.mask == 0)).any()
        restored = torch.where(chosen, batch.labels, batch.ids)
        assert all(tuple(row[:n].tolist()) in known for row, n in zip(restored, batch.mask.sum(1).tolist()))
        hidden += int(chosen.sum())
        masked += int((batch.ids[chosen] == batches.tokenizer.mask_token_id).sum())
        kept += int((batch.ids[chosen] == batch.labels[chosen]).sum())
        tokens += int((batch.mask.bool() & ~torch.isin(restored, special)).sum())
    assert hidden / tokens == pytest.approx(0.15, abs=0.015)
    assert masked / hidden == pytest.approx(0.8, abs=0.04) and kept / hidden == pytest.approx(0.1, abs=0.04)


def test_a_pass_takes_every_row_once():
    _, batches = built(configured("gpt2"))
    rows, size = len(batches.corpus.rows["train"]), 50
    steps = -(-2 * rows // size)
    lengths = [batches.of_step(step, size).mask.sum(1) for step in range(1, steps + 1)]
    both = torch.cat(lengths)[: 2 * rows]
    expected = sorted(len(batches.corpus.row(i)) for i in range(rows))
    first, second = both[:rows].tolist(), both[rows:].tolist()
    assert sorted(first) == sorted(second) == expected
    ids = torch.cat([batches.of_step(s, rows).ids.sum(1) for s in (1, 2)])
    assert ids[:rows].tolist() != ids[rows:].tolist() and sorted(ids[:rows].tolist()) == sorted(ids[rows:].tolist())


@pytest.mark.parametrize("name", ["undisturbed", "causal"])
def test_perplexity_falls_and_the_run_tells_of_it(name, request):
    run = request.getfixturevalue(name)
    report = json.loads((run / "pretraining.json").read_text())
    for split in ("train", "validation"):
        loss = report[split]["loss"]
        assert loss["after"] < loss["before"] - 0.25
        assert report[split]["perplexity"]["after"] == pytest.approx(np.exp(loss["after"]))
    vocabulary = len(json.loads((run / "model" / "tokenizer.json").read_text())["model"]["vocab"])
    assert report["validation"]["perplexity"]["before"] == pytest.approx(vocabulary, rel=0.2)  # knows nothing yet
    found = records(run)
    assert [r["step"] for r in found] == list(range(1, STEPS + 1))
    assert found[-1]["tokens_seen"] == report["tokens_seen"] > found[0]["tokens_seen"] > 0
    assert found[-1]["validation"]["loss"] == pytest.approx(report["validation"]["loss"]["after"])
    assert found[0]["lr"] == 0 and max(r["lr"] for r in found) == pytest.approx(0.01)


def test_a_run_cut_off_and_continued_is_the_undisturbed_one(undisturbed, tmp_path):
    """From step 16, a half-written checkpoint and a record too many beside it."""
    cut = tmp_path / "run"
    shutil.copytree(undisturbed, cut)
    shutil.rmtree(cut / "model")
    (cut / "pretraining.json").unlink()
    (cut / "checkpoints" / f"step-{STEPS:06d}" / "optimizer.safetensors").write_bytes(b"half")
    run_alone(configured(), cut)
    assert "continuing from step-000016" in (cut / "log.txt").read_text()
    assert records(cut) == records(undisturbed)
    assert weights(cut) == weights(undisturbed)
    assert (cut / "pretraining.json").read_text() == (undisturbed / "pretraining.json").read_text()


@pytest.mark.long
def test_two_ranks_under_ray_are_one_to_rounding(undisturbed, tmp_path):
    """`distmeta pretrain` as a user runs it, a rank's rows in parts, against the one rank of this process."""
    config = configured(pretrain={"micro_batch": 4}, run={"name": "tiny"})
    (tmp_path / "tiny.yaml").write_text(dump_config(config))
    done = small.cli("pretrain", "tiny.yaml", "--json", cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    printed, run = json.loads(done.stdout), tmp_path / "runs" / "tiny-pretrain"
    assert printed["model"] == str(run / "model") and config.cluster.workers == 2
    for noise in ("Warning", "WARNING", "Traceback", "(pid=", "deprecat", "INFO"):
        assert noise not in done.stderr
    one, two = records(undisturbed), records(run)
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-6)
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-5)
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], abs=2e-4)
    assert [r["tokens_seen"] for r in two] == [r["tokens_seen"] for r in one]
    assert printed["validation"]["loss"]["after"] == pytest.approx(one[-1]["validation"]["loss"], abs=2e-4)
    refused = small.cli("pretrain", "tiny.yaml", "pretrain.lr=0.1", "--resume", cwd=tmp_path)
    assert refused.returncode == 2 and "--resume: pretrain.lr is 0.1 but" in refused.stderr


@pytest.mark.parametrize("name", ["undisturbed", "causal"])
def test_the_model_loads_in_transformers_and_here(name, request):
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    run = request.getfixturevalue(name)
    kind, architecture = (AutoModelForCausalLM, "llama") if name == "causal" else (AutoModelForMaskedLM, "bert")
    model, loading = kind.from_pretrained(run / "model", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    text = "it is very quiet and quite small so far"
    inputs = tokenizer(text, return_tensors="pt")
    assert tokenizer.decode(inputs["input_ids"][0]) == f"[CLS] {text} [SEP]"
    if name == "causal":
        assert tokenizer.eos_token == "[SEP]" and model.config.eos_token_id == tokenizer.eos_token_id
    else:
        assert tokenizer.mask_token == "[MASK]"
    config = small.config(None, architecture, model={"pretrained": str(run / "model")})
    store = open_store(build_store(config.data, config.task, config.model))
    assert store.vocab_size == len(tokenizer)
    task_model = build_model(config, store.vocab_size, store.pad_id, len(store.labels))
    inner = dict(model.base_model.named_parameters())
    mine = {n.removeprefix("backbone."): w for n, w in task_model.named_parameters() if n.startswith("backbone.")}
    assert mine and all(torch.equal(w.squeeze(0), inner[n]) for n, w in mine.items() if n in inner)
    assert sum(n in inner for n in mine) > len(mine) / 2


def test_pretraining_goes_on_from_a_pretrained_model(undisturbed, tmp_path):
    config = configured(model={"pretrained": str(undisturbed / "model")}, pretrain={"steps": 2, "warmup": 0})
    report = json.loads((run_alone(config, tmp_path / "run") / "pretraining.json").read_text())
    before = json.loads((undisturbed / "pretraining.json").read_text())
    assert report["validation"]["loss"]["before"] == pytest.approx(before["validation"]["loss"]["after"], abs=1e-4)


def test_a_loss_that_leaves_the_finite_numbers_is_named(tmp_path):
    with pytest.raises(PretrainingDiverged, match=r"step \d+: loss .* lower pretrain.lr"):
        run_alone(configured(pretrain={"lr": 1e30, "clip": 1e30, "warmup": 0}), tmp_path / "run")


def test_tasks_are_not_scored_on_a_pretraining_run(undisturbed):
    with pytest.raises(InputError, match="of a pretraining run, which knows no task"):
        checkpoint.load(undisturbed)


def test_more_ranks_than_rows_are_refused():
    with pytest.raises(InputError, match="pretrain.batch_size = 1 is less than cluster.workers = 2"):
        distmeta.pretrain(configured(pretrain={"batch_size": 1}))
