"""The operators of a world: they send commands, and ask again until there is an answer."""

from dataclasses import replace
from typing import Any

from control_plane.core.model.commands import INTENT, Command
from control_plane.core.model.errors import Refused
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.records import CheckpointCommitted, Parent
from control_plane.core.rules.branch_rules import AdoptedCheckpoint

ADOPTED = "-of-"
"""In the name of a checkpoint that was another run's."""


class Operators:
    """What a `World` lets its operators do."""

    def submit(
        self,
        kind: str,
        not_before_step: int | None = None,
        not_after_step: int | None = None,
        based_on_seq: int | None = None,
        **body: Any,
    ) -> Command:
        """An operator sends a new command. Raises `Refused`; without an answer the operator keeps asking."""
        intent = INTENT.validate_python({"kind": kind, **body})
        times = {"not_before_step": not_before_step, "not_after_step": not_after_step, "based_on_seq": based_on_seq}
        command = Command.model_validate({"uuid": self.new_uuid(), "author": "ann", "intent": intent, **times})
        self.send(command)
        return command

    def adopt(self, name: str, branch: str) -> Command:
        """An operator has a run that was forked at this checkpoint, and did nothing since, adopted as this branch.

        Raises `Refused`.
        """
        saved, here = self.files[name], f"{name}{ADOPTED}{branch}"
        intent = AdoptCheckpoint(run="other", checkpoint=name, branch=branch)
        command = Command(uuid=self.new_uuid(), author="ann", intent=intent)
        if here not in self.files:
            self.files[here] = replace(saved, branch=branch)
        self.brought[command.uuid] = AdoptedCheckpoint(
            origin=Parent(kind="adopted", run="other", checkpoint=name, step=saved.step),
            checkpoint=CheckpointCommitted(
                checkpoint=here, step=saved.step, generation=0, path=f"checkpoints/{here}", pinned=True, branch=branch
            ),
        )
        self.send(command)
        return command

    def send(self, command: Command) -> None:
        """An operator sends this command, perhaps not for the first time. Raises `Refused`."""
        self.unanswered[command.uuid] = command
        try:
            adopted = self.brought.get(command.uuid)
            answer = self._ask(lambda server: server.submit(command, adopted), self._whom())
        except Refused:
            self.unanswered.pop(command.uuid)
            raise
        if answer is not None:
            self.unanswered.pop(command.uuid)
            self.books.acknowledged[command.uuid] = answer
        self.check()

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
