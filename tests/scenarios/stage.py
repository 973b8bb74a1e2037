"""The stage of a transcript: a control server, some ranks, and nothing that happens by itself.

A scene is a few directives; what is printed is what the journal got, what was refused, and how the run stands.

    start ranks=2 step=0 total=100        trainers are announced               submit KIND key=value ... not_before=5
    offer                                 rank 0 takes the unsettled commands  resend N     command N again
    boundary step=10 [waits=3]            all ranks go through it              settle       rank 0 reports
    refuse|fail|misapply|misread rank=1 reason=...     stick rank=1            restart      a new control server
    checkpoint id=c1 step=10    end ending=finished step=100    close ending=finished    show
    failed id=c2 step=20 reason=..        discard id=c1 reason=..              lose step=12 reason=..
    alert kind=loss_spike onset=3 [cleared=9]                  the checks found something, or it has ended
    digest step=20 roots=a,b              the ranks have digested their state
    restore [id=c1] [refused=c2]          new trainers, from this checkpoint   recovered step=11 | resume author=bo
    damage id=c1                          it does not verify any more          restore id=c1 branch=main
    try                                   the control server goes on with the trial of a proposal
    adopt run=other step=N [branch=best]  a checkpoint of another run becomes a branch, with what is live here
    fork|replay of=[[STEP,{"kind":..}],..] [id=c0 step=9]     another run, which has a parent and begins with these
"""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from uuid import UUID

from pydantic import ValidationError

from control_plane.core.boundary import Replica, boundary
from control_plane.core.model.commands import INTENT, Command
from control_plane.core.model.errors import Diverged, Refused
from control_plane.core.model.health import Alert, Cleared
from control_plane.core.model.records import (
    CheckpointCommitted,
    CheckpointDiscarded,
    CheckpointFailed,
    CommandSettled,
    Death,
    GenerationRecovered,
    Parent,
    RankPlace,
    RefusedCheckpoint,
    StateDigested,
)
from control_plane.core.rules import checkpoint_rules, decisions, digests
from control_plane.core.rules.agent.trials import next_records
from control_plane.core.rules.alert_rules import clear_alert
from control_plane.core.rules.branch_rules import AdoptedCheckpoint, Origin, ScheduledCommand
from control_plane.core.rules.decisions import GenerationStart
from control_plane.core.rules.recovery import replay_after
from control_plane.core.rules.reflexes import raise_alert
from tests.scenarios.spelling import Words, compact, literal, numbered, pairs, shown
from tests.simulation.world.faults import Faults
from tests.simulation.world.fleet import Fleet
from tests.simulation.world.rank import SimRank
from tests.simulation.world.saved import BEGINNING, Saved
from tests.simulation.world.server import Disk, Rules, SimServer


