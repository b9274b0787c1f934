"""Images as rows of tokens: decoding, files and tables, turned classes."""

import base64
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from distmeta.config import make_config
from distmeta.config.algorithms import load_algorithm
from distmeta.errors import InputError
from distmeta.learner.gradients import meta_gradients, state_cache
from distmeta.models.build import build_model
from distmeta.tasks import images
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.glyphs import make_glyphs
from distmeta.tasks.readers import read_examples
from distmeta.tasks.sources import find_sources
from distmeta.tasks.store import open_store

RNG = np.random.default_rng(0)
SIZE = (1, 6, 6)


def png(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def pixels_of(text, size=SIZE):
    return images.pixels([text]).reshape(size)


def test_an_image_s_text_holds_its_pixels_and_its_tokens_are_them():
    gray, colour = RNG.integers(0, 256, (6, 6), np.uint8), RNG.integers(0, 256, (6, 6, 3), np.uint8)
    text = images.read_image(png(gray), SIZE, "x")
    assert (pixels_of(text)[0] == gray).all()
    assert (pixels_of(images.read_image(png(colour), (3, 6, 6), "x"), (3, 6, 6)) == colour.transpose(2, 0, 1)).all()
    everything = np.arange(256, dtype=np.uint8)
    assert images.make_tokenizer().encode(images.letters(everything)).ids == everything.tolist()
    assert images.letters(everything).lower().strip() == images.letters(everything)  # no letter is a case of another


def test_an_image_of_another_size_is_resized_and_a_transparent_one_lies_on_white():
    half = np.zeros((12, 12), np.uint8)
    half[:6] = 200
    assert abs(int(pixels_of(images.read_image(png(half), SIZE, "x"))[0, 0, 0]) - 200) < 3
    clear = np.zeros((6, 6, 4), np.uint8)
    assert (pixels_of(images.read_image(png(clear), SIZE, "x")) == 255).all()


def test_what_cannot_be_decoded_is_refused_by_its_name(monkeypatch):
    whole = png(RNG.integers(0, 256, (30, 30), np.uint8))
    for content, why in (
        (b"text", "neither a PNG nor a JPEG"),
        (whole[: len(whole) // 2], "cannot be decoded"),
        (png(np.zeros((6, 6), np.uint16)), "16 bits"),
    ):
        with pytest.raises(InputError, match=f"^here: .*{why}"):
            images.read_image(content, SIZE, "here")
    monkeypatch.setattr(images, "MOST_PIXELS", 100)
    with pytest.raises(InputError, match="30 x 30 pixels are more"):
        images.read_image(whole, SIZE, "here")


def test_a_string_opens_no_file_unless_it_names_one_beside_its_table(tmp_path):
    content = png(np.full((6, 6), 7, np.uint8))
    (tmp_path / "a.png").write_bytes(content)
    uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    text = images.as_text(content, SIZE, "x")
    assert {images.as_text(v, SIZE, "x") for v in (uri, tmp_path / "a.png", np.full((6, 6), 7, np.uint8), text)} == {
        text
    }
    assert images.to_uri(text, SIZE).startswith(images.DATA)
    assert images.as_text(images.to_uri(text, SIZE), SIZE, "x") == text
    for value in (str(tmp_path / "a.png"), "a.png", "", 3, None):
        with pytest.raises(InputError, match="not an image"):
            images.as_text(value, SIZE, "x")
    assert images.as_text("a.png", SIZE, "x", tmp_path) == text
    for outside in ("../a.png", str(tmp_path / "a.png")):
        with pytest.raises(InputError, match="outside of"):
            images.as_text(outside, SIZE, "x", tmp_path / "below")


def read(path, size=SIZE):
    data = make_config({"model": {"image": list(size)}}).data
    sources = find_sources(str(path), images.kinds(size))
    rows = [row for batch in read_examples(sources, data, "classes", image=size) for row in batch.to_pylist()]
    return [(pixels_of(row["text"])[0, 0, 0], row["label"], row.get("split")) for row in rows]


def test_folders_are_classes_and_may_be_splits(tmp_path):
    for i, place in enumerate(("train/greek/alpha", "train/greek/beta", "test/latin/a")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "0.png").write_bytes(png(np.full((6, 6), i, np.uint8)))
    assert read(tmp_path) == [(2, "latin/a", "test"), (0, "greek/alpha", "train"), (1, "greek/beta", "train")]
    assert read(tmp_path / "train") == [(0, "alpha", None), (1, "beta", None)]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "x", "label": "a"}))
    with pytest.raises(InputError, match="tables and image files are two data sets"):
        read(tmp_path)


