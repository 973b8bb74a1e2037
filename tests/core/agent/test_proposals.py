"""Proposals of an agent: made at once, answered by a person, withdrawn, expired; each becomes at most one command."""

from typing import Any

import pytest

from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, Invalid, NotAllowed, NotFound, Overloaded, RunEnded
from control_plane.core.model.limits import Limit
from control_plane.core.model.proposals import ProposalClosed
from control_plane.core.model.records import CommandAccepted, CommandSettled, Entry, Record, RunClosed
from control_plane.core.model.state import RunState, evolve
from control_plane.core.rules import decisions
from control_plane.core.rules.agent.proposals import MAX_OPEN_PROPOSALS, expire_proposals, uuid_of_made
from control_plane.server.agent_views import agent_of
from tests.core.examples import command, created, running, settled, started, state_after, uuid

ACCEPT = decisions.Settling().accept
HALVE = {"kind": "set_learning_rate", "factor": 0.5}
TENFOLD = {"kind": "set_learning_rate", "factor": 10.0}
PROPOSAL = 50


def then(state: RunState, records: list[Record]) -> list[Record]:
    """Fold records into the state, and return them."""
    for record in records:
        evolve(state, Entry(seq=state.seq + 1, time="t", record=record))
    return records


def sent(number: int, kind: str, role: str = "operator", author: str = "ann", **body: Any) -> Command:
    """Return a command of a person, or with the role `agent` of the agent."""
    return command(number, kind, **body).model_copy(update={"role": role, "author": author})


def proposal(intent: dict[str, Any], number: int = PROPOSAL, **fields: Any) -> Command:
    """Return a proposal of the agent."""
    made = sent(number, "propose", role="agent", author="pilot", intent=intent)
    return made.model_copy(update={"reason": "the loss rises"} | fields)


def with_agent(**settings: Any) -> RunState:
    """Return a running run whose agent is started."""
    state = running()
    then(state, decisions.accept(state, sent(1, "start_agent", settings=settings)))
    return state


def closed(records: list[Record]) -> ProposalClosed:
    """Return the verdict among records."""
    (verdict,) = (record for record in records if isinstance(record, ProposalClosed))
    return verdict


def made(records: list[Record]) -> Command:
    """Return the command that came of a proposal: the last that was accepted."""
    return [record.command for record in records if isinstance(record, CommandAccepted)][-1]


def test_one_agent_a_run() -> None:
    state = with_agent(mode="suggest")
    assert state.agent.settings is not None
    assert (state.agent.settings.mode, state.agent.started_by) == ("suggest", "ann")
    with pytest.raises(Conflict, match="has an agent already \\(started by ann"):
        decisions.accept(state, sent(2, "start_agent"))
    then(state, decisions.accept(state, sent(3, "stop_agent")))
    assert state.agent.settings is None
    with pytest.raises(Conflict, match="no agent to stop"):
        decisions.accept(state, sent(4, "stop_agent"))
    then(state, decisions.accept(state, sent(5, "start_agent")))


def test_a_policy_of_mixtures_needs_sources_and_the_grant_of_the_limits() -> None:
    limits = {"mixture/*": Limit(roles=("operator", "agent"))}
    start = sent(2, "start_agent", settings={"policy": "ado"})
    begins = started(900)
    for about, facts, reason in (
        ({}, {"mixture": {"web": {"weight": 1.0}}}, "no limit of this run lets an agent do that"),
        ({"limits": limits}, {}, "sets the weights of the run's sources, and run .* has none"),
    ):
        state = state_after(created().model_copy(update=about), begins.model_copy(update={"facts": facts}))
        with pytest.raises(Invalid, match=reason):
            decisions.accept(state, start)
    facts = {"mixture": {"web": {"weight": 1.0}}}
    begun = state_after(created().model_copy(update={"limits": limits}), begins.model_copy(update={"facts": facts}))
    waiting = state_after(created().model_copy(update={"limits": limits}))
    for state in (begun, waiting):
        then(state, decisions.accept(state, start))
        assert state.agent.settings is not None


def test_config_starts_it_with_the_run_and_a_replay_has_none() -> None:
    settings = with_agent().agent.settings
    state = state_after(created().model_copy(update={"agent": settings}), started(900))
    assert state.agent.settings == settings


def test_guarded_makes_low_risk_at_once_in_one_write() -> None:
    state = with_agent(mode="guarded")
    records = then(state, decisions.accept(state, proposal(HALVE)))
    kinds = [type(record).__name__ for record in records]
    assert kinds == ["CommandAccepted", "CommandSettled", "ProposalClosed", "CommandAccepted"]
    command = made(records)
    assert (closed(records).verdict, closed(records).command) == ("automatic", command.uuid)
    assert (command.uuid, command.author, command.role) == (uuid_of_made(uuid(PROPOSAL)), "pilot", "agent")
    assert (command.reason, command.describe()) == ("the loss rises", "lr x 0.5")
    assert decisions.accept(state, proposal(HALVE)) == [], "a retry"
    assert list(state.pending) == [command.uuid]


