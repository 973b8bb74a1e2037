"""`steer agent proposals`, `approve`, `edit` and `reject`: what a run's agent proposes, and the answers of people."""

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from control_plane.api.agent_views import ProposalView
from control_plane.api.messages import CommandView, Snapshot
from control_plane.cli.commands.knobs import change_of, check_known
from control_plane.cli.commands.lifecycle import MIN_UUID_CHARS, RunIntent, build_intent, run_and, steering_command
from control_plane.cli.commands.show import AsJson, Run
from control_plane.cli.errors import UsageError
from control_plane.cli.output.formatting import outcome, span
from control_plane.cli.output.printing import tell, tell_json
from control_plane.cli.select_run import active_run, any_run, connect
from control_plane.core.model.characters import one_line
from control_plane.core.model.commands import Intent
from control_plane.core.model.errors import NotFound

if TYPE_CHECKING:
    from control_plane.client import SteerwayClient

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="[RUN] PROPOSAL", help="Number of the proposal, as `steer agent proposals` prints it, or its uuid."
    ),
]
Note = Annotated[str | None, typer.Option(help="Why; recorded with the answer.")]


def proposals(
    run: Run = None,
    everything: Annotated[bool, typer.Option("--all", help="Also the newest of those that were closed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the proposals of a run's agent that wait for an answer, with the time that is left."""
    with connect() as client:
        report = client.agent(any_run(client, run))
    chosen = [view for view in report.agent.proposals if everything or view.is_open]
    if as_json:
        tell_json([view.model_dump(mode="json") for view in chosen])
        return
    if not chosen:
        tell(f"no proposal of {report.run} waits for an answer ({report.agent.made} were made)")
    for view in chosen:
        tell(*lines_of(view))


def lines_of(view: ProposalView) -> list[str]:
    """Return the lines about one proposal: what, why, what has become of it or how to answer it."""
    lines = [f"{view.seq:>6}  {stage_of(view)}  step {view.step}: {view.what} ({view.risk} risk)"]
    if view.reason:
        lines.append(f"        {view.reason}")
    if view.trial:
        lines.append(f"        steer agent reject {view.seq} ends the trial, and returns from its branch")
    elif view.is_open:
        lines.append(f"        steer agent approve {view.seq}, or edit {view.seq} 'lr*=0.5', or reject {view.seq}")
    elif view.note:
        lines.append(f"        {view.note}")
    if view.effect is not None:
        lines.append(f"        {view.effect.describe()}")
    return [one_line(line) for line in lines]


def stage_of(view: ProposalView) -> str:
    """Return what a proposal waits for, or how it was closed."""
    if view.trial:
        return f"on trial: {view.trial}"
    if view.is_open:
        then = "rejected" if view.default == "reject" else "approved"
        return f"waits {span(view.left_s or 0.0)}, then {then}"
    by = f" by {view.by}" if view.by else ""
    return "made at once" if view.verdict == "automatic" else f"{str(view.verdict).replace('_', ' ')}{by}"


def _made(client: "SteerwayClient", run: str, view: CommandView, timeout_s: float) -> tuple[dict[str, Any], str]:
    """Wait for the command that came of the answered proposal."""
    answered = getattr(view.command.intent, "proposal", None)
    proposal = next((each for each in client.snapshot(run).agent.proposals if each.uuid == answered), None)
    if proposal is not None and proposal.trial:
        return {}, f"it is tried first: {proposal.trial}; `steer agent status` shows what comes of it"
    if proposal is None or proposal.command is None:
        return {}, "the proposal is closed; nothing came of it"
    made = client.wait_settled(run, proposal.command, timeout_s)
    return {"made": made.model_dump(mode="json")}, outcome(made)


def _approve(words: Words, note: Note = None) -> RunIntent:
    """Approve a proposal: its command is made, with the agent's reason, and yours as the note."""
    snapshot, view = _named(words, "steer agent approve RUN 57")
    return snapshot.run, build_intent("answer_proposal", proposal=view.uuid, approve=True, note=note)


def _edit(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[RUN] PROPOSAL KNOB=VALUE...", help="lr=1e-4, 'lr*=0.5', weight_decay=0.1"),
    ],
    note: Note = None,
    group: Annotated[str | None, typer.Option(help="Change one parameter group only, by index or name.")] = None,
    hold: Annotated[
        bool, typer.Option("--hold", help="Hold the learning rate constant instead of following the schedule.")
    ] = False,
) -> RunIntent:
    """Approve a proposal with another change in place of its own, in the language of `steer set`."""
    assignments = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    example = "steer agent edit RUN 57 'lr*=0.5'"
    if not assignments:
        raise UsageError(f"expected the number of a proposal and one or more KNOB=VALUE, for example: {example}")
    snapshot, view = _named(names, example)
    intent, knobs = change_of(assignments, group, factor=False, hold=hold)
    check_known(snapshot, knobs)
    answer: Intent = build_intent(
        "answer_proposal", proposal=view.uuid, approve=True, intent=intent.model_dump(), note=note
    )
    return snapshot.run, answer


@steering_command
def reject(words: Words, note: Note = None) -> RunIntent:
    """Reject a proposal: nothing is changed."""
    snapshot, view = _named(words, "steer agent reject RUN 57")
    return snapshot.run, build_intent("answer_proposal", proposal=view.uuid, approve=False, note=note)


def _named(words: list[str], example: str) -> tuple[Snapshot, ProposalView]:
    run, word = run_and(words, "a proposal", example)
    with connect() as client:
        snapshot = client.snapshot(active_run(client, run))
    return snapshot, find_proposal(snapshot, word)


def find_proposal(snapshot: Snapshot, word: str) -> ProposalView:
    """Return the proposal with this number or beginning of its uuid. Raises `UsageError`, `NotFound`."""
    views = snapshot.agent.proposals
    by_number = [view for view in views if str(view.seq) == word]
    digits = word.lower().replace("-", "")
    is_uuid = len(digits) >= MIN_UUID_CHARS and set(digits) <= set("0123456789abcdef")
    if not by_number and not is_uuid and not word.isdecimal():
        raise UsageError(f"{word!r} is no number and no uuid of a proposal; `steer agent proposals` prints them")
    matching = by_number or [view for view in views if is_uuid and UUID(str(view.uuid)).hex.startswith(digits)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UsageError(f"{word!r} matches {len(matching)} proposals of run {snapshot.run}; give more digits")
    waiting = ", ".join(str(view.seq) for view in views if view.is_open) or "none"
    raise NotFound(f"run {snapshot.run} has no proposal {word}; waiting for an answer: {waiting}")


approve = steering_command(_approve, wait_for=_made)
edit = steering_command(_edit, wait_for=_made)
