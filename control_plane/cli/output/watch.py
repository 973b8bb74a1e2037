"""Live progress of a run: a redrawn panel on a TTY, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Protocol

from control_plane.api.messages import Snapshot
from control_plane.cli.errors import RUN_FAILED
from control_plane.cli.output import formatting
from control_plane.cli.output.printing import ascii_json
from control_plane.core.model.characters import one_line
from control_plane.core.model.errors import SteerwayError, Unavailable

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import RenderableType

POLL_S = 1.0
LINE_EVERY_S = 5.0
UNHEARD_FOR_S = 60.0
"""A restarting gateway answers within seconds; after this long without an answer, give up."""


class Source(Protocol):
    """Client interface: the part of `client.SteerwayClient` that `follow` calls."""

    def snapshot(self, run: str) -> Snapshot:
        """Return the current state of a run."""
        ...


class Screen(Protocol):
    """Output interface for progress."""

    def show(self, snapshot: Snapshot) -> None:
        """Return the current state of a run."""
        ...

    def tell(self, line: str) -> None:
        """Show an event, once."""
        ...


class Lines:
    """Progress as plain lines, one every `every_s` seconds and at each change of status."""

    def __init__(
        self,
        write: Callable[[str], None],
        every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._every_s, self._clock = write, every_s, clock
        self._next_at, self._status = float("-inf"), ""

    def show(self, snapshot: Snapshot) -> None:
        """Write a progress line if one is due."""
        if self._clock() >= self._next_at or snapshot.status != self._status:
            self._next_at, self._status = self._clock() + self._every_s, snapshot.status
            self._write(formatting.progress_line(snapshot))

    def tell(self, line: str) -> None:
        """Write an event line at once."""
        self._write(line)


class JsonLines:
    """Progress as JSON Lines, one object per change; for programs."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._shown = write, ""

    def show(self, snapshot: Snapshot) -> None:
        """Write the snapshot, unless only its age has changed."""
        line = ascii_json(snapshot.model_dump_json())
        lasting = snapshot.model_dump_json(exclude={"progress_age_s"})
        if lasting != self._shown:
            self._shown = lasting
            self._write(line)

    def tell(self, line: str) -> None:
        """Do nothing: the snapshot contains the event."""


class JobGone(SteerwayError):
    """The Ray job of the run is gone, so the run can no longer end."""

    exit_code = RUN_FAILED
    slug = "run-died"


class LivePanel:
    """Progress as a rich panel, redrawn in place, with events scrolling above it. Context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True, highlight=False), auto_refresh=False)

    def __enter__(self) -> "LivePanel":
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, snapshot: Snapshot) -> None:
        """Redraw the panel."""
        self._live.update(draw(snapshot), refresh=True)

    def tell(self, line: str) -> None:
        """Print an event above the panel. Its text may come from users, so rich markup is off."""
        self._live.console.print(one_line(line), markup=False)


def draw(snapshot: Snapshot) -> "RenderableType":
    """Return the rich panel of one run."""
    from rich.console import Group
    from rich.panel import Panel as Box
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 3))
    cells = [
        Text.assemble((f"{label} ", "dim"), (one_line(value), "bold"))
        for label, value in formatting.progress(snapshot).items()
    ]
    for first in range(0, len(cells), 3):
        grid.add_row(*cells[first : first + 3])
    bar = ProgressBar(total=max(1, snapshot.total_steps), completed=snapshot.step)
    return Box(Group(bar, grid), title=Text(one_line(snapshot.run)), title_align="left", width=78)


def follow(
    source: Source,
    run: str,
    screen: Screen,
    *,
    dead: Callable[[Snapshot], str | None] = lambda snapshot: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Snapshot:
    """Show a run until it has ended, with each settled command, failure and recovery once. Returns the last snapshot.

    `dead` is called after each poll and returns why the run can never end, or None.
    Raises `JobGone` with that reason, `Unavailable` if the gateway does not answer for `UNHEARD_FOR_S`.
    """
    shown: set[Hashable] = set()
    heard_at = clock()
    while True:
        try:
            snapshot = source.snapshot(run)
            heard_at = clock()
        except Unavailable as error:
            if clock() - heard_at > UNHEARD_FOR_S:
                raise
            screen.tell(f"({error.reason}; retrying)")
            sleep(POLL_S)
            continue
        for event, line in events(snapshot):
            if event not in shown:
                shown.add(event)
                screen.tell(line)
        screen.show(snapshot)
        if snapshot.closed:
            return snapshot
        reason = dead(snapshot)
        if reason:
            raise JobGone(reason)
        sleep(POLL_S)


def events(snapshot: Snapshot) -> Iterator[tuple[Hashable, str]]:
    """Yield the events of a run: a key that identifies the event, and a line that describes it."""
    for view in snapshot.commands:
        if view.settled is not None:
            yield view.command.uuid, formatting.settled_line(view)
    for loss in snapshot.recoveries:
        yield (loss.generation, "lost"), formatting.loss_line(loss)
        if loss.over:
            yield (loss.generation, "recovered"), formatting.recovery_line(loss)
    if snapshot.restarting is not None and snapshot.restarting.left_s > 0:
        failures = snapshot.restarting.failures
        yield (snapshot.generation, failures, "restarting"), formatting.waiting_line(snapshot.restarting)


def wants_panel() -> bool:
    """Return whether stderr is a terminal that can redraw lines."""
    from rich.console import Console

    return sys.stderr.isatty() and not Console(stderr=True).is_dumb_terminal
