"""A new kind of command states its own facts: no rule of the core has to be told of it."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, ClassVar, Literal

import pytest

from control_plane.core.boundary import (
    AllGather,
    AllReduceMin,
    Applied,
    Apply,
    Broadcast,
    Check,
    Replica,
    TakeOffers,
    boundary,
)
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, Invalid, NotFound
from control_plane.core.model.intent_base import ServerIntent, TrainingIntent
from control_plane.core.model.limits import Limit, reason_against_intent
from control_plane.core.model.records import CommandAccepted, CommandSettled, CommandSummary, Entry
from control_plane.core.model.state import RunState
from control_plane.core.rules import decisions
from control_plane.core.rules.recovery import replay_after, resume_point
from control_plane.core.rules.replay_plan import recorded
from tests.core.examples import command, created, started, state_after, uuid


class SetTemperature(TrainingIntent):
    """Set the temperature of one parameter group: a kind that nothing outside this test knows."""

    sets_knobs: ClassVar[bool] = True
    allowed_for_agents: ClassVar[bool] = True

    kind: Literal["set_temperature"] = "set_temperature"
    value: float
    group: int = 0

    def describe(self) -> str:
        return f"temperature = {self.value:g}"

    def knobs(self) -> tuple[str, ...]:
        return ("temperature",)

    def groups(self) -> tuple[int | str | None, ...]:
        return (self.group,)

    def requested(self, knob: str) -> Iterable[tuple[Any, float | None]]:
        return ((self.value, None),)


class Annotate(ServerIntent):
    """A kind for the control server alone."""

    kind: Literal["annotate"] = "annotate"


def asked(number: int, value: float = 0.5, **fields: Any) -> Command:
    """A command of the new kind; the union of `Intent` does not list it."""
    return command(number, "pause").model_copy(update={"intent": SetTemperature(value=value), **fields})


def running() -> RunState:
    """A run whose trainers have begun."""
    return state_after(created(), started(900))


def test_it_is_accepted_once_and_described() -> None:
    state = running()
    (accepted,) = decisions.accept(state, asked(1))
    assert accepted == CommandAccepted(command=asked(1))
    assert asked(1).describe() == "temperature = 0.5"
    about = CommandSummary.of(asked(1))
    assert (about.command, about.arguments) == ("set_temperature", {"value": 0.5, "group": 0})
    later = state_after(created(), started(900), accepted)
    assert decisions.accept(later, asked(1)) == []
    assert (later.course, later.pending_commands()) == ("ann: temperature = 0.5", (asked(1),))
    with pytest.raises(Conflict, match=r"the run has changed since: ann: temperature = 0\.5"):
        decisions.accept(later, command(2, "pause").model_copy(update={"based_on_seq": 2}))


def test_limits_and_parameter_groups_hold_for_it() -> None:
    limits = {"temperature": Limit(max=1.0, roles=("agent",))}
    assert reason_against_intent(limits, SetTemperature(value=0.5), "agent", {}) is None
    assert "allows at most 1" in str(reason_against_intent(limits, SetTemperature(value=2.0), "agent", {}))
    assert "not by operator" in str(reason_against_intent(limits, SetTemperature(value=0.5), "operator", {}))
    limited = created().model_copy(update={"limits": limits})
    with pytest.raises(Invalid, match="temperature would be 2"):
        decisions.accept(state_after(limited, started(900)), asked(1, value=2.0))
    elsewhere = asked(1).model_copy(update={"intent": SetTemperature(value=0.5, group=7)})
    with pytest.raises(NotFound, match="no parameter group 7"):
        decisions.accept(running(), elsewhere)


def test_ranks_apply_it_at_the_boundary_and_its_readback_is_the_knob() -> None:
    replica, done = Replica(generation=1), Applied(before={"temperature": 1.0}, after={"temperature": 0.5})
    steps, answer = boundary(replica, 3), None
    answers = {
        TakeOffers: (asked(1),),
        Broadcast: (asked(1),),
        Check: None,
        AllReduceMin: 1,
        Apply: done,
        AllGather: [done, done],
    }
    with suppress(StopIteration):
        while True:
            answer = answers[type(steps.send(answer))]
    outcome = replica.ledger[uuid(1)]
    assert (outcome.status, outcome.step, outcome.after) == ("applied", 3, {"temperature": 0.5})
    state = state_after(created(), started(900), CommandAccepted(command=asked(1)), outcome)
    assert (state.knobs["temperature"], state.changed_seq) == (0.5, {"temperature": 4})


def test_it_is_repeated_after_a_failure_and_by_a_replay() -> None:
    outcome = CommandSettled(uuid=uuid(1), status="applied", step=3, generation=1, after={"temperature": 0.5})
    records = [created(), started(900), CommandAccepted(command=asked(1)), outcome]
    (repeat,) = replay_after(resume_point(state_after(*records)).decided, ()).repeats
    assert (repeat.command, repeat.step) == (asked(1), 3)
    entries = [Entry.model_construct(seq=seq, time="", record=record) for seq, record in enumerate(records, start=1)]
    assert [(item.command.intent.kind, item.step) for item in recorded(entries, until_step=5)] == [
        ("set_temperature", 3),
        ("stop", 5),
    ]


def test_kind_without_ranks_is_accepted_by_a_closed_run_and_repeated_by_nobody() -> None:
    note = command(1, "pause").model_copy(update={"intent": Annotate()})
    closed = state_after(created(), started(900), *decisions.close_run(running(), "stopped", None))
    assert decisions.accept(closed, note) == [CommandAccepted(command=note)]
    assert (Annotate.changes_training, Annotate.is_replayed, Annotate.allowed_for_agents) == (False, False, False)
