"""Who may delete which run, and which ended runs are past their time."""

import itertools

import pytest

from control_plane.core.model.errors import Conflict, NotAllowed
from control_plane.core.rules.run_deletion import (
    DAY_S,
    RunFacts,
    check_deletable,
    check_may_delete,
    expired_runs,
)

ROLES = ("viewer", "agent", "operator", "admin")
STATUSES = ("queued", "waiting", "running", "paused", "recovering", "switching", "finished", "stopped", "failed")


@pytest.mark.parametrize(("role", "by", "owner"), list(itertools.product(ROLES, ("ana", "ben"), ("ana", None))))
def test_the_owner_as_an_operator_and_admins_may_delete(role: str, by: str, owner: str | None) -> None:
    if role == "admin" or (role == "operator" and by == owner):
        check_may_delete(by, role, "run", owner)
    else:
        with pytest.raises(NotAllowed):
            check_may_delete(by, role, "run", owner)


@pytest.mark.parametrize(("status", "job_is_alive"), list(itertools.product(STATUSES, (True, False))))
def test_only_ended_and_queued_runs_go(status: str, job_is_alive: bool) -> None:
    run = RunFacts("a", status)
    if status == "queued" or (status in ("finished", "stopped", "failed") and not job_is_alive):
        check_deletable(run, [run], job_is_alive)
    else:
        with pytest.raises(Conflict, match="steer stop a"):
            check_deletable(run, [run], job_is_alive)


@pytest.mark.parametrize("status", STATUSES)
def test_a_parent_stays_while_a_run_of_it_has_not_ended(status: str) -> None:
    run, child = RunFacts("a", "finished"), RunFacts("b", status, parent="a")
    if status in ("finished", "stopped", "failed"):
        check_deletable(run, [run, child], False)
    else:
        with pytest.raises(Conflict, match="needed by run b"):
            check_deletable(run, [run, child], False)


def test_ended_runs_are_kept_for_so_many_days() -> None:
    now = 100 * DAY_S
    runs = [
        RunFacts("old", "finished", ended_at_s=now - 31 * DAY_S),
        RunFacts("young", "finished", ended_at_s=now - 29 * DAY_S),
        RunFacts("active", "running", ended_at_s=0.0),
        RunFacts("queued", "queued", ended_at_s=0.0),
        RunFacts("parent", "stopped", ended_at_s=0.0),
        RunFacts("child", "running", parent="parent"),
        RunFacts("unknown", "failed"),
    ]
    assert expired_runs(runs, 30.0, now) == ["old"]
    assert expired_runs(runs, None, now) == []
