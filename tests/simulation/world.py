"""The world: operators, a control server, a network and a fleet, one tick after another, from one seed."""

import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from control_plane.core.boundary import Replica, boundary
from control_plane.core.commands import INTENT, Command
from control_plane.core.decisions import GenerationStart
from control_plane.core.errors import Diverged, Refused
from control_plane.core.records import RankPlace
from tests.simulation.faults import Faults
from tests.simulation.fleet import Boundary, Fleet, GroupDied, Violation
from tests.simulation.invariants import Books
from tests.simulation.link import Announce, Link, Network, Numbered, Offered, Outcomes, Over, Poll, Recorded
from tests.simulation.rank import SimRank
from tests.simulation.server import Crashed, Disk, Rules, SimServer

MAX_TICKS_TO_FINISH = 400
"""A healed world that is not done after so many ticks never will be."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the world is built of. A mutant is a world with one other part."""

    rules: Rules = field(default_factory=Rules)
    disk: type[Disk] = Disk
    boundary: Boundary = boundary
    replica: type[Replica] = Replica
    rank: Callable[..., SimRank] = SimRank


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint: the step, every rank's values, and the ledger."""

    step: int = 0
    ranks: tuple[dict[str, Any], ...] = ()
    ledger: dict[UUID, Any] = field(default_factory=dict)


