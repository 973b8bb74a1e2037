"""Launch service: reads one JSON request from standard input, and answers with one JSON line on standard output.

    python -P -m ray_jobs.service < CALL.json

The request and the answer are `control_plane.api.launching.ServiceCall` and `ServiceAnswer`. Values of secret variables
are in the request, never in arguments or in the environment.
"""

import logging
import signal
import sys

from pydantic import ValidationError

from control_plane.api.launching import SERVICE_DEADLINE_S, ServiceAnswer, ServiceCall, ServiceProblem
from control_plane.config import settings
from control_plane.core.model.errors import Invalid, SteerwayError
from ray_jobs.service.launches import LaunchService

log = logging.getLogger("steerway.launch")


def main() -> int:
    """Answer one request and return the exit status: 0 if it was answered, with a problem, too."""
    # The gateway may be gone before this is: nobody would end it then.
    signal.alarm(int(SERVICE_DEADLINE_S) + 1)
    try:
        where = settings()
        launched = LaunchService(where).handle(_read())
        answer = ServiceAnswer(launched=launched)
    except SteerwayError as error:
        problem = ServiceProblem(slug=error.slug, reason=error.reason, status=error.status_hint, detail=error.detail)
        answer = ServiceAnswer(problem=problem)
    print(answer.model_dump_json(), flush=True)
    return 0


def _read() -> ServiceCall:
    try:
        return ServiceCall.model_validate_json(sys.stdin.buffer.read())
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise Invalid(f"the call of the launch service is malformed: {first['loc']}: {first['msg']}") from None


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(main())
