"""The rate of commands: a burst, then a steady stream, and nobody pays for another."""

import pytest

from control_plane.core.model.errors import Overloaded
from control_plane.gateway.rate_limit import RateLimit
from control_plane.gateway.tokens import Identity

ANN, STORM = Identity("ann", "operator"), Identity("storm", "agent")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def taken(rate_limit: RateLimit, who: Identity, tries: int) -> int:
    """How many of so many tries were let through."""
    count = 0
    for _ in range(tries):
        try:
            rate_limit.take(who)
        except Overloaded:
            continue
        count += 1
    return count


def test_burst_is_let_through_and_what_is_beyond_it_refused() -> None:
    assert taken(RateLimit(10, 5, Clock()), STORM, 100) == 5


def test_stream_is_let_through_at_its_rate_however_much_is_tried() -> None:
    clock = Clock()
    rate_limit = RateLimit(10, 5, clock)
    taken(rate_limit, STORM, 100)
    through = 0
    for _ in range(100):  # ten seconds, 100 tries in each tenth
        clock.now_s += 0.1
        through += taken(rate_limit, STORM, 100)
    assert 98 <= through <= 102


def test_owner_who_rests_gets_the_burst_again_and_no_more() -> None:
    clock = Clock()
    rate_limit = RateLimit(10, 5, clock)
    taken(rate_limit, STORM, 100)
    clock.now_s += 3600
    assert taken(rate_limit, STORM, 100) == 5


def test_storm_of_one_owner_costs_another_nothing() -> None:
    rate_limit = RateLimit(10, 5, Clock())
    taken(rate_limit, STORM, 1000)
    assert taken(rate_limit, ANN, 5) == 5


def test_refusal_says_the_rate_and_when_to_try_again() -> None:
    rate_limit = RateLimit(10, 1, Clock())
    rate_limit.take(ANN)
    with pytest.raises(Overloaded, match=r"10 commands a second.*retry in 0.10 s"):
        rate_limit.take(ANN)
