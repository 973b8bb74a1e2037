"""Supervisor of the console on an existing Ray cluster: a detached actor on the head, which Ray restarts.

It starts the console and restarts it, as `cluster.keeper` does on a cluster that `steer up` has started. When the actor
ends, in whatever way, its console ends too, and the port is free.
"""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

from cluster.environment import NOT_INHERITED
from cluster.keeper import POLL_S, HealthChecks, Keeper, parts_file
from cluster.parts import CONSOLE_START_S, last_lines
from cluster.record import make_home, utc_now
from cluster.stopped import StoppedServices
from control_plane.actor.cluster_view import cause_of
from control_plane.actor.control_actor import HEAD, NAMESPACE, SHARE_OF_THE_HEAD
from control_plane.config import Settings
from control_plane.core.model.errors import SteerwayError
from control_plane.programs import program
from control_plane.storage.private import FILE_MODE

NAME = "console"
ANSWER_WITHIN_S = 30.0
ENDS_WITHIN_S = 10.0


class ConsoleSupervisor:
    """Actor that keeps a console running."""

    def __init__(self, where: Settings) -> None:
        self._where = where
        self._log = where.home / "logs" / "console.log"
        make_home(where)
        self._keeper: Keeper | None = None
        self._up = False
        self._code: int | None = None
        # The console ends with the thread that started it: one thread starts every console, and lives with the actor.
        self._thread = threading.Thread(target=self._supervise, name="console", daemon=True)
        self._thread.start()

    def state(self) -> dict[str, Any]:
        """Return whether the console answers, its restarts, and its exit code if it has ended for good."""
        restarts = self._keeper.restarts if self._keeper else 0
        return {"up": self._up, "restarts": restarts, "ended": self._code}

    def end(self) -> None:
        """End the console and do not restart it."""
        if self._keeper is not None:
            self._keeper.end()
        self._thread.join(ENDS_WITHIN_S)

    def _supervise(self) -> None:
        handle = os.open(self._log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, FILE_MODE)
        with os.fdopen(handle, "w") as log:

            def say(line: str) -> None:
                print(f"{utc_now()} {line}", file=log, flush=True)

            self._keeper = keeper = Keeper(program("ui"), say, environment=_environment(self._where), log=log.fileno())
            watch = HealthChecks(self._where)
            stopped = StoppedServices(lambda: _console_of(keeper), say)
            while (code := keeper.look()) is None:
                watch.look(keeper.restarts)
                self._up = watch.is_up("console")
                if self._up:
                    keeper.answered()
                stopped.look(keeper.pid)
                time.sleep(POLL_S)
        self._up, self._code = False, code
        parts_file(self._where).unlink(missing_ok=True)


def _console_of(keeper: Keeper) -> list[psutil.Process]:
    try:
        return [psutil.Process(keeper.pid)] if keeper.pid else []
    except psutil.Error:
        return []


def _environment(where: Settings) -> dict[str, str]:
    """Return the console's environment: this installation's settings, and nothing that belongs to Ray's token."""
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return inherited | where.environment()


def find_console() -> Any | None:
    """Return the actor that supervises the console, or None."""
    try:
        return ray.get_actor(NAME, namespace=NAMESPACE)
    except ValueError:
        return None


def start_console(where: Settings) -> None:
    """Start the supervised console on the head, wait until it answers. Raises `SteerwayError` with its log's end."""
    actor: Any = (
        ray.remote(ConsoleSupervisor)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            num_cpus=0,
            resources={HEAD: SHARE_OF_THE_HEAD},
            runtime_env={"env_vars": where.environment()},
        )
        .remote(where)
    )
    deadline = time.monotonic() + CONSOLE_START_S
    state: dict[str, Any] = {}
    while time.monotonic() < deadline:
        try:
            state = ray.get(actor.state.remote(), timeout=ANSWER_WITHIN_S)
        except RayError as error:
            raise SteerwayError(f"the console's supervisor did not start: {cause_of(error)}") from None
        if state["up"]:
            return
        if state["ended"] is not None:
            break
        time.sleep(POLL_S)
    log = where.home / "logs" / "console.log"
    how = "did not answer in time" if state.get("ended") is None else f"ended with exit code {state['ended']}"
    end_console()
    raise SteerwayError(f"the console {how}; {log} ends:\n{last_lines(Path(log))}")


def end_console() -> bool:
    """End the console and its supervisor. Returns whether there was one. Idempotent."""
    actor = find_console()
    if actor is None:
        return False
    with contextlib.suppress(RayError):  # killed below: the console ends with it
        ray.get(actor.end.remote(), timeout=ANSWER_WITHIN_S)
    ray.kill(actor, no_restart=True)
    return True
