"""Which charts a run has, and the marks on them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain

from control_plane.api.handle import CommandView, RecoveryView, Snapshot, StepRange
from control_plane.compare.lineage import is_on_line
from control_plane.core.model.intents import Rollback

CHAR_WIDTH = 0.0135
"""The part of a chart's width that one character of a label takes; labels that would touch are left out."""

LABEL_MARGIN = 0.015
MINOR = ("checkpoint", "evaluate")
"""Commands that change nothing in the training give way to the others where labels are crowded."""

MAX_LABEL_CHARS = 16


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: its title and the metrics that it draws. `smooth` says whether smoothing means anything here."""

    title: str
    takes: Callable[[str], bool]
    smooth: bool = True
    may_be_log: bool = True

    def metrics(self, names: Iterable[str]) -> list[str]:
        """The metrics of this panel, among those a run has measured; the shortest name is the main one."""
        return sorted((name for name in names if self.takes(name)), key=lambda name: (len(name), name))


PANELS = (
    Panel("Loss", lambda name: name in ("loss", "eval_loss")),
    Panel("Learning rate", lambda name: name == "lr" or name.startswith("lr/"), smooth=False),
    Panel("Gradient norm", lambda name: name == "grad_norm"),
    Panel("Steps per second", lambda name: name == "steps_per_s", may_be_log=False),
)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a command took effect, or where trainers were lost. `label` is empty where there is no room for it."""

    x: float
    label: str
    loss: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """What a loss cost, from x to x: on a step axis the steps that were made twice, on a time axis the way back."""

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
    """One mark for every place where commands were applied, and one for every loss of the trainers, oldest first.

    Over steps, where the `line` goes on with another branch, that one's name stands, too.
    """
    began = {round(float(stretch.first), 4): stretch.branch for stretch in line if stretch.first > 0}
    words: dict[float, list[str]] = {x: [name] for x, name in began.items()} if axis == "step" else {}
    for command in commands:
        settled = command.settled
        if settled is None or settled.status != "applied" or settled.step is None:
            continue
        if isinstance(command.command.intent, Rollback):
            continue  # what it led to is marked
        x = float(settled.step) if axis == "step" else _minutes(command.settled_at or "", started_at_s)
        if axis != "step" or x not in began:  # the name says it: what a branch began with is told beside it
            words.setdefault(round(x, 4), []).append(short(command.what))
    applied = (Mark(x, ", ".join(dict.fromkeys(labels))) for x, labels in words.items())
    lost = (Mark(_lost_at(view, axis, started_at_s), _the_lost(view), loss=True) for view in recoveries)
    return _with_room(sorted(chain(applied, lost), key=lambda mark: mark.x), extent)


def on_the_line(snapshot: Snapshot, line: Iterable[StepRange]) -> tuple[list[CommandView], list[RecoveryView]]:
    """The commands and the losses that the line of the head has seen: those of other branches are no part of it."""
    ends = {stretch.branch: stretch.last for stretch in line}
    commands = [
        view
        for view in snapshot.commands
        if view.settled is not None and _is_seen(snapshot, view, view.settled.step or 0)
    ]
    lost = [view for view in snapshot.recoveries if view.branch in ends]
    ends_at = {view.generation: ends[view.branch] for view in lost}
    return commands, [view for view in lost if (last := ends_at[view.generation]) is None or view.step <= last]


def _is_seen(snapshot: Snapshot, view: CommandView, step: int) -> bool:
    where = view.branch, step
    return is_on_line(snapshot.branches, snapshot.checkpoints, snapshot.branch, where, view.command.uuid)


def bands(
    recoveries: Iterable[RecoveryView], axis: str, started_at_s: float, extent: tuple[float, float] | None
) -> list[Band]:
    """One band for every loss, no further than the charts reach; a recovery that is going on has no end yet."""
    low, high = extent or (0.0, 1.0)
    found = []
    for view in recoveries:
        lost_at = _lost_at(view, axis, started_at_s)
        if axis == "step":
            begin, end = float(view.step if view.resumed_step is None else view.resumed_step), lost_at
        else:
            begin, end = lost_at, lost_at + sum(view.phases_s.values()) / 60 if view.over else high
        begin, end = max(begin, low), min(end, high)
        if end > begin:
            found.append(Band(begin, end))
    return found


def _lost_at(view: RecoveryView, axis: str, started_at_s: float) -> float:
    """Where a loss stands on the x axis; in time, where the trainers were heard last."""
    return float(view.step) if axis == "step" else _minutes(view.lost_at, started_at_s + view.silent_s)


def _minutes(time: str, since_s: float) -> float:
    return (datetime.fromisoformat(time).timestamp() - since_s) / 60


def _the_lost(view: RecoveryView) -> str:
    ranks = [death.rank for death in view.deaths if death.rank is not None]
    return f"lost rank {ranks[0]}" if len(ranks) == 1 else f"lost {len(ranks)} ranks" if ranks else "trainers lost"


def short(what: str) -> str:
    """A command in as many characters as fit above a line."""
    brief = what.split(" (")[0].replace("save checkpoint", "checkpoint")
    return brief if len(brief) <= MAX_LABEL_CHARS else brief[: MAX_LABEL_CHARS - 1] + "…"


def _with_room(found: list[Mark], extent: tuple[float, float] | None) -> list[Mark]:
    """Labels only where they do not touch: losses and the newest first, commands that change nothing last."""
    low, high = extent or (0.0, 1.0)
    span = max(high - low, 1e-9)
    shown: list[Mark] = []
    for mark in sorted(found, key=lambda mark: (mark.loss, mark.label not in MINOR, mark.x), reverse=True):
        if all(abs(mark.x - other.x) / span > _reach(mark) + _reach(other) for other in shown):
            shown.append(mark)
    return [mark if mark in shown else replace(mark, label="") for mark in found]


def _reach(mark: Mark) -> float:
    """How far a label reaches to each side of its line, as part of a chart's width."""
    return len(mark.label) * CHAR_WIDTH / 2 + LABEL_MARGIN / 2
