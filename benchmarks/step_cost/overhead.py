"""Overhead of Steerway on a training, measured in two ways, each with a 95 % interval.

    blocks      one training, whose steps are made in blocks with Steerway's callbacks and their boundary, and without
    trainings   whole trainings: the steered Trainer with all of its threads, and the plain one of Transformers

The arms take turns, A B B A, in the same two processes of a Ray Train worker group on CPUs, which train
`configs/gpt2-local.yaml`; the steered arm has a real control actor. Beside each plain block or training there is
another plain one, for an A/A comparison of two equal things. The target is met only if the upper ends of both intervals
are below it; if they are not, but no cost above it is shown either, it is not proved.

Not included: the cost of checkpoints, see `checkpoint`; the control actor's processor time is only in the wall time.
"""

import json
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Say
from benchmarks.harness.paired_bootstrap import Estimate, overhead
from benchmarks.harness.quantiles import median, midpoint, quantile
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.harness.training import prepare_rank, shipped_config
from cluster.environment import ray_environment, ray_token_file
from control_plane.config import Settings
from control_plane.core.model.errors import SteerwayError
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import replace_file

RANKS = 2
LEAST_BLOCKS, LEAST_PAIRS = 60, 12
BLOCKS_PER_PAIR = LEAST_BLOCKS // LEAST_PAIRS
LOGICAL_CPUS = 4
"""Ray counts CPUs and does not bind them: two ranks and Ray Train's controller must fit."""

OBJECT_STORE_BYTES = 128 * 1024**2
TORCH_TIMEOUT_S = 300
LOOK_EVERY_S = 5.0

LIMIT_PERCENT = 1.0
BLOCKS, TRAININGS = "blocks_wall_percent", "trainings_wall_percent"
TARGETS: dict[str, Bound] = {
    f"{BLOCKS}_high": {"max": LIMIT_PERCENT},
    f"{TRAININGS}_high": {"max": LIMIT_PERCENT},
    "blocks": {"min": LEAST_BLOCKS},
    "pairs": {"min": LEAST_PAIRS},
}

RUN_LENGTHS = {"blocks": 4, "trainings": 1}
"""Block sizes of the bootstrap: four rounds of blocks take half a minute, and so does one of trainings."""

COMPARED = {"": ("steered", "plain"), "aa_": ("again", "plain")}
MEASURES = {"wall": "wall time", "cpu": "processor time"}

