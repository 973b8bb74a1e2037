"""Start of queued runs, as the gateway asks for it: hands those runs to Ray that may start now, and ends.

    python -P -m ray_jobs.service.start_waiting

Any number of these processes may run at once: starts are decided under a lock, and each job is submitted once.
"""

import logging
import signal
import sys
from functools import cache

from control_plane.api.launching import SERVICE_DEADLINE_S
from control_plane.config import settings
from control_plane.core.model.errors import SteerwayError
from ray_jobs.service.ray_submissions import RaySubmissions
from ray_jobs.service.starts import Starts
from ray_jobs.submit import connect


def main() -> int:
    """Start what may start and return the exit status: 0, or 1 with the reason on standard error."""
    # The gateway may be gone before this is: nobody would end it then.
    signal.alarm(int(SERVICE_DEADLINE_S))
    try:
        where = settings()
        Starts(where, RaySubmissions(where, cache(lambda: connect(where)))).start_waiting()
    except SteerwayError as error:
        print(f"steer: {error.reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(main())
