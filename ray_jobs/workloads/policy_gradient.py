"""REINFORCE on a small grid, in plain PyTorch, with rewards that can be changed while it trains.

    steer submit configs/policy-gradient.yaml
    steer set RUN reward/wall=-2
    steer action RUN move_goal row=0 column=4
    steer data add RUN scores judged.jsonl

The agent starts at a random field and has to find a goal. Rewards are knobs, moving the goal is an action; the
optimizer's learning rate is steered like any other. What people think of its games comes in while it trains, and
becomes a term of the reward, whose weight is the knob `feedback/weight`: see `episode_feedback`.
"""

import argparse
import logging
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ray_jobs.loop.session import TrainingSession
from ray_jobs.process import context
from ray_jobs.workloads.episode_feedback import (
    LEAST_WEIGHT,
    MOST_WEIGHT,
    Feedback,
    JudgedPolicy,
    feedback_of,
)
from ray_jobs.workloads.grid import FIELDS, MOVES, Grid, Played, Rewards
from ray_jobs.workloads.shown_episodes import ShownEpisodes

log = logging.getLogger(__name__)


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


def make_session(
    model: nn.Module,
    optimizer: Any,
    rewards: Rewards,
    grid: Grid,
    steps: int,
    feedback: Feedback | None = None,
    records: int = 16,
) -> TrainingSession:
    """Return a session with the rewards as knobs, and an action that moves the goal, which is kept in its state.

    With feedback, its weight is a knob, too, and each step learns from `records` of it.
    """
    given: dict[str, Any] = {"data": feedback.data, "global_batch_samples": records} if feedback is not None else {}
    session = TrainingSession(model, optimizer, total_steps=steps, tell_every_steps=5, **given)
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
    if feedback is not None:
        session.register_knob(
            "feedback/weight",
            get=lambda: feedback.weight,
            set=feedback.set_weight,
            least=LEAST_WEIGHT,
            most=MOST_WEIGHT,
            description="weight of the reward that is learned from people's feedback; 0: it is learned, not used",
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
    feedback: Feedback | None = None,
    shown: ShownEpisodes | None = None,
    show_every: int = 25,
) -> None:
    """Run the training loop: each step plays, and learns from, `games` games on each rank."""
    for made in session.steps():
        played = grid.play(policy, games, rewards)
        gained = float(played.rewards.sum(dim=0).mean())
        if shown is not None and (made + 1) % show_every == 0:
            shown.write(made + 1, played)
        metrics: dict[str, Any] = {}
        if feedback is not None:
            metrics["feedback_return"] = feedback.add_to(played)
        loss = policy_loss(played, entropy)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(policy)
        if feedback is not None:
            metrics |= learn_from(feedback, session)
        optimizer.step()
        session.step(metrics | {"loss": loss, "return": gained, "reached": played.reached})


def learn_from(feedback: Feedback, session: TrainingSession) -> dict[str, Any]:
    """Leave the gradients of this step's feedback, which every rank learns from alike; return its loss, if any came."""
    losses, references = feedback.backward(session.references())
    if not references:
        return {}
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    session.note_sample_losses(losses[rank::ranks], references[rank::ranks])
    return {"feedback_loss": losses.mean()}


def build_policy(rate: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the policy network, from a field to the log-odds of each move, and its optimizer."""
    policy = nn.Sequential(nn.Linear(FIELDS, 32), nn.Tanh(), nn.Linear(32, len(MOVES)))
    return policy, torch.optim.Adam([{"params": policy.parameters(), "lr": rate, "name": "policy"}])


def judged(policy: nn.Module, optimizer: torch.optim.Optimizer, feedback: Feedback | None, rate: float) -> nn.Module:
    """Return the model of a training: the policy, and the reward that is learned beside it at a rate of its own."""
    if feedback is None:
        return policy
    optimizer.add_param_group({"params": feedback.reward.parameters(), "lr": rate, "name": "feedback"})
    return JudgedPolicy(policy, feedback.reward)


def main() -> None:
    """Train on the ranks of torch.distributed, or in a single process."""
    arguments = parse()
    torch.manual_seed(arguments.seed)
    policy, optimizer = build_policy(arguments.rate)
    rewards, grid, run = Rewards(), Grid(), context.current()
    feedback = feedback_of(run.sources if run is not None else {}, arguments.feedback_weight)
    model = judged(policy, optimizer, feedback, arguments.feedback_rate)
    session = make_session(model, optimizer, rewards, grid, arguments.steps, feedback, arguments.feedback_records)
    rank, shown = dist.get_rank() if dist.is_initialized() else 0, None
    if feedback is not None and run is not None and rank == 0:
        shown = ShownEpisodes(run.files.work / "episodes", run.files.run, arguments.shown)
    torch.manual_seed(arguments.seed + rank)  # other games on each rank
    with session:
        grid.goal = tuple(session.state.get("goal", grid.goal))
        rest = (arguments.games, arguments.entropy, feedback, shown, arguments.show_every)
        learn(model, optimizer, rewards, grid, session, *rest)
    log.info("finished at step %d", session.global_step)


def parse() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--games", type=int, default=32, help="games of one step, on each rank")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--entropy", type=float, default=0.02, help="weight of the entropy bonus")
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--feedback-weight", type=float, default=1.0, help="weight of the reward learned from feedback")
    parser.add_argument("--feedback-rate", type=float, default=2e-2, help="learning rate of that reward")
    parser.add_argument("--feedback-records", type=int, default=16, help="records of feedback that a step learns from")
    parser.add_argument("--show-every", type=int, default=25, help="steps between those whose games are written out")
    parser.add_argument("--shown", type=int, default=16, help="games that are written out of such a step; 0: none")
    return parser.parse_args()


if __name__ == "__main__":
    main()
