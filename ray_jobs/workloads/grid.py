"""Grid world of the policy gradient: an agent starts at a random field and has to find a goal.

played = Grid().play(policy, games=32, rewards=Rewards())
played.returns()        # discounted, of each move
played.features()       # how often each game entered each field, and moved in each direction
"""

from dataclasses import dataclass

import torch
from torch import nn

from control_plane.core.model.errors import Invalid

SIDE = 5
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
MOST_MOVES = 16

FIELDS = SIDE * SIDE
"""Fields of the grid, row by row."""


@dataclass
class Rewards:
    """Reward of each event."""

    goal: float = 1.0
    step: float = -0.05
    wall: float = -0.1


@dataclass
class Played:
    """A batch of games: each tensor is `(moves, games)`; `alive` is 1 while a game has not ended.

    starts: number of the field that each game began at, `(games,)`.
    fields: number of the field after each move, int64.
    reached: share of the games that have found the goal.
    """

    log_odds: torch.Tensor
    entropy: torch.Tensor
    rewards: torch.Tensor
    alive: torch.Tensor
    starts: torch.Tensor
    fields: torch.Tensor
    reached: float

    def returns(self, discount: float = 0.97) -> torch.Tensor:
        """Return the discounted return of each move, shape `(moves, games)`."""
        ahead, out = torch.zeros(self.rewards.shape[1]), []
        for reward in reversed(self.rewards):
            ahead = reward + discount * ahead
            out.append(ahead)
        return torch.stack(out[::-1])

    def entered(self) -> torch.Tensor:
        """Return 1 where a move has entered a field, shape `(moves, games, FIELDS)`, int64."""
        return nn.functional.one_hot(self.fields, FIELDS) * self.alive.long().unsqueeze(-1)

    def features(self) -> torch.Tensor:
        """Return how often each game entered each field: shape `(games, FIELDS)`, uint8."""
        return self.entered().sum(dim=0).to(torch.uint8)


class Grid:
    """Grid world: `SIDE` by `SIDE` fields with walls around them, and a goal."""

    def __init__(self) -> None:
        self.goal = (SIDE - 1, SIDE - 1)

    def move_goal(self, row: int, column: int) -> None:
        """Move the goal. Raises `Invalid` outside of the grid."""
        if not (0 <= row < SIDE and 0 <= column < SIDE):
            raise Invalid(f"row {row}, column {column} is outside of the grid: both must be from 0 to {SIDE - 1}")
        self.goal = (row, column)

    def play(self, policy: nn.Module, games: int, rewards: Rewards) -> Played:
        """Play games in parallel. `policy` maps `(games, FIELDS)` fields to `(games, 4)` log-odds of moves."""
        at, goal = torch.randint(0, SIDE, (games, 2)), torch.tensor(self.goal)
        alive = (at != goal).any(dim=1).float()
        starts = _number(at)
        log_odds, entropies, gained, lived, fields = [], [], [], [], []
        for _ in range(MOST_MOVES):
            choice = torch.distributions.Categorical(logits=policy(nn.functional.one_hot(_number(at), FIELDS).float()))
            move = choice.sample()
            wanted = at + torch.tensor(MOVES)[move]
            after = wanted.clamp(0, SIDE - 1)
            hit = (wanted != after).any(dim=1).float()
            after = torch.where(alive.bool().unsqueeze(1), after, at)
            arrived = alive * (after == goal).all(dim=1).float()
            log_odds.append(choice.log_prob(move))
            entropies.append(choice.entropy())
            gained.append(alive * (rewards.step + rewards.wall * hit) + rewards.goal * arrived)
            lived.append(alive)
            fields.append(_number(after))
            at, alive = after, alive - arrived
        return Played(
            log_odds=torch.stack(log_odds),
            entropy=torch.stack(entropies),
            rewards=torch.stack(gained),
            alive=torch.stack(lived),
            starts=starts,
            fields=torch.stack(fields),
            reached=float(1 - alive.mean()),
        )


def _number(at: torch.Tensor) -> torch.Tensor:
    """Return numbers of fields, `(games,)`, from rows and columns, `(games, 2)`."""
    return at[:, 0] * SIDE + at[:, 1]
