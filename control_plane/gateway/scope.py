"""Access scope of a token that is restricted to some runs: all other runs look as if they did not exist."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from control_plane.api.messages import RunSummary
from control_plane.api.ports import OperatorPort
from control_plane.core.model.errors import NotFound
from control_plane.gateway.tokens import Identity
from control_plane.storage.layout import RunFiles, check_run_id

if TYPE_CHECKING:
    from control_plane.gateway.app import RunDirectory


class ScopedRuns:
    """Run directory restricted to one token's scope. Implements `app.RunDirectory`."""

    def __init__(self, runs: "RunDirectory", identity: Identity) -> None:
        self._runs, self._identity = runs, identity

    async def list(self) -> Sequence[RunSummary]:
        """Return summaries of the runs in scope."""
        return [summary for summary in await self._runs.list() if self._identity.sees(summary.run)]

    async def handle(self, run: str) -> OperatorPort:
        """Return a handle on a run. Raises `NotFound`, also for a run out of scope, or `Invalid` for a malformed id."""
        self._check(run)
        return await self._runs.handle(run)

    def files(self, run: str) -> RunFiles:
        """Return the run's files. Raises like `handle`."""
        self._check(run)
        return self._runs.files(run)

    def _check(self, run: str) -> None:
        # The same message as for a run that does not exist, so that it does not reveal that the run exists.
        if not self._identity.sees(check_run_id(run)):
            raise NotFound(f"there is no run {run!r}")


def scoped(runs: "RunDirectory", identity: Identity) -> "RunDirectory":
    """Return the run directory as seen by this token."""
    return ScopedRuns(runs, identity) if identity.runs is not None else runs
