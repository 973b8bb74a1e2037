"""`steer outputs`: list and copy the files that a run's script has written."""

from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.commands.show import AsJson, print_table
from control_plane.cli.output.printing import tell, tell_json
from control_plane.config import Settings, settings
from control_plane.core.model.errors import NotFound
from control_plane.storage.layout import RunFiles, list_runs

Run = Annotated[str, typer.Argument(help="Run id, or a unique prefix or suffix of it.")]


def outputs(
    run: Run,
    copy: Annotated[Path | None, typer.Option("--copy", metavar="TO", help="Copy the files into this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the files that a run's script has written to its work folder, and copy them with --copy."""
    from control_plane.storage import outputs as stored

    files = _run_here(settings(), run)
    written = stored.copy_outputs(files, copy) if copy is not None else stored.outputs(files)
    if as_json:
        listed = [{"path": str(file.path), "bytes": file.bytes} for file in written]
        tell_json({"run": files.run, "folder": str(files.work), "files": listed})
        return
    if written and copy is None:
        print_table(("BYTES", "FILE"), [(f"{file.bytes:,}", str(file.path)) for file in written])
    total = sum(file.bytes for file in written)
    place = f"copied from {files.work} to {copy}" if copy is not None else f"in {files.work}"
    tell(f"{len(written)} file{'' if len(written) == 1 else 's'}, {total:,} bytes, {place}")


def _run_here(where: Settings, given: str) -> RunFiles:
    """Find the run's files without the gateway, since outputs outlive the cluster. Raises `NotFound`."""
    runs = list_runs(where.runs_dir)
    exact = [files for files in runs if files.run == given]
    fitting = exact or [files for files in runs if files.run.startswith(given) or files.run.endswith(given)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise NotFound(
            f"{given!r} matches {len(fitting)} runs: {', '.join(files.run for files in fitting[:5])}; be more specific"
        )
    raise NotFound(f"no run matches {given!r} in {where.runs_dir}")
