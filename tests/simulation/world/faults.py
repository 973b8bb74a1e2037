"""The one language of faults: what goes wrong, where, and when.

    Faults().crash_server(at="after_sync").drop(0.2).delay(5).refuse(rank=1, reason="no such group", at_step=40)

A fault is either planned (it names its place and happens once) or a rate (it happens by the world's seeded dice).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

CrashPoint = Literal["before_append", "before_sync", "after_sync", "after_evolve"]
CRASH_POINTS: tuple[CrashPoint, ...] = ("before_append", "before_sync", "after_sync", "after_evolve")
RankFault = Literal["refuse", "fail", "misapply", "misread"]
RANK_FAULTS: tuple[RankFault, ...] = ("refuse", "fail", "misapply", "misread")


@dataclass(slots=True)
class PlannedRankFault:
    """One rank does this once, at the first command at or after `at_step`."""

    kind: RankFault
    rank: int
    at_step: int
    reason: str


@dataclass(slots=True)
class Faults:
    """What goes wrong. Every method answers the same object, so that faults read as one sentence."""

    dice: random.Random = field(default_factory=lambda: random.Random(0))
    crash_rate: float = 0.0
    drop_rate: float = 0.0
    duplicate_rate: float = 0.0
    max_delay_ticks: int = 0
    rank_fault_rate: float = 0.0
    stuck_rate: float = 0.0
    kill_rate: float = 0.0
    crashes: list[CrashPoint] = field(default_factory=list)
    stops: list[CrashPoint] = field(default_factory=list)
    # What the world does while a server is stopped: it has another one take over.
    take_over: Callable[[], None] = lambda: None
    clock_jumps_by_s: float = 0.0
    rank_faults: list[PlannedRankFault] = field(default_factory=list)
    kills: list[tuple[int, int]] = field(default_factory=list)
    stuck_ranks: set[int] = field(default_factory=set)

    # The words

    def seeded(self, seed: int) -> "Faults":
        """Throw the dice from this seed."""
        self.dice = random.Random(seed)
        return self

    def crash_server(self, at: CrashPoint | None = None, rate: float = 0.0) -> "Faults":
        """The control server dies once at this point of its next commit, or anywhere at this rate."""
        self.crashes += [at] if at else []
        self.crash_rate = rate or self.crash_rate
        return self

    def stop_server(self, at: CrashPoint) -> "Faults":
        """The control server is stopped at this point of its next commit, and goes on after another took over."""
        self.stops.append(at)
        return self

    def jump_clock(self, by_s: float) -> "Faults":
        """The wall clock is set again and again, by as much as this in either direction."""
        self.clock_jumps_by_s = by_s
        return self

    def drop(self, rate: float) -> "Faults":
        """The link loses this part of all messages."""
        self.drop_rate = rate
        return self

    def duplicate(self, rate: float) -> "Faults":
        """The link delivers this part of all messages twice."""
        self.duplicate_rate = rate
        return self

    def delay(self, up_to_ticks: int) -> "Faults":
        """The link holds every message for up to this long, and so delivers in any order."""
        self.max_delay_ticks = up_to_ticks
        return self

    def refuse(self, rank: int, reason: str = "it cannot", at_step: int = 0) -> "Faults":
        """The rank votes no."""
        return self._plan("refuse", rank, at_step, reason)

    def fail(self, rank: int, reason: str = "it broke", at_step: int = 0) -> "Faults":
        """The rank votes yes, and fails to apply."""
        return self._plan("fail", rank, at_step, reason)

    def misapply(self, rank: int, at_step: int = 0) -> "Faults":
        """The rank sets another value, and reads that one back."""
        return self._plan("misapply", rank, at_step, "")

    def misread(self, rank: int, at_step: int = 0) -> "Faults":
        """The rank sets the right value, and reads another one back."""
        return self._plan("misread", rank, at_step, "")

    def _plan(self, kind: RankFault, rank: int, at_step: int, reason: str) -> "Faults":
        self.rank_faults.append(PlannedRankFault(kind, rank, at_step, reason))
        return self

    def stick(self, rank: int) -> "Faults":
        """From now on this rank cannot undo."""
        self.stuck_ranks.add(rank)
        return self

    def kill_rank(self, rank: int, at_step: int) -> "Faults":
        """The rank dies in the middle of the boundary after this step; the whole group goes with it."""
        self.kills.append((rank, at_step))
        return self

    def trouble_ranks(self, rate: float, stuck: float = 0.0, killed: float = 0.0) -> "Faults":
        """Ranks refuse, fail, misapply and misread at this rate; cannot undo, or die, at these."""
        self.rank_fault_rate, self.stuck_rate, self.kill_rate = rate, stuck, killed
        return self

    def heal(self) -> "Faults":
        """Nothing goes wrong any more."""
        quiet = Faults(dice=self.dice, take_over=self.take_over)
        for name in quiet.__dataclass_fields__:
            setattr(self, name, getattr(quiet, name))
        return self

    # The questions that the world asks

    def server_crashes(self, point: CrashPoint) -> bool:
        """Does the control server die here?"""
        if point in self.crashes:
            self.crashes.remove(point)
            return True
        return self._happens(self.crash_rate / len(CRASH_POINTS))

    def may_stop_server(self, point: CrashPoint) -> None:
        """If the control server is to be stopped here, the world goes on without it for a while."""
        if point in self.stops:
            self.stops.remove(point)
            self.take_over()

    def crash_takes_the_trainers_along(self) -> bool:
        """Does the control server's machine die with it, and the trainers on that one? Only where dice are thrown."""
        return self._happens(0.3 if self.crash_rate else 0.0)

    def delays(self) -> list[int]:
        """After how many ticks each copy of a message arrives; no copy, if it is lost."""
        if self._happens(self.drop_rate):
            return []
        copies = 2 if self._happens(self.duplicate_rate) else 1
        return [self.dice.randint(0, self.max_delay_ticks) if self.max_delay_ticks else 0 for _ in range(copies)]

    def of_rank(self, rank: int, step: int) -> tuple[RankFault, str] | None:
        """What goes wrong with the command that this rank is about to check."""
        for planned in self.rank_faults:
            if planned.rank == rank and planned.at_step <= step:
                self.rank_faults.remove(planned)
                return planned.kind, planned.reason
        return (self.dice.choice(RANK_FAULTS), "bad luck") if self._happens(self.rank_fault_rate) else None

    def is_stuck(self, rank: int) -> bool:
        """Can this rank not undo?"""
        return rank in self.stuck_ranks or self._happens(self.stuck_rate)

    def dies_at_effect(self, step: int) -> int | None:
        """At which effect of the boundary after this step the group dies, if it does."""
        for kill in self.kills:
            if kill[1] == step:
                self.kills.remove(kill)
                return 2
        return self.dice.randint(0, 9) if self._happens(self.kill_rate) else None

    def _happens(self, rate: float) -> bool:
        return rate > 0 and self.dice.random() < rate
