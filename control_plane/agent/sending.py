"""Sending of an autopilot's changes: as proposals where an agent is started on the run, else directly as commands.

proposed -> made at once by the mode (automatic) -> applied on all ranks
         -> on trial, if the settings say so: the control server tries it, and closes it as adopted or not
         -> open: a person answers, or the deadline; meanwhile nothing else is proposed about the same knob
withdrawn, when the run has changed under an open proposal
"""

from collections.abc import Iterator
from uuid import UUID, uuid4

from control_plane.agent.history import SteeringHistory, is_autopilots
from control_plane.agent.options import AgentClient, AgentOptions
from control_plane.agent.policy import explain, printable
from control_plane.api.messages import CommandView, Snapshot
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import Conflict, NotAllowed, Refused, Unavailable
from control_plane.core.model.intent_base import BaseIntent
from control_plane.core.model.intents import Rollback, Stop
from control_plane.core.model.intents.agent import Propose, WithdrawProposal
from control_plane.core.model.proposals import ProposalStatus
from control_plane.core.model.values import MAX_STEP

DECLINED_COOL_DOWNS = 4
"""After a person has declined a proposal, nothing is proposed on the same subject for so many cool-downs."""


def subjects(intent: BaseIntent) -> frozenset[str]:
    """Return what an intent is about: the knobs that it names, or its kind."""
    return frozenset(intent.knobs()) or frozenset({intent.kind})


