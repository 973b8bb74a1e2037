"""The interrupted training with Steerway: a user's own script, with one line for Steerway and a diary.

steered_recovery.py DIARIES
"""

import os
import sys
from pathlib import Path

from benchmarks.recovery.diary import BEGUN, DiaryPen


def main(diaries: Path) -> None:
    """Train until somebody sends `stop`. Where to begin after a loss is Steerway's business."""
    pen = DiaryPen(diaries, int(os.environ["RANK"]))
    pen.write(BEGUN)
    from benchmarks.recovery.training import build_trainer
    from ray_jobs.hf.trainer import InteractiveTrainer

    build_trainer(InteractiveTrainer, pen, diaries / "trainer").train()


if __name__ == "__main__":
    main(diaries=Path(sys.argv[1]))
