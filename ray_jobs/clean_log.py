"""Logs without secrets: the ranks' own lines, and all that the driver and its workers print, on its way into a file.

    ... 2>&1 | python -m ray_jobs.clean_log RUN_FOLDER        as `tee -a RUN_FOLDER/logs/driver.log` does, but cleaned

It ends when there is nothing more to read, and for no other reason: a training must not end because of its log.

Not covered: Ray's own logs, which lie under a private folder and end with the cluster.
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
"""Of a longer line the beginning is written before its end is known: a secret may then be cut in two."""

UNFINISHED_S = 1.0
"""So long the beginning of a line waits for the rest of it."""


class CleanFormatter(logging.Formatter):
    """A record and its traceback as one text, without what is secret in this process and in its run's config."""

    def __init__(self, files: RunFiles, layout: str) -> None:
        super().__init__(layout)
        self._files = files

    def format(self, record: logging.LogRecord) -> str:
        """The text of the record."""
        return redaction_of(self._files).text(super().format(record))


def pieces(source: int, unfinished_s: float = UNFINISHED_S) -> Iterator[str]:
    """What can be read there, in whole lines; of one that takes its time, what there is by then."""
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
    """Write what comes, cleaned, to every target that takes it."""
    for piece in pieces(source):
        # By lines: what looks for a secret's end must not find it in another line.
        cleaned = "".join(map(redaction_of(files).text, piece.splitlines(keepends=True)))
        for target in list(targets):
            try:
                target.write(cleaned)
                target.flush()
            except OSError:  # a full disk, or nobody who reads: the others, and the next piece, are still written
                continue


def main(root: Path) -> None:
    """Copy what is printed to the run's log and to our own standard output."""
    files = RunFiles(root)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # who prints is told, too, and may say something
        signal.signal(number, signal.SIG_IGN)
    targets: list[IO[str]] = [sys.stdout]
    try:
        targets.append((files.logs / DRIVER_LOG).open("a", encoding="utf-8", errors="replace"))
    except OSError as error:
        print(f"{files.logs / DRIVER_LOG} cannot be written: {error}", flush=True)
    copy(sys.stdin.fileno(), files, targets)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
