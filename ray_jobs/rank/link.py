"""Link of rank 0 to the control server, in a thread of its own; training never waits for it.

Two loops share one thread: one holds a long poll for offers, the other pushes outcomes, checkpoints, measurements
and progress. The training thread only exchanges values with them. An outcome is kept until the control server has
confirmed it, however long that server is away (at-least-once delivery); a measurement may be dropped.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from control_plane.api.messages import Phase, Point, Progress, Report, Restart
from control_plane.api.ports import TrainerPort
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, Refused, SteerwayError, Unavailable
from control_plane.core.model.health import HealthChange
from control_plane.core.model.records import (
    CheckpointCommitted,
    CheckpointFailed,
    CommandSettled,
    GenerationEnding,
    StateDigested,
)
from control_plane.core.rules.decisions import GenerationStart
from control_plane.core.rules.recovery import ResumePoint
from ray_jobs.rank.telemetry import Telemetry

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_WAIT_S = 10.0
"""Duration of a long poll. Longer saves calls, shorter notices a failed control server sooner."""

PUSH_EVERY_S = 0.5
"""Interval for pushing measurements; outcomes are pushed at once."""

RETRY_S = 0.5
"""Backoff after a call that failed."""

START_WAIT_S = 60.0
"""Timeout for the control server at the start of the trainers: its actor may just be restarting."""

FAILED_WAIT_S = 2.0
"""The same after a failure: every second here is a second of the recovery."""

MAX_DIGESTS = 10_000
"""Digests buffered while the control server is away. Those beyond are dropped: no training depends on them."""

MAX_HEALTH_CHANGES = 1000
"""Changes of the run's health buffered while the control server is away: alerts are rare."""

MAX_HEALTH_PER_REPORT = 100
"""Largest batch of changes of the run's health in one report."""

MAX_DIGESTS_PER_REPORT = 200
"""Largest batch of digests, which makes one write of the journal."""

FLUSH_WAIT_S = 30.0
"""Timeout at the end of the training for the confirmation of every outcome."""


