"""Resume plan: the checkpoint that a start of the trainers restores, and the commands that it replays."""

from dataclasses import dataclass
from pathlib import Path

from control_plane.core.model.health import Cleared
from control_plane.core.model.records import MAIN, RefusedCheckpoint
from control_plane.core.rules.recovery import Replay
from control_plane.storage.checkpoint.manifest import Manifest
from control_plane.storage.layout import STATE


@dataclass(frozen=True)
class ResumePlan:
    """Resume plan, the same on every rank. Without a checkpoint the training begins at step 0."""

    replay: Replay
    checkpoint: str | None = None
    root: Path | None = None
    manifest: Manifest | None = None
    refused: tuple[RefusedCheckpoint, ...] = ()
    branch: str = MAIN
    branched_seq: int | None = None
    replays: bool = False
    # Which of the script's trainings this is, and what it is known by.
    training: int = 1
    fingerprint: str = ""
    # Of this branch and training, as the journal has them: those that have not cleared.
    alerts: tuple[Cleared, ...] = ()

    @property
    def state_folder(self) -> Path:
        """Folder of the checkpoint's state files. Only for a plan with a checkpoint."""
        assert self.root is not None
        return self.root / STATE


FROM_THE_BEGINNING = ResumePlan(Replay(ledger={}, repeats=(), paused=False, stopping=False))
