"""A run that loses its trainers and comes back, for the tests of this folder."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


@contextmanager
def ray_with_jobs(jobs: dict[str, str]) -> Iterator[int]:
    """The part of Ray's dashboard that lists jobs, with these submission ids and statuses; answers its port."""

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            driver = {"submission_id": None, "type": "DRIVER", "status": "RUNNING"}
            listed = [driver, *({"submission_id": name, "status": status} for name, status in jobs.items())]
            body = json.dumps(listed).encode() if self.path == "/api/jobs/" else b"{}"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal of the tests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()
