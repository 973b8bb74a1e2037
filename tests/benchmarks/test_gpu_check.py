"""The GPU check on a machine without one: its verdicts, its time boxes, and a rehearsal with real ranks."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import bundle
from benchmarks.gpu.catalogue import STAGE_BOXES, StageBox
from benchmarks.gpu.check import GpuCheck
from benchmarks.gpu.measured import BOUNDARY, Span, interval, synchronisations
from control_plane.core.model.errors import Invalid


def check(folder: Path, world_size: int = 2, budget_s: float = 300.0) -> GpuCheck:
    return GpuCheck(folder, world_size, True, time.monotonic() + budget_s, lambda line: None, {})


def answered(folder: Path, *answers: dict[str, Any]) -> dict[str, Any]:
    """The verdict on what these ranks answered for the stage `boundary`."""
    for rank, answer in enumerate(answers):
        (folder / f"boundary.{rank}.json").write_text(json.dumps(answer))
    return check(folder, len(answers))._answer(folder, StageBox("boundary", 1), None)


def test_a_stage_is_ok_when_every_check_holds_on_every_rank(tmp_path: Path) -> None:
    good = {"checks": {"applied": True}, "agree": [1, 2], "seconds": 1}
    assert answered(tmp_path, good, good) == {"ok": True, "checks": ["applied"], "seconds": 1}


@pytest.mark.parametrize(
    ("second", "failed"),
    [
        ({"checks": {"applied": False}, "agree": [1, 2]}, ["applied"]),
        ({"checks": {"applied": True}, "agree": [1, 3]}, ["all ranks agree"]),
    ],
)
def test_a_stage_fails_when_one_rank_saw_something_else(
    tmp_path: Path, second: dict[str, Any], failed: list[str]
) -> None:
    line = answered(tmp_path, {"checks": {"applied": True}, "agree": [1, 2]}, second)
    assert (line["ok"], line["failed"]) == (False, failed)


def test_the_reason_is_the_failure_and_not_the_connection_that_it_cost_the_others(tmp_path: Path) -> None:
    lost = {"checks": {}, "reason": "RuntimeError: Connection closed by peer"}
    line = answered(tmp_path, lost, {"checks": {}, "reason": "NotFound: no checkpoint"})
    assert line == {"ok": False, "reason": "NotFound: no checkpoint"}


def test_a_spent_budget_is_said_for_every_stage(tmp_path: Path) -> None:
    lines = check(tmp_path, budget_s=0.0).run(list(STAGE_BOXES))
    assert {line["stage"] for line in lines} == set(STAGE_BOXES)
    assert all(line["ok"] is None and "budget" in line["reason"] for line in lines)


def test_a_rehearsal_has_patience_because_it_is_not_alone_on_its_processors(tmp_path: Path) -> None:
    rehearsal = check(tmp_path)
    assert rehearsal._box_s(StageBox("boundary", 40)) == 120
    rehearsal.rehearse = False
    assert rehearsal._box_s(StageBox("boundary", 40)) == 40


def test_a_stage_for_two_ranks_is_not_run_on_one(tmp_path: Path) -> None:
    (line,) = check(tmp_path, world_size=1).run(["blocked_rank"])
    assert line["ok"] is None
    assert "2 ranks" in line["reason"]


def test_a_synchronisation_is_found_inside_of_a_boundary_on_its_thread() -> None:
    spans = [
        Span(BOUNDARY, 1, 10, 20),
        Span("cudaStreamSynchronize", 1, 12, 13),
        Span("cudaStreamSynchronize", 2, 12, 13),  # another thread: a copy of a save
        Span("cudaStreamSynchronize", 1, 30, 31),  # the loss is read after the boundary
        Span("cudaMemcpyAsync", 1, 14, 15),
    ]
    assert synchronisations(spans) == [spans[1]]


def test_the_interval_of_a_constant_is_the_constant_and_noise_widens_it() -> None:
    assert interval([1.0] * 8) == (1.0, 1.0)
    low, high = interval([0.9, 1.1] * 6)
    assert low < 1.0 < high


def run(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_without_a_gpu_the_last_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    status, lines = run()
    assert (status, lines[-1]) == (0, {"gpu": None})
    assert "no GPU" in lines[-2]["reason"]


def test_an_unknown_stage_is_refused() -> None:
    assert run("--only", "boundry")[0] == 2


@pytest.mark.jobs
def test_a_rehearsal_runs_stages_on_real_ranks() -> None:
    status, lines = run("--rehearse", "--only", "exact_zero2,blocked_rank")
    stages = {line["stage"]: line for line in lines if "stage" in line}
    assert {name: line["ok"] for name, line in stages.items()} == dict.fromkeys(stages, True), stages
    assert stages["exact_zero2"]["digests_compared"] == 3
    assert (status, lines[-1]["passed"], lines[-1]["gpu"]) == (0, 2, None)


def test_the_bundle_holds_what_the_check_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_wheels", lambda folder: ["deepspeed"])
    assert "python3 -m benchmarks.gpu" in bundle.import_run(tmp_path / "bundle")
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", "boundary"]
    environment = {"PATH": "/usr/bin", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(tmp_path / "bundle")}
    done = subprocess.run(
        command, cwd=tmp_path / "bundle", env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == '{"gpu": null}', done.stderr
    with pytest.raises(Invalid, match="not empty"):
        bundle.import_run(tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.jobs
@pytest.mark.timeout(900)
def test_a_rehearsal_runs_every_stage() -> None:
    status, lines = run("--rehearse")
    assert (status, lines[-1]["failed"], lines[-1]["not_run"]) == (0, [], ["fused_adam"])


def test_the_stages_are_those_of_the_catalogue() -> None:
    from benchmarks.gpu.stages import STAGES

    assert set(STAGES) == set(STAGE_BOXES)
