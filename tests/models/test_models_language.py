"""Language models: the loss is transformers' own, tasks at once are tasks one by one, and words come out as they do
there."""

import numpy as np
import pytest
import small
import torch
from torch.func import functional_call

from distmeta.errors import InputError
from distmeta.evaluation.texts import as_rows
from distmeta.inner import InnerLoop, adapt, meta_gradient
from distmeta.models import backbone as backbones
from distmeta.models.build import build_model
from distmeta.models.generate import generate
from distmeta.models.prefix import fixed_prefix, has_prefix
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.rows import Rows

VOCABULARY, PAD, END = 40, 0, 1
KINDS = ["gpt2", "llama", "qwen2", "t5"]


def configured(kind, **sections):
    more = {"gpt2": {"n_positions": 128}}.get(kind, {})
    model = {"max_tokens": 24, "answer_tokens": 6, "config": {**small.BACKBONES[kind], **more}}
    sections["model"] = model | sections.get("model", {})
    return small.config(architecture=kind, **{"task": {"family": "text_to_text"}, **sections})


def made(kind, dtype=torch.float64, **sections):
    """Moved off its initial values, where LoRA's products are zero."""
    config = configured(kind, **{"inner": {"adapt": "lora"}, **sections})
    model = build_model(config, VOCABULARY, PAD, 1).to(dtype)
    generator = torch.Generator().manual_seed(3)
    for group in (model.fast, model.shared):
        for name, value in group.items():
            group[name] = (value + 0.1 * torch.randn(value.shape, generator=generator)).to(dtype)
    return model