@pytest.mark.parametrize(("mode", "intent"), [("guarded", TENFOLD), ("suggest", HALVE), ("auto", {"kind": "pause"})])
def test_the_rest_waits_for_a_person(mode: str, intent: dict[str, Any]) -> None:
    state = with_agent(mode=mode)
    then(state, decisions.accept(state, proposal(intent)))
    (view,) = agent_of(state, {uuid(PROPOSAL): 100.0}).proposals
    assert (view.is_open, view.left_s, view.author) == (True, 800.0, "pilot")
    assert not state.pending


def test_auto_makes_what_the_role_agent_may_send() -> None:
    state = with_agent(mode="auto")
    assert closed(then(state, decisions.accept(state, proposal(TENFOLD)))).verdict == "automatic"


@pytest.mark.parametrize("mode", ["suggest", "guarded", "auto"])
def test_a_persons_proposal_never_makes_itself(mode: str) -> None:
    state = with_agent(mode=mode)
    then(state, decisions.accept(state, sent(PROPOSAL, "propose", intent=HALVE)))
    assert [each.command.uuid for each in state.agent.open_proposals()] == [uuid(PROPOSAL)]


def test_without_a_started_agent_a_proposal_waits() -> None:
    state = running()
    then(state, decisions.accept(state, proposal(HALVE)))
    assert len(list(state.agent.open_proposals())) == 1


def test_role_agent_cannot_go_past_the_mode() -> None:
    state = with_agent(mode="suggest")
    direct = sent(9, "set_learning_rate", role="agent", author="pilot", factor=0.5)
    with pytest.raises(NotAllowed, match=r"in mode suggest: a person must approve 'lr x 0.5'"):
        decisions.accept(state, direct)
    assert decisions.accept(running(), direct), "without an agent the role's own rules hold"
    guarded = with_agent(mode="guarded")
    assert decisions.accept(guarded, direct)
    with pytest.raises(NotAllowed, match="a person must approve"):
        decisions.accept(guarded, sent(9, "set_learning_rate", role="agent", author="pilot", factor=10.0))


def test_approved_is_the_approvers_command_with_the_proposals_reason() -> None:
    state = with_agent(mode="suggest")
    then(state, decisions.accept(state, proposal(TENFOLD)))
    answer = sent(60, "answer_proposal", proposal=str(uuid(PROPOSAL)), approve=True, note="go on")
    records = then(state, decisions.accept(state, answer))
    verdict, command = closed(records), made(records)
    assert (verdict.verdict, verdict.by, verdict.command, verdict.reason) == ("approved", "ann", command.uuid, "go on")
    assert (command.author, command.role, command.reason) == ("ann", "operator", "the loss rises")
    with pytest.raises(Conflict, match="already approved by ann"):
        decisions.accept(state, answer.model_copy(update={"uuid": uuid(61)}))


def test_edited_is_what_the_person_made_of_it() -> None:
    state = with_agent(mode="suggest")
    then(state, decisions.accept(state, proposal(TENFOLD)))
    edited = sent(60, "answer_proposal", proposal=str(uuid(PROPOSAL)), approve=True, intent=HALVE)
    records = then(state, decisions.accept(state, edited))
    assert (closed(records).verdict, made(records).describe()) == ("edited", "lr x 0.5")


def test_rejected_makes_nothing() -> None:
    state = with_agent(mode="suggest")
    then(state, decisions.accept(state, proposal(TENFOLD)))
    records = then(
        state, decisions.accept(state, sent(60, "answer_proposal", proposal=str(uuid(PROPOSAL)), approve=False))
    )
    assert (closed(records).verdict, closed(records).command, list(state.pending)) == ("rejected", None, [])
    with pytest.raises(ValueError, match="a rejection takes no 'intent'"):
        sent(61, "answer_proposal", proposal=str(uuid(PROPOSAL)), approve=False, intent=HALVE)


def test_what_cannot_be_done_is_on_record_as_rejected() -> None:
    state = with_agent(mode="guarded")
    missing = {"kind": "set_learning_rate", "factor": 0.5, "group": "nobody"}
    records = then(state, decisions.accept(state, proposal(missing)))
    outcome = records[-1]
    assert isinstance(outcome, CommandSettled)
    assert (outcome.status, len(records)) == ("rejected", 2)
    assert "there is no parameter group 'nobody'" in str(outcome.reason)
    assert not state.agent.proposals


def test_approval_that_the_run_cannot_take_changes_nothing() -> None:
    state = with_agent(mode="suggest")
    then(state, decisions.accept(state, proposal({"kind": "pause"})))
    then(state, decisions.accept(state, sent(70, "pause")))
    with pytest.raises(Conflict, match="already paused"):
        decisions.accept(state, sent(60, "answer_proposal", proposal=str(uuid(PROPOSAL)), approve=True))
    assert len(list(state.agent.open_proposals())) == 1


def test_unknown_proposals_are_not_found() -> None:
    with pytest.raises(NotFound, match=r"has no proposal .*; waiting for an answer: none"):
        decisions.accept(running(), sent(60, "answer_proposal", proposal=str(uuid(7)), approve=True))


