"""What a rank does with a stranger's script: it is started as it is, steered from outside, and perhaps killed.

The script knows nothing of this: it is watched in the places where every loop comes by. See `crashes` for who starts
the ranks again.
"""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import torch.distributed as dist

from control_plane.core.model.commands import Command
from control_plane.server.control_server import ControlServer
from control_plane.storage.layout import RunFiles
from ray_jobs.config.sections import ScriptWorkload
from ray_jobs.process import context
from ray_jobs.process.work_folder import enter_work_folder
from ray_jobs.steered_run import SteeredRun
from ray_jobs.train import run_script
from tests.ray_jobs.trials.crash_trials import _known, die
from tests.ray_jobs.trials.trials import open_server

PHASES = ("in the step", "before its boundary", "after its boundary")
FIRST_UUID = 1000


def live(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """One life of a script. `kill`: [rank, training, step, phase]; `asked`: [training, intent, not before step]."""
    import datasets
    from transformers import set_seed

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # A user's own cache would be filled, and its content found again by the next test.
    datasets.config.HF_DATASETS_CACHE = Path(spec["root"]) / "cache"
    files = RunFiles(Path(spec["root"]) / "runs" / "crashed")
    files.root.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    known = _known(files)
    server = open_server(files, []) if rank == 0 else None
    run = context.RunContext(
        files=files,
        connect=lambda: server,  # type: ignore[arg-type,return-value]
        checkpoint_every_steps=spec["every_steps"],
        digest_every_steps=1,
    )
    _watch(run, rank, server, spec, known)
    context.enter(run)
    script = Path(spec["script"])
    enter_work_folder(files, script)
    set_seed(spec["seed"])
    run_script(ScriptWorkload(kind="script", path=str(script), args=spec["args"]), run.trainings)
    return {"trainings": run.trainings.begun}


def _watch(
    run: context.RunContext, rank: int, server: ControlServer | None, spec: dict[str, Any], known: set[str]
) -> None:
    """Let every step of every loop pass by here."""
    begin, boundary = SteeredRun.begin_step, SteeredRun.boundary
    kill = spec["kill"][1:] if spec.get("kill") and spec["kill"][0] == rank else None

    def begun(self: SteeredRun) -> None:
        _settle(self)
        if server is not None:
            _ask(self, server, run.trainings.begun, spec.get("asked", []), known)
        if kill == [run.trainings.begun, self.training.loop.step + 1, PHASES[0]]:
            die()
        begin(self)

    def ended(self: SteeredRun, step: int) -> None:
        if kill == [run.trainings.begun, step, PHASES[1]]:
            die()
        boundary(self, step)
        if kill == [run.trainings.begun, step, PHASES[2]]:
            die()

    SteeredRun.begin_step = begun  # type: ignore[method-assign]
    SteeredRun.boundary = ended  # type: ignore[method-assign]


def _settle(steering: Any) -> None:
    """The journal has every checkpoint and every digest, whenever a rank is killed."""
    steering.saver.writer.drain(60)
    session = steering.opened()
    session._report_outcomes()
    while session.link is not None and (session.link._checkpoints or session.link._digests):
        session.link._nudge()
        time.sleep(0.001)


def _ask(steering: Any, server: ControlServer, training: int, asked: list[list[Any]], known: set[str]) -> None:
    """Everything that is asked of this training is asked for in its first step; what the journal has, was."""
    for number, (place, intent, not_before) in enumerate(asked):
        uuid = UUID(int=FIRST_UUID + number)
        if place == training and str(uuid) not in known:
            known.add(str(uuid))
            command = Command(uuid=uuid, author="test", intent=intent, not_before_step=not_before)
            asyncio.run_coroutine_threadsafe(server.submit(command), steering.opened().link._loop).result(30)
