"""`steer journal`: print, audit, export and import the journal of a run.

The last three read the files directly: they need no gateway or cluster, and work on a damaged journal.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane.cli.commands.show import AsJson, journal
from control_plane.cli.errors import SteerGroup
from control_plane.cli.output.printing import say, tell, tell_json
from control_plane.cli.select_run import only
from control_plane.config import settings
from control_plane.core.model.errors import NotFound
from control_plane.storage.layout import RunFiles, find_run, list_runs

if TYPE_CHECKING:
    from control_plane.storage.journal.audit import Audit

DAMAGED = 1
SHOW = "show"
FINDINGS_SHOWN = 50


class JournalGroup(SteerGroup):
    """Command group with a default command: `steer journal RUN` means `steer journal show RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `show` if no subcommand is named."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [SHOW, *args]
        return super().parse_args(ctx, args)


journals = typer.Typer(
    cls=JournalGroup,
    name="journal",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Print a run's journal: `steer journal [RUN] [--follow] [--after SEQ] [--json]`. Audit it, or move it to "
    "another machine with `export` and `import`. (`steer journal show RUN` for a run named like a subcommand.)",
)
journals.command(SHOW)(journal)

Run = Annotated[
    str,
    typer.Argument(help="Run id, or a unique prefix or suffix of it, or the path of a run's or journal's folder."),
]


@journals.command("audit")
def audit_journal(
    run: Run,
    expect: Annotated[
        str | None,
        typer.Option(
            metavar="SEQ:HASH", help="Head printed by an earlier audit: detects a truncated or rewritten journal."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify a journal and list all damage. Changes nothing. Exits with 1 if the journal is damaged."""
    from control_plane.storage.journal.audit import Head, audit

    result = audit(_journal_of(run), None if expect is None else Head.parse(expect))
    if as_json:
        tell_json(result.model_dump(mode="json") | {"sentence": result.sentence()})
    else:
        tell(*_described(result))
    if result.verdict == "damaged":
        raise typer.Exit(DAMAGED)


def _described(audit: "Audit") -> list[str]:
    lines = [f"verdict     {audit.verdict}", f"run         {audit.run or 'unknown'}"]
    lines.append(f"records     {audit.records} in {audit.segments} segments")
    lines.append(f"trusted     up to record {audit.head.seq}")
    lines += [f"torn        {audit.torn}"] if audit.torn else []
    lines += [f"damage      {finding.what}: {finding.said}" for finding in audit.findings[:FINDINGS_SHOWN]]
    more = len(audit.findings) - FINDINGS_SHOWN
    lines += [f"            and {more} more; --json lists all of them"] if more > 0 else []
    lines += [f"note        {note}" for note in audit.notes]
    if audit.head.seq:
        lines.append(f"head        {audit.head}")
        lines.append("            store it elsewhere to detect later tampering: steer journal audit --expect SEQ:HASH")
    return lines


@journals.command("export")
def export_journal(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write. Default: RUN.steer.zip here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a journal, its config, and this machine's versions and hardware into one file."""
    from control_plane.storage.journal.export import export

    files = _run_of(run)
    target = output or Path(f"{files.run}.steer.zip")
    manifest = export(files, target)
    if as_json:
        tell_json({"file": str(target)} | manifest.model_dump(mode="json"))
    else:
        tell(f"exported {manifest.records} records of run {files.run} to {target}")
        tell(f"head  {manifest.head}")
    for key in manifest.removed:
        say(f"steer: config.yaml: removed the value of {key}, which looks like a secret")
    if seqs := _told_secrets(files):
        say(
            f"steer: journal: record {seqs} contains what looks like a secret and is exported unchanged, because "
            "records are hash-chained; rotate that secret before you share the file"
        )


def _told_secrets(files: RunFiles) -> str:
    """Return the record numbers that contain what looks like a secret; users and earlier releases have written some."""
    from control_plane.core.model.redaction import Redaction
    from control_plane.storage.journal.writer import read

    clean = Redaction().words
    seqs = [str(entry.seq) for entry in read(files.journal) if clean(entry.record) is not entry.record]
    more = f" and {len(seqs) - FINDINGS_SHOWN} more" if len(seqs) > FINDINGS_SHOWN else ""
    return ", ".join(seqs[:FINDINGS_SHOWN]) + more


@journals.command("import")
def import_journal(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file written by `steer journal export`.")],
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="ID", help="Import under another run id; such a run cannot be resumed."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Verify and compare only; import nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Verify an export, list how this machine differs from its origin, and import it as an ended run."""
    from control_plane.api.sentences import describe_job
    from control_plane.storage.journal.export import import_run, read_export
    from control_plane.storage.journal.provenance import differences, this_machine

    exported = read_export(file)
    manifest = exported.manifest
    differing = differences(manifest.machine, this_machine(), manifest.trainers)
    if not exported.config_is_the_runs:
        differing.append(
            "config.yaml is not the config that the run was created with, so the run cannot be resumed here"
        )
    starts = describe_job(exported.settings)
    if not as_json:
        tell(f"{file} is valid: {manifest.records} records of run {manifest.run}, head {manifest.head}")
        for sentence in differing:
            tell(f"difference  {sentence}")
        if not differing:
            tell("versions and hardware are the same")
        tell(f"would start  {starts}; it only runs here with --trust")
    laid = None if check else import_run(exported, settings().runs_dir, run)
    if as_json:
        result = {"run": laid.run if laid else None, "imported_from": manifest.run, "records": manifest.records}
        tell_json(result | {"head": str(manifest.head), "differences": differing, "would_start": starts})
    elif laid is not None:
        tell(f"imported as run {laid.run}: see `steer status {laid.run}` and `steer journal {laid.run}`")


def _journal_of(given: str) -> Path:
    path = Path(given)
    if path.name != given and path.is_dir():
        return path / "journal" if (path / "journal").is_dir() else path
    return _run_of(given).journal


def _run_of(given: str) -> RunFiles:
    """Find a run's files without the gateway. Raises `NotFound`, `Invalid`, `UsageError` if several match."""
    path = Path(given)
    if path.name != given and (path / "config.yaml").is_file():
        return RunFiles(path.absolute())
    runs_dir = settings().runs_dir
    try:
        return find_run(runs_dir, given)
    except NotFound:
        runs = [files.run for files in list_runs(runs_dir) if files.run.startswith(given) or files.run.endswith(given)]
        if not runs:
            raise
        return find_run(runs_dir, only(runs, f"{given!r} matches {{}} runs"))
