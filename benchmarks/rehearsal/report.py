"""Table of a rehearsal: each step with what it checks, what was seen, and its seconds."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

BEGIN, END = "<!-- rehearsal: made by `make rehearsal` -->", "<!-- end of rehearsal -->"


@dataclass
class StepResult:
    """Result of one step. `notes`: what was seen, with figures."""

    name: str
    checks: str
    seconds: float = 0.0
    passed: bool = False
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add what was seen."""
        self.notes.append(text)


class Report:
    """Steps of a rehearsal, printed as they end."""

    def __init__(self) -> None:
        self.steps: list[StepResult] = []
        self._began_s = time.monotonic()

    @contextmanager
    def step(self, name: str, checks: str) -> Iterator[StepResult]:
        """Time a step. It has passed if the block ends without an exception."""
        result = StepResult(name, checks)
        self.steps.append(result)
        print(f"... {name}", flush=True)
        began_s = time.monotonic()
        try:
            yield result
            result.passed = True
        finally:
            result.seconds = time.monotonic() - began_s
            how = "ok" if result.passed else "FAILED"
            print(f"{how:<6} {result.seconds:7.1f} s  {name}: {'; '.join(result.notes) or checks}", flush=True)

    def table(self) -> str:
        """Return the table in Markdown."""
        rows = ["| step | checks | seen | seconds |", "|---|---|---|---|"]
        for step in self.steps:
            seen = "; ".join(step.notes) if step.passed else "**failed** " + "; ".join(step.notes)
            rows.append(f"| {step.name} | {step.checks} | {seen.replace('|', '/')} | {step.seconds:.1f} |")
        total = time.monotonic() - self._began_s
        rows.append(
            f"| whole rehearsal | | {sum(step.passed for step in self.steps)} of {len(self.steps)} | {total:.0f} |"
        )
        return "\n".join(rows)

    def write(self, document: Path) -> None:
        """Replace the table in a document."""
        text = document.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        where = f"{platform.system()}, {os.cpu_count()} cores, load {load}, Python {platform.python_version()}"
        stamp = f"{time.strftime('%Y-%m-%d')}, {where}."
        document.write_text(f"{before}{BEGIN}\n{stamp}\n\n{self.table()}\n{END}{after}", encoding="utf-8")