Timed = dict[str, Any]
"""Block or training on one rank: `round`, `arm`, `steps`, `wall_s`, `cpu_s`, and its parts `threads_s` and
`monitors_s`; a block also has `boundary_us` of each step."""


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` blocks per arm and `n` / 5 pairs of trainings. Raises `SteerwayError` if the worker group fails."""
    # Ray adds long names of sockets to this folder's, and a socket's path holds 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="steerway-", dir="/tmp"))
    try:
        files = RunFiles(folder / "runs" / "overhead")
        files.root.mkdir(parents=True)
        files.config.write_text(shipped_config().to_yaml())
        with own_ray(folder), _progress_told(files, say):
            _fit(files, {"blocks": n, "pairs": max(1, n // BLOCKS_PER_PAIR), "quick": quick})
        ranks = [json.loads((files.root / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result_of(ranks, n)


@contextmanager
def own_ray(folder: Path) -> Iterator[None]:
    """Start Ray in this process, without dashboard, gateway and console, which would take processor time."""
    where = Settings(home=folder)
    replace_file(ray_token_file(where), secrets.token_hex(32))
    os.environ.pop("RAY_ADDRESS", None)
    os.environ |= ray_environment(where) | {"RAY_TRAIN_ENABLE_STATE_TRACKING": "0"}  # Ray reads it when imported
    import ray

    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local",
            num_cpus=LOGICAL_CPUS,
            num_gpus=0,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _node_ip_address=where.host,
            _temp_dir=str(folder / "ray"),
        )
        # Ray puts in a handler that ends this process with a dump of its stack.
        signal.signal(signal.SIGTERM, ours)
        yield
    finally:
        ray.shutdown()


def _fit(files: RunFiles, wanted: dict[str, Any]) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from control_plane.actor.control_actor import get_or_create

    actor = get_or_create(files)
    trainer = TorchTrainer(
        _train,
        train_loop_config={"root": str(files.root)} | wanted,
        scaling_config=ScalingConfig(num_workers=RANKS, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=files.run,
            storage_path=str(files.root / "ray_train"),
            failure_config=FailureConfig(max_failures=0),
        ),
        torch_config=TorchConfig(backend="gloo", timeout_s=TORCH_TIMEOUT_S),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise SteerwayError(f"the worker group failed: {error}") from error
    del actor


def _train(given: dict[str, Any]) -> None:
    """Train in a worker of Ray Train; writes `rank-R.json`."""
    prepare_rank()
    from benchmarks.step_cost import overhead_rank  # not before: it imports DeepSpeed

    rank, files = int(os.environ["RANK"]), RunFiles(Path(given["root"]))
    progress = files.root / f"progress-{rank}"
    seen = overhead_rank.train(given, files, progress.write_text)
    (files.root / f"rank-{rank}.json").write_text(json.dumps(seen))


@contextmanager
def _progress_told(files: RunFiles, say: Say) -> Iterator[None]:
    """Print the progress of the ranks, at intervals."""
    say("overhead: starting Ray and the ranks ...")
    over = threading.Event()

    def look() -> None:
        last = ""
        while not over.wait(LOOK_EVERY_S):
            path = files.root / "progress-0"
            line = path.read_text() if path.is_file() else ""
            if line != last:
                say(f"overhead: {line}")
                last = line

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def result_of(ranks: Sequence[dict[str, Any]], n: int) -> Result:
    """Return the result of the ranks' measurements: `blocks` and `trainings`, each a list of `Timed`."""
    estimates = {
        f"{kind}_{prefix}{measured}_percent": overhead(
            _times_s(ranks, kind, arm, measured), _times_s(ranks, kind, other, measured), RUN_LENGTHS[kind]
        )
        for kind in RUN_LENGTHS
        for prefix, (arm, other) in COMPARED.items()
        for measured in MEASURES
    }
    counts = {
        "blocks": float(len(_times_s(ranks, "blocks", "steered", "wall"))),
        "pairs": float(len(_times_s(ranks, "trainings", "steered", "wall"))),
    }
    figures = counts | {end: value for name, each in estimates.items() for end, value in each.figures(name).items()}
    shown = {f"{name}_high" for name in (BLOCKS, TRAININGS) if estimates[name].exceeds(LIMIT_PERCENT)}
    return Result(
        figures | _own_figures(ranks) | _boundary_figures(ranks),
        TARGETS,
        n,
        (_table(estimates),),
        frozenset(TARGETS.keys() - shown),
    )


def _times_s(ranks: Sequence[dict[str, Any]], kind: str, arm: str, measured: str) -> list[float]:
    """Return the sum of the ranks' times of each block or training of an arm, in order."""
    by_rank = [[timed[f"{measured}_s"] for timed in rank[kind] if timed["arm"] == arm] for rank in ranks]
    return [sum(times) for times in zip(*by_rank, strict=True)]


def _own_figures(ranks: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the processor time of Steerway's threads and monitors, in percent of that of the training itself.

    Read from their own clocks, so that it does not depend on the variation of steps. Without the threads of Ray that
    carry out their calls to the control actor.
    """
    steered = [timed for rank in ranks for timed in rank["trainings"] if timed["arm"] == "steered"]
    threads_s, monitors_s = (sum(timed[part] for timed in steered) for part in ("threads_s", "monitors_s"))
    itself_s = sum(timed["cpu_s"] for timed in steered) - threads_s - monitors_s
    return {
        "threads_cpu_percent": 100 * threads_s / itself_s,
        "monitors_cpu_percent": 100 * monitors_s / itself_s,
    }


def _boundary_figures(ranks: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the time in the boundary, of the slowest rank, and the time of a plain step."""
    boundaries_us = [[us for timed in rank["blocks"] for us in timed["boundary_us"]] for rank in ranks]
    plain = [timed for timed in ranks[0]["blocks"] if timed["arm"] != "steered"]
    plain_ms = midpoint(1e3 * timed["wall_s"] / timed["steps"] for timed in plain)
    boundary_us = max(median(rank) for rank in boundaries_us)
    return {
        "boundary_us_median": boundary_us,
        "boundary_us_p99": max(quantile(rank, 0.99) for rank in boundaries_us),
        "boundary_percent_of_step": boundary_us / plain_ms / 10,
        "plain_step_ms": plain_ms,
    }


def _table(estimates: dict[str, Estimate]) -> Table:
    titles = {"blocks": "blocks of steps", "trainings": "whole trainings"}
    rows = tuple(
        (f"{titles[kind]}, {name}", *(str(estimates[f"{kind}_{prefix}{measured}_percent"]) for prefix in COMPARED))
        for kind in RUN_LENGTHS
        for measured, name in MEASURES.items()
    )
    return Table("takes longer by (95 % interval)", ("with Steerway", "A/A: plain beside plain"), rows)
