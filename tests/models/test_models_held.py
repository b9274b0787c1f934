"""A pretrained base in the memory of its files: the numbers of one that is loaded whole, without its memory."""

import pytest
import small
import torch
from safetensors.torch import load_file, save_file

from distmeta.algorithms import fomaml, maml
from distmeta.drive.train import prepare_store
from distmeta.export import export
from distmeta.learner.gradients import meta_gradients
from distmeta.models import backbone as backbones
from distmeta.models import sharding
from distmeta.models.build import build_model
from distmeta.models.held import hold, memory_of_files, stored_dtype
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

LETTERS = {"labels": "letters", "shots": 2, "queries": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A llama whose weights lie in many bfloat16 files, the same with shared embeddings, and a GPT-2."""
    folder = tmp_path_factory.mktemp("held")
    small.write_domains(folder / "data.csv")
    for name in ("llama", "tied", "gpt2"):
        place = small.in_files(folder / name, "gpt2" if name == "gpt2" else "llama", name != "llama")
        assert len(list(place.glob("*.safetensors"))) >= 4
    return folder


def configured(folder, name, stage, **sections):
    base = {
        "algorithm": "maml", "task": LETTERS, "inner": {"adapt": "lora", "steps": 2, "lr": 0.1},
        "model": {"max_tokens": 60, "pretrained": str(folder / name)}, "outer": {"base": "freeze"},
        "deepspeed": {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}},
    }  # fmt: skip
    return small.config(folder / "data.csv", **small.merge(base, sections))


def built(config, shards=None):
    store = open_store(prepare_store(config))
    return build_model(config, store.vocab_size, store.pad_id, 2, shards), store


def gradients(model, config, store, algorithm):
    generator = torch.Generator().manual_seed(0)  # B of LoRA starts at zero: nothing would reach A
    values = {**model.fast, **model.shared}
    meta = {n: v.detach() + 0.02 * torch.randn(v.shape, generator=generator) for n, v in values.items()}
    episodes = [sample_episode(store, config.task, 0, "train", i) for i in range(2)]
    with sharding.together(model):
        return meta_gradients(model, meta, algorithm, config, store, episodes, 1, torch.device("cpu"))


def own_bytes(model):
    """Of a model's parameters, those that lie in no file's memory."""
    in_files = memory_of_files()
    return sum(p.numel() * p.element_size() for p in model.parameters() if not in_files(p))


CASES = {
    "exact": ("llama", maml, {}),
    "shared embeddings": ("tied", fomaml, {}),
    "gpt2": ("gpt2", maml, {}),
    "in part": ("llama", fomaml, {"inner": {"adapt": r"layers\.1\.mlp"}}),
    "bfloat16": ("llama", maml, {"model": {"dtype": "bfloat16"}}),
    "head": ("llama", maml, {"task": {"labels": "head"}, "model": {"head": "linear"}}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("in_shards", [False, True])
def test_the_numbers_are_those_of_a_base_that_is_loaded_whole(case, in_shards, folder, one_group, monkeypatch):
    name, algorithm, sections = CASES[case]
    config = configured(folder, name, 3, **sections)
    shards = sharding.Shards(torch.device("cpu"), 60) if in_shards else None
    monkeypatch.setattr("distmeta.models.language.loading_dtype", lambda config: torch.float32)
    monkeypatch.setattr("distmeta.models.build.loading_dtype", lambda config: torch.float32)
    whole, store = built(configured(folder, name, 0, **sections))
    monkeypatch.undo()
    held, _ = built(config, shards)
    found = [gradients(model, config, store, algorithm) for model in (whole, held)]
    # the frozen linear layer of a shard is another function than torch's, which rounds otherwise
    off = 3e-2 if case == "bfloat16" else 1e-5
    torch.testing.assert_close(torch.tensor(found[1][1]), torch.tensor(found[0][1]), rtol=off, atol=off)
    for name, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], value, rtol=off, atol=off * float(value.abs().max()))
    if in_shards:
        copied = [s.part for s in shards.weights if s.part.dim() == 1 and not memory_of_files()(s.part)]
        assert not copied
        assert shards.alive == 0 and shards.peak <= max(s.shape.numel() * s.part.element_size() for s in shards.weights)


@pytest.mark.parametrize(("stage", "dtype"), [(3, "float32"), (3, "bfloat16"), (0, "bfloat16")])
def test_a_frozen_base_takes_no_memory_of_its_own(stage, dtype, folder):
    config = configured(folder, "llama", stage, model={"dtype": dtype})
    model, _ = built(config)
    learnt = sum(value.numel() * 4 for value in model.fast.values())
    norms = sum(p.numel() * 4 for p in model.parameters() if p.dim() == 1)
    assert own_bytes(model) <= learnt + norms
    assert sum(p.numel() for p in model.parameters()) > 3 * learnt / 4


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_reads_its_own_part_of_every_large_weight(rank, folder, one_group, monkeypatch):
    """The rest of the files could be any numbers."""
    config = configured(folder, "llama", 3)
    whole = {}
    for file in (folder / "llama").glob("*.safetensors"):
        whole |= load_file(file)

    def shards_of(values):
        monkeypatch.setattr(sharding.Shards, "_exchange", None)  # nobody is there to gather with
        shards = sharding.Shards(torch.device("cpu"), 60)
        shards.rank, shards.world = rank, 3
        model = backbones.build_backbone(config.model, 10, 1, 0, dtype=torch.bfloat16)
        with torch.no_grad():
            for p in model.parameters():
                p.data = values(p)
        hold(model, model, config, shards)
        return shards

    def poisoned(p):
        """NaN wherever rank `rank` of 3 has no part."""
        out = torch.full_like(p, float("nan")) if p.dim() > 1 else p
        if p.dim() > 1 and len(p) > 100:  # the embedding, by columns
            size = -(-p.shape[1] // 3)
            out[:, rank * size :][:, :size] = p[:, rank * size :][:, :size]
        elif p.dim() > 1:
            size = -(-p.numel() // 3)
            out.view(-1)[rank * size :][:size] = p.reshape(-1)[rank * size :][:size]
        return out

    read, right = shards_of(poisoned), shards_of(lambda p: p)
    assert len(read.weights) == 15
    for one, other in zip(read.weights, right.weights, strict=True):
        assert torch.equal(one.part, other.part) and one.part.dtype == torch.bfloat16
    held = sum(s.part.numel() for s in read.weights)
    assert held <= 1.1 * sum(s.shape.numel() for s in read.weights) / 3


def test_files_of_several_dtypes_are_loaded_whole(folder, tmp_path):
    config = configured(folder, "llama", 3)
    assert stored_dtype(config.model) == torch.bfloat16
    save_file({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert stored_dtype(config.model.model_copy(update={"pretrained": str(tmp_path)})) is None


def test_an_adapter_leaves_without_the_base(folder, tmp_path):
    """As a rank that has a part of the base exports it."""
    sections = {key: configured(folder, "gpt2", 3).model_dump()[key] for key in ("task", "inner", "model", "outer")}
    source = small.checkpoint_of(tmp_path / "step-000001", folder / "data.csv", **sections)
    whole = export.write(export.read(source), tmp_path / "whole")
    model = export.read(source).model
    for module in model.modules():  # a weight that were read would be missed
        if "weight" in module._parameters and module._parameters["weight"].dim() > 1:
            module._parameters["weight"] = None
    model.frozen_shards = object()
    trained = export.read(source, model=model)
    assert trained.is_whole
    live = export.write(trained, tmp_path / "live")
    for file in whole.iterdir():
        assert (live / file.name).read_bytes() == file.read_bytes(), file.name
