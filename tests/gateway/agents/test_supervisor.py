"""Supervision of agents in virtual time: started, restarted with growing pauses, given up, ended."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from control_plane.config import Settings, settings
from control_plane.core.model.errors import NotFound, Unavailable
from control_plane.core.model.intents.agent import AgentSettings, StartAgent, StopAgent
from control_plane.gateway.agents.journals import JournalScan
from control_plane.gateway.agents.process import Ended
from control_plane.gateway.agents.restarts import GIVE_UP_AFTER, LOCK_PAUSE_S
from control_plane.gateway.agents.supervisor import AgentSupervisor
from control_plane.gateway.agents.tether import IS_HELD
from control_plane.gateway.tokens import AGENT_OF, TokenBook, add_token
from control_plane.storage.layout import RunFiles
from tests.server.rig import CREATED, Rig, command, start
from tests.server.virtual_time import now_s, run

RUN = "demo"
STARTED = StartAgent(settings=AgentSettings(policy="rule"))


@dataclass
class Processes:
    """Processes that end as they are told. Without an end to come they run until they are ended."""

    where: Settings
    ends: list[Ended]
    started_s: list[float] = field(default_factory=list)
    running: int = 0

    async def start(self, files: RunFiles, token: str, started: Callable[[int], None]) -> Ended:
        """See `supervisor.Start`."""
        owner = TokenBook.from_file(self.where.tokens_file).identify(token)
        assert owner is not None
        assert (owner.id, owner.role, owner.runs) == (f"{AGENT_OF}{RUN}", "agent", (RUN,))
        self.started_s.append(now_s())
        self.running += 1
        started(1000 + len(self.started_s))
        try:
            if self.ends:
                return self.ends.pop(0)
            await asyncio.Event().wait()
            raise AssertionError("it never ends by itself")
        finally:
            self.running -= 1

    def pauses_s(self) -> list[float]:
        """Seconds between two starts."""
        return [later - earlier for earlier, later in pairwise(self.started_s)]


class Stage:
    """A run, its supervisor and its processes. Satisfies `supervisor.Runs`."""

    def __init__(self, tmp_path: Path, *ends: Ended) -> None:
        self.where = settings({}, home=tmp_path / "home")
        self.root = self.where.runs_dir / RUN
        self.root.mkdir(parents=True)
        (self.root / "config.yaml").touch()
        self.processes = Processes(self.where, list(ends))
        self.error: Exception | None = None
        self.sent = 0

    async def __aenter__(self) -> "Stage":
        async def now(work: Callable[..., Any], *args: Any) -> Any:
            return work(*args)

        self.server = Rig(self.root).serve()
        await self.server.start_generation(start())
        self.supervisor = AgentSupervisor(self.where, self, start=self.processes.start, in_thread=now)
        self.task = asyncio.create_task(self.supervisor.run_forever())
        return self

    async def __aexit__(self, *error: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        assert self.processes.running == 0, "an agent outlived its supervisor"
        assert not [each for each in self.token_ids() if each.startswith(AGENT_OF)], "a token outlived its agent"

    async def handle(self, run: str) -> Any:
        """The run's control server."""
        if self.error is not None:
            raise self.error
        return self.server

    def files(self, run: str) -> RunFiles:
        """The run's files."""
        return RunFiles(self.where.runs_dir / run)

    def token_ids(self) -> "list[str]":
        """Ids of the tokens of the home."""
        path = self.where.tokens_file
        return [each.id for each in TokenBook.from_file(path).tokens] if path.exists() else []

    async def send(self, intent: Any, wait_s: float = 5.0) -> None:
        """Send a command, and let time pass."""
        self.sent += 1
        await self.server.submit(command(self.sent, intent))
        await asyncio.sleep(wait_s)

    @property
    def state(self) -> str:
        """State of the agent's process."""
        return self.supervisor.process(RUN).state


FAILED = Ended(1, "no such model")
DECIDED = Ended(-9, "step 25: loss 2.1: keep", decided=True)


def test_an_agent_runs_from_its_start_to_its_stop(tmp_path: Path) -> None:
    async def story() -> None:
        async with Stage(tmp_path) as stage:
            add_token(stage.where, "ci", "operator")
            await asyncio.sleep(5)
            assert (stage.state, stage.processes.running) == ("none", 0)
            await stage.send(STARTED)
            assert (stage.state, stage.processes.running) == ("running", 1)
            assert stage.supervisor.pid(RUN) == 1001
            assert f"{AGENT_OF}{RUN}" in stage.token_ids()
            await asyncio.sleep(100)
            assert len(stage.processes.started_s) == 1
            await stage.send(StopAgent())
            assert (stage.state, stage.processes.running) == ("none", 0)
            assert stage.token_ids() == ["ci"]

    run(story())


