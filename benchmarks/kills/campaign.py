"""Kill campaign: control server processes that are killed, stopped or get disk errors under the load of clients.

Every process has one planned fault: SIGKILL at a named failpoint; SIGSTOP there, so that a successor takes over before
it continues; or repeated disk errors, until it is killed. After some of them a power failure is simulated, too. A round
is a number of processes over one run's folder; then a process without a fault lets the clients finish, and the journal
is compared with the responses that they got.
"""

import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.kills.clients import JournalWatcher, LoadClient, LoadOperator, ServerLocation
from benchmarks.kills.power import lose_power
from benchmarks.kills.process_pool import LOOK_S, ProcessPool, ServerProcess
from benchmarks.kills.rank import Rank, wait_for
from benchmarks.kills.verdict import Findings, judge, removed_undecided, unexpected_errors
from control_plane.storage.failpoints import POINTS
from control_plane.storage.journal.writer import read

OPERATORS = 3
LIVES_A_ROUND = 25
LIFE_LIMIT_S = 15.0
"""A process whose failpoint is not passed is killed, and the failpoint counts as not reached."""

PATIENCE_S = 0.25
DRAIN_LIMIT_S = 30.0
OVERTAKEN_S = 0.03
"""How long a server with a successor runs on, before it is killed."""

ERRORS_A_LIFE = 12

KILL_POINTS = tuple(
    point
    for point in POINTS
    if point.startswith(("journal.", "server.", "removal.")) and not point.startswith("removal.link")
)
"""Failpoints that a control server passes. A checkpoint of these runs is never a link."""

STOP_POINTS = tuple(point for point in KILL_POINTS if point.startswith(("journal.append.", "server.")))

ERROR_POINTS = tuple(
    point for point in KILL_POINTS if point.startswith("journal.") and not point.startswith("journal.folder")
)

AFTER_A_FAILURE = ("journal.segment.", "journal.header.")
"""A segment begins at a start, and after a failed write."""

REMOVAL = ("removal.", "server.retire", "server.delete")

Kind = Literal["kill", "stop", "error"]


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """Fault of one process. `failpoints` is the value of STEERWAY_FAILPOINTS."""

    kind: Kind
    failpoints: str
    point: str
    power: bool = False


@dataclass(frozen=True, slots=True)
class CampaignPlan:
    """Settings of a campaign."""

    seed: int
    points: Sequence[str] = KILL_POINTS
    kinds: Sequence[Kind] = ("kill", "kill", "kill", "kill", "stop")
    power: float = 0.5
    planted: str | None = None
    passages: int = 4

    def repro(self, kills: int, errors: int) -> str:
        """Return the command that repeats this plan. The timing of requests and faults still varies."""
        points = "" if self.points == KILL_POINTS else f" --points {','.join(self.points)}"
        kinds = f" --kinds {','.join(self.kinds)} --power {self.power:g}"
        return f"python -m benchmarks.kills.kills --seed {self.seed} --kills {kills} --errors {errors}{kinds}{points}"


@dataclass
class CampaignResult:
    """Counts and findings of a campaign."""

    kills: Counter[str] = field(default_factory=Counter)
    not_reached: Counter[str] = field(default_factory=Counter)
    overtaken: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    power_losses: int = 0
    lives: int = 0
    restarts_s: list[float] = field(default_factory=list)
    verdict: Findings = field(default_factory=Findings)
    took_s: float = 0.0

    @property
    def total_kills(self) -> int:
        """Number of all kills."""
        return self.kills.total()


def planned_faults(course: CampaignPlan) -> Iterator[PlannedFault]:
    """Yield planned faults without end: every failpoint in turn, in an order that the seed determines."""
    dice = random.Random(f"plan {course.seed}")
    while True:
        for point in dice.sample(course.points, len(course.points)):
            kind = dice.choice(course.kinds)
            if kind == "stop" and point not in STOP_POINTS:
                kind = "kill"
            if kind == "error" and point not in ERROR_POINTS:
                point = dice.choice(ERROR_POINTS)
            yield _planned_fault(kind, point, dice, dice.random() < course.power, course.passages)


