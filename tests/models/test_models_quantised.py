"""model.quantise: a rounded frozen base, exact at every order for the matrices that it stands for."""

import json

import pytest
import small
import torch

from distmeta.algorithms import fomaml, in_context, maml
from distmeta.config import make_config
from distmeta.drive.train import prepare_store
from distmeta.errors import InputError
from distmeta.export.export import export, read
from distmeta.learner.gradients import meta_gradients
from distmeta.models.build import build_model
from distmeta.models.layers import FetchedLinear
from distmeta.models.quantised import matrix_of
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store

LETTERS = {"labels": "letters", "shots": 2, "queries": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    small.decoder(folder / "m")
    small.write_domains(folder / "data.csv")
    return folder


def configured(folder, algorithm="maml", **sections):
    steps = 0 if algorithm == "in_context" else 2
    base = {
        "algorithm": algorithm, "task": LETTERS, "inner": {"adapt": "lora", "steps": steps, "lr": 0.1},
        "model": {"max_tokens": 60, "pretrained": str(folder / "m"), "quantise": "int8"}, "outer": {"base": "freeze"},
    }  # fmt: skip
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values} if isinstance(values, dict) else values
    return small.config(folder / "data.csv", **base)


def rounded_by_hand(model, other):
    """Give a model that is not rounded the matrices of one that is."""
    for path, layer in other.named_modules():
        if isinstance(layer, FetchedLinear):
            model.get_submodule(path).weight.data.copy_(matrix_of(layer))


@pytest.mark.parametrize("algorithm", [maml, fomaml, in_context], ids=["exact", "first order", "in context"])
def test_meta_gradients_are_those_of_the_rounded_matrices(algorithm, folder):
    config = configured(folder, algorithm.__name__.rsplit(".", 1)[1])
    store = open_store(prepare_store(config))
    plain = config.model_copy(update={"model": config.model.model_copy(update={"quantise": None})})
    rounded, whole = (build_model(c, store.vocab_size, store.pad_id, 2).double() for c in (config, plain))
    layers = [layer for layer in rounded.modules() if isinstance(layer, FetchedLinear)]
    assert len(layers) == 14 and not any("weight" in dict(layer.named_parameters()) for layer in layers)
    before = whole.get_submodule("backbone.layers.0.mlp.up_proj").weight.clone()
    rounded_by_hand(whole, rounded)
    after = whole.get_submodule("backbone.layers.0.mlp.up_proj").weight
    bound = before.abs().amax(1, keepdim=True) / 254
    assert (after - before).abs().max() > 0 and bool(((after - before).abs() <= 1.01 * bound).all())
    episodes = [sample_episode(store, config.task, 0, "train", i) for i in range(2)]
    generator = torch.Generator().manual_seed(0)
    meta = {n: v + 0.05 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in whole.fast.items()}
    found = [meta_gradients(model, meta, algorithm, config, store, episodes, 1,
                            torch.device("cpu")) for model in (rounded, whole)]  # fmt: skip
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)
    for name, value in found[1][0].items():
        torch.testing.assert_close(found[0][0][name], value, rtol=1e-7, atol=1e-10)


def test_bytes_are_a_quarter_and_bfloat16_products_work(folder):
    config = configured(folder, model={"dtype": "bfloat16"})
    store = open_store(prepare_store(config))
    model = build_model(config, store.vocab_size, store.pad_id, 2)
    for layer in (layer for layer in model.modules() if isinstance(layer, FetchedLinear)):
        held = sum(value.numel() * value.element_size() for _, value in layer.named_buffers())
        rows, columns = layer.int8_weight.shape
        assert held == rows * columns + 4 * rows and layer.fetch().dtype == torch.bfloat16
    episodes = [sample_episode(store, config.task, 0, "train", 0)]
    grads, _ = meta_gradients(model, model.fast, maml, config, store, episodes, 1, torch.device("cpu"))
    assert any(float(g.abs().max()) > 0 for g in grads.values())


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"inner": {"adapt": "all"}}, "inner.adapt = all"),
        ({"outer": {"base": "train"}}, "outer.base = train"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "stage = 3"),
        ({"model": {"pretrained": None}}, "model.pretrained = null"),
    ],
)
def test_where_no_base_could_be_rounded_it_is_refused(sections, line, folder):
    given = configured(folder).model_dump()
    for name, values in sections.items():
        given[name] |= values
    with pytest.raises(InputError, match=f"model.quantise = int8 does not work with .*{line}"):
        make_config(given)


def test_an_export_is_an_adapter_and_says_so(folder, tmp_path):
    sections = configured(folder).model_dump()
    source = small.checkpoint_of(
        tmp_path / "step-000001", folder / "data.csv", **{n: sections[n] for n in ("task", "inner", "model", "outer")}
    )  # fmt: skip
    assert read(source).is_adapter
    out = export(source, tmp_path / "out")  # its base is named as it was published, which is not what it was learnt on
    assert json.loads((out / "distmeta.json").read_text())["base_rounded_to"] == "int8"
    assert "| base | rounded to int8 in training" in (out / "README.md").read_text()
    with pytest.raises(InputError, match="the base was rounded in training"):
        read(source, merge=True)
