"""How the arms alternate, and how their times become ratios."""

import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("torch")

from benchmarks.step_cost import boundary
from benchmarks.step_cost.boundary_rank import VARIANTS, WARM_UP, plan
from benchmarks.step_cost.overhead_rank import Meter, threads_and_children
from benchmarks.step_cost.overhead_rank import plan as overhead_turns


def test_boundary_plan_gives_each_variant_the_same_steps_and_turns_round() -> None:
    steps = plan(rounds=2, block_steps=3, warm_up_steps=2)
    assert [round_ for round_, _ in steps[:2]] == [WARM_UP, WARM_UP]
    orders = [[variant for number, variant in steps if number == round_][::3] for round_ in (0, 1)]
    assert orders == [list(VARIANTS), list(VARIANTS[::-1])]
    assert {variant: steps[2:].count((0, variant)) for variant in VARIANTS} == dict.fromkeys(VARIANTS, 3)


def test_boundary_figures_take_the_slowest_rank_and_compare_within_a_round() -> None:
    def rank(factor: float) -> list[tuple[int, str, float, float]]:
        boundary_us = {"none": 1.0, "blocking": 400.0, "prefetched": 100.0, "synchronised": 300.0}
        step_us = {"none": 10_000.0, "blocking": 10_400.0, "prefetched": 10_100.0, "synchronised": 10_900.0}
        return [
            # The machine is twice as slow in the second round: ratios within a round do not see it.
            (number, variant, factor * boundary_us[variant], (1 + number) * step_us[variant])
            for number in (0, 1)
            for variant in VARIANTS
        ]

    figures = boundary.figures_of(boundary.BoundaryTimes([rank(0.5), rank(1.0)], [[20.0, 30.0, 40.0], [10.0]]))
    assert figures["prefetched_us_p50"] == 100
    assert figures["prefetched_over_blocking"] == pytest.approx(0.25)
    assert figures["blocking_wait_for_slower_rank_share"] == pytest.approx(0.25)
    assert figures["prefetched_percent_of_step"] == pytest.approx(1.0)
    assert figures["prefetched_step_time_ratio"] == pytest.approx(1.01)
    assert figures["bare_broadcast_us_p50"] == 30


def test_overhead_turns_go_to_and_fro_with_the_second_plain_arm_beside_the_first() -> None:
    arms = [arm for _, arm in overhead_turns(4)]
    assert "".join({"steered": "A", "plain": "B", "again": "b"}[arm] for arm in arms) == "ABbbBAABbbBA"
    assert [number for number, _ in overhead_turns(2)] == [0, 0, 0, 1, 1, 1]


def test_meter_tells_the_process_from_threads_and_monitors_of_ours() -> None:
    meter, ready, over = Meter(), threading.Barrier(2), threading.Event()

    def work() -> None:
        while time.thread_time() < 0.05:
            pass
        ready.wait()
        over.wait()

    threading.Thread(target=work, name="steerway-test", daemon=True).start()
    code = "import time\nwhile time.process_time() < 0.1: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        ready.wait()
        seen, beside = meter.read(), threads_and_children()
        over.set()
        child.communicate(b"\n")
    assert seen["threads_s"] >= 0.04
    assert seen["monitors_s"] >= 0.08
    assert seen["cpu_s"] >= seen["threads_s"] + seen["monitors_s"]
    assert {"steerway-test", f"process {child.pid}"} <= set(beside)
