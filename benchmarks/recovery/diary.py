"""Diaries of the ranks, and the times of a recovery in them. Both arms of the benchmark write the same diaries.

Each process of a rank appends to a file of its own, `rank-R-PID.diary`: a line `begun`, a line `loaded` right before
its first step, a line `step S` at the end of every optimizer step, each with the Unix time. A line is one `write`, so
that a kill leaves whole lines.
"""

import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from control_plane.core.rules.recovery import PHASES

BEGUN, LOADED, STEP = "begun", "loaded", "step"


class DiaryPen:
    """Writer of a process's diary."""

    def __init__(self, folder: Path, rank: int) -> None:
        path = folder / f"rank-{rank}-{os.getpid()}.diary"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, word: str, step: int = 0) -> None:
        """Append one line with the time."""
        os.write(self._file, f"{word} {step} {time.time():.6f}\n".encode())


@dataclass(frozen=True, slots=True)
class RankProcess:
    """Diary of one process of one rank. Times are Unix times; `ends_s` has the end of each optimizer step."""

    rank: int
    pid: int
    begun_s: float
    loaded_s: float | None
    ends_s: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Recovery:
    """Times of the recovery from one fault. All times are Unix times.

    `stepped_s`: when the last rank ended the first optimizer step of the new processes. `back_s`: the same for the
    step `reached`, the last one that any of the old processes had ended. `resumed` is the step that the new processes
    started from.
    """

    killed_s: float
    detected_s: float
    begun_s: float
    loaded_s: float
    stepped_s: float
    back_s: float
    reached: int
    resumed: int

    @property
    def seconds(self) -> float:
        """Seconds from the fault to the first new step."""
        return self.stepped_s - self.killed_s

    @property
    def seconds_to_be_back(self) -> float:
        """Seconds from the fault to the step that the run had reached."""
        return self.back_s - self.killed_s

    @property
    def lost_steps(self) -> int:
        """Number of repeated steps."""
        return max(0, self.reached - self.resumed)

    def split(self) -> dict[str, float]:
        """Return the seconds of each phase; their sum is `seconds`, unless a clock went back."""
        moments = (self.killed_s, self.detected_s, self.begun_s, self.loaded_s, self.stepped_s)
        lengths = (max(0.0, after - before) for before, after in pairwise(moments))
        return dict(zip(PHASES, lengths, strict=True))


def read_processes(folder: Path) -> list[RankProcess]:
    """Return the diary of every process so far, in the order of their starts."""
    processes = [_process(path) for path in folder.glob("rank-*-*.diary")]
    return sorted((process for process in processes if process is not None), key=lambda process: process.begun_s)


def _process(path: Path) -> RankProcess | None:
    lines = [line.split() for line in path.read_text().splitlines() if line.count(" ") == 2]
    if not lines or lines[0][0] != BEGUN:
        return None  # the file is open, but has no line yet
    _, rank, pid = path.stem.split("-")
    loaded = next((float(at) for word, _, at in lines if word == LOADED), None)
    ends = {int(step): float(at) for word, step, at in lines if word == STEP}
    return RankProcess(int(rank), int(pid), float(lines[0][2]), loaded, ends)


def latest(processes: Iterable[RankProcess]) -> dict[int, RankProcess]:
    """Return each rank's last process."""
    return {process.rank: process for process in sorted(processes, key=lambda process: process.begun_s)}


def steps_of_all(processes: Iterable[RankProcess], ranks: int) -> dict[int, float]:
    """Return the steps that all ranks have ended in these processes, with the time of the last rank."""
    ends: dict[int, dict[int, float]] = {}
    for process in processes:
        for step, at_s in process.ends_s.items():
            of_step = ends.setdefault(step, {})
            of_step[process.rank] = min(at_s, of_step.get(process.rank, math.inf))
    return {step: max(of_step.values()) for step, of_step in ends.items() if len(of_step) == ranks}


def recovery_of(processes: Iterable[RankProcess], killed_s: float, detected_s: float, ranks: int) -> Recovery | None:
    """Return the recovery from the fault at `killed_s`, or None until the run is back at the step that it had reached.

    A new step is one of processes that began after the fault: a surviving rank may have ended the step in progress.
    `processes` must not include any after the next fault.
    """
    processes = list(processes)
    old = latest(process for process in processes if process.begun_s <= killed_s)
    new = [process for process in processes if process.begun_s > killed_s]
    reached = max((step for process in old.values() for step in process.ends_s), default=0)
    ended = steps_of_all(new, ranks)
    if not any(step >= reached for step in ended):
        return None
    first = min(ended, key=lambda step: ended[step])
    made_it = list(latest(process for process in new if first in process.ends_s).values())
    return Recovery(
        killed_s=killed_s,
        detected_s=detected_s,
        begun_s=max(process.begun_s for process in made_it),
        loaded_s=max(process.loaded_s or process.begun_s for process in made_it),
        stepped_s=ended[first],
        back_s=min(at_s for step, at_s in ended.items() if step >= reached),
        reached=reached,
        resumed=first - 1,
    )
