"""A training that costs nothing: plausible curves, and a rank 0 that obeys like the real one."""

import asyncio
import math
import random
import time
from collections.abc import Sequence
from uuid import uuid4

from control_plane.core.commands import Command, SetLearningRate
from control_plane.core.decisions import GenerationStart, find_group
from control_plane.core.records import CheckpointCommitted, CommandSettled, Entry, RankPlace, Reading, Record
from control_plane.handle import Measurements, Point, Progress, Report
from control_plane.server import ControlServer

GROUPS = ["decay", "no_decay"]


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


class FakeTrainer:
    """Rank 0 and the ranks it speaks for. Every `step` makes one step, or holds if paused, and settles commands."""

    def __init__(self, server: ControlServer, ranks: int = 4, total_steps: int = 2000, seed: int = 7) -> None:
        self.server, self.world_size, self.total_steps = server, ranks, total_steps
        self.done, self.paused, self.ending = 0, False, ""
        self.lr, self.scale = [3e-4, 3e-4], [1.0, 1.0]
        self.loss = 10.4
        self.generation = 0
        self.started_s = time.time()
        self._random = random.Random(seed)

    async def start(self) -> None:
        """Announce the generation."""
        places = tuple(
            RankPlace(rank=r, node=f"node-{r // 4}", pid=4000 + r, device="cpu") for r in range(self.world_size)
        )
        self.generation = await self.server.start_generation(
            GenerationStart(uuid4(), places, 0, self.total_steps, self._knobs(), {"model": "gpt2"})
        )

    def _knobs(self) -> Reading:
        return {"lr": list(self.lr), "groups": GROUPS}

    async def step(self) -> None:
        """One step boundary and, unless paused, one step."""
        offer = await self.server.offers(self.generation, -1, 0.0)
        outcomes = [self._settle(command) for command in offer.commands if self._is_due(command)]
        points: list[Point] = []
        if not self.paused and not self.ending:
            self.done += 1
            points = self._measure()
        checkpoints = [self._checkpoint()] if any(o.after == {"saved": True} for o in outcomes) else []
        progress = Progress(
            step=self.done,
            total_steps=self.total_steps,
            phase="paused" if self.paused else "training",
            steps_per_s=8.2,
        )
        await self.server.report(
            Report(
                generation=self.generation,
                outcomes=tuple(outcomes),
                points=tuple(points),
                checkpoints=tuple(checkpoints),
                progress=progress,
            )
        )
        if self.done >= self.total_steps or self.ending:
            ending = "stopped" if self.ending else "finished"
            await self.server.end_generation(self.generation, ending, self.done, None)
            await self.server.close(ending, None)
            self.ending = ending

    async def run(self, steps_per_s: float) -> None:
        """Step until the end."""
        while not self.ending:
            await self.step()
            await asyncio.sleep(1 / steps_per_s)

    def _is_due(self, command: Command) -> bool:
        return (command.not_before_step or 0) <= self.done

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
            case "pause" | "resume":
                self.paused = intent.kind == "pause"
            case "stop":
                self.ending = "stopped"
            case "save_checkpoint":
                after = {"saved": True}
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

    def _checkpoint(self) -> CheckpointCommitted:
        return CheckpointCommitted(
            checkpoint=f"step-{self.done:06d}", step=self.done, generation=1, path=f"checkpoints/step-{self.done:06d}"
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
        at = self.started_s + step / 8.2
        return [Point(step=step, name=name, value=value, time_s=at) for name, value in values.items()]
