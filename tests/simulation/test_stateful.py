"""Hypothesis looks for a history that breaks an invariant, and makes it short."""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from control_plane.core.commands import Command
from control_plane.core.errors import Conflict, Refused
from tests.simulation.faults import CRASH_POINTS, CrashPoint
from tests.simulation.fleet import Violation
from tests.simulation.histories import KINDS
from tests.simulation.mutants import MUTANTS
from tests.simulation.parts import Parts
from tests.simulation.world import World

RANKS = st.integers(0, 2)
NORMAL = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Steering(RuleBasedStateMachine):
    """Operators, crashes and faulty ranks, in any order. The world checks itself after every rule."""

    parts = Parts()
    sent: Bundle[Command] = Bundle("sent")

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.world = World(seed, ranks=3, parts=self.parts)
        self.world.start_trainers()

    @rule(target=sent, what=st.sampled_from(KINDS), in_steps=st.none() | st.integers(0, 5))
    def submit(self, what: tuple[str, dict[str, Any]], in_steps: int | None) -> Command:
        kind, body = what
        step = self.world.fleet.step if self.world.fleet else 0
        later = None if in_steps is None or kind == "resume" else step + in_steps
        known = len(self.world.books.accepted)
        try:
            return self.world.submit(kind, not_before_step=later, **body)
        except Refused:
            assert len(self.world.books.accepted) == known
            return Command(uuid=UUID(int=2**100 + known), author="ann", intent=what_else(kind))

    @rule(command=sent)
    def send_again(self, command: Command) -> None:
        self.world.try_send(command)

    @rule(command=sent)
    def reuse_the_uuid(self, command: Command) -> None:
        other = command.model_copy(update={"author": "bob"})
        if command.uuid in self.world.books.accepted and self.world.server is not None:
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


def what_else(kind: str) -> Any:
    """An intent that is always well-formed, in place of one that was refused."""
    return {"kind": kind} if kind != "set_learning_rate" else {"kind": "evaluate"}


def test_no_history_that_hypothesis_finds_breaks_an_invariant() -> None:
    run_machine(Steering, settings=NORMAL)


@pytest.mark.slow
def test_no_history_in_a_long_search_breaks_an_invariant() -> None:
    run_machine(Steering, settings=settings(NORMAL, max_examples=2000, stateful_step_count=100, derandomize=False))


@pytest.mark.parametrize("mutant", ["the ledger is ignored in propose", "acknowledged before it is durable"])
def test_hypothesis_finds_a_planted_mutant(mutant: str) -> None:
    machine = type("Mutant", (Steering,), {"parts": MUTANTS[mutant]})
    with pytest.raises(Violation):
        run_machine(machine, settings=settings(NORMAL, phases=[Phase.generate]))
