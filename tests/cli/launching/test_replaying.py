"""`steer replay` waits for its run, also while that is queued and has no journal yet."""

from typing import Any, cast

import pytest

from control_plane.cli.launching import effect_arms, fork
from control_plane.client import SteerwayClient
from control_plane.core.model.errors import NotFound, SteerwayError


class Gateway:
    """Answers snapshots one after the other. `known`: whether there is such a run at all."""

    def __init__(self, answers: list[Any], known: bool = True) -> None:
        self.answers, self.known = answers, known

    def snapshot(self, run: str) -> Any:
        """Return the next answer, or raise it."""
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def job(self, run: str) -> Any:
        """Return a job that lives."""
        if not self.known:
            raise NotFound(f"there is no run {run!r}")
        return Alive()


class Alive:
    """A job that lives."""

    is_alive, status = True, "RUNNING"


class Seen:
    """A snapshot, as far as it is looked at."""

    def __init__(self, status: str, closed: bool) -> None:
        self.status, self.closed, self.step, self.reason = status, closed, 3, "the disk is full"


def wait(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fork, effect_arms):
        monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)
    fork._wait(cast(SteerwayClient, gateway), "replay-1")


def test_it_waits_while_the_run_is_queued_and_has_no_journal_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    queued = [NotFound("no journal yet"), NotFound("no journal yet")]
    gateway = Gateway([*queued, Seen("running", False), Seen("finished", True)])
    wait(gateway, monkeypatch)
    assert gateway.answers == []


def test_a_run_that_is_gone_and_one_that_failed_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound):
        wait(Gateway([NotFound("deleted")], known=False), monkeypatch)
    with pytest.raises(SteerwayError, match="the replay replay-1 failed at step 3: the disk is full"):
        wait(Gateway([Seen("failed", True)]), monkeypatch)
