"""Values on their way from a device to host memory: the copy is started at once and read later, without a wait.

copy = HostCopy(loss)       queued on the device's stream behind what computes the loss
copy.values()               at the next boundary, when it has long arrived
"""

from collections.abc import Sequence

import torch


class HostCopy:
    """Copy of a tensor's elements as float64. On a CPU it is the values themselves."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host: torch.Tensor | None = None
        if not tensor.is_cuda:
            # Read at once: the script may write into its tensor later.
            self._values = (
                [float(tensor.item())] if tensor.numel() == 1 else tensor.detach().reshape(-1).double().tolist()
            )
        else:
            tensor = tensor.detach().reshape(-1)
            self._host = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def values(self) -> Sequence[float]:
        """Return the elements; waits only if the device has not come to the copy yet."""
        if self._event is not None and self._host is not None:
            self._event.synchronize()
            self._values, self._event, self._host = self._host.double().tolist(), None, None
        return self._values


class LossSum:
    """Sum of the losses of a step's micro-batches, where they are."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None

    @torch.no_grad()
    def add(self, loss: torch.Tensor) -> None:
        """Add one loss (a tensor of one element), without a wait."""
        value = loss.detach().reshape(-1)[:1].float()
        # On a device this queues two small kernels; a copy, since the script may go on with its tensor.
        self._sum = value.clone() if self._sum is None else self._sum + value

    def take(self) -> HostCopy | None:
        """Return the sum and begin anew; None if nothing was added."""
        total, self._sum = self._sum, None
        return HostCopy(total) if total is not None else None
