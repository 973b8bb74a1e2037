"""Launch port that starts one process of the training side per request: `ray_jobs.service`.

The gateway does not import the training side. The request goes in by standard input, so that neither a secret nor a
command is ever in an argument list; one JSON line comes back. A process that takes too long is killed with its
children; the request may then be repeated with the same uuid.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from control_plane.api.launching import (
    SERVICE_DEADLINE_S,
    AnyLaunchRequest,
    ForkRequest,
    Launched,
    LaunchRequest,
    ReplayRequest,
    Requester,
    ResumeRequest,
    ServiceAnswer,
    ServiceCall,
    ServiceProblem,
    Verb,
)
from control_plane.core.model.errors import Overloaded, SteerwayError, Unavailable, errors_by_slug
from control_plane.core.model.redaction import Redaction
from control_plane.gateway.launching.child_process import run_child
from control_plane.programs import program

MAX_AT_ONCE = 2
"""Each imports Ray and Transformers: a core for some seconds, and 500 MiB."""

MAX_WAITING = 16
"""More requests are rejected: each would wait longer than its client does."""

MAX_LOGGED_CHARS = 4000

log = logging.getLogger(__name__)


class ServiceProcesses:
    """Launch port over processes of `ray_jobs.service`, a bounded number at once. Implements `LaunchPort`."""

    def __init__(
        self,
        environment: Mapping[str, str],
        command: Sequence[str] | None = None,
        deadline_s: float = SERVICE_DEADLINE_S,
        at_once: int = MAX_AT_ONCE,
    ) -> None:
        """Prepare the port. `environment` is added to the gateway's own; `command` replaces the service in tests."""
        self._environment, self._command, self._deadline_s = dict(environment), command, deadline_s
        self._slots, self._waiting = asyncio.Semaphore(at_once), 0

    async def launch(self, request: LaunchRequest, by: Requester) -> Launched:
        """See `LaunchPort.launch`."""
        return await self._call("launch", None, request, by)

    async def resume(self, run: str, request: ResumeRequest, by: Requester) -> Launched:
        """See `LaunchPort.resume`."""
        return await self._call("resume", run, request, by)

    async def fork(self, run: str, request: ForkRequest, by: Requester) -> Launched:
        """See `LaunchPort.fork`."""
        return await self._call("fork", run, request, by)

    async def replay(self, run: str, request: ReplayRequest, by: Requester) -> Launched:
        """See `LaunchPort.replay`."""
        return await self._call("replay", run, request, by)

    async def _call(self, verb: Verb, run: str | None, request: AnyLaunchRequest, by: Requester) -> Launched:
        call = ServiceCall(verb=verb, run=run, request=request.model_dump(mode="json"), by=by)
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} requests wait to start runs already, the limit; try again in a minute")
        deadline = asyncio.get_running_loop().time() + self._deadline_s
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError:
            raise Overloaded("other runs were being started all the time; nothing was started: try again") from None
        finally:
            self._waiting -= 1
        try:
            redaction = Redaction(request.secrets.values())
            answer = await self._run(call.model_dump_json().encode(), redaction, deadline)
        finally:
            self._slots.release()
        if answer.problem is not None:
            raise _error_of(answer.problem)
        if answer.launched is None:
            raise Unavailable("the launch service gave no answer; repeat the request with the same uuid")
        return answer.launched

    async def _run(self, call: bytes, redaction: Redaction, deadline: float) -> ServiceAnswer:
        command = self._command or program("ray_jobs.service")
        try:
            exit_code, out, err = await run_child(command, self._environment, deadline, call)
        except TimeoutError:
            raise Unavailable(
                f"the run was not started within {self._deadline_s:g} s, and the attempt was ended; repeat the "
                "request with the same uuid"
            ) from None
        if err:
            text = redaction.text(err.decode("utf-8", "replace"))[-MAX_LOGGED_CHARS:]
            log.warning("the launch service wrote: %s", text)
        try:
            return ServiceAnswer.model_validate_json(out.strip().rpartition(b"\n")[2])
        except ValidationError:
            raise Unavailable(
                f"the launch service ended without an answer (exit code {exit_code}); the gateway's log says "
                "why. Repeat the request with the same uuid"
            ) from None


def _error_of(problem: ServiceProblem) -> SteerwayError:
    kind = errors_by_slug().get(problem.slug, SteerwayError)
    detail = {str(name): value for name, value in problem.detail.items()}
    return kind(problem.reason, **detail)