def test_only_its_author_withdraws_it() -> None:
    state = with_agent(mode="suggest")
    then(state, decisions.accept(state, proposal(TENFOLD)))
    with pytest.raises(NotAllowed, match="is of pilot"):
        decisions.accept(state, sent(60, "withdraw_proposal", proposal=str(uuid(PROPOSAL))))
    own = sent(60, "withdraw_proposal", role="agent", author="pilot", proposal=str(uuid(PROPOSAL)))
    assert closed(then(state, decisions.accept(state, own))).verdict == "withdrawn"


def test_the_agents_next_process_withdraws_what_the_one_before_proposed() -> None:
    state = with_agent(mode="suggest")
    then(state, decisions.accept(state, proposal(TENFOLD)))
    later = sent(60, "withdraw_proposal", role="agent", author="agent:run-1", proposal=str(uuid(PROPOSAL)))
    assert closed(then(state, decisions.accept(state, later))).by == "agent:run-1"
    person = sent(PROPOSAL + 1, "propose", intent=TENFOLD)
    then(state, decisions.accept(state, person))
    other = sent(61, "withdraw_proposal", role="agent", author="agent:run-1", proposal=str(person.uuid))
    with pytest.raises(NotAllowed, match="is of ann"):
        decisions.accept(state, other)


def test_a_proposal_carries_the_step_that_it_speaks_of() -> None:
    state = with_agent(mode="suggest")
    spoken = proposal(TENFOLD).model_dump()
    spoken["intent"] |= {"step": 37, "decision": 4}
    then(state, decisions.accept(state, Command.model_validate(spoken)))
    assert agent_of(state, {}).proposals[0].step == 37


def test_an_unknown_policy_is_refused_where_an_agent_is_started() -> None:
    with pytest.raises(Invalid, match=r"there is no policy 'guess'; there are auto, model, rule, guarded"):
        with_agent(policy="guess")


def test_too_many_open_ones_are_refused() -> None:
    state = with_agent(mode="suggest")
    for number in range(MAX_OPEN_PROPOSALS):
        then(state, decisions.accept(state, proposal(HALVE, 100 + number)))
    with pytest.raises(Overloaded, match="answer or withdraw one first"):
        decisions.accept(state, proposal(HALVE, 200))


@pytest.mark.parametrize(("default", "made_it"), [("reject", False), ("approve", True)])
def test_deadline_decides_as_the_settings_say(default: str, made_it: bool) -> None:
    state = with_agent(mode="suggest", deadline_s=60.0, default=default)
    then(state, decisions.accept(state, proposal(HALVE)))
    assert expire_proposals(state, {uuid(PROPOSAL): 59.9}, ACCEPT) == []
    records = then(state, expire_proposals(state, {uuid(PROPOSAL): 60.0}, ACCEPT))
    assert (closed(records).verdict, bool(state.pending)) == ("expired", made_it)
    assert expire_proposals(state, {uuid(PROPOSAL): 600.0}, ACCEPT) == []


def test_settings_of_its_time_hold_for_a_proposal() -> None:
    state = with_agent(mode="suggest", deadline_s=60.0)
    then(state, decisions.accept(state, proposal(HALVE)))
    then(state, decisions.accept(state, sent(3, "stop_agent")))
    assert closed(expire_proposals(state, {uuid(PROPOSAL): 61.0}, ACCEPT)).verdict == "expired"


def test_default_that_cannot_be_done_closes_it_with_the_reason() -> None:
    state = with_agent(mode="suggest", default="approve")
    then(state, decisions.accept(state, proposal({"kind": "pause"})))
    then(state, decisions.accept(state, sent(70, "pause")))
    verdict = closed(expire_proposals(state, {uuid(PROPOSAL): 1e6}, ACCEPT))
    assert (verdict.command, "already paused" in str(verdict.reason)) == (None, True)


def test_end_of_the_run_closes_what_is_open() -> None:
    state = with_agent(mode="suggest")
    then(state, decisions.accept(state, proposal(HALVE)))
    records = then(state, decisions.close_run(state, "finished", None))
    assert closed(records).verdict == "expired"
    assert isinstance(records[-1], RunClosed)
    with pytest.raises(RunEnded):
        decisions.accept(state, proposal(HALVE, 51))
    with pytest.raises(RunEnded):
        decisions.accept(state, sent(9, "start_agent"))


def test_effect_is_noted_once_of_an_applied_command() -> None:
    state = running()
    noted = {
        "command": str(uuid(10)),
        "metric": "loss",
        "before": 3.0,
        "after": 2.5,
        "steps": 20,
        "judgement": "better",
    }
    with pytest.raises(NotFound):
        decisions.accept(state, sent(60, "note_effect", **noted))
    then(state, decisions.accept(state, sent(10, "set_learning_rate", factor=0.5)))
    with pytest.raises(Conflict, match="is accepted, not applied"):
        decisions.accept(state, sent(60, "note_effect", **noted))
    then(state, [settled(10)])
    then(state, decisions.accept(state, sent(60, "note_effect", **noted)))
    assert state.agent.effects[uuid(10)].judgement == "better"
    with pytest.raises(Conflict, match="noted already"):
        decisions.accept(state, sent(61, "note_effect", **noted))
