"""`steer outputs`: what a run's script has written, and copies of it."""

from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.looking import AsJson, print_table
from control_plane.cli.printing import tell, tell_json
from control_plane.config import Settings, settings
from control_plane.core.errors import NotFound
from control_plane.storage.layout import RunFiles, list_runs

Run = Annotated[str, typer.Argument(help="The run, or the beginning or the end of its id.")]


def outputs(
    run: Run,
    copy: Annotated[Path | None, typer.Option("--copy", metavar="TO", help="Copy the files into this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """The files that a run's script has written into its own folder, RUN/work."""
    from control_plane.storage import outputs as stored

    files = _run_here(settings(), run)
    found = stored.copy_outputs(files, copy) if copy is not None else stored.outputs(files)
    if as_json:
        told = [{"path": str(each.path), "bytes": each.bytes} for each in found]
        tell_json({"run": files.run, "folder": str(files.work), "files": told})
        return
    if found and copy is None:
        print_table(("BYTES", "FILE"), [(f"{each.bytes:,}", str(each.path)) for each in found])
    total = sum(each.bytes for each in found)
    place = f"copied from {files.work} to {copy}" if copy is not None else f"in {files.work}"
    tell(f"{len(found)} file{'' if len(found) == 1 else 's'}, {total:,} bytes, {place}")


def _run_here(where: Settings, given: str) -> RunFiles:
    """The run's files, without asking the gateway: outputs outlive the cluster. Raises `NotFound`."""
    runs = list_runs(where.runs_dir)
    exact = [files for files in runs if files.run == given]
    fitting = exact or [files for files in runs if files.run.startswith(given) or files.run.endswith(given)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise NotFound(f"{given!r} fits {len(fitting)} runs: {', '.join(files.run for files in fitting[:5])}")
    raise NotFound(f"there is no run {given!r} in {where.runs_dir}")
