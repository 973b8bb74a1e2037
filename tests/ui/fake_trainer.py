"""A training that costs nothing: plausible curves, and a rank 0 that obeys like the real one."""

import asyncio
import math
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from control_plane.api.messages import Measurements, MetricSummary, Point, Progress, Report, Restart, StepRange
from control_plane.core.boundary import Repeat
from control_plane.core.model.commands import Command, SaveCheckpoint, SetKnobs, SetLearningRate
from control_plane.core.model.health import Trust
from control_plane.core.model.intents import Cancel, Rollback
from control_plane.core.model.records import (
    MAIN,
    CheckpointCommitted,
    CheckpointFailed,
    CommandSettled,
    Death,
    Ending,
    Entry,
    RankPlace,
    Readback,
    Record,
    RefusedCheckpoint,
)
from control_plane.core.model.values import Change
from control_plane.core.rules.admission import find_group
from control_plane.core.rules.branch_rules import reading
from control_plane.core.rules.decisions import GenerationStart
from control_plane.core.rules.recovery import ResumePoint, replay_after
from control_plane.server.control_server import ControlServer
from tests.storage.plain_results import results_of

GROUPS = ["decay", "no_decay"]
OTHER_KNOBS: Readback = {
    "weight_decay": [0.01, 0.0],
    "betas": [[0.9, 0.999], [0.9, 0.999]],
    "gradient_clipping": 1.0,
    "eval_steps": 100,
    "augment": True,
}
KNOB_FACTS: Readback = {
    "weight_decay": {"per_group": True, "kind": "number", "least": 0.0, "most": 1.0, "description": "of the optimizer"},
    "betas": {"per_group": True, "kind": "numbers", "least": 0.0, "most": 1.0},
    "gradient_clipping": {"per_group": False, "kind": "number", "least": 0.0},
    "eval_steps": {"per_group": False, "kind": "integer", "least": 1, "description": "steps <b>between</b> two"},
    "augment": {"per_group": False, "kind": "switch"},
}
STEPS_PER_S = 8.2


class Clock:
    """The real time, minus `behind_s`; `skip` makes it as late as if the steps had taken their time."""

    def __init__(self, behind_s: float = 0.0) -> None:
        self._behind_s = behind_s

    def unix_s(self) -> float:
        """Unix time."""
        return time.time() - self._behind_s

    def utc_now(self) -> datetime:
        """The same, for a journal."""
        return datetime.fromtimestamp(self.unix_s(), UTC)

    def monotonic_s(self) -> float:
        """For measuring how long nobody was heard."""
        return time.monotonic() - self._behind_s

    def skip(self, seconds: float) -> None:
        """Let this much time pass at once, but never into the future of the real one."""
        self._behind_s = max(0.0, self._behind_s - seconds)


class JournalInMemory:
    """A journal without a disk."""

    def __init__(self) -> None:
        self.term = 1
        self.entries: list[Entry] = []
        self._seq = 0

    def append(self, records: Sequence[Record], now: str) -> list[Entry]:
        """Number the records."""
        made = [Entry(seq=self._seq + 1 + i, time=now, record=record) for i, record in enumerate(records)]
        self._seq += len(made)
        return made


class MetricsInMemory:
    """A metrics store without a disk: the cursor is the number of points before."""

    def __init__(self) -> None:
        self._points: list[Point] = []

    def add(self, points: Sequence[Point]) -> None:
        """Keep these points."""
        self._points += points

    def read(self, after: int, limit: int, names: Sequence[str] = ()) -> Measurements:
        """Points after a cursor."""
        found = self._points[after : after + limit]
        return Measurements(points=tuple(p for p in found if not names or p.name in names), cursor=after + len(found))

    def latest(self) -> dict[str, float]:
        """The newest value of each name."""
        return {point.name: point.value for point in self._points}

    def results(self, stretches: Sequence[StepRange], names: Sequence[str]) -> tuple[MetricSummary, ...]:
        """What these metrics came to on each stretch."""
        return results_of(self._points, stretches, names)