class Sender:
    """Sends changes of one autopilot to one run, and keeps its open proposals in order."""

    def __init__(self, client: AgentClient, run: str, history: SteeringHistory, options: AgentOptions) -> None:
        """Start with nothing sent."""
        self._client, self._run, self._history, self._options = client, run, history, options
        self._was_open: set[UUID] = set()
        self._declined_at: dict[UUID, int] = {}
        self._not_ours: set[UUID] = set()

    def note(self, step: int) -> None:
        """Take over, at the run's step `step`, which proposals are open and which were declined since."""
        for status, at in self._history.declined():
            uuid = status.command.uuid
            seen_open = uuid in self._was_open
            self._declined_at.setdefault(uuid, max(at, step) if seen_open else at)
        self._was_open |= {each.command.uuid for each in self._history.open_proposals()}

    def reason_to_wait(self, intent: BaseIntent, step: int) -> str | None:
        """Return why nothing may be proposed on this subject now, or None."""
        about = subjects(intent)
        for status in self._history.open_proposals():
            if status.is_on_trial and intent.changes_course:
                return f"the proposal '{printable(status.proposed.intent.describe())}' is on trial"
            if about & subjects(status.proposed.intent):
                return f"the proposal '{printable(status.proposed.intent.describe())}' is still open"
        wait = DECLINED_COOL_DOWNS * self._options.bounds.cooldown_steps
        for status, at in self._history.declined():
            ago = step - self._declined_at.get(status.command.uuid, at)
            if about & subjects(status.proposed.intent) and 0 <= ago < wait:
                verdict = status.closed.verdict.replace("_", " ") if status.closed else "declined"
                return f"a proposal on this was {verdict} {ago} steps ago; {wait} steps are required until the next"
        return None

    def withdraw_overtaken(self, pilot: str) -> Iterator[str]:
        """Withdraw the open proposals under which the run has changed; yield a sentence for each."""
        for status in list(self._history.open_proposals()):
            uuid = status.command.uuid
            reason = self._overtaken(status)
            if reason is None or uuid in self._not_ours or self._options.dry_run:
                continue
            self._not_ours.add(uuid)  # tried once: what comes of it is in the journal
            what = printable(status.proposed.intent.describe())
            try:
                self._client.submit(self._run, WithdrawProposal(proposal=uuid), reason=explain(pilot, reason))
            except Refused as error:  # of an earlier token, or answered meanwhile
                yield f"the proposal '{what}' is overtaken, but was not withdrawn: {printable(error.reason)}"
                continue
            except Unavailable:
                self._not_ours.discard(uuid)
                continue
            yield f"withdrew the proposal '{what}': {reason}"

    def _overtaken(self, status: ProposalStatus) -> str | None:
        state = self._history.state
        if status.is_on_trial:
            return None  # the control server ends it, see `core.rules.agent.trials`
        if status.branch != state.tree.head:
            return f"the run has left branch {status.branch}"
        if state.started_seq > status.seq:
            return "the training was restarted"
        about = subjects(status.proposed.intent)
        for life in state.commands.values():
            intent = life.command.intent
            if life.accepted_seq <= status.seq or life.status not in ("accepted", "applied"):
                continue
            changed = frozenset(intent.changed_knobs(life.settled.after if life.settled else None))
            if isinstance(intent, Rollback | Stop) or (intent.changes_course and about & (changed | subjects(intent))):
                by = "this autopilot" if is_autopilots(life.command.reason) else "someone else"
                return f"'{printable(intent.describe())}' was sent by {by} meanwhile"
        return None

    def send(self, intent: Intent, reason: str, snapshot: Snapshot, decision: int = 1) -> str:
        """Send a change that passed the gate; return its outcome as a sentence. Raises `NotAllowed`.

        Args:
            snapshot: the run as the change was checked against it.
            decision: which decision of the agent it is.
        """
        try:
            if self._options.settings is None:
                return self._send(intent, reason, snapshot.seq)
            return self.reason_not_sent(intent, snapshot.step) or self._propose(intent, reason, snapshot, decision)
        except NotAllowed:
            raise
        except Refused as error:
            if isinstance(error, Conflict) and "course_seq" in error.detail:
                return f"not sent: the run has changed since it was observed ({printable(error.reason)})"
            return f"rejected: {error.reason}"
        except Unavailable as error:  # the outcome is unknown: the journal will have it
            return f"no outcome yet: {error.reason}"

    def reason_not_sent(self, intent: BaseIntent, step: int) -> str | None:
        """Return `reason_to_wait` as an outcome."""
        reason = self.reason_to_wait(intent, step)
        return f"not sent: {reason}" if reason else None

    def _send(self, intent: Intent, reason: str, seq: int) -> str:
        uuid = uuid4()
        self._history.send(uuid)
        self._client.submit(self._run, intent, reason=reason, based_on_seq=seq, uuid=uuid)
        return self._outcome(uuid)

    def _propose(self, intent: Intent, reason: str, snapshot: Snapshot, decision: int) -> str:
        uuid = uuid4()
        self._history.send(uuid)
        about = {"intent": intent.model_dump(), "step": snapshot.step, "decision": max(1, decision)}
        proposed = Propose.model_validate(about)
        self._client.submit(self._run, proposed, reason=reason, based_on_seq=snapshot.seq, uuid=uuid)
        view = self._client.wait_settled(self._run, uuid, self._options.settle_timeout_s)
        if view.status != "applied":
            why = view.settled.reason if view.settled else None
            return f"{view.status}: {printable(why or 'no reason given')}"
        self._history.read(self._client, self._run, min(view.accepted_seq + 1, MAX_STEP))
        closed = self._history.closing_of(uuid)
        if closed is None:
            self._was_open.add(uuid)
            known = self._history.state.agent.proposals.get(uuid)
            if known is not None and known.trial is not None:
                return f"proposed: {printable(intent.describe())}; on trial for {known.trial.steps} steps"
            return f"proposed: {printable(intent.describe())}; a person answers it"
        if closed.command is None:
            return f"{closed.verdict}: {printable(closed.reason or 'no reason given')}"
        return self._outcome(closed.command)

    def _outcome(self, uuid: UUID) -> str:
        view: CommandView = self._client.wait_settled(self._run, uuid, self._options.settle_timeout_s)
        if view.settled is None:
            return view.status
        if view.status == "applied":
            self._history.confirm(uuid)
        why = f" ({view.settled.reason})" if view.settled.reason else ""
        return f"{view.what}: {view.status} at step {view.settled.step}{why}"
