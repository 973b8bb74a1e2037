"""Stages of the GPU check by name: order, time boxes, ranks needed. Does not import their code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StageBox:
    """Stage with its time box. After `box_s` seconds it is ended, and the next one begins in new processes."""

    name: str
    box_s: float
    needs_ranks: int = 1
    ends_ranks: bool = False


STAGE_BOXES = {
    stage.name: stage
    for stage in (
        StageBox("boundary", 40),
        StageBox("knobs", 25),
        StageBox("exact_zero2", 30),
        StageBox("exact_zero1", 30),
        StageBox("exact_zero3", 40),
        StageBox("step_time", 60),
        StageBox("trace", 30),
        StageBox("overflow", 30),
        StageBox("save", 90),
        StageBox("digest", 30),
        StageBox("rollbacks", 60),
        StageBox("pause", 90),
        StageBox("fused_adam", 120),
        StageBox("blocked_rank", 60, needs_ranks=2, ends_ranks=True),
    )
}
"""By importance, for a short budget."""
