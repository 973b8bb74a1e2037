"""How what the ranks saw of their saves becomes figures."""

from typing import Any

import pytest

from benchmarks.checkpoints import checkpoint
from benchmarks.harness.result import met


def seen(size_mib: int, slower: float, overlapped: list[float], stock: list[float]) -> dict[str, Any]:
    """One rank at one size; `slower` is its factor against the other rank."""
    return {
        "state_bytes": size_mib << 20,
        "size_bytes": 200_000_000,
        "first": 0.9 * slower,
        "overlapped": [second * slower for second in overlapped],
        "at_once": [4 * second * slower for second in overlapped],
        "stock": [second * slower for second in stock],
        "copy_s": [0.1 * slower],
        "memory_bytes_per_s": 4e9 / slower,
        "write": {"write": 2.0 * slower},
        "raw": 1.0,
        "quiet": [0.2, 0.2, 0.5],
        "writing": [0.3, 0.25, 0.3],
    }


def test_checkpoint_figures_take_the_slowest_rank_and_name_the_largest_size() -> None:
    ranks = [
        [seen(64, slower, [0.1], [0.1]), seen(1024, slower, [0.1, 0.3, 0.2], [5.0, 15.0, 10.0])]
        for slower in (1.0, 2.0)
    ]
    figures = checkpoint.figures_of(ranks)
    assert figures["overlapped_s_1024_MiB"] == pytest.approx(0.4)
    assert figures["at_once_s_1024_MiB"] == pytest.approx(1.6)
    assert figures["stock_s_1024_MiB"] == pytest.approx(20.0)
    assert figures["overlapped_over_stock"] == pytest.approx(0.02)
    assert figures["at_once_over_stock"] == pytest.approx(0.08)
    assert figures["overlapped_over_stock_64_MiB"] == pytest.approx(1.0)
    assert figures["copy_gb_per_s"] == pytest.approx(1.0)
    assert figures["memory_gb_per_s"] == pytest.approx(2.0)
    assert figures["first_blocked_s"] == pytest.approx(1.8)
    assert figures["background_write_mb_per_s"] == pytest.approx(50)
    assert figures["raw_disk_mb_per_s"] == pytest.approx(200)
    assert figures["background_over_raw_disk"] == pytest.approx(0.25)
    assert figures["step_time_ratio_while_writing"] == pytest.approx(1.5)
    assert met(figures, checkpoint.TARGETS)


def test_checkpoint_save_that_blocks_half_as_long_as_stock_misses_its_targets() -> None:
    figures = checkpoint.figures_of([[seen(64, 1.0, [0.05], [0.1])]])
    assert figures["overlapped_over_stock"] == pytest.approx(0.5)
    assert not met(figures, checkpoint.TARGETS)


def test_checkpoint_save_is_as_slow_as_its_slowest_rank_each_time() -> None:
    ranks = [{"stock": [1.0, 9.0, 1.0]}, {"stock": [9.0, 1.0, 1.0]}]
    assert checkpoint.blocked_s(ranks, "stock") == 9.0
