"""Answers of trials in a file of JSON lines: what was measured is kept, and a campaign that was ended goes on.

    kept = KeptAnswers.read(Path("answers.jsonl"))
    rest = [trial for trial in trials if trial.name not in kept.of(trials)]

An answer counts for a trial if it was made for exactly this trial, by exactly this code: each line holds the trial and
a digest of what is measured and of what measures.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.health.trials import Trial

ROOT = Path(__file__).resolve().parents[2]

MEASURED = ("control_plane/core/health", "ray_jobs/health", "benchmarks/health")
"""Packages whose code decides what a trial answers."""

NOT_MEASURED = ("control_plane/core/health/advice", "benchmarks/health/answers.py", "benchmarks/health/health.py")
"""Texts for people, and what only keeps and counts answers."""

Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class KeptAnswers:
    """Answers of a file. `lines`: (trial, digest of the code, answer), oldest first; torn lines are left out."""

    lines: tuple[tuple[Mapping[str, Any], str, Answer], ...] = ()
    code: str = field(default_factory=lambda: code_digest())

    @classmethod
    def read(cls, path: Path | None) -> "KeptAnswers":
        """Return what a file holds; without a file, nothing."""
        if path is None or not path.exists():
            return cls()
        lines = []
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
                lines.append((line["trial"], line["code"], line["answer"]))
            except (ValueError, KeyError, TypeError):
                continue  # the process was killed in the middle of this line
        return cls(tuple(lines))

    def of(self, trials: Sequence[Trial]) -> dict[str, Answer]:
        """Return the answers of these trials by their names; of several for one trial, the newest."""
        specs = {trial.name: trial.spec() for trial in trials}
        current = [(trial, answer) for trial, code, answer in self.lines if code == self.code]
        return {trial["name"]: answer for trial, answer in current if specs.get(str(trial.get("name"))) == trial}

    def outdated(self) -> int:
        """Return how many answers were made by other code."""
        return sum(code != self.code for _, code, _ in self.lines)


def keep(path: Path, code: str, trial: Trial, answer: Answer) -> None:
    """Add one answer to a file, durably."""
    line = json.dumps({"trial": trial.spec(), "code": code, "answer": answer}) + "\n"
    is_torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * is_torn + line)
        file.flush()
        os.fsync(file.fileno())


def code_digest(root: Path = ROOT) -> str:
    """Return the SHA-256 over the modules that decide what a trial answers."""
    total = hashlib.sha256()
    for package in MEASURED:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if not name.startswith(NOT_MEASURED):
                total.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return total.hexdigest()
