"""Every REST route: what it answers when all is well."""

import threading
from uuid import UUID, uuid4

from control_plane.api.messages import CommandView, Measurements, RunSummary, Snapshot
from control_plane.core.model.records import Entry
from tests.core import examples
from tests.gateway.conftest import Rig
from tests.gateway.rig import API, RUN, settle

PAUSE = {"kind": "pause"}


def test_health_without_a_token_answers(rig: Rig) -> None:
    answer = rig.web.get(f"{API}/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")


def test_runs_are_listed_in_one_line_each(rig: Rig) -> None:
    (run,) = rig.get("/runs").json()["runs"]
    assert RunSummary.model_validate(run) == RunSummary(
        run=RUN,
        name="a run",
        status="running",
        step=4,
        total_steps=100,
        created_at=run["created_at"],
        world_size=2,
        owner="ann",
    )


def test_run_is_answered_as_a_snapshot_with_its_seq_as_etag(rig: Rig) -> None:
    answer = rig.get(f"/runs/{RUN}")
    snapshot = Snapshot.model_validate_json(answer.content)
    assert snapshot.step == 4
    assert answer.headers["ETag"] == f'"{snapshot.seq}"'
    assert answer.headers["Cache-Control"] == "no-store"
    assert "access-control-allow-origin" not in answer.headers


def test_diverged_loss_arrives_as_nan_and_not_as_null(rig: Rig) -> None:
    assert rig.get(f"/runs/{RUN}").json()["latest"]["loss"] == "NaN"
    points = Measurements.model_validate_json(rig.get(f"/runs/{RUN}/metrics").content).points
    assert [point.value != point.value for point in points] == [False, False, True]


def test_command_is_durable_when_202_is_answered(rig: Rig) -> None:
    uuid = str(uuid4())
    answer = rig.post(f"/runs/{RUN}/commands", json={"intent": PAUSE, "uuid": uuid, "reason": "lunch"})
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"{API}/runs/{RUN}/commands/{uuid}"
    seq = answer.json()["seq"]
    (line,) = [line for line in rig.get(f"/runs/{RUN}/journal").json()["entries"] if line["seq"] == seq]
    assert (line["uuid"], line["author"], line["body"]["command"]["reason"]) == (uuid, "test-operator", "lunch")


def test_command_sent_twice_is_taken_once(rig: Rig) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    first, second = (rig.post(f"/runs/{RUN}/commands", json={"intent": PAUSE}, headers=key) for _ in range(2))
    assert first.json() == second.json()
    assert len(rig.get(f"/runs/{RUN}").json()["commands"]) == 1


def test_command_without_a_uuid_gets_one(rig: Rig) -> None:
    receipt = rig.post(f"/runs/{RUN}/commands", json={"intent": PAUSE}).json()
    assert UUID(receipt["uuid"]).version == 4


def test_command_with_a_used_uuid_is_a_conflict(rig: Rig) -> None:
    body = {"intent": PAUSE, "uuid": str(uuid4())}
    rig.post(f"/runs/{RUN}/commands", json=body)
    answer = rig.post(f"/runs/{RUN}/commands", json=body | {"intent": {"kind": "evaluate"}})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")


def test_command_waits_until_it_is_settled(rig: Rig) -> None:
    uuid = UUID(rig.post(f"/runs/{RUN}/commands", json={"intent": PAUSE}).json()["uuid"])
    settling = threading.Timer(0.2, rig.call, (settle, rig.server, uuid))
    settling.start()
    answer = rig.get(f"/runs/{RUN}/commands/{uuid}?wait_s=20")
    settling.join()
    view = CommandView.model_validate_json(answer.content)
    assert (view.status, view.settled and view.settled.step) == ("applied", 10)


def test_command_that_is_not_settled_in_time_is_answered_as_accepted(rig: Rig) -> None:
    uuid = rig.post(f"/runs/{RUN}/commands", json={"intent": PAUSE}).json()["uuid"]
    assert rig.get(f"/runs/{RUN}/commands/{uuid}?wait_s=0.05").json()["status"] == "accepted"


def test_journal_is_read_from_a_position_on(rig: Rig) -> None:
    page = rig.get(f"/runs/{RUN}/journal?after=1&limit=1").json()
    (line,) = page["entries"]
    assert (line["seq"], page["last_seq"]) == (2, 2)
    assert Entry.from_line(line).line() == line


def test_journal_past_its_end_answers_where_to_go_on_from(rig: Rig) -> None:
    assert rig.get(f"/runs/{RUN}/journal?after=50").json() == {"entries": [], "last_seq": 50}


def test_journal_waits_for_the_next_entry(rig: Rig) -> None:
    seq = rig.get(f"/runs/{RUN}").json()["seq"]
    submitting = threading.Timer(0.2, rig.call, (rig.server.submit, examples.command(1)))
    submitting.start()
    page = rig.get(f"/runs/{RUN}/journal?after={seq}&wait_s=20").json()
    submitting.join()
    assert [line["type"] for line in page["entries"]] == ["CommandAccepted"]


def test_nan_in_a_reading_is_spelled_out_in_the_journal(rig: Rig) -> None:
    uuid = UUID(rig.post(f"/runs/{RUN}/commands", json={"intent": {"kind": "evaluate"}}).json()["uuid"])
    rig.call(settle, rig.server, uuid, 10, {"eval_loss": float("nan")})
    last = rig.get(f"/runs/{RUN}/journal").json()["entries"][-1]
    assert last["body"]["after"] == {"eval_loss": "NaN"}


def test_metrics_are_read_by_name_and_cursor(rig: Rig) -> None:
    answer = rig.get(f"/runs/{RUN}/metrics?after=1&name=loss&name=lr&limit=1").json()
    assert ([point["name"] for point in answer["points"]], answer["cursor"]) == (["lr"], 3)


def test_logs_are_the_last_lines_of_one_source(rig: Rig) -> None:
    logs = rig.runs.files(RUN).logs
    logs.mkdir()
    for source in ("driver", "rank-0", "rank-10", "rank-2"):
        (logs / f"{source}.log").write_bytes(b"first\nsecond \xff\nthird\n")
    answer = rig.get(f"/runs/{RUN}/logs?source=rank-0&lines=2").json()
    assert answer["text"] == "second \N{REPLACEMENT CHARACTER}\nthird\n"
    assert answer["sources"] == ["driver", "rank-0", "rank-2", "rank-10"]


def test_log_that_is_huge_is_answered_in_bounds(rig: Rig) -> None:
    logs = rig.runs.files(RUN).logs
    logs.mkdir()
    (logs / "driver.log").write_text("x" * 3_000_000)
    assert 0 < len(rig.get(f"/runs/{RUN}/logs").content) < 300_000


def test_openapi_names_every_operation_once(rig: Rig) -> None:
    schema = rig.get("/openapi.json").json()
    operations = [operation["operationId"] for path in schema["paths"].values() for operation in path.values()]
    assert schema["openapi"].startswith("3.1")
    assert sorted(operations) == [
        "add_records",
        "check_cluster",
        "delete_run",
        "fork_run",
        "health",
        "launch_run",
        "list_runs",
        "openapi_schema",
        "read_agent",
        "read_alerts",
        "read_bundle",
        "read_cluster",
        "read_command",
        "read_comparison",
        "read_data",
        "read_job",
        "read_journal",
        "read_logs",
        "read_metrics",
        "read_queue",
        "read_replay_check",
        "read_run",
        "read_tree",
        "read_usage",
        "replay_run",
        "resume_run",
        "submit_command",
        "upload_bundle",
    ]
