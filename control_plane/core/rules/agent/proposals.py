"""Rules for proposals: made at once, left to a person, answered, withdrawn, or closed by their deadline.

A proposal and the command that comes of it are records of one write, and the command's uuid follows from the
proposal's: whatever is repeated after a failure, a proposal becomes at most one command. With `trial_steps` a proposal
that would be made is tried first, see `trials`.
"""

from collections.abc import Mapping
from uuid import UUID, uuid5

from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Conflict, Invalid, NotAllowed, NotFound, Overloaded, SteerwayError
from control_plane.core.model.intent_base import BaseIntent
from control_plane.core.model.intents.agent import (
    MIXTURE_POLICIES,
    AgentSettings,
    AnswerProposal,
    NoteEffect,
    Propose,
    StartAgent,
    StopAgent,
    WithdrawProposal,
    reason_against_policy,
)
from control_plane.core.model.limits import AGENT, reason_against_mixing
from control_plane.core.model.proposals import ProposalClosed, ProposalStatus, Verdict
from control_plane.core.model.records import CommandSettled, Record
from control_plane.core.model.state import RunState
from control_plane.core.rules.admission import check_open
from control_plane.core.rules.agent.risk import acts_alone, risk_of
from control_plane.core.rules.agent.trials import (
    Accept,
    abandoned,
    check_no_trial,
    describe_trial,
    is_tried,
    running_trial,
    start_trial,
)

MAX_OPEN_PROPOSALS = 8
"""Proposals of a run that wait for an answer. A person reads each of them; more would bury the one that matters."""

MADE = "made"

ABOUT_AGENT = ("start_agent", "stop_agent", "propose", "withdraw_proposal", "answer_proposal", "note_effect")
"""Kinds that `settle_agent_command` takes."""


def uuid_of_made(proposal: UUID) -> UUID:
    """Return the uuid of the command that comes of a proposal."""
    return uuid5(proposal, MADE)


def check_agent_mode(state: RunState, command: Command) -> None:
    """Raise `NotAllowed` if the role `agent` must propose this command, since the run's agent may not do it alone."""
    settings = state.agent.settings
    if command.role != AGENT or settings is None or not command.intent.is_queued:
        return
    if not acts_alone(state, command, command.intent):
        raise NotAllowed(
            f"the agent of run {state.run} is in mode {settings.mode}: a person must approve '{command.describe()}'; "
            "send it as a proposal (kind 'propose')",
            mode=settings.mode,
        )
    if settings.trial_steps is not None and command.intent.changes_course:
        raise NotAllowed(
            f"the agent of run {state.run} tries its changes for {settings.trial_steps} steps first; send "
            f"'{command.describe()}' as a proposal (kind 'propose')",
            mode=settings.mode,
        )


def settle_agent_command(state: RunState, command: Command, accept: Accept) -> list[Record]:
    """Return the records that follow the acceptance of a command about the agent.

    Args:
        accept: accepts the command that comes of a proposal.

    Raises:
        NotFound: there is no such proposal or command.
        Conflict: it has no effect: an agent is started already, a proposal is closed.
        Overloaded: too many proposals wait for an answer.
        Invalid: an agent is started with an unknown policy, or one that the limits leave nothing to do.
        RunEnded: the run is closed.
    """
    done: list[Record] = [CommandSettled(uuid=command.uuid, status="applied")]
    match command.intent:
        case StartAgent(settings=wanted):
            check_open(state)
            if reason := reason_against_policy(wanted) or _reason_against_mixing(state, wanted):
                raise Invalid(reason)
            if state.agent.settings is not None:
                who = f"started by {state.agent.started_by}, policy {state.agent.settings.policy}"
                raise Conflict(f"run {state.run} has an agent already ({who}); stop it first: `steer agent stop`")
            return done
        case StopAgent():
            if state.agent.settings is None:
                raise Conflict(f"run {state.run} has no agent to stop")
            tried = running_trial(state)
            return [*done, abandoned(tried, "the agent was stopped", command.author)] if tried else done
        case Propose():
            return _propose(state, command, accept, done)
        case WithdrawProposal(proposal=uuid):
            status = _open(state, uuid)
            # An agent's next process may have another token than the one before; a run has one agent.
            is_agents = command.role == status.command.role == AGENT
            if status.command.author != command.author and not is_agents:
                raise NotAllowed(f"proposal {uuid} is of {status.command.author}; only its author may withdraw it")
            return [*done, _closed(status, "withdrawn", command.author, reason=command.reason)]
        case AnswerProposal():
            return [*done, *_answer(state, command, command.intent, accept)]
        case NoteEffect(command=uuid):
            known = state.commands.get(uuid)
            if known is None:
                raise NotFound(f"run {state.run} has no command {uuid}")
            if known.status != "applied":
                raise Conflict(f"'{known.command.describe()}' is {known.status}, not applied: it has no effect to note")
            if uuid in state.agent.effects:
                raise Conflict(f"the effect of command {uuid} is noted already")
            return done
    raise AssertionError(f"{command.intent.kind} is not about the agent")


def _reason_against_mixing(state: RunState, wanted: AgentSettings) -> str | None:
    """Return why a policy of mixtures could do nothing on this run, or None. Sources are known once it has begun."""
    if wanted.policy in MIXTURE_POLICIES and state.generation is not None and not state.data.mixture:
        return f"the policy {wanted.policy} sets the weights of the run's sources, and run {state.run} has none"
    return reason_against_mixing(state.limits, wanted.policy)


