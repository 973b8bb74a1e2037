"""A campaign: life after life of a control server, each with an end of its own, under the load of its clients.

Every life is armed with one item of a plan: SIGKILL at a named failpoint; a stop there, in which a successor takes
over before the old server may go on; or errors of the disk, again and again, until it is killed from outside. After
some lives the power is lost, too. A round is some lives over one run's folder; then an unarmed life lets the clients
come to an end, and the journal is held against what they were told.
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

from benchmarks.kills.clients import Client, Operator, Place, Watcher
from benchmarks.kills.nursery import LOOK_S, Being, Nursery
from benchmarks.kills.power import lose_power
from benchmarks.kills.rank import Rank, wait_for
from benchmarks.kills.verdict import Verdict, judge, last_words, removed_undecided
from control_plane.storage.failpoints import POINTS
from control_plane.storage.journal.writer import read

OPERATORS = 3
LIVES_A_ROUND = 25
LIFE_LIMIT_S = 15.0
"""A life whose moment does not come is killed from outside, and its moment counts as not reached."""

PATIENCE_S = 0.25
DRAIN_LIMIT_S = 30.0
OVERTAKEN_S = 0.03
"""So long a server that was overtaken may go on, before it is killed."""

ERRORS_A_LIFE = 12

KILL_POINTS = tuple(
    point
    for point in POINTS
    if point.startswith(("journal.", "server.", "removal.")) and not point.startswith("removal.link")
)
"""What a control server passes. A checkpoint of ours is never a link."""

STOP_POINTS = tuple(point for point in KILL_POINTS if point.startswith(("journal.append.", "server.")))

ERROR_POINTS = tuple(
    point for point in KILL_POINTS if point.startswith("journal.") and not point.startswith("journal.folder")
)

AFTER_A_FAILURE = ("journal.segment.", "journal.header.")
"""A segment begins with a life, and after a failed write."""

REMOVAL = ("removal.", "server.retire", "server.delete")

Kind = Literal["kill", "stop", "error"]


@dataclass(frozen=True, slots=True)
class Fate:
    """What one life has before it. `failpoints` is what the variable would hold."""

    kind: Kind
    failpoints: str
    point: str
    power: bool = False


@dataclass(frozen=True, slots=True)
class Course:
    """What a campaign consists of."""

    seed: int
    points: Sequence[str] = KILL_POINTS
    kinds: Sequence[Kind] = ("kill", "kill", "kill", "kill", "stop")
    power: float = 0.5
    planted: str | None = None
    passages: int = 4

    def repro(self, kills: int, errors: int) -> str:
        """The command that plays this plan again. Which request meets which death is up to the machine."""
        points = "" if self.points == KILL_POINTS else f" --points {','.join(self.points)}"
        kinds = f" --kinds {','.join(self.kinds)} --power {self.power:g}"
        return f"python -m benchmarks.kills.kills --seed {self.seed} --kills {kills} --errors {errors}{kinds}{points}"


@dataclass
class Seen:
    """What a campaign has seen."""

    kills: Counter[str] = field(default_factory=Counter)
    not_reached: Counter[str] = field(default_factory=Counter)
    overtaken: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    power_losses: int = 0
    lives: int = 0
    restarts_s: list[float] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    took_s: float = 0.0

    @property
    def total_kills(self) -> int:
        """Every SIGKILL, wherever it struck."""
        return self.kills.total()


def fates(course: Course) -> Iterator[Fate]:
    """The plan, without end: every point in its turn, in an order that the seed decides."""
    dice = random.Random(f"plan {course.seed}")
    while True:
        for point in dice.sample(course.points, len(course.points)):
            kind = dice.choice(course.kinds)
            if kind == "stop" and point not in STOP_POINTS:
                kind = "kill"
            if kind == "error" and point not in ERROR_POINTS:
                point = dice.choice(ERROR_POINTS)
            yield _fate(kind, point, dice, dice.random() < course.power, course.passages)


def _fate(kind: Kind, point: str, dice: random.Random, power: bool, passages: int) -> Fate:
    if kind == "error":
        # Where a life begins, errors would keep it from beginning; what comes after a failure is seldom enough.
        chances = {
            each: 0.02 if each.startswith(("journal.segment", "journal.header")) else 0.06 for each in ERROR_POINTS
        }
        chances[point] = 0.3
        items = [f"{each}=error:{dice.choice(('ENOSPC', 'EIO'))}@{chance}" for each, chance in chances.items()]
        return Fate(kind, f"seed={dice.getrandbits(32)};" + ";".join(items), point, power)
    passage, prelude = dice.randint(1, passages), ""
    if point.startswith("journal.abandoned"):
        prelude, passage = "journal.header.before_write=error:ENOSPC@1;", 1
    elif point.startswith(AFTER_A_FAILURE) and dice.random() < 0.5:
        prelude, passage = f"journal.append.{dice.choice(('mid_write', 'before_sync'))}=error:EIO@2;", 2
    elif point.startswith(("journal.segment", "journal.header", "journal.folder", "journal.taken_over")):
        passage = 1
    elif point.startswith(REMOVAL):
        passage = dice.randint(1, 2)
    return Fate(kind, f"{prelude}{point}={kind}@{passage}", point, power)


class Campaign:
    """Runs the plan. Leaves nothing behind but what it has seen."""

    def __init__(self, nursery: Nursery, course: Course, folder: Path) -> None:
        """Rounds get folders below `folder`."""
        self._nursery, self._course, self._folder = nursery, course, folder
        self._plan = fates(course)
        self._dice = random.Random(f"power {course.seed}")
        self._rounds = 0
        self.seen = Seen()

    def run(self, kills: int, errors: int = 0, until_a_problem: bool = False) -> Seen:
        """Go on until there were so many kills and errors; with `until_a_problem`, at most."""
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
            round_ = Round(self._nursery, root, Path(sockets), self._course, self._dice, self.seen)
            round_.play([next(self._plan) for _ in range(lives)])
        if not self.seen.verdict.problems:
            shutil.rmtree(root)


class Round:
    """Some lives over one folder."""

    def __init__(
        self, nursery: Nursery, root: Path, sockets: Path, course: Course, dice: random.Random, seen: Seen
    ) -> None:
        """`sockets` is a folder with a short name."""
        self._nursery, self._root, self._sockets = nursery, root, sockets
        self._course, self._dice, self._seen = course, dice, seen
        self._place = Place()
        name = f"{course.seed} {root.name}"
        self._rank = Rank(self._place, f"rank {name}", root)
        operators = [Operator(self._place, f"operator {number} {name}") for number in range(OPERATORS)]
        self._clients: list[Client] = [self._rank, Watcher(self._place, name), *operators]

    def play(self, plan: Sequence[Fate]) -> None:
        """Live through the plan, let the clients end, and judge."""
        for client in self._clients:
            client.start()
        for fate in plan:
            self._live(fate)
            if self._is_bad():
                break
        last = self._begin("")
        if not last.wait_serving():
            self._seen.verdict.problems.append(f"a control server does not start any more (exit code {last.code})")
            self._place.over.set()
        else:
            self._place.path = last.life.socket
        wait_for(self._clients, self._place, DRAIN_LIMIT_S)
        last.kill()
        self._seen.kills["after the end"] += 1
        self._seen.verdict.add(judge(self._root, self._clients))

    def _begin(self, failpoints: str) -> Being:
        number = self._seen.lives = self._seen.lives + 1
        return self._nursery.begin(
            root=str(self._root),
            socket=str(self._sockets / str(number)),
            failpoints=failpoints,
            power=self._course.power > 0,
            planted=self._course.planted,
        )

    def _live(self, fate: Fate) -> None:
        being = self._begin(fate.failpoints)
        if being.wait_serving(fate.point if fate.kind == "stop" else None):
            self._place.path = being.life.socket
            assert being.serving_after_s is not None
            self._seen.restarts_s.append(being.serving_after_s)
        if fate.kind == "stop":
            self._overtake(being, fate)
        elif fate.kind == "error":
            self._suffer(being)
        elif not self._dies(being, 0.0 if self._is_past(being, fate) else LIFE_LIMIT_S):
            self._seen.not_reached[fate.point] += 1
        if fate.kind == "stop" and being.code is not None:
            pass  # counted where it was overtaken
        elif being.code is None:
            being.kill()
            self._seen.kills["from outside"] += 1
        elif being.code == -signal.SIGKILL:
            self._seen.kills[fate.point] += 1
        self._note_errors(being, fate)
        if fate.power:
            lose_power(being.life.notes(), self._dice)
            self._seen.power_losses += 1
        if fate.point.startswith(REMOVAL):
            # At once: a later life would decide what has been done already, and nobody would see it.
            gone = removed_undecided(self._root, read(being.life.journal()))
            self._seen.verdict.problems += [f"{name} was removed, and not let go before" for name in gone]

    def _is_bad(self) -> bool:
        return any(client.problems for client in self._clients) or bool(last_words(self._root))

    def _dies(self, being: Being, limit_s: float) -> bool:
        """Wait for its end, as long as its clients are well: without load no moment comes."""
        deadline = time.monotonic() + limit_s
        while not being.wait_end(min(PATIENCE_S, deadline - time.monotonic())):
            if time.monotonic() > deadline or self._is_bad():
                return False
        return True

    @staticmethod
    def _is_past(being: Being, fate: Fate) -> bool:
        """Whether a life that serves has had its chance: the first life of a round has nobody to take over from."""
        return being.serving_after_s is not None and fate.point.startswith("journal.taken_over")

    def _note_errors(self, being: Being, fate: Fate) -> None:
        for point in being.fired():
            if f"{point}=error" in fate.failpoints:
                self._seen.errors[point] += 1

    def _overtake(self, old: Being, fate: Fate) -> None:
        """A successor takes over while the old server stands still at its point, and then both go on."""
        deadline = time.monotonic() + LIFE_LIMIT_S
        while fate.point not in old.fired() and old.code is None and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        if fate.point not in old.fired():
            self._seen.not_reached[fate.point] += 1
            return
        new = self._begin("")
        if new.wait_serving():
            self._place.path = new.life.socket
        old.signal(signal.SIGCONT)
        time.sleep(OVERTAKEN_S)
        self._seen.overtaken += 1
        for each in (old, new):
            if each.code is None:
                each.kill()
                self._seen.kills["overtaken" if each is old else "from outside"] += 1

    def _suffer(self, being: Being) -> None:
        deadline = time.monotonic() + LIFE_LIMIT_S
        while being.code is None and len(being.fired()) < ERRORS_A_LIFE and time.monotonic() < deadline:
            being.wait_end(0.005)
