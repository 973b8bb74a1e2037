"""Panels of a run's charts, and the marks on them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain

from control_plane.api.messages import AlertView, CommandView, RecoveryView, Snapshot, StepRange
from control_plane.compare.lineage import is_on_line
from control_plane.core.model.health import Level
from control_plane.core.model.intents import Rollback
from ui.charts.canvas import Axis
from ui.charts.names import natural, thinned
from ui.charts.palette import Palette

CHAR_WIDTH = 0.0135
"""Width of a label's character as part of a chart's width; labels that would overlap are dropped."""

LABEL_MARGIN = 0.015
MINOR = ("checkpoint", "evaluate")
"""Labels of commands that do not change the training, which are dropped first if labels overlap."""

MAX_LABEL_CHARS = 16

MAX_LAYERS = 24
"""Lines of layers in one chart; more cannot be told apart. Of more layers, evenly spaced ones are drawn."""


@dataclass(frozen=True, slots=True)
class ChartPanel:
    """One chart: its title and its metrics.

    `smooth`: whether they may be smoothed; else they are drawn as steps. `by_layer`: one line for each layer, coloured
    from the first to the last, not smoothed, and at most `MAX_LAYERS` of them.
    """

    title: str
    takes: Callable[[str], bool]
    smooth: bool = True
    may_be_log: bool = True
    by_layer: bool = False

    def metrics(self, names: Iterable[str]) -> list[str]:
        """Return the metrics of this panel among those of a run; the main one, with the shortest name, first."""
        taken = [name for name in names if self.takes(name)]
        if self.by_layer:
            return thinned(sorted(taken, key=natural), MAX_LAYERS)
        return sorted(taken, key=lambda name: (len(name), name))

    def colours(self, count: int, palette: Palette) -> Sequence[str]:
        """Return the colours of `count` lines."""
        if self.by_layer:
            return palette.gradient(count)
        return [palette.lines[number % len(palette.lines)] for number in range(count)]


PANELS = (
    ChartPanel("Loss", lambda name: name in ("loss", "eval_loss")),
    ChartPanel("Learning rate", lambda name: name == "lr" or name.startswith("lr/"), smooth=False),
    ChartPanel("Gradient norm", lambda name: name == "grad_norm"),
    ChartPanel("Steps per second", lambda name: name == "steps_per_s", may_be_log=False),
)


MAIN_SIGN = "loss"
"""Metric of the main chart that names the alerts whose signs no main chart draws."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Mark of applied commands, of a failure of the trainers, or of an alert.

    `label` is empty if there is no room for it. An alert has a `level`; charts that draw one of its `signs` name it.
    """

    x: float
    label: str
    loss: bool = False
    level: Level | None = None
    signs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Band:
    """Cost of a failure: on a step axis the steps that were repeated, on a time axis the recovery."""

    low: float
    high: float


def marks(
    commands: Iterable[CommandView],
    axis: str,
    started_at_s: float,
    extent: tuple[float, float] | None,
    recoveries: Iterable[RecoveryView] = (),
    line: Iterable[StepRange] = (),
) -> list[Mark]:
    """Return a mark for every place where commands were applied, and for every failure of the trainers, oldest first.

    On a step axis, the start of each branch of the `line` is marked with its name, too.
    """
    began = {round(float(stretch.first), 4): stretch.branch for stretch in line if stretch.first > 0}
    words: dict[float, list[str]] = {x: [name] for x, name in began.items()} if axis == "step" else {}
    for command in commands:
        settled = command.settled
        if settled is None or settled.status != "applied" or settled.step is None:
            continue
        if isinstance(command.command.intent, Rollback):
            continue  # the branch that it starts is marked
        x = float(settled.step) if axis == "step" else _minutes(command.settled_at or "", started_at_s)
        if axis != "step" or x not in began:  # the first commands of a branch are listed in the tree
            words.setdefault(round(x, 4), []).append(short(command.what))
    applied = (Mark(x, ", ".join(dict.fromkeys(labels))) for x, labels in words.items())
    failures = (Mark(_failed_at(view, axis, started_at_s), _failed_ranks(view), loss=True) for view in recoveries)
    return _with_room(sorted(chain(applied, failures), key=lambda mark: mark.x), extent)


def alert_marks(
    alerts: Iterable[AlertView],
    axis: Axis,
    started_at_s: float,
    line: Iterable[StepRange],
    extent: tuple[float, float] | None = None,
) -> list[Mark]:
    """Return a mark for each alert on the line of the head: at its onset, or over time at the moment it was raised.

    Labels that would overlap are dropped: the newest have priority.
    """
    ends = {stretch.branch: stretch.last for stretch in line}
    made = []
    for view in alerts:
        alert = view.alert
        if alert.branch not in ends or ((last := ends[alert.branch]) is not None and alert.onset_step > last):
            continue
        x = float(alert.onset_step) if axis == "step" else _minutes(view.raised_at, started_at_s)
        signs = tuple(evidence.sign for evidence in alert.evidence)
        on_main = any(panel.takes(sign) for panel in PANELS for sign in signs)
        label = alert.kind.replace("_", " ")
        made.append(Mark(x, label, level=alert.level, signs=signs if on_main else (*signs, MAIN_SIGN)))
    named = _with_room(made, extent)
    return sorted(named, key=lambda mark: mark.x)


def on_the_line(snapshot: Snapshot, line: Iterable[StepRange]) -> tuple[list[CommandView], list[RecoveryView]]:
    """Return the commands and the recoveries on the line of the head, without those of other branches."""
    ends = {stretch.branch: stretch.last for stretch in line}
    commands = [
        view
        for view in snapshot.commands
        if view.settled is not None and _is_seen(snapshot, view, view.settled.step or 0)
    ]
    recoveries = [view for view in snapshot.recoveries if view.branch in ends]
    return commands, [view for view in recoveries if (last := ends[view.branch]) is None or view.step <= last]


def _is_seen(snapshot: Snapshot, view: CommandView, step: int) -> bool:
    where = view.branch, step
    return is_on_line(snapshot.branches, snapshot.checkpoints, snapshot.branch, where, view.command.uuid)


def bands(
    recoveries: Iterable[RecoveryView], axis: str, started_at_s: float, extent: tuple[float, float] | None
) -> list[Band]:
    """Return a band for every failure, clipped to the charts; a recovery in progress has no end yet."""
    low, high = extent or (0.0, 1.0)
    drawn = []
    for view in recoveries:
        failed_at = _failed_at(view, axis, started_at_s)
        if axis == "step":
            begin, end = float(view.step if view.resumed_step is None else view.resumed_step), failed_at
        else:
            begin, end = failed_at, failed_at + sum(view.phases_s.values()) / 60 if view.over else high
        begin, end = max(begin, low), min(end, high)
        if end > begin:
            drawn.append(Band(begin, end))
    return drawn


def _failed_at(view: RecoveryView, axis: str, started_at_s: float) -> float:
    """Return the x of a failure; in time, that of the trainers' last heartbeat."""
    return float(view.step) if axis == "step" else _minutes(view.lost_at, started_at_s + view.silent_s)


