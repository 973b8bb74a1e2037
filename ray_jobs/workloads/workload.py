"""Model and data of a workload, for the Trainer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ray_jobs.data.mixture.dataset import MixtureDataset
    from ray_jobs.data.sample_order import TokenBlocks


@dataclass(frozen=True)
class Workload:
    """Newly initialized model and its data, the same on every rank.

    `facts` describe it for the user: `parameters`, `vocab_size`, `train_tokens`, `eval_tokens`,
    `unigram_entropy_nats` (of the evaluation split, per token) and `tokens_digest`, which must agree
    between ranks: machines with different sources would otherwise train on different data without notice.
    """

    model: "PreTrainedModel"
    train_dataset: "TokenBlocks | MixtureDataset"
    eval_dataset: "TokenBlocks"
    facts: dict[str, float | str]
