"""Core functions against deliberately dumb second implementations."""

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.core.boundary import Replica, propose
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Refused
from control_plane.core.model.records import CommandAccepted, CommandSettled
from control_plane.core.model.state import RunState
from control_plane.core.rules import decisions
from tests.core.examples import command, running, settled

KINDS = st.sampled_from(["evaluate", "pause", "resume", "stop"])
ASKED = st.lists(st.tuples(st.integers(1, 30), st.none() | st.integers(0, 20)), max_size=40)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ASKED, st.sets(st.integers(1, 30)), st.integers(0, 20))
def test_propose_agrees_with_a_dumb_second_implementation(
    asked: list[tuple[int, int | None]], decided: set[int], step: int
) -> None:
    offers = tuple(command(number, not_before_step=bound) for number, bound in asked)
    replica = Replica(generation=1, ledger={command(n).uuid: settled(n) for n in decided})
    expected: list[Command] = []
    latest = {offer.uuid: offer for offer in offers}
    for offer in offers:
        candidate = latest[offer.uuid]
        late_enough = candidate.not_before_step is None or step >= candidate.not_before_step
        is_new = all(candidate.uuid != command(n).uuid for n in decided)
        if late_enough and is_new and candidate not in expected and len(expected) < 16:
            expected.append(candidate)
    assert list(propose(replica, offers, step)) == expected


class DumbRun:
    """What a run accepts, told by lists."""

    def __init__(self) -> None:
        self.accepted: list[tuple[int, str]] = []
        self.ended: dict[int, str] = {}

    def would_be_paused(self) -> bool:
        """Replay what was applied, then what is still pending."""
        paused = False
        applied = [(n, k) for n, k in self.accepted if self.ended.get(n) == "applied"]
        pending = [(n, k) for n, k in self.accepted if n not in self.ended]
        for _, kind in applied + pending:
            paused = {"pause": True, "resume": False, "stop": False}.get(kind, paused)
        return paused

    def takes(self, number: int, kind: str) -> bool:
        """Is this command taken (or known already)?"""
        if any(n == number for n, _ in self.accepted):
            return (number, kind) in self.accepted
        if any(k == "stop" and self.ended.get(n, "applied") == "applied" for n, k in self.accepted):
            return False
        if kind == "pause":
            return not self.would_be_paused()
        return self.would_be_paused() if kind == "resume" else True


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 12), KINDS, st.none() | st.sampled_from(["applied", "rejected"])), max_size=25)
)
def test_accept_agrees_with_a_dumb_second_implementation(story: list[tuple[int, str, str | None]]) -> None:
    dumb, records = DumbRun(), list[CommandAccepted | CommandSettled]()
    for number, kind, end in story:
        state: RunState = running(*records)
        try:
            fresh = decisions.accept(state, command(number, kind))
        except Refused:
            assert not dumb.takes(number, kind)
            continue
        assert dumb.takes(number, kind)
        if not fresh:
            continue
        dumb.accepted.append((number, kind))
        records.append(CommandAccepted(command=command(number, kind)))
        # Settled at once, or left pending for good: the order of settlements is the order of acceptance.
        if end is not None and len(state.pending) == 0:
            dumb.ended[number] = end
            records.append(settled(number, end))
