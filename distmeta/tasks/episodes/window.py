"""Groups of episodes in order, made ahead of their use, never more than a window of them in flight.

An episode is in flight from the moment it is asked for until its learner holds it: waiting, being made, or
finished in Ray's object store. Which sampler makes it has no influence on it, and a group is handed over
only when it is whole, so that the order and the content do not depend on the samplers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from distmeta.errors import InputError, ProgramError
from distmeta.tasks.rows import Episode

Mixture = dict[str, float] | None
Local = Callable[..., list[Episode]]  # Sampler.sample


class SamplerTimeout(TimeoutError):
    """A group of episodes was not whole in time; the message names who owes what."""


@dataclass
class _Piece:
    """Part of a group, asked of one sampler."""

    indices: list[int]
    last: bool  # of its group
    sampler: int
    mixture: Mixture = None
    reference: Any = None


class EpisodeWindow:
    """Iterate over it for (episodes of a group, seconds waited for them).

    groups   lists of episode indices, in the order of use; read no further than the window reaches
    source   handles of sampler actors; or `Sampler.sample` of one in this process (nothing is made ahead)
    window   most episodes in flight; a larger group is asked for in pieces
    mixture  weights of the data sources for the episode of an index, as known when it is asked for
    ready    whether episodes can be made; they are not asked for before, and iterating ends if none can be
    in_flight, peak: episodes now, and at most so far; waited_s: seconds so far, of which none were of use
    """

    def __init__(
        self,
        groups: Iterable[Sequence[int]],
        source: Sequence[Any] | Local,
        *,
        split: str,
        window: int,
        timeout_s: float = 120.0,
        mixture: Callable[[int], Mixture] = lambda index: None,
        ready: Callable[[Sequence[int]], bool] = lambda indices: True,
    ) -> None:
        if window < 1:
            raise ValueError(f"window = {window}; at least 1")
        self.split, self.window, self.timeout_s = split, window, timeout_s
        self._mixture, self._ready = mixture, ready
        self.in_flight = self.peak = 0
        self.waited_s = 0.0
        self._local = source if callable(source) else None
        self._samplers: Sequence[Any] = [] if callable(source) else source
        if not callable(source) and len(source) == 0:
            raise ValueError("no samplers; for none, give a function that makes episodes in this process")
        self._pieces = self._cut(groups)
        self._next = next(self._pieces, None)
        self._pending: deque[_Piece] = deque()

    def __iter__(self) -> Iterator[tuple[list[Episode], float]]:
        self._ask()
        while self._pending:
            began = time.perf_counter()
            group: list[Episode] = []
            whole = False
            while not whole:
                piece = self._pending[0]
                group += self._receive(piece, began + self.timeout_s)
                self._pending.popleft()
                self.in_flight -= len(piece.indices)
                whole = piece.last
                if not whole or self._local is None:
                    self._ask()  # the samplers go on while the learner works
            waited = time.perf_counter() - began
            self.waited_s += waited
            yield group, waited
            self._ask()

    def add(self, samplers: Sequence[Any]) -> None:
        """Further sampler actors, which take their turn from the next group on."""
        self._samplers = [*self._samplers, *samplers]

    def _cut(self, groups: Iterable[Sequence[int]]) -> Iterator[_Piece]:
        """Groups in pieces, so that every sampler has a part in a group and the window holds one of each."""
        turn = 0
        for group in groups:
            samplers = max(len(self._samplers), 1)
            size = max(1, min(-(-len(group) // samplers), self.window // samplers))
            for begin in range(0, max(len(group), 1), size):  # a group may be empty
                indices = list(group[begin : begin + size])
                mixture = self._mixture(indices[0]) if indices else None
                yield _Piece(indices, begin + size >= len(group), turn % samplers, mixture)
                turn += 1

    def _ask(self) -> None:
        """Asks for as many further pieces as the window allows."""
        while self._next is not None and self.in_flight + len(self._next.indices) <= self.window:
            piece = self._next
            if not self._ready(piece.indices):
                return
            if self._local is None:
                piece.reference = self._samplers[piece.sampler].sample.remote(*self._request(piece))
            elif self._pending:
                return
            self._pending.append(piece)
            self.in_flight += len(piece.indices)
            self.peak = max(self.peak, self.in_flight)
            self._next = next(self._pieces, None)

    def _request(self, piece: _Piece) -> tuple[Any, ...]:
        """Arguments of `Sampler.sample`."""
        return (piece.indices, self.split) + (() if piece.mixture is None else (piece.mixture,))

    def _receive(self, piece: _Piece, deadline: float) -> list[Episode]:
        if self._local is not None:
            return self._local(*self._request(piece))
        import ray

        try:
            episodes = ray.get(piece.reference, timeout=max(deadline - time.perf_counter(), 0))
        except ray.exceptions.GetTimeoutError:
            raise SamplerTimeout(self._who_owes()) from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):  # its one line, without the sampler's traceback
                raise error.cause from None
            if isinstance(error.cause, (OSError, MemoryError, ray.exceptions.RayError)):
                raise  # of the node, not of the program: another attempt may do
            raise ProgramError(_mistake(str(error))) from error
        piece.reference = None
        return episodes  # type: ignore[no-any-return]

    def _who_owes(self) -> str:
        """Names the samplers whose part of the group at the head has not come."""
        import ray

        owed: dict[int, list[int]] = {}
        for piece in self._pending:
            ready, _ = ray.wait([piece.reference], timeout=0)
            if not ready:
                owed.setdefault(piece.sampler, []).extend(piece.indices)
            if piece.last:
                break
        names = "; ".join(
            f"sampler {number} of {len(self._samplers)} (actor {self._samplers[number]._actor_id.hex()[:8]}) "
            f"owes {self.split} episodes {', '.join(map(str, indices))}"
            for number, indices in owed.items()
        )
        return (
            f"no whole group of episodes after sampling.timeout_s={self.timeout_s:g} s: "
            f"{names or 'all have come late'}; is there room in the cluster for "
            f"sampling.actors x cluster.cpus_per_sampler CPUs?"
        )


def _mistake(traceback: str) -> str:
    """The place and the last line of a sampler's traceback."""
    lines = [line.strip() for line in traceback.splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("File ")]
    return f"a sampler failed: {lines[-1]}" + (f" ({places[-1]})" if places else "")
