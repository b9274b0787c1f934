"""How many samplers keep learners from waiting, samplers that come later, a slow learner, and the gauges."""

from __future__ import annotations

import time
import urllib.request
from typing import Any

import pytest
import small

from distmeta.learner.flow import GAUGES, Gauges
from distmeta.tasks.episodes import EpisodeWindow
from distmeta.tasks.episodes.flow import samplers_needed, seconds_per_episode


@pytest.fixture(scope="module")
def timed(ray: Any) -> list[Any]:
    """Three samplers that take so long for an episode as `take` says, and count what they make. They answer two calls
    at once, so that they count while they make."""

    class Timed:
        def __init__(self) -> None:
            self.seconds, self.made = 0.0, 0

        def sample(self, indices: list[int], split: str) -> list[int]:
            time.sleep(self.seconds * len(indices))
            self.made += len(indices)
            return list(indices)

        def take(self, seconds: float) -> None:
            self.seconds, self.made = seconds, 0

        def count(self) -> int:
            return self.made

    return [ray.remote(Timed).options(num_cpus=0, max_concurrency=2).remote() for _ in range(3)]


def start(ray: Any, timed: list[Any], seconds: float = 0.0) -> list[Any]:
    ray.get([sampler.take.remote(seconds) for sampler in timed])
    return timed


@pytest.mark.parametrize("make_s", [0.001, 0.02, 0.3])
@pytest.mark.parametrize("episodes", [1, 8, 100])
@pytest.mark.parametrize("busy_s", [0.01, 0.5, 20.0])
def test_as_many_samplers_as_keep_half_busy(make_s: float, episodes: int, busy_s: float) -> None:
    needed = samplers_needed(make_s, busy_s, episodes)
    assert episodes * make_s / needed <= busy_s / 2 * (1 + 1e-9)  # they are ready in half of the step's time
    assert needed == 1 or episodes * make_s / (needed - 1) > busy_s / 2 * (1 - 1e-9)  # one less would not be


def test_a_sampler_s_rate_is_measured_as_a_learner_sees_it(ray: Any, timed: list[Any]) -> None:
    assert 0.01 < seconds_per_episode(start(ray, timed, 0.01)[0], 60, episodes=8) < 0.1


def test_samplers_that_come_later_take_their_turn_and_change_no_number(ray: Any, timed: list[Any]) -> None:
    groups = [[t * 6 + j for j in range(6)] for t in range(20)]
    samplers = start(ray, timed)
    window = EpisodeWindow(groups, samplers[:1], split="train", window=12, timeout_s=60)
    found = []
    for group, _ in window:
        found.append(group)
        if len(found) == 5:
            window.add(samplers[1:])
    assert found == groups and window.peak <= 12
    counts = ray.get([sampler.count.remote() for sampler in samplers])
    assert sum(counts) == 120 and min(counts[1:]) >= 20


def test_a_learner_ten_times_slower_than_the_samplers_never_has_more_in_flight_than_the_window(
    ray: Any, timed: list[Any]
) -> None:
    samplers = start(ray, timed, 0.002)[:2]
    window = EpisodeWindow(([i, i] for i in range(10**6)), samplers, split="train", window=8, timeout_s=60)
    for used, _ in enumerate(window, 1):
        time.sleep(10 * 2 * 0.002 / 2)
        made = sum(ray.get([sampler.count.remote() for sampler in samplers]))
        assert made - 2 * used <= window.in_flight <= 8  # by the samplers' own count, and by the window's
        if used == 60:
            break
    assert window.peak == 8  # it was not for want of episodes
    assert made >= 2 * used + 6


SECONDS = {"wait_s": 1.0, "inner_s": 2.0, "peers_s": 0.0, "aggregate_s": 0.5, "checkpoint_s": 0.5}


@pytest.mark.usefixtures("ray")
def test_gauges_reach_prometheus(head: Any) -> None:
    Gauges(small.config(run={"name": "mine"}), rank=1).set(SECONDS, in_flight=5, outer_loss=0.25)
    expected = {
        "tasks_per_second": 1.0,
        "wait_share": 0.25,
        "window_in_flight": 5,
        "step_seconds": 4,
        "outer_loss": 0.25,
    }
    deadline = time.monotonic() + 90
    found: dict[str, float] = {}
    while len(found) < len(expected) and time.monotonic() < deadline:
        time.sleep(0.5)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{head.metrics}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            continue
        mine = [line for line in lines if 'run="mine"' in line and 'rank="1"' in line]
        found = {line.split("{")[0].removeprefix("ray_distmeta_"): float(line.rsplit(" ", 1)[1]) for line in mine}
    assert found == expected and {f"distmeta_{name}" for name in found} == set(GAUGES)


def test_without_ray_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray as found

    monkeypatch.setattr(found, "is_initialized", lambda: False)
    gauges = Gauges(small.config(), rank=0)
    gauges.set(SECONDS, 5, 0.25)
    assert not gauges._gauges
