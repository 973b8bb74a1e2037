"""A gateway on a socket, over a real control server, with a rank 0 that settles what it is offered."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from control_plane.api.messages import Point, Progress, Report
from control_plane.cli.main import app
from control_plane.core.model.commands import Command, SetKnobs, SetLearningRate
from control_plane.core.model.intents import Cancel, Rollback
from control_plane.core.model.records import CommandSettled
from control_plane.core.rules.branch_rules import reading
from control_plane.server.control_server import ControlServer
from tests.core import examples
from tests.gateway.rig import KNOB_FACTS, KNOBS, TOKENS, LiveGateway, live_gateway

HIGHEST_LR = 1.0
STEP = 7
"""Where the ranks stand, and stay."""


class Answer:
    """What a command left behind."""

    def __init__(self, exit_code: int, stdout: str, stderr: str) -> None:
        self.exit_code, self.stdout, self.stderr = exit_code, stdout, stderr


Steer = Callable[..., Answer]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing will answer: a client need not wait for a gateway to come back."""
    monkeypatch.setattr("control_plane.api.patience.COMES_BACK_WITHIN_S", 0.1)


@pytest.fixture
def steer() -> Steer:
    """Run `steer` with these words."""

    def run(*words: str) -> Answer:
        result = CliRunner().invoke(app, list(words))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def idle_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveGateway]:
    """A gateway with one run of two ranks, which settle nothing."""
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path))
    monkeypatch.setenv("STEERWAY_TOKEN", TOKENS["operator"])
    monkeypatch.setenv("STEERWAY_DASHBOARD_PORT", "9")  # no Ray of this machine is asked
    with live_gateway(tmp_path / "runs") as live:
        monkeypatch.setenv("STEERWAY_URL", live.url)
        yield live


@pytest.fixture
def gateway(idle_gateway: LiveGateway) -> Iterator[LiveGateway]:
    """The same, and the ranks apply every learning rate up to `HIGHEST_LR`."""
    training = asyncio.run_coroutine_threadsafe(settle_everything(idle_gateway.server), idle_gateway.loop)
    yield idle_gateway
    training.cancel()


async def settle_everything(server: ControlServer) -> None:
    """Be rank 0 for as long as the loop lives, and its successors on other branches."""
    revision, generation = 0, 1
    while True:
        offer = await server.offers(generation, revision, 1.0)
        revision = offer.revision
        for command in offer.commands:
            if isinstance(command.intent, Rollback):
                generation, revision = await leave(server, generation, command), 0
                break
            if (command.not_before_step or 0) <= STEP:
                outcomes = (*taken_back(command), outcome(command))
                told = tuple(each.model_copy(update={"generation": generation}) for each in outcomes)
                await server.report(Report(generation=generation, outcomes=told))


async def leave(server: ControlServer, generation: int, command: Command) -> int:
    """Go where the rollback says, begin there, and settle what the branch begins with: the new generation's number."""
    assert isinstance(command.intent, Rollback)
    found = next(
        (each for each in (await server.snapshot()).checkpoints if each.checkpoint == command.intent.checkpoint), None
    )
    after = {"branch": command.intent.branch} if found is None else reading(found.checkpoint, found.step, found.branch)
    settled = CommandSettled(
        uuid=command.uuid, status="applied", step=STEP, generation=generation, before={}, after=after, world_size=2
    )
    await server.report(Report(generation=generation, outcomes=(settled,)))
    await server.end_generation(generation, "left", STEP, None)
    point = await server.resume_point()
    at = point.candidates[0]
    start = examples.start(1000 + generation, knobs=KNOBS, facts={"knobs": KNOB_FACTS}, step=at.step)
    begun = await server.start_generation(replace(start, checkpoint=at.checkpoint, branch=point.branch))
    for each in point.scheduled:
        first = outcome(each.command).model_copy(update={"generation": begun, "step": at.step})
        await server.report(Report(generation=begun, outcomes=(first,)))
    return begun


async def save(server: ControlServer, step: int, generation: int = 1, branch: str = "main", **body: Any) -> None:
    """A checkpoint is there."""
    found = examples.committed(step, generation, branch=branch, **body)
    await server.report(Report(generation=generation, checkpoints=(found,)))


async def measure(server: ControlServer, generation: int, values: dict[int, float], name: str = "loss") -> None:
    """These values were measured, by step."""
    points = tuple(Point(step=step, name=name, value=value, time_s=float(step)) for step, value in values.items())
    progress = Progress(step=max(values), total_steps=100)
    await server.report(Report(generation=generation, points=points, progress=progress))


def taken_back(command: Command) -> tuple[CommandSettled, ...]:
    """What a cancel decides besides itself."""
    if not isinstance(command.intent, Cancel):
        return ()
    target, reason = command.intent.command, command.takes_back()
    return (CommandSettled(uuid=target, status="cancelled", step=STEP, generation=1, reason=reason),)


def changed_knobs(command: Command, intent: SetKnobs) -> CommandSettled:
    """What two ranks would read of knobs that are one for all parameter groups."""
    before = {change.knob: KNOBS.get(change.knob) for change in intent.changes}
    after = {change.knob: change.value for change in intent.changes}
    return CommandSettled(
        uuid=command.uuid, status="applied", step=STEP, generation=1, before=before, after=after, world_size=2
    )


def outcome(command: Command) -> CommandSettled:
    """What two ranks would decide."""
    intent = command.intent
    if isinstance(intent, SetKnobs):
        return changed_knobs(command, intent)
    if not isinstance(intent, SetLearningRate):
        return CommandSettled(uuid=command.uuid, status="applied", step=STEP, generation=1, before={}, world_size=2)
    value = intent.value if intent.value is not None else 5e-4 * (intent.factor or 1)
    if value > HIGHEST_LR:
        why = f"{value:g} is above what this optimizer takes"
        return CommandSettled(uuid=command.uuid, status="rejected", step=STEP, generation=1, reason=why)
    after = {"lr": [value]}
    return CommandSettled(
        uuid=command.uuid,
        status="applied",
        step=STEP,
        generation=1,
        before={"lr": [5e-4]},
        after=after,
        world_size=2,
        ranks=(after, after),
    )
