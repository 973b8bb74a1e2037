"""Supervision of generators in virtual time: one process each while the run trains, with a token of its own."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from control_plane.config import Settings, settings
from control_plane.core.model.records import Parent
from control_plane.core.rules.agent.generating import GeneratorSettings
from control_plane.gateway.agents.generators import IDLE_PAUSE_S, LOCK_PAUSE_S, LOOK_EVERY_S, GeneratorSupervisor
from control_plane.gateway.agents.process import Ended
from control_plane.gateway.agents.restarts import GIVE_UP_AFTER
from control_plane.gateway.agents.tether import IS_HELD
from control_plane.gateway.tokens import TokenBook
from control_plane.storage.layout import RunFiles
from tests.server.rig import Rig, start
from tests.server.virtual_time import run

RUN = "demo"
CONFIG = """
sources: {fresh: {format: jsonl, live: true, held_out: 0.1, fields: {text: {type: text}}}}
generators:
  fill: {source: fresh, path: write.py, max_records: 10}
  told: {source: fresh, prompt: Poems., max_records: 10, approval: true}
"""


@dataclass
class Processes:
    """Processes that end as they are told, and otherwise never. `seen`: name, owner's id, role and runs of each."""

    where: Settings
    ends: list[Ended] = field(default_factory=list)
    seen: list[tuple[Any, ...]] = field(default_factory=list)
    running: list[str] = field(default_factory=list)

    async def start(self, files: RunFiles, name: str, wanted: GeneratorSettings, token: str) -> Ended:
        """See `generators.Start`."""
        owner = TokenBook.from_file(self.where.tokens_file).identify(token)
        assert owner is not None
        self.seen.append((name, owner.id, owner.role, owner.runs))
        self.running.append(name)
        try:
            if self.ends:
                return self.ends.pop(0)
            await asyncio.Event().wait()
            raise AssertionError("it never ends by itself")
        finally:
            self.running.remove(name)


class Stage:
    """A run that trains, and its supervisor. Satisfies `supervisor.Runs`."""

    def __init__(self, home: Path, *ends: Ended, config: str = CONFIG) -> None:
        self.where = settings({}, home=home)
        self.root = self.where.runs_dir / RUN
        self.root.mkdir(parents=True)
        (self.root / "config.yaml").write_text(config)
        self.processes = Processes(self.where, list(ends))

    async def __aenter__(self) -> "Stage":
        async def now(work: Any, *args: Any) -> Any:
            return work(*args)

        self.server = Rig(self.root).serve()
        await self.server.start_generation(start())
        self.supervisor = GeneratorSupervisor(self.where, self, start=self.processes.start, in_thread=now)
        self.task = asyncio.create_task(self.supervisor.run_forever())
        await asyncio.sleep(0.1)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def handle(self, name: str) -> Any:
        """The run's control server."""
        return self.server

    def files(self, name: str) -> RunFiles:
        """The run's files."""
        return RunFiles(self.root)

    def tokens(self) -> list[str]:
        """Ids of the generators' tokens."""
        if not self.where.tokens_file.exists():
            return []
        return sorted(one.id for one in TokenBook.from_file(self.where.tokens_file).tokens)


def test_each_has_a_process_and_a_token_and_they_end_with_the_run(tmp_path: Path) -> None:
    async def story() -> None:
        async with Stage(tmp_path) as stage:
            assert sorted(stage.processes.seen) == [
                ("fill", "generator:fill", "operator", (RUN,)),
                ("told", "generator:told", "agent", (RUN,)),
            ]
            assert stage.tokens() == ["generator:fill", "generator:told"]
            await asyncio.sleep(10 * LOOK_EVERY_S)
            assert len(stage.processes.seen) == 2
            await stage.server.close("stopped", "enough")
            await asyncio.sleep(IDLE_PAUSE_S + LOOK_EVERY_S)
            assert (stage.processes.running, stage.tokens()) == ([], [])
        assert stage.processes.running == []

    run(story())


def test_one_that_fails_is_started_again_and_given_up_and_one_that_is_done_is_not(tmp_path: Path) -> None:
    failed, held = Ended(1, "no"), Ended(IS_HELD)

    async def story() -> None:
        only = CONFIG.replace("  told: {source: fresh, prompt: Poems., max_records: 10, approval: true}\n", "")
        async with Stage(tmp_path / "a", held, Ended(0, "budget"), config=only) as stage:
            await asyncio.sleep(LOCK_PAUSE_S + 600)
            assert len(stage.processes.seen) == 2
        async with Stage(tmp_path / "b", *[failed] * 20, config=only) as stage:
            await asyncio.sleep(3600)
            assert len(stage.processes.seen) == GIVE_UP_AFTER

    run(story())


def test_a_replay_and_a_run_without_any_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with Stage(tmp_path / "a", config="name: demo\n") as stage:
            await asyncio.sleep(60)
            assert stage.processes.seen == []
        stage = Stage(tmp_path / "b")
        async with stage:
            real = stage.server.snapshot

            async def as_replay() -> Any:
                return (await real()).model_copy(update={"parent": Parent(kind="replay", run="other")})

            monkeypatch.setattr(stage.server, "snapshot", as_replay)
            await asyncio.sleep(IDLE_PAUSE_S + LOOK_EVERY_S)
            assert stage.processes.running == []

    run(story())
