"""Hypothesis looks for a history that breaks an invariant, and makes it short."""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, Refused
from control_plane.core.model.values import MAX_STEP
from tests.simulation.mutants.core_mutants import MUTANTS
from tests.simulation.world.faults import CRASH_POINTS, CrashPoint
from tests.simulation.world.fleet import Violation
from tests.simulation.world.histories import FIRST, KINDS
from tests.simulation.world.parts import Parts
from tests.simulation.world.world import World

RANKS = st.integers(0, 2)
LEAST_RULES, LEAST_RULES_IN_A_LONG_SEARCH = 5_000, 100_000
NORMAL = settings(
    max_examples=125,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


VIEWS = st.sampled_from([None, None, None, 0, 1, MAX_STEP])
"""How many entries behind the last a sender's view is; `MAX_STEP` is a view that nobody can have yet."""


class Steering(RuleBasedStateMachine):
    """Operators, crashes and faulty ranks, in any order. The world checks itself after every rule."""

    parts = Parts()
    # How many rules were carried out, over all histories of one search.
    steps = 0
    sent: Bundle[Command] = Bundle("sent")

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        type(self).steps -= 1  # `count` is asked after this, too, which is no rule
        self.world = World(seed, ranks=3, parts=self.parts)
        self.world.start_trainers()

    @invariant()
    def count(self) -> None:
        type(self).steps += 1

    @rule(
        target=sent,
        what=st.sampled_from(KINDS),
        in_steps=st.none() | st.integers(0, 5) | st.just(MAX_STEP),
        within=st.none() | st.integers(0, 3),
        behind=VIEWS,
    )
    def submit(
        self, what: tuple[str, dict[str, Any]], in_steps: int | None, within: int | None, behind: int | None
    ) -> Command:
        """Also for a step that is long past its last, for one that never comes, and from views that are old or odd."""
        kind, body = what
        step = self.world.fleet.step if self.world.fleet else 0
        later = None if in_steps is None or kind == "resume" else min(step + in_steps, MAX_STEP)
        last = None if within is None else min(max(step, later or 0) + within, MAX_STEP)
        return self._sent(kind, not_before_step=later, not_after_step=last, based_on_seq=self._view(behind), **body)

    def _sent(self, kind: str, **what: Any) -> Command:
        known = len(self.world.books.accepted)
        try:
            return self.world.submit(kind, **what)
        except Refused:
            assert len(self.world.books.accepted) == known
            return Command.model_validate(
                {"uuid": UUID(int=2**100 + known), "author": "ann", "intent": {"kind": "evaluate"}}
            )

    def _view(self, behind: int | None) -> int | None:
        newest = len(self.world.disk.entries)
        return behind if behind in (None, MAX_STEP) else max(0, newest - (behind or 0))

    @rule(target=sent, command=sent, behind=VIEWS)
    def cancel(self, command: Command, behind: int | None) -> Command:
        return self._sent("cancel", based_on_seq=self._view(behind), command=str(command.uuid))

    @precondition(lambda self: self.world.files)
    @rule(
        target=sent,
        which=st.integers(0, 5),
        branch=st.sampled_from([None, None, "x", "main"]),
        first=st.lists(st.sampled_from(FIRST), max_size=2),
        in_steps=st.none() | st.integers(0, 3),
    )
    def go_back(self, which: int, branch: str | None, first: list[dict[str, Any]], in_steps: int | None) -> Command:
        """To any checkpoint there ever was, also one that is damaged, discarded or left behind."""
        names = list(self.world.files)
        later = None if in_steps is None or self.world.fleet is None else self.world.fleet.step + in_steps
        where = {"checkpoint": names[which % len(names)], "branch": branch, "first": first}
        return self._sent("rollback", not_before_step=later, **where)

    @rule(target=sent, branch=st.sampled_from(["main", "branch-2", "branch-3", "x"]))
    def go_on_with(self, branch: str) -> Command:
        return self._sent("rollback", branch=branch)

    @precondition(lambda self: self.world.fleet is not None and self.world.fleet.begun)
    @rule()
    def save(self) -> None:
        self.world.save()

    @precondition(lambda self: self.world.files)
    @rule(which=st.integers(0, 5))
    def damage_or_repair(self, which: int) -> None:
        names = list(self.world.files)
        self.world.damage_checkpoint(names[which % len(names)])

    @rule(back=st.booleans())
    def resume_run(self, back: bool) -> None:
        self.world.resume_run(back)

    @precondition(lambda self: self.world.files)
    @rule(which=st.integers(0, 5), pinned=st.sampled_from([True, False, None]))
    def keep_or_delete(self, which: int, pinned: bool | None) -> None:
        names = list(self.world.files)
        kind, body = ("delete_checkpoint", {}) if pinned is None else ("pin_checkpoint", {"pinned": pinned})
        self.world.try_submit(kind, checkpoint=names[which % len(names)], **body)

    @rule(point=st.sampled_from(CRASH_POINTS))
    def stop_at(self, point: CrashPoint) -> None:
        self.world.faults.stop_server(at=point)

    @rule(hours=st.integers(-1, 1))
    def set_the_clock(self, hours: int) -> None:
        self.world.faults.jump_clock(3600.0 * hours)

    @rule(command=sent)
    def send_again(self, command: Command) -> None:
        self.world.try_send(command)

    @rule(command=sent)
    def reuse_the_uuid(self, command: Command) -> None:
        other = command.model_copy(update={"author": "bob"})
        if command.uuid not in self.world.books.accepted or self.world.server is None:
            return
        if self.world.stopped is not None:  # the one that was replaced need not know the uuid: it is fenced, or refuses
            self.world.try_send(other)
            return
        with pytest.raises(Conflict):
            self.world.send(other)

    @rule(command=consumes(sent))
    def forget(self, command: Command) -> None:
        self.world.unanswered.pop(command.uuid, None)

    @rule(count=st.integers(1, 4))
    def train(self, count: int) -> None:
        for _ in range(count):
            self.world.tick()

    @rule(point=st.sampled_from(CRASH_POINTS))
    def crash_at(self, point: CrashPoint) -> None:
        self.world.faults.crash_server(at=point)

    @rule()
    def crash_now(self) -> None:
        self.world.crash_server()

    @precondition(lambda self: self.world.server is None)
    @rule()
    def restart_server(self) -> None:
        self.world.restart_server()

    @rule()
    def restart_trainers(self) -> None:
        self.world.start_trainers()

    @rule(drop=st.sampled_from([0.0, 0.3]), twice=st.sampled_from([0.0, 0.5]), ticks=st.integers(0, 8))
    def weather(self, drop: float, twice: float, ticks: int) -> None:
        self.world.faults.drop(drop).duplicate(twice).delay(ticks)

    @rule(rank=RANKS, kind=st.sampled_from(["refuse", "fail", "misapply", "misread"]))
    def trouble(self, rank: int, kind: str) -> None:
        getattr(self.world.faults, kind)(rank)

    @rule(rank=RANKS)
    def kill_rank(self, rank: int) -> None:
        if self.world.fleet is not None:
            self.world.faults.kill_rank(rank, at_step=self.world.fleet.step + 1)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()


def rules_carried_out(machine: type[Steering], how: settings) -> int:
    """Search; answers how many rules were carried out in all histories together."""
    machine.steps = 0
    run_machine(machine, settings=how)
    return machine.steps


def test_no_history_that_hypothesis_finds_breaks_an_invariant() -> None:
    assert rules_carried_out(Steering, NORMAL) >= LEAST_RULES


@pytest.mark.slow
def test_no_history_in_a_long_search_breaks_an_invariant() -> None:
    long = settings(NORMAL, max_examples=1500, stateful_step_count=100, derandomize=False)
    assert rules_carried_out(Steering, long) >= LEAST_RULES_IN_A_LONG_SEARCH


@pytest.mark.parametrize("mutant", ["the ledger is ignored in propose", "acknowledged before it is durable"])
def test_hypothesis_finds_a_planted_mutant(mutant: str) -> None:
    machine = type("Mutant", (Steering,), {"parts": MUTANTS[mutant]})
    with pytest.raises(Violation):
        run_machine(machine, settings=settings(NORMAL, phases=[Phase.generate]))
