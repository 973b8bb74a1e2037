"""The journal of a run, folded into the autopilot's budget, the peak learning rate and the last change of each knob.

None of these is held in an autopilot's memory, where a restart would forget it, nor taken from a snapshot's newest
commands, where fifty others would push it out. So the bounds hold for a run, over every life of its autopilots.

An autopilot's command is one whose reason begins with `autopilot (` (see `policy.explain`), whoever's token sent it: a
budget that asked for one token's id would begin anew with a new token. Whoever forges the reason makes the autopilot
more careful, or ends it, and can do no more than that.

One autopilot steers a run. A restart and a twin look alike until they act, so that is what tells them apart: commands
before an autopilot joined are an earlier life's, and it goes on with what that life left of the budget; a later one
that it did not send is a living twin's, and it ends. As every command is sent with `based_on_seq`, one of two twins
that act at once is refused, sees the other's command, and ends: exactly one is left.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Protocol
from uuid import UUID

from control_plane.agent.policy import AUTOPILOT, is_number
from control_plane.core.model.errors import Conflict
from control_plane.core.model.limits import LEARNING_RATE, changed_by
from control_plane.core.model.records import (
    CommandAccepted,
    CommandRepeated,
    CommandScheduled,
    CommandSettled,
    Entry,
    GenerationStarted,
)
from control_plane.core.model.state import CommandStatus, RunState, evolve

ENTRIES_PER_PAGE = 1000
MAX_PAGES_PER_READ = 20
"""Joining a long run late reads its past in a few polls, without holding up Ctrl-C."""


class JournalReader(Protocol):
    """Where the journal is read from. May raise `Unavailable` or `Refused`."""

    def journal(self, run: str, after: int = 0, limit: int = ...) -> list[Entry]:
        """Entries after the entry `after`."""
        ...


class History:
    """What a run's journal says of its steering. The only memory of its own: which commands this autopilot sent."""

    def __init__(self) -> None:
        self._state = RunState()
        self._joined_seq: int | None = None
        self._sent: set[UUID] = set()
        self._confirmed: set[UUID] = set()
        self._replayed: set[UUID] = set()
        self._by_autopilots: dict[UUID, CommandStatus] = {}
        self.peak_lr = 0.0

    @property
    def seq(self) -> int:
        """The last entry that was read."""
        return self._state.seq

    def read(self, reader: JournalReader, run: str, seq: int) -> bool:
        """Read on to entry `seq` at least; whether it got so far. The first call says where this autopilot joined."""
        self._joined_seq = seq if self._joined_seq is None else self._joined_seq
        for _ in range(MAX_PAGES_PER_READ):
            if self.seq >= seq:
                return True
            entries = reader.journal(run, after=self.seq, limit=ENTRIES_PER_PAGE)
            for entry in entries:
                self._take(entry)
            if not entries:
                return False
        return self.seq >= seq

    def send(self, uuid: UUID) -> None:
        """This command is about to be sent by this autopilot."""
        self._sent.add(uuid)

    def confirm(self, uuid: UUID) -> None:
        """This command of this autopilot was applied; the journal, which says so as well, is read later."""
        self._confirmed.add(uuid)

    def _take(self, entry: Entry) -> None:
        evolve(self._state, entry)
        match entry.record:
            case CommandAccepted(command=command):
                if (command.reason or "").startswith(AUTOPILOT):
                    self._by_autopilots[command.uuid] = self._state.commands[command.uuid]
            case CommandScheduled(uuid=uuid):
                self._replayed.add(uuid)
            case GenerationStarted(knobs=knobs):
                self._raise_peak(knobs)
            case CommandSettled(before=before, after=after):
                self._raise_peak(before)
                self._raise_peak(after)
            case CommandRepeated(after=after):
                self._raise_peak(after)

    def _raise_peak(self, reading: Mapping[str, Any] | None) -> None:
        self.peak_lr = max([self.peak_lr, *_finite((reading or {}).get(LEARNING_RATE))])

    @property
    def changes(self) -> int:
        """Commands of any autopilot, in any of its lives, that were applied or may still be."""
        return sum(life.status in ("applied", "accepted") for life in self._by_autopilots.values())

    @property
    def applied(self) -> int:
        """Commands of this autopilot that every rank has confirmed."""
        applied = {uuid for uuid, life in self._by_autopilots.items() if life.status == "applied"}
        return len(self._confirmed | (applied & self._sent))

    @property
    def inherited(self) -> tuple[int, int | None]:
        """How many of the changes are not this autopilot's, and the step of the last one of those."""
        earlier = [life for uuid, life in self._by_autopilots.items() if uuid not in self._sent]
        counted = [life for life in earlier if life.status in ("applied", "accepted")]
        return len(counted), max((life.settled.step or 0 for life in counted if life.settled), default=None)

    def check_alone(self, run: str) -> None:
        """Raises `Conflict` if another autopilot has sent a command since this one joined."""
        for uuid, life in self._by_autopilots.items():
            if uuid in self._sent or uuid in self._replayed or life.accepted_seq <= (self._joined_seq or 0):
                continue
            raise Conflict(
                f"another autopilot steers run {run}: {life.command.author} sent '{life.command.describe()}' (entry "
                f"{life.accepted_seq} of the journal) after this one had joined, so this one ends; a run is steered "
                "by one autopilot at a time"
            )

    def last_change(self, knob: str) -> tuple[int | None, bool]:
        """The last step at which anybody changed a knob (or ran `action/NAME`), and whether a change is pending.

        Only changes that are in the history of what is trained now count: those that a rollback left behind do not.
        """
        steps: list[int] = []
        pending = False
        for life in self._state.commands.values():
            if _changes(life, knob):
                pending = pending or life.settled is None
                steps += self._steps_of(life)
        return max(steps, default=None), pending

    def _steps_of(self, life: CommandStatus) -> Iterable[int]:
        generation, reach = self._state.generation_number, self._reach()
        for outcome in (life.settled, life.repeated):
            if outcome is None or outcome.status != "applied" or outcome.step is None:
                continue
            if outcome.generation == generation or outcome.step <= reach.get(life.branch, -1):
                yield outcome.step

    def _reach(self) -> dict[str, int]:
        """How far each branch belongs to the history of what the current generation began from."""
        state = self._state
        if state.generation is None:
            return {}
        name: str | None = state.generation.branch
        step, found = state.generation.step, dict[str, int]()
        while name is not None and name in state.branches and name not in found:
            found[name] = step
            step, name = min(step, state.branches[name].step), state.branches[name].parent
        return found


def _changes(life: CommandStatus, knob: str) -> bool:
    named = changed_by(life.command.intent, life.settled.after if life.settled else None)
    # What a pattern covers is known when the ranks have read it back; until then it covers what it fits.
    return knob in named or any(":" in each and fnmatchcase(knob, each) for each in named)


def _finite(value: Any) -> list[float]:
    if isinstance(value, list | tuple):
        return [number for each in value for number in _finite(each)]
    return [float(value)] if is_number(value) else []
