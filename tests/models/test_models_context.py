"""In-context learning: what is kept of the support set and read by each query is one sequence, read at once."""

import pytest
import small
import torch

from distmeta.errors import InputError
from distmeta.inner import meta_gradient
from distmeta.inner.loop import InnerLoop
from distmeta.models.batch import to_batches
from distmeta.models.build import build_model
from distmeta.tasks.episodes.collate import collate

VOCABULARY, PAD, CLASSES = 40, 0, 3
LONG = {"gpt2": {"config": {**small.BACKBONES["gpt2"], "n_positions": 128}}, "llama": {}, "qwen2": {}, "bert": {}}


def made(architecture, kind="direct", **sections):
    own = {"model": {"head": "context", "context": kind, **LONG[architecture]}, "task": {"shots": 1}}
    own["inner"] = {"steps": 0, "learn_lr": "none"}
    config = small.config(architecture=architecture, algorithm="in_context", **small.merge(own, sections))
    return build_model(config, VOCABULARY, PAD, CLASSES).double()


def sets(model, tasks, parts):
    support, query = (
        to_batches(collate(small.rows([6] * tasks, VOCABULARY, CLASSES, seed), parts, PAD), "cpu", model.causal)
        for seed in (1, 2)
    )
    return support, query


def moved(model, tasks=None):
    generator = torch.Generator().manual_seed(3)
    out = {}
    for name, value in model.fast.items():
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        out[name] = value.detach() + 0.1 * noise
        if tasks:
            out[name] = out[name].unsqueeze(0).expand(tasks, *value.shape)
    return out


def by_hand(model, params, support, query, kind):
    """Log-probabilities (up to a constant), one query and one sequence at a time."""
    names = {n.removeprefix("backbone."): v for n, v in params.items() if n.startswith("backbone.")}
    table = next(v for n, v in names.items() if "wte" in n or "embed_tokens" in n)
    labels = params["head_labels"]

    def states(embedded):
        return torch.func.functional_call(
            model.backbone, names, (), {"inputs_embeds": embedded.unsqueeze(0), "use_cache": False}, tie_weights=False
        ).last_hidden_state[0]

    def texts(batches):
        for batch in batches:
            for ids, keep, label in zip(batch.input_ids, batch.keep, batch.labels.flatten(), strict=True):
                yield ids[keep > 0], int(label)

    # The support set stands in its own order, whatever parts its rows are in.
    own = torch.cat([batch.order.flatten() for batch in support]).argsort().tolist()
    rows = list(texts(support))
    prompt = [
        torch.cat([labels[y : y + 1], table[x]] if kind == "channel" else [table[x], labels[y : y + 1]])
        for x, y in (rows[i] for i in own)
    ]
    out = []
    for x, _ in texts(query):
        if kind == "direct":
            last = states(torch.cat([*prompt, table[x], params["head_ask"].unsqueeze(0)]))[-1]
            out.append(last @ params["head_weight"].T + params["head_bias"])
            continue
        scores = []
        for c in range(CLASSES):
            after = states(torch.cat([*prompt, labels[c : c + 1], table[x]]))[-len(x) - 1 : -1]
            scores.append(torch.log_softmax(after @ table.T, -1)[torch.arange(len(x)), x].sum())
        out.append(torch.stack(scores))
    return torch.stack(out)


@pytest.mark.parametrize("kind", ["direct", "channel"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_a_query_reads_the_support_set_and_itself_alone(architecture, kind):
    model = made(architecture, kind)
    params = moved(model)
    support, query = sets(model, 1, 2)
    state = model.start(params, support)
    found = torch.cat([model.logits({**params, **state}, batch)[0] for batch in query])
    expected = by_hand(model, params, support, query, kind)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # rotary embeddings are float32


@pytest.mark.parametrize("kind", ["direct", "channel"])
def test_tasks_at_once_are_tasks_one_by_one(kind):
    model = made("gpt2", kind)
    support, query = sets(model, 3, 1)
    options = {"start": model.start, "has_aux": True, "order": "exact"}
    whole = meta_gradient(
        model.loss_and_hits, moved(model, 3), support, query, InnerLoop(steps=0), task_axis="native", **options
    )
    for t in range(3):
        alone = [
            to_batches(collate([small.rows([6] * 3, VOCABULARY, CLASSES, seed)[t]], 1, PAD), "cpu", model.causal)
            for seed in (1, 2)
        ]
        one = meta_gradient(
            lambda p, b: (model.loss(p, b).sum(), None), moved(model), *alone, InnerLoop(steps=0), **options
        )
        for name, g in one.grads.items():
            torch.testing.assert_close(whole.grads[name][t], g, rtol=1e-6, atol=1e-9)


def test_what_cannot_read_a_support_set_is_one_line():
    with pytest.raises(InputError, match="needs a decoder"):
        made("bert")
    with pytest.raises(InputError, match="may take 323 positions, the model has 128"):
        made("gpt2", task={"shots": 6})
