"""Classes named by letters: every score is the ordinary language model's, over one row or one long sequence."""

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from distmeta.errors import InputError
from distmeta.evaluation.scoring import Scoring, load_group, score_episodes
from distmeta.inner import InnerLoop
from distmeta.learner.gradients import group_gradient, load_parts
from distmeta.models.build import build_model
from distmeta.models.labels import longest_support, sequence
from distmeta.models.output import NO_TOKEN
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes import collate, sample_episode
from distmeta.tasks.prompts import LabelTokens
from distmeta.tasks.rows import Rows
from distmeta.tasks.store import open_store

CPU = torch.device("cpu")


class Setting:
    def __init__(self, folder, **sections):
        data = folder / "data.csv"
        if not data.exists():
            small.decoder(folder / "model")
            small.write_domains(data)
        task = {"labels": "letters", "shots": 3, "queries": 2} | sections.pop("task", {})
        model = {"pretrained": str(folder / "model"), "max_tokens": 90} | sections.pop("model", {})
        self.config = small.config(data, task=task, model=model, outer={"base": "freeze"}, **sections)
        self.store = open_store(build_store(self.config.data, self.config.task, self.config.model))
        self.model = build_model(self.config, self.store.vocab_size, self.store.pad_id, 2)
        self.whole = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        self.values = {**self.model.fast, **self.model.shared}

    def episodes(self, count):
        return [sample_episode(self.store, self.config.task, 0, "train", i) for i in range(count)]

    def written(self, rows, numbers):
        """The examples as a user would write them."""
        return [
            (self.store.text(int(rows.rows[i])), "ABCDEFGHIJ"[rows.labels[i]]) for i in numbers
        ]  # fmt: skip

    def scores(self, text):
        """transformers' scores after a text."""
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False).input_ids])
        with torch.no_grad():
            return self.whole(ids).logits[0]


