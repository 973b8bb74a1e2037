"""Supervision of agents: one process for each run whose journal says that an agent is started, for as long as it does.

What is wanted stands in the journals; here is only what runs. A process that fails is started again with a growing
pause, and given up after several failures in a row without a decision. When the gateway ends, the kernel ends them; the
next gateway starts them again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from control_plane.api.agent_spending import Budgets, budgets_of
from control_plane.api.agent_views import AgentProcess
from control_plane.api.messages import Snapshot
from control_plane.api.ports import OperatorPort
from control_plane.config import Settings
from control_plane.core.model.errors import NotFound, SteerwayError
from control_plane.gateway.agents.journals import JournalScan
from control_plane.gateway.agents.process import Ended, read_key, run_agent_process
from control_plane.gateway.agents.restarts import LOCK_PAUSE_S, Restarts, supervise
from control_plane.gateway.agents.tether import IS_HELD
from control_plane.gateway.tokens import mint_agent_token, revoke_agent_tokens
from control_plane.storage.layout import RunFiles

LOOK_EVERY_S = 2.0

NOT_WORKED_ON = frozenset({"finished", "stopped", "failed", "queued"})

log = logging.getLogger(__name__)

Start = Callable[[RunFiles, str, Callable[[int], None]], Awaitable[Ended]]
"""Runs one agent's process, with a token, until its end; is told its pid. See `process.run_agent_process`."""


class Runs(Protocol):
    """Access to the runs, see `gateway.app.RunDirectory`."""

    async def handle(self, run: str) -> OperatorPort:
        """Return a handle on the run."""
        ...

    def files(self, run: str) -> RunFiles:
        """Return the run's files."""
        ...


@dataclass(slots=True)
class _Kept:
    """An agent that is kept running. `since_seq`: the journal's entry that started it."""

    since_seq: int
    view: AgentProcess = field(default=AgentProcess())
    pid: int | None = None
    task: "asyncio.Task[None] | None" = None


class AgentSupervisor:
    """Supervisor of the agents of one installation. Implements `AgentsPort`."""

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
        self._kept: dict[str, _Kept] = {}
        self._scan = JournalScan(where.runs_dir)

    def process(self, run: str) -> AgentProcess:
        """See `AgentsPort.process`."""
        kept = self._kept.get(run)
        return kept.view if kept is not None else AgentProcess()

    def pid(self, run: str) -> int | None:
        """Return the pid of a run's agent; None while none runs."""
        kept = self._kept.get(run)
        return kept.pid if kept is not None else None

    def model(self) -> tuple[str | None, str | None]:
        """See `AgentsPort.model`."""
        key, reason = read_key(self._where)
        return (self._where.agent_model, None) if key else (None, reason or "the gateway has no key of a model")

    def budgets(self) -> Budgets:
        """See `AgentsPort.budgets`."""
        return budgets_of(self._where)

    async def run_forever(self) -> None:
        """Supervise until cancelled; then end every agent."""
        try:
            await supervise(
                "agents",
                lambda: self._in_thread(revoke_agent_tokens, self._where),
                self.look,
                lambda: self._sleep(LOOK_EVERY_S),
            )
        finally:
            for run in list(self._kept):
                await self._let_go(run)

    async def look(self) -> None:
        """Start the agents that are wanted and do not run; end those that run and are not wanted."""
        news = await self._in_thread(self._scan.news)
        for run in set(news) | set(self._kept):
            since_seq = await self._wanted_since(run)
            if since_seq is None:
                continue  # not known now: what runs goes on
            kept = self._kept.get(run)
            if kept is not None and kept.since_seq != since_seq:
                await self._let_go(run)
            if since_seq and run not in self._kept:
                self._keep(run, since_seq)
            if not since_seq and run in news:
                self._scan.note_done(run, news[run])

    async def _wanted_since(self, run: str) -> int | None:
        """Return the entry that started the agent that is wanted; 0: none is wanted; None: not known."""
        try:
            snapshot: Snapshot = await (await self._runs.handle(run)).snapshot()
        except NotFound:
            return 0
        except SteerwayError as error:
            log.debug("agent of run %s: %s", run, error.reason)
            return None
        is_wanted = snapshot.agent.settings is not None and snapshot.status not in NOT_WORKED_ON
        return max(1, snapshot.agent.since_seq) if is_wanted else 0

    def _keep(self, run: str, since_seq: int) -> None:
        self._kept[run] = kept = _Kept(since_seq)
        kept.view = _view("restarting", "starts now")
        kept.task = asyncio.create_task(self._keep_running(self._runs.files(run), kept))

    async def _let_go(self, run: str) -> None:
        kept = self._kept.pop(run)
        if kept.task is not None:
            kept.task.cancel()
            with suppress(asyncio.CancelledError):
                await kept.task

    async def _keep_running(self, files: RunFiles, kept: _Kept) -> None:
        failures, restarts = 0, Restarts()
        while True:
            ended = await self._run_once(files, kept)
            if ended.code == 0:
                kept.view = _view("ended", ended.last_line or None, failures)
                return
            if ended.code == IS_HELD:
                kept.view = _view("restarting", "another agent is running on this run", failures)
                await self._sleep(LOCK_PAUSE_S)
                continue
            failures += 1
            log.warning("the agent of run %s ended: %s", files.run, ended.reason)
            if (pause_s := restarts.failed(ended.decided)) is None:
                reason = f"{restarts.in_a_row} failures without a decision, the last: {ended.reason}"
                kept.view = _view("given_up", reason, failures)
                return
            kept.view = _view("restarting", ended.reason, failures)
            await self._sleep(pause_s)

    async def _run_once(self, files: RunFiles, kept: _Kept) -> Ended:
        """Run the agent's process once, with a token of its own. What prevents that is a failure, too."""
        failures = kept.view.failures

        def started(pid: int) -> None:
            kept.pid, kept.view = pid, _view("running", None, failures)

        try:
            token = await self._in_thread(mint_agent_token, self._where, files.run)
            return await self._start(files, token, started)
        except SteerwayError as error:
            return Ended(1, error.reason)
        except OSError as error:
            return Ended(1, f"it cannot be started: {error.strerror or error}")
        finally:
            kept.pid = None
            with suppress(SteerwayError, OSError):
                await self._in_thread(revoke_agent_tokens, self._where, files.run)

    async def _run_process(self, files: RunFiles, token: str, started: Callable[[int], None]) -> Ended:
        return await run_agent_process(self._where, files, token, on_start=started)


def _view(state: Any, reason: str | None = None, failures: int = 0) -> AgentProcess:
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return AgentProcess(state=state, reason=reason, since=since, failures=failures)
