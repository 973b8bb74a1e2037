"""What is known of a rank that failed: its exception and where it was raised, its signal, its memory, its watchdog."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError

from control_plane.core.rules.crash_loop import KILLED, NO_ANSWER, OUT_OF_MEMORY, PEER_LOST
from control_plane.storage.layout import RunFiles
from ray_jobs.driver.failure_reporter import describe, oom_kills
from ray_jobs.monitor import exit_reason
from ray_jobs.monitor.exit_reason import signature_of
from ray_jobs.train import ScriptExit, _write_exit_reason

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    files = RunFiles(tmp_path / "run")
    files.logs.mkdir(parents=True)
    return files


def raised_by(script: Path, text: str) -> Exception:
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(text)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except Exception as error:
        return error
    raise AssertionError("it did not raise")


RAISES = "import json\ndef load(text):\n    return json.loads(text)\nload('{broken-%s')\n"


def test_signature_names_the_exception_and_the_frame_of_the_script_and_no_message(tmp_path: Path) -> None:
    first = signature_of(raised_by(tmp_path / "a" / "broken.py", RAISES % time.time_ns()))
    again = signature_of(raised_by(tmp_path / "b" / "broken.py", RAISES % hex(id(first))))
    assert first == again
    assert first.startswith("JSONDecodeError at broken.py:3 in load, decoder.py:")
    elsewhere = signature_of(raised_by(tmp_path / "broken.py", "\n" + RAISES % 1))
    assert elsewhere != first


@pytest.mark.parametrize(
    "said",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711",
        "NCCL communicator was aborted on rank 1",
        "[Errno 32] Broken pipe",
    ],
)
def test_exception_that_another_ranks_end_has_caused_is_told_as_that(said: str) -> None:
    assert signature_of(RuntimeError(said)) == PEER_LOST


def test_exit_code_of_a_script_is_its_signature(files: RunFiles) -> None:
    for code, signature in ((3, "exit code 3"), ("no data", "exit code with a text")):
        error = ScriptExit(f"the script ended: {code}", code)
        _write_exit_reason(files, 0, error, str(error))
        death = describe(files, 0, RuntimeError("as Ray tells it"))
        assert (death.reason, death.signature) == (f"the script ended: {code}", signature)


def died() -> Exception:
    error = RuntimeError("Worker 1 has failed")
    error.__cause__ = ActorDiedError()
    return error


def test_what_a_rank_wrote_down_comes_first_and_an_earlier_starts_does_not_count(files: RunFiles) -> None:
    exit_reason.write(files, 1, "ValueError: no", "ValueError at x.py:1 in f", 41)
    death = describe(files, 1, died(), oom_killed=True)
    assert (death.reason, death.signature, death.step) == ("ValueError: no", "ValueError at x.py:1 in f", 41)
    words = json.loads(files.exit_reason(1).read_text())
    files.exit_reason(1).write_text(json.dumps(words | {"time_s": time.time() - 3600}))
    assert describe(files, 1, died()).signature == KILLED
    exit_reason.write(files, 1, "ValueError: no", "ValueError at x.py:1 in f", 41)
    exit_reason.begin(files, 1)
    assert describe(files, 1, died()).signature == KILLED


@pytest.mark.parametrize(
    ("words", "signature"),
    [
        ({"kind": "deadlock", "phase": "training"}, "deadlock while training"),
        ({"kind": "user code", "phase": "saving"}, "user code while saving"),
        ({}, ""),
    ],
)
def test_watchdogs_word_is_its_kind_and_phase(files: RunFiles, words: dict[str, Any], signature: str) -> None:
    reason = "no progress for 131.5 s"
    told = {"pid": 1, "reason": reason, "time_s": time.time()} | words
    files.exit_reason(0).write_text(json.dumps(told))
    death = describe(files, 0, died())
    assert (death.reason, death.signature) == (reason, signature)


@pytest.mark.parametrize(
    ("error", "oom_killed", "signature"),
    [
        (died(), False, KILLED),
        (died(), True, OUT_OF_MEMORY),
        (RuntimeError("0.97 of the memory, which exceeds the memory usage threshold"), False, OUT_OF_MEMORY),
        (OutOfMemoryError("low on memory"), False, OUT_OF_MEMORY),
        (RuntimeError("at 0x7f12: 31 of 64"), False, "at #: # of #"),
    ],
)
def test_what_ray_tells_of_a_death(files: RunFiles, error: Exception, oom_killed: bool, signature: str) -> None:
    assert describe(files, 0, error, oom_killed).signature == signature


def test_worker_that_does_not_answer_is_not_called_dead(files: RunFiles) -> None:
    from ray.exceptions import ActorUnavailableError

    error = RuntimeError("health check")
    error.__cause__ = ActorUnavailableError("it is away", None)
    assert describe(files, 0, error).signature == NO_ANSWER


@pytest.mark.parametrize("version", [1, 2])
def test_kernels_count_of_processes_that_it_ended_for_memory(tmp_path: Path, version: int) -> None:
    cgroup, mounts = tmp_path / "cgroup", tmp_path / "mounts"
    if version == 1:
        cgroup.write_text("9:cpu,cpuacct:/a\n8:memory:/of/the/host\n0::/x\n")
        folder, name = mounts / "memory", "memory.oom_control"
    else:
        cgroup.write_text("0::/job\n")
        folder, name = mounts / "job", "memory.events"
    folder.mkdir(parents=True)
    assert oom_kills(cgroup, mounts) is None
    (folder / name).write_text("low 0\noom 4\noom_kill 3\n")
    assert oom_kills(cgroup, mounts) == 3
    assert oom_kills(tmp_path / "nothing", mounts) is None


def test_signal_and_line_of_a_crash_are_known(files: RunFiles) -> None:
    """SIGSEGV in a process that has begun as a rank does; only its fault handler can still speak."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from control_plane.storage.layout import RunFiles\nfrom ray_jobs.monitor import exit_reason\n"
        "exit_reason.begin(RunFiles(Path(sys.argv[1])), 0)\n"
        "import ctypes\ndef forward():\n    ctypes.string_at(0)\nforward()\n"
    )
    script = files.root / "crashing.py"
    script.write_text(code)
    ended = subprocess.run(
        [sys.executable, str(script), str(files.root)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGSEGV, ended.stderr
    death = describe(files, 0, died())
    assert death.signature.startswith("signal SIGSEGV at crashing.py:8 in forward, __init__.py:")
    assert "SIGSEGV" in death.reason
