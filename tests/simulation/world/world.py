"""The world: operators, a control server, a network and a fleet, one tick after another, from one seed."""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

from control_plane.core.boundary import COMPARE_EVERY_STEPS
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Diverged, Fenced, Refused
from control_plane.core.model.records import CheckpointCommitted
from control_plane.core.rules.branch_rules import AdoptedCheckpoint
from control_plane.core.rules.recovery import ResumePoint
from tests.simulation.world.beginning import begun, rank_maker, taken
from tests.simulation.world.faults import Faults
from tests.simulation.world.fleet import Fleet, GroupDied, Violation
from tests.simulation.world.invariants import Books
from tests.simulation.world.link import Announce, Link, Network, Numbered, Offered, Outcomes, Over, Poll, Recorded
from tests.simulation.world.operators import ADOPTED, Operators
from tests.simulation.world.parts import Parts
from tests.simulation.world.saved import Saved
from tests.simulation.world.server import LIMITED, Crashed, SimServer

MAX_TICKS_TO_FINISH = 400
"""A healed world that is not done after so many ticks never will be."""

LEAVES_UNHEARD = 0.1
"""How often, at each tick, ranks that leave for another branch wait no longer for the control server."""

DRIVER_IS_HEARD = 0.8
"""How often the driver's word of a loss arrives before the new trainers ask where to begin."""


