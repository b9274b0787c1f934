"""How many samplers keep the learners from waiting: decided once, from rates measured while the run begins.

Which samplers make an episode has no influence on it, so that more of them change nothing but the clock.
"""

from __future__ import annotations

import math
import time
from typing import Any

SHARE = 0.5  # of its time that a sampler should be at work: what is left evens out uneven steps


def samplers_needed(make_s: float, busy_s: float, episodes: int) -> int:
    """Samplers, each at work for SHARE of the time, that make a meta-step's episodes while the last are learnt from.

    make_s: in which one sampler makes an episode, the way to the learner included; busy_s: a meta-step's, without
    what the learners waited for episodes; episodes: of a meta-step, over all ranks.
    """
    if busy_s <= 0:
        raise ValueError(f"busy_s = {busy_s}: a meta-step takes some time")
    return max(1, math.ceil(episodes * make_s / (SHARE * busy_s)))


def seconds_per_episode(sampler: Any, timeout_s: float, split: str = "train", episodes: int = 16) -> float:
    """As a learner sees it: the least of three calls, after one that opens the store."""
    import ray

    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        ray.get(sampler.sample.remote(range(episodes), split), timeout=timeout_s)
        seconds.append((time.perf_counter() - began) / episodes)
    return min(seconds[1:])
