"""Launcher of the GPU check: starts the ranks, ends each stage after its time box, and prints a JSON line for each."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.catalogue import STAGE_BOXES, StageBox
from benchmarks.harness.ports import free_port

EXIT_HUNG = 75
"""`ray_jobs.monitor.watchdog.EXIT_HUNG`, named here so that the launcher imports nothing of the training side."""

START_BOX_S = 150.0
"""Importing torch, DeepSpeed and Transformers, and joining: slow on a cold disk."""

POLL_S = 0.1
LEAST_S = 12.0
"""Least remaining budget for new processes, which would be ended before their first stage otherwise."""

REHEARSAL_PATIENCE = 3
"""Factor of time boxes in a rehearsal, whose ranks share their processors with other programs."""

LOG_LINES = 6
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring", "NCCL_NVLS_ENABLE": "0"}
"""Settings of cuBLAS and NCCL for bit-equality; `stages.exact` adds PyTorch's own."""

Line = dict[str, Any]


@dataclass
class GpuCheck:
    """Run of the check. `emit` gets every line as soon as it is known."""

    folder: Path
    world_size: int
    rehearse: bool
    deadline_s: float
    emit: Callable[[Line], None]
    label: Line
    _launches: int = 0

    def run(self, names: list[str]) -> list[Line]:
        """Run these stages in their order, also after a stage that fails or exceeds its time box."""
        lines: list[Line] = []
        remaining = [STAGE_BOXES[name] for name in names]
        while remaining:
            if time.monotonic() > self.deadline_s - LEAST_S:
                lines += [
                    self._tell(stage, {"ok": None, "reason": "not run: the budget is spent"}) for stage in remaining
                ]
                break
            if remaining[0].needs_ranks > self.world_size:
                stage = remaining.pop(0)
                reason = f"not run: it needs {stage.needs_ranks} ranks, and NCCL takes one rank a GPU"
                lines.append(self._tell(stage, {"ok": None, "reason": reason}))
                continue
            together = _together(remaining, self.world_size)
            done = list(self._launch(together))
            lines += done
            remaining = remaining[len(done) :]
        return lines

    def _launch(self, stages: list[StageBox]) -> Iterator[Line]:
        """Start ranks for these stages; yield a line for each that has ended."""
        self._launches += 1
        folder = self.folder / f"launch-{self._launches}"
        folder.mkdir(parents=True)
        names = [stage.name for stage in stages]
        (folder / "spec.json").write_text(json.dumps({"stages": names, "rehearse": self.rehearse}))
        port = free_port()
        ranks = [self._start(rank, port, folder) for rank in range(self.world_size)]
        try:
            reason = self._wait(folder, "ready", ranks, START_BOX_S)
            for stage in stages:
                if reason is None and not stage.ends_ranks:
                    reason = self._wait(folder, stage.name, ranks, self._box_s(stage))
                elif reason is None:
                    yield self._tell(stage, self._ended(ranks, stage))
                    return
                line = self._answer(folder, stage, reason)
                yield self._tell(stage, line)
                if reason is not None or line["ok"] is False:
                    return
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()

    def _box_s(self, stage: StageBox) -> float:
        return stage.box_s * (REHEARSAL_PATIENCE if self.rehearse else 1)

    def _start(self, rank: int, port: int, folder: Path) -> "subprocess.Popen[bytes]":
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.world_size, "LOCAL_WORLD_SIZE": self.world_size}
        environment = os.environ | {name: str(number) for name, number in numbers.items()} | DETERMINISTIC
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if self.rehearse:
            environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        with (folder / f"rank-{rank}.log").open("wb") as log:
            command = [sys.executable, "-m", "benchmarks.gpu.rank", str(folder)]
            return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _wait(self, folder: Path, name: str, ranks: "list[subprocess.Popen[bytes]]", box_s: float) -> str | None:
        """Wait until every rank has answered for this stage; return the reason if one has not, else None."""
        until_s = min(time.monotonic() + box_s, self.deadline_s)
        while not all((folder / f"{name}.{rank}.json").exists() for rank in range(self.world_size)):
            for rank, process in enumerate(ranks):
                if process.poll() not in (None, 0):
                    return f"rank {rank} ended with exit code {process.returncode}: {_log_end(folder, rank)}"
            if time.monotonic() > until_s:
                spent = "the budget" if until_s == self.deadline_s else f"its time box of {box_s:g} s"
                return f"ended: {spent} was over; rank 0: {_log_end(folder, 0)}"
            time.sleep(POLL_S)
        return None

    def _ended(self, ranks: "list[subprocess.Popen[bytes]]", stage: StageBox) -> Line:
        """Return the line of a stage in which the last rank is stopped: exit codes and seconds of the others."""
        began_s = time.monotonic()
        until_s = min(began_s + self._box_s(stage), self.deadline_s)
        while any(rank.poll() is None for rank in ranks[:-1]) and time.monotonic() < until_s:
            time.sleep(POLL_S)
        codes = [rank.poll() for rank in ranks[:-1]]
        return {
            "ok": all(code == EXIT_HUNG for code in codes),
            "exit_codes": codes,
            "expected_exit_code": EXIT_HUNG,
            "seconds": round(time.monotonic() - began_s, 2),
        }

    def _answer(self, folder: Path, stage: StageBox, reason: str | None) -> Line:
        answers = [_read(folder / f"{stage.name}.{rank}.json") for rank in range(self.world_size)]
        reasons = [str(answer["reason"]) for answer in answers if answer is not None and answer.get("reason")]
        # The reason of a rank that failed comes before those of peers that lost the connection to it.
        reason = next(iter(sorted(reasons, key=lambda why: "Connection" in why)), reason)
        if reason is not None or None in answers:
            return {"ok": False, "reason": reason or "a rank gave no answer"}
        first = dict(answers[0] or {})
        agreed = [answer.pop("agree", None) for answer in answers if answer is not None]
        failed = sorted(
            {check for answer in answers for check, ok in (answer or {}).get("checks", {}).items() if not ok}
        )
        if any(other != agreed[0] for other in agreed):
            failed.append("all ranks agree")
        first.pop("agree", None)
        checks = first.pop("checks", {})
        if "skipped" in first:
            return {"ok": None, "reason": f"not run: {first['skipped']}"}
        return {"ok": not failed, **({"failed": failed} if failed else {}), "checks": sorted(checks), **first}

    def _tell(self, stage: StageBox, line: Line) -> Line:
        line = {"stage": stage.name, **self.label, **line}
        self.emit(line)
        return line


def _together(stages: list[StageBox], ranks: int) -> list[StageBox]:
    """Return the first stages that can share processes: one that ends its ranks is the last of them."""
    for at, stage in enumerate(stages):
        if stage.needs_ranks > ranks:
            return stages[:at]
        if stage.ends_ranks:
            return stages[: at + 1]
    return stages


def _read(path: Path) -> Line | None:
    return json.loads(path.read_text()) if path.exists() else None


def _log_end(folder: Path, rank: int) -> str:
    lines = (folder / f"rank-{rank}.log").read_text(errors="replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-LOG_LINES:])[-600:] or "its log is empty"
