"""Output files of a run's script in RUN/work, without the links to the files beside the script."""

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from control_plane.core.model.errors import Conflict, NotFound, SteerwayError
from control_plane.storage.layout import RunFiles


@dataclass(frozen=True, slots=True)
class Output:
    """One output file. `path` is relative to the run's work folder."""

    path: Path
    bytes: int


def outputs(files: RunFiles) -> list[Output]:
    """Return all output files, sorted by path. Links are ignored and not followed: a copied run may contain any."""
    written = []
    for folder, _, names in os.walk(files.work):
        for name in names:
            path = Path(folder) / name
            try:
                about = path.lstat()
            except FileNotFoundError:
                continue  # removed meanwhile by the running script
            if stat.S_ISREG(about.st_mode):
                written.append(Output(path.relative_to(files.work), about.st_size))
    return sorted(written, key=lambda output: output.path)


def copy_outputs(files: RunFiles, to: Path) -> list[Output]:
    """Copy all output files into the folder `to`, which is created if needed; return them.

    Raises `NotFound` if there are none, `Conflict` (before anything is copied) if a target file exists,
    `SteerwayError` if a file cannot be written.
    """
    written = outputs(files)
    if not written:
        raise NotFound(f"run {files.run} has no output files in {files.work}")
    existing = [output.path for output in written if os.path.lexists(to / output.path)]
    if existing:
        count = f"{len(existing)} of {len(written)} files"
        raise Conflict(f"{to / existing[0]} already exists ({count}); nothing was copied")
    for output in written:
        target = to / output.path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files.work / output.path, target, follow_symlinks=False)
        except OSError as error:
            raise SteerwayError(f"{target} cannot be written: {error.strerror or error}") from None
    return written
