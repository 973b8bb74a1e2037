"""Run context of a worker process: files, control-server connection and settings, before any trainer exists."""

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from control_plane.api.ports import TrainerPort
from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.data import SourceSettings
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import Readback
from control_plane.storage.checkpoint.store import SigningKey
from control_plane.storage.layout import RunFiles
from ray_jobs.process.timeouts import USER_CODE_S

NODE_NAME = "STEERWAY_NODE"
"""Environment variable with the node's name, for several Ray nodes on one machine, which share a host name."""


def node_name() -> str:
    """Return the name of this process's node."""
    return os.environ.get(NODE_NAME) or socket.gethostname()


@dataclass
class Trainings:
    """Counter of a script's trainings: its calls of `train()`, in order. A script that is restarted counts anew.

    `left`: the last one ended because the run continues on another branch. `broken_off`: the step at which the script
    called `sys.exit` within a training. `failed_at`: the step at which one raised.
    """

    begun: int = 0
    left: bool = False
    broken_off: str = ""
    failed_at: int | None = None

    def next(self) -> int:
        """Count and return the number of the training that begins now, from 1."""
        self.begun, self.failed_at = self.begun + 1, None
        return self.begun


@dataclass(frozen=True)
class RunContext:
    """Context of one rank's run, set by `train.main`. `connect` makes a handle, in the thread of rank 0's link.

    `key_file` holds the key that checkpoints are signed with; by default it lies beside the folder of all runs.
    `hang_after_s` is how long a rank may be stopped or cut off, and `user_code_s` how long it may make no progress
    outside of a collective; without the first, there is no watchdog.
    """

    files: RunFiles
    connect: Callable[[], TrainerPort]
    checkpoint_every_steps: int = 0
    # Whether a save is copied beside the next forward and backward pass, see `checkpoint.overlap`.
    overlaps_copies: bool = True
    digest_every_steps: int = 0
    # Whether an epoch ends with a smaller batch of what fills no whole one, as by hand, see `data.SampleOrder`.
    keeps_the_tail: bool = False
    # The number of ranks that the batch sizes of the arguments are meant for; None: as many as there are.
    ranks: int | None = None
    # Whether the config asks for each rank on a node of its own, as far as there is room.
    spreads: bool = False
    retention: Readback = field(default_factory=dict)
    key_file: Path | None = None
    hang_after_s: float | None = None
    user_code_s: float = USER_CODE_S
    # Whether a pause moves DeepSpeed's states to host memory, see `paused_memory`.
    offload_pauses: bool = False
    # When this process began to work for the run (Unix time): recovery is measured from here.
    started_at_s: float = field(default_factory=time.time)
    on_first_step: Callable[[], None] = lambda: None
    facts: Readback = field(default_factory=dict)
    # What the run's owner allows. Checked on every rank, too: only there is known what a factor makes of a value.
    limits: Mapping[str, Limit] = field(default_factory=dict)
    # What is measured and judged of the training's health; None: nothing.
    health: HealthSettings | None = None
    # Sources of the config's mixture, the seed of their order, how close their shares are brought, and the weights that
    # are scheduled, by step.
    sources: Mapping[str, SourceSettings] = field(default_factory=dict)
    seed: int = 0
    temperature: float = 1.0
    weights_schedule: Sequence[tuple[int, Mapping[str, float]]] = ()
    trainings: Trainings = field(default_factory=Trainings)

    @property
    def key_path(self) -> Path:
        """Path of the signing key."""
        return self.key_file or self.files.signing_key

    @property
    def key(self) -> SigningKey:
        """Signing key of this installation; created on first use."""
        return SigningKey.of_installation(self.key_path)


_current: RunContext | None = None


def current() -> RunContext | None:
    """Return the run of this process; None in a script that was started by hand."""
    return _current


def enter(context: RunContext | None) -> None:
    """Set the run of this process."""
    global _current
    _current = context
