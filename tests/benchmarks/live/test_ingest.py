"""Benchmark of records that come in: its requests, and figures and verdicts of made-up measurements."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.live.ingest import TRANSITIONS, Measured, result_of, write_bodies
from ray_jobs.workloads import desktop_screen as screen

SENT = 746 * TRANSITIONS


def measured(slower: float = 1.02, records: int = SENT) -> Measured:
    # The machine becomes slower by 1 % a period: half of that lies on either side of a period with requests.
    without_s = [0.1 * 1.01**period for period in range(10)]
    with_s = [slower * (a + b) / 2 for a, b in pairwise(without_s)]
    return Measured(with_s, without_s, [0.05] * 746, sending_s=540.0, records=records)


def test_all_requests_are_of_one_size_and_no_record_comes_twice(tmp_path: Path) -> None:
    bodies = write_bodies(tmp_path, 4)
    contents = set()
    for path in bodies:
        arrays = dict(np.load(path))
        assert {name: len(array) for name, array in arrays.items()} == dict.fromkeys(screen.FIELDS, TRANSITIONS)
        contents |= {b"".join(arrays[name][at].tobytes() for name in screen.FIELDS) for at in range(TRANSITIONS)}
    assert len(contents) == 4 * TRANSITIONS


def test_slow_down_is_that_beside_the_periods_around_it() -> None:
    result = result_of(measured(), SENT, SENT, 9)
    assert result.figures["slow_down_percent"] == pytest.approx(2.0)
    assert result.verdict == "met"


@pytest.mark.parametrize(
    ("made", "in_mixture", "missed"),
    [
        (measured(slower=1.06), SENT, "slow_down_percent_high"),
        (measured(), SENT - 1, "records_lost_or_doubled"),
        (measured(records=SENT + 1), SENT + 1, "records_lost_or_doubled"),
    ],
)
def test_slow_or_lossy_ingest_misses_its_target(made: Measured, in_mixture: int, missed: str) -> None:
    result = result_of(made, in_mixture, SENT, 9)
    assert [name for name in result.targets if result.verdict_on(name) == "not met"] == [missed]
