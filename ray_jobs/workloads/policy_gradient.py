"""REINFORCE on a small grid, in plain PyTorch, with rewards that can be changed while it trains.

    steer submit configs/policy-gradient.yaml
    steer set RUN reward/wall=-2
    steer action RUN move_goal row=0 column=4

The agent starts at a random field and has to find a goal. Rewards are knobs, moving the goal is an action; the
optimizer's learning rate is steered like any other.
"""

import argparse
import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from control_plane.core.model.errors import Invalid
from ray_jobs.loop.session import TrainingSession

SIDE = 5
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
MOST_MOVES = 16

log = logging.getLogger(__name__)


@dataclass
class Rewards:
    """Reward of each event."""

    goal: float = 1.0
    step: float = -0.05
    wall: float = -0.1


@dataclass
class Played:
    """A batch of games: each tensor is `(moves, games)`; `alive` is 1 while a game has not ended."""

    log_odds: torch.Tensor
    entropy: torch.Tensor
    rewards: torch.Tensor
    alive: torch.Tensor
    reached: float

    def returns(self, discount: float = 0.97) -> torch.Tensor:
        """Return the discounted return of each move, shape `(moves, games)`."""
        ahead, out = torch.zeros(self.rewards.shape[1]), []
        for reward in reversed(self.rewards):
            ahead = reward + discount * ahead
            out.append(ahead)
        return torch.stack(out[::-1])


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
        """Play games in parallel. `policy` maps `(games, SIDE * SIDE)` fields to `(games, 4)` log-odds of moves."""
        at, goal = torch.randint(0, SIDE, (games, 2)), torch.tensor(self.goal)
        alive = (at != goal).any(dim=1).float()
        log_odds, entropies, gained, lived = [], [], [], []
        for _ in range(MOST_MOVES):
            field = nn.functional.one_hot(at[:, 0] * SIDE + at[:, 1], SIDE * SIDE).float()
            choice = torch.distributions.Categorical(logits=policy(field))
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
            at, alive = after, alive - arrived
        reached = float(1 - alive.mean())
        return Played(torch.stack(log_odds), torch.stack(entropies), torch.stack(gained), torch.stack(lived), reached)


def policy_loss(played: Played, entropy_weight: float) -> torch.Tensor:
    """Return the REINFORCE loss with the batch's mean as its baseline, and an entropy bonus."""
    returns, count = played.returns(), played.alive.sum().clamp(min=1)
    advantage = returns - (returns * played.alive).sum() / count
    gain = (played.log_odds * advantage + entropy_weight * played.entropy) * played.alive
    return -gain.sum() / count


def average_gradients(model: nn.Module) -> None:
    """Collective. Average the gradients over the ranks, with one all-reduce."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def make_session(model: nn.Module, optimizer: Any, rewards: Rewards, grid: Grid, steps: int) -> TrainingSession:
    """Return a session with the rewards as knobs, and an action that moves the goal, which is kept in its state."""
    session = TrainingSession(model, optimizer, total_steps=steps, tell_every_steps=5)
    descriptions = {
        "goal": "reward for reaching the goal",
        "step": "reward for each move",
        "wall": "reward for running into a wall",
    }
    for name, description in descriptions.items():
        session.register_knob(
            f"reward/{name}",
            get=lambda name=name: getattr(rewards, name),  # type: ignore[misc]
            set=lambda value, name=name: setattr(rewards, name, value),  # type: ignore[misc]
            least=-10.0,
            most=10.0,
            description=description,
        )
    before = [grid.goal]

    def put_back() -> None:
        session.state["goal"] = grid.goal = before[0]

    @session.action("move_goal", description="Move the goal; the agent has to find it again", undo=put_back)
    def move_goal(row: int, column: int) -> dict[str, int]:
        before[0] = grid.goal
        grid.move_goal(row, column)
        session.state["goal"] = grid.goal
        return {"row": row, "column": column}

    return session


def learn(
    policy: nn.Module,
    optimizer: Any,
    rewards: Rewards,
    grid: Grid,
    session: TrainingSession,
    games: int,
    entropy: float,
) -> None:
    """Run the training loop: each step plays, and learns from, `games` games on each rank."""
    for _ in session.steps():
        played = grid.play(policy, games, rewards)
        loss = policy_loss(played, entropy)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(policy)
        optimizer.step()
        gained = float(played.rewards.sum(dim=0).mean())
        session.step({"loss": loss, "return": gained, "reached": played.reached})


def build_policy(rate: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the policy network, from a field to the log-odds of each move, and its optimizer."""
    policy = nn.Sequential(nn.Linear(SIDE * SIDE, 32), nn.Tanh(), nn.Linear(32, len(MOVES)))
    return policy, torch.optim.Adam([{"params": policy.parameters(), "lr": rate, "name": "policy"}])


def main() -> None:
    """Train on the ranks of torch.distributed, or in a single process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--games", type=int, default=32, help="games of one step, on each rank")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--entropy", type=float, default=0.02, help="weight of the entropy bonus")
    parser.add_argument("--seed", type=int, default=20260101)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    policy, optimizer = build_policy(arguments.rate)
    rewards, grid = Rewards(), Grid()
    session = make_session(policy, optimizer, rewards, grid, arguments.steps)
    torch.manual_seed(arguments.seed + (dist.get_rank() if dist.is_initialized() else 0))  # other games on each rank
    with session:
        grid.goal = tuple(session.state.get("goal", grid.goal))
        learn(policy, optimizer, rewards, grid, session, arguments.games, arguments.entropy)
    log.info("finished at step %d", session.global_step)


if __name__ == "__main__":
    main()
