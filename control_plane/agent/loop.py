"""Control loop of the autopilot: observe a run every few steps, propose, check the bounds, submit like any operator.

    observe -> propose (a model or a rule) -> observe again if that took time -> decide -> second opinion -> submit

Where an agent is started on the run, every change is sent as a proposal, see `sending`; else directly. Crash-safe and
stateless: it may be killed and restarted at any step, since its bounds are counted from the run's journal (see
`history`) and hold across restarts. Training never waits for it; while the gateway does not answer, it retries with
backoff. It ends with the run, after its last decision, when its agent is stopped or set anew, or by Ctrl-C.
"""

import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from control_plane.agent import seeing
from control_plane.agent.asking import second_opinion
from control_plane.agent.choosing import advice, choose_model, choose_rule
from control_plane.agent.grants import Proposal, decide
from control_plane.agent.history import SteeringHistory
from control_plane.agent.judging.cadence import idle_s, is_doubtful, next_look
from control_plane.agent.judging.effects import effect_of
from control_plane.agent.measured import Measured
from control_plane.agent.mixing import granted_sources, sources_seen
from control_plane.agent.model import Budget, BudgetSpent, ChatModel, ModelUnavailable
from control_plane.agent.observing import actions_seen, knobs_seen
from control_plane.agent.options import AgentClient, AgentOptions, adopted
from control_plane.agent.policy import AgentAction, Decision, Observation, explain, printable
from control_plane.agent.rules.guarded import GuardedRule
from control_plane.agent.rules.mixture import MixtureRule
from control_plane.agent.sending import Sender
from control_plane.api.messages import Snapshot
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import Refused, Unavailable
from control_plane.core.model.intent_base import LEARNING_RATE
from control_plane.core.model.intents.agent import NoteEffect
from control_plane.core.model.intents.data import SetMixture
from control_plane.core.model.limits import Limit
from control_plane.core.model.state import CommandStatus
from control_plane.core.rules.agent.risk import risk_of

__all__ = ["AgentClient", "AgentOptions", "Autopilot", "choose_model", "run_agent"]

MAX_WAIT_S = 15.0
"""Longest wait between retries: notices a gateway restart soon, without hammering one that is down for long."""

LEAST_EFFECT_STEPS = 8
"""An effect is measured over at least so many steps."""

MAX_REVIEW_CHARS = 110
"""Limit of each opinion where a proposal's reason holds two."""


def run_agent(
    client: AgentClient,
    run: str,
    options: AgentOptions | None = None,
    say: Callable[[str], None] = print,
    *,
    environ: Mapping[str, str] = os.environ,
    wait: Callable[[float], None] = time.sleep,
    budget: Budget | None = None,
) -> int:
    """Steer a run until it has ended; return the number of applied changes.

    Raises `NotFound`, `NotAllowed`, `Invalid` (no usable model in the environment), `Conflict` (another autopilot is
    active on this run). Ctrl-C ends it cleanly.
    """
    options = options or AgentOptions()
    autopilot = Autopilot(client, run, options, say, choose_model(options, environ, budget))
    say(f"steering {run} every {options.every_steps} steps with {autopilot.pilot}; Ctrl-C ends the autopilot only")
    try:
        _steer_until_ended(autopilot, options, say, wait)
    except KeyboardInterrupt:
        say("the autopilot was stopped; the run continues")
    say(f"{autopilot.decisions} decisions, {autopilot.applied} changes applied")
    return autopilot.applied


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
            say(ended)
            return
        wait(min(max(options.poll_s, autopilot.idle_s), MAX_WAIT_S))
    say(f"the limit of {options.max_decisions} decisions is reached")


