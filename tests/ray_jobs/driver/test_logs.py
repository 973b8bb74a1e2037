"""A rank's log says each warning once, whatever the libraries do to Python's own memory of them."""

import logging

from ray_jobs import train
from ray_jobs.train import DropRepeated


def told(*messages: str) -> list[str]:
    once = DropRepeated()
    records = [logging.LogRecord("py.warnings", logging.WARNING, "", 0, "%s", (each,), None) for each in messages]
    return [record.getMessage() for record in records if once.filter(record)]


def test_warning_is_told_the_first_time() -> None:
    assert told("a", "b", "a", "a", "c", "b") == ["a", "b", "c"]


def test_so_many_warnings_that_nobody_remembers_them_are_told_again() -> None:
    many = [str(number) for number in range(train.MAX_WARNINGS)]
    assert told(*many, "late", "late", "0")[-2:] == ["late", "late"]
