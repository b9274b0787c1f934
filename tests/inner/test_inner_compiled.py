"""The compiled meta-gradient is the plain one, for every shape and setting it is given."""

from __future__ import annotations

import shutil

import pytest
import torch
from inner_networks import F64, Named, differ, mlp_native, mlp_params, mlp_shared, regression
from torch import Tensor

from distmeta.inner import Diverged, InnerLoop, compiled, meta_gradient

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


@needs_compiler
@pytest.mark.long
def test_compiled_equals_plain() -> None:
    fast = compiled(mlp_native, task_axis="native")
    support, query = regression(4, 3), regression(3, 3, seed=2)
    for seed, rate in ((0, 0.1), (1, 0.03)):  # other values of the same shapes: learnt rates are inputs, not constants
        params = mlp_params(3, seed)
        inner = InnerLoop(steps=2, lr=torch.full((2,), rate, dtype=F64))
        found = fast(params, support, query, inner, shared=mlp_shared())
        expected = meta_gradient(mlp_native, params, support, query, inner, shared=mlp_shared(), task_axis="native")
        assert differ(found.grads, expected.grads) < 1e-10
        assert differ(found.shared_grads, expected.shared_grads) < 1e-10
        assert isinstance(found.lr_grads, Tensor) and isinstance(expected.lr_grads, Tensor)
        torch.testing.assert_close(found.lr_grads, expected.lr_grads)
        torch.testing.assert_close(found.inner_losses, expected.inner_losses)
        assert differ(found.adapted, expected.adapted) < 1e-12
    with pytest.raises(Diverged, match="smaller inner.lr"):
        inner = InnerLoop(steps=2, lr=torch.full((2,), 1e200, dtype=F64))
        fast(mlp_params(3), support, query, inner, shared=mlp_shared())


def test_random_numbers_are_refused() -> None:
    def noisy(p: Named, batch: dict[str, Tensor]) -> Tensor:
        return mlp_native({**p, "b1": torch.nn.functional.dropout(p["b1"], 0.5)}, batch)

    fast = compiled(noisy, task_axis="native")
    for seed in (None, 1):
        with pytest.raises(ValueError, match="cannot be compiled"):
            fast(mlp_params(2), regression(4, 2), regression(3, 2), InnerLoop(steps=1, seed=seed))