def _planned_fault(kind: Kind, point: str, dice: random.Random, power: bool, passages: int) -> PlannedFault:
    if kind == "error":
        # Rare at failpoints of the start, where an error keeps the process from starting.
        chances = {
            each: 0.02 if each.startswith(("journal.segment", "journal.header")) else 0.06 for each in ERROR_POINTS
        }
        chances[point] = 0.3
        items = [f"{each}=error:{dice.choice(('ENOSPC', 'EIO'))}@{chance}" for each, chance in chances.items()]
        return PlannedFault(kind, f"seed={dice.getrandbits(32)};" + ";".join(items), point, power)
    passage, prelude = dice.randint(1, passages), ""
    if point.startswith("journal.abandoned"):
        prelude, passage = "journal.header.before_write=error:ENOSPC@1;", 1
    elif point.startswith(AFTER_A_FAILURE) and dice.random() < 0.5:
        prelude, passage = f"journal.append.{dice.choice(('mid_write', 'before_sync'))}=error:EIO@2;", 2
    elif point.startswith(("journal.segment", "journal.header", "journal.folder", "journal.taken_over")):
        passage = 1
    elif point.startswith(REMOVAL):
        passage = dice.randint(1, 2)
    return PlannedFault(kind, f"{prelude}{point}={kind}@{passage}", point, power)


class Campaign:
    """Execution of a plan, in temporary folders."""

    def __init__(self, pool: ProcessPool, course: CampaignPlan, folder: Path) -> None:
        """`folder`: the parent of the rounds' folders."""
        self._pool, self._course, self._folder = pool, course, folder
        self._plan = planned_faults(course)
        self._dice = random.Random(f"power {course.seed}")
        self._rounds = 0
        self.seen = CampaignResult()

    def run(self, kills: int, errors: int = 0, until_a_problem: bool = False) -> CampaignResult:
        """Run until there were so many kills and errors; with `until_a_problem`, at most."""
        begun_s = time.monotonic()
        while self.seen.total_kills < kills or self.seen.errors.total() < errors:
            self._round(min(LIVES_A_ROUND, max(1, kills - self.seen.total_kills) if not errors else LIVES_A_ROUND))
            if until_a_problem and self.seen.verdict.problems:
                break
        self.seen.took_s += time.monotonic() - begun_s
        return self.seen

    def _round(self, lives: int) -> None:
        self._rounds += 1
        root = self._folder / f"round-{self._rounds}"
        (root / "checkpoints").mkdir(parents=True)
        with tempfile.TemporaryDirectory(prefix="kills-") as sockets:
            round_ = Round(self._pool, root, Path(sockets), self._course, self._dice, self.seen)
            round_.play([next(self._plan) for _ in range(lives)])
        if not self.seen.verdict.problems:
            shutil.rmtree(root)