class World:
    """One run and everyone around it. After every action all invariants are checked; `Violation` names a broken one."""

    def __init__(self, seed: int = 0, ranks: int = 2, faults: Faults | None = None, parts: Parts = Parts()) -> None:
        """A new run without trainers, and with a control server."""
        self.dice = random.Random(seed)
        self.faults = (faults or Faults()).seeded(seed)
        self.now = 0
        self.total_steps = 1000
        self._parts, self._world_size = parts, ranks
        self._network = Network(self.faults)
        self._uuids = 0
        self.disk = parts.disk()
        self.books = Books()
        self.unanswered: dict[UUID, Command] = {}
        self.saved = Saved()
        self.server: SimServer | None = None
        self.fleet: Fleet | None = None
        self.link: Link | None = None
        self.restart_server()

    # What may happen

    def submit(self, kind: str, not_before_step: int | None = None, **body: Any) -> Command:
        """An operator sends a new command. Raises `Refused`; without an answer the operator keeps asking."""
        intent = INTENT.validate_python({"kind": kind, **body})
        command = Command(uuid=self._uuid(), author="ann", intent=intent, not_before_step=not_before_step)
        self.send(command)
        return command

    def send(self, command: Command) -> None:
        """An operator sends this command, perhaps not for the first time. Raises `Refused`."""
        self.unanswered[command.uuid] = command
        try:
            answer = self._ask(lambda server: server.submit(command))
        except Refused:
            self.unanswered.pop(command.uuid)
            raise
        if answer is not None:
            self.unanswered.pop(command.uuid)
            self.books.acknowledged[command.uuid] = answer
        self.check()

    def start_trainers(self) -> None:
        """New trainers begin from the last checkpoint, or from the start; those there were are gone."""
        saved = deepcopy(self.saved)
        blank: tuple[dict[str, Any], ...] = ({},) * self._world_size
        ranks = [self._parts.rank(rank, self.faults, **values) for rank, values in enumerate(saved.ranks or blank)]
        places = tuple(RankPlace(rank=rank.rank, node="node", pid=rank.rank, device="cpu") for rank in ranks)
        start = GenerationStart(self._uuid(), places, saved.step, self.total_steps, ranks[0].knobs(), {})
        replicas = [self._parts.replica(generation=0, ledger=dict(saved.ledger)) for _ in ranks]
        self.link = Link(start)
        self.fleet = Fleet(start.uuid, ranks, replicas, saved.step, self._parts.boundary)

    def kill_trainers(self) -> None:
        """A rank dies, and the group with it."""
        self.fleet = self.link = None

    def crash_server(self) -> None:
        """The control server dies, and with it what was not durable."""
        self.server = None
        self.disk.lose_power()

    def restart_server(self) -> None:
        """The next life of the control server."""
        self.disk.lose_power()
        try:
            self.server = SimServer(self.disk, self.faults, self._parts.rules)
        except Crashed:
            self.crash_server()
        self.check()

    def tick(self) -> None:
        """Messages arrive, the ranks take a step, and rank 0's link says what it has to say."""
        self.now += 1
        for message in self._network.arrivals(self.now):
            self._deliver(message)
        self._advance()
        for message in self.link.messages() if self.link else []:
            self._network.send(self.now, message)
        self.check()

    def check(self) -> None:
        """Raises `Violation` if an invariant does not hold."""
        self.books.check(self.disk, self.server.state if self.server else None, self.fleet)

    # Inside

    def _uuid(self) -> UUID:
        self._uuids += 1
        return UUID(int=self._uuids)

    def _ask(self, request: Callable[[SimServer], Any]) -> Any:
        """The server's answer; None if there is no server, or none any more. Raises `Refused`."""
        if self.server is None:
            return None
        try:
            return request(self.server)
        except Crashed:
            self.crash_server()
            return None
        except (KeyError, ValueError) as error:
            raise Violation(f"I3 order: the server's own records do not fold: {error!r}") from error

    def _deliver(self, message: Any) -> None:
        try:
            match message:
                case Announce(start):
                    number = self._ask(lambda server: server.start_generation(start))
                    self._answer(Numbered(start.uuid, number) if number else None)
                case Poll(link, generation):
                    offers = self._ask(lambda server: server.offers(generation))
                    self._answer(Offered(link, offers) if offers is not None else None)
                case Outcomes(link, generation, outcomes):
                    durable = self._ask(lambda server: server.report(generation, outcomes))
                    self._answer(Recorded(link, tuple(durable)) if durable else None)
                case _:
                    self._receive(message)
        except Refused:
            if isinstance(message, Poll):
                self._answer(Over(message.link))

    def _answer(self, message: Any) -> None:
        if message is not None:
            self._network.send(self.now, message)

    def _receive(self, message: Any) -> None:
        if self.link is None or self.fleet is None or message.link != self.link.start.uuid:
            return
        if isinstance(message, Over):
            self.kill_trainers()
            return
        self.link.receive(message, self.fleet.replicas[0].ledger)
        for replica in self.fleet.replicas:
            replica.generation = self.link.generation or 0
        if self.link.generation:
            self.books.generations[self.link.generation] = self.fleet

    def _advance(self) -> None:
        fleet, link = self.fleet, self.link
        if fleet is None or link is None or link.generation is None or self._at_the_end(fleet):
            return
        fleet.offers = link.offers
        known = set(fleet.decisions)
        try:
            fleet.advance(self.faults.dies_at_effect(fleet.step + 1))
        except (GroupDied, Diverged):
            self.kill_trainers()
            return
        fresh = [d.outcome for uuid, d in fleet.decisions.items() if uuid not in known]
        link.outbox |= {outcome.uuid: outcome for outcome in fresh}
        if any(outcome.status == "applied" for outcome in fresh) and self.dice.random() < 0.3:
            self._save(fleet)

    def _at_the_end(self, fleet: Fleet) -> bool:
        return not fleet.held and (fleet.stopping or fleet.step >= self.total_steps)

    def _save(self, fleet: Fleet) -> None:
        ledger = dict(fleet.replicas[0].ledger)
        self.saved = deepcopy(Saved(fleet.step, tuple(rank.saved() for rank in fleet.ranks), ledger))

    # The end of the story

    def finish(self) -> None:
        """Heal everything, let the run end, and check that nothing is left without an end."""
        self.faults.heal()
        for _ in range(MAX_TICKS_TO_FINISH):
            if self._closed():
                self.books.check_finished(self.disk)
                return
            self._bring_back()
            self._retry()
            self.tick()
            self._end_if_through()
        raise Violation("I7 liveness: the healed run does not come to its end")

    def _closed(self) -> bool:
        return self.server is not None and self.server.state.closed is not None

    def _bring_back(self) -> None:
        if self.server is None:
            self.restart_server()
        if self.fleet is None:
            self.start_trainers()
        assert self.fleet is not None
        self.total_steps = min(self.total_steps, self.fleet.step + 10)
        if self.fleet.held and self.dice.random() < 0.2:
            self.try_submit("resume")

    def try_submit(self, kind: str, **body: Any) -> str | None:
        """Send a command; answers the reason if it was refused."""
        try:
            self.submit(kind, **body)
        except Refused as refusal:
            return refusal.reason
        return None

    def try_send(self, command: Command) -> str | None:
        """Send this command again; answers the reason if it was refused: an honest no is an answer too."""
        try:
            self.send(command)
        except Refused as refusal:
            return refusal.reason
        return None

    def _retry(self) -> None:
        for command in list(self.unanswered.values()):
            self.try_send(command)

    def _end_if_through(self) -> None:
        fleet, link = self.fleet, self.link
        if fleet is None or link is None or link.generation is None or not self._at_the_end(fleet):
            return
        self.check()
        if not link.outbox and self.server is not None:
            self.books.check_settled(self.disk, fleet, self.server.state)
            generation, step = link.generation, fleet.step
            try:
                self._ask(lambda server: server.end_generation(generation, "finished", step))
            except Refused:  # A late announcement of dead trainers came between: begin again.
                self.kill_trainers()
                return
            self._ask(lambda server: server.close("finished"))
