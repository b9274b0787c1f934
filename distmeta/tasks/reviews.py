"""The built-in suite: made-up product reviews in 112 domains, part of whose vocabulary changes its polarity.

A domain (kettle, tent, ...) cares about 3 of 8 attributes (size, weight, sound, ...). Which pole of an
attribute is praised there is drawn per domain, for half of the domains one way and for half the other, in
each split: reviews of other domains cannot tell, a few reviews of this one can, and what carries over is
which words belong together. Every review has two opinion words about different attributes: positive two
praising ones, negative two criticising ones, neutral one of each, in either order. In some reviews one of
the two is a word like 'good' or 'poor', which means the same everywhere, so that pooled training can learn
something. Sentences, fillers and numbers of words are drawn independently of the label; no label has more
words, other words or more opinions.
"""

from __future__ import annotations

import random

import pyarrow as pa

VERSION = 1
LABELS = ("negative", "neutral", "positive")
ATTRIBUTES_PER_DOMAIN = 3
ROWS_PER_LABEL = 50
COMMON_SHARE = 0.45  # of the reviews have one word of COMMON in the place of one about an attribute

# attribute: (words of one pole, words of the other)
ATTRIBUTES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "size": (("large", "big", "huge", "roomy"), ("small", "tiny", "compact", "little")),
    "weight": (("heavy", "weighty", "dense", "hefty"), ("light", "airy", "lightweight", "feathery")),
    "sound": (("loud", "noisy", "booming", "resonant"), ("quiet", "silent", "hushed", "muted")),
    "firmness": (("firm", "hard", "stiff", "rigid"), ("soft", "bendy", "flexible", "pliable")),
    "brightness": (("bright", "shiny", "vivid", "glossy"), ("dark", "dim", "matte", "dusky")),
    "age": (("modern", "new", "futuristic", "contemporary"), ("old", "vintage", "classic", "antique")),
    "simplicity": (("simple", "plain", "basic", "minimal"), ("complex", "elaborate", "ornate", "intricate")),
    "texture": (("smooth", "silky", "sleek", "polished"), ("rough", "grainy", "coarse", "bumpy")),
}
COMMON = (("bad", "poor", "awful", "disappointing"), ("good", "great", "excellent", "delightful"))

_NAMES = {
    "train": (
        "kettle tent toaster backpack lamp sofa headphone keyboard bicycle blender pillow jacket "
        "camera suitcase drill mattress speaker watch oven fridge desk chair helmet glove boot "
        "skateboard guitar printer phone tablet heater fan vacuum mirror carpet curtain wallet "
        "umbrella thermos grill bookshelf wardrobe drawer doorbell clock calculator microscope "
        "telescope trumpet flute drum hairdryer toothbrush shaver bathtub faucet shower sink "
        "dishwasher freezer mixer juicer pan pot plate bowl spoon knife cup jar basket bucket broom "
        "mop hose shovel rake mower tractor wheelbarrow "
    ),
    "validation": (
        "bottle hammock router monitor scooter violin ladder stroller mug bench scarf kayak lantern bracelet saw rug "
    ),
    "test": (
        "iron canoe laptop drone piano stool blanket projector razor sled teapot trolley tripod necklace hammer sandal "
    ),
}
PRODUCTS = {split: names.split() for split, names in _NAMES.items()}

TEMPLATES = (
    "the {product} is {how1} {one} and {how2} {two} {tail}",
    "{head} this {product} , it is {how1} {one} and {how2} {two}",
    "the {product} feels {how1} {one} {tail} , {how2} {two} too",
    "my {product} turned out {how1} {one} and also {how2} {two}",
    "{one} and {how2} {two} , that is this {product} {tail}",
    "{head} the {product} : {how1} {one} , and it is {two}",
    "{tail} i would call the {product} {how1} {one} and {two}",
    "{how1} {one} , {how2} {two} , so much for this {product}",
)
HOW = ("very", "quite", "rather", "really", "fairly", "so")
HEADS = ("i bought", "we ordered", "my sister got me", "last month i tried", "i now own", "we borrowed")
TAILS = (
    "after a week",
    "for a family",
    "in our home",
    "on the first day",
    "out of the box",
    "in daily use",
    "so far",
)


def make_polarities(seed: int = 0) -> dict[str, dict[str, int]]:
    """For each domain, its attributes and the pole (0 or 1) that is praised there."""
    rng = random.Random(f"distmeta reviews {VERSION} {seed}")
    polarities: dict[str, dict[str, int]] = {}
    for products in PRODUCTS.values():
        chosen = _deal_attributes(rng, products)
        for attribute in ATTRIBUTES:
            having = [product for product in products if attribute in chosen[product]]
            poles = [0, 1] * (len(having) // 2)
            rng.shuffle(poles)
            for product, pole in zip(having, poles, strict=True):
                polarities.setdefault(product, {})[attribute] = pole
    return polarities


def _deal_attributes(rng: random.Random, products: list[str]) -> dict[str, set[str]]:
    """Attributes for each product; every attribute for the same, even, number of them.

    Each eight products go once around a circle of the eight attributes and take three neighbours each.
    """
    chosen: dict[str, set[str]] = {}
    shuffled = rng.sample(products, len(products))
    around = len(ATTRIBUTES)
    for begin in range(0, len(shuffled), around):
        circle = rng.sample(list(ATTRIBUTES), around)
        for place, product in enumerate(shuffled[begin : begin + around]):
            chosen[product] = {circle[(place + step) % around] for step in range(ATTRIBUTES_PER_DOMAIN)}
    return chosen


def make_reviews(seed: int = 0) -> pa.Table:
    """A table with the columns text, label, task and split; the same for the same seed."""
    rng = random.Random(f"distmeta reviews {VERSION} {seed} texts")
    polarities = make_polarities(seed)
    columns: dict[str, list[str]] = {"text": [], "label": [], "task": [], "split": []}
    for split, products in PRODUCTS.items():
        for product in products:
            seen: set[str] = set()
            for label in LABELS:
                for _ in range(ROWS_PER_LABEL):
                    text = _review(rng, product, polarities[product], label)
                    while text in seen:
                        text = _review(rng, product, polarities[product], label)
                    seen.add(text)
                    for column, value in zip(columns, (text, label, product, split), strict=True):
                        columns[column].append(value)
    return pa.table(columns)


def _review(rng: random.Random, product: str, praised: dict[str, int], label: str) -> str:
    praise = {"positive": [1, 1], "negative": [0, 0]}.get(label) or rng.sample([0, 1], 2)
    words = []
    for attribute, good in zip(rng.sample(sorted(praised), 2), praise, strict=True):
        pole = praised[attribute] if good else 1 - praised[attribute]
        words.append(rng.choice(ATTRIBUTES[attribute][pole]))
    if rng.random() < COMMON_SHARE:
        place = rng.randrange(2)
        words[place] = rng.choice(COMMON[praise[place]])
    how = rng.sample(HOW, 2)
    return rng.choice(TEMPLATES).format(
        product=product,
        one=words[0],
        two=words[1],
        how1=how[0],
        how2=how[1],
        head=rng.choice(HEADS),
        tail=rng.choice(TAILS),
    )
