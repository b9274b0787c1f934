"""Classes named by their own words: every score is the ordinary language model's, over the text as one writes it."""

import random

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from distmeta.errors import InputError
from distmeta.evaluation.scoring import Scoring, group_episodes, load_group, score_episodes
from distmeta.inner import InnerLoop
from distmeta.learner.gradients import load_parts
from distmeta.models.build import build_model
from distmeta.models.labels import answered, sequence
from distmeta.models.output import NO_TOKEN
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes import collate, sample_episode
from distmeta.tasks.prompts import LabelTokens, check_labels
from distmeta.tasks.rows import Rows
from distmeta.tasks.store import open_store

CPU = torch.device("cpu")
IN_CONTEXT = {"algorithm": "in_context", "inner": {"adapt": "lora", "steps": 0}}
NAMES = ["red", "light blue", "A", "so very green", "A B", "no"]  # of 1 to 14 tokens
TEMPLATE = "Q: {{ input }}\nA: {{ target }}\n\n"
TEST = ["hot", "cold one", "flat C"]


def write_classes(path, names=(*NAMES, *TEST)):
    rng = random.Random(0)
    rows = [f"{' '.join(rng.choices(small.PLENTY, k=1 + i % 4))},{name}" for name in names for i in range(8)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    small.decoder(folder / "model")
    write_classes(folder / "data.csv")
    return folder


class Setting:
    def __init__(self, folder, **sections):
        task = {"family": "classes", "ways": 3, "labels": "words", "shots": 2, "queries": 2} | sections.pop("task", {})
        model = {"pretrained": str(folder / "model"), "max_tokens": 60} | sections.pop("model", {})
        data = {"splits": {"train": NAMES, "validation": [], "test": TEST}}
        self.config = small.config(
            folder / "data.csv", task=task, model=model, data=data, outer={"base": "freeze"}, **sections
        )
        self.store = open_store(build_store(self.config.data, self.config.task, self.config.model))
        self.model = build_model(self.config, self.store.vocab_size, self.store.pad_id, 3)
        self.whole = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        self.values = {**self.model.fast, **self.model.shared}

    def episodes(self, count):
        return [sample_episode(self.store, self.config.task, 0, "train", i) for i in range(count)]

    def likelihoods(self, before, name):
        """transformers' log-likelihood of each token of a name after a text."""
        ids, more = (self.tokenizer(t, add_special_tokens=False).input_ids for t in (before, name))
        with torch.no_grad():
            scores = self.whole(torch.tensor([ids + more])).logits[0].log_softmax(-1)
        return scores[range(len(ids) - 1, len(ids) + len(more) - 1), more]

    def written(self, style, text, name=None):
        """An example as a user would write it, with its class or up to it."""
        if style == TEMPLATE:
            asked, gap, after = f"Q: {text}\nA:", " ", "\n\n"
        elif style == "plain":
            asked, gap, after = f"Input: {text}\nLabel:", " ", "\n\n"
        else:
            asked, gap, after = f"<s>user\n{text}</s>\n<s>assistant\n", "", "</s>\n"
        return asked if name is None else f"{asked}{gap}{name}{after}"

    def texts(self, rows):
        return [self.store.text(int(row)) for row in rows.rows]


def scored(setting, episodes, steps=0):
    scoring = Scoring(setting.model, setting.values, {}, InnerLoop(steps), setting.config, setting.store.pad_id, CPU)
    return score_episodes(scoring, episodes)


@pytest.mark.parametrize(
    ("normalise", "style", "head"),
    [(None, "plain", "context"), ("length", "chat", "context"), ("unconditional", "plain", "context"),
     ("none", TEMPLATE, "context"), ("unconditional", "chat", "linear")],
)  # fmt: skip
def test_a_class_has_the_score_that_transformers_gives_its_words(folder, normalise, style, head):
    sections = {"context": IN_CONTEXT, "linear": {"algorithm": "fomaml", "inner": {"adapt": "lora"}}}[head]
    setting = Setting(folder, **sections, task={"prompt": style}, eval={"normalise": normalise})
    episodes = setting.episodes(3)
    gap = "" if style == "chat" else " "
    for episode, of in zip(episodes, scored(setting, episodes), strict=True):
        names = episode.label_names
        pairs = zip(setting.texts(episode.support), episode.support.labels, strict=True)
        before = "".join(setting.written(style, text, names[i]) for text, i in pairs) if head == "context" else ""
        losses = []
        for text, label in zip(setting.texts(episode.query), episode.query.labels, strict=True):
            asked = before + setting.written(style, text)
            found = [setting.likelihoods(asked, gap + name) for name in names]
            scores = torch.stack([x.mean() if normalise == "length" else x.sum() for x in found])
            if normalise == "unconditional":
                bare = setting.written(style, "")
                scores -= torch.stack([setting.likelihoods(bare, gap + name).sum() for name in names])
            losses.append(float(F.cross_entropy(scores, torch.tensor(label))))
        assert of.loss[0] == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_the_loss_in_training_is_on_the_words_of_every_class_that_was_seen_before(folder, style):
    setting = Setting(folder, **IN_CONTEXT, task={"prompt": style})
    gap = " " if style == "plain" else ""
    for episode in setting.episodes(2):
        _, (batch,) = load_parts([episode], setting.model, setting.config, setting.store, CPU)
        loss, _ = setting.model.loss_and_hits(setting.values, batch)
        losses, seen, before = [], set(), ""
        for rows in (episode.support, episode.query):
            for text, label in zip(setting.texts(rows), rows.labels, strict=True):
                name = episode.label_names[label]
                if name in seen:
                    asked = before + setting.written(style, text)
                    losses += (-setting.likelihoods(asked, gap + name)).tolist()
                seen.add(name)
                before += setting.written(style, text, name)
        assert loss.item() == pytest.approx(np.mean(losses), abs=1e-5)


def test_adapted_by_gradients_the_loss_of_an_example_is_the_mean_over_its_words(folder):
    setting = Setting(folder, algorithm="fomaml", inner={"adapt": "lora", "buckets": 2})
    episodes = setting.episodes(2)
    for parts in load_group(episodes, setting.model, setting.config, setting.store.pad_id, CPU, training=True):
        together = sum(setting.model.loss(setting.values, batch) for batch in parts)
        rows_of = ["support", "query"][parts[0].words is None]
        for episode, loss in zip(episodes, together, strict=True):
            rows = getattr(episode, rows_of)
            losses = [
                float(-setting.likelihoods(setting.written("plain", text), f" {episode.label_names[label]}").mean())
                for text, label in zip(setting.texts(rows), rows.labels, strict=True)
            ]
            assert float(loss) == pytest.approx(np.mean(losses), abs=1e-5)


def test_scores_do_not_depend_on_the_tasks_and_tokens_that_are_scored_at_once(folder, monkeypatch):
    setting = Setting(folder, **IN_CONTEXT)
    episodes = setting.episodes(3)
    together = scored(setting, episodes)
    monkeypatch.setattr("distmeta.models.labels.BLOCK", 1)
    alone = [scored(setting, [episode])[0] for episode in episodes]
    for a, b in zip(together, alone, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-5) and (a.predicted == b.predicted).all()


def test_training_episodes_may_have_any_number_of_classes_and_shots_and_evaluation_has_its_own(folder):
    setting = Setting(folder, **IN_CONTEXT, task={"ways": 4, "least_ways": 2, "shots": 3, "least_shots": 1})
    episodes = setting.episodes(40)
    ways = [len(episode.label_names) for episode in episodes]
    shots = [len(episode.support.labels) // w for episode, w in zip(episodes, ways, strict=True)]
    assert set(zip(ways, shots, strict=True)) == {(w, s) for w in (2, 3, 4) for s in (1, 2, 3)}
    for episode, w, s in zip(episodes, ways, shots, strict=True):
        assert (np.bincount(episode.support.labels) == s).all() and (np.bincount(episode.query.labels) == 2).all()
        assert len(np.unique(np.concatenate([episode.support.rows, episode.query.rows]))) == w * (s + 2)
    again = sample_episode(setting.store, setting.config.task, 0, "train", 7)
    assert again.support.rows.tolist() == episodes[7].support.rows.tolist()
    fixed = setting.config.of_evaluation().task
    sizes = {len(sample_episode(setting.store, fixed, 0, "train", i).support.labels) for i in range(10)}
    assert sizes == {12}
    groups = group_episodes(episodes[:12], 4)
    for group in groups:
        _, (batch,) = load_group(group, setting.model, setting.config, setting.store.pad_id, CPU, training=True)
        assert torch.isfinite(setting.model.loss(setting.values, batch)).all()


def random_parts(rng, tasks, counts, classes):
    out = []
    for n in counts:
        each = []
        for _ in range(tasks):
            lengths = rng.integers(1, 7, n)
            tokens = rng.integers(100, 200, lengths.sum()).astype(np.int32)
            labels = rng.permutation(np.arange(n) % classes)
            each.append(Rows(tokens, np.concatenate([[0], np.cumsum(lengths)]), labels, np.arange(n)))
        out.append(each)
    return out


def random_words(rng, tasks, classes):
    names = [[rng.integers(200, 300, rng.integers(1, 5)).tolist() for _ in range(classes)] for _ in range(tasks)]
    words = np.full((tasks, classes, 4), NO_TOKEN, np.int64)
    for t, of_task in enumerate(names):
        for i, name in enumerate(of_task):
            words[t, i, : len(name)] = name
    return names, words


@pytest.mark.parametrize("seed", range(5))
def test_names_of_any_length_stand_in_a_sequence_where_their_classes_are(seed):
    rng = np.random.default_rng(seed)
    tokens = LabelTokens((7, 8)[: seed % 3], (), (30, 31))
    support, query = random_parts(rng, 2, (6, 3), 3)
    names, words = random_words(rng, 2, 3)
    part, answer, place = sequence([collate(support, 2, 0), collate(query, 0, 0)], [True, True], words, tokens, 0)
    for t in range(2):
        expected, asked, seen = list(tokens.start), [], set()
        for rows in (support[t], query[t]):
            for i, label in enumerate(rows.labels):
                expected += rows.tokens[rows.offsets[i] : rows.offsets[i + 1]].tolist()
                if label in seen:
                    asked += [(len(expected) - 1 + w, token) for w, token in enumerate(names[t][label])]
                expected += [*names[t][label], 30, 31]
                seen.add(label)
        kept = part["attention_mask"][t, 0] > 0
        assert part["input_ids"][t, 0][kept].tolist() == expected
        assert not part["input_ids"][t, 0][~kept].any() and kept.tolist() == sorted(kept, reverse=True)
        pairs = zip(place[t].tolist(), answer[t].tolist(), strict=True)
        assert [(p, a) for p, a in pairs if a != NO_TOKEN] == asked


@pytest.mark.parametrize("seed", range(3))
def test_a_row_goes_on_with_the_name_of_its_class(seed):
    rng = np.random.default_rng(seed)
    (rows,) = random_parts(rng, 2, (5,), 3)
    names, words = random_words(rng, 2, 3)
    for part in collate(rows, 2, 0):
        whole, answer, place = answered(part, words, 0)
        for t, number, i in np.ndindex(2, part["labels"].shape[1], 1):
            of, own = rows[t], int(part["rows"][t, number])
            text = of.tokens[of.offsets[own] : of.offsets[own + 1]].tolist()
            name = names[t][of.labels[own]]
            kept = whole["attention_mask"][t, number] > 0
            assert whole["input_ids"][t, number][kept].tolist() == text + name[:-1]
            at = t * part["labels"].shape[1] + number + i
            assert answer[at].tolist() == name + [NO_TOKEN] * (4 - len(name))
            assert place[at, : len(name)].tolist() == list(range(len(text) - 1, len(text) + len(name) - 1))


@pytest.mark.parametrize(
    ("names", "more", "line"),
    [
        (["a", "b" * 20], {}, "the label 'b+' has 21 tokens, and may have 1 to 16; raise model.answer_tokens"),
        (["a/x", "b/x"], {"data": {"path": None, "sources": {"c": {"path": "x"}}}}, None),
        (["a/x", "a/y"], {"data": {"path": None, "sources": {"a": {"path": "x"}}}}, None),
    ],
)
def test_a_label_that_cannot_be_said_is_refused_by_name(folder, names, more, line):
    task = {"family": "classes", "ways": 2, "labels": "words"}
    config = small.config(folder / "data.csv", task=task, model={"pretrained": str(folder / "model")}, **more)
    if line is None:
        check_labels(names, config)
        return
    with pytest.raises(InputError, match=line):
        check_labels(names, config)


def test_two_labels_of_the_same_tokens_are_refused(folder):
    tokens = LabelTokens((), (), (), (), lambda name: (len(name),))
    with pytest.raises(InputError, match="the labels 'ab' and 'cd' have the same tokens; rename one"):
        tokens.of(["a", "ab", "cd"])


def test_a_source_is_no_part_of_its_labels_words(folder):
    from distmeta.tasks.prompts import label_tokens_of

    task = {"family": "classes", "ways": 2, "labels": "words"}
    data = {"sources": {"a": {"path": "x"}}}
    config = small.config(None, task=task, model={"pretrained": str(folder / "model")}, data=data)
    tokens = label_tokens_of(config)
    assert tokens.of(["a/x", "b/x"]) == [tokens.of(["x"])[0], tokens.of(["b/x"])[0]]
    assert len(tokens.of(["x"])[0]) == 2 and len(tokens.of(["b/x"])[0]) == 4