def _minutes(time: str, since_s: float) -> float:
    return (datetime.fromisoformat(time).timestamp() - since_s) / 60


def _failed_ranks(view: RecoveryView) -> str:
    ranks = [death.rank for death in view.deaths if death.rank is not None]
    if len(ranks) == 1:
        return f"rank {ranks[0]} failed"
    return f"{len(ranks)} ranks failed" if ranks else "trainers failed"


def short(what: str) -> str:
    """Return a command's text in as many characters as fit above a line."""
    brief = what.split(" (")[0].replace("save checkpoint", "checkpoint")
    return brief if len(brief) <= MAX_LABEL_CHARS else brief[: MAX_LABEL_CHARS - 1] + "…"


def _with_room(every: list[Mark], extent: tuple[float, float] | None) -> list[Mark]:
    """Drop overlapping labels: failures and the newest have priority, commands without effect on the training none."""
    low, high = extent or (0.0, 1.0)
    span = max(high - low, 1e-9)
    shown: list[Mark] = []
    for mark in sorted(every, key=lambda mark: (mark.loss, mark.label not in MINOR, mark.x), reverse=True):
        if all(abs(mark.x - other.x) / span > _reach(mark) + _reach(other) for other in shown):
            shown.append(mark)
    return [mark if mark in shown else replace(mark, label="") for mark in every]


def _reach(mark: Mark) -> float:
    """Return half the width of a label, as part of a chart's width."""
    return len(mark.label) * CHAR_WIDTH / 2 + LABEL_MARGIN / 2
