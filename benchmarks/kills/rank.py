"""Fake of rank 0, for control servers that are killed.

It polls for offers, applies the commands that are not in its ledger, and retries the report of each outcome until it is
answered. It reports saves, too, so that the retention has checkpoints to remove.
"""

import time
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks.kills.clients import ANSWER_LIMIT_S, LoadClient, LoadOperator, ServerLocation
from control_plane.api.messages import Report
from control_plane.core.model.commands import Command
from control_plane.core.model.records import CheckpointCommitted, CommandSettled
from control_plane.storage.checkpoint.manifest import MANIFEST

KEPT = 4
POLL_S = 0.05
SAVES = 0.6
OLD_NEWS = 0.1
"""Shares of the reports with a save, and with an outcome that was reported before."""


class Rank(LoadClient):
    """Client that acts as rank 0 on behalf of all ranks."""

    def __init__(self, place: ServerLocation, seed: str, root: Path) -> None:
        """`root` is the run's folder."""
        super().__init__(place, seed)
        self._checkpoints = root / "checkpoints"
        self.step = 0
        # The ledger of decisions, in the order in which they were taken.
        self.ledger = dict[UUID, CommandSettled]()
        # Outcomes whose report was answered, and checkpoints likewise.
        self.told, self.committed = set[UUID](), set[str]()
        self.offered_again = list[UUID]()

    def work(self) -> None:
        """Train until the end, and until no command is pending."""
        self._begin()
        revision, empty, silent = -1, False, False
        while not (silent and empty):
            silent = self.place.silent.is_set()  # before the question: its answer is then the last word
            answer = self.line.ask("offers", [1, revision, POLL_S])
            if "ok" not in answer:
                self.problems.append(f"offers: {answer['reason']}")
                return
            # A new server counts revisions from the beginning.
            revision = answer["ok"]["revision"] if self.dice.random() < 0.8 else -1
            offered = [Command.model_validate(each) for each in answer["ok"]["commands"]]
            empty = not offered and self._quiet()
            if offered:
                self._boundary(offered)

    def _quiet(self) -> bool:
        """Return whether nothing is offered at any revision."""
        answer = self.line.ask("offers", [1, -1, 0.0])
        return "ok" in answer and not answer["ok"]["commands"]

    def _begin(self) -> None:
        start = {
            "uuid": str(UUID(int=self.dice.getrandbits(128), version=4)),
            "ranks": [{"rank": 0, "node": "here", "pid": 1, "device": "cpu"}],
            "step": 0,
            "total_steps": 10**9,
            "knobs": {"lr": [1e-3], "groups": ["all"]},
            "facts": {},
            "retention": {"keep_last": KEPT},
        }
        number = self.line.ask("start", start).get("ok")
        if number != 1:
            self.problems.append(f"the first start of the trainers is number {number}")

    def _boundary(self, offered: list[Command]) -> None:
        self.step += 1
        for command in offered:
            if command.uuid in self.told:
                # Its outcome is durable already: ranks without a ledger would apply it twice.
                self.offered_again.append(command.uuid)
            if command.uuid not in self.ledger:
                self.ledger[command.uuid] = self._apply(command)
        outcomes = [self.ledger[command.uuid] for command in offered]
        if self.told and self.dice.random() < OLD_NEWS:
            outcomes.insert(0, self.ledger[self.dice.choice(sorted(self.told))])
        saved = self._save() if self.dice.random() < SAVES else None
        report = Report(generation=1, outcomes=tuple(outcomes), checkpoints=(saved,) if saved else ())
        answer = self.line.ask("report", report.model_dump(mode="json"))
        if "error" in answer:
            self.problems.append(f"the report of step {self.step}: {answer['reason']}")
        self.told |= {outcome.uuid for outcome in outcomes}
        if saved:
            self.committed.add(saved.checkpoint)
            self.place.checkpoints.append(saved.checkpoint)

    def _apply(self, command: Command) -> CommandSettled:
        if not command.intent.needs_ranks:
            self.problems.append(f"the ranks were offered '{command.describe()}'")
        return CommandSettled(
            uuid=command.uuid, status="applied", step=self.step, generation=1, after={"lr": [1e-4]}, world_size=1
        )

    def _save(self) -> CheckpointCommitted:
        name = f"step-{self.step}"
        (self._checkpoints / name / "state").mkdir(parents=True)
        (self._checkpoints / name / MANIFEST).write_text("{}")
        return CheckpointCommitted(checkpoint=name, step=self.step, generation=1, path=f"checkpoints/{name}")


def wait_for(clients: list[LoadClient], place: ServerLocation, limit_s: float) -> None:
    """Let the clients finish their requests; those that have not after the limit give up."""
    deadline = time.monotonic() + limit_s
    place.ending.set()
    for client in sorted(clients, key=lambda client: not isinstance(client, LoadOperator)):
        if not isinstance(client, LoadOperator):
            place.silent.set()
        client.join(max(0.0, deadline - time.monotonic()))
    place.over.set()
    for client in clients:
        client.join(ANSWER_LIMIT_S + 1)


def dump(entry: Any) -> Any:
    """Return an entry as a client receives it."""
    return entry.model_dump(mode="json")
