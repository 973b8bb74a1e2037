"""Losses of single samples, from what a Transformers model has answered in the training step: no second forward pass.

Read in Transformers 5.23: how `Trainer.compute_loss` shifts the labels of causal language models.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

IGNORED = -100
"""Label of a token that is not trained on."""

TOKENS = 64
"""Tokens of a sample that are looked at, evenly spread: the softmax of all of a long text would cost too much."""

MOST_ELEMENTS = 1 << 24
"""Logits that are turned into float32 at a time: 64 MiB."""


def labels_of(inputs: Any) -> torch.Tensor | None:
    """Return the labels of a batch, or None. To be called before the loss is computed, which may take them out."""
    labels = inputs.get("labels") if isinstance(inputs, Mapping) else None
    return labels if isinstance(labels, torch.Tensor) else None


@torch.no_grad()
def sample_losses(
    model: nn.Module, outputs: Any, labels: torch.Tensor, tokens: int | None = TOKENS
) -> torch.Tensor | None:
    """Return the mean cross entropy of each sample, shape `(samples,)`, on the device of the logits.

    Of a sample of more than `tokens` tokens it is the mean over every k-th of them; without a label to train on, NaN.
    None where the answer is neither one logit a class nor one a token and class, or does not fit the labels.

    Args:
        model: not wrapped; it tells whether labels are those of the next token.
        outputs: what the model has answered, with `logits`.
        labels: shape `(samples,)` or `(samples, tokens)`.
        tokens: of a sample that are looked at; None: all.
    """
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if not isinstance(logits, torch.Tensor) or logits.dim() != labels.dim() + 1 or labels.is_floating_point():
        return None
    if logits.shape[:-1] != labels.shape or labels.dim() not in (1, 2):
        return None
    labels = labels.to(logits.device)
    if labels.dim() == 1:
        return cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED)
    if _predicts_the_next(model):
        labels = pad(labels, (0, 1), value=IGNORED)[:, 1:]
    stride = 1 if tokens is None else -(-labels.shape[1] // tokens)
    logits, labels = logits[:, ::stride], labels[:, ::stride].contiguous()
    chunk = max(1, MOST_ELEMENTS // max(1, logits[0].numel()))
    parts = [
        cross_entropy(some.float().flatten(0, 1), of_some.flatten(), reduction="none", ignore_index=IGNORED)
        for some, of_some in zip(logits.split(chunk), labels.split(chunk), strict=True)
    ]
    return torch.cat(parts).view_as(labels).sum(dim=1) / (labels != IGNORED).sum(dim=1)


def _predicts_the_next(model: nn.Module) -> bool:
    name = type(model).__name__
    return name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or getattr(model, "loss_type", None) == "ForCausalLM"
