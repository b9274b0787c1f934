"""What the keys of a configuration do, as `distmeta config --keys` and `--explain` say it."""

import pytest

from distmeta.config import load_config
from distmeta.config.keys import explain, keys
from distmeta.errors import InputError


def flat(tree, prefix=""):
    for key, value in tree.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]


def test_every_key_of_a_configuration_is_described():
    every = {key.name: key for key in keys()}
    free = ("model.config.", "deepspeed.", "tune.space.")  # keys of another's making
    named = {name for name in flat(load_config("default").model_dump()) if not name.startswith(free)}
    assert named <= every.keys()
    assert all(len(key.description) > 8 and key.values and key.default for key in every.values())


def test_a_description_says_alone_what_its_key_does():
    """It has a subject: no phrase that goes on from the name of the key."""
    dangling = ("of", "in", "from", "by", "for", "its", "there", "those", "that", "on", "at", "to", "null")
    assert not {key.name: key.description for key in keys() if key.description.split()[0].strip(":") in dangling}


def test_one_key_and_one_section():
    key = explain("inner.steps")
    assert (key.values, key.default) == ("integer, at least 0", "5")
    assert {key.name.split(".")[0] for key in keys("inner")} == {"inner"}
    assert any(key.name == "task.augment.mix" for key in keys("task.augment"))
    with pytest.raises(InputError, match="inner.step: no such key; .*inner.steps"):
        explain("inner.step")
    with pytest.raises(InputError, match="inr: no such section"):
        keys("inr")
