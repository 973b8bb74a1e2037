"""Deletion of runs: who may delete one, when it may go, and which ended runs are past their time."""

from collections.abc import Iterable
from dataclasses import dataclass

from control_plane.core.model.errors import Conflict, NotAllowed

ENDED = frozenset({"finished", "stopped", "failed"})
QUEUED = "queued"
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Facts about a run that decide on its deletion.

    parent: the run that it was forked from, or replays.
    ended_at_s: Unix time of its end; None if it has not ended, or if that is not known.
    """

    run: str
    status: str
    owner: str | None = None
    parent: str | None = None
    ended_at_s: float | None = None

    @property
    def is_active(self) -> bool:
        """True while a job of the run is at work, or may be: only ended and queued runs are not active."""
        return self.status not in ENDED and self.status != QUEUED


def check_may_delete(by: str, role: str, run: str, owner: str | None) -> None:
    """Raise `NotAllowed` unless an admin asks, or the operator who owns the run."""
    if role == "admin" or (role == "operator" and owner == by):
        return
    whose = f"run {run} belongs to {owner}" if owner else f"the owner of run {run} is not known"
    raise NotAllowed(f"{whose}: only its owner, as an operator, or an admin may delete it", role=role)


def check_deletable(run: RunFacts, runs: Iterable[RunFacts], job_is_alive: bool) -> None:
    """Raise `Conflict` for a run that is active, or that a run which has not ended still needs."""
    if run.is_active or (job_is_alive and run.status != QUEUED):
        raise Conflict(f"run {run.run} is {run.status if run.is_active else 'ending'}: `steer stop {run.run}` first")
    if reader := reader_of(run.run, runs):
        raise Conflict(
            f"run {run.run} is needed by run {reader}, which was started from it and has not ended: its files are "
            "compared with those of its parent"
        )


def reader_of(run: str, runs: Iterable[RunFacts]) -> str | None:
    """Return a run that has not ended and was started from this one, or None."""
    return next((other.run for other in runs if other.parent == run and other.status not in ENDED), None)


def expired_runs(runs: Iterable[RunFacts], keep_days: float | None, now_s: float) -> list[str]:
    """Return the ended runs that are past their time, but for parents in use. The caller keeps pinned ones."""
    if keep_days is None:
        return []
    listed = list(runs)
    return [
        run.run
        for run in listed
        if run.status in ENDED
        and run.ended_at_s is not None
        and now_s - run.ended_at_s > keep_days * DAY_S
        and reader_of(run.run, listed) is None
    ]
