"""How what the ranks saw of their saves becomes figures."""

from typing import Any

import pytest

from benchmarks.checkpoints import checkpoint
from benchmarks.harness.result import met


def seen(size_mib: int, slower: float, ours: list[float], stock: list[float]) -> dict[str, Any]:
    """One rank at one size; `slower` is its factor against the other rank."""
    return {
        "state_bytes": size_mib << 20,
        "size_bytes": 200_000_000,
        "first": 0.9 * slower,
        "ours": [second * slower for second in ours],
        "stock": [second * slower for second in stock],
        "write": {"write": 2.0 * slower},
        "raw": 1.0,
        "quiet": [0.2, 0.2, 0.5],
        "writing": [0.3, 0.25, 0.3],
    }


def test_checkpoint_figures_take_the_slowest_rank_and_name_the_largest_size() -> None:
    ranks = [
        [seen(64, slower, [0.1], [0.1]), seen(1024, slower, [0.1, 0.3, 0.2], [1.0, 3.0, 2.0])] for slower in (1.0, 2.0)
    ]
    figures = checkpoint.figures_of(ranks)
    assert figures["blocked_s"] == figures["blocked_s_1024_MiB"] == pytest.approx(0.4)
    assert figures["stock_blocked_s_1024_MiB"] == pytest.approx(4.0)
    assert figures["blocked_over_stock"] == pytest.approx(0.1)
    assert figures["blocked_over_stock_64_MiB"] == pytest.approx(1.0)
    assert figures["first_blocked_s"] == pytest.approx(1.8)
    assert figures["background_write_mb_per_s"] == pytest.approx(50)
    assert figures["raw_disk_mb_per_s"] == pytest.approx(200)
    assert figures["background_over_raw_disk"] == pytest.approx(0.25)
    assert figures["step_time_ratio_while_writing"] == pytest.approx(1.5)
    assert met(figures, checkpoint.TARGETS)


def test_checkpoint_save_that_blocks_longer_than_stock_misses_its_target() -> None:
    figures = checkpoint.figures_of([[seen(64, 1.0, [0.3], [0.1])]])
    assert figures["blocked_over_stock"] == pytest.approx(3)
    assert not met(figures, checkpoint.TARGETS)


def test_checkpoint_save_is_as_slow_as_its_slowest_rank_each_time() -> None:
    ranks = [{"ours": [1.0, 9.0, 1.0]}, {"ours": [9.0, 1.0, 1.0]}]
    assert checkpoint.blocked_s(ranks, "ours") == 9.0