def texts(tasks=2, rows=5, seed=0):
    """Prompts of 3 to 9 tokens with answers of 1 to 4, for each task."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(tasks):
        prompts = [rng.integers(2, VOCABULARY, rng.integers(3, 10)).tolist() for _ in range(rows)]
        ends = [[*rng.integers(2, VOCABULARY, rng.integers(0, 4)).tolist(), END] for _ in range(rows)]
        out.append(as_rows(prompts, ends))
    return out


def parts_of(rows: Rows):
    """(prompt, answer) of each row."""
    bounds = zip(rows.offsets[:-1], rows.labels, rows.offsets[1:], strict=True)
    return [(rows.tokens[a : a + b].tolist(), rows.tokens[a + b : c].tolist()) for a, b, c in bounds]


def whole_model(kind, model):
    """transformers' own model with the same weights, LoRA merged."""
    config = configured(kind)
    whole = backbones.build_language_model(config.model, VOCABULARY, PAD, 0).to(torch.float64)
    own = whole if model.seq2seq else whole.base_model
    values = {**dict(model.named_parameters()), **model.fast, **model.shared}
    weights = {}
    for name, value in values.items():
        if not name.startswith("backbone.") or "lora_" in name:
            continue
        path = name.removeprefix("backbone.")
        pair = name.removesuffix("weight") + "lora_A", name.removesuffix("weight") + "lora_B"
        if name.endswith(".weight") and pair[0] in values:
            layer = model.backbone.get_submodule(path.removesuffix(".weight"))
            product = layer.lora_scale * values[pair[1]] @ values[pair[0]]
            value = value + (product.T if type(layer).__name__ == "TaskConv1D" else product)
        weights[path] = value
    own.load_state_dict(weights, strict=False)
    if "output_weight" in values:
        whole.get_output_embeddings().load_state_dict({"weight": values["output_weight"]})
    whole.tie_weights()
    return whole


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers_on_the_answer_alone(kind):
    model = made(kind)
    task = texts(1)[0]
    whole = whole_model(kind, model)
    expected = []
    for prompt, answer in parts_of(task):
        if model.seq2seq:
            given = {"input_ids": torch.tensor([prompt]), "labels": torch.tensor([answer])}
        else:
            given = {
                "input_ids": torch.tensor([prompt + answer]),
                "labels": torch.tensor([[-100] * len(prompt) + answer]),
            }
        expected.append(whole(**given).loss)
    params = {**model.fast, **model.shared}
    for buckets in (1, 3):
        batches = model.batches(collate([task], buckets, PAD), "cpu")
        found = sum(model.loss(params, batch) for batch in batches)
        # transformers takes a decoder's loss in float32
        assert found.item() == pytest.approx(torch.stack(expected).mean().item(), rel=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_at_once_are_tasks_one_by_one(kind):
    model = made(kind)
    assert model.takes_task_axis
    support, query = texts(3, seed=1), texts(3, seed=2)
    loop = InnerLoop(steps=2, lr=0.5)
    stacked = {name: value.unsqueeze(0).expand(3, *value.shape) for name, value in model.fast.items()}
    batched = [model.batches(collate(rows, 2, PAD), "cpu") for rows in (support, query)]
    options = {"order": "exact", "shared": dict(model.shared), "has_aux": True}
    whole = meta_gradient(model.loss_and_hits, stacked, *batched, loop, task_axis="native", **options)
    for t in range(3):
        alone = [model.batches(collate([rows[t]], 1, PAD), "cpu") for rows in (support, query)]
        one = meta_gradient(
            lambda p, b: tuple(x.sum() for x in model.loss_and_hits(p, b)), dict(model.fast), *alone, loop, **options
        )
        torch.testing.assert_close(whole.loss[t], one.loss, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(sum(whole.aux)[t], sum(one.aux))
        for name, g in one.grads.items():
            torch.testing.assert_close(whole.grads[name][t], g, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_the_meta_gradient_agrees_with_finite_differences(kind):
    model = made(kind)
    support, query = (model.batches(collate(texts(1, seed=s), 2, PAD), "cpu") for s in (1, 2))
    loop, name = InnerLoop(steps=2, lr=0.3), next(n for n in model.fast if n.endswith("lora_B"))

    def after(fast):
        adapted = adapt(lambda p, b: model.loss(p, b).sum(), fast, support, loop, shared=dict(model.shared))
        return sum(float(model.loss({**model.shared, **adapted.params}, b).sum()) for b in query)

    found = meta_gradient(
        lambda p, b: model.loss(p, b).sum(), dict(model.fast), support, query, loop, shared=dict(model.shared)
    )
    direction = torch.randn(model.fast[name].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = [after({**model.fast, name: model.fast[name] + sign * 1e-5 * direction}) for sign in (1, -1)]
    assert (found.grads[name] * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_of_transformers(kind):
    model = made(kind)
    tasks = texts(2)
    whole = whole_model(kind, model)
    batches = model.batches(collate(tasks, 2, PAD), "cpu")
    stacked = {name: value.unsqueeze(0).expand(2, *value.shape) for name, value in model.fast.items()}
    seen = 0
    for part, batch in zip(collate(tasks, 2, PAD), batches, strict=True):
        found, confidence = generate(model, {**model.shared, **stacked}, batch, [END], 6)
        assert ((confidence < 0) & confidence.isfinite()).all()
        for row, place in zip(found.tolist(), np.ndindex(part["rows"].shape), strict=True):
            prompt, _ = parts_of(tasks[place[0]])[part["rows"][place]]
            expected = whole.generate(
                torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=END, pad_token_id=PAD
            )[0].tolist()[1 if model.seq2seq else len(prompt) :]
            upto = expected.index(END) + 1 if END in expected else len(expected)
            assert row[:upto] == expected[:upto] and set(row[upto:]) <= {END}
            seen += 1
    assert seen == 10


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_in_context_is_one_long_sequence(kind):
    model = made(kind, task={"family": "text_to_text", "shots": 3})
    support, query = texts(2, rows=3, seed=1), texts(2, seed=2)
    params = {**model.fast, **model.shared}
    read = model.read_support(params, model.batches(collate(support, 2, PAD), "cpu"))
    (batch,) = model.batches(collate(query, 1, PAD), "cpu")
    losses, _, _ = model.by_row({**params, **read}, batch)
    words, _ = generate(model, {**params, **read}, batch, [END], 5)
    whole = whole_model(kind, model)
    (order,) = collate(query, 1, PAD)
    sequences = [rows.tokens.tolist() for rows in support]  # in their own order, whatever parts they are read in
    for t in range(2):
        for n, row in enumerate(order["rows"][t]):
            prompt, answer = parts_of(query[t])[row]
            before = sequences[t] + prompt
            ids = torch.tensor([before + answer])
            loss = whole(input_ids=ids, labels=torch.tensor([[-100] * len(before) + answer])).loss
            assert losses[t, n].item() == pytest.approx(loss.item() * len(answer), rel=2e-6)
            expected = whole.generate(
                torch.tensor([before]), max_new_tokens=5, do_sample=False, eos_token_id=END, pad_token_id=PAD
            )[0].tolist()[len(before) :]
            upto = expected.index(END) + 1 if END in expected else len(expected)
            assert words[t * 5 + n].tolist()[:upto] == expected[:upto]


def test_a_frozen_prefix_runs_once_and_changes_nothing():
    model = made("gpt2", inner={"adapt": r"h\.1\..*weight"})
    assert has_prefix(model) and model.entry == 1
    params = {**model.fast, **model.shared}
    batches = model.batches(collate(texts(1), 2, PAD), "cpu")
    for plain, cached in zip(batches, fixed_prefix(model, params, batches), strict=True):
        assert cached.states is not None
        torch.testing.assert_close(model.logits(params, cached), model.logits(params, plain))


@pytest.mark.parametrize(
    ("kind", "sections", "says"),
    [
        ("bert", {}, "needs a decoder or an encoder-decoder"),
        ("lstm", {}, "needs a decoder or an encoder-decoder"),
        ("gpt2", {"inner": {"adapt": "head"}}, "no head but its output layer"),
        ("gpt2", {"model": {"max_tokens": 200}}, "the model has 128 positions"),
    ],
)
def test_what_has_no_answer_is_one_line(kind, sections, says):
    with pytest.raises(InputError, match=says):
        build_model(configured(kind, **sections), VOCABULARY, PAD, 1)


def test_tied_weights_move_together():
    """The embedding is the output layer too, in every stack of the model, whichever the parameters in use."""
    for kind in ("gpt2", "t5"):
        model = made(kind, inner={"adapt": "all"})
        (batch,) = model.batches(collate(texts(1), 1, PAD), "cpu")
        params = {**model.fast, model.output_name: model.fast[model.output_name] * 1.5}
        whole = whole_model(kind, model)
        whole.get_input_embeddings().weight.data.mul_(1.5)
        ids = batch.input_ids
        expected = functional_call(whole, {}, (ids,), {"decoder_input_ids": ids} if model.seq2seq else {}).logits
        if model.seq2seq:
            states = model.under(
                params, lambda m=model, i=ids: m._states_of(input_ids=i, decoder_input_ids=i, use_cache=False)
            )
        else:
            states = model.under(params, lambda m=model, i=ids: m.backbone(input_ids=i).last_hidden_state)
        torch.testing.assert_close(model.scores(params, states), expected, rtol=1e-5, atol=1e-5)


def test_what_lies_below_the_output_layer_is_run_once_without_another_loss():
    """Where the output layer alone adapts, the last layer is still run on the states below it."""
    config = {**small.BACKBONES["llama"], "tie_word_embeddings": False}
    model = made("llama", inner={"adapt": "^output_weight$"}, outer={"base": "freeze"}, model={"config": config})
    params = {**model.fast, **model.shared}
    batches = model.batches(collate([texts(1)[0]], 1, PAD), "cpu")
    assert list(model.fast) == ["output_weight"] and has_prefix(model)
    losses = [model.loss(params, batch) for batch in (*batches, *fixed_prefix(model, params, batches))]
    torch.testing.assert_close(losses[1], losses[0])
