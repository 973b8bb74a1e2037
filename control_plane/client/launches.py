"""Client of the launch routes: begin runs, resume them, fork and replay them, and look at their Ray job."""

from control_plane.api.launching import (
    LAUNCH_WAIT_S,
    AnyLaunchRequest,
    ForkRequest,
    JobView,
    Launched,
    LaunchRequest,
    ReplayRequest,
    ResumeRequest,
)
from control_plane.api.patience import retrying
from control_plane.api.versions import release
from control_plane.client.answers import parse
from control_plane.client.connection import GatewayConnection, path_of

LEAST_LAUNCH_TRIES = 2
"""A repeated request returns the answer of the first; each try may take a minute, so there are few."""


class RunLaunches(GatewayConnection):
    """Begins, resumes, forks and replays runs. Every request is idempotent by its uuid."""

    def launch(self, request: LaunchRequest) -> Launched:
        """Begin a run. Raises `Refused`, or `Unavailable` if it may or may not have begun."""
        return self._launch("/runs", request)

    def resume(self, run: str, request: ResumeRequest) -> Launched:
        """Start a new job for a run that has none. Raises `NotFound`, `Conflict`, `Refused`, `Unavailable`."""
        return self._launch(path_of(run, "resume"), request)

    def fork(self, run: str, request: ForkRequest) -> Launched:
        """Start runs from a checkpoint of `run`. Raises `NotFound`, `Invalid`, `Refused`, `Unavailable`."""
        return self._launch(path_of(run, "fork"), request)

    def replay(self, run: str, request: ReplayRequest) -> Launched:
        """Start a run that repeats `run`. Raises `NotFound`, `Conflict`, `Refused`, `Unavailable`."""
        return self._launch(path_of(run, "replay"), request)

    def job(self, run: str) -> JobView:
        """Return the run's newest Ray job and whether it lives. Raises `NotFound`."""
        return parse(JobView, self._get_json(path_of(run, "job")))

    def _launch(self, path: str, request: AnyLaunchRequest) -> Launched:
        tries = retrying(LEAST_LAUNCH_TRIES, self._patience_s, 2 * LAUNCH_WAIT_S)
        headers = {"Idempotency-Key": str(request.uuid)}
        body = request.model_dump(mode="json") | {"client": request.client or release()}
        answer = tries(self._request, "POST", path, json=body, headers=headers, timeout=LAUNCH_WAIT_S)
        return parse(Launched, answer)