class Stage:
    """One run. `play` carries out a directive and answers the lines that it printed."""

    def __init__(self) -> None:
        """An empty journal, and a control server over it."""
        self.faults, self.disk = Faults(), Disk()
        self.server = SimServer(self.disk, self.faults, Rules())
        self.fleet: Fleet | None = None
        self.generation = 0
        self.commands: dict[int, Command] = {}
        self.reported: set[UUID] = set()
        self.saved: dict[str, Saved] = {}
        self.shown = 0

    def play(self, directive: str) -> list[str]:
        """Carry out one directive. A refusal is printed, as is every record that it added."""
        verb, *rest = directive.split(" ", 1)
        action: Callable[[str], list[str]] = getattr(self, f"do_{verb}")
        try:
            printed = action(rest[0] if rest else "")
        except ValidationError as error:
            printed = [f"Invalid: {'; '.join(problem['msg'] for problem in error.errors())}"]
        except (Refused, Diverged) as error:
            printed = [f"{type(error).__name__}: {error.reason}"]
        fresh, self.shown = self.disk.entries[self.shown :], len(self.disk.entries)
        return [*printed, *(shown(entry) for entry in fresh)]

    def do_start(self, rest: str) -> list[str]:
        """Trainers are announced; `uuid` names an earlier announcement to repeat."""
        words = pairs(rest)
        ranks = [SimRank(rank, self.faults, find=self.saved.get) for rank in range(int(words.get("ranks", "2")))]
        places = tuple(RankPlace(rank=rank.rank, node="10.0.0.1", pid=100 + rank.rank, device="cpu") for rank in ranks)
        uuid = UUID(int=int(words.get("uuid", str(900 + self.server.state.generation_number))))
        step, total = int(words.get("step", "0")), int(words.get("total", "100"))
        start = GenerationStart(uuid, places, step, total, ranks[0].knobs(), {})
        self.generation = self.server.start_generation(start)
        if self.fleet is None or self.fleet.uuid != uuid:
            replicas = [Replica(generation=self.generation) for _ in ranks]
            self.fleet = Fleet(uuid, ranks, replicas, step, boundary)
        return [f"generation {self.generation}"]

    def do_submit(self, rest: str) -> list[str]:
        """A new command."""
        kind, _, given = rest.partition(" ")
        words: dict[str, object] = {key: literal(value) for key, value in pairs(given).items()}
        number = len(self.commands) + 1
        about = {"author": words.pop("author", "ann"), "role": words.pop("role", None)}
        about |= {"not_before_step": words.pop("not_before", None), "not_after_step": words.pop("not_after", None)}
        about |= {"based_on_seq": words.pop("based_on", None), "reason": words.pop("reason", None)}
        self.commands[number] = Command.model_validate(
            {"uuid": UUID(int=number), "intent": {"kind": kind, **words}} | about
        )
        return [f"acknowledged as record {self.server.submit(self.commands[number])}"]

    def do_adopt(self, rest: str) -> list[str]:
        """A checkpoint of another run is brought here; a new command makes it a branch."""
        words = pairs(rest)
        run, step, number = words["run"], int(words["step"]), len(self.commands) + 1
        intent = INTENT.validate_python({"kind": "adopt_checkpoint", "run": run, "branch": words.get("branch")})
        command = self.commands[number] = Command(uuid=UUID(int=number), author="ann", intent=intent)
        branch = decisions.to_be_adopted(self.server.state, command) or ""
        name, origin = f"c{step}-of-{run}", Parent(kind="adopted", run=run, checkpoint=f"c{step}", step=step)
        given = CheckpointCommitted(
            checkpoint=name, step=step, generation=0, path=f"checkpoints/{name}", pinned=True, branch=branch
        )
        self.saved[name] = Saved(step, tuple(rank.saved() for rank in self._fleet().ranks), frozenset(), branch)
        return [
            f"acknowledged as record {self.server.submit(command, AdoptedCheckpoint(origin=origin, checkpoint=given))}"
        ]

    def do_resend(self, rest: str) -> list[str]:
        """Command N again, or another command under its uuid."""
        number, _, kind = rest.partition(" as ")
        command = self.commands[int(number)]
        if kind:
            command = command.model_copy(update={"intent": INTENT.validate_python({"kind": kind})})
        return [f"acknowledged as record {self.server.submit(command)}"]

    def do_offer(self, rest: str) -> list[str]:
        """Rank 0 is shown the unsettled commands of its generation, or of the one that is given."""
        fleet = self._fleet()
        fleet.offers = self.server.offers(int(pairs(rest).get("generation", str(self.generation))))
        return [f"offered {self._names(fleet.offers)}"]

    def do_boundary(self, rest: str) -> list[str]:
        """All ranks go through the boundary after a step; if it waits, they go on with it."""
        words, fleet = pairs(rest), self._fleet()
        if not fleet.held:
            fleet.step, fleet.begun = int(words["step"]) - 1, True
        before = len(fleet.decisions)
        try:
            fleet.advance()
        finally:
            outcomes = [decision.outcome for decision in fleet.decisions.values()][before:]
        lines = [f"{self._name(o.uuid)} {o.status}" + (f": {o.reason}" if o.reason else "") for o in outcomes]
        return [*(lines or ["quiet"]), f"live {compact(fleet.ranks[0].rates)}" + (", held" if fleet.held else "")]

    def do_settle(self, rest: str) -> list[str]:
        """Rank 0 reports what is not reported yet; `again` reports everything."""
        ledger = self._fleet().replicas[0].ledger
        outcomes = [o for o in ledger.values() if rest == "again" or o.uuid not in self.reported]
        return self._report(outcomes)

    def do_contradict(self, rest: str) -> list[str]:
        """Rank 0 reports another outcome than before for command N."""
        uuid = self.commands[int(rest)].uuid if int(rest) in self.commands else UUID(int=int(rest))
        return self._report([CommandSettled(uuid=uuid, status="rejected", step=1, generation=self.generation)])

    def _report(self, outcomes: list[CommandSettled]) -> list[str]:
        self.server.report(self.generation, outcomes)
        self.reported |= {outcome.uuid for outcome in outcomes}
        return []

    def do_try(self, rest: str) -> list[str]:
        """What comes next in the trial of a proposal, once."""
        self.server.commit(next_records(self.server.state, decisions.Settling().accept))
        return []

    def do_refuse(self, rest: str) -> list[str]:
        """A rank will vote no."""
        return self._plan("refuse", rest)

    def do_fail(self, rest: str) -> list[str]:
        """A rank will fail to apply."""
        return self._plan("fail", rest)

    def do_misapply(self, rest: str) -> list[str]:
        """A rank will set another value."""
        return self._plan("misapply", rest)

    def do_misread(self, rest: str) -> list[str]:
        """A rank will read another value back."""
        return self._plan("misread", rest)

    def do_stick(self, rest: str) -> list[str]:
        """A rank cannot undo."""
        return self._plan("stick", rest)

    def _plan(self, fault: str, rest: str) -> list[str]:
        words = pairs(rest)
        rank = int(words.pop("rank"))
        getattr(self.faults, fault)(rank, **words)
        return []

    def do_restart(self, rest: str) -> list[str]:
        """A new control server over the same journal."""
        self.server = SimServer(self.disk, self.faults, Rules())
        return []

    def do_checkpoint(self, rest: str) -> list[str]:
        """A manifest is in place."""
        words = pairs(rest)
        name, step = words["id"], int(words["step"])
        branch, decided_here = "main", tuple[UUID, ...]()
        if self.fleet is not None:
            branch, lead = self.fleet.branch, self.fleet.replicas[0]
            decided_here, contained = lead.decided_at(step), frozenset(str(uuid) for uuid in lead.ledger)
            self.saved[name] = Saved(step, tuple(rank.saved() for rank in self.fleet.ranks), contained, branch)
        committed = CheckpointCommitted(
            checkpoint=name,
            step=step,
            generation=self.generation,
            path=f"checkpoints/{name}",
            size_bytes=1024,
            branch=branch,
            decided_here=decided_here,
        )
        self.server.commit(checkpoint_rules.commit_checkpoint(self.server.state, committed))
        return []

    def do_damage(self, rest: str) -> list[str]:
        """A checkpoint does not verify any more."""
        name = pairs(rest)["id"]
        self.saved[name] = replace(self.saved[name], is_damaged=True)
        return []

    def do_fork(self, rest: str) -> list[str]:
        """Another run begins at a checkpoint of this one, with these commands."""
        words = pairs(rest)
        name, step = words["id"], int(words["step"])
        parent = Parent(kind="fork", run="sim", checkpoint=name, step=step)
        given = CheckpointCommitted(checkpoint=name, step=step, generation=0, path=f"checkpoints/{name}", pinned=True)
        self.saved = {name: replace(self.saved[name], branch="main", is_damaged=False)}
        return self._descend(parent, given, words)

    def do_replay(self, rest: str) -> list[str]:
        """Another run does again what is given here."""
        self.saved = {}
        return self._descend(Parent(kind="replay", run="sim"), None, pairs(rest))

    def _descend(self, parent: Parent, given: CheckpointCommitted | None, words: Words) -> list[str]:
        scheduled, self.commands = [], {}
        for number, (step, body) in enumerate(json.loads(words["of"]), start=1):
            self.commands[number] = Command.model_validate({"uuid": UUID(int=number), "author": "ann", "intent": body})
            scheduled.append(ScheduledCommand(command=self.commands[number], step=step))
        origin = Origin(parent=parent, checkpoint=given, scheduled=tuple(scheduled))
        self.disk, self.fleet, self.shown, self.reported = Disk(), None, 0, set()
        self.server = SimServer(self.disk, self.faults, Rules(), origin=origin)
        return []

    def do_failed(self, rest: str) -> list[str]:
        """A save came to nothing."""
        words = pairs(rest)
        failed = CheckpointFailed(
            checkpoint=words["id"], step=int(words["step"]), generation=self.generation, reason=words["reason"]
        )
        self.server.commit(checkpoint_rules.fail_checkpoint(self.server.state, failed))
        return []

    def do_discard(self, rest: str) -> list[str]:
        """A checkpoint may go."""
        words = pairs(rest)
        self.server.commit([CheckpointDiscarded(checkpoint=words["id"], reason=words["reason"])])
        return []

    def do_alert(self, rest: str) -> list[str]:
        """The checks of rank 0 have found something, or (`cleared=`) it has ended at that step."""
        words = pairs(rest)
        found = Alert.model_validate(
            {"level": "warning", "step": words["onset"], "sentence": "found"}
            | {"kind": words["kind"], "onset_step": words["onset"]}
        )
        if "cleared" in words:
            ended = Cleared(kind=found.kind, onset_step=found.onset_step, step=int(words["cleared"]))
            self.server.commit(clear_alert(self.server.state, ended, self.generation))
        else:
            self.server.commit(raise_alert(self.server.state, found, self.generation))
        return []

    def do_digest(self, rest: str) -> list[str]:
        """Rank 0 tells what all ranks have live."""
        words = pairs(rest)
        roots = tuple(words["roots"].split(","))
        told = StateDigested(generation=self.generation, step=int(words["step"]), ranks=roots, samples="s")
        self.server.commit(digests.digest_state(self.server.state, told))
        return []

    def do_lose(self, rest: str) -> list[str]:
        """The driver found the trainers dead."""
        words = pairs(rest)
        death = Death(rank=1, node="10.0.0.2", reason=words["reason"])
        generation = int(words.get("generation", str(self.generation)))
        records = decisions.fail_generation(self.server.state, generation, int(words["step"]), 0.5, (death,))
        self.server.commit(records)
        return []

    def do_restore(self, rest: str) -> list[str]:
        """New trainers ask where to start, and start from this checkpoint, or from the beginning."""
        words = pairs(rest)
        point = self.server.resume_point(0)
        saved = self.saved[words["id"]] if "id" in words else BEGINNING
        replay = replay_after(point.decided, saved.contained, point.scheduled)
        ranks = [
            SimRank(rank, self.faults, find=self.saved.get, **deepcopy(values))
            for rank, values in enumerate(saved.ranks or ({}, {}))
        ]
        places = tuple(RankPlace(rank=rank.rank, node="10.0.0.1", pid=200 + rank.rank, device="cpu") for rank in ranks)
        refused = tuple(
            RefusedCheckpoint(checkpoint=each, reason="a bit flipped") for each in words.get("refused", "").split()
        )
        uuid = UUID(int=900 + self.server.state.generation_number)
        self.generation = self.server.start_generation(
            GenerationStart(
                uuid,
                places,
                saved.step,
                100,
                ranks[0].knobs(),
                {},
                words.get("id"),
                refused,
                {},
                words.get("branch", point.branch),
                point.branched_seq,
            )
        )
        history = replay.paused, replay.stopping, replay.ledger, replay.repeats, point.replays
        replicas = [Replica(self.generation, *deepcopy(history)) for _ in ranks]
        self.reported = set(replay.ledger)
        scheduled = [each.command.uuid for each in point.scheduled]
        self.fleet = Fleet(uuid, ranks, replicas, saved.step, boundary, point.branch, scheduled)
        candidates = ", ".join(each.checkpoint for each in point.candidates) or "nothing"
        again = ", ".join(f"{numbered(each.command.uuid)} at {each.step}" for each in replay.repeats) or "nothing"
        return [f"candidates {candidates}; to repeat: {again}"]

    def do_recovered(self, rest: str) -> list[str]:
        """The first step after a loss."""
        step = int(pairs(rest)["step"])
        phases = {"detect": 0.5, "re-form": 3.0, "load": 1.5, "first step": 0.25}
        told = GenerationRecovered(generation=self.generation, step=step, lost_steps=2, phases_s=phases)
        self.server.commit(decisions.recover_generation(self.server.state, told))
        return []

    def do_resume(self, rest: str) -> list[str]:
        """Somebody has the run go on, perhaps to go back in it."""
        words = pairs(rest)
        self.server.commit(decisions.resume_run(self.server.state, words["author"], "back" in words))
        return []

    def do_end(self, rest: str) -> list[str]:
        """The trainers ended."""
        words = pairs(rest)
        generation = int(words.get("generation", str(self.generation)))
        self.server.end_generation(generation, words["ending"], int(words["step"]))  # type: ignore[arg-type]
        return []

    def do_close(self, rest: str) -> list[str]:
        """The run is over."""
        self.server.close(pairs(rest)["ending"])  # type: ignore[arg-type]
        return []

    def do_show(self, rest: str) -> list[str]:
        """How the run stands, by the fold of its journal."""
        state = self.server.state
        waiting = self._names(state.pending_commands())
        stands = f"{state.status} at step {state.step}, term {state.term}, generation {state.generation_number}"
        return [
            stands,
            f"knobs {compact(state.knobs)}",
            f"pending {waiting}, checkpoints {len(state.checkpoints.existing)}",
        ]

    def _fleet(self) -> Fleet:
        assert self.fleet is not None, "the scene needs a `start` first"
        return self.fleet

    def _name(self, uuid: UUID) -> str:
        command = self.server.state.commands[uuid].command
        return f"command {numbered(uuid)} ({command.describe()})"

    def _names(self, commands: tuple[Command, ...]) -> str:
        return ", ".join(numbered(command.uuid) for command in commands) or "nothing"
