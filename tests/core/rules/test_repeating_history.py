"""For any history, any checkpoints and any crashes: the run ends as the one that nobody ever disturbed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.core.boundary import (
    AllGather,
    AllReduceMin,
    Applied,
    Apply,
    Broadcast,
    Check,
    Effect,
    ReadKnobs,
    Replica,
    TakeOffers,
    Wait,
    boundary,
)
from control_plane.core.model.commands import Command
from control_plane.core.model.records import CommandSettled
from control_plane.core.rules.recovery import Decided, replay_after
from tests.core.examples import command

MANY = settings(max_examples=200, deadline=None, derandomize=True)
LAST_STEP = 12

Body = tuple[str, dict[str, Any]]
SET: list[Body] = [("set_learning_rate", {"value": 0.5}), ("set_learning_rate", {"factor": 2.0})]
PLAIN: list[Body] = [("pause", {}), ("resume", {}), ("evaluate", {}), ("save_checkpoint", {})]
BODIES: st.SearchStrategy[Body] = st.sampled_from([*SET, ("set_learning_rate", {"factor": 0.5}), *PLAIN])
# Per command: what it is, at which step it is offered, and whether the ranks reject it.
ASKED = st.lists(st.tuples(BODIES, st.integers(1, LAST_STEP), st.booleans()), max_size=45)
Asked = list[tuple[Body, int, bool]]
Saved = tuple[float, list[str]]
STEPS = st.lists(st.integers(1, LAST_STEP), max_size=4)


@dataclass
class OneRank:
    """A rank, its replica, and the history that a journal would have of it. Ranks of a run are all alike."""

    refusing: set[UUID]
    rate: float = 1.0
    replica: Replica = field(default_factory=lambda: Replica(generation=1))
    seen: list[tuple[UUID, int]] = field(default_factory=list)
    trace: dict[int, tuple[float, bool]] = field(default_factory=dict)

    def pass_boundary(self, step: int, offers: Sequence[Command]) -> bool:
        """Go through the boundary after `step`; answers whether it ended, or is held by a pause."""
        steps, answer = boundary(self.replica, step), None
        while True:
            try:
                effect = steps.send(answer)
            except StopIteration:
                break
            if isinstance(effect, Wait):
                self.trace[step] = (self.rate, True)
                return False
            answer = self._carry_out(effect, tuple(offers))
        self.trace[step] = (self.rate, self.replica.paused)
        return True

    def _carry_out(self, effect: Effect, offers: tuple[Command, ...]) -> object:
        match effect:
            case TakeOffers():
                return offers
            case Broadcast(commands):
                return commands
            case Check(asked):
                return "no" if asked.uuid in self.refusing else None
            case AllReduceMin(value):
                return value
            case ReadKnobs():
                return {}
            case AllGather(value):
                return [value]
            case Apply(asked, step):
                return self._apply(asked, step)
        raise AssertionError(effect)

    def _apply(self, asked: Command, step: int) -> Applied:
        before, body = self.rate, asked.intent.model_dump()
        if body["kind"] == "set_learning_rate":
            self.rate = body["value"] if body["factor"] is None else self.rate * body["factor"]
        self.seen.append((asked.uuid, step))
        return Applied({"lr": before}, {"lr": self.rate})


def live(
    asked: Asked,
) -> tuple[OneRank, dict[UUID, Command], dict[int, Saved]]:
    """The undisturbed run, and a checkpoint of every step: the rate, and what it contains.

    A pause is followed by a resume at the same boundary: the run comes to its end.
    """
    commands = {(c := command(n, body[0], **body[1])).uuid: c for n, (body, _, _) in enumerate(asked, 1)}
    rank = OneRank({uuid for uuid, (_, _, refuses) in zip(commands, asked, strict=True) if refuses})
    saved: dict[int, Saved] = {0: (1.0, [])}
    resumed, first = 1000, list(commands.values())
    for step in range(1, LAST_STEP + 1):
        offers = [c for c, (_, at, _) in zip(first, asked, strict=True) if at <= step]
        while not rank.pass_boundary(step, offers):
            resumed += 1
            offers.append(command(resumed, "resume"))
            commands[offers[-1].uuid] = offers[-1]
        saved[step] = (rank.rate, [str(uuid) for uuid in rank.replica.ledger])
    return rank, commands, saved


def decided(ledger: dict[UUID, CommandSettled], commands: dict[UUID, Command]) -> tuple[Decided, ...]:
    return tuple(Decided(command=commands[uuid], outcome=outcome) for uuid, outcome in ledger.items())


def restored(first: OneRank, at: Saved, told: tuple[Decided, ...], generation: int) -> OneRank:
    replay = replay_after(told, set(at[1]))
    replica = Replica(generation, replay.paused, replay.stopping, dict(replay.ledger), replay.repeats)
    return OneRank(first.refusing, at[0], replica)


@MANY
@given(ASKED, st.integers(0, LAST_STEP), STEPS)
def test_run_that_crashes_anywhere_again_and_again_is_the_undisturbed_run(
    asked: Asked, saved_at: int, crashes: list[int]
) -> None:
    first, commands, saved = live(asked)
    told = decided(first.replica.ledger, commands)
    for generation, until in enumerate([*crashes, LAST_STEP], start=2):
        rank = restored(first, saved[saved_at], told, generation)
        if rank.replica.paused or rank.replica.is_behind(saved_at):
            assert rank.pass_boundary(saved_at, ())
        for step in range(saved_at + 1, until + 1):
            assert rank.pass_boundary(step, ()), "history ended in a pause that it did not have"
            assert rank.trace[step] == first.trace[step]
            assert not rank.replica.is_behind(step)
    assert rank.rate == first.rate
    assert rank.replica.repeats == ()
    changes = [(u, s) for u, s in first.seen if commands[u].intent.kind not in ("evaluate", "save_checkpoint")]
    assert rank.seen == [(u, s) for u, s in changes if str(u) not in saved[saved_at][1]]


@MANY
@given(ASKED, st.integers(0, LAST_STEP))
def test_new_command_that_is_offered_all_the_time_comes_after_all_that_is_repeated(asked: Asked, saved_at: int) -> None:
    first, commands, saved = live(asked)
    rank = restored(first, saved[saved_at], decided(first.replica.ledger, commands), 2)
    new = command(5000, "set_learning_rate", value=0.125)
    for step in range(saved_at, LAST_STEP + 2):
        rank.pass_boundary(step, (new,))
    assert rank.seen[-1][0] == new.uuid
    assert [uuid for uuid, _ in rank.seen].count(new.uuid) == 1
    assert rank.rate == 0.125


@MANY
@given(ASKED, st.integers(1, LAST_STEP), st.integers(0, LAST_STEP))
def test_run_that_crashed_while_it_was_paused_is_paused_at_the_same_step(
    asked: Asked, paused_at: int, saved_at: int
) -> None:
    first, commands, saved = live([each for each in asked if each[0][0] not in ("pause", "resume")])
    pause = command(6000, "pause")
    commands[pause.uuid] = pause
    kept = {u: o for u, o in first.replica.ledger.items() if (o.step or 0) <= paused_at}
    kept[pause.uuid] = CommandSettled(uuid=pause.uuid, status="applied", step=paused_at, generation=1)
    begin = min(saved_at, paused_at)
    rank = restored(first, saved[begin], decided(kept, commands), 2)
    passed = [step for step in range(begin, paused_at) if rank.pass_boundary(step, ())]
    assert passed == list(range(begin, paused_at))
    assert not rank.pass_boundary(paused_at, ())
    assert rank.trace[paused_at] == (first.trace[paused_at][0], True)


@MANY
@given(st.integers(1, 60), st.integers(1, LAST_STEP))
def test_any_number_of_commands_of_one_step_are_repeated_at_that_step(count: int, step: int) -> None:
    first, commands, saved = live([(SET[1], step, False)] * count)
    applied_at = {at for _, at in first.seen}
    told = tuple(
        each.model_copy(update={"outcome": each.outcome.model_copy(update={"step": step})})
        for each in decided(first.replica.ledger, commands)
    )
    rank = restored(first, saved[step - 1], told, 2)
    assert rank.pass_boundary(step, ())
    assert {at for _, at in rank.seen} == {step}
    assert len(rank.seen) == len(told) == len(first.seen)
    assert min(applied_at) == step
