"""`steer queue`, `du`, `delete` and `quota`, over a gateway on a socket."""

import json
from pathlib import Path
from uuid import uuid4

import pytest

from control_plane.api.launching import Submission
from control_plane.core.rules.capacity import Demand
from control_plane.core.rules.start_order import Quota
from control_plane.runs.queue_files import QueueEntry, QueueFolder
from control_plane.runs.quotas import QuotaBook, quotas_path
from tests.cli.conftest import Steer
from tests.gateway.rig import RUN, LiveGateway


def submitted_by(gateway: LiveGateway, owner: str) -> None:
    """Give the gateway's run an owner and a config."""
    files = gateway.runs.files(RUN)
    files.config.write_text("x")
    record = Submission(uuid=uuid4(), owner=owner, role="operator", submitted_at="2027-01-01T00:00:00")
    files.submission.write_text(record.model_dump_json())


def test_queue_lists_who_waits_and_why(idle_gateway: LiveGateway, steer: Steer, tmp_path: Path) -> None:
    assert steer("queue").stdout == "no run waits; 0 started\n"
    demand = Demand(count=3, most=3, per_rank={"CPU": 1.0})
    QueueFolder(tmp_path).write(
        QueueEntry(run="wide", request=uuid4(), owner="ana", since_s=1e9, demand=demand, priority=2)
    )
    head, line = steer("queue").stdout.splitlines()
    assert head.split() == ["PLACE", "RUN", "OWNER", "PRIORITY", "NEEDS", "SINCE", "REASON"]
    assert "needs 3 CPUs (3 ranks with 1 CPU each), 2 free" in line
    [waiting] = json.loads(steer("queue", "--json").stdout)["waiting"]
    assert (waiting["run"], waiting["owner"], waiting["priority"]) == ("wide", "ana", 2)


def test_du_shows_runs_and_owners(idle_gateway: LiveGateway, steer: Steer) -> None:
    submitted_by(idle_gateway, "ana")
    answer = steer("du")
    assert answer.exit_code == 0, answer.stderr
    lines = answer.stdout.splitlines()
    titles = "RUN OWNER TOTAL CHECKPOINTS JOURNAL METRICS CODE WORK LOGS OTHER"
    assert " ".join(lines[0].split()) == titles
    assert lines[1].split()[:2] == [RUN, "ana"]
    assert "ana" in lines[-1]
    usage = json.loads(steer("du", "--json").stdout)
    assert usage["runs"][0]["journal"] > 0


def test_delete_asks_refuses_what_is_active_and_is_for_the_owner(idle_gateway: LiveGateway, steer: Steer) -> None:
    submitted_by(idle_gateway, "test-operator")
    unasked = steer("delete", RUN)
    assert (unasked.exit_code, "--yes" in unasked.stderr) == (2, True)
    active = steer("delete", RUN, "--yes")
    assert (active.exit_code, f"steer stop {RUN}" in active.stderr) == (5, True)
    idle_gateway.call(idle_gateway.server.close("stopped", None))
    submitted_by(idle_gateway, "ben")
    other = steer("delete", RUN, "--yes")
    assert (other.exit_code, "belongs to ben" in other.stderr) == (4, True)
    submitted_by(idle_gateway, "test-operator")
    deleted = steer("delete", RUN, "--yes")
    assert deleted.stdout.startswith(f"deleted run {RUN} ("), deleted.stderr
    assert not idle_gateway.runs.files(RUN).root.exists()


def test_quotas_are_set_listed_and_removed(steer: Steer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path))
    done = steer("quota", "set", "ana", "--runs", "2", "--gpus", "4", "--bytes", "500G")
    assert done.stdout == "quota of ana: 2 runs, 4 GPUs, 500 GB of files\n"
    assert QuotaBook.from_file(quotas_path(tmp_path)).of("ana") == Quota(runs=2, gpus=4.0, bytes=500 * 10**9)
    assert steer("quota", "set", "--cpus", "16").stdout == "quota of (default): 16 CPUs\n"
    assert steer("quota", "set", "ana", "--gpus", "none").exit_code == 0
    assert steer("quota", "keep-ended", "30").stdout == "ended runs are deleted after 30 days\n"
    listed = steer("quota", "list").stdout.splitlines()
    assert [line.split()[:5] for line in listed[:3]] == [
        ["OWNER", "RUNS", "CPUS", "GPUS", "BYTES"],
        ["(default)", "-", "16", "-", "-"],
        ["ana", "2", "-", "-", "500"],
    ]
    assert "30 days" in listed[3]
    assert steer("quota", "remove", "ana").stdout == "quota of ana: 16 CPUs\n"
    assert steer("quota", "keep-ended", "none").stdout == "ended runs are kept\n"
    for words in (
        ("set", "ana"),
        ("set", "ana", "--runs", "1.5"),
        ("set", "ana", "--bytes", "1X"),
        ("set", "--cpus", "-1"),
    ):
        wrong = steer("quota", *words)
        assert wrong.exit_code == 2, words
        assert "Traceback" not in wrong.stderr
