"""A gateway in a process of its own, with one run of simulated ranks and the supervision of its agent.

    python -m tests.gateway.agents.gateway_process HOME PORT

To be killed at any moment: started again, it finds the run in its journal.
"""

import asyncio
import sys
from pathlib import Path

import uvicorn

from control_plane.api.messages import Point, Progress, Report
from control_plane.config import Settings, settings
from control_plane.core.model.intents.course import Stop
from control_plane.core.model.records import CommandSettled
from control_plane.gateway.agents.supervisor import AgentSupervisor
from control_plane.gateway.app import create_app
from control_plane.gateway.tokens import TokenFile, create_tokens
from control_plane.server.control_server import ControlServer
from control_plane.storage.layout import RunFiles
from tests.core import examples
from tests.gateway.rig import RUN, Runs, open_server

TOTAL_STEPS = 1_000_000


async def train(server: ControlServer) -> None:
    """Train in numbers: fifty steps a second, and every command is applied at once."""
    seen = await server.snapshot()
    step = seen.step
    await server.start_generation(examples.start(ranks=1, total_steps=TOTAL_STEPS))
    generation = (await server.snapshot()).generation
    lr = 1e-3
    while not (await server.snapshot()).closed:
        points = []
        for _ in range(5):
            step += 1
            values = {"loss": 2.0 + 0.001 * (step % 7), "lr": lr}
            points += [Point(step=step, name=name, value=value, time_s=0.0) for name, value in values.items()]
        progress = Progress(step=step, total_steps=TOTAL_STEPS)
        offered = await server.offers(generation, -1, 0.0)
        outcomes = tuple(
            CommandSettled(
                uuid=command.uuid, status="applied", step=step, generation=generation, before={}, after={}, world_size=1
            )
            for command in offered.commands
        )
        report = Report(generation=generation, points=tuple(points), progress=progress, outcomes=outcomes)
        await server.report(report)
        if any(isinstance(command.intent, Stop) for command in offered.commands):
            await server.close("stopped", None)  # as its driver does
        await asyncio.sleep(0.1)


async def main(home: Path, port: int) -> None:
    """Serve until killed."""
    where = settings(home=home, gateway_port=port)
    create_tokens(where)
    runs = Runs(home / "runs")
    (home / "runs" / RUN).mkdir(parents=True, exist_ok=True)
    (home / "runs" / RUN / "config.yaml").write_text("name: test\n")
    runs.handles[RUN] = server = open_server(RunFiles(home / "runs" / RUN))
    agents = AgentSupervisor(where, runs)
    app = create_app(
        runs,
        TokenFile(where.tokens_file),
        allowed_hosts=Settings().host_names,
        allowed_origins=[],
        agents=agents,
        background=[agents.run_forever, lambda: train(server)],
    )
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
