"""Wall clocks that are wrong by an hour, or are set: no order, no expiry and no cool-down depends on them."""

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from control_plane.core.model.commands import Command, SetLearningRate
from control_plane.core.model.errors import Invalid, Refused
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import CommandSettled
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import read
from tests.core.examples import command as example
from tests.server.rig import CREATED, Rig, applied, command, outcome, start
from tests.server.virtual_time import run

HOUR_S = 3600.0
COOL_DOWN_S = 30.0
LIMITED = CREATED.model_copy(update={"limits": {"lr": Limit(cool_down_s=COOL_DOWN_S)}})
TRIALS = 6


async def steered(rig: Rig) -> ControlServer:
    """A run whose learning rate was changed just now."""
    server = rig.serve(LIMITED)
    await server.start_generation(start())
    await server.submit(command(1))
    await server.report(outcome(applied(1)))
    return server


async def is_taken(server: ControlServer, number: int) -> bool:
    """Whether the rate may be changed; the one reason why it may not is the cool-down."""
    try:
        await server.submit(command(number, SetLearningRate(value=2e-4)))
    except Invalid as refusal:
        if "may be changed again after 30 s" in refusal.reason:
            return False
        raise
    return True


@pytest.mark.parametrize("skew_s", [-HOUR_S, 0.0, HOUR_S])
def test_cool_down_lasts_as_long_as_it_says_whatever_the_wall_clock_is_set_to(tmp_path: Path, skew_s: float) -> None:
    rig = Rig(tmp_path)

    async def story() -> None:
        server = await steered(rig)
        rig.skew_s = skew_s
        await asyncio.sleep(COOL_DOWN_S - 1)
        assert not await is_taken(server, 2)
        await asyncio.sleep(1)
        assert await is_taken(server, 2)

    run(story())


@pytest.mark.parametrize(("skew_s", "at_once"), [(-HOUR_S, False), (0.0, False), (HOUR_S, True)])
def test_cool_down_of_an_earlier_life_lasts_at_most_once_more(tmp_path: Path, skew_s: float, at_once: bool) -> None:
    """Only the wall clock has lived through both: one that was set forward ends the cool-down, none prolongs it."""
    rig = Rig(tmp_path)

    async def story() -> None:
        await steered(rig)
        rig.skew_s = skew_s
        server = rig.serve(LIMITED)
        assert await is_taken(server, 2) == at_once
        await asyncio.sleep(COOL_DOWN_S)
        assert await is_taken(server, 3)

    run(story())


def test_wall_clock_that_jumps_by_an_hour_changes_neither_order_nor_expiry(tmp_path: Path) -> None:
    """The same requests with a steady clock and with one that jumps before each: the same records, trial by trial."""
    for seed in range(TRIALS):
        steady = recorded(Rig(tmp_path / f"{seed}-steady"), seed, jumps=False)
        assert recorded(Rig(tmp_path / f"{seed}-jumping"), seed, jumps=True) == steady
        assert len(steady) > 10


def recorded(rig: Rig, seed: int, jumps: bool) -> list[dict[str, Any]]:
    """What the journal holds after a random day at the control server, without its times."""
    run(random_day(rig, random.Random(seed), random.Random(seed + 1) if jumps else None))
    return [{"seq": entry.seq, **entry.record.model_dump()} for entry in read(rig.journal_dir)]


async def random_day(rig: Rig, dice: random.Random, jumps: random.Random | None) -> None:
    server = rig.serve(LIMITED)
    await server.start_generation(start())
    for step in range(1, 25):
        rig.skew_s = jumps.choice((-HOUR_S, 0.0, HOUR_S)) if jumps else 0.0
        if dice.random() < 0.1:
            server = rig.serve(LIMITED)
        await asyncio.sleep(dice.choice((1.0, COOL_DOWN_S)))
        with contextlib.suppress(Refused):
            await server.submit(something(dice, step))
        offer = await server.offers(1, -1, 0)
        for each in offer.commands[: dice.randint(0, 2)]:
            await server.report(outcome(settled(each, step)))
    await server.close("finished", None)


def something(dice: random.Random, step: int) -> Command:
    kind, body = dice.choice(
        (("evaluate", {}), ("freeze", {"parameters": "*"}), ("reset_parameters", {"modules": "*"}))
    )
    asked = example(step, kind, **body)
    return asked.model_copy(update={"not_after_step": step + dice.randint(-1, 2) if dice.random() < 0.5 else None})


def settled(command: Command, step: int) -> CommandSettled:
    """As the ranks decide it: by steps alone."""
    late = command.not_after_step is not None and step > command.not_after_step
    return CommandSettled(
        uuid=UUID(int=command.uuid.int), status="expired" if late else "applied", step=step, generation=1
    )
