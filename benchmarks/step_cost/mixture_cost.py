"""Cost of automatic mixtures: the losses of sources on the ranks, and the agent's process with its fits.

1. Two CPU ranks train the model of `configs/gpt2-local.yaml` on four sources, with Transformers and DeepSpeed ZeRO-2;
   blocks of one training measure the losses of sources (every ten steps) or do not, in turns. The cost is a paired
   ratio with a 95 % interval, for wall time and processor time of both ranks, told as a share of a step of 100 ms:
   what it takes does not grow with the step of this model. `in_line_cpu` is the processor time of what a step waits
   for, by the clock of the slower rank's own thread. Beside it stands the A/A comparison of two blocks without.
2. On a cluster of its own the same model trains on two texts, and the gateway runs the agent, policy `ado` as shipped:
   a look every 50 steps, a fit every 1,000. The processor time of its process over `AGENT_S` seconds, in windows, is a
   share of one core; so many percent it takes of a step of 100 ms, of whatever length steps really are: it asks the
   gateway by the clock. It is no time of a rank: the process is beside the gateway.

The total adds the in-line processor time and the agent's.
"""

import json
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import psutil

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import RANKS, own_cluster
from benchmarks.harness.paired_bootstrap import Estimate, overhead, t_quantile
from benchmarks.harness.quantiles import median
from benchmarks.harness.ranks import run_ranks
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.harness.training import CONFIG
from control_plane import config_text
from control_plane.client import SteerwayClient
from control_plane.config import Settings
from control_plane.config_text import from_yaml
from control_plane.core.model.commands import Stop
from control_plane.core.model.errors import SteerwayError
from ray_jobs.config.run_config import load
from ray_jobs.submit import prepare, submit

BLOCK_STEPS, WARM_UP_STEPS, QUICK_STEPS = 20, 30, 10
TIMEOUT_S, RUN_LENGTH, STEP_MS = 3600.0, 4, 100.0
LIMIT = 0.5
AGENT_S, QUICK_AGENT_S, WINDOW_S = 180.0, 20.0, 5.0
BEGUN_STEPS, WAIT_S, LOOK_EVERY_S = 30, 600.0, 0.5
MAX_STEPS = 100_000
AGENT = "control_plane.agent"
TEXTS = {"plain": "page {} of a book of pages, and so on " * 6, "other": "record {} of another kind, again " * 6}

TARGETS: dict[str, Bound] = {
    "total_cpu_percent_of_100_ms_high": {"max": LIMIT},
    "losses_wall_percent_of_100_ms_high": {"max": LIMIT},
}

