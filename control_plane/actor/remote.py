"""Remote handle of a run's control actor, with retries; secrets are redacted before a call leaves its process.

Ray's calls are at-most-once or at-least-once, never exactly once: a call may have run although it raised. Every
method of a handle is idempotent, so this one retries for as long as an actor takes to restart.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential

from control_plane.actor.control_actor import get_or_create, is_serving
from control_plane.api import versions
from control_plane.api.messages import (
    ADOPTION_WAIT_S,
    CommandView,
    Measurements,
    MetricSummary,
    Offer,
    Receipt,
    Report,
    Snapshot,
    StepRange,
    Trajectories,
)
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import SteerwayError, Unavailable
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.records import Death, Ending, Entry, GenerationEnding
from control_plane.core.model.redaction import Redaction
from control_plane.core.model.state import fold
from control_plane.core.rules.decisions import GenerationStart
from control_plane.core.rules.recovery import ResumePoint
from control_plane.storage.journal import writer
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 10.0
"""A call without a long poll takes milliseconds; beyond this the actor is gone or stuck."""

RETRY_FOR_S = 15.0
"""Ray restarts an actor within a few seconds; after this the caller gets `Unavailable`."""


class RayHandle:
    """A run's control server, wherever Ray runs it. An `OperatorPort` and a `TrainerPort`."""

    def __init__(self, files: RunFiles, retry_for_s: float = RETRY_FOR_S) -> None:
        self._files, self._retry_for_s = files, retry_for_s
        self._actor: Any = None
        self._had_one = False

    async def _call(self, method: str, *args: Any, wait_s: float = 0.0) -> Any:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Unavailable),
            stop=stop_after_delay(self._retry_for_s),
            wait=wait_exponential(multiplier=0.05, max=1.0),
            reraise=True,
        )
        return await retrying(self._call_once, method, args, wait_s)

    async def _call_once(self, method: str, args: tuple[Any, ...], wait_s: float) -> Any:
        try:
            if self._actor is None:
                # Blocks for milliseconds; in a thread it does not hold up other calls.
                found = await asyncio.to_thread(self._find)
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    versions.check_protocol(self._files.run, await _protocol_of(found))
                self._actor = found
            call = getattr(self._actor, method).remote(*args)
            async with asyncio.timeout(wait_s + CALL_TIMEOUT_S):
                return await call
        except RayTaskError as error:
            if isinstance(error.cause, SteerwayError):
                raise error.cause from None
            log.exception("%s of run %s", method, self._files.run)
            cause = self._redaction().text(repr(error.cause))
            raise Unavailable(f"the control server of run {self._files.run} failed: {cause}") from error
        except (RayActorError, GetTimeoutError, TimeoutError) as error:
            self._actor = None
            raise Unavailable(f"the control server of run {self._files.run} does not answer") from error
        except (RayError, ValueError, ConnectionError) as error:
            self._actor = None
            cause = self._redaction().text(str(error))
            raise Unavailable(f"the control server of run {self._files.run} cannot be reached: {cause}") from error

    def _redaction(self) -> Redaction:
        """Build the redactor anew for each call: a script may have put a secret into its environment since."""
        return redaction_of(self._files)

    def _clean(self, reason: str | None) -> str | None:
        return None if reason is None else self._redaction().text(reason)

    def _find(self) -> Any:
        """Return the run's actor. A retired one is not created again: it would serve a closed run for ever."""
        if self._had_one and not is_serving(self._files) and _is_closed(self._files):
            raise Unavailable(f"run {self._files.run} has ended and its control server was retired; retry")
        actor = get_or_create(self._files)
        self._had_one = True
        return actor

    async def submit(self, command: Command) -> Receipt:
        """See `OperatorPort.submit`."""
        patience_s = ADOPTION_WAIT_S if isinstance(command.intent, AdoptCheckpoint) else 0.0
        return await self._call("submit", command, wait_s=patience_s)

    async def command(self, uuid: UUID) -> CommandView:
        """See `OperatorPort.command`."""
        return await self._call("command", uuid)

    async def snapshot(self) -> Snapshot:
        """See `OperatorPort.snapshot`."""
        return await self._call("snapshot")

    async def tail(self, after_seq: int, limit: int, wait_s: float) -> tuple[Entry, ...]:
        """See `OperatorPort.tail`."""
        return await self._call("tail", after_seq, limit, wait_s, wait_s=wait_s)

    async def measurements(self, after: int, limit: int, names: tuple[str, ...] = ()) -> Measurements:
        """See `OperatorPort.measurements`."""
        return await self._call("measurements", after, limit, names)

    async def results(self, stretches: tuple[StepRange, ...], names: tuple[str, ...]) -> tuple[MetricSummary, ...]:
        """See `OperatorPort.results`."""
        return await self._call("results", stretches, names)

    async def trajectories(self) -> Trajectories:
        """See `OperatorPort.trajectories`."""
        return await self._call("trajectories")

    async def resume_point(self, call: int = 1, fingerprint: str = "") -> ResumePoint:
        """See `TrainerPort.resume_point`."""
        return await self._call("resume_point", call, fingerprint)

    async def resume(self, author: str, back: bool = False) -> None:
        """See `TrainerPort.resume`."""
        await self._call("resume", author, back)

    async def fail_generation(self, generation: int, deaths: tuple[Death, ...], failure: UUID | None = None) -> None:
        """See `TrainerPort.fail_generation`."""
        cleaned = tuple(map(self._redaction().words, deaths))
        await self._call("fail_generation", generation, cleaned, failure)

    async def start_generation(self, start: GenerationStart) -> int:
        """See `TrainerPort.start_generation`."""
        return await self._call("start_generation", self._redaction().words(start))

    async def offers(self, generation: int, seen_revision: int, wait_s: float) -> Offer:
        """See `TrainerPort.offers`."""
        return await self._call("offers", generation, seen_revision, wait_s, wait_s=wait_s)

    async def report(self, report: Report) -> None:
        """See `TrainerPort.report`."""
        await self._call("report", self._redaction().words(report))

    async def end_generation(self, generation: int, ending: GenerationEnding, step: int, reason: str | None) -> None:
        """See `TrainerPort.end_generation`."""
        await self._call("end_generation", generation, ending, step, self._clean(reason))

    async def close(self, ending: Ending, reason: str | None) -> None:
        """See `TrainerPort.close`."""
        await self._call("close", ending, self._clean(reason))

    async def pid(self) -> int:
        """Return the pid of the control server."""
        return int(await self._call("pid"))


async def _protocol_of(actor: Any) -> Mapping[str, int | str]:
    """Return what the actor answers about its version; one of release 0.1 has no such method."""
    ask = getattr(actor, "protocol", None)
    answer: Mapping[str, int | str] = versions.OLDEST if ask is None else await ask.remote()
    return answer


def _is_closed(files: RunFiles) -> bool:
    return fold(writer.read(files.journal)).closed is not None
