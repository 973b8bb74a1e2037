"""Records to fill a journal with."""

from uuid import UUID

from control_plane.core.model.commands import Command, SetLearningRate
from control_plane.core.model.records import CommandAccepted, CommandSettled, Entry, Record, TermStarted

NOW = "2025-01-01T00:00:00.000Z"


def command(number: int) -> Command:
    return Command(
        uuid=UUID(int=number), author="ada", intent=SetLearningRate(value=0.1 + 0.2), reason="größer \u2028 Schritt"
    )


def accepted(number: int) -> Record:
    return CommandAccepted(command=command(number))


def settled(number: int) -> Record:
    reading = {"lr": [0.1 + 0.2, 1e-300], "loss": "NaN"}
    return CommandSettled(uuid=UUID(int=number), status="applied", step=number, generation=1, after=reading)


def started(recovered: int = 0) -> Record:
    return TermStarted(term=1, recovered=recovered)


def numbers(entries: list[Entry]) -> list[int]:
    """Which `accepted(number)` these are."""
    return [entry.record.command.uuid.int for entry in entries if isinstance(entry.record, CommandAccepted)]
