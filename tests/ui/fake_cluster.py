"""The real gateway over real control servers, in a thread, with trainings that cost nothing."""

import argparse
import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar
from uuid import uuid4

import uvicorn

from control_plane.api.messages import RunSummary
from control_plane.api.ports import OperatorPort
from control_plane.core.model.commands import Command, Intent, SetLearningRate
from control_plane.core.model.errors import NotFound
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import Parent, RunCreated
from control_plane.core.rules.branch_rules import AdoptedCheckpoint
from control_plane.gateway.app import create_app
from control_plane.gateway.tokens import TokenBook, TokenRecord, digest
from control_plane.server.control_server import ControlServer
from control_plane.storage.layout import RunFiles, check_run_id
from tests.gateway.rig import Launches
from tests.ports import free_port
from tests.ui.fake_trainer import STEPS_PER_S, Clock, FakeTrainer, JournalInMemory, MetricsInMemory

TOKEN = "a-token-of-the-tests"
START_WITHIN_S = 20.0
Answer = TypeVar("Answer")


class RunsInMemory:
    """A directory of control servers in this process."""

    def __init__(self) -> None:
        self.servers: dict[str, ControlServer] = {}

    async def list(self) -> Sequence[RunSummary]:
        """Every run."""
        return [RunSummary.of(await server.snapshot()) for server in self.servers.values()]

    async def handle(self, run: str) -> OperatorPort:
        """The run's control server."""
        if check_run_id(run) not in self.servers:
            raise NotFound(f"there is no run {run!r}")
        return self.servers[run]

    def files(self, run: str) -> RunFiles:
        """Where the run's files would be; nothing of these runs is on a disk."""
        if check_run_id(run) not in self.servers:
            raise NotFound(f"there is no run {run!r}")
        return RunFiles(Path("/nonexistent") / run)


