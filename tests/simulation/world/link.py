"""The link between rank 0 and the control server, and the network that loses, repeats, delays and reorders on it."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from control_plane.core.model.commands import Command
from control_plane.core.model.records import CheckpointCommitted, CommandSettled
from control_plane.core.rules.decisions import GenerationStart
from tests.simulation.world.faults import Faults


@dataclass(frozen=True, slots=True)
class Announce:
    """To the server: these trainers are ready."""

    start: GenerationStart


@dataclass(frozen=True, slots=True)
class Poll:
    """To the server: what is there to do? `link` says where the answer goes."""

    link: UUID
    generation: int


@dataclass(frozen=True, slots=True)
class Outcomes:
    """To the server: what was decided, and what was saved."""

    link: UUID
    generation: int
    outcomes: tuple[CommandSettled, ...]
    checkpoints: tuple[CheckpointCommitted, ...] = ()


@dataclass(frozen=True, slots=True)
class Numbered:
    """To the link: the number of your generation."""

    link: UUID
    generation: int


@dataclass(frozen=True, slots=True)
class Offered:
    """To the link: the unsettled commands."""

    link: UUID
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Over:
    """To the link: your generation is over. If these trainers are alive, they end and begin anew."""

    link: UUID


@dataclass(frozen=True, slots=True)
class Recorded:
    """To the link: these outcomes and checkpoints are durable."""

    link: UUID
    uuids: tuple[UUID, ...]
    checkpoints: tuple[str, ...] = ()


@dataclass(slots=True)
class Network:
    """Messages on their way. Each copy has its own time of arrival."""

    faults: Faults
    on_the_way: list[tuple[int, Any]] = field(default_factory=list)

    def send(self, now: int, message: Any) -> None:
        """Zero, one or two copies set out."""
        self.on_the_way += [(now + delay, message) for delay in self.faults.delays()]

    def arrivals(self, now: int) -> list[Any]:
        """What arrives by now."""
        due = [message for at, message in self.on_the_way if at <= now]
        self.on_the_way = [(at, message) for at, message in self.on_the_way if at > now]
        return due


@dataclass(slots=True)
class Link:
    """Rank 0's end, for one start of the trainers. It repeats itself until it is answered."""

    start: GenerationStart
    generation: int | None = None
    offers: tuple[Command, ...] = ()
    outbox: dict[UUID, CommandSettled] = field(default_factory=dict)
    saved: dict[str, CheckpointCommitted] = field(default_factory=dict)

    def messages(self) -> list[Any]:
        """What there is to say now."""
        if self.generation is None:
            return [Announce(self.start)]
        poll = Poll(self.start.uuid, self.generation)
        if not self.outbox and not self.saved:
            return [poll]
        told, saved = tuple(self.outbox.values()), tuple(self.saved.values())
        return [poll, Outcomes(self.start.uuid, self.generation, told, saved)]

    def receive(self, message: Any, ledger: dict[UUID, CommandSettled]) -> None:
        """Take an answer. A command that is offered although it was decided tells that its report was lost."""
        match message:
            case Numbered():
                self.generation = self.generation or message.generation
            case Offered():
                self.offers = message.commands
                self.outbox |= {c.uuid: ledger[c.uuid] for c in message.commands if c.uuid in ledger}
            case Recorded():
                for uuid in message.uuids:
                    self.outbox.pop(uuid, None)
                for name in message.checkpoints:
                    self.saved.pop(name, None)
