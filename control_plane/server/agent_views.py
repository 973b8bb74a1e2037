"""Views of a run's agent and its proposals: pure functions from `RunState` to messages."""

from collections.abc import Mapping
from uuid import UUID

from control_plane.api.agent_views import AgentView, ProposalView
from control_plane.core.model.proposals import ProposalStatus
from control_plane.core.model.state import RunState
from control_plane.core.rules.agent.proposals import risk_of_proposal
from control_plane.core.rules.agent.trials import describe_trial

MAX_PROPOSALS_IN_SNAPSHOT = 30
"""A snapshot is for people; the journal holds the rest."""


def agent_of(state: RunState, open_s: Mapping[UUID, float]) -> AgentView:
    """Return the view of the agent; `open_s`: seconds since each open proposal was made."""
    agent = state.agent
    waiting = list(agent.open_proposals())
    closed = [status for status in agent.proposals.values() if status.closed is not None]
    newest = closed[len(closed) - max(0, min(len(closed), MAX_PROPOSALS_IN_SNAPSHOT - len(waiting))) :]
    chosen = sorted([*waiting, *newest], key=lambda status: status.seq)
    return AgentView(
        settings=agent.settings,
        started_by=agent.started_by,
        since_seq=agent.since_seq,
        proposals=tuple(_proposal_of(state, status, open_s) for status in chosen),
        made=len(agent.proposals),
    )


def _proposal_of(state: RunState, status: ProposalStatus, open_s: Mapping[UUID, float]) -> ProposalView:
    command, closed = status.command, status.closed
    left_s = status.settings.deadline_s - open_s.get(command.uuid, 0.0)
    made = closed.command if closed else None
    return ProposalView(
        uuid=command.uuid,
        author=command.author,
        intent=status.proposed.intent,
        what=status.proposed.intent.describe(),
        reason=command.reason,
        seq=status.seq,
        made_at=status.made_at,
        step=status.step,
        branch=status.branch,
        risk=risk_of_proposal(state, status),
        left_s=None if closed or status.is_on_trial else round(max(0.0, left_s), 3),
        default=status.settings.default,
        trial=describe_trial(state, status),
        verdict=closed.verdict if closed else None,
        by=closed.by if closed else "",
        closed_at=status.closed_at,
        note=closed.reason if closed else None,
        command=made,
        effect=state.agent.effects.get(made) if made else None,
    )
