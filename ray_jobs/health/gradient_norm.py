"""Norm of the gradient where neither DeepSpeed nor the loop tells it: of the gradients that the optimizer is given.

A script that clips before its optimizer's step hides the norm from before the clipping; it may tell it as `grad_norm`
among its measurements, which then counts.
"""

import torch
from torch.utils.hooks import RemovableHandle

from ray_jobs.health.step_signs import StepSigns
from ray_jobs.steering.partitions import Partitions


class GradientNormHook:
    """Hook on torch's optimizer that notes the norm of each step's gradient, for one whose ranks hold all of it."""

    def __init__(self, partitions: Partitions, signs: StepSigns) -> None:
        self._signs = signs
        optimizer = partitions.torch_optimizer
        self._handle: RemovableHandle = optimizer.register_step_pre_hook(lambda optimizer, *_: self._note(optimizer))

    def remove(self) -> None:
        """Remove the hook."""
        self._handle.remove()

    @torch.no_grad()
    def _note(self, optimizer: torch.optim.Optimizer) -> None:
        if self._signs.is_norm_given:
            return
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and not parameter.grad.is_sparse
        ]
        if gradients and len({gradient.device for gradient in gradients}) == 1:
            norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
            self._signs.note_measured_norm(torch.linalg.vector_norm(torch.stack(list(norms))))
