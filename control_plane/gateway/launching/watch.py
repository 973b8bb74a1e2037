"""Job watch: a run whose Ray job ends before it has begun is closed as failed with a reason, without being asked.

A driver closes its own run, whatever becomes of the training. One that was never started (its command failed, its
runtime environment could not be made) or was killed cannot. Before the first generation there is nothing to resume, so
the run is closed; later it stays open, is shown so, and `steer resume` continues it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from control_plane.api.launching import JobView
from control_plane.core.model.errors import SteerwayError, Unavailable
from control_plane.core.model.state import RunState
from control_plane.gateway.launching.jobs import ENDED, JobsOfRay, RayJob, newest_jobs, summary

LOOK_EVERY_S = 3.0
"""One request to Ray's dashboard, which takes it some milliseconds."""

FRESH_FOR_S = 1.0
"""Age up to which a list of jobs answers a question: many clients ask for the same run."""

log = logging.getLogger(__name__)


class WatchedRuns(Protocol):
    """Access to the runs whose jobs are watched."""

    async def state(self, run: str) -> RunState | None:
        """Return a run's state by its journal; None if there is no such run. Raises `SteerwayError`."""
        ...

    async def queued_because(self, run: str) -> str | None:
        """Return why a run waits in the start queue (empty: not known yet), or None if it does not."""
        ...

    async def close(self, run: str, reason: str) -> None:
        """Close a run as failed. `reason` is completed with the end of the driver's log. Raises `SteerwayError`."""
        ...


class JobWatch:
    """Watches the Ray jobs of all runs. Implements `JobLookup`."""

    def __init__(self, jobs: JobsOfRay, runs: WatchedRuns, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs, self._runs, self._clock = jobs, runs, clock
        self._seen: Sequence[RayJob] = ()
        self._seen_at = float("-inf")
        self._asking = asyncio.Lock()
        # Ended jobs whose runs need nothing more.
        self._done: set[str] = set()

    async def job(self, run: str) -> JobView:
        """Return the run's newest job; of one that has ended, how, and what its run needs."""
        if (reason := await self._runs.queued_because(run)) is not None:
            return JobView(run=run, status="queued", message=reason or None)
        try:
            jobs = await self._list(FRESH_FOR_S)
        except Unavailable as error:
            return JobView(run=run, status="unknown", message=error.reason)
        found = newest_jobs(jobs).get(run)
        if found is None:
            return JobView(run=run)
        message = None if found.status == "running" else summary(found.message) or None
        view = JobView(run=run, job=found.name, status=found.status, message=message)
        if found.status not in ENDED:
            return view
        state = await self._runs.state(run)
        if state is None or state.closed is not None:
            return view
        why = f": {view.message}" if view.message else ""
        return view.model_copy(
            update={
                "message": f"the Ray job of run {run} has ended ({found.status}), but the run was never closed; "
                f"restart it with `steer resume {run}`{why}"
            }
        )

    async def watch(self) -> None:
        """Look at the jobs every few seconds, for ever."""
        while True:
            try:
                await self.look()
            except Unavailable as error:
                log.debug("Ray's jobs are not known: %s", error.reason)
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Look once, and close the runs whose newest job has ended before they began. Raises `Unavailable`."""
        jobs = await self._list(0.0)
        self._done &= {job.name for job in jobs}
        for run, job in newest_jobs(jobs).items():
            if job.status not in ENDED or job.name in self._done:
                continue
            try:
                if await self._runs.queued_because(run) is not None:
                    continue  # it is about to get another job
                await self._after(run, job)
            except Unavailable as error:
                log.warning("run %s, whose job has ended: %s", run, error.reason)
                continue  # at the next look
            except SteerwayError as error:
                log.error("run %s, whose job has ended: %s", run, error.reason)
            self._done.add(job.name)

    async def _after(self, run: str, job: RayJob) -> None:
        state = await self._runs.state(run)
        if state is None or state.closed is not None or state.generation_number > 0:
            return
        how = {"failed": "failed", "stopped": "was stopped"}.get(job.status, "ended")
        why = summary(job.message)
        await self._runs.close(run, f"Ray job {job.name} {how} before the run had begun{f': {why}' if why else ''}")
        log.warning("run %s was closed: its job %s %s before it had begun", run, job.name, how)

    async def _list(self, fresh_for_s: float) -> Sequence[RayJob]:
        async with self._asking:
            if self._clock() - self._seen_at > fresh_for_s:
                self._seen, self._seen_at = await self._jobs.list(), self._clock()
            return self._seen
