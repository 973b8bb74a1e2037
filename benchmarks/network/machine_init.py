"""First process of a machine, pid 1 of its namespace: private mounts, then reaping, until its standard input ends.

    python machine_init.py JSON          {"name": ..., "hosts": ..., "binds": [[FROM, TO], ...], "tmpfs": [...]}

It prints one line when the machine is ready. Whoever made the machine holds the other end of its standard input: if
that process ends, in whatever way, the kernel closes the pipe, this one ends, and with it every process of the machine.
It is run as a file, without the project's packages, so that a machine starts in a moment.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def main(spec: dict[str, Any]) -> None:
    """Make this namespace a machine, and wait for the end of the standard input."""
    socket.sethostname(spec["name"])
    _mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", "/srv")
    for source, target in spec["binds"]:
        Path(target).mkdir(parents=True, exist_ok=True)
        _mount("--bind", source, target)
    # Before /tmp is covered: the file lies there.
    _mount("--bind", spec["hosts"], "/etc/hosts")
    for folder, size in spec["tmpfs"]:
        _mount("-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", folder)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    print("ready", flush=True)
    while True:
        _reap()
        readable, _, _ = select.select([0], [], [], 0.5)
        if readable and not os.read(0, 4096):
            return


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
