"""What the stories about a control server are made of."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from control_plane.api.messages import Report
from control_plane.core.model.commands import Command, Intent, SetLearningRate
from control_plane.core.model.records import CommandSettled, RankPlace, RunCreated
from control_plane.core.rules.decisions import GenerationStart
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import Disk, Journal, read
from control_plane.storage.metrics import MetricsStore
from tests.server.virtual_time import now_s

CREATED = RunCreated(run="demo", name="Demo", author="ada", config_sha256="c" * 64)


class Rig:
    """One run's folder. `serve` begins a new term over it, as a restarted actor does."""

    def __init__(
        self, root: Path, disk: Disk = Disk(fsync=lambda descriptor: None), give_up_after_s: float | None = None
    ) -> None:
        self._give_up_after_s = give_up_after_s
        self.journal_dir, self._root, self._disk = root / "journal", root, disk
        # By so much the machine's wall clock is wrong.
        self.skew_s = 0.0

    def serve(self, created: RunCreated = CREATED, clocked: bool = True) -> ControlServer:
        """The next term; on virtual time, or, if not `clocked`, on none at all."""
        journal = Journal.open(self.journal_dir, self._disk)
        metrics = MetricsStore(self._root / "metrics.sqlite")
        if not clocked:
            return ControlServer(created, journal, metrics)
        return ControlServer(
            created, journal, metrics, utc_now=self.utc_now, clock=now_s, give_up_after_s=self._give_up_after_s
        )

    def utc_now(self) -> datetime:
        return datetime.fromtimestamp(now_s() + self.skew_s, UTC)

    def journal_bytes(self) -> bytes:
        return b"".join(path.read_bytes() for path in sorted(self.journal_dir.iterdir()))

    def record_types(self) -> list[str]:
        return [entry.record.type for entry in read(self.journal_dir)]


def command(number: int, intent: Intent | None = None) -> Command:
    return Command(uuid=UUID(int=number), author="ada", intent=intent or SetLearningRate(value=1e-4))


def start(number: int = 1, step: int = 0) -> GenerationStart:
    rank = RankPlace(rank=0, node="here", pid=1, device="cpu")
    knobs = {"lr": [1e-3], "groups": ["all"]}
    return GenerationStart(
        uuid=UUID(int=10_000 + number), ranks=(rank,), step=step, total_steps=100, knobs=knobs, facts={}
    )


def applied(number: int, generation: int = 1, step: int = 5) -> CommandSettled:
    return CommandSettled(
        uuid=UUID(int=number),
        status="applied",
        step=step,
        generation=generation,
        before={"lr": [1e-3]},
        after={"lr": [1e-4]},
        world_size=1,
    )


def outcome(*settled: CommandSettled, generation: int = 1) -> Report:
    return Report(generation=generation, outcomes=settled)
