"""SIGKILL at every named failpoint of a control server, under the load of clients that retry their requests.

The control server is a plain process over a real journal, without Ray and gateway: a restart is a fork and a read of
the journal; `control_loss` measures the real one. After half of the kills a power failure is simulated as well; some
servers are stopped instead, and continued after a successor has taken over. Interactive Training, the peer, keeps its
commands in memory and has no journal, so that there is nothing to compare with.

    python -m benchmarks.kills.kills --seed 1 --kills 1000 --errors 0     repeat one plan, and print its problems
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from benchmarks.catalogue import Say
from benchmarks.harness.quantiles import quantile
from benchmarks.harness.result import Bound, Result, Table
from benchmarks.kills.campaign import KILL_POINTS, Campaign, CampaignPlan, CampaignResult, Kind
from benchmarks.kills.process_pool import process_pool

SEED = 1
RESTART_TARGET_S = 5.0

TARGETS: dict[str, Bound] = {
    "lost": {"max": 0},
    "applied_twice": {"max": 0},
    "problems": {"max": 0},
    "points": {"min": 20},
    "points_not_reached": {"max": 0},
    "restart_ms_p95": {"max": 1000 * RESTART_TARGET_S},
}


def measure(n: int, quick: bool, say: Say) -> Result:
    """Measure `n` kills, or a few more. Raises `SteerwayError` if a control server neither serves nor ends."""
    course = CampaignPlan(SEED)
    say(f"{n} kills at {len(KILL_POINTS)} points; again: {course.repro(n, 0)}")
    seen = play(course, n, 0)
    for problem in seen.verdict.problems:
        say(problem)
    return Result(figures(seen), TARGETS, seen.total_kills, (_table(seen),))


def play(course: CampaignPlan, kills: int, errors: int) -> CampaignResult:
    """Run one campaign in a folder of its own."""
    with process_pool() as lives, tempfile.TemporaryDirectory(prefix="kills-") as folder:
        return Campaign(lives, course, Path(folder)).run(kills, errors)


def figures(seen: CampaignResult) -> dict[str, float]:
    """Return the figures of a campaign. `at_most_per_1000` is the 95 % bound of the rate of losses, with none: 3/n."""
    verdict, reached = seen.verdict, seen.kills.keys() & set(KILL_POINTS)
    return {
        "kills": float(seen.total_kills),
        "points": float(len(reached)),
        "points_not_reached": float(len(KILL_POINTS) - len(reached)),
        "power_losses": float(seen.power_losses),
        "overtaken": float(seen.overtaken),
        "disk_errors": float(seen.errors.total()),
        "acknowledged": float(verdict.acknowledged),
        "refused": float(verdict.refused),
        "applied": float(verdict.applied),
        "entries": float(verdict.entries),
        "lost": float(verdict.lost),
        "applied_twice": float(verdict.twice),
        "problems": float(len(verdict.problems)),
        "at_most_per_1000_kills": 3000 / seen.total_kills,
        "restart_ms_p50": 1000 * quantile(seen.restarts_s, 0.5),
        "restart_ms_p95": 1000 * quantile(seen.restarts_s, 0.95),
        "kills_per_s": seen.total_kills / seen.took_s,
    }


def _table(seen: CampaignResult) -> Table:
    rows = (
        ("acknowledged commands lost", str(seen.verdict.lost), "keeps no journal"),
        ("applied twice", str(seen.verdict.twice), "keeps no journal"),
    )
    return Table(f"{seen.total_kills} kills of the control server", ("Steerway", "Interactive Training"), rows)


def _some_of(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(allowed)}")
        return names

    return read


def main() -> int:
    """Run one plan. Returns the exit code, 1 if there was a problem."""
    parser = argparse.ArgumentParser(prog="benchmarks.kills.kills", description="Run one plan of kills.")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--errors", type=int, default=0, help="injected disk errors; needs the kind 'error'")
    parser.add_argument("--kinds", type=_some_of(get_args(Kind)), default=CampaignPlan(0).kinds)
    parser.add_argument("--points", type=_some_of(KILL_POINTS), default=KILL_POINTS)
    parser.add_argument("--power", type=float, default=0.5, help="share of the kills with a power failure")
    given = parser.parse_args()
    if given.errors and "error" not in given.kinds:
        parser.error("--errors needs --kinds error")
    course = CampaignPlan(given.seed, given.points, given.kinds, given.power)
    seen = play(course, given.kills, given.errors)
    for name, value in figures(seen).items():
        print(f"{name:<24}{value:.6g}")
    print(f"not reached: {dict(seen.not_reached)}; again: {course.repro(given.kills, given.errors)}")
    print(*seen.verdict.problems, sep="\n")
    return 1 if seen.verdict.problems else 0


if __name__ == "__main__":
    sys.exit(main())
