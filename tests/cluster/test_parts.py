"""Waiting for a part: what ends the wait, and whose log is shown."""

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.parts import Launch, PartDied, start, wait_until


def part(folder: Path, name: str, program: str) -> "tuple[subprocess.Popen[bytes], Launch]":
    launch = Launch(name, [sys.executable, "-c", program], folder / f"{name}.log")
    return start(launch, {}), launch


def never() -> bool:
    return False


def test_a_part_that_ends_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    process, launch = part(tmp_path, "gateway", "print('no more memory'); raise SystemExit(3)")
    with pytest.raises(PartDied, match=r"gateway ended with exit code 3(.|\n)*no more memory") as died:
        wait_until(never, process, launch, 60)
    assert died.value.detail["part"] == "gateway"


def test_a_part_is_not_waited_for_when_what_it_stands_on_has_ended(tmp_path: Path) -> None:
    head = part(tmp_path, "Ray", "raise SystemExit(1)")
    process, launch = part(tmp_path, "gateway", "import time; time.sleep(60)")
    try:
        with pytest.raises(PartDied, match="Ray ended with exit code 1") as died:
            wait_until(never, process, launch, 60, [head])
        assert died.value.detail["part"] == "Ray"
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
