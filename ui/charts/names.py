"""Order and choice of names that end in the number of a layer."""

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"(\d+)")


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts `h.2` before `h.10`."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBER.split(name))


def thinned(names: Sequence[str], most: int) -> list[str]:
    """Return at most `most` of the names, evenly spaced, the first and the last among them."""
    if len(names) <= most:
        return list(names)
    return [names[round(at * (len(names) - 1) / (most - 1))] for at in range(most)]