class FakeTrainer:
    """Rank 0 and the ranks it speaks for. Every `step` makes one step, or holds if paused, and settles commands."""

    def __init__(
        self,
        server: ControlServer,
        ranks: int = 4,
        total_steps: int = 2000,
        seed: int = 7,
        ranks_per_node: int = 4,
        save_every: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self.server, self.world_size, self.total_steps = server, ranks, total_steps
        self.ranks_per_node, self.save_every, self.clock = ranks_per_node, save_every, clock or Clock()
        self.done, self.paused, self.ending, self.away = 0, False, "", False
        self.branch, self.leaving = MAIN, False
        self.health: Trust = "unknown"
        self.lr, self.scale = [3e-4, 3e-4], [1.0, 1.0]
        self.knobs: Readback = dict(OTHER_KNOBS)
        self.loss = 10.4
        self.generation = 0
        self._restored: tuple[float, float] | None = None
        self._saved: dict[str, tuple[float, list[float], Readback, int, str]] = {}
        self._repeats: list[Repeat] = []
        self._random = random.Random(seed)

    async def start(self, checkpoint: str | None = None, refused: Sequence[RefusedCheckpoint] = ()) -> None:
        """Announce the generation."""
        places = tuple(
            RankPlace(rank=r, node=f"node-{r // self.ranks_per_node}", pid=4000 + r, device="cpu")
            for r in range(self.world_size)
        )
        facts: Readback = {"model": "gpt2", "knobs": KNOB_FACTS}
        self.generation = await self.server.start_generation(
            GenerationStart(
                uuid4(),
                places,
                self.done,
                self.total_steps,
                self._knobs(),
                facts,
                checkpoint,
                tuple(refused),
                branch=self.branch,
            )
        )

    async def lose(self, ranks: Sequence[int], reason: str, silent_s: float = 0.0) -> None:
        """These ranks die, and the driver notices after a while. Nobody trains until `come_back`."""
        self.away = True
        self.clock.skip(silent_s)
        deaths = tuple(Death(rank=r, node=f"node-{r // self.ranks_per_node}", reason=reason) for r in ranks)
        await self.server.fail_generation(self.generation, deaths)

    async def come_back(
        self, ranks: int | None = None, form_s: float = 0.0, load_s: float = 1.0, refuse: dict[str, str] | None = None
    ) -> None:
        """Restore the newest checkpoint that is not refused, repeat what was decided after it, and go on."""
        point = await self.server.resume_point()
        self.clock.skip(form_s)
        self._restored = (self.clock.unix_s(), load_s)
        self.clock.skip(load_s)
        self.world_size = ranks or self.world_size
        await self._begin(point, refuse or {})
        self.away = False

    async def _begin(self, point: ResumePoint, refuse: dict[str, str]) -> None:
        """As real trainers do: the branch and the checkpoint of the resume point, and what is to be done there."""
        usable = [each for each in point.candidates if each.checkpoint not in refuse]
        refused = [RefusedCheckpoint(checkpoint=name, reason=why) for name, why in refuse.items()]
        chosen = usable[0] if usable else None
        self.branch, self.leaving, self.paused = point.branch, False, False
        begun = (10.4, [1.0, 1.0], OTHER_KNOBS, 0, MAIN)
        if chosen is not None:
            # Of a run that was adopted it knows no more than the step.
            begun = self._saved.get(chosen.checkpoint, (5.0, [1.0, 1.0], OTHER_KNOBS, chosen.step, MAIN))
        self.loss, scale, knobs, self.done, _ = begun
        self.scale, self.knobs = list(scale), dict(knobs)
        contained = [
            str(each.command.uuid) for each in point.decided if chosen and (each.outcome.step or 0) <= chosen.step
        ]
        self._repeats = list(replay_after(point.decided, contained, point.scheduled).repeats)
        await self.start(chosen.checkpoint if chosen else None, refused)

    def _knobs(self) -> Readback:
        return {"lr": list(self.lr), "groups": GROUPS} | self.knobs

    async def step(self) -> None:
        """One step boundary and, unless paused, one step."""
        offer = await self.server.offers(self.generation, -1, 0.0)
        due = [each.command for each in self._repeats if each.step <= self.done]
        self._repeats = [each for each in self._repeats if each.step > self.done]
        if not self._repeats:
            due += [command for command in offer.commands if self._is_due(command)]
        outcomes = self._take_back(due, offer.commands)
        due = [command for command in due if command.uuid not in {outcome.uuid for outcome in outcomes}]
        outcomes += [self._settle(command) for command in due]
        asked = [command.intent for command in due if isinstance(command.intent, SaveCheckpoint)]
        checkpoints = [self._checkpoint(intent) for intent in asked]
        points: list[Point] = []
        if not self.paused and not self.ending and not self.leaving:
            self.done += 1
            points = self._measure()
            if self.save_every and self.done % self.save_every == 0:
                checkpoints.append(self._checkpoint(SaveCheckpoint()))
        progress = Progress(
            step=self.done,
            total_steps=self.total_steps,
            phase="paused" if self.paused else "training",
            steps_per_s=STEPS_PER_S,
        )
        await self.server.report(
            Report(
                generation=self.generation,
                outcomes=tuple(outcomes),
                points=tuple(points),
                checkpoints=tuple(checkpoints),
                restart=self._first_step(),
                progress=progress,
            )
        )
        if self.leaving:
            await self.server.end_generation(self.generation, "left", self.done, None)
            await self._begin(await self.server.resume_point(), {})
        elif self.done >= self.total_steps or self.ending:
            ending: Ending = "stopped" if self.ending else "finished"
            await self.server.end_generation(self.generation, ending, self.done, None)
            await self.server.close(ending, None)
            self.ending = ending

    def _first_step(self) -> Restart | None:
        """What is told once, after the first step of a generation that has come back."""
        if self._restored is None:
            return None
        (started_at_s, load_s), self._restored = self._restored, None
        return Restart(started_at_s=started_at_s, loaded_s=load_s, first_step_s=5 / STEPS_PER_S, step=self.done)

    async def fail_a_save(self, reason: str) -> None:
        """A save that comes to nothing."""
        failed = CheckpointFailed(checkpoint=self._name(), step=self.done, generation=self.generation, reason=reason)
        await self.server.report(Report(generation=self.generation, failed_checkpoints=(failed,)))

    async def run(self, steps_per_s: float) -> None:
        """Step until the end."""
        while not self.ending:
            if not self.away:
                await self.step()
            await asyncio.sleep(1 / steps_per_s)

    def _is_due(self, command: Command) -> bool:
        return (command.not_before_step or 0) <= self.done

    def _take_back(self, due: Sequence[Command], offered: Sequence[Command]) -> list[CommandSettled]:
        """A cancel also decides what it takes back."""
        by = {each.intent.command: each for each in due if isinstance(each.intent, Cancel)}
        return [
            self._outcome(each, "cancelled", reason=by[each.uuid].takes_back(), world_size=0)
            for each in offered
            if each.uuid in by
        ]

    def _settle(self, command: Command) -> CommandSettled:
        before, after = None, None
        intent = command.intent
        match intent.kind:
            case "set_learning_rate":
                before = {"lr": list(self.lr)}
                assert isinstance(intent, SetLearningRate)
                if intent.value == 9.0:
                    return self._outcome(command, "rejected", reason="rank 2: the optimizer's limit is 1.0")
                self._set(intent)
                after = {"lr": list(self.lr)}
            case "set_knobs":
                assert isinstance(intent, SetKnobs)
                before = {change.knob: self.knobs[change.knob] for change in intent.changes}
                self.knobs |= {change.knob: self._new_value(change) for change in intent.changes}
                after = {change.knob: self.knobs[change.knob] for change in intent.changes}
            case "pause" | "resume":
                self.paused = intent.kind == "pause"
            case "stop":
                self.ending = "stopped"
            case "rollback":
                assert isinstance(intent, Rollback)
                self.leaving, after = True, {"branch": intent.branch}
                if intent.checkpoint is not None:
                    _, _, _, step, branch = self._saved[intent.checkpoint]
                    after = reading(intent.checkpoint, step, branch)
        return self._outcome(command, "applied", before=before, after=after)

    def _outcome(self, command: Command, status: str, **more: object) -> CommandSettled:
        ranks = (more["after"],) * self.world_size if more.get("after") else ()
        return CommandSettled.model_validate(
            {
                "uuid": command.uuid,
                "status": status,
                "step": self.done,
                "generation": self.generation,
                "world_size": self.world_size,
                "ranks": ranks,
            }
            | more
        )

    def _set(self, intent: SetLearningRate) -> None:
        chosen = range(len(GROUPS)) if intent.group is None else [find_group(GROUPS, intent.group)]
        for index in chosen:
            assert index is not None
            live = intent.value if intent.value is not None else self.lr[index] * (intent.factor or 1)
            self.scale[index] *= live / self.lr[index]
            self.lr[index] = live

    def _new_value(self, change: Change) -> Any:
        live = self.knobs[change.knob]
        value = list(change.value) if isinstance(change.value, tuple) else change.value
        if not KNOB_FACTS[change.knob]["per_group"]:
            return value if value is not None else live * change.factor
        chosen = range(len(GROUPS)) if change.group is None else [find_group(GROUPS, change.group)]
        return [value if at in chosen else each for at, each in enumerate(live)]

    def _name(self) -> str:
        return f"step-{self.done:08d}-g{self.generation}"

    def _checkpoint(self, intent: SaveCheckpoint) -> CheckpointCommitted:
        self._saved[self._name()] = (self.loss, list(self.scale), dict(self.knobs), self.done, self.branch)
        return CheckpointCommitted(
            checkpoint=self._name(),
            step=self.done,
            generation=self.generation,
            path=f"checkpoints/{self._name()}",
            label=intent.label,
            note=intent.note,
            pinned=intent.pin,
            size_bytes=1_493_172_224,
            world_size=self.world_size,
            branch=self.branch,
            health=self.health,
        )

    def _measure(self) -> list[Point]:
        step, noise = self.done, self._random.gauss
        shape = min(1.0, step / 100) * (0.55 + 0.45 * math.cos(math.pi * step / self.total_steps))
        self.lr = [3e-4 * scale * max(shape, 0.01) for scale in self.scale]
        floor = 2.6 + 0.5 * math.exp(-step / 900)
        self.loss += (floor - self.loss) * self.lr[0] * 45
        values = {
            "loss": self.loss + noise(0, 0.12),
            "lr": self.lr[0],
            "lr/1": self.lr[1],
            "grad_norm": 0.6 + 2.2 * math.exp(-step / 150) + abs(noise(0, 0.15)) + (6 if step % 389 == 0 else 0),
            "steps_per_s": 8.2 + noise(0, 0.25) - (3 if step % 200 == 0 else 0),
        }
        if step % 100 == 0:
            values["eval_loss"] = self.loss + 0.15 + noise(0, 0.02)
        if step in (431, 432):
            values["grad_norm"] = math.inf
            values["loss"] = math.nan
        at_s = self.clock.unix_s()
        return [Point(step=step, name=name, value=value, time_s=at_s) for name, value in values.items()]
