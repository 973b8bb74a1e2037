"""Process of a run's started agent, as the gateway supervises it.

    python -m control_plane.agent --run RUN --ledger PATH

What it does is in the run's journal (`AgentSettings`); its token, the model's address, its key and the budgets come
with the environment. It ends with exit code 0 when the run has ended, or the agent was stopped, set anew, or has made
its last decision.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from control_plane.agent.choosing import MODEL_POLICIES
from control_plane.agent.ledger import Ledger
from control_plane.agent.loop import MAX_WAIT_S, run_agent
from control_plane.agent.model import Budget
from control_plane.agent.options import options_of
from control_plane.api.agent_spending import budgets_of
from control_plane.api.messages import Snapshot
from control_plane.client import SteerwayClient
from control_plane.config import Settings, settings
from control_plane.core.model.errors import SteerwayError, Unavailable

FIRST_WAIT_S = 0.5


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run the agent; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m control_plane.agent", description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        steer(settings(environ), given.run, given.ledger, environ)
    except SteerwayError as error:
        print(error.reason, file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def steer(where: Settings, run: str, ledger: Path, environ: Mapping[str, str]) -> None:
    """Steer a run by the settings of its agent. Raises `SteerwayError`."""
    with ExitStack() as stack:
        client = stack.enter_context(SteerwayClient.from_settings(where, role="agent"))
        wanted = _first_snapshot(client, run).agent.settings
        if wanted is None:
            say(f"no agent is started on run {run}")
            return
        budget: Budget | None = None
        if wanted.policy in MODEL_POLICIES and environ.get("OPENAI_API_KEY"):
            budget = stack.enter_context(Ledger.open(ledger, budgets_of(where)))
        run_agent(client, run, options_of(wanted), say, environ=environ, budget=budget)


def say(line: str) -> None:
    """Print a line at once: the gateway reads it."""
    print(line, flush=True)


def _first_snapshot(client: SteerwayClient, run: str, wait: Callable[[float], None] = time.sleep) -> Snapshot:
    """Return the run's state, once somebody answers: a server that is away is no failure of the agent."""
    pause_s = FIRST_WAIT_S
    while True:
        try:
            return client.snapshot(run)
        except Unavailable as error:
            say(f"{error.reason}; retrying")
            wait(pause_s)
            pause_s = min(2 * pause_s, MAX_WAIT_S)


if __name__ == "__main__":
    sys.exit(main())
