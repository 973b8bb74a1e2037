"""Rank of the study: real steered trainings on one CPU, one after the other, and the pre-training before them.

Each training has a control server in rank 0's process and a journal on disk. The recorded interventions are commands,
each accepted for its step before the first one: voted on, applied and read back at the boundary, as they were.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import TypeAdapter

from benchmarks.studies.human import plan
from benchmarks.studies.human.plan import Trial
from benchmarks.studies.human.script import Script
from benchmarks.studies.human.weights import pretrained
from benchmarks.studies.results import append
from control_plane.core.model.commands import Command, Intent
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import CommandAccepted, CommandSettled, RunCreated
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal import writer
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from ray_jobs.loop.session import TrainingSession
from ray_jobs.process import context
from ray_jobs.steering.rollback import forget_training

ARRIVAL_LIMIT_S, POLL_S = 30.0, 0.005
INTENT: TypeAdapter[Any] = TypeAdapter(Intent)


def pretrain(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Return what the pre-trained weights are: digest, losses, seconds. `spec`: steps."""
    made = pretrained(spec["steps"])
    return {name: value for name, value in made.items() if name != "state"}


def run_trials(rank: int, spec: dict[str, Any]) -> int:
    """Run the trials, and append a result of each; return their number. `spec`: trials, results, folder, options."""
    weights = pretrained(spec["options"]["pretraining_steps"])
    for index, given in enumerate(spec["trials"]):
        trial = Trial(**{name: value for name, value in given.items() if name != "key"})
        if trial.weights != weights["digest"]:
            raise SteerwayError("the pre-trained weights are not those of the study's other runs; begin a new file")
        row = _run(trial, weights["state"], Path(spec["folder"]), f"human-{index}", spec["options"]["interventions"])
        append(Path(spec["results"]), {"key": given["key"]} | row)
    return len(spec["trials"])


def _run(
    trial: Trial, state: dict[str, Any], folder: Path, name: str, interventions: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    files = RunFiles(folder / "runs" / name)
    files.root.mkdir(parents=True)
    created = RunCreated(run=files.run, name=files.run, author="study", config_sha256="0" * 64)
    server = ControlServer(created, Journal.open(files.journal), MetricsStore(files.metrics))
    loops: list[asyncio.AbstractEventLoop] = []

    def connect() -> Any:
        loops.append(asyncio.get_event_loop())  # of the link's thread, in which the control server lives
        return server

    def opened(session: TrainingSession) -> None:
        if trial.is_steered:
            _send(interventions, session, server, loops[0])

    context.enter(context.RunContext(files=files, connect=connect, key_file=folder / "key"))
    script = Script(trial.rate, trial.seed, trial.steps, state)
    began_s, cpu_s = time.monotonic(), time.process_time()
    try:
        script.train(opened)
    finally:
        context.enter(None)
        forget_training()
    seconds, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
    return {
        "trial": trial.spec(),
        "eval_loss": script.final_loss(),
        "evals": script.evals,
        "losses": [float(f"{loss:.5g}") for loss in script.losses[:: plan.CURVE_EVERY_STEPS]],
        "rates": [float(f"{rate:.4g}") for rate in script.rates[:: plan.CURVE_EVERY_STEPS]],
        "applied": _applied(files),
        "seconds": seconds,
        "cpu_s": cpu_s,
    }


def _send(
    interventions: Sequence[Mapping[str, Any]],
    session: TrainingSession,
    server: ControlServer,
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Submit the interventions, each for its step, and wait until rank 0 was offered all of them."""
    assert session._steering is not None
    link = session._steering.opened().link
    assert link is not None
    commands = [
        Command(
            uuid=uuid4(),
            author="study",
            intent=INTENT.validate_python(given["intent"]),
            reason=given["reason"],
            not_before_step=given["step"],
        )
        for given in interventions
    ]
    for command in commands:
        asyncio.run_coroutine_threadsafe(server.submit(command), loop).result(ARRIVAL_LIMIT_S)
    deadline = time.monotonic() + ARRIVAL_LIMIT_S
    while not {command.uuid for command in commands} <= {each.uuid for each in link.offers()}:
        if time.monotonic() > deadline:
            raise SteerwayError(f"the interventions did not reach rank 0 within {ARRIVAL_LIMIT_S:g} s")
        time.sleep(POLL_S)


def _applied(files: RunFiles) -> list[dict[str, Any]]:
    """Return the commands as the journal has them: step, what, status, values before and after."""
    records = [entry.record for entry in writer.read(files.journal)]
    asked = {each.command.uuid: each.command for each in records if isinstance(each, CommandAccepted)}
    return [
        {
            "step": record.step,
            "what": asked[record.uuid].intent.describe(),
            "status": record.status,
            "before": dict(record.before or {}),
            "after": dict(record.after or {}),
        }
        for record in records
        if isinstance(record, CommandSettled) and record.uuid in asked
    ]
