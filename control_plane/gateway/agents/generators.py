"""Supervision of generators: one process for each generator in the config of a run that trains.

They are kept as agents are: tied to the gateway's life, one at a time by a lock, started again after a failure with a
growing pause. A generator whose budget is used up has ended, and is not started again by this gateway. Replays have
none: the records that came in come by the recorded commands.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control_plane.api.messages import Snapshot
from control_plane.config import Settings
from control_plane.core.model.errors import NotFound, SteerwayError
from control_plane.core.rules.agent.generating import GeneratorSettings
from control_plane.gateway.agents.process import Ended, lock_of, run_agent_process
from control_plane.gateway.agents.restarts import LOCK_PAUSE_S, Restarts, supervise
from control_plane.gateway.agents.supervisor import NOT_WORKED_ON, Runs
from control_plane.gateway.agents.tether import IS_HELD
from control_plane.gateway.tokens import mint_generator_token, revoke_generator_tokens
from control_plane.programs import program
from control_plane.storage.data.declared import declared_generators
from control_plane.storage.layout import RunFiles, list_runs

LOOK_EVERY_S = 3.0
IDLE_PAUSE_S = 10.0
"""Pause between two looks at a run that does not train: there may be many that have ended."""

SETTINGS = "STEERWAY_GENERATOR"
MENTIONS = b"generators:"

log = logging.getLogger(__name__)

Start = Callable[[RunFiles, str, GeneratorSettings, str], Awaitable[Ended]]
"""Runs one generator's process with a token, until its end."""


@dataclass(slots=True)
class _OfRun:
    """Generators of one run. `version`: of its config; `tasks`: those that run, or have ended, by name."""

    version: tuple[int, int]
    settings: dict[str, GeneratorSettings]
    tasks: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    not_before_s: float = 0.0


class GeneratorSupervisor:
    """Supervisor of the generators of one installation."""

    def __init__(
        self,
        where: Settings,
        runs: Runs,
        *,
        start: Start | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        in_thread: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        """Prepare it. `start` replaces the process in tests."""
        self._where, self._runs, self._sleep, self._in_thread = where, runs, sleep, in_thread
        self._start = start or self._run_process
        self._known: dict[str, _OfRun] = {}

    async def run_forever(self) -> None:
        """Supervise until cancelled; then end every generator."""
        try:
            await supervise(
                "generators",
                lambda: self._in_thread(revoke_generator_tokens, self._where),
                self.look,
                lambda: self._sleep(LOOK_EVERY_S),
            )
        finally:
            for run in self._known.values():
                await _end(run)

    async def look(self) -> None:
        """Start the generators of runs that train, and end those of runs that do not."""
        await self._in_thread(self._read_configs)
        for name, run in self._known.items():
            if not run.settings or asyncio.get_running_loop().time() < run.not_before_s:
                continue
            works = await self._works(name)
            if works is None:
                continue  # not known now: what runs goes on
            if not works:
                await _end(run)
                run.not_before_s = asyncio.get_running_loop().time() + IDLE_PAUSE_S
                continue
            for generator, settings in run.settings.items():
                if generator not in run.tasks:
                    files = self._runs.files(name)
                    run.tasks[generator] = asyncio.create_task(self._keep_running(files, generator, settings))

    def _read_configs(self) -> None:
        for files in list_runs(self._where.runs_dir):
            try:
                stat = files.config.stat()
            except OSError:
                continue
            version, known = (stat.st_size, stat.st_mtime_ns), self._known.get(files.run)
            if known is not None and known.version == version:
                continue
            try:
                has_some = MENTIONS in files.config.read_bytes()
                settings = declared_generators(files) if has_some else {}
            except (SteerwayError, OSError) as error:
                log.warning("generators of run %s: %s", files.run, getattr(error, "reason", error))
                settings = {}
            if known is None:
                self._known[files.run] = _OfRun(version, settings)
            else:
                known.version, known.settings = version, settings

    async def _works(self, run: str) -> bool | None:
        """Return whether a run has its generators work now; None: not known."""
        try:
            snapshot: Snapshot = await (await self._runs.handle(run)).snapshot()
        except NotFound:
            return False
        except SteerwayError as error:
            log.debug("generators of run %s: %s", run, error.reason)
            return None
        is_replay = snapshot.parent is not None and snapshot.parent.kind == "replay"
        return not is_replay and snapshot.status not in NOT_WORKED_ON

    async def _keep_running(self, files: RunFiles, name: str, settings: GeneratorSettings) -> None:
        restarts = Restarts()
        while True:
            ended = await self._run_once(files, name, settings)
            if ended.code == 0:
                log.info("generator %s of run %s has ended: %s", name, files.run, ended.last_line)
                return
            if ended.code == IS_HELD:
                await self._sleep(LOCK_PAUSE_S)
                continue
            log.warning("generator %s of run %s ended: %s", name, files.run, ended.reason)
            if (pause_s := restarts.failed(ended.decided)) is None:
                log.error("generator %s of run %s is given up after %d failures", name, files.run, restarts.in_a_row)
                return
            await self._sleep(pause_s)

    async def _run_once(self, files: RunFiles, name: str, settings: GeneratorSettings) -> Ended:
        role = "agent" if settings.approval else "operator"
        try:
            token = await self._in_thread(mint_generator_token, self._where, files.run, name, role)
            return await self._start(files, name, settings, token)
        except SteerwayError as error:
            return Ended(1, error.reason)
        except OSError as error:
            return Ended(1, f"it cannot be started: {error.strerror or error}")
        finally:
            with suppress(SteerwayError, OSError):
                await self._in_thread(revoke_generator_tokens, self._where, files.run, name)

    async def _run_process(self, files: RunFiles, name: str, settings: GeneratorSettings, token: str) -> Ended:
        folder = files.generator(name)
        return await run_agent_process(
            self._where,
            files,
            token,
            command=program(
                "control_plane.agent.generating", "--run", files.run, "--generator", name, "--folder", str(folder)
            ),
            more={SETTINGS: settings.model_dump_json()} | _ray_token(),
            log_file=files.generator_log(name),
            lock=_lock_of(self._where.home, files.run, name),
        )


def _ray_token(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables by which a function's process may use a Ray that `steer up` has not started."""
    return {name: value for name, value in environ.items() if name.startswith("RAY_AUTH_")}


def _lock_of(home: Path, run: str, name: str) -> Path:
    return lock_of(home, run).parent.parent / "generators" / f"{run}.{name}"


async def _end(run: _OfRun) -> None:
    """End a run's generators, and forget those that have ended: a resumed run begins them anew."""
    tasks, run.tasks = run.tasks, {}
    for task in tasks.values():
        task.cancel()
    for task in tasks.values():
        with suppress(asyncio.CancelledError):
            await task
