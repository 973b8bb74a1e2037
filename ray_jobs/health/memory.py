"""Memory of a rank: in use, and what it may use; of its GPU, of its cgroup, or of the machine."""

import os
from pathlib import Path

import psutil
import torch

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
STATM, STATM_BYTES = Path("/proc/self/statm"), 256


class RankMemory:
    """Memory of this rank on its device.

    On a GPU: the most that tensors have held since the start, of the device's memory. Torch's peak is not reset: it is
    the script's to reset. On a CPU: the resident set, of this rank's equal part of the cgroup's or machine's memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self.limit_bytes = self._limit()
        # Kept open: it is read at every step.
        self._statm = STATM.open("rb", buffering=0) if STATM.exists() else None

    def _limit(self) -> float:
        if self._device.type == "cuda":
            return float(torch.cuda.get_device_properties(self._device).total_memory)
        limits = [float(psutil.virtual_memory().total)]
        for path in CGROUP_LIMITS:
            try:
                limits.append(float(path.read_text()))
            except (OSError, ValueError):
                continue  # no such version of cgroups, or "max"
        ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
        return min(limits) / max(1, int(ranks) if ranks.isdigit() else 1)

    def used_bytes(self) -> float:
        """Return the bytes in use."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        if self._statm is None:
            return float(psutil.Process().memory_info().rss)
        return float(int(os.pread(self._statm.fileno(), STATM_BYTES, 0).split()[1]) * self._page_bytes)
