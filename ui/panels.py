"""Which charts a run has, and the marks on them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from control_plane.handle import CommandView

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
    """An intervention: where it took effect and what it was. `label` is empty where there is no room for it."""

    x: float
    label: str


def marks(
    commands: Iterable[CommandView], axis: str, started_at_s: float, extent: tuple[float, float] | None
) -> list[Mark]:
    """One mark for every place where commands were applied, oldest first."""
    words: dict[float, list[str]] = {}
    for command in commands:
        settled = command.settled
        if settled is None or settled.status != "applied" or settled.step is None:
            continue
        x = float(settled.step)
        if axis == "time":
            x = (datetime.fromisoformat(command.settled_at or "").timestamp() - started_at_s) / 60
        words.setdefault(round(x, 4), []).append(short(command.what))
    return _with_room([Mark(x, ", ".join(dict.fromkeys(labels))) for x, labels in sorted(words.items())], extent)


def short(what: str) -> str:
    """A command in as many characters as fit above a line."""
    brief = what.split(" (")[0].replace("save checkpoint", "checkpoint")
    return brief if len(brief) <= MAX_LABEL_CHARS else brief[: MAX_LABEL_CHARS - 1] + "…"


def _with_room(found: list[Mark], extent: tuple[float, float] | None) -> list[Mark]:
    """Labels only where they do not touch: the newest first, and those of commands that change nothing last."""
    low, high = extent or (0.0, 1.0)
    span = max(high - low, 1e-9)
    shown: list[Mark] = []
    for mark in sorted(found, key=lambda mark: (mark.label not in MINOR, mark.x), reverse=True):
        if all(abs(mark.x - other.x) / span > _reach(mark) + _reach(other) for other in shown):
            shown.append(mark)
    return [mark if mark in shown else Mark(mark.x, "") for mark in found]


def _reach(mark: Mark) -> float:
    """How far a label reaches to each side of its line, as part of a chart's width."""
    return len(mark.label) * CHAR_WIDTH / 2 + LABEL_MARGIN / 2
