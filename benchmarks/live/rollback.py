"""Rollback of a live run of two ranks: seconds from the command to the end of the next step.

One run of `configs/gpt2-local.yaml` for each ZeRO stage, on a cluster of its own. It is rolled back in its living
processes, again and again; beside that, the same is done as one would do it without: the run is stopped, and a new job
is submitted that begins at the checkpoint. Both are timed by the same client, from the moment before the request to the
moment when it hears of a step that was made from the checkpoint on. It waits without asking again and again: on a small
machine that would take its time from the ranks.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import own_cluster, wait_closed, wait_running
from benchmarks.harness.quantiles import median
from benchmarks.harness.result import Bound, Result, Table
from control_plane.client import SteerwayClient
from control_plane.config import Settings
from control_plane.core.model.commands import Command, SaveCheckpoint, SetLearningRate, Stop
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.intents import Rollback
from control_plane.core.model.records import GenerationStarted
from ray_jobs.config.run_config import load
from ray_jobs.submit import prepare, resume, submit

CONFIG = Path(__file__).parents[2] / "configs" / "gpt2-local.yaml"
STAGES = (1, 2, 3)
STEP_WITHIN_S = 120.0
LOOK_EVERY_S = 0.1
POLL_S = 10.0
STEPS_BEFORE = 100
"""Steps before the first rollback: by then warm spares have imported everything, and take no time from the ranks."""

STEPS_BETWEEN = 5
"""Steps on each branch before the next rollback."""

TARGETS: dict[str, Bound] = {f"in_place_s_zero{stage}": {"max": 3.0} for stage in STAGES}


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` rollbacks in place for each stage, and one by a new job for each."""
    stages = STAGES[1:2] if quick else STAGES
    figures: dict[str, float] = {}
    rows = []
    with own_cluster(say) as where, SteerwayClient.from_settings(where) as client:
        for stage in stages:
            in_place, by_a_new_job = _stage(where, client, stage, n, say)
            figures |= {
                f"in_place_s_zero{stage}": median(in_place),
                f"in_place_s_worst_zero{stage}": max(in_place),
                f"new_job_s_zero{stage}": by_a_new_job,
                f"new_job_over_in_place_zero{stage}": by_a_new_job / median(in_place),
            }
            times = f"{median(in_place):.1f} s, worst {max(in_place):.1f} s"
            rows.append((f"ZeRO {stage}", times, f"{by_a_new_job:.1f} s"))
    table = Table("to the first step from the checkpoint", ("in place", "stop, and a new job"), tuple(rows))
    targets = {name: bound for name, bound in TARGETS.items() if name in figures}
    return Result(figures=figures, targets=targets, n=n, tables=(table,))


def _stage(where: Settings, client: SteerwayClient, stage: int, n: int, say: Say) -> tuple[list[float], float]:
    with tempfile.TemporaryDirectory() as folder:
        run = _start(where, stage, Path(folder))
        wait_running(client, run)
        _wait_for_step(client, run, STEPS_BEFORE, time.monotonic() + STEP_WITHIN_S)
        saved = client.wait_settled(run, client.submit(run, SaveCheckpoint(pin=True)).uuid, STEP_WITHIN_S).settled
        assert saved is not None
        assert saved.after is not None
        back = Rollback(checkpoint=saved.after["checkpoint"], first=(SetLearningRate(factor=0.5),))
        in_place = []
        for number in range(n):
            in_place.append(_until_a_step(client, run, saved.step or 0, lambda: client.submit(run, back)))
            say(f"ZeRO {stage}: rollback {number + 1} of {n}: {in_place[-1]:.1f} s")
            _wait_for_step(client, run, (saved.step or 0) + STEPS_BETWEEN, time.monotonic() + STEP_WITHIN_S)
        by_a_new_job = _until_a_step(client, run, saved.step or 0, lambda: _by_a_new_job(where, client, run, back))
        say(f"ZeRO {stage}: stopped, and begun there by a new job: {by_a_new_job:.1f} s")
        client.submit(run, Stop())
        wait_closed(client, run)
    return in_place, by_a_new_job


def _start(where: Settings, stage: int, folder: Path) -> str:
    changes = ["training.max_steps=100000", "training.eval_strategy='no'", "checkpoint.every_steps=0"]
    config = load(CONFIG, [*changes, f"deepspeed.zero_optimization.stage={stage}"])
    files = prepare(config, where.runs_dir, f"rollback-zero{stage}")
    submit(files, where)
    return files.run


def _by_a_new_job(where: Settings, client: SteerwayClient, run: str, back: Rollback) -> None:
    client.submit(run, Stop())
    wait_closed(client, run)
    command = Command(uuid=uuid4(), author="benchmark", intent=back).model_dump_json()
    deadline_s = time.monotonic() + STEP_WITHIN_S
    while True:  # Ray takes a moment to see that the job before has ended
        try:
            resume(where, run, False, command)
        except SteerwayError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(LOOK_EVERY_S)
        else:
            return


def _until_a_step(client: SteerwayClient, run: str, step: int, ask: Callable[[], object]) -> float:
    after, began_s = client.snapshot(run).seq, time.monotonic()
    deadline_s = began_s + STEP_WITHIN_S
    ask()
    while time.monotonic() < deadline_s:
        for entry in client.journal(run, after=after, wait_s=POLL_S):
            after = entry.seq
            if isinstance(entry.record, GenerationStarted):
                _wait_for_step(client, run, step + 1, deadline_s)
                return time.monotonic() - began_s
    raise SteerwayError(f"no trainers of {run} began within {STEP_WITHIN_S:g} s:\n{client.logs(run, lines=15)}")


def _wait_for_step(client: SteerwayClient, run: str, step: int, deadline_s: float) -> None:
    """Wait until the trainers have made that step. Raises `SteerwayError` if they do not."""
    while time.monotonic() < deadline_s:
        if client.snapshot(run).step >= step:
            return
        time.sleep(LOOK_EVERY_S)
    raise SteerwayError(f"run {run} did not make step {step}:\n{client.logs(run, lines=15)}")
