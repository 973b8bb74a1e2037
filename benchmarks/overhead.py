"""Steps per second of the same training with Steerway and without it, in turns: A B B A A B ...

One Ray Train worker group of two CPU ranks trains `configs/gpt2-local.yaml` (its logging included, without evaluations)
with the plain Transformers Trainer and with the steered one, which answers to a real control actor. Each arm is a
whole training from the same weights on the same samples; its first steps do not count. A pair gives one ratio.
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
from benchmarks.quantiles import median, midpoint, quantile
from benchmarks.result import Bound, Result, Table
from benchmarks.training import shipped_config
from cluster.environment import ray_environment, ray_token_file
from cluster.record import write_private
from control_plane.config import Settings
from control_plane.core.errors import SteerwayError
from control_plane.storage.layout import RunFiles

RANKS = 2
STEPS = 80
WARM_UP_STEPS = 10
QUICK_STEPS = 10
LOGICAL_CPUS = 4
"""Ray counts CPUs and does not bind them: two ranks and Ray Train's controller must fit."""

OBJECT_STORE_BYTES = 128 * 1024**2
TORCH_TIMEOUT_S = 300
LOOK_EVERY_S = 5.0

TARGETS: dict[str, Bound] = {"overhead_median_percent": {"max": 1.0}}

Timed = dict[str, Any]
"""One training: `pair`, `arm`, `steps_per_s`, and `boundary_us` of each step, which is empty in the plain arm."""


def measure(n: int, quick: bool, say: Say) -> Result:
    """`n` pairs. Raises `SteerwayError` if the worker group fails."""
    # Ray adds long names of sockets to this folder's, and a socket's path holds 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="steerway-", dir="/tmp"))
    try:
        files = RunFiles(folder / "runs" / "overhead")
        files.root.mkdir(parents=True)
        files.config.write_text(shipped_config().to_yaml())
        with own_ray(folder), _progress_told(files, say):
            _fit(files, n, QUICK_STEPS if quick else STEPS)
        ranks = [json.loads((files.root / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Result(figures_of(ranks), TARGETS, n, (_table(ranks[0]),))


@contextmanager
def own_ray(folder: Path) -> Iterator[None]:
    """A Ray of this process alone, without a dashboard: no gateway and no console take the training's time."""
    where = Settings(home=folder)
    write_private(ray_token_file(where), secrets.token_hex(32))
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


def _fit(files: RunFiles, pairs: int, steps: int) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from benchmarks import overhead_worker
    from control_plane.actor import get_or_create

    actor = get_or_create(files)
    given = {"root": str(files.root), "pairs": pairs, "steps": steps, "warm_up_steps": WARM_UP_STEPS}
    trainer = TorchTrainer(
        overhead_worker.main,
        train_loop_config=given,
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


@contextmanager
def _progress_told(files: RunFiles, say: Say) -> Iterator[None]:
    """Say how far it is, now and then."""
    say("overhead: starting Ray and the ranks ...")
    over = threading.Event()

    def look() -> None:
        told = ""
        while not over.wait(LOOK_EVERY_S):
            path = files.root / "progress-0"
            line = path.read_text() if path.is_file() else ""
            if line != told:
                say(f"overhead: {line}")
                told = line

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def figures_of(ranks: Sequence[Sequence[Timed]]) -> dict[str, float]:
    """The figures; speeds are rank 0's (the ranks move in step), the boundary is the slowest rank's."""
    overheads = overheads_percent(ranks[0])
    boundaries_us = [[us for timed in rank for us in timed["boundary_us"]] for rank in ranks]
    return {
        "overhead_median_percent": midpoint(overheads),
        "overhead_min_percent": min(overheads),
        "overhead_max_percent": max(overheads),
        "boundary_us_median": max(median(rank) for rank in boundaries_us),
        "boundary_us_p99": max(quantile(rank, 0.99) for rank in boundaries_us),
        "plain_steps_per_s_median": midpoint(_speeds(ranks[0], "plain").values()),
    }


def overheads_percent(trainings: Sequence[Timed]) -> list[float]:
    """By pair, how much longer the steered training's step took than the plain one's. Below 0 it was faster."""
    plain, steered = _speeds(trainings, "plain"), _speeds(trainings, "steered")
    return [100 * (plain[pair] / steered[pair] - 1) for pair in sorted(plain)]


def _speeds(trainings: Sequence[Timed], arm: str) -> dict[int, float]:
    return {timed["pair"]: timed["steps_per_s"] for timed in trainings if timed["arm"] == arm}


def _table(trainings: Sequence[Timed]) -> Table:
    plain, steered = _speeds(trainings, "plain"), _speeds(trainings, "steered")
    rows = [
        (f"pair {pair + 1}", f"{plain[pair]:.2f}", f"{steered[pair]:.2f}", f"{overhead:+.2f} %")
        for pair, overhead in zip(sorted(plain), overheads_percent(trainings), strict=True)
    ]
    return Table("steps per second", ("plain Trainer", "with Steerway", "overhead"), tuple(rows))