def test_the_end_of_the_run_ends_its_agent(tmp_path: Path) -> None:
    async def story() -> None:
        async with Stage(tmp_path) as stage:
            await stage.send(STARTED)
            await stage.server.close("finished", None)
            await asyncio.sleep(5)
            assert (stage.state, stage.processes.running) == ("none", 0)

    run(story())


def test_failures_are_repeated_with_growing_pauses_and_then_given_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with Stage(tmp_path, *[FAILED] * 20) as stage:
            await stage.send(STARTED, 300)
            view = stage.supervisor.process(RUN)
            assert (view.state, view.failures) == ("given_up", GIVE_UP_AFTER)
            assert "exit code 1: no such model" in (view.reason or "")
            assert stage.processes.pauses_s() == [1, 2, 4, 8]
            await stage.send(StopAgent())
            stage.processes.ends.clear()
            await stage.send(STARTED)
            assert stage.state == "running", "a new start is a new try"

    run(story())


def test_failures_after_decisions_are_never_given_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with Stage(tmp_path, *[FAILED, FAILED, FAILED, FAILED, DECIDED] * 3) as stage:
            await stage.send(STARTED, 600)
            view = stage.supervisor.process(RUN)
            assert (view.state, view.failures) == ("running", 15)

    run(story())


def test_a_lock_that_another_agent_holds_is_waited_for(tmp_path: Path) -> None:
    async def story() -> None:
        async with Stage(tmp_path, *[Ended(IS_HELD)] * 10) as stage:
            await stage.send(STARTED)
            assert stage.state == "restarting"
            assert "another agent" in (stage.supervisor.process(RUN).reason or "")
            await asyncio.sleep(100)
            assert stage.processes.pauses_s() == [LOCK_PAUSE_S] * 10
            assert (stage.state, stage.supervisor.process(RUN).failures) == ("running", 0)

    run(story())


def test_an_agent_that_has_ended_by_itself_is_started_again_only_with_new_settings(tmp_path: Path) -> None:
    async def story() -> None:
        async with Stage(tmp_path, Ended(0, "the limit of 3 decisions is reached")) as stage:
            await stage.send(STARTED, 100)
            view = stage.supervisor.process(RUN)
            assert (view.state, view.reason) == ("ended", "the limit of 3 decisions is reached")
            await stage.send(StopAgent(), 0)
            await stage.send(STARTED)
            assert (stage.state, len(stage.processes.started_s)) == ("running", 2)

    run(story())


def test_a_control_server_that_is_away_ends_no_agent_and_a_deleted_run_does(tmp_path: Path) -> None:
    async def story() -> None:
        async with Stage(tmp_path) as stage:
            await stage.send(STARTED)
            stage.error = Unavailable("away")
            await asyncio.sleep(60)
            assert stage.state == "running"
            stage.error = NotFound("deleted")
            await asyncio.sleep(5)
            assert (stage.state, stage.processes.running) == ("none", 0)

    run(story())


def test_what_prevents_a_start_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    async def story() -> None:
        async with Stage(tmp_path) as stage:
            stage.where.tokens_file.write_text("{")
            await stage.send(STARTED, 60)
            view = stage.supervisor.process(RUN)
            assert view.state == "given_up"
            assert "token list" in (view.reason or "")
            stage.where.tokens_file.unlink()

    run(story())


def test_journals_are_read_only_when_they_grow_and_may_start_an_agent(tmp_path: Path) -> None:
    scan = JournalScan(tmp_path)

    def write(run: str, text: str) -> None:
        journal = tmp_path / run / "journal"
        journal.mkdir(parents=True, exist_ok=True)
        (tmp_path / run / "config.yaml").touch()
        with (journal / "000001.jsonl").open("a") as file:
            file.write(text)

    write("old", '{"type":"RunCreated","agent":null}')
    write("configured", '{"type":"RunCreated","agent":{"policy":"rule"}}')
    write("commanded", '{"kind":"start_agent"}')
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / "config.yaml").touch()
    seen = scan.news()
    assert set(seen) == {"configured", "commanded"}
    scan.note_done("configured", seen["configured"])
    assert set(scan.news()) == {"commanded"}
    write("old", '{"type":"CommandAccepted"}')
    write("configured", "{}")
    assert set(scan.news()) == {"old", "configured", "commanded"}, "one that grows is looked at, whatever it says"


def test_a_real_journal_mentions_its_agent(tmp_path: Path) -> None:
    async def story() -> None:
        async with Stage(tmp_path) as stage:
            assert JournalScan(stage.where.runs_dir).news() == {}
            await stage.send(STARTED)
            assert set(JournalScan(stage.where.runs_dir).news()) == {RUN}
        created = CREATED.model_copy(update={"run": "other", "agent": AgentSettings()})
        Rig(stage.where.runs_dir / "other").serve(created)
        (stage.where.runs_dir / "other" / "config.yaml").touch()
        assert set(JournalScan(stage.where.runs_dir).news()) == {RUN, "other"}

    run(story())
