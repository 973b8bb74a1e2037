"""Arms of an effect: the replay without a command and its placebos, started or found, and read when they have ended.

An arm that exists already is not started again: a repeated `steer effect` continues where the first one ended.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

from control_plane.api.launching import ReplayRequest
from control_plane.api.messages import RunSummary, Snapshot, StepRange
from control_plane.api.versions import release
from control_plane.cli.launching.job_watch import JobWatch
from control_plane.cli.output.printing import say
from control_plane.compare.effect import Refusal, is_outcome
from control_plane.compare.lineage import lineage
from control_plane.core.model.errors import NotFound, SteerwayError, Unavailable
from control_plane.core.model.records import CommandAccepted, CommandSettled, Entry
from control_plane.core.model.values import LeftOut

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

LOOK_EVERY_S = 1.0
NO_ANSWER_S = 300.0
"""Time without an answer of the gateway after which the command ends: it waits for minutes, and machines are busy."""

MAX_ATTEMPTS = 100
"""Requests of one arm whose runs failed or were deleted; each has its own uuid."""

NAMES_PER_READ = 64
"""The gateway's limit of names in one request for measurements."""

Answer = TypeVar("Answer")
Curves = dict[str, dict[int, float]]
"""Values by step, by metric."""


def placebo_sizes(count: int) -> list[float]:
    """Return the relative changes of placebos: a millionth up and down, two millionths up and down, and so on."""
    return [float(f"{'-' if number % 2 else ''}{number // 2 + 1}e-6") for number in range(count)]


@dataclass(slots=True)
class Arms:
    """Replays of one run without one command. `end`: the step that they are to reach, as in `Parent.step`."""

    client: "SteerwayClient"
    run: str
    without: LeftOut
    until_step: int | None
    end: int
    trust: bool = False
    begun: dict[float | None, str] = field(default_factory=dict)

    def ensure(self, placebos: Sequence[float | None], parallel: int) -> None:
        """Start these arms, `parallel` at a time, unless they exist, and wait until all have ended.

        Raises `SteerwayError` if one of them fails.
        """
        waiting, active = list(placebos), list[JobWatch]()
        while waiting or active:
            while waiting and len(active) < parallel:
                placebo = waiting.pop(0)
                self.begun[placebo] = patiently(partial(self._find_or_start, placebo))
                active.append(JobWatch(self.client, self.begun[placebo]))
            active = [job for job in active if not patiently(partial(has_ended, self.client, job))]
            if active:
                time.sleep(LOOK_EVERY_S)

    def _find_or_start(self, placebo: float | None) -> str:
        without = self.without.model_copy(update={"placebo": placebo})
        known = [child for child in self.client.tree(self.run).children if self._is_arm(child, without)]
        usable = next((child.run for child in known if child.status != "failed"), None)
        if usable is not None:
            say(f"run {usable} is there already: {described(placebo)}")
            return usable
        for attempt in range(len(known), MAX_ATTEMPTS):
            request = ReplayRequest(
                uuid=self._uuid(without, attempt),
                until_step=self.until_step,
                without=without.command,
                placebo=placebo,
                trust=self.trust,
                client=release(""),
            )
            launched = self.client.replay(self.run, request)
            started = launched.runs[0]
            if not exists(self.client, started.run):
                continue  # it was deleted, and its request is remembered
            say(*launched.notes, f"run {started.run} begins: {described(placebo)}")
            if started.queued_because:
                say(f"run {started.run} is queued: {started.queued_because}")
            return started.run
        raise SteerwayError(f"{MAX_ATTEMPTS} replays of run {self.run} have failed or were deleted")

    def _is_arm(self, child: RunSummary, without: LeftOut) -> bool:
        parent = child.parent
        return parent is not None and (parent.kind, parent.step, parent.without) == ("replay", self.end, without)

    def _uuid(self, without: LeftOut, attempt: int) -> UUID:
        """Return the uuid of a request, which a repeated command derives again: it then is the same request."""
        parts = ("steerway-effect", self.run, without.command, without.placebo, self.end, self.until_step, attempt)
        return uuid5(NAMESPACE_URL, "/".join(map(str, parts)))


def exists(client: "SteerwayClient", run: str) -> bool:
    """Return whether there is such a run, with a journal or without one yet."""
    try:
        client.job(run)
    except NotFound:
        return False
    return True


def patiently(ask: Callable[[], Answer], within_s: float = NO_ANSWER_S) -> Answer:
    """Return an answer; ask again while there is none. Raises `Unavailable` if there is none for `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return ask()
        except Unavailable as error:
            if time.monotonic() >= deadline:
                raise
            say(f"{error.reason}; asking again")
            time.sleep(LOOK_EVERY_S)


def described(placebo: float | None) -> str:
    """Return what an arm is, in words."""
    return "without the command" if placebo is None else f"a placebo in its place, lr x {1 + placebo:.12g}"


def has_ended(client: "SteerwayClient", job: JobWatch) -> bool:
    """Return whether an arm has ended. Raises `SteerwayError` if it failed, or if its job is gone."""
    try:
        snapshot = client.snapshot(job.run)
    except NotFound:
        if not exists(client, job.run):
            raise
        return False  # it waits in the queue, and has no journal yet
    if snapshot.status == "failed":
        raise SteerwayError(f"the replay {job.run} failed at step {snapshot.step}: {snapshot.reason}")
    if not snapshot.closed and (gone := job.dead(snapshot)) is not None:
        raise SteerwayError(gone)
    return snapshot.closed


def whole_journal(client: "SteerwayClient", run: str) -> list[Entry]:
    """Return every entry of a run's journal."""
    entries: list[Entry] = []
    while page := client.journal(run, after=len(entries)):
        entries += page
    return entries


def refusals(entries: Iterable[Entry]) -> dict[UUID, Refusal]:
    """Return the commands that a replay's ranks did not apply, by uuid."""
    sent, refused = dict[UUID, str](), dict[UUID, Refusal]()
    for entry in entries:
        record = entry.record
        if isinstance(record, CommandAccepted):
            sent[record.command.uuid] = record.command.describe()
        elif isinstance(record, CommandSettled) and record.status != "applied":
            refused[record.uuid] = Refusal(
                what=sent.get(record.uuid, str(record.uuid)),
                step=record.step,
                status=record.status,
                reason=record.reason,
            )
    return refused


def line_of(snapshot: Snapshot) -> tuple[StepRange, ...]:
    """Return the step ranges that lead to a run's head."""
    return lineage(snapshot.branches, snapshot.branch)


def curves(client: "SteerwayClient", run: str, line: Sequence[StepRange], training: int) -> Curves:
    """Return the outcomes of a training along a line of branches; the last value of a repeated step counts."""
    names = [name for name in client.snapshot(run).latest if is_outcome(name)]
    found: defaultdict[str, dict[int, float]] = defaultdict(dict)
    ranges = {stretch.branch: stretch for stretch in line}
    for chosen in _parts(names, NAMES_PER_READ):
        after = 0
        while (read := client.metrics(run, after, names=chosen)).points:
            after = read.cursor
            for point in read.points:
                stretch = ranges.get(point.branch)
                if point.training == training and stretch is not None and _is_in(stretch, point.step):
                    found[point.name][point.step] = point.value
    return dict(found)


def _is_in(stretch: StepRange, step: int) -> bool:
    """Return whether a step lies on a branch: after its fork point, which is its parent's step."""
    return (step > stretch.first or stretch.first == 0) and (stretch.last is None or step <= stretch.last)


def _parts(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    yield from (names[at : at + size] for at in range(0, len(names), size))