class World(Operators):
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
        self.files: dict[str, Saved] = {}
        self.books.turns.files = self.files
        self.brought: dict[UUID, AdoptedCheckpoint] = {}
        # How many checkpoints of a branch are kept (0: all), and whether somebody goes back when the run has ended.
        self.keep_last, self.goes_back_at_the_end = 0, False
        self.reached_step = 0
        self.save_rate, self.eager_save_rate = 0.04, 0.3
        self.server: SimServer | None = None
        # An earlier server that was stopped, and goes on, beside its successor; and how often it was fenced.
        self.stopped: SimServer | None = None
        self.fenced = 0
        self.faults.take_over = self.take_over
        self._clock_dice = random.Random(seed)
        self.fleet: Fleet | None = None
        self.link: Link | None = None
        self._heard_step = 0
        self._writing: list[tuple[int, CheckpointCommitted]] = []
        self._resumed = False
        self.restart_server()

    # What may happen

    def start_trainers(self, in_place: bool = False) -> None:
        """New trainers begin where the journal says; those there were are gone. Without a server nobody begins.

        Those that go on `in_place` with another branch are the same processes: no driver finds anyone dead.
        """
        self.kill_trainers()
        try:
            if not in_place and self.dice.random() < DRIVER_IS_HEARD:
                self._ask(lambda server: server.fail_generation(self._heard_step))
            point: ResumePoint | None = self._ask(lambda server: server.resume_point(self._heard_step))
        except Refused:
            point = None
        if point is not None:
            self._start_from(point)
        self.check()

    def _start_from(self, point: ResumePoint) -> None:
        self.books.check_candidates(self.disk, [each.checkpoint for each in point.candidates])
        make_rank, uuid = rank_maker(self._parts, self.faults, self.find), self.new_uuid()
        self.fleet, self.link = begun(
            point, self.files, self._parts, make_rank, uuid, self._world_size, self.total_steps, self.keep_last
        )

    def find(self, checkpoint: str) -> Saved | None:
        """What the ranks find under this name."""
        return self.files.get(checkpoint) if checkpoint not in self.books.discarded else None

    def kill_trainers(self) -> None:
        """A rank dies, and the group with it."""
        self._heard_step = self.fleet.step if self.fleet else 0
        self.fleet = self.link = None
        self._writing = []

    def lose_everything(self) -> None:
        """The machine dies: trainers, control server and all."""
        self.kill_trainers()
        self.crash_server()

    def resume_run(self, back: bool = False) -> None:
        """The driver is gone, and somebody has the run go on, perhaps to go back in it."""
        self.kill_trainers()
        try:
            self._ask(lambda server: server.resume(back))
        except Refused:
            return
        self.check()

    def damage_checkpoint(self, name: str | None = None) -> None:
        """This checkpoint, or one of the newest, cannot be read; if it could not be before, it can be again."""
        if self.files:
            name = name or self.dice.choice(list(self.files)[-2:])
            if ADOPTED in name:
                return  # an adopted branch has nothing before it: without its checkpoint there is none
            self.files[name] = replace(self.files[name], is_damaged=not self.files[name].is_damaged)

    def save(self) -> str:
        """Take a checkpoint now, written at once; answers its name."""
        assert self.fleet is not None
        assert self.link is not None
        self._save(self.fleet, self.link)
        _, committed = self._writing.pop()
        self.link.saved[committed.checkpoint] = committed
        return committed.checkpoint

    def crash_server(self) -> None:
        """The control server dies, and with it what was not durable."""
        self.server = None
        self.disk.lose_power()

    def take_over(self) -> None:
        """The control server is stopped, another one begins; when it goes on there are two."""
        self.stopped, self.server = self.server, None
        self.restart_server()

    def drift(self, rank: int) -> None:
        """A rank holds another knob, and nobody has changed it: that must be found when knobs are compared."""
        assert self.fleet is not None
        self.fleet.ranks[rank].values["gradient_clipping"] = [0.125]
        self.fleet.excused_until = (self.fleet.step // COMPARE_EVERY_STEPS + 1) * COMPARE_EVERY_STEPS

    def restart_server(self) -> None:
        """The next life of the control server."""
        self.server = None
        self.disk.lose_power()
        try:
            begun = SimServer(self.disk, self.faults, self._parts.rules, LIMITED)
        except Crashed:
            self.crash_server()
        except Fenced:
            self.fenced += 1  # it was stopped before it had begun: its successor is there
        except (KeyError, ValueError) as error:
            raise Violation(f"I3 order: the server's own records do not fold: {error!r}") from error
        else:
            self.server, self.stopped = (begun, self.stopped) if begun.is_current else (self.server, begun)
        self.check()

    def tick(self) -> None:
        """Messages arrive, the ranks take a step, and rank 0's link says what it has to say."""
        self.now += 1
        jump_s = self.faults.clock_jumps_by_s
        self.disk.skew_s = self._clock_dice.choice((-jump_s, 0.0, jump_s)) if jump_s else 0.0
        for message in self._network.arrivals(self.now):
            self._deliver(message)
        self._advance()
        for message in self.link.messages() if self.link else []:
            self._network.send(self.now, message)
        self._go_over()
        self.check()

    def check(self) -> None:
        """Raises `Violation` if an invariant does not hold."""
        self.books.check(self.disk, self.server.state if self.server else None, self.fleet)

    # Inside

    def new_uuid(self) -> UUID:
        """One that nobody has used."""
        self._uuids += 1
        return UUID(int=self._uuids)

    def _whom(self) -> SimServer | None:
        """Who gets a message: the server, or the one that it replaced, if that is still there."""
        return self.stopped if self.stopped is not None and self.dice.random() < 0.3 else self.server

    def _ask(self, request: Callable[[SimServer], Any], whom: SimServer | None = None) -> Any:
        """The server's answer; None if there is no server, or none any more. Raises `Refused`."""
        server = whom or self.server
        if server is None:
            return None
        try:
            return request(server)
        except Fenced:
            self.fenced += 1
            return None
        except Crashed:
            if server is not self.server:
                self.stopped = None
                return None
            self.crash_server()
            if self.faults.crash_takes_the_trainers_along():
                self.kill_trainers()
            return None
        except (KeyError, ValueError) as error:
            raise Violation(f"I3 order: the server's own records do not fold: {error!r}") from error

    def _deliver(self, message: Any) -> None:
        whom = self._whom()
        try:
            match message:
                case Announce(start):
                    number = self._ask(lambda server: server.start_generation(start), whom)
                    self._answer(Numbered(start.uuid, number) if number else None)
                case Poll(link, generation):
                    offers = self._ask(lambda server: server.offers(generation), whom)
                    self._answer(Offered(link, offers) if offers is not None else None)
                case Outcomes(link, generation, outcomes, checkpoints):
                    durable = self._ask(lambda server: server.report(generation, outcomes, checkpoints), whom)
                    names = tuple(each.checkpoint for each in checkpoints)
                    self._answer(Recorded(link, tuple(durable), names) if durable is not None else None)
                case _:
                    self._receive(message)
        except Refused:
            if isinstance(message, Poll):
                self._answer(Over(message.link))
            elif isinstance(message, Announce):
                self._answer(Over(message.start.uuid))

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
        if fleet.leaving:
            self._finish_saves(link)
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
        self.reached_step = max(self.reached_step, fleet.step)
        eager = any(outcome.status == "applied" for outcome in fresh)
        if self.dice.random() < (self.eager_save_rate if eager else self.save_rate):
            self._save(fleet, link)
        self._finish_saves(link)

    def _finish_saves(self, link: Link) -> None:
        link.saved |= {each.checkpoint: each for due, each in self._writing if due <= self.now}
        self._writing = [(due, each) for due, each in self._writing if due > self.now]

    def _go_over(self) -> None:
        """Ranks that leave for another branch tell what they have to tell, and begin there."""
        fleet, link = self.fleet, self.link
        if fleet is None or link is None or not fleet.leaving:
            return
        if link.outbox or link.saved or self._writing:
            if self.dice.random() > LEAVES_UNHEARD:
                return
        else:
            generation, step = link.generation or 0, fleet.step
            with suppress(Refused):  # it was declared failed
                self._ask(lambda server: server.end_generation(generation, "left", step))
        self.start_trainers(in_place=True)

    def _at_the_end(self, fleet: Fleet) -> bool:
        return not fleet.held and (fleet.stopping or fleet.step >= self.total_steps)

    def _save(self, fleet: Fleet, link: Link) -> None:
        """The state is taken now, and written in the background: a death before that leaves nothing."""
        name = f"{len(self.files)}"
        self.files[name], committed = taken(name, fleet, link.generation or 0)
        self._writing.append((self.now + self.dice.choice((0, 0, 1, 3)), committed))

    # The end of the story

    def finish(self) -> None:
        """Heal everything, let the run end, and check that nothing is left without an end."""
        self.faults.heal()
        self.stopped = None
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
        if self.fleet is None:
            return
        self.total_steps = min(self.total_steps, self.reached_step + 10)
        if self.fleet.held and self.dice.random() < 0.2:
            self.try_submit("resume")

    def _end_if_through(self) -> None:
        fleet, link = self.fleet, self.link
        if fleet is None or link is None or link.generation is None or not self._at_the_end(fleet) or fleet.leaving:
            return
        self.check()
        if self.server is not None and self.server.state.generation_number != link.generation:
            self.kill_trainers()  # A late announcement of dead trainers came between: begin again.
            return
        if not link.outbox and not link.saved and self.server is not None:
            self.books.check_settled(self.disk, fleet, self.server.state)
            generation, step = link.generation, fleet.step
            try:
                self._ask(lambda server: server.end_generation(generation, "finished", step))
            except Refused:  # A late announcement of dead trainers came between: begin again.
                self.kill_trainers()
                return
            self._ask(lambda server: server.close("finished"))
            if self._closed() and self.dice.random() < 0.3 and not self._resumed:
                self._resumed = True
                self.resume_run(back=self.goes_back_at_the_end)
                if self.goes_back_at_the_end and self.files:
                    self.try_submit("rollback", checkpoint=self.dice.choice(list(self.files)))
