"""outer.keep_base: the gradient of the divergence from the pretrained base is that of transformers' own model."""

import json
from pathlib import Path

import numpy as np
import pytest
import ranks
import small
import torch
import torch.nn.functional as F
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from distmeta.config import make_config
from distmeta.drive.train import prepare_store
from distmeta.errors import InputError
from distmeta.learner.kept import TEXTS, KeptBase, check, read_text
from distmeta.learner.worker import learn
from distmeta.models.backbone import set_attention
from distmeta.models.build import build_model
from distmeta.models.layers import give_task_axis
from distmeta.runs import checkpoint
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

SHAPES = {
    "text": ({"family": "text_to_text", "shots": 2, "queries": 3}, {"answer_tokens": 6}),
    "letters": ({"labels": "letters", "shots": 2, "queries": 2}, {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    small.decoder(folder / "m")
    small.write_domains(folder / "letters")
    rows = [{"input": f"{'a' * t} {i}", "target": f"b{i}", "task": f"t{t}"} for t in range(6) for i in range(8)]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "letters").rename(folder / "letters.csv")
    (folder / "other.txt").write_text("\n".join(f"another line {'x' * i}" for i in range(7)))
    return folder


def configured(folder, kind="text", **sections):
    task, model = SHAPES[kind]
    base = {
        "task": task, "model": {"max_tokens": 40, "pretrained": str(folder / "m"), **model},
        "inner": {"adapt": "all", "steps": 1, "lr": 0.01},
        "outer": {"keep_base": {"weight": 0.3}, "base": "train", "steps": 2, "meta_batch_size": 2},
        "eval": {"baselines": False, "episodes": 2},
    }  # fmt: skip
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values} if isinstance(values, dict) else values
    return small.config(folder / ("text.jsonl" if kind == "text" else "letters.csv"), **base)


def made(config):
    """The model in double precision, and values that are not the base's."""
    store = open_store(prepare_store(config))
    model = build_model(config, store.vocab_size, store.pad_id, 1 if config.task.family == "text_to_text" else 2)
    model = model.double()
    generator = torch.Generator().manual_seed(0)
    meta = {**model.fast, **model.shared}
    meta = {n: v.detach() + 0.05 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in meta.items()}
    return store, model, meta


def reference(folder, meta, rows, weight):
    """The mean over the rows' tokens by transformers' own model: the value, and its gradient by our names."""
    base = AutoModelForCausalLM.from_pretrained(folder / "m", attn_implementation="sdpa").double()
    give_task_axis(base)  # whose norms are float64 too
    names = {f"model.{n.removeprefix('backbone.')}" if n.startswith("backbone.") else "lm_head.weight": n for n in meta}
    leaves = {theirs: meta[ours].clone().requires_grad_() for theirs, ours in names.items()}
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for ids in rows:
        ids = torch.tensor([ids])
        ours = functional_call(base, leaves, (ids,), tie_weights=False).logits[0, :-1].log_softmax(-1)
        with torch.no_grad():
            theirs = base(ids).logits[0, :-1].log_softmax(-1)
        total = total + F.kl_div(ours, theirs, reduction="sum", log_target=True)
        tokens += len(ours)
    value = total / tokens
    grads = torch.autograd.grad(weight * value, list(leaves.values()))
    return float(value.detach()), dict(zip(names.values(), grads, strict=True))


@pytest.mark.parametrize("kind", ["text", "letters", "file"])
def test_the_gradient_is_that_of_the_divergence_of_transformers_own_model(kind, folder):
    keep = {"weight": 0.3} | ({"path": str(folder / "other.txt")} if kind == "file" else {})
    config = configured(folder, "text" if kind == "file" else kind, outer={"keep_base": keep})
    store, model, meta = made(config)
    episodes = [sample_episode(store, config.task, 0, "train", i) for i in range(2)]
    grads = {name: torch.zeros_like(value) for name, value in meta.items()}
    set_attention(model.backbone, "exact")  # in float64, the fused form misreads a mask of float32
    kept = KeptBase(model, config, store.pad_id, torch.device("cpu"))
    total = kept.add(grads, meta, episodes)
    expected, sums = 0.0, {name: torch.zeros_like(value) for name, value in meta.items()}
    for episode in episodes:
        rows = episode.query if kind != "file" else kept.rows_of(episode)
        each = [rows.tokens[a:b].tolist() for a, b in zip(rows.offsets, rows.offsets[1:], strict=False)]
        value, found = reference(folder, meta, each, 0.3)
        expected += value
        sums = {name: sums[name] + found[name] for name in sums}
    assert total == pytest.approx(expected, rel=1e-9) and total > 0.01
    for name, value in sums.items():
        torch.testing.assert_close(grads[name], value, rtol=1e-8, atol=1e-12)
    if kind == "file":
        assert len(rows.labels) == TEXTS and len(read_text(config).labels) == 7


def test_it_is_nothing_at_the_base_and_adds_up_over_ranks(folder):
    config = configured(folder, inner={"adapt": "lora"}, outer={"base": "freeze"})
    store, model, meta = made(config)
    kept = KeptBase(model, config, store.pad_id, torch.device("cpu"))
    episodes = [sample_episode(store, config.task, 0, "train", i) for i in range(4)]

    def of(values, episodes):
        grads = {name: torch.zeros_like(value) for name, value in meta.items()}
        return kept.add(grads, values, episodes), grads

    total, grads = of({**model.fast, **model.shared}, episodes)
    assert total == pytest.approx(0, abs=1e-12) and all(float(g.abs().max()) < 1e-9 for g in grads.values())
    whole, halves = of(meta, episodes), [of(meta, episodes[:2]), of(meta, episodes[2:])]
    assert whole[0] == pytest.approx(halves[0][0] + halves[1][0])
    for name, value in whole[1].items():
        torch.testing.assert_close(value, halves[0][1][name] + halves[1][1][name])


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("algorithm", ["in_context", "reptile"])
def test_a_run_records_it_and_stays_nearer_to_its_base(algorithm, folder, tmp_path):
    inner = {"adapt": "lora", "steps": int(algorithm != "in_context")}
    last = {}
    for weight in (1e-6, 30.0):
        config = configured(
            folder, algorithm=algorithm, inner=inner,
            outer={"keep_base": {"weight": weight}, "base": "freeze", "steps": 4, "lr": 0.02},
        )  # fmt: skip
        (tmp_path / str(weight)).mkdir()
        learn(config, tmp_path / str(weight), prepare_store(config), [], 0, 1, torch.device("cpu"))
        lines = (tmp_path / str(weight) / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line)["kept_kl"] for line in lines]
        assert found[0] == pytest.approx(0, abs=1e-6) and len(found) == 4
        last[weight] = found[-1]
    assert 0 < last[30.0] < 0.5 * last[1e-6]


