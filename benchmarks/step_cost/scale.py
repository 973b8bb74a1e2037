"""Scaling with the number of ranks: the boundary's own work, the control server's, and the real collectives.

The boundary is the pure generator that every rank runs. For 8 to 4,096 ranks all of them run in this one process, with
collectives that cost nothing: what remains is each rank's own work, in microseconds of one rank. The control server is
the real one, with a journal on disk; only rank 0 reports to it, so that its work must not grow with the ranks.
The gather of health signs is packed by each rank and read by rank 0, which also lets the monitor look at it: pure work.
On 2, 4 and 8 real processes the same boundary runs over gloo; on a machine with fewer cores they take turns.
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from benchmarks.catalogue import Say
from benchmarks.harness.quantiles import median
from benchmarks.harness.ranks import run_ranks
from benchmarks.harness.result import Bound, Result, Table
from control_plane.api.messages import Progress, Report
from control_plane.core.boundary import (
    COMPARE_EVERY_STEPS,
    AllGather,
    AllReduceMin,
    Applied,
    Apply,
    Broadcast,
    Effect,
    ReadKnobs,
    Replica,
    TakeOffers,
    boundary,
)
from control_plane.core.health.monitor import HealthMonitor
from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.commands import Command, SetLearningRate
from control_plane.core.model.records import MAX_RANKS_LISTED, CommandSettled, RankPlace, RunCreated
from control_plane.core.rules.decisions import GenerationStart
from control_plane.server.control_server import ControlServer
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from ray_jobs.health.vector import RANK_SIGNS, LayerSums, VectorLayout

RANKS = (8, 64, 512, 4096)
QUICK_RANKS = (8, 64)
REAL_RANKS = (2, 4, 8)
QUICK_REAL_RANKS = (2,)
REPORTS = 200
SIGN_GROUPS = 32
"""Groups of layers in the gather of health signs."""

REAL_TIMEOUT_S = 300.0
KNOBS = {"lr": [1e-3, 1e-3], "weight_decay": [0.1, 0.0], "gradient_clipping": 1.0}
READING = Applied(before={"lr": [1e-3, 1e-3]}, after={"lr": [5e-4, 5e-4]})

TARGETS: dict[str, Bound] = {
    "server_time_most_over_least_ranks": {"max": 2.0},
    "journal_bytes_most_over_least_ranks": {"max": 1.5},
}


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` boundaries of each kind and size. Raises `SteerwayError` if a real rank fails."""
    figures: dict[str, float] = {}
    simulated, real = (QUICK_RANKS, QUICK_REAL_RANKS) if quick else (RANKS, REAL_RANKS)
    for ranks in simulated:
        say(f"scale: {ranks} simulated ranks")
        figures |= _of_ranks(ranks, n) | _of_server(ranks) | _of_signs(ranks, n)
    for ranks in real:
        say(f"scale: {ranks} real ranks")
        figures |= _of_processes(ranks, n)
    least, most = min(simulated), max(simulated)
    figures["server_time_most_over_least_ranks"] = figures[f"server_us_{most}"] / figures[f"server_us_{least}"]
    figures["journal_bytes_most_over_least_ranks"] = (
        figures[f"journal_bytes_per_command_{most}"] / figures[f"journal_bytes_per_command_{least}"]
    )
    return Result(figures, TARGETS, n, (_table(figures, simulated), _real_table(figures, real)))