Blocks = Sequence[Sequence[dict[str, Any]]]


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` rounds of blocks, then the agent. Raises `SteerwayError` if a rank or the run fails."""
    say(f"mixture-cost: {n} rounds of blocks on {RANKS} ranks")
    with tempfile.TemporaryDirectory(prefix="steerway-bench-") as name:
        spec = {
            "rounds": n,
            "block_steps": QUICK_STEPS if quick else BLOCK_STEPS,
            "warm_up_steps": QUICK_STEPS if quick else WARM_UP_STEPS,
            "root": str(Path(name) / "runs" / "mixture"),
        }
        ranks = run_ranks("benchmarks.step_cost.mixture_cost_rank:train", RANKS, spec, Path(name), TIMEOUT_S)
    windows = agent_shares(QUICK_AGENT_S if quick else AGENT_S, say)
    return result_of(ranks, windows, n)


def agent_shares(seconds: float, say: Say) -> list[float]:
    """Return the share of one core that the agent's process took in each window of `WINDOW_S`."""
    with (
        own_cluster(say) as where,
        SteerwayClient.from_settings(where) as client,
        tempfile.TemporaryDirectory(prefix="steerway-bench-") as folder,
    ):
        run = _start(where, Path(folder))
        try:
            process = _agent_of(client, run)
            say(f"mixture-cost: the agent's process for {seconds:g} s")
            return [_share(process) for _ in range(max(1, round(seconds / WINDOW_S)))]
        finally:
            client.submit(run, Stop())


def _start(where: Settings, folder: Path) -> str:
    for name, text in TEXTS.items():
        lines = (json.dumps({"text": text.format(number)}) + "\n" for number in range(500))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    raw = dict(from_yaml(CONFIG.read_text("utf-8"), CONFIG.name))
    raw["deepspeed"] = str((CONFIG.parent / raw["deepspeed"]).resolve())
    raw["training"] = raw["training"] | {"max_steps": MAX_STEPS}
    raw["sources"] = {
        name: {"format": "jsonl", "path": str(folder / f"{name}.jsonl"), "weight": 0.5, "fields": {"text": "text"}}
        for name in TEXTS
    }
    raw |= {"limits": {"mixture/*": {"roles": ["operator", "agent"]}}, "agent": {"policy": "ado"}}
    path = folder / "mixture.yaml"
    path.write_text(config_text.to_yaml(raw))
    files = prepare(load(path), where.runs_dir, "mixture-cost")
    submit(files, where)
    return files.run


def _agent_of(client: SteerwayClient, run: str) -> psutil.Process:
    """Return the agent's process, once the run trains."""
    deadline = time.monotonic() + WAIT_S
    while True:
        snapshot = client.snapshot(run)
        if snapshot.step >= BEGUN_STEPS and (found := _process_of(run)) is not None:
            return found
        if snapshot.closed or time.monotonic() > deadline:
            raise SteerwayError(
                f"run {run} did not train with an agent: {snapshot.reason}; {client.agent(run).process}"
            )
        time.sleep(LOOK_EVERY_S)


def _process_of(run: str) -> psutil.Process | None:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if AGENT in words and run in words:
                return process
    return None


def _share(process: psutil.Process) -> float:
    began_s, before = time.monotonic(), process.cpu_times()
    time.sleep(WINDOW_S)
    after, took_s = process.cpu_times(), time.monotonic() - began_s
    return (after.user + after.system - before.user - before.system) / took_s


def result_of(ranks: Blocks, windows: Sequence[float], n: int) -> Result:
    """Return the result of the ranks' blocks and of the agent's shares of a core."""
    steps = ranks[0][0]["steps"]
    figures: dict[str, float] = {}
    told = dict[str, tuple[str, str]]()
    for label, arm in (("losses", "on"), ("again", "again")):
        of_arm = []
        for part in ("wall", "cpu"):
            off_ms = median(_times_s(ranks, "off", part)) * 1e3 / steps / len(ranks)
            estimate = overhead(_times_s(ranks, arm, part), _times_s(ranks, "off", part), RUN_LENGTH)
            scaled = _scaled(estimate, off_ms / STEP_MS)
            figures |= scaled.figures(f"{label}_{part}_percent_of_100_ms")
            of_arm.append(str(scaled))
        told[label] = (of_arm[0], of_arm[1])
    in_line, waited = _in_line(ranks, "in_line_cpu_us"), _in_line(ranks, "in_line_us")
    figures |= in_line.figures("losses_in_line_cpu_percent_of_100_ms")
    figures |= waited.figures("losses_in_line_percent_of_100_ms")
    agent = _mean([100 * share for share in windows])
    total = Estimate(in_line.percent + agent.percent, in_line.low + agent.low, in_line.high + agent.high)
    figures |= agent.figures("agent_cpu_percent_of_100_ms") | total.figures("total_cpu_percent_of_100_ms")
    undecided = {name for name in TARGETS if figures[f"{name[:-5]}_low"] <= LIMIT}
    rows = (
        ("losses of sources, blocks with beside without", *told["losses"]),
        ("A/A: without beside without", *told["again"]),
        ("losses of sources, what a step waits for", "", str(in_line)),
        ("agent's process, fits and all", "", str(agent)),
        ("both", "", str(total)),
    )
    table = Table("cost, as a share of a step of 100 ms (95 % interval)", ("wall time", "processor time"), rows)
    return Result(figures, TARGETS, n, (table,), frozenset(undecided))


def _times_s(ranks: Blocks, arm: str, part: str) -> list[float]:
    """Return the sum of the ranks' times of each block of an arm, in the order of the rounds."""
    by_rank = [sorted((one["round"], one[f"{part}_s"]) for one in rank if one["arm"] == arm) for rank in ranks]
    return [sum(value for _, value in times) for times in zip(*by_rank, strict=True)]


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(estimate.percent * factor, estimate.low * factor, estimate.high * factor)


def _in_line(ranks: Blocks, part: str) -> Estimate:
    """Return the mean time a step of the slower rank's blocks, in microseconds, as a share of a step of `STEP_MS`."""
    by_rank = ([one[part] / STEP_MS / 10 for one in rank if one["arm"] == "on"] for rank in ranks)
    return _mean(max(by_rank, key=fmean))


def _mean(percents: Sequence[float]) -> Estimate:
    """Return a mean with Student's 95 % interval; infinite of fewer than two values."""
    middle = fmean(percents)
    if len(percents) < 2:
        return Estimate(middle, -math.inf, math.inf)
    half = t_quantile(0.975, len(percents) - 1) * stdev(percents) / math.sqrt(len(percents))
    return Estimate(middle, middle - half, middle + half)
