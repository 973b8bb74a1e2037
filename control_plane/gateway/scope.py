"""What a token that is for some runs only can reach: the runs of its globs; every other one does not exist for it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from control_plane.api.handle import RunHandle, RunSummary
from control_plane.core.model.errors import NotFound
from control_plane.gateway.tokens import Identity
from control_plane.storage.layout import RunFiles, check_run_id

if TYPE_CHECKING:
    from control_plane.gateway.app import RunDirectory


class ScopedRuns:
    """The runs that one token is for. Satisfies `app.RunDirectory`; every route reaches runs through it."""

    def __init__(self, runs: "RunDirectory", identity: Identity) -> None:
        self._runs, self._identity = runs, identity

    async def list(self) -> Sequence[RunSummary]:
        """Those of the scope."""
        return [each for each in await self._runs.list() if self._identity.sees(each.run)]

    async def handle(self, run: str) -> RunHandle:
        """Raises `NotFound` also for what is out of the scope, or `Invalid` for a malformed id."""
        self._check(run)
        return await self._runs.handle(run)

    def files(self, run: str) -> RunFiles:
        """Raises as `handle`."""
        self._check(run)
        return self._runs.files(run)

    def _check(self, run: str) -> None:
        # In the words for a run that is not there: whoever may not see it does not learn that it is.
        if not self._identity.sees(check_run_id(run)):
            raise NotFound(f"there is no run {run!r}")


def scoped(runs: "RunDirectory", identity: Identity) -> "RunDirectory":
    """The runs as this token sees them."""
    return ScopedRuns(runs, identity) if identity.runs is not None else runs