class Round:
    """A number of control server processes over one folder."""

    def __init__(
        self,
        pool: ProcessPool,
        root: Path,
        sockets: Path,
        course: CampaignPlan,
        dice: random.Random,
        seen: CampaignResult,
    ) -> None:
        """`sockets` is a folder with a short name."""
        self._pool, self._root, self._sockets = pool, root, sockets
        self._course, self._dice, self._seen = course, dice, seen
        self._place = ServerLocation()
        name = f"{course.seed} {root.name}"
        self._rank = Rank(self._place, f"rank {name}", root)
        operators = [LoadOperator(self._place, f"operator {number} {name}") for number in range(OPERATORS)]
        self._clients: list[LoadClient] = [self._rank, JournalWatcher(self._place, name), *operators]

    def play(self, plan: Sequence[PlannedFault]) -> None:
        """Execute the plan, let the clients finish, and check the journal."""
        for client in self._clients:
            client.start()
        for fault in plan:
            self._live(fault)
            if self._is_bad():
                break
        last = self._begin("")
        if not last.wait_serving():
            self._seen.verdict.problems.append(f"a control server failed to start (exit code {last.code})")
            self._place.over.set()
        else:
            self._place.path = last.spec.socket
        wait_for(self._clients, self._place, DRAIN_LIMIT_S)
        last.kill()
        self._seen.kills["after the end"] += 1
        self._seen.verdict.add(judge(self._root, self._clients))

    def _begin(self, failpoints: str) -> ServerProcess:
        number = self._seen.lives = self._seen.lives + 1
        return self._pool.begin(
            root=str(self._root),
            socket=str(self._sockets / str(number)),
            failpoints=failpoints,
            power=self._course.power > 0,
            planted=self._course.planted,
        )

    def _live(self, fault: PlannedFault) -> None:
        server = self._begin(fault.failpoints)
        if server.wait_serving(fault.point if fault.kind == "stop" else None):
            self._place.path = server.spec.socket
            assert server.serving_after_s is not None
            self._seen.restarts_s.append(server.serving_after_s)
        if fault.kind == "stop":
            self._overtake(server, fault)
        elif fault.kind == "error":
            self._suffer(server)
        elif not self._dies(server, 0.0 if self._is_past(server, fault) else LIFE_LIMIT_S):
            self._seen.not_reached[fault.point] += 1
        if fault.kind == "stop" and server.code is not None:
            pass  # counted where it was overtaken
        elif server.code is None:
            server.kill()
            self._seen.kills["from outside"] += 1
        elif server.code == -signal.SIGKILL:
            self._seen.kills[fault.point] += 1
        self._note_errors(server, fault)
        if fault.power:
            lose_power(server.spec.notes(), self._dice)
            self._seen.power_losses += 1
        if fault.point.startswith(REMOVAL):
            # At once: a later process would record the decision, and hide that it came too late.
            gone = removed_undecided(self._root, read(server.spec.journal()))
            self._seen.verdict.problems += [f"{name} was removed before its removal was recorded" for name in gone]

    def _is_bad(self) -> bool:
        return any(client.problems for client in self._clients) or bool(unexpected_errors(self._root))

    def _dies(self, server: ServerProcess, limit_s: float) -> bool:
        """Wait for its end, while its clients are without problems: without load no failpoint is passed."""
        deadline = time.monotonic() + limit_s
        while not server.wait_end(min(PATIENCE_S, deadline - time.monotonic())):
            if time.monotonic() > deadline or self._is_bad():
                return False
        return True

    @staticmethod
    def _is_past(server: ServerProcess, fault: PlannedFault) -> bool:
        """Return whether the failpoint cannot be reached any more: the first process of a round takes nothing over."""
        return server.serving_after_s is not None and fault.point.startswith("journal.taken_over")

    def _note_errors(self, server: ServerProcess, fault: PlannedFault) -> None:
        for point in server.fired():
            if f"{point}=error" in fault.failpoints:
                self._seen.errors[point] += 1

    def _overtake(self, old: ServerProcess, fault: PlannedFault) -> None:
        """Start a successor while the old server is stopped at its failpoint, then let both run."""
        deadline = time.monotonic() + LIFE_LIMIT_S
        while fault.point not in old.fired() and old.code is None and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        if fault.point not in old.fired():
            self._seen.not_reached[fault.point] += 1
            return
        new = self._begin("")
        if new.wait_serving():
            self._place.path = new.spec.socket
        old.signal(signal.SIGCONT)
        time.sleep(OVERTAKEN_S)
        self._seen.overtaken += 1
        for each in (old, new):
            if each.code is None:
                each.kill()
                self._seen.kills["overtaken" if each is old else "from outside"] += 1

    def _suffer(self, server: ServerProcess) -> None:
        deadline = time.monotonic() + LIFE_LIMIT_S
        while server.code is None and len(server.fired()) < ERRORS_A_LIFE and time.monotonic() < deadline:
            server.wait_end(0.005)
