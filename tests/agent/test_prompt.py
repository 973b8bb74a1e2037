"""What the model is told: bounded, and nothing but numbers."""

import math
import re

from control_plane.agent.asking.prompt import INSTRUCTIONS, MAX_PROMPT_CHARS, describe, messages
from control_plane.agent.policy import AgentBounds
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
