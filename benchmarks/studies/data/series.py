"""Series of runs of a study: those that its file of results does not have yet, one after the other on one cluster."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.catalogue import Say
from benchmarks.harness.live_run import own_cluster
from benchmarks.studies.data.live_source import WAIT_S
from benchmarks.studies.results import Row, append, read
from control_plane.client import SteerwayClient
from control_plane.config import Settings

OneRun = Callable[[Settings, SteerwayClient, str, int, Path], Row]
"""Trains one run of an arm and a seed, with a folder of its own, and returns its result."""


def carried_out(
    results: Path,
    say: Say,
    arms: Sequence[str],
    seeds: Sequence[int],
    key_of: Callable[[str, int], str],
    one_run: OneRun,
    told: Callable[[Row], str],
) -> dict[str, list[Row]]:
    """Run what is not in the file of results yet, and return the results by arm, seeds in their order.

    Args:
        key_of: the key of a result, of its arm and seed.
        told: what is said of a result.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    known = read(results)
    missing = [(seed, arm) for seed in seeds for arm in arms if key_of(arm, seed) not in known]
    if missing:
        with own_cluster(say) as where, SteerwayClient.from_settings(where, timeout_s=WAIT_S) as client:
            for seed, arm in missing:
                with tempfile.TemporaryDirectory(prefix="study-") as folder:
                    row = one_run(where, client, arm, seed, Path(folder))
                append(results, row)
                say(f"{arm}, seed {seed}: {told(row)}")
    known = read(results)
    return {arm: [known[key_of(arm, seed)] for seed in seeds] for arm in arms}
