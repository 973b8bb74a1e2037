"""What a worker knows about the run that it belongs to, before any trainer exists."""

from collections.abc import Callable
from dataclasses import dataclass, field

from control_plane.core.records import Reading
from control_plane.handle import RunHandle
from control_plane.storage.layout import RunFiles


@dataclass(frozen=True)
class RunContext:
    """Set by `train.main` on every rank. `connect` makes a handle; rank 0's link calls it in its own thread."""

    files: RunFiles
    connect: Callable[[], RunHandle]
    checkpoint_every_steps: int = 0
    facts: Reading = field(default_factory=dict)


_current: RunContext | None = None


def current() -> RunContext | None:
    """The run of this process; None in a script that was started by hand."""
    return _current


def enter(context: RunContext | None) -> None:
    """Say which run this process works for."""
    global _current
    _current = context
