"""Feedback on episodes as a term of the reward: a small model of what people like, learned while the policy trains.

    sources:
      scores: {format: jsonl, live: true, fields: {...}}           # `SCORES`: features of an episode, and its score
      preferences: {format: jsonl, live: true, fields: {...}}      # `PREFERENCES`: of one that was preferred to another

A record holds the features of its episodes, so nothing is looked up: it means the same after a rollback, in a replay
and on any number of ranks. The model has one reward a field, which a game gets when it first enters it: were each visit
paid, staying where it is pleasant would be worth more than reaching the goal. Scores are fitted by least squares, with
an offset that is no part of the reward; preferences by Bradley and Terry's model, P(preferred) =
1 / (1 + exp(-(R(preferred) - R(rejected)))), as in Christiano et al. 2017 (arXiv:1706.03741).

Every rank learns from all records of a step, in one order and without communication: the model is the same on each.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from control_plane.core.model.data import FieldSchema, SourceSettings
from control_plane.core.model.errors import Invalid
from ray_jobs.data.mixture.dataset import MixtureDataset, mixture
from ray_jobs.data.mixture.phase import Sample
from ray_jobs.workloads.grid import FIELDS, Played

MOST_SCORE = 10.0
"""Scores beyond it, on either side, count as this: one slip of a hand shall not outweigh a hundred judgements."""

SHRINKAGE = 1e-2
"""Weight of the squared rewards in the loss: of what nobody has judged, the reward goes back to 0."""

LEAST_WEIGHT, MOST_WEIGHT = 0.0, 10.0

_FEATURES = {"type": "array", "dtype": "uint8", "shape": [FIELDS]}
SCORES: dict[str, Any] = {
    "episode": {"type": "text", "required": False},
    "path": {"type": "text", "required": False},
    "features": _FEATURES,
    "score": "number",
}
PREFERENCES: dict[str, Any] = {
    "episode": {"type": "text", "required": False},
    "preferred": _FEATURES,
    "rejected": _FEATURES,
}
"""Fields of the records of a source of scores, and of one of preferences."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Judgement of one episode, by a score, or by another one that was rejected; features of shape `(FIELDS,)`."""

    features: torch.Tensor
    rejected: torch.Tensor | None = None
    score: float = 0.0


class EpisodeReward(nn.Module):
    """Reward of an episode's features; it begins as 0. `offset` is what scores have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards, self.offset = nn.Parameter(torch.zeros(FIELDS)), nn.Parameter(torch.zeros(1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the reward of episodes, `(n,)`, from their features, `(n, FIELDS)`."""
        return features.clamp(max=1) @ self.rewards

    def of_moves(self, played: Played) -> torch.Tensor:
        """Return the reward of each move, shape `(moves, games)`: of those that enter a field for the first time."""
        entered = played.entered()
        is_first = entered * (entered.cumsum(dim=0) == 1)
        return is_first.float() @ self.rewards.detach()

    def losses(self, judgements: Sequence[Judgement]) -> torch.Tensor:
        """Return the loss of each judgement, shape `(n,)`."""
        nothing = torch.zeros(FIELDS)
        one = torch.stack([each.features for each in judgements])
        other = torch.stack([each.rejected if each.rejected is not None else nothing for each in judgements])
        is_score = torch.tensor([each.rejected is None for each in judgements])
        score = torch.tensor([each.score for each in judgements])
        ahead = self(one) - self(other)
        return torch.where(is_score, (ahead + self.offset - score).square(), nn.functional.softplus(-ahead))


class JudgedPolicy(nn.Module):
    """A policy, and the reward that is learned beside it: one model, so that checkpoints and digests hold both."""

    def __init__(self, policy: nn.Module, reward: EpisodeReward) -> None:
        super().__init__()
        self.policy, self.reward = policy, reward

    def forward(self, field: torch.Tensor) -> torch.Tensor:
        """Return the policy's log-odds."""
        log_odds: torch.Tensor = self.policy(field)
        return log_odds


class Feedback:
    """Feedback of one training: its records, the reward that is learned from them, and the weight of that reward."""

    def __init__(self, data: MixtureDataset, weight: float = 1.0) -> None:
        self.data, self.weight, self.reward = data, weight, EpisodeReward()
        self._has_passed_over = False

    def set_weight(self, value: float) -> None:
        """Set the weight; the next step's games are rewarded by it."""
        self.weight = value

    def add_to(self, played: Played) -> float:
        """Add the learned reward, times its weight, to that of each move; return what a game got by it, on average.

        With a weight of 0, or before the first record, nothing is touched.
        """
        if self.weight == 0 or not self.reward.rewards.any():
            return 0.0
        gained = self.weight * self.reward.of_moves(played)
        played.rewards = played.rewards + gained
        return float(gained.sum(dim=0).mean())

    def backward(self, references: Sequence[Sample]) -> tuple[torch.Tensor, list[Sample]]:
        """Leave the gradients of these records' losses in the reward's parameters.

        Returns: the losses, and the records that they are of: all but those that are no judgement.
        """
        pairs = [(self.data[reference], reference) for reference in references]
        kept = [(judgement, reference) for judgement, reference in pairs if judgement is not None]
        if len(kept) < len(pairs) and not self._has_passed_over:
            self._has_passed_over = True
            log.warning("records that are no judgement of an episode are passed over: %s", _name_of(pairs))
        if not kept:
            return torch.zeros(0), []
        losses = self.reward.losses([judgement for judgement, _ in kept])
        (losses.mean() + SHRINKAGE * self.reward.rewards.square().sum()).backward()
        return losses.detach(), [reference for _, reference in kept]


def _name_of(pairs: Sequence[tuple[Judgement | None, Sample]]) -> str:
    return next(reference.id for judgement, reference in pairs if judgement is None)


def judgement_of(record: Mapping[str, Any]) -> Judgement | None:
    """Return what a record says of an episode; None if it is no judgement."""
    preferred, rejected = _features(record.get("preferred")), _features(record.get("rejected"))
    if preferred is not None and rejected is not None:
        return Judgement(preferred, rejected)
    features, score = _features(record.get("features")), record.get("score")
    if features is None or isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        return None
    return Judgement(features, score=max(-MOST_SCORE, min(MOST_SCORE, float(score))))


def _features(value: object) -> torch.Tensor | None:
    if not isinstance(value, list) or len(value) != FIELDS:
        return None
    if not all(isinstance(each, int | float) and 0 <= each <= 255 for each in value):
        return None
    return torch.tensor(value, dtype=torch.float32)


def feedback_of(sources: Mapping[str, SourceSettings], weight: float) -> Feedback | None:
    """Return the feedback of a run with these sources; None without one.

    Raises: `Invalid` if a source holds neither scores nor preferences.
    """
    if not sources:
        return None
    for name, source in sources.items():
        if not any(_holds(source, schema) for schema in (SCORES, PREFERENCES)):
            raise Invalid(
                f"source {name} holds no feedback: records of scores have the fields features (uint8, {FIELDS} of "
                "them) and score, those of preferences preferred and rejected; see configs/policy-gradient.yaml"
            )
    return Feedback(mixture(judgement_of, may_be_empty=True), weight)


def _holds(source: SourceSettings, schema: Mapping[str, Any]) -> bool:
    """Return whether records of a source surely have what a schema asks for."""
    wanted = {name: FieldSchema.model_validate(field) for name, field in schema.items()}
    fields = source.schema_of_records
    return all(fields.get(name) == field for name, field in wanted.items() if field.required)
