"""The LSTM: torch's own network, differentiated twice; what it shares with transformers is tested where theirs is."""

import pytest
import small
import torch
from torch import nn

from distmeta.errors import InputError
from distmeta.export import export
from distmeta.inner import InnerLoop, meta_gradient
from distmeta.models.batch import to_batches
from distmeta.models.build import build_model
from distmeta.tasks.episodes.collate import collate


def build(adapt="all", **model):
    config = small.config(architecture="lstm", inner={"adapt": adapt}, model=model)
    return build_model(config, 40, 0, 3).double()


def test_it_is_torch_s_lstm():
    model = build(config={"embedding_size": 12, "hidden_size": 16, "num_hidden_layers": 2})
    peer = nn.LSTM(12, 16, 2, batch_first=True).double()
    for number, layer in enumerate(model.backbone.layers):
        state = {"weight_ih": layer.input.weight, "weight_hh": layer.hidden.weight, "bias_ih": layer.input.bias,
                 "bias_hh": torch.zeros(64)}  # fmt: skip
        peer.load_state_dict({f"{name}_l{number}": value for name, value in state.items()}, strict=False)
    ids = torch.randint(40, (5, 7), generator=torch.Generator().manual_seed(0))
    found = model.backbone(input_ids=ids).last_hidden_state
    expected = peer(model.backbone.embed_tokens(ids))[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("adapt", ["all", "head", r"layers|head"])
def test_the_exact_meta_gradient_is_that_of_the_loss_after_adaptation(adapt):
    model = build(adapt)
    sets = [to_batches(collate(small.rows([6], 40, 3, seed=s), 1, 0), "cpu", model.causal) for s in (0, 1)]
    shared = {name: value.detach() for name, value in model.shared.items()}
    loop = InnerLoop(steps=2, lr=0.5)

    def after(params, order="exact"):
        return meta_gradient(lambda p, b: model.loss(p, b).sum(), params, *sets, loop, order, shared=shared)

    fast = {name: value.detach() for name, value in model.fast.items()}
    found, first = after(fast), after(fast, "first_order")
    generator = torch.Generator().manual_seed(0)
    for name in ("head_weight",) if adapt == "head" else ("head_weight", "backbone.layers.0.hidden.weight"):
        direction = torch.randn(fast[name].shape, generator=generator, dtype=torch.float64)
        ends = [after({**fast, name: fast[name] + e * direction}).loss for e in (1e-5, -1e-5)]
        expected = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close((found.grads[name] * direction).sum(), expected, rtol=1e-6, atol=1e-10)
        assert ((first.grads[name] - found.grads[name]) * direction).sum().abs() > 1e-3 * expected.abs()


def test_lora_names_its_layers_and_other_settings_are_its_own():
    with pytest.raises(InputError, match=r"lora_targets = auto: matches no linear layer.*layers\.\*\.hidden"):
        build("lora", lora_targets="auto")
    with pytest.raises(InputError, match=r"model.config.num_attention_heads: not a setting of architecture lstm"):
        build(config={"num_attention_heads": 2})


def test_what_does_not_apply_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cluster.episode = group does not work with model.architecture = lstm"):
        small.config(architecture="lstm", algorithm="fomaml", cluster={"episode": "group"},
                     deepspeed={"zero_optimization": {"stage": 3}})  # fmt: skip
    trained = export.Trained(small.config(architecture="lstm"), build(), {}, None, tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match=r"export: lstm: transformers has no LSTM"):
        export.write(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()
