"""Following a run on the terminal: a panel that moves on a TTY, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Protocol

from control_plane.cli import wording
from control_plane.cli.printing import ascii_json
from control_plane.cli.refusals import RUN_FAILED
from control_plane.core.characters import one_line
from control_plane.core.errors import SteerwayError, Unavailable
from control_plane.handle import Snapshot

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import RenderableType

POLL_S = 1.0
LINE_EVERY_S = 5.0
UNHEARD_FOR_S = 60.0
"""A gateway that restarts is back within seconds; one that is away for this long is not coming."""


class Source(Protocol):
    """What following needs of `client.SteerwayClient`."""

    def snapshot(self, run: str) -> Snapshot:
        """The run as it is now."""
        ...


class Screen(Protocol):
    """Where the progress is shown."""

    def show(self, snapshot: Snapshot) -> None:
        """The run as it is now."""
        ...

    def tell(self, line: str) -> None:
        """Something happened, once."""
        ...


class Lines:
    """Plain lines, one every `every_s` seconds and whenever the status changes."""

    def __init__(
        self,
        write: Callable[[str], None],
        every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._every_s, self._clock = write, every_s, clock
        self._next_at, self._status = float("-inf"), ""

    def show(self, snapshot: Snapshot) -> None:
        """Write a line if it is time."""
        if self._clock() >= self._next_at or snapshot.status != self._status:
            self._next_at, self._status = self._clock() + self._every_s, snapshot.status
            self._write(wording.progress_line(snapshot))

    def tell(self, line: str) -> None:
        """Write it at once."""
        self._write(line)


class JsonLines:
    """One JSON object a line, whenever something has changed; for programs."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._shown = write, ""

    def show(self, snapshot: Snapshot) -> None:
        """Write the snapshot, unless only its age is new."""
        line = ascii_json(snapshot.model_dump_json())
        lasting = snapshot.model_dump_json(exclude={"progress_age_s"})
        if lasting != self._shown:
            self._shown = lasting
            self._write(line)

    def tell(self, line: str) -> None:
        """Nothing: what happened is in the snapshot."""


class RunDied(SteerwayError):
    """The run can no longer end by itself."""

    exit_code = RUN_FAILED
    slug = "run-died"


class Panel:
    """A rich panel that is redrawn in place; what happened scrolls past above it. Use it as a context."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True, highlight=False), auto_refresh=False)

    def __enter__(self) -> "Panel":
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, snapshot: Snapshot) -> None:
        """Redraw."""
        self._live.update(draw(snapshot), refresh=True)

    def tell(self, line: str) -> None:
        """Print above the panel. The text is a person's: no markup is read in it."""
        self._live.console.print(one_line(line), markup=False)


def draw(snapshot: Snapshot) -> "RenderableType":
    """The panel of one run."""
    from rich.console import Group
    from rich.panel import Panel as Box
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 3))
    cells = [
        Text.assemble((f"{label} ", "dim"), (one_line(value), "bold"))
        for label, value in wording.progress(snapshot).items()
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
    """Show a run until it is over; each settled command, loss and recovery once. Answers the last snapshot.

    Raises: `RunDied` with the sentence that `dead`, asked after each look, answers; `Unavailable` for a gateway that
    stays away for `UNHEARD_FOR_S`.
    """
    told: set[Hashable] = set()
    heard_at = clock()
    while True:
        try:
            snapshot = source.snapshot(run)
            heard_at = clock()
        except Unavailable as nobody:
            if clock() - heard_at > UNHEARD_FOR_S:
                raise
            screen.tell(f"({nobody.reason}; trying again)")
            sleep(POLL_S)
            continue
        for event, line in events(snapshot):
            if event not in told:
                told.add(event)
                screen.tell(line)
        screen.show(snapshot)
        if snapshot.closed:
            return snapshot
        reason = dead(snapshot)
        if reason:
            raise RunDied(reason)
        sleep(POLL_S)


def events(snapshot: Snapshot) -> Iterator[tuple[Hashable, str]]:
    """What has happened to a run, each with a name of its own and a line."""
    for view in snapshot.commands:
        if view.settled is not None:
            yield view.command.uuid, wording.settled_line(view)
    for loss in snapshot.recoveries:
        yield (loss.generation, "lost"), wording.loss_line(loss)
        if loss.over:
            yield (loss.generation, "recovered"), wording.recovery_line(loss)
    if snapshot.restarting is not None and snapshot.restarting.left_s > 0:
        failures = snapshot.restarting.failures
        yield (snapshot.generation, failures, "restarting"), wording.waiting_line(snapshot.restarting)


def wants_panel() -> bool:
    """Whether a person looks at a terminal that can redraw."""
    from rich.console import Console

    return sys.stderr.isatty() and not Console(stderr=True).is_dumb_terminal
