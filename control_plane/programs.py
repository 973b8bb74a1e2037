"""Command lines that start another program of Steerway in a process of its own."""

import importlib.util
import sys

from control_plane.core.model.errors import SteerwayError

NEEDS_RAY = ("cluster", "ray_jobs")
"""Top-level packages whose programs need the packages of `steerway[train]`."""


def program(module: str, *arguments: str) -> list[str]:
    """Return argv that runs one of Steerway's modules in this interpreter.

    With `-P`, Python does not put the working directory first on its path: a user's own folder named `ui` or `cluster`
    would be run in place of Steerway's package of that name. Raises SteerwayError where Ray, which the program needs,
    is not installed: bare `steerway` is a client only.
    """
    if module.split(".")[0] in NEEDS_RAY and importlib.util.find_spec("ray") is None:
        raise SteerwayError(
            "this command needs Ray, and only Steerway's client is installed here: pip install 'steerway[all]'; to "
            "steer a run on another machine, set STEERWAY_URL and STEERWAY_TOKEN"
        )
    return [sys.executable, "-P", "-m", module, *arguments]
