"""Health monitor of one training: all detectors over the signs of every step, on rank 0.

    monitor = HealthMonitor(settings, branch="main")
    change = monitor.observe(step, signs, by_rank)     # after every step
    change = monitor.catch_up()                        # before a checkpoint, after looks that were put off
    verdict, reasons = monitor.trust()                 # for a checkpoint saved now
    monitor.restore(saved)                             # what `state()` has returned, from a checkpoint
    monitor.expect(alerts)                             # that the journal has as open: those that do not come again end

The same signs give the same alerts on any machine, also when the monitor was saved and restored in between: it has no
clock, no chance and no memory but its state. Signs that are timings differ when a step is repeated, and so may the
alerts that depend on them (see `signs.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from control_plane.core.health.detectors import DETECTORS
from control_plane.core.health.findings import Detector, Ended, Finding, Look
from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.health import (
    IDENTITY,
    MAKES_SUSPECT,
    MAX_SENTENCE_CHARS,
    MAX_SUBJECT_CHARS,
    Alert,
    AlertKind,
    Cleared,
    HealthChange,
    Trust,
)
from control_plane.core.model.values import MAIN

STATE_VERSION = 1

NOTHING = HealthChange()
Key = tuple[AlertKind, str]


class HealthMonitor:
    """All detectors over one training.

    Invariant: `open` holds exactly the alerts that were returned as raised and not yet as cleared.
    """

    def __init__(self, settings: HealthSettings, *, branch: str = MAIN, training: int = 1) -> None:
        self.settings, self.branch, self.training = settings, branch, training
        self._detectors: list[Detector] = []
        self._urgent: list[Detector] = []
        self._unhurried: list[Detector] = []
        self._take([make(settings) for make in DETECTORS])
        # Looks that only the urgent detectors have seen; empty in every checkpoint.
        self._put_off: list[Look] = []
        self._open: dict[Key, Alert | Cleared] = {}
        self._has_loss = False
        # Open alerts of the journal that this monitor has not raised, or not yet again.
        self._expected: list[Cleared] = []

    def _take(self, detectors: list[Detector]) -> None:
        self._detectors = detectors
        self._urgent = [one for one in detectors if one.urgent]
        self._unhurried = [one for one in detectors if not one.urgent]

    def observe(
        self,
        step: int,
        signs: Mapping[str, float],
        by_rank: Mapping[str, Sequence[float]] | None = None,
        *,
        put_off: bool = False,
    ) -> HealthChange:
        """Take the signs of a step in, once after every step, and return the alerts that it has raised and cleared.

        Args:
            signs: value by name, as in `signs.py`; NaN or an infinity where something not finite was measured.
            by_rank: where a gather has ended, one value a rank for some of the signs.
            put_off: let only the urgent detectors look now. The others see the look at the next one that is not put
                off, or at `catch_up`: several at once cost a step less. Alerts name the same steps either way.
        """
        if not self.settings.enabled:
            return NOTHING
        look = Look(step, signs, by_rank)
        self._has_loss = self._has_loss or "loss" in signs or "loss_local" in signs
        self._put_off.append(look)
        urgent = self._look(look, self._urgent)
        return urgent if put_off else _joined([urgent, self.catch_up()])

    def catch_up(self) -> HealthChange:
        """Let the detectors that are not urgent see what was put off, and return what they have raised and cleared."""
        waiting, self._put_off = self._put_off, []
        changes: list[HealthChange] = []
        for look in waiting:
            changes.append(self._look(look, self._unhurried))
            if self._expected and (ended := self._end_expected(look.step)):
                changes.append(HealthChange(cleared=tuple(ended)))
        return _joined(changes)

    def _look(self, look: Look, detectors: Sequence[Detector]) -> HealthChange:
        raised: list[Alert] = []
        cleared: list[Cleared] = []
        for detector in detectors:
            for finding in detector.observe(look):
                match finding:
                    case Finding():
                        raised += self._raise(look.step, finding)
                    case Ended():
                        cleared += self._clear(look.step, finding)
        return HealthChange(raised=tuple(raised), cleared=tuple(cleared)) if raised or cleared else NOTHING

    def derived(self) -> dict[str, float]:
        """Return the signs that the monitor computes itself, to be charted beside the others."""
        return {name: value for detector in self._detectors for name, value in detector.derived().items()}

    def trust(self) -> tuple[Trust, tuple[str, ...]]:
        """Return the verdict for a checkpoint saved now, with its reasons: alert kinds, or why it is unknown."""
        if not self.settings.enabled:
            return "unknown", ("health is switched off",)
        red = sorted({kind for kind, _ in self._open if kind in MAKES_SUSPECT})
        if red:
            return "suspect", tuple(red)
        doubts = [doubt for detector in self._detectors for doubt in detector.doubts()]
        if not self._has_loss:
            doubts.insert(0, "no loss was measured")
        return ("unknown", tuple(doubts)) if doubts else ("trusted", ())

    def state(self) -> dict[str, Any]:
        """Return windows, conditions and open alerts as plain JSON, for a checkpoint."""
        return {
            "version": STATE_VERSION,
            "has_loss": self._has_loss,
            "open": [_identity(self._open[key]) for key in sorted(self._open)],
            "detectors": {detector.name: detector.state() for detector in self._detectors},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; an empty one, or one of an older version, starts with empty windows."""
        detectors: list[Detector] = [make(self.settings) for make in DETECTORS]
        self._open, self._has_loss, self._put_off = {}, False, []
        if state.get("version") != STATE_VERSION:
            self._take(detectors)
            return
        self._has_loss = bool(state["has_loss"])
        for one in state["open"]:
            alert = Cleared.model_validate(one)
            self._open[(alert.kind, alert.subject)] = alert
        saved = state["detectors"]
        for at, detector in enumerate(detectors):
            try:
                detector.restore(saved.get(detector.name, {}) or detector.state())
            except (KeyError, IndexError, TypeError, ValueError):
                # Written by another release: this detector begins anew, and the training goes on.
                detectors[at] = DETECTORS[at](self.settings)
        self._take(detectors)

    def expect(self, alerts: Iterable[Cleared]) -> None:
        """Take over the journal's open alerts at a start, after `restore`; `step` of each is the one that raised it.

        A start repeats steps. An alert that is not raised again by its step, since it came from timings, from a rank
        that is no more, or from windows that could not be restored, is cleared there: else it would stay open for ever.
        """
        held = {alert.key for alert in self._open.values()}
        self._expected = [alert for alert in alerts if alert.key not in held]

    def _end_expected(self, step: int) -> list[Cleared]:
        held = {alert.key for alert in self._open.values()}
        due = [alert for alert in self._expected if alert.step <= step]
        self._expected = [alert for alert in self._expected if alert.step > step]
        return [alert.model_copy(update={"step": step}) for alert in due if alert.key not in held]

    def _raise(self, step: int, finding: Finding) -> list[Alert]:
        key = (finding.kind, finding.subject[:MAX_SUBJECT_CHARS])
        if key in self._open or finding.kind in self.settings.silent:
            return []
        alert = Alert(
            kind=finding.kind,
            level=finding.level,
            step=step,
            onset_step=finding.onset_step,
            sentence=finding.sentence[:MAX_SENTENCE_CHARS],
            subject=key[1],
            evidence=finding.evidence,
            suggestion=finding.suggestion,
            branch=self.branch,
            training=self.training,
        )
        self._open[key] = alert
        return [alert]

    def _clear(self, step: int, ended: Ended) -> list[Cleared]:
        alert = self._open.pop((ended.kind, ended.subject[:MAX_SUBJECT_CHARS]), None)
        return [Cleared(**(_identity(alert) | {"step": step}))] if alert else []


def _identity(alert: Alert | Cleared) -> dict[str, Any]:
    """Return what names an alert; that of an alert from a parent branch keeps the parent's name."""
    return alert.model_dump(include=IDENTITY)


def _joined(changes: Sequence[HealthChange]) -> HealthChange:
    changed = [change for change in changes if change is not NOTHING]
    if len(changed) < 2:
        return changed[0] if changed else NOTHING
    raised = tuple(alert for change in changed for alert in change.raised)
    return HealthChange(raised=raised, cleared=tuple(one for change in changed for one in change.cleared))
