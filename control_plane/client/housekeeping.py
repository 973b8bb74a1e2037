"""Client of the start queue, of disk usage, and of deletion."""

from control_plane.api.queueing import DeletedRun, StartQueue, Usage
from control_plane.client.answers import parse
from control_plane.client.connection import GatewayConnection, path_of

MEASURE_WITHIN_S = 120.0
"""The first measurement of many large folders takes a while."""


class RunHousekeeping(GatewayConnection):
    """Looks at the queue and at disk usage, and deletes runs."""

    def queue(self) -> StartQueue:
        """Return the runs that wait for their start, in order."""
        return parse(StartQueue, self._get_json("/queue"))

    def usage(self) -> Usage:
        """Return the disk usage of runs and owners, the largest first."""
        return parse(Usage, self._request("GET", "/usage", timeout=MEASURE_WITHIN_S))

    def delete(self, run: str) -> DeletedRun:
        """Delete an ended or queued run. Raises `NotFound`, `NotAllowed`, `Conflict`, `Unavailable`."""
        return parse(DeletedRun, self._request("DELETE", path_of(run), timeout=MEASURE_WITHIN_S))
