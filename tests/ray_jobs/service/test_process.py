"""The launch service as a process: what it reads and writes, and that it is killed and repeated without harm."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_ports

CALL = {
    "verb": "launch",
    "request": {"config": "name: a\nseed: x", "secrets": {"HF_TOKEN": "canary-secret"}},
    "by": {"id": "ann", "role": "operator"},
}


def answered(home: Path, call: Any) -> tuple[dict[str, Any], str]:
    """The answer of the service, and what it wrote beside it."""
    environment = os.environ | {
        "STEERWAY_HOME": str(home),
        "STEERWAY_DASHBOARD_PORT": str(free_ports(1)[0]),
        "RAY_raylet_start_wait_time_s": "1",
    }
    text = call if isinstance(call, str) else json.dumps(call)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ray_jobs.service"],
        input=text,
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer, done.stderr


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (CALL, "seed is 'x' (text), but must be an integer"),
        ("not JSON, canary", "the call of the launch service is malformed"),
        (CALL | {"verb": "canary"}, "malformed"),
    ],
)
def test_problem_is_one_json_line_without_input(tmp_path: Path, call: Any, complaint: str) -> None:
    answer, beside = answered(tmp_path, call)
    assert (answer["launched"], answer["problem"]["slug"], answer["problem"]["status"]) == (None, "invalid", 422)
    assert complaint in answer["problem"]["reason"]
    assert "canary" not in json.dumps(answer) + beside
    assert not (tmp_path / "runs").exists()
