"""A whole run's journal for the tests of its format, with every record and every intent: `write_scenario`."""

from pathlib import Path

from control_plane.core.model.records import Record, RunClosed, TermStarted
from control_plane.storage.journal.writer import Disk, Journal
from tests.core.examples import EVERY_INTENT, accepted, created, every_record, settled

FAST = Disk(fsync=lambda descriptor: None)
NOW = "2026-02-03T04:05:06.789Z"


def write_scenario(directory: Path) -> None:
    """Three terms: every record there is, a command settled in the term after its own, and an end."""
    whole = every_record()
    first = Journal.open(directory, FAST)
    first.append(whole[:2], NOW)
    first.append(whole[2 : 3 + len(EVERY_INTENT)], NOW)
    first.close()
    second = Journal.open(directory, FAST)
    second.append([TermStarted(term=2, recovered=3 + len(EVERY_INTENT))], NOW)
    for record in whole[3 + len(EVERY_INTENT) :]:
        second.append([record], NOW)
    second.close()
    third = Journal.open(directory, FAST)
    third.append([TermStarted(term=3, recovered=len(third.entries))], NOW)
    third.append([settled(4, step=13), RunClosed(ending="stopped", reason=None)], NOW)
    third.close()


def write_small(directory: Path) -> None:
    """Two terms of a small run: seven records."""
    _write(
        directory,
        [[created(), TermStarted(term=1, recovered=1)], [accepted(1, "pause")]],
        [[TermStarted(term=2, recovered=3)], [accepted(2, "stop"), settled(1)], [settled(2)]],
    )


def write_three_terms(directory: Path) -> None:
    """Three terms: ten records, some of which were written together."""
    _write(
        directory,
        [[created(), TermStarted(term=1, recovered=1)], [accepted(1, "pause"), accepted(2)]],
        [[TermStarted(term=2, recovered=4)], [settled(1)], [accepted(3, "stop"), settled(2, "rejected", reason="no")]],
        [[TermStarted(term=3, recovered=8)], [settled(3)]],
    )


def _write(directory: Path, *terms: list[list[Record]]) -> None:
    for writes in terms:
        journal = Journal.open(directory, FAST)
        for records in writes:
            journal.append(records, NOW)
        journal.close()
