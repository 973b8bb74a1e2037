"""Death at the k-th file operation, in a forked child, and a log of the operations for a loss of power."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

OPERATIONS = ("open", "write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir")
KILLED, FAILED = 77, 78


def die_at(work: Callable[[], object], number: int, torn: bool = False) -> bool:
    """Do the work in a child that dies before its `number`-th file operation, counted from 0.

    With `torn`, a write that it dies at has written its first half. Answers whether it died; otherwise all was done.
    Raises `RuntimeError` if the work failed.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            _arm(number, torn)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, KILLED):
        raise RuntimeError(f"the work ended with {code}")
    return code == KILLED


def deaths(
    work: Callable[[], object],
    prepare: Callable[[], None],
    judge: Callable[[str], None],
    kinds: tuple[bool, ...] = (False, True),
) -> int:
    """Die at every operation, whole and torn by default; prepare before each, judge after each. Answers how often."""
    count = 0
    for torn in kinds:
        number, died = 0, True
        while died:
            prepare()
            died = die_at(work, number, torn)
            judge(f"death at operation {number}{', torn' if torn else ''}" if died else "no death")
            number += 1
            count += died
    return count


def _arm(number: int, torn: bool) -> None:
    left = number

    def armed(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                if torn and name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(KILLED)
            left -= 1
            return real(*args, **named)

        return operation

    for name in OPERATIONS:
        setattr(os, name, armed(name, getattr(os, name)))
