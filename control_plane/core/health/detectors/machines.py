"""Detectors of the machine below a training: straggling ranks, stalled phases, waits for data, memory, checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from math import exp, isfinite, log
from typing import Any, ClassVar

from control_plane.core.health.findings import Condition, Conditions, Detector, Ended, Finding, Look
from control_plane.core.health.settings import (
    CheckpointSettings,
    MemorySettings,
    StallSettings,
    StarvationSettings,
    StragglerSettings,
)
from control_plane.core.health.signs import PHASES
from control_plane.core.health.windows import Window, median, median_without, noise_between
from control_plane.core.model.health import MAX_EVIDENCE_VALUES, AlertKind, Evidence

MOST_JITTER = 5.0
"""Bound of the logarithm of a jitter's factor: beyond it nothing can be told."""

STEP_TIMES = 32
"""Steps whose median is the usual time of one."""


class Straggler(Detector):
    """Rank whose own work in a step takes longer than that of the other ranks.

    Source: NVRx `attribution/straggler` (a speed below 0.75 of the group's). The others' median is what a rank is
    compared with, so that one lucky rank makes no stragglers of all others. Where times jitter, on a shared machine, a
    rank must also be slower than its own jitter explains.
    """

    name: ClassVar[str] = "straggling_rank"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("straggling_rank",)
    WINDOW, LEAST = 16, 4

    def __init__(self, settings: StragglerSettings) -> None:
        self.settings = settings
        self.conditions = Conditions(confirm=settings.gathers, release=settings.clear_gathers)
        # Logarithms of a rank's time over the median of the others.
        self.windows: dict[str, Window] = {}

    def observe(self, look: Look) -> Iterator[Finding | Ended]:
        """Compare the ranks where a gather has ended."""
        sign = "own_step_s" if "own_step_s" in look.by_rank else "step_s"
        times = look.ranks(sign)
        if not times:
            return
        # A rank alone waits for nobody: an elastic run that has come down to it has no stragglers.
        compared = len(times) if len(times) > 1 else 0
        yield from gone(self.conditions, compared, "straggling_rank")
        self.windows = {rank: window for rank, window in self.windows.items() if int(rank) < compared}
        if not compared:
            return
        ordered = sorted(value for value in times if isfinite(value))
        for rank, own in enumerate(times):
            if len(ordered) > 1 and isfinite(own) and own > 0 and (usual := median_without(ordered, own)) > 0:
                yield from self._judge(look.step, sign, str(rank), own, usual)

    def _judge(self, step: int, sign: str, rank: str, own: float, usual: float) -> Iterator[Finding | Ended]:
        window = self.windows.setdefault(rank, Window(self.WINDOW))
        is_known = len(window) >= self.LEAST
        jitter = exp(min(self.settings.sigmas * noise_between(window.values), MOST_JITTER))
        threshold = max(usual / self.settings.speed, usual + self.settings.least_s, usual * jitter)
        is_bad = is_known and own > threshold
        condition, subject = self.conditions[rank], f"rank {rank}"
        if not is_bad and not condition.is_open:
            window.push(log(own) - log(usual))
        match condition.note(step, is_bad):
            case "began":
                yield Finding(
                    "straggling_rank",
                    "warning",
                    condition.onset,
                    f"Rank {rank} needs {own:.3g} s for its part of a step, and the others {usual:.3g} s: all ranks "
                    "wait for it.",
                    (Evidence(sign=sign, value=own, threshold=threshold, mean=usual),),
                    subject=subject,
                )
            case "ended":
                yield Ended("straggling_rank", subject)

    def state(self) -> dict[str, Any]:
        """Return windows and conditions as JSON."""
        windows = {rank: window.state() for rank, window in self.windows.items()}
        return {"windows": windows, "conditions": self.conditions.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        for rank, values in state["windows"].items():
            self.windows[rank] = Window(self.WINDOW)
            self.windows[rank].restore(values)
        self.conditions.restore(state["conditions"])


def gone(conditions: Conditions, ranks: int, kind: AlertKind) -> Iterator[Ended]:
    """Forget the conditions of ranks that an elastic run no longer has, and end their alerts."""
    for rank in [rank for rank in conditions.of if int(rank) >= ranks]:
        if conditions.of.pop(rank).is_open:
            yield Ended(kind, f"rank {rank}")


class StalledPhase(Detector):
    """Phase that has taken many times its usual duration. Source: miles `dashboard/advisory.py` (six medians)."""

    name: ClassVar[str] = "stalled_phase"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("stalled_phase",)
    WINDOW = 32
    NEVER = (PHASES.index("pause"),)

    def __init__(self, settings: StallSettings) -> None:
        self.settings = settings
        self.windows: dict[int, Window] = {}
        self.conditions = Conditions()

    def observe(self, look: Look) -> Iterator[Finding | Ended]:
        """Compare the duration of the longest phase since the boundary before with its earlier ones."""
        code, took = look.finite("phase"), look.finite("phase_s")
        if code is None or took is None or int(code) in self.NEVER or not 0 <= code < len(PHASES):
            return
        phase = PHASES[int(code)]
        window = self.windows.setdefault(int(code), Window(self.WINDOW))
        usual = median(window.values) if len(window) >= self.settings.least_samples else None
        threshold = None if usual is None else max(self.settings.least_s, self.settings.factor * usual)
        match self.conditions[phase].note(look.step, threshold is not None and took > threshold):
            case "began" if usual is not None:
                evidence = Evidence(
                    sign="phase_s",
                    value=took,
                    threshold=threshold,
                    window_steps=len(window),
                    mean=usual,
                    recent=tuple(window.values[-MAX_EVIDENCE_VALUES:]),
                )
                yield Finding(
                    "stalled_phase",
                    "warning",
                    look.step,
                    f"The phase {phase!r} before step {look.step} took {took:.3g} s; {usual:.3g} s is usual.",
                    (evidence,),
                    subject=phase,
                )
            case "ended":
                yield Ended("stalled_phase", phase)
        window.push(took)

    def state(self) -> dict[str, Any]:
        """Return windows and conditions as JSON."""
        windows = {str(code): window.state() for code, window in self.windows.items()}
        return {"windows": windows, "conditions": self.conditions.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        for code, values in state["windows"].items():
            self.windows[int(code)] = Window(self.WINDOW)
            self.windows[int(code)].restore(values)
        self.conditions.restore(state["conditions"])


class DataStarvation(Detector):
    """Steps that mostly wait for data. Source: SCOUT (absolute, relative and persistent)."""

    name: ClassVar[str] = "data_starvation"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("data_starvation",)

    def __init__(self, settings: StarvationSettings) -> None:
        self.settings = settings
        self.waits, self.steps = Window(settings.window_steps), Window(settings.window_steps)
        self.condition = Condition(release=settings.window_steps)

    def observe(self, look: Look) -> Iterator[Finding | Ended]:
        """Compare the median wait with the median step."""
        waited, took = look.finite("data_wait_s"), look.finite("step_s")
        if waited is None or took is None:
            return
        self.waits.push(waited)
        self.steps.push(took)
        if len(self.waits) < self.settings.window_steps:
            return
        wait, step = median(self.waits.values), median(self.steps.values)
        threshold = max(self.settings.least_s, self.settings.share * step)
        match self.condition.note(look.step, wait > threshold):
            case "began":
                evidence = Evidence(
                    sign="data_wait_s",
                    value=wait,
                    threshold=threshold,
                    window_steps=len(self.waits),
                    mean=step,
                    recent=tuple(self.waits.values[-MAX_EVIDENCE_VALUES:]),
                )
                yield Finding(
                    "data_starvation",
                    "warning",
                    look.step - _late(self.waits.values, threshold) + 1,
                    f"The training waits {wait:.3g} s for its data in a step of {step:.3g} s: the loader is too slow.",
                    (evidence,),
                )
            case "ended":
                yield Ended("data_starvation")

    def state(self) -> dict[str, Any]:
        """Return windows and condition as JSON."""
        return {"waits": self.waits.state(), "steps": self.steps.state(), "condition": self.condition.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.waits.restore(state["waits"])
        self.steps.restore(state["steps"])
        self.condition.restore(state["condition"])


def _late(values: Sequence[float], threshold: float) -> int:
    """Return the number of values from the first one above the threshold to the end."""
    return next((len(values) - at for at, value in enumerate(values) if value > threshold), 1)


class MemoryNearLimit(Detector):
    """Memory in use that is close to what a rank may use: rank 0's at every step, the others' at every gather."""

    name: ClassVar[str] = "memory_near_limit"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("memory_near_limit",)

    def __init__(self, settings: MemorySettings) -> None:
        self.settings = settings
        self.conditions = Conditions(confirm=settings.steps, release=settings.steps)

    def observe(self, look: Look) -> Iterator[Finding | Ended]:
        """Compare the memory in use with the limit."""
        if ranks := len(look.ranks("memory_bytes")):
            yield from gone(self.conditions, ranks, "memory_near_limit")
        for rank, used, most in _memory(look):
            condition, subject = self.conditions[str(rank)], f"rank {rank}"
            threshold = self.settings.share * most
            match condition.note(look.step, used > threshold):
                case "began":
                    yield Finding(
                        "memory_near_limit",
                        "warning",
                        condition.onset,
                        f"Rank {rank} uses {used / most:.0%} of its memory, {used / 2**30:.3g} of {most / 2**30:.3g} "
                        "GiB: the next larger batch, evaluation or checkpoint may end it.",
                        (Evidence(sign="memory_bytes", value=used, threshold=threshold),),
                        subject=subject,
                    )
                case "ended":
                    yield Ended("memory_near_limit", subject)

    def state(self) -> dict[str, Any]:
        """Return the conditions as JSON."""
        return {"conditions": self.conditions.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.conditions.restore(state["conditions"])


def _memory(look: Look) -> Iterator[tuple[int, float, float]]:
    """Yield (rank, bytes in use, limit) of the ranks that were measured."""
    used, most = look.finite("memory_bytes"), look.finite("memory_limit_bytes")
    if used is not None and most is not None and most > 0:
        yield 0, used, most
    every = zip(look.ranks("memory_bytes"), look.ranks("memory_limit_bytes"), strict=False)
    for rank, (used, most) in enumerate(every):
        if (rank > 0 or "memory_bytes" not in look.signs) and isfinite(used) and isfinite(most) and most > 0:
            yield rank, used, most


class CheckpointTooOld(Detector):
    """Newest checkpoint that is older than some intervals: saves fail, or nobody notices that there are none."""

    name: ClassVar[str] = "checkpoint_too_old"
    kinds: ClassVar[tuple[AlertKind, ...]] = ("checkpoint_too_old",)

    def __init__(self, settings: CheckpointSettings) -> None:
        self.settings = settings
        self.condition = Condition()
        self.steps_s = Window(STEP_TIMES)

    def observe(self, look: Look) -> Iterator[Finding | Ended]:
        """Compare the age with the interval that is set, and with the limit of the config."""
        if (step_s := look.finite("step_s")) is not None:
            self.steps_s.push(step_s)
        age, interval = look.finite("checkpoint_age_steps"), look.finite("checkpoint_interval_steps")
        if age is None:
            return
        limits = [self.settings.intervals * interval] if interval else []
        limits += [float(self.settings.most_steps)] if self.settings.most_steps else []
        usual_s = median(self.steps_s.values) if len(self.steps_s) else None
        is_long = usual_s is None or age * usual_s >= self.settings.least_s
        match self.condition.note(look.step, bool(limits) and age > min(limits, default=age) and is_long):
            case "began":
                yield Finding(
                    "checkpoint_too_old",
                    "warning",
                    max(1, look.step - int(age - min(limits))),
                    f"The newest checkpoint is {age:.0f} steps old at step {look.step}; more than {min(limits):.0f} is "
                    "too old. A failure now would cost all of them.",
                    (Evidence(sign="checkpoint_age_steps", value=age, threshold=min(limits)),),
                    suggestion="save",
                )
            case "ended":
                yield Ended("checkpoint_too_old")

    def state(self) -> dict[str, Any]:
        """Return condition and window as JSON."""
        return {"condition": self.condition.state(), "steps_s": self.steps_s.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.condition.restore(state["condition"])
        self.steps_s.restore(state["steps_s"])
