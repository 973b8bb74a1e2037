"""`steer quota`: limits of owners, in a file of this machine's home, which a running gateway reads when it changes."""

import re
from typing import Annotated, Any

import typer

from control_plane.api.sentences import format_size
from control_plane.cli.commands.show import AsJson, print_table
from control_plane.cli.errors import SteerGroup, UsageError
from control_plane.cli.output.printing import tell, tell_json
from control_plane.config import settings
from control_plane.core.rules.start_order import Quota
from control_plane.runs.quotas import QuotaBook, change_quota, forget_quota, keep_ended, quotas_path

DEFAULT = "(default)"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
NONE = "none"

quota = typer.Typer(
    cls=SteerGroup,
    name="quota",
    no_args_is_help=True,
    help="Limit what the runs of an owner (the name of a token) may hold on this machine's cluster.",
)


@quota.command("set")
def set_quota(
    owner: Annotated[str | None, typer.Argument(help="Name of the token; left out: owners without a quota.")] = None,
    runs: Annotated[str | None, typer.Option(metavar="N", help="Most runs at once.")] = None,
    cpus: Annotated[str | None, typer.Option(metavar="N", help="Most CPUs of active runs.")] = None,
    gpus: Annotated[str | None, typer.Option(metavar="N", help="Most GPUs of active runs.")] = None,
    size: Annotated[str | None, typer.Option("--bytes", metavar="SIZE", help="Of all files: 500G, 2T.")] = None,
) -> None:
    """Set limits of an owner; 'none' lifts one. Active runs go on; more runs wait in the queue, or are refused."""
    given = {"runs": _whole(runs), "cpus": _number(cpus), "gpus": _number(gpus), "bytes": _size(size)}
    changes = {name: value for name, value in given.items() if value is not _LEFT_OUT}
    if not changes:
        raise UsageError("say what to limit: --runs, --cpus, --gpus or --bytes")
    book = change_quota(settings().home, owner, changes)
    tell(_describe(owner or DEFAULT, book.default if owner is None else book.of(owner)))


@quota.command("list")
def list_quotas(as_json: AsJson = False) -> None:
    """List the quotas of owners, and how long ended runs are kept."""
    book = QuotaBook.from_file(quotas_path(settings().home))
    if as_json:
        tell_json(book)
        return
    rows = [(DEFAULT, *_cells(book.default)), *((owner, *_cells(each)) for owner, each in sorted(book.owners.items()))]
    print_table(("OWNER", "RUNS", "CPUS", "GPUS", "BYTES"), rows)
    if book.keep_ended_days is not None:
        tell(f"ended runs are deleted after {book.keep_ended_days:g} days, but for those with a pinned checkpoint")


@quota.command()
def remove(owner: Annotated[str, typer.Argument(help="Name of the token.")]) -> None:
    """Remove an owner's own quota, so that the default applies."""
    tell(_describe(owner, forget_quota(settings().home, owner).of(owner)))


@quota.command("keep-ended")
def keep_ended_runs(
    days: Annotated[str, typer.Argument(metavar="DAYS", help="Days after their end, or 'none': keep them for good.")],
) -> None:
    """Delete ended runs after some days, but for parents of active runs and runs with a pinned checkpoint."""
    value = _number(days)
    keep_ended(settings().home, value)
    tell("ended runs are kept" if value is None else f"ended runs are deleted after {value:g} days")


_LEFT_OUT: Any = object()


def _number(text: str | None) -> Any:
    """Return a limit. Raises `UsageError` for what is no number."""
    if text is None or text == NONE:
        return _LEFT_OUT if text is None else None
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,4})?", text):
        raise UsageError(f"{text!r} is not a limit: use a number such as 8, or 'none'")
    return float(text)


def _whole(text: str | None) -> Any:
    value = _number(text)
    if value is _LEFT_OUT or value is None:
        return value
    if value != int(value):
        raise UsageError(f"{text!r} is not a number of runs: use a whole number, or 'none'")
    return int(value)


def _size(text: str | None) -> Any:
    if text is None or text == NONE:
        return _number(text)
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)B?", text)
    if match is None:
        raise UsageError(f"{text!r} is not a size: use a number of bytes, or 500G, 2T, or 'none'")
    return int(match[1]) * UNITS[match[2]]


def _cells(quota: Quota) -> tuple[str, ...]:
    numbers = ("-" if value is None else f"{value:g}" for value in (quota.runs, quota.cpus, quota.gpus))
    return (*numbers, "-" if quota.bytes is None else format_size(quota.bytes))


def _describe(owner: str, quota: Quota) -> str:
    names = ("runs", "CPUs", "GPUs", "of files")
    limits = [f"{cell} {name}" for name, cell in zip(names, _cells(quota), strict=True) if cell != "-"]
    return f"quota of {owner}: {', '.join(limits) or 'no limit'}"
