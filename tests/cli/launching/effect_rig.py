"""A gateway's client in memory, whose replays end at once: they follow the recorded run until the command's step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from control_plane.api.launching import JobView, Launched, LaunchedRun, ReplayRequest
from control_plane.api.messages import BranchView, Measurements, Point, RunSummary, Snapshot
from control_plane.compare.comparison import RunTree
from control_plane.compare.replay_check import ReplayDifference, ReplayVerdict
from control_plane.core.model.errors import NotFound, Unavailable
from control_plane.core.model.records import CommandAccepted, Entry, Parent, Record, RunCreated
from control_plane.core.rules.effect.plan import plan
from tests.core.examples import created, settled
from tests.core.rules.effect.histories import entries_of

RUN, LAST = "run-1", 100
EFFECT = {"loss": -0.5, "eval_loss": 0.001, "grad_norm": 0.0}
"""What the command did to each metric after its step."""


@dataclass
class Gateway:
    """Client of a gateway with one recorded run. Placebos move a metric by 1000 times their size.

    fails: arms that fail, one after the other; refuses: sizes of placebos whose ranks refuse them.
    silent: number of calls that are not answered.
    """

    entries: list[Entry]
    fails: list[bool] = field(default_factory=list)
    refuses: frozenset[float] = frozenset()
    divergent: bool = False
    asked: list[ReplayRequest] = field(default_factory=list)
    arms: dict[str, tuple[Parent, str]] = field(default_factory=dict)
    deleted: set[UUID] = field(default_factory=set)
    active: int = 0
    most_active: int = 0
    looks: dict[str, int] = field(default_factory=dict)
    silent: int = 0

    def __enter__(self) -> "Gateway":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def runs(self) -> list[RunSummary]:
        """The recorded run alone."""
        return []

    def tree(self, run: str) -> RunTree:
        """The run with its replays."""
        children = tuple(self._child(name, parent, status) for name, (parent, status) in self.arms.items())
        return RunTree(run=run, status="finished", head="main", total_steps=LAST, branches=(), children=children)

    def _child(self, name: str, parent: Parent, status: str) -> RunSummary:
        return RunSummary(
            run=name, name=name, status=status, step=LAST, total_steps=LAST, created_at="", world_size=2, parent=parent
        )

    def replay(self, run: str, request: ReplayRequest) -> Launched:
        """Make an arm; one that was asked for again is the same."""
        self.asked.append(request)
        name = f"arm-{request.uuid.hex[:6]}"
        if name not in self.arms and request.uuid not in self.deleted:
            assert request.without is not None
            without = plan(self.entries, request.without, request.placebo, request.until_step).without
            parent = Parent(kind="replay", run=run, step=request.until_step or LAST, without=without)
            status = "failed" if self.fails and self.fails.pop(0) else "finished"
            self.arms[name] = parent, status
            self.looks[name] = 0
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        return Launched(runs=(LaunchedRun(run=name, job=name),), parent=run)

    def snapshot(self, run: str) -> Snapshot:
        """The state of a run: an arm has ended when it is looked at for the third time."""
        status = "finished"
        if run != RUN:
            if run not in self.arms:
                raise NotFound(f"there is no run {run!r}")
            if self.silent:
                self.silent -= 1
                raise NotFound("this run has no journal") if self.silent % 2 else Unavailable("the gateway timed out")
            self.looks[run] = self.looks.get(run, 3) + 1
            status = self.arms[run][1] if self.looks[run] > 2 else "running"
            self.active -= self.looks[run] == 3
        fields: dict[str, Any] = {"seq": 1, "term": 1, "generation": 1, "created_at": "", "total_steps": LAST}
        main = BranchView(branch="main", reached_step=LAST, head=True)
        return Snapshot(
            run=run,
            name=run,
            status=status,
            step=LAST,
            reason="out of memory" if status == "failed" else None,
            latest=dict.fromkeys((*EFFECT, "lr", "step_s"), 1.0),
            branches=(main,),
            **fields,
        )

    def job(self, run: str) -> JobView:
        """Every job of a run lives."""
        if run not in self.arms:
            raise NotFound(f"there is no run {run!r}")
        return JobView(run=run, job=run, status="running")

    def journal(self, run: str, after: int = 0, limit: int = 1000, wait_s: float = 0.0) -> list[Entry]:
        """The recorded journal, or that of an arm: what was refused there."""
        return (self.entries if run == RUN else entries_of(*self._records(run)))[after:]

    def _records(self, run: str) -> list[Record]:
        without = self.arms[run][0].without
        assert without is not None
        records: list[Record] = [RunCreated(run=run, name=run, author="ann", config_sha256="c" * 64)]
        if without.placebo not in self.refuses:
            return records
        (uuid,) = plan(self.entries, without.command, without.placebo).placebo
        (item, *_) = plan(self.entries, without.command, without.placebo).scheduled
        refused = settled(1, "rejected", reason="lr would be above the limit").model_copy(update={"uuid": uuid})
        return [*records, CommandAccepted(command=item.command), refused]

    def metrics(self, run: str, after: int = 0, limit: int = 20000, names: Sequence[str] = ()) -> Measurements:
        """All points in one answer."""
        without = self.arms[run][0].without if run != RUN else None
        points = [
            Point(step=step, name=name, value=3 - step / 100 + self._moved(name, without, step), time_s=1.0)
            for name in names
            for step in range(1, LAST + 1)
        ]
        return Measurements(points=tuple(points[after:]), cursor=len(points))

    def _moved(self, name: str, without: Any, step: int) -> float:
        if without is None:
            return EFFECT[name] if step > 10 else 0.0
        return 1000 * (without.placebo or 0.0) if step > without.step else 0.0

    def replay_check(self, replay: str, run: str) -> ReplayVerdict:
        """Equal, or not."""
        first = ReplayDifference(branch="main", step=7, loss=(1.0, 2.0)) if self.divergent else None
        verdict = "divergent" if self.divergent else "identical"
        return ReplayVerdict(verdict=verdict, digests=1, losses=10, first=first, until_step=10)


def recorded_gateway(*commands: tuple[Record, ...], tail: tuple[Record, ...]) -> Gateway:
    """A gateway with a run of these commands."""
    records = [record for each in commands for record in each]
    return Gateway(entries_of(created(RUN), *records, *tail))
