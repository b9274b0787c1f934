"""The classics are recipes, in the sizes of their protocols."""

import sys
from pathlib import Path

import pytest

from distmeta.config import load_config

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import classics


@pytest.mark.parametrize("name", classics.WORDS)
def test_a_classic_is_a_recipe_with_its_protocol_s_words(name):
    config = load_config(name, classics.WORDS[name])
    assert config.algorithm == "maml" and config.inner.steps == 1 and config.run.name == name
    assert config.of_evaluation().task.shots == {"sinusoid": 5, "navigation": 20}[name]
    assert name in classics.METRIC
