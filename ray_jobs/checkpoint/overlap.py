"""Copy of a state to host memory beside the next forward and backward pass.

Parameters, their master copies and the optimizer's moments change in the optimizer's update and nowhere else. So only
what may change before it (buffers, random generators, loop state) is copied at the boundary; the rest is copied by a
thread, and the next update waits for what is not copied yet, as do commands, evaluations and pauses (CheckFreq, Mohan
et al., FAST 2021, and its successors). Where a script writes into its parameters between two updates itself, the
tensors' version counters show it, and that save fails: such a script sets `checkpoint: {overlap: false}`.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence

import torch

from ray_jobs.checkpoint.host_memory import Copy, make_copies
from ray_jobs.rank.live_training import LiveTraining

log = logging.getLogger(__name__)

WORTH_BYTES = 4 << 20
"""Below that a copy takes less time than a thread's start."""

Version = tuple[str, torch.Tensor, int]
"""A tensor's name, the tensor, and its version counter when it was looked at."""


class BackgroundCopy:
    """Copies that a thread makes. It begins when it is created."""

    def __init__(self, copies: Sequence[Copy], versions: Sequence[Version]) -> None:
        """Start the thread; without one, copy at once."""
        self._copies, self._versions = copies, versions
        self._enqueued, self._failure, self._stream, self._event = threading.Event(), "", None, None
        self.copy_s = self.waited_s = 0.0
        if any(copy.source.is_cuda for copy in copies):
            self._stream = torch.cuda.Stream()
            self._stream.wait_stream(torch.cuda.current_stream())
        try:
            threading.Thread(target=self._run, name="checkpoint-copy", daemon=True).start()
        except RuntimeError:
            log.warning("cannot start a thread that copies the state: training waits for the copy")
            self._run()

    def wait(self) -> None:
        """Wait until the tensors may be changed: from a GPU, what is enqueued later waits, and the caller does not."""
        began_s = time.monotonic()
        self._enqueued.wait()
        if self._event is not None:
            torch.cuda.current_stream().wait_event(self._event)
        self.waited_s += time.monotonic() - began_s

    def finish(self) -> None:
        """Wait until all is copied. Raises `RuntimeError` if it could not be, or tensors changed meanwhile."""
        self._enqueued.wait()
        if self._event is not None:
            self._event.synchronize()
        if self._failure:
            raise RuntimeError(self._failure)

    def _run(self) -> None:
        began_s = time.monotonic()
        try:
            with torch.cuda.stream(self._stream):  # without one this does nothing
                for copy in self._copies:
                    copy.make()
                if self._stream is not None:
                    self._event = self._stream.record_event()
            changed = [name for name, tensor, version in self._versions if tensor._version != version]
            if changed:
                self._failure = (
                    f"{changed[0]} was changed between two updates of the optimizer, while it was copied; if the "
                    "script does that, set checkpoint.overlap to false"
                )
        except Exception as error:
            self._failure = f"the state could not be copied: {error}"
        finally:
            self._copies, self._versions = (), ()
            self.copy_s = time.monotonic() - began_s
            self._enqueued.set()


def begin(training: LiveTraining, copies: Sequence[Copy]) -> BackgroundCopy | None:
    """Copy what may change before the next update now, and the rest in a thread; None if nothing is left."""
    stable = list(_changed_by_updates(training))
    storages = {(tensor.device, tensor.untyped_storage().data_ptr()) for _, tensor in stable}
    now, later = list[Copy](), list[Copy]()
    for copy in copies:
        storage = (copy.source.device, copy.source.untyped_storage().data_ptr())
        (later if storage in storages else now).append(copy)
    if sum(copy.source.numel() for copy in later) < WORTH_BYTES:
        make_copies([*now, *later])
        return None
    make_copies(now)
    return BackgroundCopy(later, [(name, tensor, tensor._version) for name, tensor in stable])


def _changed_by_updates(training: LiveTraining) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that only the optimizer's update changes, with names for people."""
    yield from training.model.named_parameters()
    optimizer = training.partitions.torch_optimizer
    for group in optimizer.param_groups:  # with ZeRO 3 they are filled during its update only
        yield from (("a master weight", parameter) for parameter in group["params"])
    for master, state in optimizer.state.items():
        yield "a master weight", master
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                yield f"the optimizer's {key}", value
