"""Ledger of one run's agent: its calls and their cost, on disk, so that budgets hold over crashes and restarts.

    ledger = Ledger.open(path, budgets)
    reservation = ledger.reserve(max_prompt_tokens, max_completion_tokens)
    if reservation is None:
        ...                                   # keep; `ledger.reason` says which budget is used up
    answer = ...                              # the call
    ledger.settle(reservation, prompt_tokens, completion_tokens)

Durable first, then spent: a reservation of the most that a call can cost is on disk before the call is made. A process
that dies in between leaves it there, and it counts in full. An append-only file of JSON lines, one writer by a lock.
"""

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeGuard

from control_plane.api.agent_spending import (
    MAX_TOKENS_OF_A_CALL,
    Budgets,
    LedgerLine,
    Spent,
    complete_lines,
    fold_ledger,
)
from control_plane.core.model.errors import Conflict, Damaged, Unavailable


@dataclass(frozen=True, slots=True)
class Reservation:
    """A call that may be made: its number, and the most that it takes."""

    call: int
    max_prompt_tokens: int
    max_completion_tokens: int
    max_cost: float


class Ledger:
    """An open ledger. Made by `open`; one process holds it at a time. A context manager."""

    def __init__(self, descriptor: int, budgets: Budgets, spent: Spent, size_bytes: int) -> None:
        """Take over an open and locked file; `size_bytes` of it are complete lines."""
        self._descriptor, self._budgets, self._spent, self._size_bytes = descriptor, budgets, spent, size_bytes
        # Calls of this process that were not settled.
        self._open: set[int] = set()
        self._broken: str | None = None
        self._reason: str | None = None

    @classmethod
    def open(cls, path: Path, budgets: Budgets) -> Self:
        """Open a run's ledger; it is made, with its folder, if it is missing.

        Raises:
            Conflict: another process has it open.
            Damaged: it cannot be read, so what was spent is not known.
            Unavailable: the file cannot be opened.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise Unavailable(f"the agent's ledger {path} cannot be opened: {error.strerror or error}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = _read(descriptor)
            spent = fold_ledger(complete_lines(content), str(path))
            size_bytes = content.rfind(b"\n") + 1
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
            _sync_name(path.parent)
        except BlockingIOError:
            os.close(descriptor)
            raise Conflict(f"another agent has the ledger {path} open: only one may spend a run's budget") from None
        except OSError as error:
            os.close(descriptor)
            raise Unavailable(f"the agent's ledger {path} cannot be used: {error.strerror or error}") from None
        except Damaged:
            os.close(descriptor)
            raise
        return cls(descriptor, budgets, spent, size_bytes)

    @property
    def budgets(self) -> Budgets:
        """The budgets that this ledger keeps."""
        return self._budgets

    @property
    def reason(self) -> str | None:
        """Why the last call of `reserve` returned None."""
        return self._reason

    def spent(self) -> Spent:
        """Return what was spent on this run so far, by this process and by those before it."""
        return self._spent

    def reserve(self, max_prompt_tokens: int, max_completion_tokens: int) -> Reservation | None:
        """Reserve the most that a call can take, durably; only then may the call be made.

        Args:
            max_prompt_tokens: an upper bound, for example the prompt's length in bytes of UTF-8.
            max_completion_tokens: the limit that is sent with the call.

        Returns: the reservation, or None: a budget is used up, or the ledger cannot be written. `reason` says which.
        """
        self._reason = self._broken or self._budgets.reason_against(
            self._spent, max_prompt_tokens, max_completion_tokens
        )
        if self._reason is not None:
            return None
        call, cost = self._spent.calls + 1, self._budgets.cost(max_prompt_tokens, max_completion_tokens)
        line = LedgerLine(
            type="reserved",
            call=call,
            prompt_tokens=max_prompt_tokens,
            completion_tokens=max_completion_tokens,
            cost=cost,
        )
        if not self._append(line):
            self._reason = self._broken
            return None
        tokens = max_prompt_tokens + max_completion_tokens
        spent = self._spent
        self._spent = Spent(calls=call, tokens=spent.tokens + tokens, cost=spent.cost + cost, open=spent.open + 1)
        self._open.add(call)
        return Reservation(call, max_prompt_tokens, max_completion_tokens, cost)

    def settle(self, reservation: Reservation, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Settle a call with the usage that the endpoint reported, in place of its reservation. Idempotent.

        Without a credible usage (None, or no number of tokens) the reservation stays and counts in full. An endpoint
        that reports more than was reserved is believed.
        """
        if reservation.call not in self._open or not _is_usage(prompt_tokens) or not _is_usage(completion_tokens):
            return
        line = LedgerLine(
            type="settled",
            call=reservation.call,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost=self._budgets.cost(prompt_tokens, completion_tokens),
        )
        if self._broken is not None or not self._append(line):
            return
        self._open.discard(reservation.call)
        reserved = reservation.max_prompt_tokens + reservation.max_completion_tokens
        spent = self._spent
        self._spent = Spent(
            calls=spent.calls,
            tokens=spent.tokens - reserved + prompt_tokens + completion_tokens,
            cost=max(0.0, spent.cost - reservation.max_cost + line.cost),
            open=spent.open - 1,
        )

    def close(self) -> None:
        """Close the file, which lets go of its lock. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor, self._broken = -1, "the agent's ledger is closed"

    def __enter__(self) -> Self:
        """Return the ledger."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _append(self, line: LedgerLine) -> bool:
        """Append a line durably; return whether it is. After a failure nothing more is written by this process."""
        data = line.text().encode()
        try:
            written = os.write(self._descriptor, data)
            if written < len(data):
                raise OSError(f"only {written} of {len(data)} bytes were written")
            os.fsync(self._descriptor)
        except OSError as error:
            self._broken = f"the agent's ledger cannot be written: {error.strerror or error}"
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size_bytes)
            return False
        self._size_bytes += len(data)
        return True


def _is_usage(tokens: object) -> TypeGuard[int]:
    return isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens <= MAX_TOKENS_OF_A_CALL


def _read(descriptor: int) -> bytes:
    content = bytearray()
    while chunk := os.pread(descriptor, 1 << 20, len(content)):
        content += chunk
    return bytes(content)


def _sync_name(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
