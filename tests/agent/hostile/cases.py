"""The hostile cases: which answers, in which mode and action space."""

from itertools import product

from tests.agent.chat_server import says
from tests.agent.hostile.answers import CONTENTS, ENDPOINTS, GREEDY, SLOW
from tests.agent.hostile.rig import Case

AT_ONCE = 10
"""Answers that one run gets, one after the other."""

MODES, SPACES = ("suggest", "guarded", "auto"), ("published", "factors", "full")
GRANTS = {"knobs": {"weight_decay": {"max": 0.5}}}


def garbage() -> list[Case]:
    """Contents that are no decision, in every action space, in turns of the modes."""
    cases = []
    for space in SPACES:
        for first in range(0, len(CONTENTS), AT_ONCE):
            part = CONTENTS[first : first + AT_ONCE]
            mode = MODES[(first // AT_ONCE) % len(MODES)]
            name = f"contents {first} to {first + len(part) - 1}, {mode}, {space}"
            cases.append(Case(name, tuple(map(says, part)), mode, space, len(part)))
    return cases


def endpoints() -> list[Case]:
    """Endpoints that answer badly, with and without something that was granted."""
    cases = []
    for grants, first in product(({}, GRANTS), range(0, len(ENDPOINTS), AT_ONCE)):
        part = ENDPOINTS[first : first + AT_ONCE]
        name = f"endpoints {first} to {first + len(part) - 1}{', with grants' if grants else ''}"
        cases.append(Case(name, tuple(answer for _, answer in part), counts=len(part), grants=grants))
    return cases


def slow() -> list[Case]:
    """Endpoints that take until the deadline."""
    return [Case(f"{name}, {mode}", (answer,), mode, timeout_s=2.0) for (name, answer), mode in product(SLOW, MODES)]


def greedy() -> list[Case]:
    """A model that wants too much, in every mode and action space."""
    return [
        Case(f"{name}, {mode}, {space}", (says(content),), mode, space, grants=GRANTS)
        for (name, content), mode, space in product(GREEDY, MODES, SPACES)
    ]
