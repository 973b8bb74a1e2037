"""Real rank of the scale benchmark: boundaries over gloo, with and without a command."""

import os
import time
from typing import Any
from uuid import UUID

from control_plane.core.boundary import COMPARE_EVERY_STEPS, Applied
from control_plane.core.model.commands import Command, SetLearningRate
from control_plane.core.model.records import RankPlace
from ray_jobs.process.collectives import Collectives
from ray_jobs.rank.session import RankSession

WARM_UP = 20


class Rates:
    """Applier with one learning rate."""

    def __init__(self) -> None:
        self.value = 1e-3
        self._before = self.value

    def check(self, command: Command) -> str | None:
        """Return None: every command is accepted."""
        return None

    def apply(self, command: Command, step: int) -> Applied:
        """Set the learning rate."""
        assert isinstance(command.intent, SetLearningRate)
        self._before, self.value = self.value, command.intent.value or self.value
        return Applied({"lr": [self._before]}, {"lr": [self.value]})

    def undo(self, command: Command) -> None:
        """Restore the learning rate."""
        self.value = self._before


class Offers:
    """Fake of rank 0's link to a control server, which offers given commands."""

    def __init__(self) -> None:
        self.next: tuple[Command, ...] = ()

    def offers(self) -> tuple[Command, ...]:
        """Return the commands for the next boundary."""
        return self.next

    def report(self, outcomes: Any) -> None:
        """Discard the outcomes."""

    def progress(self, *told: Any) -> None:
        """Discard the progress."""

    def start(self, start: Any) -> tuple[int, None]:
        """Return the first generation."""
        return 1, None


def run(rank: int, spec: dict[str, Any]) -> dict[str, list[float]]:
    """Return the times of boundaries on this rank, in microseconds. `spec`: n, the number of each kind."""
    offers = Offers()
    session = RankSession(Collectives(), offers if rank == 0 else None)  # type: ignore[arg-type]
    session.register("set_learning_rate", Rates())
    session.start(RankPlace(rank=rank, node="local", pid=os.getpid(), device="cpu"), 0, {}, {})
    taken: dict[str, list[float]] = {"quiet": [], "command": []}
    for number in range(1, WARM_UP + 2 * spec["n"] + 1):
        kind = "command" if number % 2 else "quiet"
        # Not one of the steps at which knobs are compared.
        step = number * COMPARE_EVERY_STEPS + 1
        if kind == "command":
            offers.next = (Command(uuid=UUID(int=number), author="b", intent=SetLearningRate(value=number * 1e-6)),)
        session.collectives.barrier()
        begun_ns = time.perf_counter_ns()
        session.begin_step(step)
        session.end_step(step)
        if number > WARM_UP:
            taken[kind].append((time.perf_counter_ns() - begun_ns) / 1e3)
        offers.next = ()
    return taken
