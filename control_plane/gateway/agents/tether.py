"""Start of an agent's process: tied to the gateway's life, and holding its run's lock.

    python -m control_plane.gateway.agents.tether PARENT LOCK PROGRAM [ARGUMENT ...]

Becomes PROGRAM. The kernel kills it when the gateway (PARENT) ends, however that ends; the lock is let go with it. A
process of its own between fork and exec: code between the two in a process with many threads could deadlock.
"""

import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

IS_HELD = 75
"""Exit code: another agent holds the lock (EX_TEMPFAIL)."""

PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    """Become the program; return an exit code only if that cannot be."""
    parent, lock, program = int(arguments[0]), Path(arguments[1]), list(arguments[2:])
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 1  # the gateway ended before the kernel knew
    lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Never removed: removing it would let two processes lock different files of the same name.
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another agent holds {lock}", file=sys.stderr)
        return IS_HELD
    os.set_inheritable(descriptor, True)
    os.execv(program[0], program)
    raise AssertionError("this process is another program now")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
