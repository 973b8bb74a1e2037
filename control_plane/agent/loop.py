"""Control loop of the autopilot: observe a run every few steps, propose, check the bounds, submit like any operator.

    observe -> propose (a model or the rule) -> observe again if that took time -> decide -> submit -> wait for the end

Crash-safe and stateless: it may be killed and restarted at any step, since its bounds are counted from the run's
journal (see `history`) and hold across restarts. Training never waits for it; while the gateway does not answer, it
retries with backoff. It ends with the run, after its last decision, or by Ctrl-C.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol
from uuid import UUID, uuid4

from control_plane.agent import greedy_lr
from control_plane.agent.grants import Proposal, decide
from control_plane.agent.history import SteeringHistory
from control_plane.agent.measured import Measured
from control_plane.agent.model import DEFAULT_TIMEOUT_S, ChatModel, ModelUnavailable, endpoint
from control_plane.agent.observing import actions_seen, knobs_seen
from control_plane.agent.policy import AgentAction, AgentBounds, Decision, Observation, explain, printable
from control_plane.api.messages import CommandView, Measurements, Receipt, Snapshot
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import Conflict, Invalid, NotAllowed, Refused, Unavailable
from control_plane.core.model.intent_base import LEARNING_RATE
from control_plane.core.model.intents.grants import NO_GRANTS, Grants
from control_plane.core.model.records import Entry

MAX_WAIT_S = 15.0
"""Longest wait between retries: notices a gateway restart soon, without hammering one that is down for long."""

RULE = "GreedyLR"


class AgentClient(Protocol):
    """Client interface: the part of `client.SteerwayClient` that is used. May raise `Unavailable`, `Refused`."""

    def snapshot(self, run: str) -> Snapshot:
        """Return the current state of the run."""
        ...

    def metrics(self, run: str, after: int = 0, limit: int = ..., names: tuple[str, ...] = ()) -> Measurements:
        """Return metric points after the cursor `after`."""
        ...

    def journal(self, run: str, after: int = 0, limit: int = ...) -> list[Entry]:
        """Return journal entries after the entry `after`."""
        ...

    def submit(
        self,
        run: str,
        intent: Intent,
        *,
        reason: str | None = None,
        based_on_seq: int | None = None,
        uuid: UUID | None = None,
    ) -> Receipt:
        """Submit a command durably. Idempotent by uuid.

        Raises `Conflict` if the run has changed since the journal entry `based_on_seq`.
        """
        ...

    def wait_settled(self, run: str, uuid: UUID, timeout_s: float) -> CommandView:
        """Wait for a command's outcome. Raises `Unavailable` if it takes longer than `timeout_s`."""
        ...


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """Options of the autopilot. Raises `Invalid` for inconsistent values.

    `policy`: "auto" asks a model if a key is set and follows the rule otherwise. `fallback`: what to do if the model
    gives no decision. `max_decisions` bounds the cost of a model: each decision is at most two calls.
    """

    every_steps: int = 25
    window_points: int = 200
    bounds: AgentBounds = field(default_factory=AgentBounds)
    grants: Grants = NO_GRANTS
    policy: Literal["auto", "model", "rule"] = "auto"
    fallback: Literal["keep", "rule"] = "keep"
    max_decisions: int = 1000
    dry_run: bool = False
    poll_s: float = 1.0
    settle_timeout_s: float = 60.0
    model_timeout_s: float = DEFAULT_TIMEOUT_S
    patience: greedy_lr.Patience = field(default_factory=greedy_lr.Patience)

    def __post_init__(self) -> None:
        if self.policy not in ("auto", "model", "rule"):
            raise Invalid(f"policy is {self.policy!r}; allowed are auto, model and rule")
        if self.fallback not in ("keep", "rule"):
            raise Invalid(f"fallback is {self.fallback!r}; allowed are keep and rule")
        for name in ("every_steps", "window_points", "max_decisions", "poll_s", "settle_timeout_s", "model_timeout_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise Invalid(f"{name} is {value:g}; it must be greater than 0")


def run_agent(
    client: AgentClient,
    run: str,
    options: AgentOptions | None = None,
    say: Callable[[str], None] = print,
    *,
    environ: Mapping[str, str] = os.environ,
    wait: Callable[[float], None] = time.sleep,
) -> int:
    """Steer a run until it has ended; return the number of applied changes.

    Raises `NotFound`, `NotAllowed`, `Invalid` (no usable model in the environment), `Conflict` (another autopilot is
    active on this run). Ctrl-C ends it cleanly.
    """
    options = options or AgentOptions()
    autopilot = Autopilot(client, run, options, say, choose_model(options, environ))
    say(f"steering {run} every {options.every_steps} steps with {autopilot.pilot}; Ctrl-C ends the autopilot only")
    try:
        _steer_until_ended(autopilot, options, say, wait)
    except KeyboardInterrupt:
        say("the autopilot was stopped; the run continues")
    say(f"{autopilot.decisions} decisions, {autopilot.applied} changes applied")
    return autopilot.applied


def choose_model(options: AgentOptions, environ: Mapping[str, str]) -> ChatModel | None:
    """Return the model to ask, or None for the rule. Raises `Invalid` if a model is required and no key is set."""
    where = None if options.policy == "rule" else endpoint(environ, options.model_timeout_s)
    if where is None and options.policy == "model":
        raise Invalid("policy is 'model', but OPENAI_API_KEY is not set; set it, or use policy 'rule'")
    return ChatModel(where) if where else None


def _steer_until_ended(
    autopilot: "Autopilot", options: AgentOptions, say: Callable[[str], None], wait: Callable[[float], None]
) -> None:
    failures = 0
    while autopilot.decisions < options.max_decisions:
        try:
            ended = autopilot.poll()
        except Unavailable as error:
            if failures == 0:
                say(f"{error.reason}; retrying")
            failures += 1
            wait(min(options.poll_s * 2 ** min(failures, 10), MAX_WAIT_S))
            continue
        if failures:
            say("the control server is available again")
            failures = 0
        if ended:
            say(f"the run has ended: {ended}")
            return
        wait(options.poll_s)
    say(f"the limit of {options.max_decisions} decisions is reached")


class Autopilot:
    """Steering loop of one run: its measurements, its commands and their outcomes."""

    def __init__(
        self, client: AgentClient, run: str, options: AgentOptions, say: Callable[[str], None], model: ChatModel | None
    ) -> None:
        self._client, self._run, self._options, self._say, self._model = client, run, options, say, model
        self._measured = Measured(max(options.window_points, options.every_steps))
        self._memory = greedy_lr.Memory()
        self._generation: int | None = None
        self._next_step = options.every_steps
        self._history = SteeringHistory()
        self._is_new = True
        self.decisions = 0

    @property
    def pilot(self) -> str:
        """Return the name of the proposer: the model's, or the rule's."""
        return self._model.name if self._model else RULE

    @property
    def applied(self) -> int:
        """Return the number of this autopilot's changes that every rank has confirmed."""
        return self._history.applied

    def poll(self) -> str | None:
        """Observe once, and decide if one is due. Returns the final status of an ended run, else None.

        Raises `Unavailable` if nobody answers (call again later), `Conflict` if another autopilot is active on this
        run.
        """
        snapshot, is_known = self._look()
        if snapshot.closed:
            return snapshot.status
        self._follow(snapshot)
        caught_up = self._measured.read(self._client, self._run) and is_known
        if snapshot.status == "running" and caught_up and self._is_due(snapshot):
            self._act(self._observe(snapshot))
        return None

    def _follow(self, snapshot: Snapshot) -> None:
        """Reset after a new generation, which starts at another step."""
        if self._generation not in (None, snapshot.generation):
            self._next_step = snapshot.step + self._options.every_steps
            self._memory = greedy_lr.Memory()
            self._measured.forget()
        self._generation = snapshot.generation

    def _is_due(self, snapshot: Snapshot) -> bool:
        newest = self._measured.newest_step
        return snapshot.step >= self._next_step and newest is not None and newest > self._memory.step

    def _act(self, seen: Observation) -> None:
        self.decisions += 1
        self._next_step = seen.step + self._options.every_steps
        self._memory, by_rule = greedy_lr.look(self._memory, seen, self._options.patience)
        pilot, decision = self._propose(seen, by_rule)
        reason = explain(pilot, decision.reason)
        is_kept = isinstance(decision, Decision) and decision.action is AgentAction.KEEP
        outcome = "kept" if is_kept else self._pass_gate(decision, seen, reason)
        loss = f"{seen.losses[-1][1]:.4g}" if seen.losses else "?"
        lr = ", ".join(f"{lr:.3g}" for lr in seen.lr) or "?"
        self._say(f"step {seen.step}: loss {loss}, lr {lr}: {printable(decision.what)}: {reason} -> {outcome}")

    def _propose(self, seen: Observation, by_rule: Decision) -> tuple[str, Proposal]:
        if self._model is None:
            return RULE, by_rule
        try:
            return self._model.name, self._model.propose(seen, self._options.bounds, self._options.grants)
        except ModelUnavailable as error:
            if self._options.fallback == "rule":
                return RULE, replace(by_rule, reason=f"{by_rule.reason} ({error.reason})")
            return self._model.name, Decision(AgentAction.KEEP, error.reason)

    def _pass_gate(self, decision: Proposal, seen: Observation, reason: str) -> str:
        """Check a proposal against the bounds, submit it, and return its outcome as a sentence."""
        try:
            snapshot, is_known = self._look()  # the model took time, and people may have steered meanwhile
        except Unavailable as error:
            return f"not sent: {error.reason}"
        if not is_known:
            return "not sent: the run's journal could not be read to its end"
        if snapshot.status != "running":
            return f"not sent: the run is now {snapshot.status}"
        ruling = decide(decision, seen, self._observe(snapshot), self._options.bounds, self._options.grants)
        if ruling.intent is None:
            return printable(ruling.sentence)
        if self._options.dry_run:
            return f"dry run, not sent: {printable(ruling.sentence)}"
        return self._submit(ruling.intent, reason, snapshot.seq)

    def _submit(self, intent: Intent, reason: str, seq: int) -> str:
        uuid = uuid4()
        self._history.send(uuid)
        try:
            self._client.submit(self._run, intent, reason=reason, based_on_seq=seq, uuid=uuid)
            view = self._client.wait_settled(self._run, uuid, self._options.settle_timeout_s)
        except NotAllowed:
            raise
        except Refused as error:
            if isinstance(error, Conflict) and "course_seq" in error.detail:
                return f"not sent: the run has changed since it was observed ({printable(error.reason)})"
            return f"rejected: {error.reason}"
        except Unavailable as error:  # the outcome is unknown: the journal will have it
            return f"no outcome yet: {error.reason}"
        if view.settled is None:
            return view.status
        if view.status == "applied":
            self._history.confirm(uuid)
        why = f" ({view.settled.reason})" if view.settled.reason else ""
        return f"{view.what}: {view.status} at step {view.settled.step}{why}"

    def _look(self) -> tuple[Snapshot, bool]:
        """Return the current snapshot, and whether the journal was read up to it.

        Raises `Conflict` if another autopilot is active on this run, except in a dry run, which sends nothing.
        """
        snapshot = self._client.snapshot(self._run)
        is_known = self._history.read(self._client, self._run, snapshot.seq)
        if is_known and not snapshot.closed and not self._options.dry_run:
            self._history.check_alone(self._run)
        if is_known and self._is_new:
            self._is_new = False
            self._tell_inheritance()
        return snapshot, is_known

    def _tell_inheritance(self) -> None:
        earlier, step = self._history.inherited
        if earlier:
            last = f", the last at step {step}" if step is not None else ""
            self._say(
                f"earlier autopilots have used {earlier} of the {self._options.bounds.max_changes} changes allowed on "
                f"this run{last}; this one may use the rest"
            )

    def _observe(self, snapshot: Snapshot) -> Observation:
        changed_at, pending = self._history.last_change(LEARNING_RATE)
        live_lr = self._measured.live_lr(tuple(snapshot.knobs.get("lr", ())), changed_at)
        grants = self._options.grants
        peaks = (self._history.peak_lr, self._measured.peak_lr(live_lr), *live_lr)
        return Observation(
            step=snapshot.step,
            total_steps=snapshot.total_steps,
            losses=tuple(self._measured.losses),
            lr=live_lr,
            eval_loss=self._measured.eval_loss,
            generation=snapshot.generation,
            changed_at=changed_at,
            changes=self._history.changes,
            pending=pending,
            peak_lr=max(peak for peak in peaks if math.isfinite(peak)),
            knobs=knobs_seen(snapshot, self._history, grants, live_lr),
            actions=actions_seen(snapshot, self._history, grants),
            watched={name: snapshot.latest[name] for name in grants.watch if name in snapshot.latest},
            evals=tuple(self._measured.evals),
            grad_norms=tuple(self._measured.grad_norms),
        )