class FakeCluster:
    """Gateway, control servers and trainers, on one event loop in a thread of its own."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.runs, self.launches = RunsInMemory(), Launches()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-cluster")
        self._serving: Any = None
        self._tasks: list[Any] = []
        self._gateway: uvicorn.Server | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a console needs to find this gateway."""
        return {"STEERWAY_URL": f"http://127.0.0.1:{self.port}", "STEERWAY_TOKEN": TOKEN}

    def __enter__(self) -> "FakeCluster":
        self._thread.start()
        self.open_gateway()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            self._loop.call_soon_threadsafe(task.cancel)
        self.close_gateway()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def open_gateway(self) -> None:
        """Listen. Returns when it does."""
        book = TokenBook(tokens=(TokenRecord(id="ada", role="operator", sha256=digest(TOKEN)),))
        app = create_app(
            self.runs,
            book,
            allowed_hosts=["127.0.0.1", "localhost"],
            allowed_origins=[],
            launches=self.launches,
            jobs=self.launches,
        )
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="warning", timeout_graceful_shutdown=1)
        self._gateway = uvicorn.Server(config)
        self._serving = asyncio.run_coroutine_threadsafe(self._gateway.serve(), self._loop)
        self.do(asyncio.wait_for(self._until_started(self._gateway), START_WITHIN_S))

    async def _until_started(self, gateway: uvicorn.Server) -> None:
        while not gateway.started:
            await asyncio.sleep(0.02)

    def close_gateway(self) -> None:
        """Listen no more; trainings go on."""
        if self._gateway is not None:
            self._gateway.should_exit = True
            self._serving.result(10)
            self._gateway = None

    def do(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run something on the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def create(
        self,
        run: str,
        name: str = "",
        began_s_ago: float = 0.0,
        parent: Parent | None = None,
        rank_0: type[FakeTrainer] = FakeTrainer,
        limits: Mapping[str, Limit] = MappingProxyType({}),
        **trainer: Any,
    ) -> FakeTrainer:
        """A run whose trainer has not started."""
        return self.do(self._create(run, name or run, Clock(began_s_ago), parent, rank_0, limits, **trainer))

    async def _create(
        self,
        run: str,
        name: str,
        clock: Clock,
        parent: Parent | None,
        rank_0: type[FakeTrainer],
        limits: Mapping[str, Limit],
        **trainer: Any,
    ) -> FakeTrainer:
        created = RunCreated(
            run=run, name=name, author="ada", config_sha256="0" * 64, parent=parent, limits=dict(limits)
        )
        server = ControlServer(
            created,
            JournalInMemory(),
            MetricsInMemory(),
            utc_now=clock.utc_now,
            clock=clock.monotonic_s,
            adopt=self._adopt,
        )
        self.runs.servers[run] = server
        return rank_0(server, clock=clock, **trainer)

    def _adopt(self, intent: AdoptCheckpoint, branch: str, known: frozenset[str]) -> AdoptedCheckpoint:
        """The newest checkpoint of another run; of nothing here there are files."""
        found = self.runs.servers[intent.run]._state.checkpoints.existing[-1]
        name = f"{found.checkpoint}-of-{intent.run}"
        given = {"checkpoint": name, "branch": branch, "generation": 0, "pinned": True}
        return AdoptedCheckpoint(
            origin=Parent(kind="adopted", run=intent.run, checkpoint=found.checkpoint, step=found.step),
            checkpoint=found.model_copy(update=given),
        )

    def train(self, trainer: FakeTrainer, steps: int, plan: dict[int, tuple[Intent, str]] | None = None) -> None:
        """Make `steps` steps at once, from a start if need be; `plan` says which command is sent after how many."""
        self.do(self._train(trainer, steps, plan or {}))

    async def _train(self, trainer: FakeTrainer, steps: int, plan: dict[int, tuple[Intent, str]]) -> None:
        if trainer.generation == 0:
            await trainer.start()
        for number in range(1, steps + 1):
            trainer.clock.skip(1 / STEPS_PER_S)
            await trainer.step()
            if number in plan:
                intent, reason = plan[number]
                author = "autopilot" if isinstance(intent, SetLearningRate) and intent.factor else "ada"
                await trainer.server.submit(Command(uuid=uuid4(), author=author, intent=intent, reason=reason))

    def send(self, trainer: FakeTrainer, intent: Intent) -> None:
        """A command of somebody else's."""
        self.do(trainer.server.submit(Command(uuid=uuid4(), author="bob", intent=intent)))

    def go_on(self, trainer: FakeTrainer, steps_per_s: float) -> None:
        """Let it train at this speed until it ends."""
        self._tasks.append(asyncio.run_coroutine_threadsafe(trainer.run(steps_per_s), self._loop))


def _demo() -> None:
    """Serve a few runs for somebody who wants to look at the console."""
    from control_plane.core.model.commands import Evaluate, SaveCheckpoint

    parser = argparse.ArgumentParser(description=_demo.__doc__)
    parser.add_argument("--port", type=int, default=8700)
    parser.add_argument("--steps-per-s", type=float, default=8.0)
    parser.add_argument("--away", action="store_true", help="leave the run without trainers")
    given = parser.parse_args()
    with FakeCluster(given.port) as cluster:
        print("; ".join(f"export {name}={value}" for name, value in cluster.environment.items()), flush=True)
        trainer = cluster.create(
            "gpt2-7c1e", "gpt2-local", began_s_ago=190, total_steps=5000, ranks_per_node=2, save_every=200
        )
        plan: dict[int, tuple[Intent, str]] = {
            420: (SetLearningRate(factor=0.5), "loss spiked twice within 50 steps"),
            650: (SaveCheckpoint(label="before the next change", pin=True), "before the next change"),
            670: (SetLearningRate(value=2e-4, group=1), "biases and norms may go faster"),
            700: (SetLearningRate(value=9.0), "a typing error"),
        }
        cluster.train(trainer, 737, plan)
        cluster.do(trainer.lose([1], "its process ended", silent_s=0.4))
        cluster.do(trainer.come_back(form_s=3.1))
        cluster.train(trainer, 500, {400: (Evaluate(), "")})
        cluster.do(trainer.fail_a_save("no space left on device"))
        cluster.do(trainer.lose([2, 3], "the node does not answer", silent_s=4.2))
        if not given.away:
            damaged = {"step-00001000-g2": "shard rank-1 is 81,920 bytes long, its manifest says 118,784"}
            cluster.do(trainer.come_back(ranks=2, form_s=5.6, load_s=1.7, refuse=damaged))
            cluster.train(trainer, 150)
        short = cluster.create("gpt2-05aa", "gpt2-local", ranks=2, total_steps=300)
        cluster.train(short, 300)
        cluster.create("gpt2-e0f3", "gpt2-wikitext", ranks=2)
        if not given.away:
            cluster.go_on(trainer, given.steps_per_s)
        threading.Event().wait()


if __name__ == "__main__":
    _demo()
