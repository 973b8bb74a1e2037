"""Launch port over processes: one JSON in, one JSON out, bounded in number and time, killed with its children."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from control_plane.api.launching import Launched, LaunchRequest, Requester, ResumeRequest
from control_plane.core.model.errors import Conflict, NotAllowed, Overloaded, SteerwayError, Unavailable
from control_plane.gateway.launching import service_process
from control_plane.gateway.launching.service_process import ServiceProcesses

BY = Requester(id="ann", role="operator", runs=("run-*",))


def port(script: str, **options: Any) -> ServiceProcesses:
    """A port whose service is this script."""
    return ServiceProcesses({"STEERWAY_HOME": "/nowhere"}, [sys.executable, "-c", script], **options)


def launch(processes: ServiceProcesses, **members: Any) -> Launched:
    return asyncio.run(processes.launch(LaunchRequest(config="name: x", **members), BY))


ECHO = """
import json, os, sys
call = json.load(sys.stdin)
assert call["by"] == {"id": "ann", "role": "operator", "runs": ["run-*"]}, call
print("a library prints this")
told = [call["verb"], str(call["run"]), os.environ["STEERWAY_HOME"], " ".join(sys.argv), call["request"]["config"]]
print(json.dumps({"launched": {"runs": [{"run": "r", "job": "r"}], "notes": told}}))
"""


def test_request_goes_in_by_standard_input_and_the_answer_is_the_last_line() -> None:
    launched = launch(port(ECHO), secrets={"HF_TOKEN": "canary-secret"})
    assert launched.notes == ("launch", "None", "/nowhere", "-c", "name: x")
    resumed = asyncio.run(port(ECHO.replace(', call["request"]["config"]', "")).resume("r", ResumeRequest(), BY))
    assert resumed.notes[:2] == ("resume", "r")


@pytest.mark.parametrize(
    ("slug", "kind"), [("conflict", Conflict), ("not-allowed", NotAllowed), ("of-a-later-release", SteerwayError)]
)
def test_problem_is_raised_as_its_class(slug: str, kind: type[SteerwayError]) -> None:
    problem = {"slug": slug, "reason": "it is so", "status": 409, "detail": {"step": 7}}
    script = f"import json\nprint(json.dumps({{'problem': {problem!r}}}))"
    with pytest.raises(kind, match="it is so") as raised:
        launch(port(script))
    assert (type(raised.value), raised.value.detail) == (kind, {"step": 7})


@pytest.mark.parametrize("script", ["", "print('no JSON')", "print('{}')", "import os; os.kill(os.getpid(), 9)"])
def test_service_that_says_nothing_is_unavailable_and_to_be_repeated(script: str) -> None:
    with pytest.raises(Unavailable, match="same uuid"):
        launch(port(script))


def test_secret_in_a_traceback_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    script = "import json, sys\nraise ValueError(json.load(sys.stdin)['request']['secrets']['HF_TOKEN'])"
    with pytest.raises(Unavailable, match="the gateway's log says why") as raised:
        launch(port(script), secrets={"HF_TOKEN": "canary-secret-0123"})
    assert "ValueError: ***" in caplog.text
    assert "canary" not in caplog.text + raised.value.reason


def test_service_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    script = (
        "import pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="was not started within 2 s, and the attempt was ended; repeat"):
        launch(port(script, deadline_s=2.0))
    assert time.monotonic() - begun < 10
    child = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5
    while _lives(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _lives(child)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_at_most_so_many_run_at_once_and_more_wait_or_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_process, "MAX_WAITING", 2)
    script = (
        "import json, os, pathlib, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "mine = folder / str(os.getpid()); mine.touch()\n"
        "seen = len(list(folder.iterdir())); time.sleep(0.5); mine.unlink()\n"
        "print(json.dumps({'launched': {'runs': [{'run': 'r'}], 'notes': [str(seen)]}}))\n"
    )
    processes = port(script, at_once=1)

    async def several() -> list[Any]:
        asked = [processes.launch(LaunchRequest(config="x"), BY) for _ in range(4)]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(several())
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    launched = [answer for answer in answers if isinstance(answer, Launched)]
    assert (len(refused), len(launched)) == (1, 3) or (len(refused), len(launched)) == (2, 2)
    assert {note for answer in launched for note in answer.notes} == {"1"}


def test_arguments_of_the_real_service_hold_nothing_of_a_request() -> None:
    from control_plane.programs import program

    assert program("ray_jobs.service")[1:] == ["-P", "-m", "ray_jobs.service"]
    assert json.loads(LaunchRequest(config="x").model_dump_json())["secrets"] == {}
