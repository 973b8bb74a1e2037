"""The command line: what it prints, where, and its exit codes. The benchmark here is a fake."""

import json
import os
import subprocess
import sys
from types import ModuleType

import pytest

from benchmarks.__main__ import main
from benchmarks.catalogue import BENCHMARKS, Benchmark, Say
from benchmarks.harness.result import Result
from control_plane.core.model.errors import Unavailable


def measure(n: int, quick: bool, say: Say) -> Result:
    """Prints where it should not, as libraries do."""
    say("working")
    print("a library's chatter")
    os.write(1, b"a child's chatter\n")
    if n == 666:
        raise Unavailable("nobody answers")
    return Result({"cost": float(n), "quick": float(quick)}, {"cost": {"max": 5}}, n)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("benchmarks.fake")
    module.measure = measure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "benchmarks.fake", module)
    monkeypatch.setitem(BENCHMARKS, "fake", Benchmark("fake", "a fake", "turns", 4, 2))


def test_json_prints_one_object_and_nothing_else_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    status = main(["fake", "--json"])
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert (status, answer["met"], answer["n"], answer["figures"]) == (0, True, 4, {"cost": 4.0, "quick": 0.0})
    assert set(answer) == {"benchmark", "figures", "targets", "met", "verdict", "n", "machine", "versions"}
    assert {"python", "ray", "torch", "deepspeed", "transformers"} <= set(answer["versions"])
    assert {"cores", "cpu", "load_1min"} <= set(answer["machine"])
    assert ["working" in err, "library's" in err, "child's" in err] == [True] * 3


def test_without_json_figures_and_targets_are_a_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fake", "--n", "9"]) == 1
    out = capfd.readouterr().out
    assert all(word in out for word in ("cost", "at most 5", "NOT MET", "not every target is met"))


def test_quick_takes_its_own_n_unless_one_is_given(capfd: pytest.CaptureFixture[str]) -> None:
    main(["fake", "--json", "--quick"])
    main(["fake", "--json", "--quick", "--n", "3"])
    first, second = map(json.loads, capfd.readouterr().out.splitlines())
    assert (first["n"], second["n"], first["figures"]["quick"]) == (2, 3, 1.0)


def test_a_benchmark_that_cannot_run_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fake", "--json", "--n", "666"]) == Unavailable.exit_code
    out, err = capfd.readouterr()
    assert out == ""
    assert "fake: nobody answers" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["nope"], [], ["nope", "--json"]])
def test_an_unknown_name_is_answered_with_the_list(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert all(name in err for name in ("boundary", "overhead", "latency"))


def test_option_of_another_benchmark_is_refused_and_one_of_its_own_is_given(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["fake", "--only", "a,b"]) == 2
    assert "fake has no option --only" in capfd.readouterr().err
    given: list[str] = []

    def measure_some(n: int, quick: bool, say: Say, *, only: str) -> Result:
        given.append(only)
        return measure(n, quick, say)

    monkeypatch.setattr(sys.modules["benchmarks.fake"], "measure", measure_some)
    monkeypatch.setitem(BENCHMARKS, "fake", Benchmark("fake", "a fake", "turns", 4, 2, frozenset({"only"})))
    assert main(["fake", "--only", "a,b"]) == 0
    assert given == ["a,b"]


@pytest.mark.parametrize("n", ["0", "-3"])
def test_an_n_below_one_is_refused(n: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fake", "--n", n]) == 2
    assert "at least 1 of its turns" in capfd.readouterr().err


def test_list_has_a_line_for_each_and_imports_no_framework() -> None:
    script = (
        "import sys; from benchmarks.__main__ import main; status = main(['--list']); "
        "print(*({'ray', 'torch', 'transformers', 'deepspeed', 'fastapi'} & set(sys.modules)), file=sys.stderr); "
        "sys.exit(status)"
    )
    listed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [name for name in BENCHMARKS if name != "fake"]
    assert listed.stderr.strip() == ""
