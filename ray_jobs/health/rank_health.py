"""Health of a steered training on one rank: local signs, the gather, and, on rank 0, the monitor that judges them.

    health.begin_step(step)      before a step: choose what is measured in it
    health.end_step(step)        collective, at its boundary, before saves and commands
    health.settle()              collective, before a save: what is on its way is awaited and judged
    health.close()               collective, at the end of the training

Signs of step s are closed at the boundary after s and judged at the next one, when values from a device have arrived.
Every `GATHER_STEPS` steps one asynchronous all-gather of a fixed vector is issued there, and awaited one boundary
later; what it says of step s goes to the monitor with the signs of step s + 1. A save settles all of that, so that a
restored run judges the same signs at the same steps as one that was never interrupted.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from control_plane.api.messages import Point
from control_plane.core.health.monitor import HealthMonitor
from control_plane.core.health.settings import HealthSettings
from control_plane.core.health.signs import sign_of
from control_plane.core.model.health import HealthChange, Trust
from control_plane.core.model.records import Readback
from ray_jobs.health.activations import ActivationProbe
from ray_jobs.health.gradient_norm import GradientNormHook
from ray_jobs.health.layer_groups import layer_groups
from ray_jobs.health.layer_norms import LayerNorms
from ray_jobs.health.source_losses import LONGEST_NAME, PLACES, SourceSums
from ray_jobs.health.step_signs import ClosedStep, StepSigns
from ray_jobs.health.vector import Gathered, VectorLayout, Vectors
from ray_jobs.process import deepspeed_internals
from ray_jobs.rank.live_training import LiveTraining
from ray_jobs.rank.plan import ResumePlan
from ray_jobs.rank.session import RankSession

log = logging.getLogger(__name__)

GATHER_STEPS = 5
"""Steps from one gather to the next, whatever the log interval: a straggler is confirmed by two of them."""

LAYER_STEPS = 10
"""Steps from one measurement of the layers' norms to the next; also the densest interval of charted signs."""

