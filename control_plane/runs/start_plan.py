"""Plan of starts: the rule of `core.rules.start_order` on the entries of the queue and the state of the cluster."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from control_plane.core.rules.capacity import ClusterState
from control_plane.core.rules.start_order import ActiveRun, Decision, WaitingRun, decide_starts
from control_plane.runs.queue_files import QueueEntry
from control_plane.runs.quotas import QuotaBook


@dataclass(frozen=True, slots=True)
class StartPlan:
    """Decisions on the queued entries, in the order of the queue, and the entries whose jobs have ended."""

    decisions: tuple[Decision, ...]
    ended: tuple[QueueEntry, ...]

    @property
    def starting(self) -> tuple[str, ...]:
        """The runs that start now."""
        return tuple(decision.run for decision in self.decisions if decision.starts)

    def reason(self, run: str) -> str | None:
        """Return why a queued run waits, or None."""
        return next((decision.reason for decision in self.decisions if decision.run == run), None)


def plan_starts(
    entries: Sequence[QueueEntry],
    living_jobs: Iterable[str],
    cluster: ClusterState,
    quotas: QuotaBook,
    now_s: float,
) -> StartPlan:
    """Return the plan. `living_jobs`: submission ids of Ray's jobs that have not ended."""
    living = frozenset(living_jobs)
    ended = tuple(entry for entry in entries if entry.state == "handed_over" and entry.job not in living)
    active = [
        ActiveRun(entry.run, entry.owner, entry.demand, holds=entry.job in cluster.placed_jobs)
        for entry in entries
        if entry.job in living
    ]
    # A submission that was interrupted before Ray had the job is repeated.
    queued = [entry for entry in entries if entry.is_queued and entry.job not in living]
    held_off = [entry for entry in queued if entry.not_before_s > now_s]
    waiting = [
        WaitingRun(entry.run, entry.owner, entry.priority, entry.since_s, entry.demand)
        for entry in queued
        if entry not in held_off
    ]
    decisions = decide_starts(waiting, active, quotas.of, cluster.nodes, cluster.groups, now_s)
    later = [Decision(entry.run, entry.reason or "its start is tried again soon") for entry in held_off]
    return StartPlan((*decisions, *later), ended)


def in_order(entries: Iterable[QueueEntry], plan: StartPlan) -> list[QueueEntry]:
    """Return the queued entries in the order of the queue, each with its current reason."""
    by_run: Mapping[str, QueueEntry] = {entry.run: entry for entry in entries}
    return [by_run[each.run].model_copy(update={"reason": each.reason}) for each in plan.decisions]