def test_ranks_share_it(folder, tmp_path):
    """As a mean over a meta-step's texts, whoever draws them: two ranks end where one does."""
    keep = {"weight": 0.3, "path": str(folder / "other.txt")}
    config = configured(folder, outer={"keep_base": keep, "steps": 3, "lr": 0.01})
    ends = {world: tmp_path / f"{world}" for world in (1, 2)}
    ranks.run(
        str(Path(__file__).with_name("kept_cases.py")),
        [(world, (tmp_path / f"store{world}", end, config.model_dump_json())) for world, end in ends.items()],
        tmp_path,
    )
    one, two = (checkpoint.load(end).meta for end in ends.values())
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=2e-5)  # of 3e-2 that they move
    kl = {w: [json.loads(line)["kept_kl"] for line in (end / "metrics.jsonl").open()] for w, end in ends.items()}
    assert kl[2] == pytest.approx(kl[1], rel=1e-4, abs=1e-7) and kl[1][-1] > 1e-5


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"task": {"family": "domain", "labels": "head"}}, "has a head of its own"),
        ({"model": {"pretrained": None}}, "needs model.pretrained"),
        ({"algorithm": "fine_tune"}, "algorithm = fine_tune"),
        ({"outer": {"privacy": {"noise": 1, "clip": 1, "delta": 1e-3}}}, "outer.privacy"),
    ],
)
def test_where_it_has_no_meaning_it_is_refused(sections, line, folder):
    given = configured(folder).model_dump()
    for name, values in sections.items():
        given[name] = {**given[name], **values} if isinstance(values, dict) else values
    if "task" in sections:
        given["task"]["prompt"] = "plain"
    with pytest.raises(InputError, match=f"outer.keep_base.*{line}"):
        make_config(given)


def test_a_file_without_texts_is_refused_at_the_start(folder, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(InputError, match="no text in it"):
        check(configured(folder, outer={"keep_base": {"weight": 1, "path": str(tmp_path / "empty.txt")}}))
    assert np.all(np.diff(read_text(configured(folder, outer={"keep_base": {
        "weight": 1, "path": str(folder / "other.txt")}})).offsets) > 1)  # fmt: skip
