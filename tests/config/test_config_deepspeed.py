"""The `deepspeed` section: what is handed through, and what is refused because it would not do what it says."""

import pytest
import small

from distmeta.config.consistency import REFUSED, REFUSED_ZERO
from distmeta.errors import InputError


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_would_be_ignored_or_wrong_is_refused(key):
    with pytest.raises(InputError, match=f"{key}: ") as refused:
        small.config(deepspeed={key: 1})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", REFUSED_ZERO)
def test_so_is_one_of_zero_optimization(key):
    with pytest.raises(InputError, match=f"zero_optimization.{key}: "):
        small.config(deepspeed={"zero_optimization": {key: True}})
    small.config(deepspeed={"zero_optimization": {key: False}})


def test_offload():
    def offload(stage, device):
        return small.config(deepspeed={"zero_optimization": {"stage": stage, "offload_optimizer": {"device": device}}})

    for stage in (1, 2, 3):
        assert offload(stage, "cpu").deepspeed["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    with pytest.raises(InputError, match="stage 1, 2 or 3"):
        offload(0, "cpu")
    with pytest.raises(InputError, match="cpu or none"):
        offload(1, "nvme")


def test_what_deepspeed_knows_is_handed_through():
    made = small.config(deepspeed={"zero_optimization": {"stage": 3, "overlap_comm": False}, "gradient_clipping": 0.0})
    assert made.deepspeed == {"zero_optimization": {"stage": 3, "overlap_comm": False}, "gradient_clipping": 0.0}