class Autopilot:
    """Steering loop of one run: its measurements, its commands and their outcomes."""

    def __init__(
        self, client: AgentClient, run: str, options: AgentOptions, say: Callable[[str], None], model: ChatModel | None
    ) -> None:
        self._client, self._run, self._options, self._say, self._model = client, run, options, say, model
        self._rule, self._guarded = choose_rule(options), GuardedRule(options.patience)
        self._measured = Measured(max(options.window_points, options.every_steps, 3 * options.bounds.cooldown_steps))
        self._history = SteeringHistory()
        self._sender = Sender(client, run, self._history, options)
        self._generation: int | None = None
        self._since_seq: int | None = None
        self._looked_at, self._measured_at, self._healthy_looks = 0, -1, 0
        self._noted: set[object] = set()
        self._is_new, self._told_budget = True, False
        self.decisions = 0
        self.idle_s = 0.0
        """Seconds in which nothing will be due, as the last poll saw it."""

    @property
    def pilot(self) -> str:
        """Return the name of the proposer: the model's, or the rule's."""
        return self._model.name if self._model else self._rule.name

    @property
    def _mixes(self) -> bool:
        """Return whether the rule sets the weights of sources; then it looks at the same interval always."""
        return self._model is None and isinstance(self._rule, MixtureRule)

    def _weight_limits(self, snapshot: Snapshot) -> dict[str, Limit]:
        """Return the limits of the sources whose weights the model may set; none for a rule."""
        if self._model is None or not self._options.may_mix:
            return {}
        granted = granted_sources(snapshot.limits, snapshot.mixture)
        return granted if len(granted) > 1 else {}

    def _sources_of(self, snapshot: Snapshot) -> Collection[str]:
        """Return the sources that the proposer sees."""
        return snapshot.mixture if self._mixes else self._weight_limits(snapshot)

    @property
    def applied(self) -> int:
        """Return the number of this autopilot's changes that every rank has confirmed."""
        return self._history.applied

    def poll(self) -> str | None:
        """Observe once, and decide if one is due. Returns why it is over, as a sentence, else None.

        Raises `Unavailable` if nobody answers (call again later), `Conflict` if another autopilot is active on this
        run.
        """
        snapshot, is_known = self._look()
        self.idle_s = 0.0
        if snapshot.closed:
            return f"the run has ended: {snapshot.status}"
        if (reason := self._is_set_anew(snapshot)) is not None:
            return reason
        self._follow(snapshot)
        caught_up = self._measured.read(self._client, self._run, self._sources_of(snapshot)) and is_known
        if snapshot.status != "running" or not caught_up:
            return None
        if self._options.settings is not None:
            self._tend(snapshot)
        if self._is_due(snapshot):
            self._act(self._observe(snapshot))
        left = self._looked_at + self._options.every_steps - snapshot.step
        self.idle_s = idle_s(left, snapshot.latest) if self._mixes else 0.0
        return None

    def _is_set_anew(self, snapshot: Snapshot) -> str | None:
        """Return why the run's agent is not the one that this autopilot was started for, or None."""
        agent = snapshot.agent
        if self._since_seq is None:
            self._since_seq = agent.since_seq
            if self._options.settings is None and agent.settings is not None:
                self._options = adopted(self._options, agent.settings)
                self._sender = Sender(self._client, self._run, self._history, self._options)
            if self._options.settings == agent.settings:
                return None
        elif agent.since_seq == self._since_seq and (agent.settings is None) == (self._options.settings is None):
            return None
        return "the run's agent was stopped" if agent.settings is None else "the run's agent was started anew"

    def _follow(self, snapshot: Snapshot) -> None:
        """Reset after a new generation, which starts at another step."""
        if self._generation not in (None, snapshot.generation):
            self._looked_at, self._measured_at, self._healthy_looks = snapshot.step, -1, 0
            self._measured.forget()
        self._generation = snapshot.generation

    def _is_due(self, snapshot: Snapshot) -> bool:
        newest, options = self._measured.newest_step, self._options
        if newest is None or newest <= self._measured_at:
            return False
        interval = options.every_steps
        if options.adaptive and not self._mixes:
            seen = self._observe(snapshot)
            interval = next_look(interval, seen, self._healthy_looks, options.bounds.cooldown_steps)
        return snapshot.step >= self._looked_at + interval

    def _tend(self, snapshot: Snapshot) -> None:
        """Withdraw proposals that are overtaken, and note effects that can be measured now."""
        self._sender.note(snapshot.step)
        for sentence in self._sender.withdraw_overtaken(self.pilot):
            self._say(f"step {snapshot.step}: {sentence}")
        if not self._options.dry_run:
            self._note_effects(snapshot)

    def _act(self, seen: Observation) -> None:
        self._looked_at, self._measured_at = seen.step, seen.step
        by_guarded = self._guarded.look(seen)
        by_rule = by_guarded if isinstance(self._rule, GuardedRule) else self._rule.look(seen)
        if not seen.weight_limits and self._waits_for_answer():
            return
        self.decisions += 1
        pilot, decision = self._propose(seen, by_rule, by_guarded)
        reason = explain(pilot, decision.reason)
        is_kept = isinstance(decision, Decision) and decision.action is AgentAction.KEEP
        healthy = is_kept and not is_doubtful(seen, self._options.bounds.cooldown_steps)
        self._healthy_looks = self._healthy_looks + 1 if healthy else 0
        outcome = "kept" if is_kept else self._pass_gate(decision, seen, reason, by_guarded)
        loss = f"{seen.losses[-1][1]:.4g}" if seen.losses else "?"
        lr = ", ".join(f"{lr:.3g}" for lr in seen.lr) or "?"
        self._say(f"step {seen.step}: loss {loss}, lr {lr}: {printable(decision.what)}: {reason} -> {outcome}")

    def _waits_for_answer(self) -> bool:
        """Return whether all that could be proposed waits for an answer, so that nobody needs to be asked."""
        options = self._options
        if options.settings is None or options.kinds or options.grants.widen:
            return False
        return any(LEARNING_RATE in each.proposed.intent.knobs() for each in self._history.open_proposals())

    def _propose(self, seen: Observation, by_rule: Proposal, by_guarded: Decision) -> tuple[str, Proposal]:
        if self._model is None:
            return self._rule.name, by_rule
        try:
            return self._model.name, self._model.propose(seen, self._options.bounds, self._options.grants)
        except ModelUnavailable as error:
            if isinstance(error, BudgetSpent) and not self._told_budget:
                self._told_budget = True
                self._say(f"{error.reason}; from now on: {self._options.fallback}")
            if self._options.fallback == "rule":
                return self._guarded.name, replace(by_guarded, reason=f"{by_guarded.reason} ({error.reason})")
            return self._model.name, Decision(AgentAction.KEEP, error.reason)

    def _pass_gate(self, decision: Proposal, seen: Observation, reason: str, by_guarded: Decision) -> str:
        """Check a proposal against the bounds, submit it, and return its outcome as a sentence."""
        try:
            snapshot, is_known = self._look()  # the model took time, and people may have steered meanwhile
        except Unavailable as error:
            return f"not sent: {error.reason}"
        if not is_known:
            return "not sent: the run's journal could not be read to its end"
        if snapshot.status != "running":
            return f"not sent: the run is now {snapshot.status}"
        if (changed := self._is_set_anew(snapshot)) is not None:
            return f"not sent: {changed}"
        ruling = decide(decision, seen, self._observe(snapshot), self._options.bounds, self._options.grants)
        if ruling.intent is None:
            return printable(ruling.sentence)
        if self._options.dry_run:
            return f"dry run, not sent: {printable(ruling.sentence)}"
        if self._options.settings is not None:
            waits = self._sender.reason_not_sent(ruling.intent, snapshot.step)
            reviewed = None if waits else self._review(ruling.intent, seen, snapshot, reason, by_guarded)
            if waits or reviewed is None:
                return waits or "dropped: of high risk, and the second opinion does not agree"
            reason = reviewed
        return self._sender.send(ruling.intent, reason, snapshot, self.decisions)

    def _review(
        self, intent: Intent, seen: Observation, snapshot: Snapshot, reason: str, by_guarded: Decision
    ) -> str | None:
        """Return the reason to send it with, which holds a second opinion if its risk is high; None to drop it."""
        settings = self._options.settings
        if settings is None or not self._options.second_opinion or risk_of(intent, settings, snapshot.knobs) == "low":
            return reason
        model, options = self._model, self._options
        if model is None:
            opinion = second_opinion.ask_rule(intent, by_guarded, self._guarded.name)
        else:
            proposed = seeing.told(intent, options.grants, seen.weight_limits) or intent.kind.replace("_", " ")
            opinion = second_opinion.ask_model(lambda: model.review(seen, options.bounds, proposed), model.name)
        if not opinion.agrees and settings.mode == "auto":
            return None
        verdict = "agrees" if opinion.agrees else "does not agree"
        second = printable(opinion.reason, MAX_REVIEW_CHARS)
        return f"{printable(reason, 2 * MAX_REVIEW_CHARS)}; second opinion ({opinion.by}) {verdict}: {second}"

    def _note_effects(self, snapshot: Snapshot) -> None:
        steps = max(self._options.bounds.cooldown_steps, LEAST_EFFECT_STEPS)
        for life in self._history.applied_by_autopilots():
            uuid, settled = life.command.uuid, life.settled
            if uuid in self._noted or settled is None or settled.step is None or snapshot.step < settled.step + steps:
                continue
            is_known = uuid in self._history.state.agent.effects
            # Weights change with every look: of none of these changes can the effect be told alone.
            if is_known or not life.command.intent.changes_training or isinstance(life.command.intent, SetMixture):
                self._noted.add(uuid)
                continue
            if self._note_effect(life, settled.step, steps) or snapshot.step > settled.step + 4 * steps:
                self._noted.add(uuid)

    def _note_effect(self, life: CommandStatus, step: int, steps: int) -> bool:
        """Note the effect of one command; return whether that is done with."""
        measured = self._measured
        until = self._history.next_change_after(life, step + steps)
        effect = effect_of(tuple(measured.losses), tuple(measured.evals), step, steps, until)
        if effect is None or not self._history.is_on_course(life):
            return not self._history.is_on_course(life)
        noted = NoteEffect(
            command=life.command.uuid,
            metric="loss",
            before=effect.before,
            after=effect.after,
            steps=steps,
            judgement=effect.judgement,
        )
        try:
            self._client.submit(self._run, noted, reason=explain(self.pilot, "measured against the trend before it"))
        except Unavailable:
            return False
        except Refused as error:
            self._say(f"the effect of '{printable(life.command.describe())}' was not noted: {printable(error.reason)}")
            return True
        self._say(f"effect of '{printable(life.command.describe())}' at step {step}: {effect.judgement}")
        return True

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
            self._tell_inheritance(snapshot.step)
        return snapshot, is_known

    def _tell_inheritance(self, at: int) -> None:
        if self._options.settings is not None:
            self.decisions = max(self.decisions, self._history.decisions)
        if self._model is None and (told := advice(self._options, at)):
            self._say(told)
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
        grants, weight_limits, sources = self._options.grants, self._weight_limits(snapshot), self._sources_of(snapshot)
        mixture = {name: snapshot.mixture[name] for name in sources}
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
            config=seeing.config_of(snapshot),
            signs=seeing.signs_of(snapshot),
            alerts=seeing.alerts_of(snapshot),
            past=seeing.past_of(self._history, grants, weight_limits),
            checkpoints=seeing.checkpoints_of(snapshot),
            kinds=self._options.kinds,
            course_at={
                kind: at for kind in self._options.kinds if (at := self._history.last_of_kind(kind)) is not None
            },
            factor=self._options.factor,
            mixture=sources_seen(mixture, self._history.priors, self._measured.sources),
            weight_limits=weight_limits,
            mixed_at=self._history.mixed_at if weight_limits else None,
            is_mixing=bool(mixture) and self._history.is_mixing,
        )