IN_CONTEXT = {"algorithm": "in_context", "inner": {"adapt": "lora", "steps": 0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("letters")


def plain(examples):
    return "".join(f"Input: {text}\nLabel: {letter}\n\n" for text, letter in examples)


def test_a_query_in_context_has_the_scores_of_transformers_on_the_text_as_one_would_write_it(folder):
    setting = Setting(folder, **IN_CONTEXT)
    episodes = setting.episodes(2)
    scoring = Scoring(setting.model, setting.values, {}, InnerLoop(0), setting.config, setting.store.pad_id, CPU)
    scored = score_episodes(scoring, episodes)
    for episode, of in zip(episodes, scored, strict=True):
        before = plain(setting.written(episode.support, range(6)))
        losses = {}
        for i in range(4):
            ((text, letter),) = setting.written(episode.query, [i])
            letters = [setting.tokenizer(f" {x}", add_special_tokens=False).input_ids[0] for x in "AB"]
            among = setting.scores(f"{before}Input: {text}\nLabel:")[-1, letters]
            losses[i] = float(F.cross_entropy(among, torch.tensor("AB".index(letter))))
        assert of.loss[0] == pytest.approx(np.mean(list(losses.values())), abs=1e-5)
        assert (of.predicted.shape, sorted(of.labels)) == ((1, 4), [0, 0, 1, 1])


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_the_loss_in_training_is_on_every_class_that_was_seen_before(folder, style):
    setting = Setting(folder, **IN_CONTEXT, task={"prompt": style})
    for episode in setting.episodes(3):
        _, (batch,) = load_parts([episode], setting.model, setting.config, setting.store, CPU)
        loss, _ = setting.model.loss_and_hits(setting.values, batch)
        examples = setting.written(episode.support, range(6)) + setting.written(episode.query, range(4))
        losses, seen, before = [], set(), ""
        for text, letter in examples:
            asked = f"Input: {text}\nLabel:" if style == "plain" else f"<s>user\n{text}</s>\n<s>assistant\n"
            name = f" {letter}" if style == "plain" else letter
            if letter in seen:
                (number,) = setting.tokenizer(name, add_special_tokens=False).input_ids
                losses.append(float(F.cross_entropy(setting.scores(before + asked)[-1], torch.tensor(number))))
            seen.add(letter)
            before += asked + name + ("\n\n" if style == "plain" else "</s>\n")
        assert len(losses) == 8
        assert loss.item() == pytest.approx(np.mean(losses), abs=1e-5)


def test_adapted_by_gradients_each_example_is_read_alone(folder):
    setting = Setting(folder, algorithm="fomaml", inner={"adapt": "lora"})
    (episode,) = setting.episodes(1)
    support, _ = load_parts([episode], setting.model, setting.config, setting.store, CPU)
    loss = sum(float(setting.model.loss(setting.values, batch)) for batch in support)
    losses = []
    for text, letter in setting.written(episode.support, range(6)):
        (number,) = setting.tokenizer(f" {letter}", add_special_tokens=False).input_ids
        losses.append(float(F.cross_entropy(setting.scores(f"Input: {text}\nLabel:")[-1], torch.tensor(number))))
    assert loss == pytest.approx(np.mean(losses), abs=1e-5)


def test_in_context_and_by_gradients_the_outer_loss_is_on_the_queries_alone(folder):
    setting = Setting(folder, algorithm="maml", inner={"adapt": "lora"}, model={"head": "context"})
    (episode,) = setting.episodes(1)
    (support,), (query,) = load_parts([episode], setting.model, setting.config, setting.store, CPU)
    assert (support.answer != NO_TOKEN).sum() == 4  # of six examples, less the first of each class
    assert (query.answer != NO_TOKEN).tolist() == [[False] * 6 + [True] * 4]
    assert query.input_ids[0, : support.input_ids.shape[1]].tolist() == support.input_ids[0].tolist()


def test_the_meta_gradient_in_context_is_that_of_the_loss(folder):
    from distmeta.algorithms import in_context

    setting = Setting(folder, **IN_CONTEXT)
    episodes = setting.episodes(2)
    parts = load_parts(episodes, setting.model, setting.config, setting.store, CPU)
    fast = {n: v.detach() + 0.01 * torch.randn(v.shape) for n, v in setting.model.fast.items()}
    result, grads = group_gradient(setting.model, fast, {}, in_context, InnerLoop(0), parts, [e.task for e in episodes])
    leaves = {name: value.clone().requires_grad_() for name, value in fast.items()}
    total = 0.0
    for episode in episodes:
        _, query = load_parts([episode], setting.model, setting.config, setting.store, CPU)
        loss = setting.model.loss(leaves, query[0]).sum()
        loss.backward()
        total += float(loss)
    assert float(result.loss.sum()) == pytest.approx(total, rel=1e-5)
    for name, leaf in leaves.items():
        torch.testing.assert_close(grads[name], leaf.grad, rtol=1e-4, atol=1e-6)


def rows_of(rng, count, classes):
    lengths = rng.integers(1, 7, count)
    labels = rng.permutation(np.arange(count) % classes)
    tokens = rng.integers(100, 200, lengths.sum()).astype(np.int32)
    return Rows(tokens, np.concatenate([[0], np.cumsum(lengths)]), labels, np.arange(count))


@pytest.mark.parametrize("seed", range(5))
def test_a_sequence_is_the_examples_in_their_order_with_no_padding_between(seed):
    rng = np.random.default_rng(seed)
    tokens = LabelTokens((7, 8)[: seed % 3], (21, 22, 23), (30, 31))
    support, query = ([rows_of(rng, n, 3) for _ in range(2)] for n in (6, 3))
    sets = [collate(support, 2, 0), collate(query, 0, 0)]
    words = np.broadcast_to(np.array(tokens.labels)[:, None], (2, 3, 1))
    part, answer, place = sequence(sets, [False, True], words, tokens, 0)
    for t in range(2):
        expected, answers = list(tokens.start), []
        for rows in (support[t], query[t]):
            for i, label in enumerate(rows.labels):
                expected += rows.tokens[rows.offsets[i] : rows.offsets[i + 1]].tolist()
                answers.append((len(expected) - 1, tokens.labels[label] if rows is query[t] else NO_TOKEN))
                expected += [tokens.labels[label], 30, 31]
        kept = part["attention_mask"][t, 0]
        assert part["input_ids"][t, 0][kept > 0].tolist() == expected
        assert kept.tolist() == sorted(kept, reverse=True) and not part["input_ids"][t, 0][kept == 0].any()
        assert list(zip(place[t].tolist(), answer[t].tolist(), strict=True)) == answers


def test_tasks_together_are_each_alone(folder):
    setting = Setting(folder, **IN_CONTEXT)
    episodes = setting.episodes(3)
    _, (together,) = load_group(episodes, setting.model, setting.config, 1, CPU, training=True)
    losses = setting.model.loss(setting.values, together)
    for episode, loss in zip(episodes, losses, strict=True):
        _, (alone,) = load_group([episode], setting.model, setting.config, 1, CPU, training=True)
        assert float(setting.model.loss(setting.values, alone)) == pytest.approx(float(loss), abs=1e-5)


def test_a_context_that_is_longer_than_the_model_is_refused(folder):
    with pytest.raises(InputError, match=r"may take \d+ positions, the model has 1024; lower task.shots"):
        Setting(folder, **IN_CONTEXT, task={"shots": 10})


@pytest.mark.parametrize(("classes", "ways", "rows"), [(2, None, 6), (5, None, 15), (5, 8, 24), (5, 2, 15)])
def test_the_longest_context_holds_every_class_that_there_may_be(classes, ways, rows, folder):
    task = {"family": "classes", "ways": 5, "labels": "letters", "shots": 3}
    config = small.config(model={"pretrained": str(folder), "max_tokens": 10}, task=task, eval={"ways": ways})
    assert longest_support(config, LabelTokens((7,), (8, 9), (3, 4)), classes) == 1 + (rows + 1) * (10 + 1 + 2)
