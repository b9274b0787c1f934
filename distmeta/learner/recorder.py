"""What a rank tells of each meta-step: the journal and warnings on rank 0, gauges on every rank."""

from __future__ import annotations

import dataclasses
from typing import Any

from distmeta import health
from distmeta.learner.flow import Gauges
from distmeta.learner.ranks import Rank
from distmeta.learner.state import Reached
from distmeta.models.footprint import Choice
from distmeta.runs.directory import note
from distmeta.runs.journal import Journal


class Recorder:
    """Goes on from the record of `reached`. classes: of an episode; None where answers are words."""

    def __init__(self, rank: Rank, reached: Reached, classes: int | None) -> None:
        self._journal = Journal(rank.run_dir, reached.step, reached.record) if rank.number == 0 else None
        self._gauges = Gauges(rank.config, rank.number)
        self._watch = health.Watch(classes, rank.say)
        self._rank, self._has_told = rank, rank.number > 0

    @property
    def warnings(self) -> list[health.Sign]:
        """The signs in the newest records."""
        return self._watch.warnings

    def sync(self) -> None:
        """What was written is on the disk before a checkpoint that counts on it."""
        if self._journal:
            self._journal.sync()

    def tell(self, choice: Choice) -> None:
        """Say once, and write down in environment.json, how the first group of tasks was run."""
        if not self._has_told:
            self._has_told = True
            self._rank.say(f"memory: {choice}")
            note(self._rank.run_dir, memory=dataclasses.asdict(choice))

    def write(self, record: dict[str, Any], seconds: dict[str, float], in_flight: int) -> None:
        """A meta-step's record with the seconds of its phases. in_flight: episodes asked for and not yet used."""
        self._gauges.set(seconds, in_flight, record["outer_loss"])
        if self._journal:
            self._journal.write(record | seconds)
            self._watch.see(record)
