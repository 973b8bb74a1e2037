"""Redaction of secrets in logs: a formatter for the ranks' logs, and a filter for what driver and workers print.

    ... 2>&1 | python -m ray_jobs.driver.clean_log RUN_FOLDER    like `tee -a RUN_FOLDER/logs/driver.log`, but redacted

It ends at the end of its input, and for no other reason: a training must not end because of its log.

Not covered: Ray's own logs, which are in a private folder that is removed with the cluster.
"""

import logging
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles

DRIVER_LOG = "driver.log"

PIECE_BYTES = 65536
LONGEST_LINE_BYTES = 1 << 20
"""A longer line is written in pieces, and a secret that is cut in two by that is not redacted."""

UNFINISHED_S = 1.0
"""Longest wait for the rest of an incomplete line, before it is written as it is."""


class CleanFormatter(logging.Formatter):
    """Log formatter that redacts the secrets of this process and of its run's config, in tracebacks too."""

    def __init__(self, files: RunFiles, layout: str) -> None:
        super().__init__(layout)
        self._files = files

    def format(self, record: logging.LogRecord) -> str:
        """Return the redacted text of the record."""
        return redaction_of(self._files).text(super().format(record))


def pieces(source: int, unfinished_s: float = UNFINISHED_S) -> Iterator[str]:
    """Yield the text of a file descriptor in whole lines; an incomplete one as it is after `unfinished_s`."""
    held = b""
    while True:
        ready, _, _ = select.select([source], [], [], unfinished_s if held else None)
        read = os.read(source, PIECE_BYTES) if ready else b""
        held += read
        end = held.rfind(b"\n") + 1
        if (ready and not read) or not ready or len(held) > LONGEST_LINE_BYTES:
            end = len(held)
        if end:
            yield held[:end].decode(errors="replace")
            held = held[end:]
        if ready and not read:
            return


def copy(source: int, files: RunFiles, targets: list[IO[str]]) -> None:
    """Write the redacted input to every target, until its end; a target that fails is skipped."""
    for piece in pieces(source):
        # Line by line: a pattern must not match a secret's end in another line.
        cleaned = "".join(map(redaction_of(files).text, piece.splitlines(keepends=True)))
        for target in list(targets):
            try:
                target.write(cleaned)
                target.flush()
            except OSError:  # a full disk or a closed pipe: the others, and the next piece, are still written
                continue


def main(root: Path) -> None:
    """Copy the redacted standard input to the run's log and to standard output."""
    files = RunFiles(root)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the driver gets them too, and may log its end
        signal.signal(number, signal.SIG_IGN)
    targets: list[IO[str]] = [sys.stdout]
    try:
        targets.append((files.logs / DRIVER_LOG).open("a", encoding="utf-8", errors="replace"))
    except OSError as error:
        print(f"{files.logs / DRIVER_LOG} cannot be written: {error}", flush=True)
    copy(sys.stdin.fileno(), files, targets)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
