"""What a worker knows about the run that it belongs to, before any trainer exists."""

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from control_plane.core.limits import Limit
from control_plane.core.records import Reading
from control_plane.handle import RunHandle
from control_plane.storage.checkpoints import SigningKey
from control_plane.storage.layout import RunFiles
from ray_jobs.verdict import USER_CODE_S

NODE_NAME = "STEERWAY_NODE"
"""Where several nodes share a machine, its name does not tell them apart; they find theirs here."""


def node_name() -> str:
    """What the node of this process is called."""
    return os.environ.get(NODE_NAME) or socket.gethostname()


@dataclass
class Trainings:
    """Counts the trainings of a script: its calls of `train()`, in order. A script that runs again counts anew.

    `left`: the last one ended for the run to go on with another branch, whatever the script makes of it. `broken_off`:
    where the script left a training in its middle by `sys.exit`. `failed_at`: the step at which one raised.
    """

    begun: int = 0
    left: bool = False
    broken_off: str = ""
    failed_at: int | None = None

    def next(self) -> int:
        """The number of the one that begins now, from 1."""
        self.begun, self.failed_at = self.begun + 1, None
        return self.begun


@dataclass(frozen=True)
class RunContext:
    """Set by `train.main` on every rank. `connect` makes a handle; rank 0's link calls it in its own thread.

    `key_file` holds the key that checkpoints are signed with; by default it lies beside the folder of all runs.
    `hang_after_s` is how long a rank may be stopped or cut off, and `user_code_s` how long it may make no progress
    outside of a collective; without the first, nobody watches.
    """

    files: RunFiles
    connect: Callable[[], RunHandle]
    checkpoint_every_steps: int = 0
    digest_every_steps: int = 0
    # Whether an epoch ends with a smaller batch of what fills no whole one, as by hand, see `data.SampleOrder`.
    keeps_the_tail: bool = False
    # The number of ranks that the batch sizes of the arguments are meant for; None: as many as there are.
    ranks: int | None = None
    retention: Reading = field(default_factory=dict)
    key_file: Path | None = None
    hang_after_s: float | None = None
    user_code_s: float = USER_CODE_S
    # Whether a pause moves DeepSpeed's states to host memory, see `paused_memory`.
    offload_pauses: bool = False
    # When this process began to work for the run (Unix time): recovery is measured from here.
    started_at_s: float = field(default_factory=time.time)
    on_first_step: Callable[[], None] = lambda: None
    facts: Reading = field(default_factory=dict)
    # What the run's owner allows. Checked on every rank, too: only there is known what a factor makes of a value.
    limits: Mapping[str, Limit] = field(default_factory=dict)
    trainings: Trainings = field(default_factory=Trainings)

    @property
    def key_path(self) -> Path:
        """Where the key lies."""
        return self.key_file or self.files.signing_key

    @property
    def key(self) -> SigningKey:
        """The key of this installation; made when it is first asked for."""
        return SigningKey.of_installation(self.key_path)


_current: RunContext | None = None


def current() -> RunContext | None:
    """The run of this process; None in a script that was started by hand."""
    return _current


def enter(context: RunContext | None) -> None:
    """Say which run this process works for."""
    global _current
    _current = context
