"""Training script of Steerway's arm of the recovery benchmark: one line for Steerway, and a diary.

steered_recovery.py DIARIES
"""

import os
import sys
from pathlib import Path

from benchmarks.recovery.diary import BEGUN, DiaryPen


def main(diaries: Path) -> None:
    """Train until `stop` is sent. Steerway restores the state after a failure."""
    pen = DiaryPen(diaries, int(os.environ["RANK"]))
    pen.write(BEGUN)
    from benchmarks.recovery.training import build_trainer
    from ray_jobs.hf.trainer import InteractiveTrainer

    build_trainer(InteractiveTrainer, pen, diaries / "trainer").train()


if __name__ == "__main__":
    main(diaries=Path(sys.argv[1]))
