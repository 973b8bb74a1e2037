"""Evaluation of a Transformers Trainer on the records that the sources of its mixture hold out.

Read in Transformers 5.23: `prediction_step`, whose forward pass this repeats for records of our choice.
"""

from collections.abc import Sequence

import torch
from transformers import Trainer

from ray_jobs.data.mixture.dataset import MixtureDataset
from ray_jobs.data.mixture.held_out import Alone, Ranks, held_out_losses
from ray_jobs.data.mixture.phase import Reference
from ray_jobs.hf.sample_losses import labels_of, sample_losses
from ray_jobs.steered_run import SteeredRun
from ray_jobs.steering.appliers import evaluating


def evaluate_held_out(trainer: Trainer, data: MixtureDataset, steering: SteeredRun | None) -> dict[str, float]:
    """Collective. Return `eval_loss/NAME` and `eval_error/NAME` of each source that holds something out.

    The loss of each sample is the cross entropy of what the model answers; where there is none for each sample, the
    mean that the Trainer computes for a batch.
    """
    model = trainer.model
    assert isinstance(model, torch.nn.Module)
    is_open = steering is not None and steering.session is not None
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator, description="evaluation")
    ranks: Ranks = steering.opened().collectives if steering is not None and is_open else Alone()

    def losses_of(references: Sequence[Reference]) -> torch.Tensor:
        if steering is not None:
            steering.beat("evaluating")
        inputs = trainer._prepare_inputs(collate([data[reference] for reference in references]))
        labels = labels_of(inputs)
        with trainer.compute_loss_context_manager():
            loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True)
        by_sample = sample_losses(model, outputs, labels, tokens=None) if labels is not None else None
        return by_sample if by_sample is not None else loss.detach().mean()

    with evaluating(model):
        return held_out_losses(data, losses_of, ranks, trainer.args.per_device_eval_batch_size)
