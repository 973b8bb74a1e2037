"""`steer agent status`: one screen about a run's agent, as narrow as the terminal is."""

import shutil
import textwrap
from collections.abc import Iterator

from control_plane.api.agent_views import AgentReport, ProposalView
from control_plane.cli.agents.proposals import stage_of
from control_plane.cli.commands.show import AsJson, Run
from control_plane.cli.output.formatting import span
from control_plane.cli.output.printing import tell, tell_json
from control_plane.cli.select_run import any_run, connect
from control_plane.core.model.characters import one_line
from control_plane.core.model.intents.agent import AgentSettings

LABEL_CHARS = 11
LEAST_COLUMNS, MOST_COLUMNS = 32, 120
MAX_PROPOSALS = 5


def status(run: Run = None, as_json: AsJson = False) -> None:
    """Show a run's agent: its settings and process, what it has spent, its last decision, its proposals."""
    with connect() as client:
        report = client.agent(any_run(client, run))
    if as_json:
        tell_json(report)
        return
    tell(*screen(report, shutil.get_terminal_size((100, 24)).columns))


def screen(report: AgentReport, columns: int) -> list[str]:
    """Return the lines of the screen, none longer than `columns`."""
    columns = max(LEAST_COLUMNS, min(columns, MOST_COLUMNS))
    lines = []
    for label, text in rows(report):
        lines += textwrap.wrap(
            one_line(text),
            columns,
            initial_indent=f"{label:<{LABEL_CHARS}}",
            subsequent_indent=" " * LABEL_CHARS,
            break_on_hyphens=False,
        )
    return lines


def rows(report: AgentReport) -> Iterator[tuple[str, str]]:
    """Yield what the screen says: a label and a text."""
    agent, wanted = report.agent, report.agent.settings
    yield "run", f"{report.run}, {report.status}, step {report.step}"
    if wanted is None:
        yield "agent", "none is started: `steer agent start`"
    else:
        yield "agent", _process(report)
        yield "policy", f"{wanted.policy}, {_model(report, wanted)}"
        yield "mode", _MODES[wanted.mode]
        yield "looks", f"every {wanted.every_steps} steps" + (", adaptive" if wanted.adaptive else "")
        yield (
            "low risk",
            (
                f"lr {wanted.min_lr:g} to {wanted.max_lr:g}, by a factor of at most {wanted.max_factor:g}; at most "
                f"{wanted.max_changes} changes, {wanted.cool_down_steps} steps apart{_granted(wanted)}"
            ),
        )
        if wanted.trial_steps is not None:
            yield "trials", f"{wanted.trial_steps} steps without a change and with it; the better of the two goes on"
        then = "rejected" if wanted.default == "reject" else "approved"
        yield "deadline", f"{span(wanted.deadline_s)}, then a proposal is {then}"
    yield from _spending(report)
    if report.last_decision:
        yield "decision", report.last_decision
    waiting = [view for view in agent.proposals if view.is_open]
    yield "proposals", f"{len(waiting)} of {agent.made} wait for an answer" if agent.made else "none were made"
    for view in waiting[-MAX_PROPOSALS:]:
        yield f"{view.seq:>9}", f"{view.what} ({view.risk} risk), {stage_of(view)}"
    if any(not view.trial for view in waiting):
        yield "", "answer one: `steer agent approve N`, `edit N 'lr*=0.5'` or `reject N`"
    elif not waiting and (newest := _newest(agent.proposals)):
        yield f"{newest.seq:>9}", f"{newest.what}: {stage_of(newest)}"


_MODES = {
    "suggest": "suggest: a person answers every proposal",
    "guarded": "guarded: low risk is done at once, a person answers the rest",
    "auto": "auto: whatever it may send is done at once",
}


def _process(report: AgentReport) -> str:
    process, agent = report.process, report.agent
    said = {
        "none": "not running",
        "running": "running",
        "restarting": "being started again",
        "ended": "has ended by itself",
        "given_up": "given up: stop and start it to try again",
    }[process.state]
    since = f" since {process.since}" if process.since and process.state != "none" else ""
    failures = f", {process.failures} failure{'s' if process.failures != 1 else ''}" if process.failures else ""
    why = f" ({process.reason})" if process.reason else ""
    return f"{said}{since}{failures}{why}; started by {agent.started_by}, record {agent.since_seq}"


def _model(report: AgentReport, wanted: AgentSettings) -> str:
    if wanted.policy not in ("auto", "model"):
        return "a rule, without a model"
    return f"asks {report.model}" if report.model else f"no model: {report.model_reason}"


def _granted(wanted: AgentSettings) -> str:
    names = [*wanted.grants.knobs, *wanted.grants.actions]
    return f"; granted: {', '.join(names)}" if names else ""


def _spending(report: AgentReport) -> Iterator[tuple[str, str]]:
    spent, budgets = report.spent, report.budgets
    if spent is None:
        yield "spent", f"not known: {report.ledger_reason}"
    elif report.model or spent.calls:
        money = f", {spent.cost:.4f}" + (f" of {budgets.max_cost:g}" if budgets.max_cost is not None else "")
        known = money if budgets.prompt_price is not None else ", cost not known"
        yield (
            "spent",
            (f"{_of(spent.calls, budgets.max_calls)} calls, {_of(spent.tokens, budgets.max_tokens)} tokens{known}"),
        )


def _of(spent: int, budget: int | None) -> str:
    return f"{spent:,}" if budget is None else f"{spent:,} of {budget:,}"


def _newest(views: tuple[ProposalView, ...]) -> ProposalView | None:
    return views[-1] if views else None
