"""Rules to compare with: do nothing, and double, halve or keep by chance."""

import random

from control_plane.agent.grants import Proposal
from control_plane.agent.policy import AgentAction, Decision, Observation
from control_plane.agent.rules.rule import keep


class NothingRule:
    """Do nothing."""

    name = "nothing"
    needs: tuple[str, ...] = ()

    def look(self, seen: Observation) -> Proposal:
        """Keep."""
        return keep("this rule never changes anything")


class RandomRule:
    """Double, halve or keep with equal chance. It follows from seed, generation and step: a restart repeats it."""

    name = "random"
    needs: tuple[str, ...] = ()

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def look(self, seen: Observation) -> Proposal:
        """Draw an action."""
        drawn = random.Random(f"{self.seed}/{seen.generation}/{seen.step}").choice(tuple(AgentAction))
        return Decision(drawn, "by chance")
