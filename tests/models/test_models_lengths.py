"""Answers of different lengths are compared by their tokens' mean, not by their total."""

from types import SimpleNamespace

import numpy as np
import torch

from distmeta.evaluation.texts import choose
from distmeta.models import generate as generating
from distmeta.tasks.records import Record

END = 1


def test_the_confidence_of_an_answer_is_the_geometric_mean_of_its_tokens_probabilities(monkeypatch):
    scores = torch.tensor([  # of each step, for a row that ends at once and one that ends at the third token
        [[0.1, 0.8, 0.1], [0.1, 0.0, 0.9]], [[0.9, 0.1, 0.0], [0.2, 0.2, 0.6]], [[0.9, 0.1, 0.0], [0.3, 0.5, 0.2]],
    ]).log()  # fmt: skip
    at = iter(scores)
    monkeypatch.setattr(generating, "_again", lambda *_: lambda token: next(at))
    model = SimpleNamespace(seq2seq=False, keeps_keys=False)
    batch = SimpleNamespace(labels=torch.zeros(1, 2, dtype=torch.long))
    tokens, confidence = generating.generate(model, {}, batch, [END], 5)
    assert tokens.tolist() == [[1, 1, 1], [2, 2, 1]]
    assert np.allclose(confidence.exp(), [0.8, (0.9 * 0.6 * 0.5) ** (1 / 3)])


def test_options_are_compared_by_the_mean_over_their_tokens(monkeypatch):
    losses, counts = torch.tensor([[1.0, 2.0]]), torch.tensor([[1, 4]])  # a short option and a long one
    part = {"rows": np.array([[0, 1]])}
    encoder = SimpleNamespace(
        prompts=lambda texts, *_, **__: [[3]] * len(texts), answers=lambda texts: [[4]] * len(texts)
    )
    monkeypatch.setattr("distmeta.evaluation.texts.encoder_of", lambda *_: encoder)
    monkeypatch.setattr("distmeta.evaluation.texts.special_ids", lambda _: SimpleNamespace(pad=0))
    monkeypatch.setattr("distmeta.evaluation.texts.collate", lambda *_, **__: [part])
    model = SimpleNamespace(batches=lambda parts, device: [None], by_row=lambda params, batch: (losses, None, counts))
    config = SimpleNamespace(
        model=None, task=SimpleNamespace(instructions=True, prompt="bare"), inner=SimpleNamespace(buckets=0),
        eval=SimpleNamespace(normalise=None),
    )  # fmt: skip
    record = Record("which", ("yes",), ("yes", "a long answer indeed"))
    ((option, probability),) = choose(model, {"x": torch.zeros(1)}, [record], None, config)
    assert option == "a long answer indeed"
    assert np.isclose(probability, 1 / (1 + np.exp(-1.0 + 0.5)))
