"""Deletion of runs: decided durably first, then the files are removed; what a crash leaves is completed later.

    <home>/deleting/<id>.json    a decision: which run, by whom; it names the folder by its inode
                    <id>/        the run's folder, moved away from the others
    <home>/deleted.jsonl         one line for each deleted run: who, when, how much. Nothing removes a line

The decision is written first, then the folder is renamed, its files are removed, the line is written, and the decision
goes last. Each step may be repeated. A folder that was made anew under the same id is another inode, and stays.
"""

import json
import logging
import os
import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from control_plane.core.model.errors import Unavailable
from control_plane.core.model.intent_base import Message
from control_plane.runs.usage import measure, owner_of
from control_plane.storage.in_use import nobody_reads
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import make_folder, private, replace_file, sync_names
from control_plane.storage.regular import read_regular

log = logging.getLogger(__name__)

FOLDER, AUDIT = "deleting", "deleted.jsonl"


class Deletion(Message):
    """Decision to delete one run. `inode`: of its folder. `because`: what the audit line says of the occasion."""

    run: str
    by: str
    role: str
    at: str
    inode: int
    owner: str | None = None
    size_bytes: int = 0
    because: str = "asked for"


class Deletions:
    """Deletions of one home."""

    def __init__(self, home: Path) -> None:
        self._home, self._folder = home, home / FOLDER

    def delete(
        self,
        files: RunFiles,
        by: str,
        role: str,
        because: str = "asked for",
    ) -> Deletion:
        """Decide the deletion of a run, and move its folder away; `complete` removes the files.

        The caller has allowed it. Raises `Conflict` while the run is read, `Unavailable` if the disk fails: then it was
        not decided, or `complete` goes on with it.
        """
        usage = measure(files)
        with nobody_reads(files):
            decision = Deletion(
                run=files.run,
                by=by,
                role=role,
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                inode=files.root.stat().st_ino,
                owner=owner_of(files),
                size_bytes=usage.total,
                because=because,
            )
            path = self._folder / f"{uuid4().hex}.json"
            try:
                make_folder(self._folder)
                replace_file(path, decision.model_dump_json())
                sync_names(self._folder)
                self._move(path, decision)
            except OSError as error:
                reason = error.strerror or error
                raise Unavailable(f"run {files.run} cannot be deleted now: {reason}; repeat it") from None
        return decision

    def complete(self) -> list[Deletion]:
        """Remove the files of every decided deletion, and return the deletions that were completed."""
        completed = []
        for path in self.decided():
            decision = _read(path)
            if decision is None:
                continue
            try:
                self._move(path, decision)
                if (trash := path.with_suffix("")).exists():
                    _remove_tree(trash)
                self._note(path, decision)
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("run %s is deleted, but its files cannot all be removed: %s", decision.run, error)
                continue
            completed.append(decision)
        return completed

    def decided(self) -> list[Path]:
        """Return the files of the decisions that are not completed."""
        return sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []

    def audit(self) -> list[dict[str, Any]]:
        """Return the lines about deleted runs, oldest first."""
        try:
            text = (self._home / AUDIT).read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines() if line]

    def _move(self, path: Path, decision: Deletion) -> None:
        """Move the run's folder away, unless it was moved, or another run has taken its id since."""
        root = self._home / "runs" / decision.run
        try:
            if root.stat(follow_symlinks=False).st_ino != decision.inode:
                return
        except FileNotFoundError:
            return
        os.rename(root, path.with_suffix(""))
        sync_names(root.parent)

    def _note(self, path: Path, decision: Deletion) -> None:
        """Write the audit line, once: a crash may come between the line and the end of the decision."""
        if any(line.get("id") == path.stem for line in self.audit()):
            return
        line = json.dumps({"id": path.stem} | decision.model_dump(mode="json", exclude={"inode"}))
        with open(self._home / AUDIT, "a", encoding="utf-8", opener=private) as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> Deletion | None:
    try:
        return Deletion.model_validate_json(read_regular(path))
    except (OSError, ValidationError) as error:
        log.warning("the decision %s cannot be read (%s)", path, type(error).__name__)
        return None


def _remove_tree(folder: Path) -> None:
    """Remove a folder, also where a script has taken away the permissions of its own folders."""

    def allow(remove: Callable[..., Any], path: str, error: BaseException) -> None:
        if not isinstance(error, PermissionError):
            raise error
        parent = os.path.dirname(path)
        for each in (parent, path):
            if stat.S_ISDIR(os.stat(each, follow_symlinks=False).st_mode):
                os.chmod(each, 0o700)
        shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)

    shutil.rmtree(folder, onerror=lambda remove, path, info: allow(remove, path, info[1]))
