"""Runs of a study: those without a result yet are trained, in one process, and their results appended to a file."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.catalogue import Say
from benchmarks.harness.ranks import run_ranks
from benchmarks.studies.results import Row, read

CHUNK = 60
"""Runs of one process; a process that failed is started again by the next call."""

START_LIMIT_S, RUN_LIMIT_S = 240.0, 120.0
AGENT_RANK = "benchmarks.studies.agent_rank:run_trials"


class Trial(Protocol):
    """One run of a study. `key` identifies its result."""

    @property
    def key(self) -> str: ...

    def spec(self) -> dict[str, Any]:
        """Return the trial as JSON."""


def run(
    trials: Sequence[Trial],
    results: Path,
    say: Say,
    what: str,
    *,
    rank: str = AGENT_RANK,
    options: Mapping[str, Any] | None = None,
    run_limit_s: float = RUN_LIMIT_S,
) -> list[Row]:
    """Return the results of the trials, in order; those that the file has already are not trained again.

    `rank`: module and function that train, and append a result to the file for each; `options`: what it gets besides.
    Raises `SteerwayError` if a training fails; what has ended by then stays in the file.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    known, keys = read(results), [trial.key for trial in trials]
    missing = [trial for key, trial in dict(zip(keys, trials, strict=True)).items() if key not in known]
    if missing:
        say(f"{what}: {len(missing)} of {len(trials)} runs are to be trained")
    for first in range(0, len(missing), CHUNK):
        chunk = missing[first : first + CHUNK]
        with tempfile.TemporaryDirectory(prefix="study-") as folder:
            spec = {
                "trials": [trial.spec() | {"key": trial.key} for trial in chunk],
                "results": str(results.resolve()),
                "folder": folder,
                "options": dict(options or {}),
            }
            limit_s = START_LIMIT_S + run_limit_s * len(chunk)
            run_ranks(rank, 1, spec, Path(folder), limit_s)
        say(f"{what}: {min(first + CHUNK, len(missing))} of {len(missing)} runs have ended")
    known = read(results)
    return [known[key] for key in keys]