class Link:
    """Rank 0's connection. `connect` is called in the link's own thread."""

    def __init__(self, connect: Callable[[], TrainerPort], on_superseded: Callable[[str], None] = log.error) -> None:
        """`on_superseded` is called, in the link's thread, when another generation has taken this one's place."""
        self._connect, self._on_superseded = connect, on_superseded
        self._telemetry = Telemetry()
        self._offers: tuple[Command, ...] = ()
        self._outcomes: list[CommandSettled] = []
        self._checkpoints: list[CheckpointCommitted] = []
        self._where: tuple[int, int, Phase, float | None] = (0, 0, "starting", None)
        self._lock = threading.Lock()
        self._generation = 0
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._pushing = asyncio.Lock()
        self._failed: list[CheckpointFailed] = []
        self._digests: list[StateDigested] = []
        self._restart: Restart | None = None
        self._health: list[HealthChange] = []
        self._thread = threading.Thread(target=self._run, name="steerway-link", daemon=True)

    # The training thread's side: none of these waits, but for `resume_point`, `recorded`, `start` and `close`

    def resume_point(self, call: int = 1, fingerprint: str = "") -> ResumePoint:
        """Return the resume point. Raises `Refused` if the trainers may not start, `Unavailable` on timeout."""
        return self._ask(lambda: self._handle.resume_point(call, fingerprint))

    def recorded(self, checkpoint: str) -> CheckpointCommitted | None:
        """Return a checkpoint's journal record, or None. Raises `Unavailable` on timeout."""
        known = self._ask(lambda: self._handle.snapshot()).checkpoints
        return next((one for one in known if one.checkpoint == checkpoint), None)

    def start(self, start: GenerationStart) -> tuple[int, str | None]:
        """Announce the trainers and start both loops. Returns the generation's number, or 0 and the reason why not."""
        try:
            self._generation = self._ask(lambda: self._handle.start_generation(start))
        except SteerwayError as error:
            self._stop_loop()
            return 0, f"the run's control server rejected the start of the trainers: {error}"
        self.progress(start.step, start.total_steps, "training", None)
        for loop in (self._poll, self._push):
            asyncio.run_coroutine_threadsafe(loop(), self._loop)
        return self._generation, None

    def offers(self) -> tuple[Command, ...]:
        """Return the unsettled commands of the last poll. May be stale: the ledger knows what is already decided."""
        return self._offers

    def report(self, outcomes: list[CommandSettled]) -> None:
        """Queue decisions, in order; pushed again until confirmed."""
        with self._lock:
            self._outcomes += outcomes
        self._nudge()

    def checkpoint(self, checkpoint: CheckpointCommitted) -> None:
        """Queue a committed checkpoint for reporting."""
        with self._lock:
            self._checkpoints.append(checkpoint)
        self._nudge()

    def failed_checkpoint(self, failed: CheckpointFailed) -> None:
        """Queue a failed save for reporting."""
        with self._lock:
            self._failed.append(failed)
        self._nudge()

    def digest(self, digested: StateDigested) -> None:
        """Queue a digest of the live state; it is sent with the next report."""
        with self._lock:
            if len(self._digests) < MAX_DIGESTS:
                self._digests.append(digested)

    def health(self, change: HealthChange) -> None:
        """Queue alerts raised and cleared, in order; pushed again until confirmed. Those of a run without a control
        server are bounded: beyond `MAX_HEALTH_CHANGES` the oldest goes."""
        with self._lock:
            self._health.append(change)
            del self._health[:-MAX_HEALTH_CHANGES]
        self._nudge()

    def restarted(self, restart: Restart) -> None:
        """Report the first step after a restart."""
        with self._lock:
            self._restart = restart
        self._nudge()

    def measure(self, points: list[Point]) -> None:
        """Queue measurements; dropped if the buffer is full."""
        self._telemetry.put(points)

    def progress(self, step: int, total_steps: int, phase: Phase, steps_per_s: float | None) -> None:
        """Note step, phase and speed. One assignment: this is called at every step."""
        self._where = (step, total_steps, phase, steps_per_s)

    def phase(self, phase: Phase) -> None:
        """Note the phase."""
        step, total_steps, _, steps_per_s = self._where
        self._where = (step, total_steps, phase, steps_per_s)

    def close(self, ending: GenerationEnding, step: int, reason: str | None, wait_s: float = FLUSH_WAIT_S) -> None:
        """Flush, announce the end, and stop. Logs an error if the control server could not be reached."""
        self._closing = True
        if not self._thread.is_alive():
            return
        future = asyncio.run_coroutine_threadsafe(self._finish(ending, step, reason), self._loop)
        try:
            future.result(wait_s)
        except (SteerwayError, TimeoutError) as error:
            log.error(
                "the end could not be reported to the control server: %s; %d outcomes lost", error, len(self._outcomes)
            )
        self._stop_loop()

    # The link's thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._handle = self._connect()
        self._loop.run_forever()
        loops = asyncio.all_tasks(self._loop)
        for task in loops:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*loops, return_exceptions=True))
        self._loop.close()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def _nudge(self) -> None:
        self._loop.call_soon_threadsafe(self._wake.set)

    def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call with retries until the timeout; the control server's actor may just be restarting."""
        if not self._thread.is_alive():
            self._thread.start()
        try:
            return asyncio.run_coroutine_threadsafe(self._persist(call), self._loop).result(START_WAIT_S + 1)
        except TimeoutError:
            raise Unavailable(f"the run's control server did not answer within {START_WAIT_S:g} s") from None

    async def _persist(self, call: Callable[[], Awaitable[T]]) -> T:
        async with asyncio.timeout(START_WAIT_S):
            while True:
                try:
                    return await call()
                except Refused:
                    raise
                except SteerwayError as error:
                    log.warning("waiting for the control server: %s", error)
                    await asyncio.sleep(RETRY_S)

    async def _poll(self) -> None:
        seen_revision = -1
        while not self._closing:
            try:
                offer = await self._handle.offers(self._generation, seen_revision, POLL_WAIT_S)
            except Conflict as conflict:
                self._offers = ()
                self._on_superseded(conflict.reason)
                return
            except Refused as refusal:
                log.error("polling for commands has ended: %s", refusal.reason)
                self._offers = ()
                return
            except SteerwayError as error:
                log.warning("polling for commands failed and is tried again: %s", error)
                await asyncio.sleep(RETRY_S)
            else:
                self._offers, seen_revision = offer.commands, offer.revision

    async def _push(self) -> None:
        while not self._closing:
            with suppress(TimeoutError):  # nothing urgent: push what has gathered
                async with asyncio.timeout(PUSH_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            if not await self._push_once():
                await asyncio.sleep(RETRY_S)

    async def _push_once(self) -> bool:
        """Push everything queued; return whether it was confirmed. What was not is pushed again."""
        async with self._pushing:
            return await self._push_what_there_is()

    async def _push_what_there_is(self) -> bool:
        with self._lock:
            outcomes, checkpoints = tuple(self._outcomes), tuple(self._checkpoints)
            failed, restart = tuple(self._failed), self._restart
            digests = tuple(self._digests[:MAX_DIGESTS_PER_REPORT])
            health = tuple(self._health[:MAX_HEALTH_PER_REPORT])
        points, dropped = self._telemetry.take()
        step, total_steps, phase, steps_per_s = self._where
        report = Report(
            generation=self._generation,
            outcomes=outcomes,
            checkpoints=checkpoints,
            failed_checkpoints=failed,
            digests=digests,
            health=health,
            restart=restart,
            points=points,
            dropped_points=dropped,
            progress=Progress(step=step, total_steps=total_steps, phase=phase, steps_per_s=steps_per_s),
        )
        try:
            await self._handle.report(report)
        except Refused as refusal:
            log.error("a report was rejected and is sent again in parts: %s", refusal.reason)
            await self._push_pieces(report)
        except SteerwayError as error:
            log.warning("a report of %d outcomes failed and is sent again: %s", len(outcomes), error)
            self._telemetry.put(list(points))
            return False
        with self._lock:
            del self._outcomes[: len(outcomes)]
            del self._checkpoints[: len(checkpoints)]
            del self._failed[: len(failed)]
            del self._digests[: len(digests)]
            self._health = [change for change in self._health if not any(change is sent for sent in health)]
            self._restart = None if self._restart is restart else self._restart
        return True

    async def _push_pieces(self, report: Report) -> None:
        """Push each part of a rejected report by itself: a part that is rejected alone is logged and dropped."""
        alone = Report(generation=report.generation)
        pieces = [alone.model_copy(update={"outcomes": (outcome,)}) for outcome in report.outcomes]
        pieces += [alone.model_copy(update={"checkpoints": (checkpoint,)}) for checkpoint in report.checkpoints]
        pieces += [alone.model_copy(update={"failed_checkpoints": (failed,)}) for failed in report.failed_checkpoints]
        pieces += [alone.model_copy(update={"digests": (digested,)}) for digested in report.digests]
        pieces += [alone.model_copy(update={"health": (change,)}) for change in report.health]
        rest = {"points": report.points, "progress": report.progress, "restart": report.restart}
        pieces.append(alone.model_copy(update=rest))
        for piece in pieces:
            try:
                await self._handle.report(piece)
            except Refused as refusal:
                log.error(
                    "rejected and dropped: %s: %s", refusal.reason, piece.model_dump_json(exclude_defaults=True)[:500]
                )

    async def _finish(self, ending: GenerationEnding, step: int, reason: str | None) -> None:
        while not await self._push_once() or self._outcomes or self._digests or self._health or len(self._telemetry):
            await asyncio.sleep(RETRY_S if self._outcomes else 0)
        await self._handle.end_generation(self._generation, ending, step, reason)
