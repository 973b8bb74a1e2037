"""`steer journal`: a run's journal printed, audited, exported to a file and imported from one.

The last three read the files themselves: neither gateway nor cluster is needed, and a damaged journal can be looked at.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane.cli.looking import AsJson, journal
from control_plane.cli.printing import say, tell, tell_json
from control_plane.cli.refusals import SteerGroup
from control_plane.cli.target import only
from control_plane.config import settings
from control_plane.core.errors import NotFound
from control_plane.storage.layout import RunFiles, find_run, list_runs

if TYPE_CHECKING:
    from control_plane.storage.audit import Audit

DAMAGED = 1
SHOW = "show"
FINDINGS_SHOWN = 50


class JournalGroup(SteerGroup):
    """Commands beside the one that is meant when none of them is named: `steer journal RUN` prints the journal."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `show` where it was left out."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [SHOW, *args]
        return super().parse_args(ctx, args)


journals = typer.Typer(
    cls=JournalGroup,
    name="journal",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Print a run's journal: `steer journal [RUN] [--follow] [--after SEQ] [--json]`. Audit it, or carry it to "
    "another machine with `export` and `import`. (A run that is called like one of these: `steer journal show RUN`.)",
)
journals.command(SHOW)(journal)

Run = Annotated[
    str,
    typer.Argument(help="The run, or the beginning or the end of its id; or the path of a run's or journal's folder."),
]


@journals.command("audit")
def audit_journal(
    run: Run,
    expect: Annotated[
        str | None,
        typer.Option(metavar="SEQ:HASH", help="A head that an earlier audit has printed and you have kept elsewhere."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify a journal and name whatever is wrong with it. Changes nothing. Exits with 1 if it is damaged."""
    from control_plane.storage.audit import Head, audit

    found = audit(_journal_of(run), None if expect is None else Head.parse(expect))
    if as_json:
        tell_json(found.model_dump(mode="json") | {"sentence": found.sentence()})
    else:
        tell(*_described(found))
    if found.verdict == "damaged":
        raise typer.Exit(DAMAGED)


def _described(found: "Audit") -> list[str]:
    lines = [f"verdict     {found.verdict}", f"run         {found.run or 'not known'}"]
    lines.append(f"records     {found.records} in {found.segments} segments")
    lines.append(f"trusted     up to record {found.head.seq}")
    lines += [f"torn        {found.torn}"] if found.torn else []
    lines += [f"damage      {one.what}: {one.said}" for one in found.findings[:FINDINGS_SHOWN]]
    more = len(found.findings) - FINDINGS_SHOWN
    lines += [f"            and {more} more; --json has them all"] if more > 0 else []
    lines += [f"note        {note}" for note in found.notes]
    if found.head.seq:
        lines.append(f"head        {found.head}")
        lines.append(
            "            kept elsewhere, it fixes everything up to there: steer journal audit --expect SEQ:HASH"
        )
    return lines


@journals.command("export")
def export_journal(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to. By default RUN.steer.zip, here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a journal, its config, and the versions and hardware of this machine into one file."""
    from control_plane.storage.export import export

    files = _run_of(run)
    target = output or Path(f"{files.run}.steer.zip")
    manifest = export(files, target)
    if as_json:
        tell_json({"file": str(target)} | manifest.model_dump(mode="json"))
    else:
        tell(f"{manifest.records} records of run {files.run} are in {target}")
        tell(f"head  {manifest.head}")
    for key in manifest.removed:
        say(f"steer: config.yaml: the value of {key} looks like a secret and was left out")
    if told := _told_secrets(files):
        say(
            f"steer: journal: record {told} holds what looks like a secret, and is exported as it is: records are "
            "chained; change that secret where it is used before you pass the file on"
        )


def _told_secrets(files: RunFiles) -> str:
    """The records of a journal that hold what looks like a secret: earlier releases, and people, have written some."""
    from control_plane.core.redaction import Redaction
    from control_plane.storage.journal import read

    clean = Redaction().words
    found = [str(entry.seq) for entry in read(files.journal) if clean(entry.record) is not entry.record]
    more = f" and {len(found) - FINDINGS_SHOWN} more" if len(found) > FINDINGS_SHOWN else ""
    return ", ".join(found[:FINDINGS_SHOWN]) + more


@journals.command("import")
def import_journal(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `steer journal export` has written.")],
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="ID", help="Another id for it: then it can be looked at, and not resumed."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Verify and compare only; lay nothing down.")] = False,
    as_json: AsJson = False,
) -> None:
    """Verify an export, say how this machine differs from the other one, and lay it down as a run that is over."""
    from control_plane.storage.export import lay_down, read_export
    from control_plane.storage.provenance import differences, this_machine
    from control_plane.telling import what_starts

    found = read_export(file)
    manifest = found.manifest
    differing = differences(manifest.machine, this_machine(), manifest.trainers)
    if not found.config_is_the_runs:
        differing.append("config.yaml is not the one that the run was created with, so the run cannot be resumed here")
    starts = what_starts(found.settings)
    if not as_json:
        tell(f"{file} verifies: {manifest.records} records of run {manifest.run}, head {manifest.head}")
        for sentence in differing:
            tell(f"difference  {sentence}")
        if not differing:
            tell("no difference in versions and hardware")
        tell(f"would start  {starts}; nothing of it runs here before somebody says --trust")
    laid = None if check else lay_down(found, settings().runs_dir, run)
    if as_json:
        told = {"run": laid.run if laid else None, "imported_from": manifest.run, "records": manifest.records}
        tell_json(told | {"head": str(manifest.head), "differences": differing, "would_start": starts})
    elif laid is not None:
        tell(f"imported as run {laid.run}: see `steer status {laid.run}` and `steer journal {laid.run}`")


def _journal_of(given: str) -> Path:
    path = Path(given)
    if path.name != given and path.is_dir():
        return path / "journal" if (path / "journal").is_dir() else path
    return _run_of(given).journal


def _run_of(given: str) -> RunFiles:
    """The run's files, found without a gateway. Raises `NotFound`, `Invalid`, `Misused` if several are meant."""
    path = Path(given)
    if path.name != given and (path / "config.yaml").is_file():
        return RunFiles(path.absolute())
    runs_dir = settings().runs_dir
    try:
        return find_run(runs_dir, given)
    except NotFound:
        found = [files.run for files in list_runs(runs_dir) if files.run.startswith(given) or files.run.endswith(given)]
        if not found:
            raise
        return find_run(runs_dir, only(found, f"runs begin or end with {given!r}; say more of the one you mean"))
