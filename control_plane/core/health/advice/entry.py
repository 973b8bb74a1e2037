"""Explanation of a sign, an alert or a knob in plain words: what it means, and what people do."""

from dataclasses import dataclass
from typing import Literal

Topic = Literal["alert", "sign", "knob"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Meaning of a name, and advice: `actions` are sentences, in the order in which to try them."""

    name: str
    topic: Topic
    title: str
    meaning: str
    actions: tuple[str, ...]
    # Names of related alerts, signs and knobs, for links.
    see: tuple[str, ...] = ()
