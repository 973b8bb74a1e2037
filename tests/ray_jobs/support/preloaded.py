"""Interpreters that have imported torch, DeepSpeed and Transformers, and fork whoever shall run: imports cost a process
seven seconds of a processor, and most of these trainings one.

    forked = interpreter(0).start("tests.ray_jobs.support.ranks:main", folder, log, environment)
    status = forked.wait(240)

There is one interpreter for each number that is asked for, and each has a hash seed of its own, so ranks that were
forked from different ones order their sets differently, as ranks do that were started one by one. They end with the
process that uses them, and so does whatever they have forked.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MESSAGE_BYTES = 1 << 20
POLL_S = 0.01
READY_WITHIN_S = 240.0
OURS = ("ray_jobs.hf.trainer", "tests.ray_jobs.trials.crash_trials", "tests.ray_jobs.trials.script_trials")
"""Modules of ours that most trials need: importing them takes a quarter of a second, and some trials have fifty lives.
"""

RANK_ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Forked:
    """A process that an interpreter has forked. Its exit code is what `subprocess.Popen` would tell."""

    def __init__(self, interpreter: "Interpreter", pid: int) -> None:
        self.interpreter, self.pid = interpreter, pid

    def wait(self, timeout_s: float) -> int:
        """Its exit code; raises `TimeoutError` if it goes on."""
        deadline = time.monotonic() + timeout_s
        while self.pid not in self.interpreter.ended:
            if not self.interpreter.listen(deadline - time.monotonic()):
                raise TimeoutError(f"process {self.pid} did not end within {timeout_s:g} s")
        return self.interpreter.ended[self.pid]

    def kill(self) -> None:
        """End it, if it has not ended."""
        while self.interpreter.listen(0.0):
            pass
        if self.pid not in self.interpreter.ended:
            os.kill(self.pid, signal.SIGKILL)


class Interpreter:
    """The near end of one interpreter. One that is `empty` has imported nothing."""

    def __init__(self, empty: bool = False) -> None:
        self.ended: dict[int, int] = {}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open for as long as the interpreter lives
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.ray_jobs.support.preloaded",
                    str(theirs.fileno()),
                    *(["empty"] if empty else []),
                ],
                cwd=Path(__file__).parents[3],
                env=os.environ | RANK_ENVIRONMENT,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
            )
        self.pids: list[int] = []

    def start(self, call: str, folder: Path, log: Path, environment: dict[str, str]) -> Forked:
        """Fork a process that calls `module:function` with a folder, in this environment and with this log."""
        request = {"call": call, "folder": str(folder), "log": str(log), "environment": environment, "cwd": os.getcwd()}
        known = len(self.pids)
        self.channel.send(json.dumps(request).encode())
        deadline = time.monotonic() + READY_WITHIN_S
        while len(self.pids) == known:
            if not self.listen(deadline - time.monotonic()):
                raise TimeoutError(f"nothing was forked within {READY_WITHIN_S:g} s: {self._said()}")
        return Forked(self, self.pids[-1])

    def listen(self, timeout_s: float) -> bool:
        """Take one message; False if none came in time."""
        if not _has_message(self.channel, max(timeout_s, 0.0)):
            return False
        message = self.channel.recv(MESSAGE_BYTES)
        if not message:
            raise RuntimeError(f"the interpreter has ended: {self._said()}")
        told = json.loads(message)
        if "status" in told:
            self.ended[told["pid"]] = told["status"]
        else:
            self.pids.append(told["pid"])
            self.ended.pop(told["pid"], None)  # of a process that had this number before
        return True

    def _said(self) -> str:
        self.log.seek(0)
        return self.log.read()[-4000:] or "it said nothing"


@functools.cache
def interpreter(number: int) -> Interpreter:
    """That one, started by the first who asks."""
    return Interpreter()


def _has_message(channel: socket.socket, timeout_s: float | None) -> bool:
    """`select.select` knows no descriptor beyond 1023, and a process that has run many tests has more."""
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    return bool(waiting.poll(None if timeout_s is None else timeout_s * 1000))


# --- The far end ---


def _preload() -> None:
    import accelerate  # noqa: F401
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    import torch
    import transformers.models.gpt2.modeling_gpt2
    import transformers.trainer  # noqa: F401

    for name in OURS:
        importlib.import_module(name)
    torch.set_num_threads(1)


def serve(channel: socket.socket) -> dict[str, Any]:
    """Fork for every request. Returns what was asked for, in the forked process alone."""
    living: set[int] = set()
    while True:
        if _has_message(channel, POLL_S if living else None):
            message = channel.recv(MESSAGE_BYTES)
            if not message:
                break
            pid = os.fork()
            if not pid:
                channel.close()
                return dict(json.loads(message))
            living.add(pid)
            _tell(channel, {"pid": pid})
        for pid in list(living):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                living.remove(pid)
                _tell(channel, {"pid": pid, "status": os.waitstatus_to_exitcode(status)})
    for pid in living:
        os.kill(pid, signal.SIGKILL)
    sys.exit(0)


def _tell(channel: socket.socket, told: dict[str, int]) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody is there any more: the next message is the end
        channel.send(json.dumps(told).encode())


def _become(request: dict[str, Any]) -> None:
    """A process as if it had just been started, but for what is imported."""
    import numpy

    log = os.open(request["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    numpy.random.seed()


def main() -> None:
    if "empty" not in sys.argv:
        _preload()
        # Accelerate collects garbage several times a training: not among what was imported, in every process.
        gc.freeze()
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    _become(request)
    module, name = request["call"].split(":")
    getattr(importlib.import_module(module), name)(Path(request["folder"]))


if __name__ == "__main__":
    main()
