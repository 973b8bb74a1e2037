"""An autopilot beside the trial of its own proposal: it waits, counts it, withdraws nothing, and tells of it."""

from control_plane.agent import seeing
from control_plane.agent.history import SteeringHistory
from control_plane.agent.options import AgentOptions, options_of
from control_plane.agent.policy import AUTOPILOT
from control_plane.agent.sending import Sender
from control_plane.core.model.commands import SetLearningRate
from control_plane.core.model.intents import Evaluate, SetKnobs
from control_plane.core.model.intents.agent import AgentSettings
from control_plane.core.model.intents.grants import NO_GRANTS
from control_plane.core.model.records import Entry
from control_plane.core.model.values import Change
from tests.agent.simulated import SimulatedRun
from tests.core.agent.test_proposals import HALVE, proposal
from tests.core.agent.trial_run import Run, on_trial_branch
from tests.core.examples import created, uuid

RUN = "run-1"


class Reader:
    """Reads the journal of a simulated run."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries

    def journal(self, run: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        """Return the entries after `after`."""
        return self.entries[after : after + limit]


def tried(losses: tuple[float, float], until_end: bool = True) -> tuple[SteeringHistory, Sender]:
    """Return the history of a run whose agent's proposal is or was on trial, and a sender over it."""
    run = Run(losses=losses)
    history = SteeringHistory()
    command = proposal(HALVE).model_copy(update={"reason": f"{AUTOPILOT}guarded): the loss rises"})
    run.send(command)
    history.read(Reader(from_the_start(run)), RUN, 1)
    history.send(uuid(50))
    run.train(None if until_end else on_trial_branch)
    history.read(Reader(from_the_start(run)), RUN, run.state.seq)
    options: AgentOptions = options_of(AgentSettings(trial_steps=10))
    return history, Sender(SimulatedRun(1.0), RUN, history, options)


def from_the_start(run: Run) -> list[Entry]:
    """The whole journal, with the record that created the run."""
    return [Entry(seq=1, time="t", record=created()), *run.entries]


def test_while_it_is_tried_nothing_that_changes_the_course_is_proposed_and_nothing_withdrawn() -> None:
    history, sender = tried((3.0, 2.0), until_end=False)
    other = SetKnobs(changes=(Change(knob="weight_decay", factor=0.5),))
    for intent in (SetLearningRate(factor=0.5), other):
        assert sender.reason_to_wait(intent, 22) == "the proposal 'lr x 0.5' is on trial"
    assert sender.reason_to_wait(Evaluate(), 22) is None
    assert list(sender.withdraw_overtaken("guarded")) == []
    history.check_alone(RUN)
    assert history.changes == 1


def test_a_tried_one_is_a_change_whatever_came_of_it() -> None:
    adopted, _ = tried((3.0, 2.0))
    assert (adopted.changes, adopted.applied) == (1, 1)
    adopted.check_alone(RUN)
    (past,) = seeing.past_of(adopted, NO_GRANTS)
    assert (past.what, past.by, past.verdict) == ("lr x 0.5", "you", "applied")


def test_one_that_was_not_better_is_left_alone_for_long() -> None:
    history, sender = tried((3.0, 4.0))
    assert (history.changes, history.applied) == (1, 0)
    assert "a proposal on this was not better" in str(sender.reason_to_wait(SetLearningRate(factor=0.5), 31))
    (past,) = seeing.past_of(history, NO_GRANTS)
    assert (past.what, past.by, past.verdict) == ("lr x 0.5", "you", "not better")
