"""The flat example learns: after a short training it adapts to new sines from ten points."""

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "maml_loop.py"


def test_it_adapts_to_sines_that_it_has_not_seen():
    assert len(EXAMPLE.read_text().splitlines()) <= 80
    example = runpy.run_path(str(EXAMPLE))
    params, inner = example["train"](steps=120, tasks=5)
    before, after = example["errors"](params, inner, tasks=50)
    assert after < 0.75 * before
