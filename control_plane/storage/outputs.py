"""What a run's script has written into RUN/work, apart from the links to what lay beside the script."""

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from control_plane.core.model.errors import Conflict, NotFound, SteerwayError
from control_plane.storage.layout import RunFiles


@dataclass(frozen=True, slots=True)
class Output:
    """One file. `path` is relative to the run's work folder."""

    path: Path
    bytes: int


def outputs(files: RunFiles) -> list[Output]:
    """Every file of its own, sorted by path. Links are left out and not followed: a copied run may hold any."""
    found = []
    for folder, _, names in os.walk(files.work):
        for name in names:
            path = Path(folder) / name
            try:
                about = path.lstat()
            except FileNotFoundError:
                continue  # the run is at work
            if stat.S_ISREG(about.st_mode):
                found.append(Output(path.relative_to(files.work), about.st_size))
    return sorted(found, key=lambda each: each.path)


def copy_outputs(files: RunFiles, to: Path) -> list[Output]:
    """Copy them into the folder `to`, which is made if need be. Answers what was copied.

    Raises `NotFound` if there are none, `Conflict` (before anything is copied) if one of them is there already,
    `SteerwayError` if a file cannot be written.
    """
    found = outputs(files)
    if not found:
        raise NotFound(f"run {files.run} has written nothing into {files.work}")
    there = [each.path for each in found if os.path.lexists(to / each.path)]
    if there:
        raise Conflict(f"{to / there[0]} is there already ({len(there)} of {len(found)} files); nothing was copied")
    for each in found:
        target = to / each.path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files.work / each.path, target, follow_symlinks=False)
        except OSError as error:
            raise SteerwayError(f"{target} cannot be written: {error.strerror or error}") from None
    return found
