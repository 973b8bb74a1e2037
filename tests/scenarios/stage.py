"""The stage of a transcript: a control server, some ranks, and nothing that happens by itself.

A scene is a few directives; what is printed is what the journal got, what was refused, and how the run stands.

    start ranks=2 step=0 total=100        trainers are announced               submit KIND key=value ... not_before=5
    offer                                 rank 0 takes the unsettled commands  resend N     command N again
    boundary step=10 [waits=3]            all ranks go through it              settle       rank 0 reports
    refuse|fail|misapply|misread rank=1 reason=...     stick rank=1            restart      a new control server
    checkpoint id=c1 step=10    end ending=finished step=100    close ending=finished    show
    failed id=c2 step=20 reason=..        discard id=c1 reason=..              lose step=12 reason=..
    digest step=20 roots=a,b              the ranks have digested their state
    restore [id=c1] [refused=c2]          new trainers, from this checkpoint   recovered step=11 | resume author=bo
"""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from control_plane.core import decisions, digests
from control_plane.core.boundary import Replica, boundary
from control_plane.core.commands import INTENT, Command
from control_plane.core.decisions import GenerationStart
from control_plane.core.errors import Diverged, Refused
from control_plane.core.records import (
    CheckpointCommitted,
    CheckpointDiscarded,
    CheckpointFailed,
    CommandSettled,
    Death,
    Entry,
    GenerationRecovered,
    RankPlace,
    RefusedCheckpoint,
    StateDigested,
)
from control_plane.core.recovery import replay_after
from tests.simulation.faults import Faults
from tests.simulation.fleet import Fleet
from tests.simulation.rank import SimRank
from tests.simulation.server import Disk, Rules, SimServer

Words = dict[str, str]


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
        self.saved: dict[str, tuple[int, list[dict[str, Any]], set[str]]] = {}
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
        ranks = [SimRank(rank, self.faults) for rank in range(int(words.get("ranks", "2")))]
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
        committed = CheckpointCommitted(
            checkpoint=name, step=step, generation=self.generation, path=f"checkpoints/{name}", size_bytes=1024
        )
        self.server.commit(decisions.commit_checkpoint(self.server.state, committed))
        if self.fleet is not None:
            contained = {str(uuid) for uuid in self.fleet.replicas[0].ledger}
            self.saved[name] = (step, [rank.saved() for rank in self.fleet.ranks], contained)
        return []

    def do_failed(self, rest: str) -> list[str]:
        """A save came to nothing."""
        words = pairs(rest)
        failed = CheckpointFailed(
            checkpoint=words["id"], step=int(words["step"]), generation=self.generation, reason=words["reason"]
        )
        self.server.commit(decisions.fail_checkpoint(self.server.state, failed))
        return []

    def do_discard(self, rest: str) -> list[str]:
        """A checkpoint may go."""
        words = pairs(rest)
        self.server.commit([CheckpointDiscarded(checkpoint=words["id"], reason=words["reason"])])
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
        records = decisions.lose_generation(self.server.state, generation, int(words["step"]), 0.5, (death,))
        self.server.commit(records)
        return []

    def do_restore(self, rest: str) -> list[str]:
        """New trainers ask where to start, and start from this checkpoint, or from the beginning."""
        words = pairs(rest)
        point = self.server.resume_point(0)
        step, values, contained = self.saved[words["id"]] if "id" in words else (0, [{}, {}], set())
        replay = replay_after(point.decided, contained)
        ranks = [SimRank(rank, self.faults, **deepcopy(value)) for rank, value in enumerate(values)]
        places = tuple(RankPlace(rank=rank.rank, node="10.0.0.1", pid=200 + rank.rank, device="cpu") for rank in ranks)
        refused = tuple(
            RefusedCheckpoint(checkpoint=each, reason="a bit flipped") for each in words.get("refused", "").split()
        )
        uuid = UUID(int=900 + self.server.state.generation_number)
        self.generation = self.server.start_generation(
            GenerationStart(uuid, places, step, 100, ranks[0].knobs(), {}, words.get("id"), refused)
        )
        replicas = [
            Replica(self.generation, replay.paused, replay.stopping, dict(replay.ledger), replay.repeats) for _ in ranks
        ]
        self.reported = set(replay.ledger)
        self.fleet = Fleet(uuid, ranks, replicas, step, boundary)
        candidates = ", ".join(each.checkpoint for each in point.candidates) or "nothing"
        again = ", ".join(f"{each.command.uuid.int} at {each.step}" for each in replay.repeats) or "nothing"
        return [f"candidates {candidates}; to repeat: {again}"]

    def do_recovered(self, rest: str) -> list[str]:
        """The first step after a loss."""
        step = int(pairs(rest)["step"])
        phases = {"detect": 0.5, "re-form": 3.0, "load": 1.5, "first step": 0.25}
        told = GenerationRecovered(generation=self.generation, step=step, lost_steps=2, phases_s=phases)
        self.server.commit(decisions.recover_generation(self.server.state, told))
        return []

    def do_resume(self, rest: str) -> list[str]:
        """Somebody has the run go on."""
        self.server.commit(decisions.resume_run(self.server.state, pairs(rest)["author"]))
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
        return [stands, f"knobs {compact(state.knobs)}", f"pending {waiting}, checkpoints {len(state.checkpoints)}"]

    def _fleet(self) -> Fleet:
        assert self.fleet is not None, "the scene needs a `start` first"
        return self.fleet

    def _name(self, uuid: UUID) -> str:
        return f"command {uuid.int} ({self.commands[uuid.int].describe()})"

    def _names(self, commands: tuple[Command, ...]) -> str:
        return ", ".join(str(command.uuid.int) for command in commands) or "nothing"


def pairs(text: str) -> Words:
    """`rank=1 reason=it is stuck` as a dict. A value ends where the next key begins."""
    found: Words = {}
    key = ""
    for word in text.split():
        name, equals, value = word.partition("=")
        if equals:
            key, found[name] = name, value
        else:
            found[key] += f" {word}"
    return found


def literal(text: str) -> object:
    """A value as JSON would read it; plain words are strings."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def compact(value: object) -> str:
    """JSON on one line."""
    return json.dumps(value)


def shown(entry: Entry) -> str:
    """A record on one line: without empty fields, times and long uuids."""
    body = entry.line()["body"]
    command = body.pop("command", None)
    body |= (
        {"uuid": command["uuid"], **command["intent"], "not_before_step": command["not_before_step"]} if command else {}
    )
    body.pop("ranks", None) if entry.record.type == "GenerationStarted" else None
    uuid = f" {UUID(body.pop('uuid')).int}" if "uuid" in body else ""
    body.pop("branch") if body.get("branch") == "main" else None
    kept = {key: value for key, value in body.items() if value not in (None, "", [], {}, 0)}
    return f"#{entry.seq} {entry.record.type}{uuid} {compact(kept)}"
