"""The ordered window: never more in flight than promised, the same episodes whoever makes them."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import pytest

from distmeta.config import DataConfig, ModelConfig, TaskConfig
from distmeta.errors import InputError, ProgramError
from distmeta.tasks import TaskStore, build_store, open_store
from distmeta.tasks.episodes import Episode, EpisodeWindow, Sampler, SamplerTimeout, start_samplers

TASK = TaskConfig(shots=2, queries=3)
GROUPS = [[t * 6 + j for j in range(6)] for t in range(20)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TaskStore:
    return open_store(build_store(DataConfig(cache=str(tmp_path_factory.mktemp("c"))), TASK, ModelConfig()))


@pytest.fixture(scope="module")
def three(ray: Any, store: TaskStore) -> list[Any]:
    """Sampler actors, which have no state."""
    return start_samplers(store.path, TASK, 0, 3)


@pytest.fixture(scope="module")
def counting(ray: Any) -> list[Any]:
    """Three actors that count what they make; `count` begins again."""

    class Counting:
        made = 0

        def sample(self, indices: list[int], split: str) -> list[int]:
            self.made += len(indices)
            return indices

        def count(self, again: bool = False) -> int:
            made, self.made = self.made, 0 if again else self.made
            return made

    return [ray.remote(Counting).options(num_cpus=0).remote() for _ in range(3)]


def local(store: TaskStore) -> EpisodeWindow:
    return EpisodeWindow(GROUPS, Sampler(store, TASK, 0).sample, split="train", window=4)


def same(a: list[list[Episode]], b: list[list[Episode]]) -> bool:
    def content(e: Episode) -> list[Any]:
        arrays = [np.array(vars(rows)[name]).tolist() for rows in (e.support, e.query) for name in vars(rows)]
        return [e.index, e.task, e.label_names, *arrays]

    return [[content(e) for e in group] for group in a] == [[content(e) for e in group] for group in b]


def test_in_this_process_groups_come_whole_and_in_order(store: TaskStore) -> None:
    window = local(store)
    groups = [[e.index for e in episodes] for episodes, _ in window]
    assert groups == GROUPS and window.peak <= 4 and window.in_flight == 0


def test_an_empty_group_is_a_group(store: TaskStore) -> None:
    window = EpisodeWindow([[1], [], [2]], Sampler(store, TASK, 0).sample, split="train", window=4)
    assert [[e.index for e in episodes] for episodes, _ in window] == [[1], [], [2]]


def test_a_store_that_cannot_be_read_is_named(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="not a whole task store"):
        Sampler(tmp_path / "none", TASK, 0).sample([0], "train")


@pytest.mark.parametrize(("actors", "window"), [(1, 1), (1, 50), (3, 5), (3, 32)])
def test_actors_give_the_same_numbers_and_never_exceed_the_window(
    three: list[Any], store: TaskStore, actors: int, window: int
) -> None:
    episodes = EpisodeWindow(iter(GROUPS), three[:actors], split="train", window=window, timeout_s=60)
    asked = taken = 0
    ask = episodes._ask

    def counted() -> None:
        nonlocal asked
        before = episodes.in_flight
        ask()
        asked += episodes.in_flight - before
        assert asked - taken <= window + 6  # the group that is being put together has left the window

    episodes._ask = counted  # type: ignore[method-assign]
    found = []
    for group, wait_s in episodes:
        assert wait_s >= 0 and episodes.in_flight <= window
        taken += len(group)
        found.append(group)
    assert asked == taken == 120 and episodes.in_flight == 0
    assert episodes.peak <= window and (window < 6 or episodes.peak > window - 6)
    assert same(found, [group for group, _ in local(store)])


def test_a_slow_learner_holds_no_more_than_the_window(ray: Any, counting: list[Any]) -> None:
    sampler = counting[0]
    ray.get(sampler.count.remote(again=True))
    window = EpisodeWindow(([i, i] for i in range(1000)), [sampler], split="train", window=8, timeout_s=60)
    for used, _ in enumerate(window, 1):
        time.sleep(0.02)
        assert ray.get(sampler.count.remote()) <= 2 * used + 8
        if used == 20:
            break


def test_samplers_share_the_work_evenly(ray: Any, counting: list[Any]) -> None:
    ray.get([sampler.count.remote(again=True) for sampler in counting])
    for _ in EpisodeWindow(GROUPS, counting, split="train", window=12, timeout_s=60):
        pass
    assert ray.get([sampler.count.remote() for sampler in counting]) == [40, 40, 40]


def _pid(ray: Any, sampler: Any) -> int:
    return int(ray.get(sampler.__ray_call__.remote(lambda self: os.getpid())))


def test_a_killed_sampler_is_invisible(ray: Any, three: list[Any], store: TaskStore) -> None:
    samplers = three[:2]
    killed = 0
    found = []
    window = EpisodeWindow(GROUPS, samplers, split="train", window=8, timeout_s=60)
    for group, _ in window:
        found.append(group)
        if len(found) in (3, 9):
            os.kill(_pid(ray, samplers[killed]), signal.SIGKILL)
            killed += 1
    assert killed == 2
    assert same(found, [group for group, _ in local(store)])


def test_a_late_sampler_is_named(ray: Any, counting: list[Any]) -> None:
    class Sleepy:
        def sample(self, indices: list[int], split: str) -> list[int]:
            time.sleep(30 if indices else 0)
            return indices

    late = ray.remote(Sleepy).options(num_cpus=0).remote()
    ray.get(late.sample.remote([], "train"), timeout=60)  # it has started
    window = EpisodeWindow([[4, 5, 6, 7]], [counting[0], late], split="train", window=8, timeout_s=1)
    began = time.perf_counter()
    with pytest.raises(SamplerTimeout, match=r"=1 s: sampler 1 of 2 \(actor \w+\) owes train episodes 6, 7;"):
        next(iter(window))
    assert time.perf_counter() - began < 10
    ray.kill(late)


def test_an_error_of_the_data_keeps_its_one_line(ray: Any, tmp_path: Any) -> None:
    samplers = start_samplers(tmp_path / "none", TASK, 0, 1)
    with pytest.raises(InputError, match="none: not a whole task store") as caught:
        next(iter(EpisodeWindow([[0]], samplers, split="train", window=1, timeout_s=60)))
    assert "\n" not in str(caught.value)


def test_arrays_come_from_the_object_store_without_a_copy(three: list[Any]) -> None:
    ((group, _),) = EpisodeWindow([list(range(64))], three[:1], split="train", window=64, timeout_s=60)
    tokens = group[0].support.tokens
    assert tokens.dtype == np.int32 and not tokens.flags.writeable and not tokens.flags.owndata


def test_a_mistake_of_the_program_in_a_sampler_is_told_apart_from_a_fault(ray: Any) -> None:
    class Mistaken:
        def sample(self, indices: list[int], split: str) -> None:
            raise (TypeError, KeyError, OSError)[indices[0]]("no such thing")

    sampler = ray.remote(Mistaken).options(num_cpus=0).remote()
    for index, raised in enumerate((ProgramError, ProgramError, OSError)):
        with pytest.raises(raised, match="no such thing"):
            next(iter(EpisodeWindow([[index]], [sampler], split="train", window=1, timeout_s=60)))
    ray.kill(sampler)
