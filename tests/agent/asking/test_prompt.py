"""What the model is told: bounded, and nothing but numbers."""

import itertools
import math
import re

import pytest

from control_plane.agent.asking.prompt import (
    INSTRUCTIONS,
    MAX_POINTS,
    MAX_PROMPT_CHARS,
    describe,
    messages,
    review_messages,
)
from control_plane.agent.course import KINDS
from control_plane.agent.policy import AgentBounds, AlertSeen, CheckpointSeen, Observation, PastSeen
from control_plane.agent.seeing import MAX_ALERTS, MAX_PAST, NUMBERS_OF_RUN, OPTIMIZERS, SIGNS_SHOWN
from tests.agent.simulated import observed


def test_messages_of_a_huge_observation_stay_small() -> None:
    seen = observed([1e300 / 7, -1e-300 / 7, math.nan, math.inf] * 5000, eval_loss=-1e300 / 7, changed_at=3)
    chat = messages(observed([], lr=0.0), AgentBounds()), messages(seen, AgentBounds())
    assert max(sum(len(message["content"]) for message in one) for one in chat) <= MAX_PROMPT_CHARS


def test_describe_shows_the_newest_loss_and_the_trend() -> None:
    text = describe(observed([4.0] * 50 + [2.0] * 49 + [1.5], eval_loss=2.25), AgentBounds())
    assert "100:1.5" in text
    assert "mean loss of the older half: 4, of the newer half: 1.99" in text
    assert "latest evaluation loss: 2.25" in text


def test_describe_counts_losses_that_are_not_finite() -> None:
    assert "of them not finite: 2" in describe(observed([1.0, math.nan, math.inf]), AgentBounds())


def test_describe_holds_our_own_words_and_numbers_only() -> None:
    words = set(re.findall(r"[A-Za-z]{4,}", describe(observed([1.0, 2.0]), AgentBounds())))
    assert words <= set(re.findall(r"[A-Za-z]{4,}", describe(observed([3.0, 4.0], lr=7e-4), AgentBounds())))


def test_instructions_name_every_action() -> None:
    assert all(f'"{action}"' in INSTRUCTIONS for action in ("double", "halve", "keep"))


def crowded() -> Observation:
    """An observation with as much of everything as there may be, in long numbers."""
    alert = AlertSeen("loss_scale_exhausted", "critical", 10**6, -1e300 / 7, 1e300 / 7)
    past = tuple(
        PastSeen(10**6, "x" * 1000, "a person", "withdrawn", -1e300 / 7, 1e300 / 7, "unclear") for _ in range(MAX_PAST)
    )
    points = tuple((10**6 + i, -1e300 / 7) for i in range(5000))
    return observed(
        [-1e300 / 7] * 5000,
        evals=points,
        alerts=(alert,) * MAX_ALERTS,
        past=past,
        config=dict.fromkeys(NUMBERS_OF_RUN.values(), -1e300 / 7) | {"optimizer": max(OPTIMIZERS, key=len)},
        signs=dict.fromkeys(SIGNS_SHOWN, -1e300 / 7),
        checkpoints=tuple(CheckpointSeen("c", 10**6 + i) for i in range(5)),
        kinds=frozenset(KINDS),
        factor=10.0,
    )


def test_prompt_with_everything_in_it_stays_small() -> None:
    assert sum(len(each["content"]) for each in messages(crowded(), AgentBounds())) <= MAX_PROMPT_CHARS
    assert sum(len(each["content"]) for each in review_messages(crowded(), AgentBounds(), "x")) <= MAX_PROMPT_CHARS


def test_history_is_about_twenty_points_denser_at_the_end() -> None:
    line = next(each for each in describe(observed([2.0] * 200), AgentBounds()).split("\n") if "oldest first" in each)
    steps = [int(step) for step in re.findall(r"(\d+):2", line)]
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert (len(steps), steps[0], steps[-1]) == (MAX_POINTS, 1, 200)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] == 1 < gaps[0]


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 30, 400])
def test_history_never_repeats_a_point(count: int) -> None:
    points = re.findall(r"(\d+):2\b", describe(observed([2.0] * count), AgentBounds()))
    assert len(points) == len(set(points)) == min(count, MAX_POINTS)
