"""What changes nothing: tables for people, JSON for programs."""

import json
import subprocess
import sys

import pytest

from control_plane.cli.commands.show import news
from control_plane.core.model.records import Entry
from control_plane.storage.layout import RunFiles
from tests.cli.conftest import Steer
from tests.gateway.rig import RUN, LiveGateway


def write_log(gateway: LiveGateway, source: str, text: str) -> None:
    files = RunFiles(gateway.runs.root / RUN)
    files.logs.mkdir(exist_ok=True)
    (files.logs / f"{source}.log").write_text(text)


def test_runs_lists_one_line_a_run(gateway: LiveGateway, steer: Steer) -> None:
    head, row = steer("runs").stdout.splitlines()
    assert head.split() == ["RUN", "STATUS", "STEP", "RANKS", "CREATED", "OWNER"]
    assert row.split()[:4] == [RUN, "running", "4/100", "2"]
    assert row.split()[5] == "ann"


def test_runs_as_json_parses(gateway: LiveGateway, steer: Steer) -> None:
    (run,) = json.loads(steer("runs", "--json").stdout)
    assert (run["run"], run["world_size"]) == (RUN, 2)


def test_status_without_a_run_shows_the_active_one(gateway: LiveGateway, steer: Steer) -> None:
    shown = steer("status").stdout
    assert RUN in shown
    assert "4/100" in shown
    assert "nan" in shown


def test_status_as_json_is_one_object_with_nan_as_a_string(gateway: LiveGateway, steer: Steer) -> None:
    snapshot = json.loads(steer("status", RUN, "--json").stdout)
    assert snapshot["latest"]["loss"] == "NaN"


def test_status_of_a_failed_run_exits_with_seven(gateway: LiveGateway, steer: Steer) -> None:
    gateway.call(gateway.server.close("failed", "rank 1 ran out of memory"))
    answer = steer("status", RUN)
    assert answer.exit_code == 7
    assert "rank 1 ran out of memory" in answer.stdout


def test_status_watch_ends_with_the_run_and_tells_each_command_once(gateway: LiveGateway, steer: Steer) -> None:
    steer("set", RUN, "lr=1e-4", "--reason", "too hot")
    gateway.call(gateway.server.close("finished", None))
    shown = steer("status", RUN, "--watch").stdout.splitlines()
    told = [
        line for line in shown if line.startswith("test-operator: lr = 0.0001 because 'too hot': applied at step 7")
    ]
    assert len(told) == 1
    assert any(line.startswith("status finished") for line in shown)


def test_status_watch_as_json_prints_objects_only(gateway: LiveGateway, steer: Steer) -> None:
    gateway.call(gateway.server.close("finished", None))
    lines = steer("status", RUN, "--watch", "--json").stdout.splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["finished"]


def test_journal_as_json_can_be_read_back(gateway: LiveGateway, steer: Steer) -> None:
    steer("set", RUN, "lr=1e-4")
    lines = steer("journal", RUN, "--json").stdout.splitlines()
    entries = [Entry.from_line(json.loads(line)) for line in lines]
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert entries[-1].record.type == "CommandSettled"


def test_journal_as_json_has_five_fields_for_every_command(gateway: LiveGateway, steer: Steer) -> None:
    """A program needs no second line to know which command a line is about."""
    steer("set", RUN, "lr=1e-4")
    steer("save", RUN, "--label", "calm", "--pin")
    lines = map(json.loads, steer("journal", RUN, "--json").stdout.splitlines())
    about = [line for line in lines if line["type"].startswith("Command")]
    assert all({"uuid", "time", "status", "command", "arguments"} <= line.keys() for line in about)
    told = [(line["command"], line["arguments"], line["status"]) for line in about]
    rate, save = {"value": 1e-4}, {"label": "calm", "pin": True}
    assert [(kind, status) for kind, _, status in told] == [
        ("set_learning_rate", "accepted"),
        ("set_learning_rate", "applied"),
        ("save_checkpoint", "accepted"),
        ("save_checkpoint", "applied"),
    ]
    assert all(rate.items() <= arguments.items() for kind, arguments, _ in told if kind == "set_learning_rate")
    assert all(save.items() <= arguments.items() for kind, arguments, _ in told if kind == "save_checkpoint")
    assert len({line["uuid"] for line in about}) == 2


def test_journal_for_people_says_who_and_what(gateway: LiveGateway, steer: Steer) -> None:
    steer("set", RUN, "lr=1e-4", "--reason", "too hot")
    accepted, settled = steer("journal", RUN).stdout.splitlines()[-2:]
    assert "test-operator: lr = 0.0001 (too hot)" in accepted
    assert "applied at step 7 lr 0.0005 -> 0.0001" in settled


def test_journal_followed_ends_with_the_run(gateway: LiveGateway, steer: Steer) -> None:
    gateway.call(gateway.server.close("finished", None))
    lines = steer("journal", RUN, "--follow", "--json").stdout.splitlines()
    assert json.loads(lines[-1])["type"] == "RunClosed"


def test_logs_of_a_rank_are_printed_as_they_are(gateway: LiveGateway, steer: Steer) -> None:
    write_log(gateway, "rank-1", "one\n[bold]two[/bold]\n")
    assert steer("logs", RUN, "--source", "rank-1").stdout == "one\n[bold]two[/bold]\n"


def test_logs_of_nobody_are_not_found(gateway: LiveGateway, steer: Steer) -> None:
    write_log(gateway, "driver", "one\n")
    assert steer("logs", RUN, "--source", "rank-9").exit_code == 3


@pytest.mark.parametrize(
    ("seen", "latest", "new"),
    [
        ([], ["a"], ["a"]),
        (["a"], ["a"], []),
        (["a", "b"], ["a", "b", "c"], ["c"]),
        (["b", "c"], ["a", "b", "c", "d"], ["d"]),
        (["a", "b", "c"], ["c", "d"], ["d"]),
        (["a"], ["x", "y"], ["x", "y"]),
    ],
)
def test_news_is_what_came_after(seen: list[str], latest: list[str], new: list[str]) -> None:
    assert news(seen, latest) == new


def test_steer_imports_no_framework() -> None:
    program = (
        "import sys, control_plane.cli.main, control_plane.cli.launching.run, control_plane.client\n"
        "heavy = {'ray', 'torch', 'transformers', 'deepspeed', 'streamlit', 'fastapi', 'openai', 'httpx'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"
