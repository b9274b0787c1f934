"""Where a meta-step's time goes, in seconds, as metrics.jsonl has it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

PHASES = ("wait_s", "inner_s", "peers_s", "aggregate_s", "checkpoint_s")  # of every meta-step, one after another


class Clock:
    """seconds: of the phases of the meta-step at hand.

        wait_s        until its episodes had come
        inner_s       meta-gradients of the rank's own episodes
        peers_s       the ranks' wait for the slowest of them
        aggregate_s   the outer step
        checkpoint_s  what the learner waits for: copies, and the end of the checkpoint before
        comm_s        of aggregate_s: gradients and gathered meta-parameters
        base_comm_s   of inner_s: frozen weights on their way, waiting for other ranks included
        fast_comm_s   of inner_s: fast weights on their way, and their gradients
        validation_s  a meta-validation, where there are any; of one beside training the hand-over and the wait for it
        source_s      until the tasks of the next meta-step have come, where the source grows

    engine, base, fast: count their own seconds of communication; base and fast are None where nothing of theirs is
    in shards.
    """

    def __init__(self, engine: Any, base: Any, fast: Any) -> None:
        self._engine, self._spoken = engine, 0.0
        self._shards = {"base_comm_s": base, "fast_comm_s": fast}
        self.seconds: dict[str, float] = {}

    def begin(self, wait_s: float) -> None:
        """A meta-step whose episodes were waited for that long."""
        self.seconds = dict.fromkeys(PHASES, 0.0) | {"wait_s": wait_s}
        self._spoken = self._engine.seconds

    @contextlib.contextmanager
    def phase(self, name: str, timed: bool = True) -> Iterator[None]:
        """Within it the seconds of a phase; of none where `timed` is False."""
        began = time.perf_counter()
        yield
        if timed:
            self.seconds[name] = time.perf_counter() - began

    def read_communication(self) -> None:
        """Take over, after the outer step, what the others have counted in this meta-step."""
        self.seconds["comm_s"] = self._engine.seconds - self._spoken
        for name, shards in self._shards.items():
            if shards is not None:
                self.seconds[name], shards.seconds = shards.seconds, 0.0
