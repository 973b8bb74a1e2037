"""Scan for journals that may say that an agent is started, cheap with thousands of ended runs.

A journal that has not grown since it was looked at says the same as then. One that is seen for the first time and
nowhere mentions an agent is not read as records at all.
"""

import os
import re
from pathlib import Path

from control_plane.storage.layout import RunFiles, list_runs

MENTIONS_AGENT = re.compile(rb'"start_agent"|"agent":\s*\{')
"""Within the records that start an agent: a command, or a run that was created with one."""

Version = tuple[tuple[str, int], ...]
"""Names and sizes of a journal's segments."""


class JournalScan:
    """Journals of one installation, and which of them were looked at."""

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir
        self._done: dict[str, Version] = {}

    def news(self) -> dict[str, Version]:
        """Return the runs to look at, with the version of each journal."""
        found: dict[str, Version] = {}
        for files in list_runs(self._runs_dir):
            version = _version_of(files)
            if not version or self._done.get(files.run) == version:
                continue
            if files.run not in self._done and not _mentions_agent(files, version):
                self._done[files.run] = version
                continue
            found[files.run] = version
        return found

    def note_done(self, run: str, version: Version) -> None:
        """Note that this version of a journal wants no agent."""
        self._done[run] = version


def _version_of(files: RunFiles) -> Version:
    try:
        with os.scandir(files.journal) as listing:
            return tuple(sorted((entry.name, entry.stat().st_size) for entry in listing))
    except OSError:
        return ()  # the run has not begun, or is being deleted


def _mentions_agent(files: RunFiles, version: Version) -> bool:
    """Return whether the journal may start an agent; True if it cannot be read."""
    try:
        return any(MENTIONS_AGENT.search((files.journal / name).read_bytes()) for name, _ in version)
    except OSError:
        return True
