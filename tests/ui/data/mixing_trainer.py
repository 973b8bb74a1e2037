"""A trainer whose ranks draw from two sources, for the console's tests."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from control_plane.core.model.commands import Command
from control_plane.core.model.data import FIRST_STEP, MIXTURE
from control_plane.core.model.intents.data import AddShards, SetMixture
from control_plane.core.model.records import CommandSettled, RefusedCheckpoint
from control_plane.core.rules.decisions import GenerationStart
from tests.ui.fake_trainer import FakeTrainer

CONFIG = """
sources:
  web: {format: jsonl, path: "web/*.jsonl", weight: 0.7, fields: {text: {type: text}}}
  fresh: {format: jsonl, live: true, weight: 0.3, fields: {text: {type: text}}}
"""


class MixingTrainer(FakeTrainer):
    """Ranks that set weights and add shards, and read the mixture back."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.weights = {"web": 0.7, "fresh": 0.3}
        self.records = {"web": 18_204, "fresh": 0}

    async def start(self, checkpoint: str | None = None, refused: Sequence[RefusedCheckpoint] = ()) -> None:
        """Announce the generation, with its mixture."""
        theirs = self.server.start_generation

        async def with_sources(start: GenerationStart) -> int:
            return await theirs(replace(start, facts=start.facts | {MIXTURE: self.mixture()}))

        self.server.start_generation = with_sources  # type: ignore[method-assign]
        try:
            await super().start(checkpoint, refused)
        finally:
            self.server.start_generation = theirs  # type: ignore[method-assign]

    def mixture(self) -> dict[str, dict[str, Any]]:
        """What every rank reads back."""
        drawn_from = {name: weight for name, weight in self.weights.items() if self.records[name]}
        total = sum(drawn_from.values())
        return {
            name: {
                "weight": weight,
                "share": round(drawn_from.get(name, 0.0) / total, 6),
                "records": self.records[name],
                "drawn": self.done * 24 if name == "web" else 0,
                "pass": 1,
                "live": name == "fresh",
            }
            for name, weight in self.weights.items()
        }

    def _settle(self, command: Command) -> CommandSettled:
        before, intent = {MIXTURE: self.mixture()}, command.intent
        match intent:
            case SetMixture():
                self.weights |= intent.weights
            case AddShards():
                self.records[intent.source] += sum(shard.records for shard in intent.shards)
            case _:
                return super()._settle(command)
        after = {MIXTURE: self.mixture(), FIRST_STEP: self.done + 1}
        return self._outcome(command, "applied", before=before, after=after)
