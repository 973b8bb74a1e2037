"""The digest benchmark's figures, from blocks whose every number is known."""

from typing import Any

import pytest

from benchmarks.step_cost.digest import figures_of, overheads_percent


def block(arm: str, every: int, step_ms: float, *digest_ms: float) -> dict[str, Any]:
    """A block whose digests take as much processor time as time."""
    times = list(digest_ms)
    about = {"arm": arm, "every": every, "step_ms": step_ms, "step_cpu_ms": 50.0}
    return about | {"digest_ms": times, "digest_cpu_ms": times, "digest_bytes": [4_000_000] * len(times)}


RANK_0 = [
    block("off", 0, 100.0),
    block("ours", 10, 101.0, 2.0, 2.0),
    block("plain", 10, 110.0, 20.0),
    block("off", 0, 200.0),
    block("ours", 10, 198.0, 2.0),
    block("plain", 10, 240.0, 20.0),
]
RANK_1 = [each | {"digest_ms": [ms + 1 for ms in each["digest_ms"]]} for each in RANK_0]


def test_each_round_is_compared_with_its_own_steps_without_digests() -> None:
    assert overheads_percent(RANK_0, "ours", 10) == pytest.approx([1.0, -1.0])
    assert overheads_percent(RANK_0, "plain", 10) == pytest.approx([10.0, 20.0])


def test_digest_takes_as_long_as_on_the_slowest_rank_and_its_share_is_of_processor_time() -> None:
    figures = figures_of([RANK_0, RANK_1])
    assert figures["ours_digest_ms"] == 3.0
    assert figures["ours_cpu_percent_k10"] == pytest.approx(100 * 2.0 / 10 / 50)
    assert figures["ours_mb_per_cpu_s"] == pytest.approx(2000.0)
    assert figures["plain_overhead_percent_k10_max"] == pytest.approx(20.0)
    assert figures["ours_overhead_percent_k10_min"] == pytest.approx(-1.0)