def _of_ranks(ranks: int, n: int) -> dict[str, float]:
    command = _command(1)
    return {
        f"quiet_us_per_rank_{ranks}": _boundary_us(ranks, n, 1, ()),
        f"command_us_per_rank_{ranks}": _boundary_us(ranks, max(1, n // 4), 1, (command,)),
        f"compare_us_per_rank_{ranks}": _boundary_us(ranks, max(1, n // 4), COMPARE_EVERY_STEPS, ()),
    }


def _boundary_us(ranks: int, n: int, step: int, offers: tuple[Command, ...]) -> float:
    """Return one rank's share of a boundary of all ranks, in microseconds: the median of `n`."""
    taken_us = []
    for _ in range(n):
        steps = [boundary(Replica(generation=1), step) for _ in range(ranks)]
        begun_ns = time.perf_counter_ns()
        answers: list[Any] = [None] * ranks
        try:
            while True:
                effects = [each.send(answer) for each, answer in zip(steps, answers, strict=True)]
                answers = _answers(effects, offers)
        except StopIteration:
            # Rank 0 is through, and so are all: they yield the same effects.
            for each in steps[1:]:
                each.close()
        taken_us.append((time.perf_counter_ns() - begun_ns) / 1e3 / ranks)
    return median(taken_us)


def _of_signs(ranks: int, n: int) -> dict[str, float]:
    """Return the times of the gather's own work: one rank packs; rank 0 combines all vectors, and the monitor looks."""
    layout, monitor = VectorLayout([f"h.{index}" for index in range(SIGN_GROUPS)]), HealthMonitor(HealthSettings())
    row = [1e-3 * (1 + index) for index in range(SIGN_GROUPS)]
    taken_us: dict[str, list[float]] = {"pack": [], "combine": [], "look": []}
    for number in range(1, n + 1):
        signs = dict.fromkeys(RANK_SIGNS, 1.0 + 0.001 * (number % 7))
        begun_ns = time.perf_counter_ns()
        vector = layout.pack(signs, LayerSums(row, row, row))
        packed_ns = time.perf_counter_ns()
        vectors = np.tile(vector, (ranks, 1))
        tiled_ns = time.perf_counter_ns()
        gathered = layout.combine(vectors)
        layers = gathered.layer_signs(layout.groups, 1.0, [True] * SIGN_GROUPS)
        combined_ns = time.perf_counter_ns()
        monitor.observe(number, signs | layers | {"loss_local": signs["loss"]}, gathered.by_rank)
        looked_ns = time.perf_counter_ns()
        spans_ns = {
            "pack": packed_ns - begun_ns,
            "combine": combined_ns - tiled_ns,
            "look": looked_ns - combined_ns,
        }
        for name, span_ns in spans_ns.items():
            taken_us[name].append(span_ns / 1e3)
    kib = ranks * len(layout) * 8 / 1024
    return {f"signs_{name}_us_{ranks}": median(taken) for name, taken in taken_us.items()} | {
        f"signs_gathered_kib_{ranks}": kib
    }


def _answers(effects: Sequence[Effect], offers: tuple[Command, ...]) -> list[Any]:
    """Return the results of collectives at no cost: equal values are one object."""
    first, count = effects[0], len(effects)
    match first:
        case TakeOffers():
            return [offers] + [()] * (count - 1)
        case Broadcast():
            return [first.commands] * count
        case AllReduceMin():
            return [first.value] * count
        case AllGather():
            return [[first.value] * count] * count
        case Apply():
            return [READING] * count
        case ReadKnobs():
            return [KNOBS] * count
        case _:
            return [None] * count


def _of_server(ranks: int) -> dict[str, float]:
    """Return a control server's microseconds per report and journal bytes per command, for so many ranks."""
    with tempfile.TemporaryDirectory(prefix="steerway-bench-") as name:
        files = RunFiles(Path(name) / "runs" / "scale")
        files.root.mkdir(parents=True)
        created = RunCreated(run="scale", name="scale", author="benchmark", config_sha256="0" * 64)
        server = ControlServer(created, Journal.open(files.journal), MetricsStore(files.metrics))
        return asyncio.run(_served(server, ranks, files))


async def _served(server: ControlServer, ranks: int, files: RunFiles) -> dict[str, float]:
    places = tuple(RankPlace(rank=rank, node=f"node-{rank // 8}", pid=rank, device="cpu") for rank in range(ranks))
    await server.start_generation(GenerationStart(UUID(int=1), places, 0, REPORTS, KNOBS, {}))
    before_bytes, taken_us = _journal_bytes(files), []
    for step in range(1, REPORTS + 1):
        command = _command(step)
        await server.submit(command)
        listed = tuple(READING.after for _ in range(ranks)) if ranks <= MAX_RANKS_LISTED else ()
        outcome = CommandSettled(
            uuid=command.uuid,
            status="applied",
            step=step,
            generation=1,
            before=READING.before,
            after=READING.after,
            world_size=ranks,
            ranks=listed,
        )
        begun_ns = time.perf_counter_ns()
        await server.offers(1, -1, 0.0)
        await server.report(
            Report(generation=1, outcomes=(outcome,), progress=Progress(step=step, total_steps=REPORTS))
        )
        taken_us.append((time.perf_counter_ns() - begun_ns) / 1e3)
    return {
        f"server_us_{ranks}": median(taken_us),
        f"journal_bytes_per_command_{ranks}": (_journal_bytes(files) - before_bytes) / REPORTS,
    }


def _journal_bytes(files: RunFiles) -> int:
    path = files.journal
    return sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())


def _of_processes(ranks: int, n: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="steerway-bench-") as name:
        answers = run_ranks("benchmarks.step_cost.scale_rank:run", ranks, {"n": n}, Path(name), REAL_TIMEOUT_S)
    return {f"gloo_{kind}_us_{ranks}": max(median(answer[kind]) for answer in answers) for kind in ("quiet", "command")}


def _command(number: int) -> Command:
    return Command(uuid=UUID(int=number), author="benchmark", intent=SetLearningRate(value=5e-4))


def _table(figures: dict[str, float], ranks: Sequence[int]) -> Table:
    rows = {
        "quiet boundary, one rank's own work (us)": "quiet_us_per_rank",
        "boundary with a command, one rank's own work (us)": "command_us_per_rank",
        "boundary with a comparison, one rank's own work (us)": "compare_us_per_rank",
        "signs of health, one rank packs its vector (us)": "signs_pack_us",
        "signs of health, rank 0 combines all vectors (us)": "signs_combine_us",
        "signs of health, the monitor looks at them (us)": "signs_look_us",
        "signs of health, gathered by each rank (KiB)": "signs_gathered_kib",
        "control server, offers and a report (us)": "server_us",
        "journal, a command's whole life (bytes)": "journal_bytes_per_command",
    }
    texts = tuple((told, *(f"{figures[f'{name}_{count}']:.1f}" for count in ranks)) for told, name in rows.items())
    return Table("simulated ranks", tuple(str(count) for count in ranks), texts)


def _real_table(figures: dict[str, float], ranks: Sequence[int]) -> Table:
    rows = tuple(
        (f"{kind} boundary over gloo (us)", *(f"{figures[f'gloo_{kind}_us_{count}']:.0f}" for count in ranks))
        for kind in ("quiet", "command")
    )
    return Table("real processes", tuple(str(count) for count in ranks), rows)
