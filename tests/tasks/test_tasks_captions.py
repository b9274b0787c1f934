"""Built-in images with words: what a picture shows is what its class says."""

import numpy as np

from distmeta.tasks import captions

SIZE = (3, 24, 24)


def test_splits_share_the_words_and_no_description():
    table = captions.make_captions(0, (1, 4, 4))
    rows = list(zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True))
    of = {split: {label for label, at in rows if at == split} for split in captions.CLASSES}
    assert {split: len(labels) for split, labels in of.items()} == captions.CLASSES
    assert len(set().union(*of.values())) == sum(captions.CLASSES.values())
    words = {split: {word for label in labels for word in label.split()} for split, labels in of.items()}
    assert words["test"] == words["train"]
    assert captions.make_captions(0, (1, 4, 4)).equals(table)
    assert captions.make_captions(1, (1, 4, 4))["label"] != table["label"]


def test_a_picture_shows_what_its_description_says():
    """The pixels nearest to each colour lie where the description puts them."""
    rng, grid = np.random.default_rng(0), np.arange(24) - 11.5
    for word, axis in (("above", 0), ("left of", 1)):
        for shape in captions.SHAPES:
            drawn = captions.draw(("red", shape), ("blue", shape), captions.PLACES[word], rng, SIZE).astype(float)
            first, second = ((np.abs(drawn.transpose(0, 2, 3, 1) - captions.COLOURS[c]).max(-1) < 60).sum(2 - axis)
                             for c in ("red", "blue"))  # fmt: skip
            assert (first.sum(1) > 9).all() and ((first @ grid) / first.sum(1) < (second @ grid) / second.sum(1)).all()
    grid = np.meshgrid(np.linspace(-1, 1, 24), np.linspace(-1, 1, 24), indexing="ij")
    assert len({captions.inside(shape, *grid).tobytes() for shape in captions.SHAPES}) == len(captions.SHAPES)