def _propose(state: RunState, command: Command, accept: Accept, done: list[Record]) -> list[Record]:
    check_open(state)
    proposed = command.intent
    assert isinstance(proposed, Propose)
    alone = acts_alone(state, command, proposed.intent)
    waiting = sum(1 for _ in state.agent.open_proposals())
    if not alone and waiting >= MAX_OPEN_PROPOSALS:
        raise Overloaded(
            f"{waiting} proposals of run {state.run} wait for an answer, the limit; answer or withdraw one first",
            limit=MAX_OPEN_PROPOSALS,
        )
    made = _made(command, proposed.intent, command.author, command.role if alone else None)
    settings = state.agent.settings
    try:
        records = accept(state, made)
        if alone and settings is not None:
            # Its number is that of the record that settles it: the second one from now.
            records = _tried_or_made(state, command, state.seq + 2, settings, made, "automatic", "", None, accept)
    except SteerwayError as error:
        # The proposal is on record, with the reason why nothing can come of it.
        return [CommandSettled(uuid=command.uuid, status="rejected", reason=error.reason)]
    return [*done, *records] if alone else done


def _tried_or_made(
    state: RunState,
    proposal: Command,
    number: int,
    settings: AgentSettings,
    made: Command,
    verdict: Verdict,
    by: str,
    note: str | None,
    accept: Accept,
) -> list[Record]:
    """Return the records that begin a proposal's trial, or else close it and accept the command that came of it."""
    records = accept(state, made)  # what could not be made is not tried either
    if settings.trial_steps is not None and is_tried(settings, made.intent):
        return start_trial(state, proposal, number, settings.trial_steps, made.intent, accept, by=by, note=note)
    if made.intent.changes_course:
        check_no_trial(state)
    closed = ProposalClosed(proposal=proposal.uuid, verdict=verdict, by=by, command=made.uuid, reason=note)
    return [closed, *records]


def _answer(state: RunState, command: Command, answer: AnswerProposal, accept: Accept) -> list[Record]:
    status = _open(state, answer.proposal)
    if not answer.approve:
        return [_closed(status, "rejected", command.author, reason=answer.note)]
    if (trial := describe_trial(state, status)) is not None:
        raise Conflict(f"proposal {answer.proposal} is on trial: {trial}; to end the trial, reject it")
    if status.branch != state.tree.head:
        raise Conflict(
            f"proposal {answer.proposal} is about branch {status.branch}, and the run is on {state.tree.head} now; "
            "reject it"
        )
    edited = answer.intent is not None and answer.intent != status.proposed.intent
    intent = answer.intent if answer.intent is not None else status.proposed.intent
    made = _made(status.command, intent, command.author, command.role)
    verdict: Verdict = "edited" if edited else "approved"
    by, note = command.author, answer.note
    return _tried_or_made(state, status.command, status.seq, status.settings, made, verdict, by, note, accept)


def expire_proposals(state: RunState, open_s: Mapping[UUID, float], accept: Accept) -> list[Record]:
    """Return the records that close proposals whose deadline has passed, the oldest one only: call again for the next.

    Args:
        open_s: seconds since each open proposal was made.
    """
    waiting = (each for each in state.agent.open_proposals() if not each.is_on_trial)
    status = next((each for each in waiting if open_s.get(each.command.uuid, 0.0) >= each.settings.deadline_s), None)
    if status is None:
        return []
    late = f"nobody answered within {status.settings.deadline_s:g} s"
    if status.settings.default == "reject" or state.closed is not None:
        return [_closed(status, "expired", reason=f"{late}; the default is to reject it")]
    if status.branch != state.tree.head:
        return [_closed(status, "expired", reason=f"{late}, and the run has left branch {status.branch}")]
    made = _made(status.command, status.proposed.intent, status.command.author, status.command.role)
    by_default, settings = f"{late}; the default is to approve it", status.settings
    try:
        return _tried_or_made(state, status.command, status.seq, settings, made, "expired", "", by_default, accept)
    except SteerwayError as error:
        return [_closed(status, "expired", reason=f"{late}, and it cannot be done: {error.reason}")]


def close_proposals(state: RunState, why: str) -> list[Record]:
    """Return the records that close every open proposal, since the run has ended."""
    return [_closed(status, "expired", reason=why) for status in state.agent.open_proposals()]


def risk_of_proposal(state: RunState, status: ProposalStatus) -> str:
    """Return the risk of a proposal with the run's values of now: `low` or `high`."""
    return risk_of(status.proposed.intent, status.settings, state.knobs)


def _made(proposal: Command, intent: BaseIntent, author: str, role: str | None) -> Command:
    return Command.model_validate(
        {
            "uuid": uuid_of_made(proposal.uuid),
            "author": author,
            "role": role,
            "intent": intent.model_dump(),
            "reason": proposal.reason,
            "not_after_step": proposal.not_after_step,
        }
    )


def _open(state: RunState, uuid: UUID) -> ProposalStatus:
    status = state.agent.proposals.get(uuid)
    if status is None:
        waiting = ", ".join(str(each.command.uuid) for each in state.agent.open_proposals()) or "none"
        raise NotFound(f"run {state.run} has no proposal {uuid}; waiting for an answer: {waiting}")
    if status.closed is not None:
        by = f" by {status.closed.by}" if status.closed.by else ""
        raise Conflict(f"proposal {uuid} is already {status.closed.verdict}{by}")
    return status


def _closed(
    status: ProposalStatus, verdict: Verdict, by: str = "", command: UUID | None = None, reason: str | None = None
) -> ProposalClosed:
    return ProposalClosed(proposal=status.command.uuid, verdict=verdict, by=by, command=command, reason=reason)
