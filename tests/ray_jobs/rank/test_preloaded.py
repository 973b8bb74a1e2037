"""What is forked from an interpreter that has imported everything is a process like any other."""

import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.ray_jobs.support.preloaded import Forked, Interpreter, interpreter

pytestmark = pytest.mark.jobs


def be_seen(folder: Path) -> None:
    """Told by the forked process: what it finds of itself."""
    import numpy

    seen = {
        "imported": sorted({"torch", "deepspeed", "transformers.trainer"} & sys.modules.keys()),
        "environment": {name: os.environ.get(name) for name in ("STEERWAY_HOME", "RANK", "PATH")},
        "random": float(numpy.random.random()),
        "hash": hash("a word"),
        "folder": str(folder),
        "cwd": os.getcwd(),
    }
    (folder / "seen.json").write_text(json.dumps(seen))
    print("seen")


def exit_with_three(folder: Path) -> None:
    sys.exit(3)


def fail(folder: Path) -> None:
    raise ValueError("nothing is as it should be")


def wait_for_ever(folder: Path) -> None:
    signal.pause()


def start(name: str, folder: Path, number: int = 0, **environment: str) -> Forked:
    folder.mkdir(exist_ok=True)
    return interpreter(number).start(
        f"tests.ray_jobs.rank.test_preloaded:{name}", folder, folder / "log", dict(os.environ) | environment
    )


def seen_by(folder: Path, number: int = 0, **environment: str) -> dict[str, Any]:
    assert start("be_seen", folder, number, **environment).wait(60) == 0
    assert (folder / "log").read_text() == "seen\n"
    return dict(json.loads((folder / "seen.json").read_text()))


def test_forked_process_has_its_own_environment_and_everything_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERWAY_HOME", "after the interpreter was started")
    monkeypatch.delenv("RANK", raising=False)  # DeepSpeed sets it in the process of another test
    first, second = seen_by(tmp_path / "a", RANK="0"), seen_by(tmp_path / "b")
    assert first["imported"] == ["deepspeed", "torch", "transformers.trainer"]
    assert first["environment"] == {
        "STEERWAY_HOME": "after the interpreter was started",
        "RANK": "0",
        "PATH": os.environ["PATH"],
    }
    assert second["environment"]["RANK"] is None, "nothing is left of the one before"
    assert (first["folder"], first["cwd"]) == (str(tmp_path / "a"), os.getcwd())
    assert first["random"] != second["random"]


@pytest.mark.skipif("PYTHONHASHSEED" in os.environ, reason="the hash seed is given")
def test_two_interpreters_order_their_sets_differently(tmp_path: Path) -> None:
    assert seen_by(tmp_path / "a")["hash"] != seen_by(tmp_path / "b", number=1)["hash"]


def test_exit_codes_are_those_of_a_process(tmp_path: Path) -> None:
    assert start("exit_with_three", tmp_path / "three").wait(60) == 3
    assert start("fail", tmp_path / "fails").wait(60) == 1
    assert "ValueError: nothing is as it should be" in (tmp_path / "fails" / "log").read_text()
    waiting = start("wait_for_ever", tmp_path / "waits")
    with pytest.raises(TimeoutError, match=r"did not end within 0\.1 s"):
        waiting.wait(0.1)
    waiting.kill()
    assert waiting.wait(60) == -signal.SIGKILL
    waiting.kill()  # which is gone


def test_descriptors_may_be_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = socket.socketpair

    def high_pair(*kind: int) -> list[socket.socket]:
        ends = pair(*kind)
        high = [socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD, 1500)) for end in ends]
        for end in ends:
            end.close()
        return high

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    monkeypatch.setattr(socket, "socketpair", high_pair)
    crowded = Interpreter(empty=True)
    try:
        call = "tests.ray_jobs.rank.test_preloaded:exit_with_three"
        assert crowded.start(call, tmp_path, tmp_path / "log", dict(os.environ)).wait(60) == 3
    finally:
        crowded.channel.close()
        assert crowded.process.wait(60) == 0
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_nothing_is_left_when_the_one_who_uses_it_dies(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.ray_jobs.support.preloaded import Interpreter;"
        "call, folder = 'tests.ray_jobs.rank.test_preloaded:wait_for_ever', Path(sys.argv[1]);"
        "forked = Interpreter(empty=True).start(call, folder, folder / 'log', dict(os.environ));"
        "print(forked.interpreter.process.pid, forked.pid, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [psutil.Process(int(pid)) for pid in done.stdout.split() if psutil.pid_exists(int(pid))]
    assert psutil.wait_procs(left, timeout=30)[1] == []
