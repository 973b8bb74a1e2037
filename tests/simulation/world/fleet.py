"""All ranks of one generation, in lock-step: a loop carries out the effects that their boundaries yield."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from control_plane.core.boundary import (
    AllGather,
    AllReduceMin,
    Apply,
    Broadcast,
    Check,
    Effect,
    ReadKnobs,
    Replica,
    Steps,
    TakeOffers,
    Undo,
    Wait,
)
from control_plane.core.model.commands import Command
from control_plane.core.model.errors import Diverged
from control_plane.core.model.intents import Cancel
from control_plane.core.model.records import MAIN, CommandSettled, Readback
from tests.simulation.world.rank import SimRank

Boundary = Callable[[Replica, int], Steps]


class Violation(AssertionError):
    """An invariant does not hold."""


class GroupDied(Exception):
    """A rank died, and with it the whole group of trainers."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What all ranks decided about one command, and what each of them really had live just then."""

    outcome: CommandSettled
    live: tuple[Readback, ...]


class Fleet:
    """The ranks of one start of the trainers. `offers` is what rank 0 holds when it is asked."""

    def __init__(
        self,
        uuid: UUID,
        ranks: Sequence[SimRank],
        replicas: Sequence[Replica],
        step: int,
        run: Boundary,
        branch: str = MAIN,
        scheduled: Collection[UUID] = (),
    ):
        """`replicas` belong to `ranks`, one by one. What is `scheduled` was never done before."""
        self.uuid, self.ranks, self.replicas, self.step = uuid, list(ranks), list(replicas), step
        self.branch = branch
        self.offers: tuple[Command, ...] = ()
        self.decisions: dict[UUID, Decision] = {}
        # How many decisions were found equal on all ranks; they are not compared again.
        self.agreed = 0
        self._to_repeat = {each.command.uuid for each in self.replicas[0].repeats} - set(scheduled)
        # Until this step a rank may hold other knobs, as nothing has made it look: see `World.drift`.
        self.excused_until = -1
        # Whether the boundary of the restored step itself was looked at.
        self.begun = False
        self._run = run
        self._boundaries: list[Steps] = []
        self._answers: list[Any] = []
        self._refused: dict[UUID, int] = {}
        self._proposal: tuple[Command, ...] = ()

    @property
    def held(self) -> bool:
        """Whether the ranks stand in a boundary that waits."""
        return bool(self._boundaries)

    @property
    def stopping(self) -> bool:
        """Whether a stop was applied."""
        return self.replicas[0].stopping

    @property
    def leaving(self) -> bool:
        """Whether the run was taken to another branch."""
        return self.replicas[0].leaving is not None

    def advance(self, die_at_effect: int | None = None) -> None:
        """Take one step and its boundary, or go on with the boundary that waits.

        Raises `GroupDied` at effect number `die_at_effect`, `Diverged` as the boundaries do.
        """
        if not self._boundaries:
            # A pause stays a pause, and what was decided at the restored step itself is decided there again.
            restored_behind = not self.begun and (self.replicas[0].paused or self.replicas[0].is_behind(self.step))
            self.step += 0 if restored_behind else 1
            self.begun = True
            self._boundaries = [self._run(replica, self.step) for replica in self.replicas]
            self._answers = [None] * len(self.ranks)
        effects = self._next_effects()
        count = 0
        while effects is not None and not isinstance(effects[0], Wait):
            if count == die_at_effect:
                raise GroupDied(f"a rank died in the boundary after step {self.step}")
            self._answers = self._carry_out(effects)
            effects, count = self._next_effects(), count + 1
        self._answers = [None] * len(self.ranks)
        self._boundaries = self._boundaries if effects else []

    def _next_effects(self) -> list[Effect] | None:
        """What the ranks yield next; None if all of them are through. They must agree on which it is."""
        effects: list[Effect] = []
        ends: list[type[BaseException]] = []
        errors: list[Diverged] = []
        for steps, answer in zip(self._boundaries, self._answers, strict=True):
            try:
                effects.append(steps.send(answer))
            except StopIteration:
                ends.append(StopIteration)
            except Diverged as error:
                ends.append(Diverged)
                errors.append(error)
        self._note_decisions()
        kinds = {type(effect) for effect in effects} | set(ends)
        if len(kinds) != 1:
            raise Violation(f"I4 lock-step: ranks yield {sorted(kind.__name__ for kind in kinds)} at the same time")
        if errors:
            raise errors[0]
        return effects or None

    def _carry_out(self, effects: list[Effect]) -> list[Any]:
        first = effects[0]
        match first:
            case Broadcast():
                self._proposal = first.commands
                return [first.commands] * len(effects)
            case AllReduceMin():
                least = min(effect.value for effect in effects if isinstance(effect, AllReduceMin))
                return [least] * len(effects)
            case AllGather():
                # Equal values become one object, so that thousands of ranks can compare them by identity.
                shared: dict[str, Any] = {}
                values = [effect.value for effect in effects if isinstance(effect, AllGather)]
                return [[shared.setdefault(repr(value), value) for value in values]] * len(effects)
            case _:
                return [self._locally(rank, effect) for rank, effect in zip(self.ranks, effects, strict=True)]

    def _locally(self, rank: SimRank, effect: Effect) -> Any:
        match effect:
            case TakeOffers():
                return self.offers if rank.rank == 0 else ()
            case Check(command):
                reason = rank.check(command, self.step, is_repeat=command.uuid in self._to_repeat)
                if reason is not None:
                    self._refused[command.uuid] = rank.rank
                return reason
            case Apply(command):
                if command.uuid in self._refused:
                    raise Violation(
                        f"I4 all or none: rank {rank.rank} applies what rank {self._refused[command.uuid]} refused"
                    )
                return rank.apply(command)
            case Undo():
                return rank.undo()
            case ReadKnobs():
                return rank.held()
        raise Violation(f"I4 lock-step: nobody can carry out {effect}")

    def _note_decisions(self) -> None:
        for command in self._proposal:
            if isinstance(command.intent, Cancel):
                self._note_cancelled(command.intent.command)
            outcome = self.replicas[0].ledger.get(command.uuid)
            known = self.decisions.get(command.uuid)
            if outcome is None or (known and known.outcome is outcome):
                continue
            if known:
                raise Violation(f"I1 exactly once: the ranks decided twice about '{command.describe()}'")
            self.decisions[command.uuid] = Decision(outcome, tuple(rank.truth(command) for rank in self.ranks))

    def _note_cancelled(self, target: UUID) -> None:
        """A command that was taken back need not have been proposed."""
        outcome = self.replicas[0].ledger.get(target)
        if outcome is not None and outcome.status == "cancelled" and target not in self.decisions:
            self.decisions[target] = Decision(outcome, ())
