"""Faults of the network on machines of their own: a cut link, with Debian's hosts file, and a head that is lost."""

import time
from itertools import pairwise

import pytest

from benchmarks.network import cut_link
from benchmarks.network.cluster_run import RANKS, ClusterRun
from benchmarks.network.machines import SHARED, Rig
from benchmarks.network.requirements import reason_against
from benchmarks.recovery.diary import latest, read_processes, recovery_of, steps_of_all
from control_plane.api.head_variables import environment
from control_plane.core.model.records import CheckpointCommitted, GenerationLost, GenerationStarted, RunClosed
from control_plane.core.model.state import fold
from control_plane.core.rules.unrecorded import take_over
from control_plane.storage.checkpoint.unrecorded import find_unrecorded
from control_plane.storage.journal import writer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(reason_against() is not None, reason=str(reason_against())),
]


def test_a_cut_node_costs_seconds_although_its_host_name_is_a_loopback_address() -> None:
    """Every machine has Debian's line `127.0.1.1 NAME`: without the choice of the interface no group would start."""
    with Rig() as rig:
        run = ClusterRun(rig, cut_link.WORKERS, environment())
        run.start({"checkpoint": {"every_steps": 20}})

        def ended() -> dict[int, float]:
            return steps_of_all(latest(read_processes(run.diaries)).values(), RANKS)

        run.wait("training", 300.0, lambda: len(ended()) > 30)
        time.sleep(cut_link.SPARES_WAIT_S)
        victim, cut_s = run.carriers()[1], time.time()
        victim.link.cut()
        run.wait("a step after the cut", 60.0, lambda: recovery_of(read_processes(run.diaries), cut_s, cut_s, RANKS))
        assert victim not in run.carriers()
        steps = sorted(ended())
        assert all(later - earlier == 1 for earlier, later in pairwise(steps))
        found = recovery_of(read_processes(run.diaries), cut_s, cut_s, RANKS)
        assert found is not None
        assert found.seconds < 20.0


RANKS_STOP_WITHIN_S = 90.0
"""Ray ends a raylet that has not reached its head for 60 s, and with it the ranks; a busy machine takes longer."""


def test_ranks_stop_soon_after_their_head_is_lost_and_what_they_saved_is_taken_over() -> None:
    with Rig() as rig:
        run = ClusterRun(rig, RANKS, environment())
        run.start({"checkpoint": {"every_steps": 10, "keep_last": 100}})
        run.wait("training", 300.0, lambda: len(steps_of_all(read_processes(run.diaries), RANKS)) > 30)
        run.head.kill()
        lost_s = time.time()
        while any(worker.processes("ray::RayTrainWorker") for worker in run.workers):
            assert time.time() - lost_s < RANKS_STOP_WITHIN_S
            time.sleep(0.5)
        print(f"the ranks stopped {time.time() - lost_s:.1f} s after their head was lost")
        state = fold(writer.read(run.files.journal))
        known = {one.checkpoint for one in state.checkpoints.existing}
        found = find_unrecorded(run.files, known | state.checkpoints.discarded)
        taken = [record for record in take_over(state, found) if isinstance(record, CheckpointCommitted)]
        print(f"{len(found)} checkpoints were committed without a control server, {len(taken)} are taken over")
        assert [one.checkpoint for one in taken] == [one.record.checkpoint for one in found]
        assert [one.step for one in taken] == sorted(one.step for one in taken)
        assert all(one.step > max(known_one.step for known_one in state.checkpoints.existing) for one in taken)


SLOW_END = """
import os, sys, time
from pathlib import Path
from benchmarks.recovery.diary import BEGUN, DiaryPen
from benchmarks.recovery.training import build_trainer
from ray_jobs.checkpoint import writer
from ray_jobs.hf.trainer import InteractiveTrainer

lead, pen = writer.CheckpointWriter._lead, DiaryPen(Path(sys.argv[1]), int(os.environ["RANK"]))
pen.write(BEGUN)

def slow(self, save):
    if save.name.startswith("step-00000040"):
        time.sleep(45)
    return lead(self, save)

writer.CheckpointWriter._lead = slow
build_trainer(InteractiveTrainer, pen, Path(sys.argv[1]) / "trainer", max_steps=40).train()
"""


def test_a_last_save_that_takes_long_does_not_get_the_finished_run_killed() -> None:
    """The other rank has ended meanwhile: its monitor is silent, which is no failure."""
    with Rig() as rig:
        run = ClusterRun(rig, RANKS, environment())
        (rig.shared / "slow_end.py").write_text(SLOW_END)
        run.start({"checkpoint": {"every_steps": 20}}, script=SHARED / "slow_end.py")
        records = lambda kind: [e.record for e in run.journal() if isinstance(e.record, kind)]  # noqa: E731
        run.wait("the start", 300.0, lambda: records(GenerationStarted))
        began_s = time.time()
        while not records(RunClosed):
            assert time.time() - began_s < 200.0, run.log()
            time.sleep(0.5)
        assert time.time() - began_s > 45.0
        assert [record.ending for record in records(RunClosed)] == ["finished"], run.log()
        assert records(GenerationLost) == []
        assert records(CheckpointCommitted)[-1].step == 40
