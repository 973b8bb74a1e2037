"""Route of a run's agent. Starting, stopping and answering it are commands like any other."""

import asyncio
import re

from fastapi import FastAPI, Request, Response

from control_plane.api.agent_spending import Budgets, Spent, complete_lines, fold_ledger
from control_plane.api.agent_views import AgentProcess, AgentReport, AgentsPort
from control_plane.core.model.errors import Damaged, NotFound
from control_plane.gateway.auth import PREFIX
from control_plane.gateway.routes import directory_of, read_log_tail, respond
from control_plane.storage.layout import RunFiles
from control_plane.storage.regular import read_regular

DECISION = re.compile(r"^\S+ (step \d+: .*)$", re.MULTILINE)
"""A decision in an agent's log: behind the time."""

LOG_LINES = 200
MAX_DECISION_CHARS = 600


class NoAgents:
    """Agents of a gateway that was created without their supervision."""

    def process(self, run: str) -> AgentProcess:
        """Return that none runs."""
        return AgentProcess(reason="this gateway does not supervise agents")

    def model(self) -> tuple[str | None, str | None]:
        """Return that there is no model."""
        return None, "this gateway does not supervise agents"

    def budgets(self) -> Budgets:
        """Return no budgets."""
        return Budgets()


async def read_agent(request: Request, run: str) -> Response:
    """Return a run's agent: its settings, its process, what it has spent, its last decision, its proposals."""
    directory, port = directory_of(request), _port(request)
    snapshot = await (await directory.handle(run)).snapshot()
    files = directory.files(run)
    model, model_reason = port.model()
    (spent, ledger_reason), decision = await asyncio.to_thread(lambda: (read_spent(files), last_decision(files)))
    report = AgentReport(
        run=snapshot.run,
        status=snapshot.status,
        step=snapshot.step,
        agent=snapshot.agent,
        process=port.process(run),
        model=model,
        model_reason=model_reason,
        budgets=port.budgets(),
        spent=spent,
        ledger_reason=ledger_reason,
        last_decision=decision,
    )
    return respond(report, ETag=f'"{snapshot.seq}"')


def read_spent(files: RunFiles) -> tuple[Spent | None, str | None]:
    """Return what a run's agent has spent on its model, or None and why that is not known."""
    try:
        content = read_regular(files.agent_ledger)
        return fold_ledger(complete_lines(content), "the agent's ledger"), None
    except FileNotFoundError:
        return Spent(), None
    except Damaged as error:
        return None, error.reason
    except OSError as error:
        return None, f"the agent's ledger cannot be read: {error.strerror}"


def last_decision(files: RunFiles) -> str | None:
    """Return the last decision in the log of a run's agent."""
    try:
        text = read_log_tail(files, files.agent_log.stem, LOG_LINES).text
    except NotFound:
        return None
    decisions = DECISION.findall(text)
    return decisions[-1][:MAX_DECISION_CHARS] if decisions else None


def _port(request: Request) -> AgentsPort:
    port: AgentsPort = request.app.state.agents
    return port


def add_agent_routes(app: FastAPI) -> None:
    """Add the route."""
    app.add_api_route(
        PREFIX + "/runs/{run}/agent", read_agent, methods=["GET"], status_code=200, response_model=AgentReport
    )
