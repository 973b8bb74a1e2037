"""A run that loses its trainers and comes back, for the tests of this folder."""

from control_plane.api.messages import Progress, Report, Restart
from control_plane.core.model.records import CheckpointCommitted, Death
from control_plane.server.control_server import ControlServer
from tests.core import examples

CHECKPOINT = "step-00000004-g1"
DEATHS = (Death(rank=1, node="node-3", reason="its process ended"),)


async def save(server: ControlServer, name: str = CHECKPOINT, step: int = 4, **more: object) -> None:
    """A checkpoint is committed."""
    body = {"checkpoint": name, "step": step, "generation": 1, "path": f"checkpoints/{name}", "size_bytes": 1_500_000}
    await server.report(Report(generation=1, checkpoints=(CheckpointCommitted.model_validate(body | more),)))


async def lose(server: ControlServer, step: int = 9) -> None:
    """Rank 1 dies after this step."""
    await server.report(Report(generation=1, progress=Progress(step=step, total_steps=100)))
    await server.fail_generation(1, DEATHS)


async def come_back(server: ControlServer) -> None:
    """One rank restores the checkpoint and makes a step."""
    await server.start_generation(examples.start(901, ranks=1, step=4, checkpoint=CHECKPOINT))
    restart = Restart(started_at_s=0.0, loaded_s=1.0, first_step_s=0.6, step=5)
    await server.report(Report(generation=2, restart=restart, progress=Progress(step=5, total_steps=100)))
