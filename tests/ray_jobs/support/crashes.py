"""Trainings that are killed and started again, as Ray Train would do it, in processes that are forked from one that has
imported everything: so a start costs a second and not twenty.

`main` finds FOLDER/spec.json: {"world_size": .., "trainings": [..]}. Each training: root, stage, scheduler, optimizer,
steps, every_steps, commands, and `kills`, one for each generation that shall be killed: [rank, step, phase]. Its
`world_sizes`, if it has some, are those of its generations. Answers, per training, what its `function`
(`crash_trials.train`) saw in the last generation.
"""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from control_plane.core.model.records import CheckpointCommitted
from control_plane.storage.checkpoint.store import SigningKey, commit, read_manifest
from control_plane.storage.journal import writer
from control_plane.storage.layout import RunFiles
from tests.ports import free_port
from tests.ray_jobs.support.preloaded import RANK_ENVIRONMENT, interpreter

GENERATION_S = 120.0
"""No generation of these trainings needs longer, even on a busy machine."""


def run_crashes(trainings: list[dict[str, Any]], world_size: int, folder: Path) -> list[dict[str, Any]]:
    """Run these trainings; answers for each `{"ranks": [...], "generations": n, "died": [...]}`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps({"world_size": world_size, "trainings": trainings}))
    environment = os.environ | RANK_ENVIRONMENT
    forked = interpreter(0).start("tests.ray_jobs.support.crashes:main", folder, folder / "out", environment)
    try:
        status = forked.wait(GENERATION_S * 40)
    finally:
        forked.kill()
    assert status == 0, (folder / "out").read_text()[-6000:]
    return list(json.loads((folder / "answers.json").read_text()))


def main(folder: Path) -> None:
    given = json.loads((folder / "spec.json").read_text())
    answers = []
    for number, training in enumerate(given["trainings"]):
        answers.append(_survive(training, given["world_size"], folder / f"training-{number}"))
        (folder / "answers.json").write_text(json.dumps(answers))


def _survive(training: dict[str, Any], world_size: int, folder: Path) -> dict[str, Any]:
    """Start the trainers again until a generation ends by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    died = []
    for generation, kill in enumerate([*training.get("kills", []), None]):
        _damage(training, generation)
        world_size = training.get("world_sizes", [world_size] * (generation + 1))[generation]
        statuses = _generation({**training, "kill": kill}, world_size, folder / f"generation-{generation}")
        if all(status == 0 for status in statuses):
            break
        assert kill is not None, _logs(folder / f"generation-{generation}")
        died.append({"kill": kill, "statuses": statuses})
    last = folder / f"generation-{generation}"
    ranks = [json.loads((last / f"rank-{rank}.json").read_text()) for rank in range(world_size)]
    return {"ranks": ranks, "generations": generation + 1, "died": died}


def _damage(training: dict[str, Any], generation: int) -> None:
    """Flip a bit in a shard of the newest checkpoints, or of the oldest, before a given generation starts.

    Or put another checkpoint of that name and run in its place, which this installation has signed as well.
    """
    wanted = training.get("damage")
    if not wanted or wanted["generation"] != generation:
        return
    files = RunFiles(Path(training["root"]) / "runs" / "crashed")
    records = [entry.record for entry in writer.read(files.journal)]
    whole = [files.root / record.path for record in records if isinstance(record, CheckpointCommitted)]
    for folder in whole[-wanted["newest"] :] if "newest" in wanted else whole[: wanted["oldest"]]:
        if wanted.get("another"):
            key = SigningKey.of_installation(files.signing_key)
            older = read_manifest(folder, key).model_copy(update={"saved_at": "2020-01-01T00:00:00+00:00"})
            commit(folder, older, key)
            continue
        shard = max((folder / "state").glob("*.pt"), key=lambda path: path.stat().st_size)
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)


def _generation(training: dict[str, Any], world_size: int, folder: Path) -> list[int]:
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    pids = [_fork(training, rank, world_size, port, folder) for rank in range(world_size)]
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + GENERATION_S
    while len(statuses) < world_size:
        for pid in [pid for pid in pids if pid not in statuses]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        if any(statuses.values()) or time.monotonic() > deadline:
            # As Ray Train does it: one death is the death of the group.
            for pid in [pid for pid in pids if pid not in statuses]:
                os.kill(pid, signal.SIGKILL)
                statuses[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.005)
    return [statuses[pid] for pid in pids]


def _fork(training: dict[str, Any], rank: int, world_size: int, port: int, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        log = os.open(folder / f"rank-{rank}.out", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        shared = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "RANK": rank, "LOCAL_RANK": rank}
        os.environ.update({name: str(value) for name, value in shared.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
        _rank(training, rank, folder)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _rank(training: dict[str, Any], rank: int, folder: Path) -> None:
    import torch.distributed as dist

    from ray_jobs.process.cpu_setup import prepare_cpu_ranks

    dist.init_process_group("gloo")
    prepare_cpu_ranks()
    module, name = training.get("function", "tests.ray_jobs.trials.crash_trials:train").split(":")
    answer = getattr(importlib.import_module(module), name)(rank, training)
    (folder / f"rank-{rank}.json").write_text(json.dumps(answer))


def _logs(folder: Path) -> str:
    return "\n".join(f"--- {path}\n{path.read_text()[-4000:]}" for path in sorted(folder.glob("*.out")))
