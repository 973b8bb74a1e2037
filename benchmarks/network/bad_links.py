"""Bad links: a run under delay, loss, flaps and a one-way cut of one rank's link, steered meanwhile.

For each fault: steps from a command's acceptance to the boundary that applied it, ranks that differed, generations that
failed, and whether the digests of the live state equal those of the same training without any fault. The commands
multiply the learning rate by one, so that they are applied and read back on all ranks and change no digest.
"""

import bisect
import json
import threading
import time
from collections.abc import Callable, Mapping

from benchmarks.catalogue import Say
from benchmarks.harness.quantiles import median
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.network.cluster_run import RANKS, RUN, STEERWAY_HOME, ClusterRun
from benchmarks.network.links import Direction, Link
from benchmarks.network.machines import Rig
from benchmarks.recovery.diary import read_processes, steps_of_all
from control_plane.api.head_variables import environment
from control_plane.core.model.errors import SteerwayError
from control_plane.core.model.records import CommandSettled, GenerationLost, StateDigested

DIGEST_EVERY_STEPS = 10
BEFORE_STEPS = 20
START_WAIT_S, COMMANDS_WAIT_S = 300.0, 300.0
SHORT_S = 3.0
"""Length of a flap and of a one-way cut: shorter than `recovery.hang_after_s`, after which a rank is given up."""

COMMANDS = """
import asyncio, json, sys, time
from pathlib import Path
from uuid import uuid4
import ray
ray.init("auto", log_to_driver=False, logging_level="ERROR")
from control_plane.actor.remote import RayHandle
from control_plane.core.model.commands import Command, SetLearningRate
from control_plane.storage.layout import RunFiles

async def main():
    handle, sent = RayHandle(RunFiles(Path(sys.argv[1]))), []
    for _ in range(int(sys.argv[2])):
        command = Command(uuid=uuid4(), author="rig", intent=SetLearningRate(factor=1.0))
        await handle.submit(command)
        sent.append([str(command.uuid), time.time()])
        while (await handle.command(command.uuid)).settled is None:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
    print(json.dumps(sent))

asyncio.run(main())
"""

FAULTS: Mapping[str, Callable[[Link], None]] = {
    "none": lambda link: None,
    "delay of 200 ms": lambda link: link.delay(200),
    "loss of 5 %": lambda link: link.loss(5),
    "flapping": lambda link: link.flap(3, SHORT_S, SHORT_S),
    "one-way cut": lambda link: one_way(link),
}

TARGETS: dict[str, Bound] = {
    "boundaries_worst": {"max": 2},
    "commands_divergent": {"max": 0},
    "failed_generations": {"max": 0},
    "digests_different": {"max": 0},
}


def one_way(link: Link) -> None:
    """Cut what the machine receives, then what it sends, for a short time each."""
    directions: tuple[Direction, ...] = ("in", "out")
    for direction in directions:
        link.cut(direction)
        time.sleep(SHORT_S)
        link.heal()
        time.sleep(SHORT_S)


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure every fault with `n` commands. Raises `SteerwayError`."""
    digests: dict[int, tuple[str, ...]] = {}
    rows: list[tuple[str, ...]] = []
    figures = dict.fromkeys(TARGETS, 0.0) | {"commands": 0.0, "digests_compared": 0.0}
    for name, fault in FAULTS.items():
        found = _under(fault, n)
        boundaries, divergent, failed, own = found
        compared = {step: ranks for step, ranks in own.items() if step in digests}
        different = sum(digests[step] != ranks for step, ranks in compared.items())
        digests = digests or own
        figures["boundaries_worst"] = max(figures["boundaries_worst"], *map(float, boundaries))
        figures["commands_divergent"] += divergent
        figures["failed_generations"] += failed
        figures["digests_different"] += different
        figures["digests_compared"] += len(compared)
        figures["commands"] += len(boundaries)
        rows.append(
            (name, f"{median(boundaries):g}", str(max(boundaries)), str(failed), f"{different}/{len(compared)}")
        )
        say(f"bad_links: {name}: boundaries {boundaries}, failed {failed}, digests different {rows[-1][-1]}")
    columns = ("boundaries p50", "worst", "failed generations", "digests different")
    return Result(figures, TARGETS, n, (Table("bad links", columns, tuple(rows)),))


def _under(fault: Callable[[Link], None], n: int) -> tuple[list[int], int, int, dict[int, tuple[str, ...]]]:
    with Rig() as rig:
        run = ClusterRun(rig, RANKS, environment())
        run.start({"checkpoint": {"every_steps": 100}, "digest": {"every_steps": DIGEST_EVERY_STEPS}})
        run.wait("training", START_WAIT_S, lambda: len(_ends(run)) >= BEFORE_STEPS)
        link = run.carriers()[1].link
        hurting = threading.Thread(target=fault, args=(link,))
        hurting.start()
        time.sleep(0.5)
        folder = str(STEERWAY_HOME / "runs" / RUN)
        done = run.head.run("python", "-c", COMMANDS, folder, str(n), env=run.environment(), timeout_s=COMMANDS_WAIT_S)
        hurting.join()
        link.heal()
        if done.returncode:
            raise SteerwayError(f"the commands could not be sent:\n{done.stderr[-2000:]}")
        sent = dict(json.loads(done.stdout.splitlines()[-1]))
        return _found(run, sent)


def _ends(run: ClusterRun) -> dict[int, float]:
    return steps_of_all(read_processes(run.diaries), RANKS)


def _found(run: ClusterRun, sent: Mapping[str, float]) -> tuple[list[int], int, int, dict[int, tuple[str, ...]]]:
    """Return the boundaries that each command took, those not applied alike on all ranks, failures and digests."""
    records = [entry.record for entry in run.journal()]
    outcomes = {str(r.uuid): r for r in records if isinstance(r, CommandSettled) and str(r.uuid) in sent}
    ended = sorted(_ends(run).values())
    boundaries = [
        (outcomes[uuid].step or 0) - bisect.bisect(ended, at_s) for uuid, at_s in sent.items() if uuid in outcomes
    ]
    divergent = len(sent) - sum(outcome.status == "applied" for outcome in outcomes.values())
    failed = sum(isinstance(record, GenerationLost) for record in records)
    digests = {record.step: record.ranks for record in records if isinstance(record, StateDigested)}
    return boundaries, divergent, failed, digests