LOGGED_ELSEWHERE = ("eval/",)
"""Signs that the training logs by another name."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    """Gather that was issued: the step that its numbers are of, and what rank 0 knows of that step besides."""

    step: int
    wait: Callable[[], Vectors]
    grad_norm: float | None
    sources: SourceSums | None


@dataclass(frozen=True, slots=True)
class _Arrived:
    """Signs of a gather that has ended, for the next look of the monitor."""

    step: int
    signs: dict[str, float]
    by_rank: dict[str, tuple[float, ...]]

    def state(self) -> Readback:
        return {"step": self.step, "signs": self.signs, "by_rank": {k: list(v) for k, v in self.by_rank.items()}}


class RankHealth:
    """Health of one training on this rank. Only rank 0 has a monitor, and measures by hooks."""

    def __init__(
        self, training: LiveTraining, session: RankSession, settings: HealthSettings, plan: ResumePlan
    ) -> None:
        self._training, self._session, self._settings = training, session, settings
        self._is_first_rank = session.rank == 0
        groups = layer_groups(training.model) if settings.signs.layers else {}
        self.layout = VectorLayout(tuple(groups), PLACES if training.loop.mixture is not None else 0)
        self._groups = groups
        self.signs = StepSigns(training, self._is_first_rank)
        self._norms = LayerNorms(training.partitions, groups, session.rank) if groups else None
        self._probe: ActivationProbe | None = None
        self._monitor: HealthMonitor | None = None
        if self._is_first_rank:
            self._monitor = HealthMonitor(settings, branch=plan.branch, training=plan.training)
            if settings.signs.hooks:
                self._probe = ActivationProbe(training.model, settings.probe_tokens, settings.probe_layers)
        self._norm_hook = self._watch_gradients()
        self._pending: ClosedStep | None = None
        self._in_flight: _InFlight | None = None
        self._arrived: _Arrived | None = None
        self._probed_step = 0
        self._told: set[str] = set()
        # Names that the training logs itself, and the step of the newest committed checkpoint.
        self.logged: Callable[[], frozenset[str]] = frozenset
        # Of the trainings before this start: a sign that has arrived when a checkpoint is saved is charted after it.
        self._logged_before: frozenset[str] = frozenset()
        self.saved_step = plan.manifest.step if plan.manifest is not None else training.loop.step
        self._wanted = cache(self._is_wanted)
        training.health.state = self.state
        self.restore(training.health.restored)
        if self._monitor is not None:
            self._monitor.expect(plan.alerts)

    def _watch_gradients(self) -> GradientNormHook | None:
        """Watch the gradient's norm where DeepSpeed does not keep it."""
        engine, partitions = self._training.engine, self._training.partitions
        if partitions.reason_not_writable() is not None or (engine is not None and engine.zero_optimization()):
            return None
        if engine is not None:
            if hasattr(engine.optimizer, "_global_grad_norm"):
                return None
            deepspeed_internals.watch_clipping(engine, lambda norm: self.signs.note("grad_norm", norm))
        return GradientNormHook(partitions, self.signs)

    # --- Around a step ---

    def facts(self) -> Readback:
        """Return the facts of a start: the digest of the vector's layout, equal on all ranks, and what is left out."""
        left_out = [self._norms.reason] if self._norms is not None and self._norms.reason else []
        about: Readback = {"vector_sha256": self.layout.digest[:16], "vector_floats": len(self.layout)}
        return {"health": about | ({"not_measured": left_out} if left_out else {})}

    def begin_step(self, step: int) -> None:
        """Choose what is measured in the coming step. `step`: its number."""
        self.signs.note_rate()
        self.signs.sources.begin(step)
        if self._norms is not None and step % LAYER_STEPS == 0:
            self._norms.arm()
        if self._probe is not None and step % self._settings.hook_steps == 0:
            self._probe.arm()
            self._probed_step = step

    def end_step(self, step: int) -> None:
        """Collective, at the boundary after `step`: judge the step before, issue a due gather, close this step."""
        self._judge()
        sums = self._norms.take() if self._norms is not None and step % LAYER_STEPS == 0 else None
        self._pending = self.signs.close(step, sums)

    def settle(self) -> None:
        """Collective. Judge the step that was closed last, and await a gather of it."""
        self._judge()
        self._await_gather()
        self._catch_up()

    def close(self) -> None:
        """Collective. Judge what is left; a gather that would have no use is not issued."""
        self._judge(is_last=True)
        self._await_gather()
        self._catch_up()
        self.leave()

    def leave(self) -> None:
        """Take every hook down. Local: also for a training that has failed."""
        self.signs.clock.leave()
        for part in (self._norms, self._probe):
            if part is not None:
                part.disarm()
        if self._norm_hook is not None:
            self._norm_hook.remove()
            self._norm_hook = None

    def trust(self) -> tuple[Trust, tuple[str, ...]]:
        """Return the verdict for a checkpoint saved now, after `settle`; for rank 0."""
        if self._monitor is None:
            return "unknown", ("the checks have failed",)
        return self._monitor.trust()

    # --- Judging ---

    def _judge(self, is_last: bool = False) -> None:
        """Collective, if a gather is due: await the gather before, let the monitor look, and issue the next one."""
        closed, self._pending = self._pending, None
        if closed is None:
            return
        self._await_gather()
        is_due = closed.step % GATHER_STEPS == 0 and not is_last
        values = closed.values() if self._is_first_rank or is_due else {}
        if self._is_first_rank:
            self._look(closed.step, values)
        if is_due:
            self._issue(closed, values)

    def _issue(self, closed: ClosedStep, values: Mapping[str, float]) -> None:
        sums = (
            self._norms.sums_of(closed.sums.values()) if closed.sums is not None and self._norms is not None else None
        )
        own = dict(values)
        if "loss_local" in own:
            own["loss"] = own["loss_local"]
        of_sources = closed.sources.copy.values() if closed.sources is not None else ()
        vector = self.layout.pack(own, sums, of_sources)
        wait = self._session.collectives.start_gather_floats(vector)
        self._in_flight = _InFlight(closed.step, wait, values.get("grad_norm"), closed.sources)

    def _await_gather(self) -> None:
        flying, self._in_flight = self._in_flight, None
        if flying is None:
            return
        vectors = flying.wait()
        if self._is_first_rank:
            gathered = self.layout.combine(vectors)
            self._arrived = _Arrived(flying.step, self._signs_of(gathered, flying), dict(gathered.by_rank))

    def _signs_of(self, gathered: Gathered, flying: _InFlight) -> dict[str, float]:
        frozen = set(self._training.frozen.names)
        held = self._training.partitions.model.named_parameters()
        stopped = {id(parameter) for name, parameter in held if name in frozen} if frozen else set()
        trained = [any(id(one) not in stopped for one in parameters) for parameters in self._groups.values()]
        signs = gathered.layer_signs(self.layout.groups, flying.grad_norm, trained)
        if (loss := gathered.mean_loss()) is not None:
            signs["loss"] = loss
        if (sources := flying.sources) is not None:
            counts = zip(sources.names, sources.drawn, strict=True)
            told = gathered.source_losses(sources.names) | {f"source_samples/{name}": float(n) for name, n in counts}
            signs |= {name: value for name, value in told.items() if len(name.partition("/")[2]) <= LONGEST_NAME}
        tokens, steps_s = gathered.by_rank.get("tokens"), gathered.by_rank.get("step_s")
        if tokens and steps_s and max(steps_s) > 0:
            signs["tokens_per_s"] = sum(tokens) / max(steps_s)
        signs["checkpoint_age_steps"] = float(max(0, flying.step - self.saved_step))
        interval = self._training.knobs.value("checkpoint_steps")
        if isinstance(interval, int | float):
            signs["checkpoint_interval_steps"] = float(interval)
        return signs

    def _look(self, step: int, values: dict[str, float]) -> None:
        """Let the monitor look at one step's signs, and report what has changed."""
        signs = {name: value for name, value in values.items() if self._wanted(name)}
        if self._probe is not None and self._probed_step == step:
            signs |= self._probe.take()
            self._tell_once(self._probe.reason)
        arrived, self._arrived = self._arrived, None
        if self._session.collectives.world_size == 1 and "loss_local" in signs:
            signs["loss"] = signs["loss_local"]
        by_rank: Mapping[str, Sequence[float]] = {}
        if arrived is not None:
            signs |= {name: value for name, value in arrived.signs.items() if self._wanted(name)}
            by_rank = {name: row for name, row in arrived.by_rank.items() if name == "loss" or self._wanted(name)}
        # What is not urgent waits for the next gather: one pass over several steps costs each of them less.
        put_off = arrived is None and self._probed_step != step
        self._report(self._observe(lambda monitor: monitor.observe(step, signs, by_rank, put_off=put_off), step))
        self._chart(step, signs, arrived)

    def _catch_up(self) -> None:
        """Let the monitor see what was put off: a checkpoint holds no look that it has not seen."""
        self._report(self._observe(lambda monitor: monitor.catch_up(), self._training.loop.step))

    def _observe(self, look: Callable[[HealthMonitor], HealthChange], step: int) -> HealthChange:
        if self._monitor is None:
            return HealthChange()
        try:
            return look(self._monitor)
        except Exception:
            # Checks must never cost a training; without them no checkpoint is called trusted.
            log.exception("the checks of the training's health have failed at step %d and are switched off", step)
            self._monitor = None
            return HealthChange()

    def _report(self, change: HealthChange) -> None:
        for alert in change.raised:
            log.warning("%s at step %d: %s", alert.kind, alert.step, alert.sentence)
        if self._session.link is not None and (change.raised or change.cleared):
            self._session.link.health(change)

    def _chart(self, step: int, signs: Mapping[str, float], arrived: _Arrived | None) -> None:
        """Send signs as measurements: at the log interval, and those by hooks whenever there are some."""
        link = self._session.link
        if link is None:
            return
        every = self._chart_steps()
        if step % every and self._probed_step != step and (arrived is None or arrived.step % every):
            return
        now_s, elsewhere = time.time(), self.logged() | self._logged_before
        gathered = arrived.signs if arrived is not None else {}
        chosen = [(step, name, value) for name, value in signs.items() if name not in gathered]
        if step % every:
            chosen = [one for one in chosen if _by_hooks(one[1])]
        if arrived is not None and arrived.step % every == 0:
            chosen += [(arrived.step, name, value) for name, value in gathered.items() if self._wanted(name)]
        link.measure(
            [
                Point(step=at, name=name, value=value, time_s=now_s)
                for at, name, value in chosen
                if name not in elsewhere and not name.startswith(LOGGED_ELSEWHERE)
            ]
        )

    def _chart_steps(self) -> int:
        """Return the smallest multiple of `LAYER_STEPS` that is no shorter than the log interval."""
        every = max(1, self._training.loop.log_every_steps)
        return -(-every // LAYER_STEPS) * LAYER_STEPS

    def _is_wanted(self, name: str) -> bool:
        """Return whether the config measures this sign; `loss` is not in the catalogue of one rank's numbers."""
        sign = sign_of(name)
        return sign is not None and self._settings.signs.has(sign.group)

    def _tell_once(self, reason: str | None) -> None:
        if reason is not None and reason not in self._told:
            self._told.add(reason)
            log.warning("signs by hooks are not measured: %s", reason)

    # --- Checkpoints ---

    def state(self) -> Readback:
        """Return rank 0's part of a checkpoint, after `settle`; empty on other ranks."""
        if not self._is_first_rank:
            return {}
        return {
            "monitor": self._monitor.state() if self._monitor is not None else {},
            "arrived": self._arrived.state() if self._arrived is not None else None,
            "signs": self.signs.state(),
            "logged": sorted(self.logged() | self._logged_before),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, which may be of another number of ranks; an older one has nothing."""
        if not state or self._monitor is None:
            return
        try:
            self._monitor.restore(state.get("monitor") or {})
            self.signs.restore(state.get("signs") or {})
            self._logged_before = frozenset(state.get("logged") or ())
            if arrived := state.get("arrived"):
                rows = {str(name): tuple(row) for name, row in arrived["by_rank"].items()}
                self._arrived = _Arrived(int(arrived["step"]), dict(arrived["signs"]), rows)
        except (KeyError, TypeError, ValueError):
            log.warning("the windows of the health checks cannot be restored; they begin anew", exc_info=True)
            self._monitor.restore({})


def _by_hooks(name: str) -> bool:
    sign = sign_of(name)
    return sign is not None and sign.cadence == "hooks"