def test_tables_hold_bytes_or_name_files(tmp_path):
    contents = [png(np.full((6, 6), i, np.uint8)) for i in range(2)]
    both = {"label": ["a", "b"]}
    pq.write_table(
        pa.table({"image": [{"bytes": c, "path": None} for c in contents], **both}), tmp_path / "hub.parquet"
    )
    pq.write_table(pa.table({"image": contents, **both}), tmp_path / "bytes.parquet")
    (tmp_path / "0.png").write_bytes(contents[0])
    uri = f"data:image/png;base64,{base64.b64encode(contents[1]).decode()}"
    lines = [{"image": "0.png", "label": "a"}, {"image": uri, "label": "b"}]
    (tmp_path / "files.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("hub.parquet", "bytes.parquet", "files.jsonl"):
        assert read(tmp_path / name) == [(0, "a", None), (1, "b", None)]
    (tmp_path / "bad.jsonl").write_text(json.dumps({"image": "none.png", "label": "a"}))
    with pytest.raises(InputError, match=r"bad.jsonl line 1, column 'image' \(data.text\): .*none.png: No such file"):
        read(tmp_path / "bad.jsonl")


def config(**sections):
    task = {"ways": 4, "shots": 1, "queries": 2, **sections.pop("task", {})}
    return make_config({"model": {"image": list(SIZE)}, "task": task, **sections})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    place = tmp_path_factory.mktemp("images")
    table = make_glyphs(0, SIZE)
    kept = table.take([i for i, name in enumerate(table["label"].to_pylist()) if name.endswith(("0", "5"))])
    rows = [
        {"image": images.to_uri(row["text"], SIZE), "label": row["label"], "split": row["split"]}
        for row in kept.to_pylist()
    ]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    c = config(data={"path": str(place / "rows.jsonl"), "cache": str(place / "cache")})
    return open_store(build_store(c.data, c.task, c.model))


def test_a_store_holds_images_as_tokens_and_shows_them(store):
    assert store.image == SIZE and (np.diff(store.offsets) == 36).all()
    for row in (0, store.rows - 1):
        tokens, _ = store.read(np.array([row]))
        assert (tokens.reshape(SIZE) == pixels_of(store.text(row))).all()
        assert images.as_text(store.shown(row), SIZE, "x") == store.text(row)


def test_a_turned_class_is_another_class_in_training_alone(store):
    task = config(task={"augment": {"rotations": True}}).task
    turned = 0
    for index in range(12):
        episode = sample_episode(store, task, 0, "train", index, augment=True)
        assert len(set(episode.label_names)) == 4
        for rows in (episode.support, episode.query):
            for i, label in enumerate(rows.labels):
                name, _, quarter = episode.label_names[label].partition(" turned ")
                whole = store.read(rows.rows[i : i + 1])[0].reshape(SIZE)
                found = rows.tokens[rows.offsets[i] : rows.offsets[i + 1]].reshape(SIZE)
                assert (found == np.rot90(whole, int(quarter), (1, 2))).all()
                assert store.labels[store.label_ids[rows.rows[i]]] == name
                turned += int(quarter) > 0
    assert turned > 0
    plain = sample_episode(store, config().task, 0, "train", 0)
    scored = sample_episode(store, task, 0, "train", 0)
    assert scored.label_names == plain.label_names and (scored.query.tokens == plain.query.tokens).all()


def test_a_mirrored_class_is_another_class_and_a_mirrored_image_another_image(store):
    both = config(task={"augment": {"rotations": True, "flips": "classes"}}).task
    seen = set()
    for index in range(12):
        episode = sample_episode(store, both, 0, "train", index, augment=True)
        assert len(set(episode.label_names)) == 4
        for i, label in enumerate(episode.query.labels):
            _, _, turn = episode.label_names[label].partition(" turned ")
            whole = store.read(episode.query.rows[i : i + 1])[0].reshape(SIZE)
            found = episode.query.tokens[episode.query.offsets[i] : episode.query.offsets[i + 1]].reshape(SIZE)
            whole = whole[..., ::-1] if "mirror" in turn else whole
            assert (found == np.rot90(whole, int(turn[0]), (1, 2))).all()
            seen.add(turn)
    assert len(seen) == 8
    each = config(task={"augment": {"flips": "images"}}).task
    plain = sample_episode(store, each, 0, "train", 0)
    drawn = sample_episode(store, each, 0, "train", 0, augment=True)
    assert plain.label_names == drawn.label_names and (plain.support.rows == drawn.support.rows).all()
    before, after = (np.concatenate([e.support.tokens, e.query.tokens]).reshape(-1, *SIZE) for e in (plain, drawn))
    mirrored = [(a == b[..., ::-1]).all() for a, b in zip(before, after, strict=True)]
    assert 0 < sum(mirrored) < len(mirrored)
    assert all(m or (a == b).all() for m, a, b in zip(mirrored, before, after, strict=True))


@pytest.mark.parametrize("augment", [{"rotations": True}, {"flips": "classes"}, {"flips": "images"}, {}])
def test_what_a_frozen_base_makes_of_an_image_is_not_kept_for_its_turned_one(store, augment):
    c = config(task={"augment": augment}, inner={"adapt": "head", "steps": 1}, outer={"base": "freeze"})
    model = build_model(c, store.vocab_size, store.pad_id, 4)
    episodes = [sample_episode(store, c.task, 0, "train", i, augment=True) for i in range(12)]
    meta, algorithm = {**model.fast, **model.shared}, load_algorithm("maml")

    def gradients(cache):
        made = [
            meta_gradients(model, meta, algorithm, c, store, [e], 1, torch.device("cpu"), cache)[0] for e in episodes
        ]
        return torch.cat([g.flatten() for one in made for g in one.values()])

    cache = state_cache(model, c, store)
    assert (cache is None) == bool(augment)
    torch.testing.assert_close(gradients(cache), gradients(None))


@pytest.mark.parametrize(("sections", "why"), [
    ({"model": {"image": None}, "task": {"augment": {"flips": "images"}, "family": "classes"}}, "set model.image"),
    ({"task": {"augment": {"flips": "classes", "resplit": True}}}, "leave one of it and task.augment.flips out"),
    ({"model": {"image": list(SIZE), "config": {"norm": "batch"}}, "inner": {"part_tokens": 64}}, "reads a set whole"),
    ({"task": {"family": "text_to_text", "ways": None}}, "task.family = text_to_text: set classes or domain"),
    ({"task": {"augment": {"mix": 0.1}, "shots": 2}}, "they change words"),
    ({"model": {"image": [1, 6, 8]}, "task": {"augment": {"rotations": True}}}, "have to be square"),
    ({"model": {"image": None}, "task": {"augment": {"rotations": True}, "family": "classes"}}, "set model.image"),
    ({"algorithm": "multi_task", "task": {"augment": {"rotations": True}}}, "an output for each class"),
    ({"model": {"image": list(SIZE), "max_tokens": 9}}, "model.max_tokens = 9: leave it out"),
])  # fmt: skip
def test_what_does_not_go_with_images_is_refused(sections, why):
    with pytest.raises(InputError, match=why):
        config(**{"model": {"image": list(SIZE)}, **sections})
