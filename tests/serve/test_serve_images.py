"""Every verb that takes a checkpoint of images."""

import json
import re

import pytest
import small
import torch
from serving import Server
from transformers import CLIPModel

from distmeta.algorithms.rates import initial_log_rates
from distmeta.config import make_config
from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt, load_adapted
from distmeta.evaluation.evaluate import evaluate
from distmeta.export.export import export
from distmeta.models.build import build_model
from distmeta.runs import checkpoint
from distmeta.serve.batches import Base
from distmeta.tasks import images
from distmeta.tasks.build import build_store
from distmeta.tasks.descriptions import hashed
from distmeta.tasks.glyphs import make_glyphs
from distmeta.tasks.store import open_store

SIZE = (1, 8, 8)
MODELS = {
    "images": {"config": {"hidden_size": 12, "num_hidden_layers": 2}},
    "images with words": {"head": "words", "config": small.ARRAYS["clip"]},
}


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """A checkpoint over the built-in images, and images of three classes."""
    given = make_config({
        "model": {"image": list(SIZE), **MODELS[request.param]},
        "task": {"ways": 3, "shots": 1, "queries": 2}, "inner": {"lr": 0.3, "steps": 2},
        "eval": {"episodes": 4}, "data": {"cache": str(tmp_path_factory.mktemp("cache"))},
    })  # fmt: skip
    store = open_store(build_store(given.data, given.task, given.model))
    model = build_model(given, store.vocab_size, store.pad_id, 3)
    if request.param == "images with words":
        model.head_log_scale.data += 0.1
    meta = {**model.fast, **model.shared, **initial_log_rates(given.inner, model.adapted)}
    state = {"step": 1, "labels": store.labels, "classes": 3, "vocab_size": store.vocab_size, "pad_id": store.pad_id}
    folder = tmp_path_factory.mktemp("run") / "step-000001"
    checkpoint.save(folder, given, state, meta, {}, store.tokenizer_file)
    glyphs = make_glyphs(7, SIZE).slice(0, 60).to_pydict()
    return folder, [{"image": t, "label": n} for t, n in zip(glyphs["text"], glyphs["label"], strict=True)]


def test_a_checkpoint_of_images_is_evaluated_adapted_and_served(saved, tmp_path):
    folder, rows = saved
    found = evaluate(folder, episodes=4, baselines=False)
    assert found.details["meta_trained"]["examples"][0]["text"].startswith(images.DATA)

    support = rows[::5]
    adapted = adapt(folder, support)
    adapted.save(tmp_path / "task")
    texts = [row["image"] for row in rows[1::20]]
    expected = adapted.predict(texts)
    uris = [images.to_uri(text, SIZE) for text in texts]
    assert load_adapted(tmp_path / "task").predict(uris) == expected

    served = [{"text": images.to_uri(row["image"], SIZE), "label": row["label"]} for row in support]
    with Server(Base(folder), tmp_path / "tasks") as server:
        task = server.ask("POST", "/tasks", {"support": served})
        assert task.status == 201, task.error
        place = f"/tasks/{task.json['task']}/predict"
        answer = server.ask("POST", place, {"inputs": uris})
        assert [one["label"] for one in answer.json["predictions"]] == [one["label"] for one in expected]
        refused = server.ask("POST", place, {"inputs": ["/etc/hostname"]})
        assert refused.status == 400 and "not an image" in refused.error


def test_an_export_gives_the_scores_of_the_adapted_model(saved, tmp_path):
    folder, rows = saved
    adapted = adapt(folder, rows[::5])
    out = export(adapted.save(tmp_path / "task"), tmp_path / "out")
    expected = [one["probabilities"] for one in adapted.predict([row["image"] for row in rows[:4]])]
    code = re.search("```python\n(.*?)```", (out / "README.md").read_text(), re.S)[1]
    pixels = torch.tensor(images.pixels([row["image"] for row in rows[:4]])).view(-1, *SIZE) / 255
    namespace = {"folder": str(out), "pixels": pixels, "print": lambda scores: namespace.update(scores=scores)}
    exec(re.sub("torch.zeros.*", "pixels", code), namespace)
    for one, other in zip(namespace["scores"].softmax(-1).tolist(), expected, strict=True):
        assert one == pytest.approx(list(other.values()), abs=1e-4)
    about = json.loads((out / "distmeta.json").read_text())
    assert about["labels"] == adapted.labels and about["image"] == list(SIZE)
    assert json.loads((out / "preprocessor_config.json").read_text())["size"] == {"height": 8, "width": 8}


@pytest.mark.parametrize("saved", ["images with words"], indirect=True)
def test_classes_are_given_by_their_words_alone_and_scores_are_then_the_exported_clip_s(saved, tmp_path):
    folder, rows = saved
    names = ["a red ring above a blue cross", "a cross", "a ring"]
    (tmp_path / "classes.txt").write_bytes("ein grüner Ring".encode("latin-1"))
    with pytest.raises(InputError, match="classes.txt: not UTF-8"):
        adapt(folder, tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    adapted = adapt(folder, tmp_path / "classes.txt")
    assert adapted.inner_losses == [] and adapted.labels == names
    found = adapted.predict([row["image"] for row in rows[:4]])
    whole = CLIPModel.from_pretrained(export(folder, tmp_path / "out")).eval()
    ids = [hashed(name, 4096) for name in names]
    ids = torch.tensor([[*tokens, *[4095] * (9 - len(tokens))] for tokens in ids])
    pixels = torch.tensor(images.pixels([row["image"] for row in rows[:4]])).view(-1, *SIZE) / 127.5 - 1
    scores = whole(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits_per_image
    for one, other in zip(scores.softmax(-1).tolist(), found, strict=True):
        assert one == pytest.approx(list(other["probabilities"].values()), abs=1e-4)
    with pytest.raises(InputError, match="has no images to adapt to"):
        adapt(folder, names, steps=2)


def test_what_images_cannot_do_says_so(saved):
    folder, _ = saved
    with pytest.raises(InputError, match="not an image"):
        adapt(folder, [{"image": "a.png", "label": "a"}, {"image": "b.png", "label": "b"}])
