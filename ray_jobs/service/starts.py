"""Starts of runs: hands a run to Ray if there is room and quota for it, else leaves it in the start queue.

Decisions are made one at a time, under the lock of the queue's folder, by `core.rules.start_order`. A run's entry is
written before its job is submitted, with the name of the job: a process that dies in between leaves an entry for which
the job is looked up, by the request's uuid, and submitted once.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from control_plane.actor.cluster_state import ClusterReader
from control_plane.api.launching import LaunchedRun
from control_plane.config import Settings
from control_plane.core.model.errors import Conflict, Refused, SteerwayError
from control_plane.core.rules.capacity import ClusterState, Demand, reason_never_fits, spread_that_is_not_had
from control_plane.core.rules.start_order import reason_never_allowed
from control_plane.runs.queue_files import QueueEntry, QueueFolder
from control_plane.runs.quotas import QuotaBook, quotas_path
from control_plane.runs.start_plan import StartPlan, plan_starts
from control_plane.runs.usage import bytes_of_owner
from control_plane.storage.failpoints import reach
from ray_jobs.config.demand import demand_of, uses_gpus
from ray_jobs.config.run_config import RunConfig
from ray_jobs.submit import ray_environment

TRY_AGAIN_AFTER_S = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Room:
    """Demand of a config that can be met, now or later, and sentences that the user should see."""

    demand: Demand
    notes: tuple[str, ...] = ()


class Jobs(Protocol):
    """Ray's jobs, as starts need them."""

    def living(self) -> Iterable[str]:
        """Return the submission ids of the jobs that have not ended. Raises `Unavailable`."""
        ...

    def find(self, entry: QueueEntry) -> str | None:
        """Return the job that was submitted for an entry's request, or None. Raises `Unavailable`."""
        ...

    def submit(self, entry: QueueEntry) -> str:
        """Submit the job of an entry, unless Ray has it, and return its submission id.

        Raises `NotTaken` if Ray has certainly not taken it, `SteerwayError` if it may have.
        """
        ...


class NotTaken(Exception):
    """A job that Ray has certainly not taken; `reason` says why."""

    def __init__(self, reason: SteerwayError) -> None:
        super().__init__(reason.reason)
        self.reason = reason


class Starts:
    """Starts of one installation's runs."""

    def __init__(
        self,
        where: Settings,
        jobs: Jobs,
        read_cluster: Callable[[], ClusterState] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare. `read_cluster` replaces the cluster in tests."""
        self._where, self._jobs, self._clock = where, jobs, clock
        self._read_cluster = read_cluster or _reader(where)
        self._folder = QueueFolder(where.home)

    def check(self, config: RunConfig, owner: str, wait_for_nodes: bool) -> Room:
        """Return a config's demand, and notes for the user. Raises `Refused` for what can never start."""
        cluster = self._read_cluster()
        demand = demand_of(config, uses_gpus(config, cluster.nodes, cluster.groups))
        quota = self._quotas().of(owner)
        used_bytes = bytes_of_owner(self._where.runs_dir, owner) if quota.bytes is not None else 0
        if reason := reason_never_allowed(owner, demand, quota, used_bytes):
            raise Refused(f"{config.name} is not accepted: {reason}", owner=owner)
        reason = reason_never_fits(demand, cluster.nodes, cluster.groups)
        if reason is not None and not wait_for_nodes:
            raise Refused(f"{config.name} {reason}; wait_for_nodes accepts the run all the same, for nodes to come")
        note = spread_that_is_not_had(demand, cluster.nodes, cluster.groups)
        return Room(demand, (note,) if note else ())

    def check_not_queued(self, entry: QueueEntry) -> None:
        """Raise `Conflict` if the run is queued already, for another request."""
        before = self._folder.entry(entry.run)
        if before is None or not before.is_queued or before.request == entry.request:
            return
        if before.state == "queued" or self._jobs.find(before) is None:
            raise Conflict(f"run {entry.run} is in the queue already: {before.reason or 'it is being started'}")

    def start_or_queue(self, entry: QueueEntry) -> LaunchedRun:
        """Hand a run to Ray, or queue it with the reason. Idempotent by the entry's request.

        Raises `NotTaken`; then the run is neither queued nor started. Raises `Conflict` if the run is queued already,
        and `SteerwayError` if Ray may have taken the job: then it is looked up, and submitted if it is not there.
        """
        with self._folder.deciding():
            self.check_not_queued(entry)
            before = self._folder.entry(entry.run)
            if before is not None and before.request == entry.request:
                entry = self._found(before)
            if entry.job is not None:
                return LaunchedRun(run=entry.run, job=entry.job)
            others = [each for each in self._folder.entries() if each.run != entry.run]
            reason = self._plan([*others, entry]).reason(entry.run)
            if reason is not None:
                self._folder.write(entry.model_copy(update={"state": "queued", "reason": reason}))
                return LaunchedRun(run=entry.run, queued_because=reason)
            try:
                return LaunchedRun(run=entry.run, job=self._hand_over(entry).job)
            except NotTaken:
                self._folder.remove(entry.run)
                raise

    def start_waiting(self) -> list[LaunchedRun]:
        """Hand every queued run to Ray that may start now; note for the others why not."""
        started = []
        with self._folder.deciding():
            entries = {entry.run: self._found(entry) for entry in self._folder.entries()}
            for decision in self._plan(list(entries.values())).decisions:
                entry = entries[decision.run]
                if decision.reason is not None:
                    if (entry.reason, entry.state) != (decision.reason, "queued"):
                        self._folder.write(entry.model_copy(update={"state": "queued", "reason": decision.reason}))
                    continue
                try:
                    started.append(LaunchedRun(run=entry.run, job=self._hand_over(entry).job))
                except (NotTaken, SteerwayError) as error:
                    log.warning("run %s could not be handed to Ray: %s", entry.run, error)
                    reason, later = f"could not be handed to Ray: {error}", self._clock() + TRY_AGAIN_AFTER_S
                    update = {"state": "queued", "reason": reason, "not_before_s": later}
                    self._folder.write(entry.model_copy(update=update))
        return started

    def _found(self, entry: QueueEntry) -> QueueEntry:
        """Return an entry whose submission was interrupted with its job, if Ray has it."""
        if entry.state != "starting" or (job := self._jobs.find(entry)) is None:
            return entry
        return self._folder.write(entry.model_copy(update={"state": "handed_over", "job": job}))

    def _hand_over(self, entry: QueueEntry) -> QueueEntry:
        entry = self._folder.write(entry.model_copy(update={"state": "starting", "reason": None}))
        reach("launch", "after_entry")
        job = self._jobs.submit(entry)
        return self._folder.write(entry.model_copy(update={"state": "handed_over", "job": job}))

    def _plan(self, entries: list[QueueEntry]) -> StartPlan:
        plan = plan_starts(entries, self._jobs.living(), self._read_cluster(), self._quotas(), self._clock())
        for ended in plan.ended:
            self._folder.remove(ended.run)
        return plan

    def _quotas(self) -> QuotaBook:
        return QuotaBook.from_file(quotas_path(self._where.home))


def _reader(where: Settings) -> Callable[[], ClusterState]:
    os.environ.update(ray_environment(where))  # Ray reads it when it is imported
    return ClusterReader(where.ray_address).read


def entry_of(
    run: str, request: UUID, owner: str, priority: int, demand: Demand, clock: Callable[[], float] = time.time
) -> QueueEntry:
    """Return the queue entry of a run that is submitted now."""
    return QueueEntry(run=run, request=request, owner=owner, priority=priority, since_s=clock(), demand=demand)
