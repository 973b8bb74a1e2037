"""Digests on real ranks, at full length: every ZeRO stage, many kills. See `test_recovery` for the short proof."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.ray_jobs.rank.test_recovery import training
from tests.ray_jobs.support.crashes import run_crashes
from tests.ray_jobs.support.streams import assert_same_but_for, flips, repeated_steps
from tests.ray_jobs.trials.crash_trials import PHASES

pytestmark = [pytest.mark.jobs, pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 24


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stream_of_a_training_that_was_killed_again_and_again_is_that_of_an_undisturbed_one(
    tmp_path: Path, stage: int
) -> None:
    seed = 20261125 + stage
    chance = random.Random(seed)
    kills = [[chance.randrange(2), step, chance.choice(PHASES[:3])] for step in (5, 8, 11, 14, 17, 20, 23)]
    planted = flips(*range(2, STEPS, 3))
    if stage == 0:  # the optimizer steps the weights themselves
        planted = [flip for flip in planted if not flip["name"].endswith("/master")]
    spec: dict[str, Any] = {"steps": STEPS, "digest_every": 1, "patient": True}
    spec["optimizer"] = "deepspeed" if stage == 3 else "hf"
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    answers = run_crashes(
        [training(undisturbed, stage, [], **spec), training(killed, stage, kills, **spec, flips=planted)],
        2,
        tmp_path,
    )
    assert len(answers[1]["died"]) == len(kills), f"seed {seed}"
    assert len(repeated_steps(killed)) >= len(kills), f"seed {seed}"
    assert_same_but_for(planted, undisturbed, killed, range(STEPS + 1))
