"""A learner group whose number of ranks follows the cluster: `cluster.workers` as a range.

The driver runs one group after another, each of a fixed size, each from the newest whole checkpoint. A group that
lost a rank is followed by one of as many ranks as there is room for. While a group is smaller than it might be, a
thread here watches for room, and asks it, by a file in the run's directory, to end at its next checkpoint.

Ray Train has a range of its own (`ScalingConfig(num_workers=(least, most))`). It ends a group at once to resize it, and
the steps since the last checkpoint are lost; and it counts whole nodes, samplers' CPUs included, as free for ranks
(tests/cluster/test_cluster_elastic.py). Here a group ends at a checkpoint, and a placement is tried before it does.

Which episodes a meta-step has does not depend on the ranks, so that a run's order of episodes stays the same.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from distmeta.config import ClusterConfig
from distmeta.runs.interrupt import GROW, PAUSED, PLACEMENT

PROBE_S = 2.0  # how long a placement may take
SETTLE_S = 10.0  # after a failure: how long to hope for as many ranks as before
WATCH_S = 5.0

Bundle = Mapping[str, float]


def run_groups(
    attempt: Callable[[int], Exception | None],
    cluster: ClusterConfig,
    bundle: Bundle,
    run_dir: Path,
    timeout_s: float,
    say: Callable[[str], None],
) -> Exception | None:
    """Groups, until one ends the run (None) or `cluster.max_failures` + 1 have failed (the last error).

    attempt: runs a group of that many ranks to its end, and returns the error that it died of. bundle: resources of
    a rank. Raises TimeoutError when there is room for fewer than the least number of ranks for `timeout_s`.
    """
    for name in (GROW, PAUSED):  # of a driver that was killed
        (run_dir / name).unlink(missing_ok=True)
    failures, wanted, settle_s = 0, cluster.most, 0.0
    while True:
        size = await_room(cluster, wanted, bundle, settle_s, timeout_s)
        say(f"learning with {size} {'rank' if size == 1 else 'ranks'}")
        with watch_for_room(run_dir, cluster.most - size, bundle):
            failure = attempt(size)
        paused = (run_dir / PAUSED).exists()
        for name in (GROW, PAUSED):
            (run_dir / name).unlink(missing_ok=True)
        wanted, settle_s = size + paused, SETTLE_S
        if failure is None and paused:
            continue
        if failure is None:
            return None
        failures += 1
        if failures > cluster.max_failures or (run_dir / "error.json").exists():
            return failure


def await_room(cluster: ClusterConfig, wanted: int, bundle: Bundle, settle_s: float, timeout_s: float) -> int:
    """How many ranks there is room for: at least `wanted`, or after `settle_s` at least the fewest allowed."""
    began = time.monotonic()
    while True:
        size = room_for(cluster.most, bundle)
        waited = time.monotonic() - began
        if size >= wanted or (size >= cluster.fewest and waited >= settle_s):
            return size
        if waited > timeout_s:
            raise TimeoutError(
                f"cluster.workers = {cluster.shown}: room for {size} ranks only in {timeout_s:g} s; add nodes, and "
                "--resume continues from the newest checkpoint"
            )
        time.sleep(1.0)


def room_for(most: int, bundle: Bundle) -> int:
    """The largest number of ranks, up to `most`, that Ray can place now."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    free = ray.available_resources()
    bound = min(most, *(int(free.get(kind, 0.0) / amount + 1e-6) for kind, amount in bundle.items() if amount > 0))
    for size in range(bound, 0, -1):  # what is free in all may lie on several nodes, too little on each
        group = placement_group([dict(bundle)] * size)
        try:
            if group.wait(PROBE_S):
                return size
        finally:
            remove_placement_group(group)
    return 0


@contextlib.contextmanager
def watch_for_room(run_dir: Path, missing: int, bundle: Bundle) -> Iterator[None]:
    """While a group runs: asks it to pause once there is room for more of the `missing` ranks."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_S):
            if room_for(missing, bundle) > 0:
                (run_dir / GROW).touch()
                return

    thread = threading.Thread(target=watch, daemon=True)
    if missing > 0:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if missing > 0:
            thread.join()


def release(run_dir: Path) -> None:
    """End the newest group of a run, if it is still there: its learners, and what was reserved for them.

    A placement group lives until its creator and the creator's job have both ended: in a job of many runs, that of a
    run which was cut off would hold its processors to the end.
    """
    from ray.util.placement_group import PlacementGroup, PlacementGroupID, remove_placement_group

    note = run_dir / PLACEMENT
    if note.exists():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(note.read_text(encoding="utf-8")))))
        note.unlink(missing_ok=True)
