"""What changes a run: what is printed, and the exit code."""

import json
from pathlib import Path

import pytest

from control_plane.core.model.errors import Unavailable
from tests.cli.conftest import Steer
from tests.gateway.rig import RUN, LiveGateway


def test_set_applied_says_the_step_and_every_rank(gateway: LiveGateway, steer: Steer) -> None:
    answer = steer("set", RUN, "lr=1e-4")
    assert answer.stdout == "applied at step 7 on 2 of 2 ranks: lr 0.0005 -> 0.0001 (rank 0: 0.0001, rank 1: 0.0001)\n"
    assert answer.exit_code == 0


@pytest.mark.parametrize("words", [("lr*=0.5",), ("lr=x0.5",), ("lr *= 0.5",), ("run", "lr*=0.5"), ("1", "lr*=0.5")])
def test_set_factor_and_short_names_reach_the_run(gateway: LiveGateway, steer: Steer, words: tuple[str, ...]) -> None:
    answer = steer("set", *words)
    assert "lr 0.0005 -> 0.00025" in answer.stdout


def test_set_rejected_by_the_ranks_exits_with_six(gateway: LiveGateway, steer: Steer) -> None:
    answer = steer("set", RUN, "lr=2")
    assert answer.stdout == "rejected at step 7: 2 is above what this optimizer takes\n"
    assert answer.exit_code == 6


def test_set_as_json_is_the_command_as_the_gateway_has_it(gateway: LiveGateway, steer: Steer) -> None:
    answer = steer("set", RUN, "lr=1e-4", "--hold", "--group", "0", "--reason", "too hot", "--json")
    view = json.loads(answer.stdout)
    assert view["settled"]["after"] == {"lr": [1e-4]}
    assert view["command"]["intent"] == {
        "kind": "set_learning_rate",
        "value": 1e-4,
        "factor": None,
        "group": 0,
        "schedule": "hold",
    }
    assert view["command"]["reason"] == "too hot"


def test_detach_answers_with_the_receipt(gateway: LiveGateway, steer: Steer) -> None:
    answer = steer("evaluate", RUN, "--detach", "--json")
    assert json.loads(answer.stdout)["run"] == RUN


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (("set", RUN, "lr=nan"), 6, "finite"),
        (("set", RUN, "lr=inf"), 6, "finite"),
        (("set", RUN, "lr=-1e-4"), 6, "greater than 0"),
        (("set", RUN, "lr=0"), 6, "greater than 0"),
        (("set", RUN, "lr=1e4"), 6, "less than or equal to 10"),
        (("set", RUN, "lr*=1e9"), 6, "less than or equal to 1000"),
        (("set", RUN, "lr=abc"), 2, "not a number"),
        (("set", RUN, "lr="), 2, "not a number"),
        (("set", RUN, "beta=1"), 3, "no knob 'beta'; did you mean betas?"),
        (("set", RUN), 2, "expected one or more KNOB=VALUE"),
        (("set", RUN, "other", "lr=1"), 2, "an optional run before"),
        (("set", RUN, "lr=1", "lr=2"), 6, "lr is changed twice in one command"),
        (("set", RUN, "betas=0.9,"), 2, "not a number"),
        (("set", RUN, "weight_decay=nan"), 6, "weight_decay = nan: expected a finite number"),
        (("set", RUN, "weight_decay*=0"), 6, "weight_decay: input should be greater than"),
        (("set", RUN, "weight_decay=0.1", "--hold"), 2, "--hold applies to the learning rate"),
        (("set", RUN, "weight_decay=0.1", "--group", "nobody"), 3, "no parameter group 'nobody'"),
        (("set", RUN, "lr=1e-4", "--not-before", "9", "--not-after", "8"), 6, "before 'not_before_step' 9"),
        (("schedule", RUN, "bent"), 6, "shape = 'bent'"),
        (("schedule", RUN, "cosine", "--peak", "2"), 2, "--warmup"),
        (("schedule",), 2, ""),
        (("freeze", RUN, "a", "b"), 2, "expected a pattern"),
        (("reset", RUN, "a", "--seed", "-1"), 6, "seed = -1"),
        (("skip", RUN, "0"), 6, "samples = 0"),
        (("skip", RUN, "a few"), 2, "'a few' is no number of samples"),
        (("action", RUN, "a", "k=1", "k=2"), 2, "k is given twice"),
        (("cancel", RUN, "1f0c"), 2, "not a uuid or its first 8 digits"),
        (("cancel", RUN, "1f0c9a7e"), 3, "no command whose uuid starts with '1f0c9a7e'"),
        (("cancel", RUN, "00000000-0000-0000-0000-000000000001"), 3, "never accepted a command"),
        (("checkpoint", "pin", RUN, "c9"), 3, "no checkpoint 'c9'"),
        (("checkpoint", "delete", RUN, "c9", "--not-before", "8"), 2, "takes effect at once"),
        (("set", RUN, "lr=1e-4", "--group", "nobody"), 3, "no parameter group 'nobody'"),
        (("set", RUN, "lr=1e-4", "--not-before", "101"), 6, "not_before_step"),
        (("set", RUN, "lr=1e-4", "--timeout", "soon"), 2, "number"),
        (("set", "nobody", "lr=1e-4"), 3, "no run 'nobody'"),
        (("set", "../etc", "lr=1e-4"), 6, "not a valid run id"),
        (("stop", RUN), 2, "-y"),
        (("resume", RUN), 5, "not paused"),
        (("save", RUN, "--label", "x" * 81), 6, "label"),
        (("pause", RUN, "--reason", "x" * 501), 6, "reason"),
        (("fly", RUN), 2, "fly"),
        ((), 2, ""),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(
    gateway: LiveGateway, steer: Steer, words: tuple[str, ...], exit_code: int, said: str
) -> None:
    answer = steer(*words)
    assert (answer.exit_code, said in answer.stderr) == (exit_code, True), answer.stderr
    assert "Traceback" not in answer.stderr
    if exit_code != 2:
        assert answer.stderr.count("\n") == 1
        assert answer.stderr.startswith("steer: ")
        assert answer.stdout == ""


def test_no_run_named_and_none_active_is_not_found(gateway: LiveGateway, steer: Steer) -> None:
    gateway.call(gateway.server.close("finished", None))
    answer = steer("pause")
    assert answer.exit_code == 3
    assert "no run is active" in answer.stderr


def test_ended_run_takes_no_command(gateway: LiveGateway, steer: Steer) -> None:
    gateway.call(gateway.server.close("finished", None))
    assert steer("pause", RUN).exit_code == 6


def test_nobody_settles_within_the_timeout_exits_with_124(idle_gateway: LiveGateway, steer: Steer) -> None:
    answer = steer("set", RUN, "lr=1e-4", "--timeout", "0.2")
    assert answer.exit_code == 124
    assert "not settled within 0.2 s" in answer.stderr


@pytest.mark.usefixtures("impatient")
def test_dead_gateway_is_one_sentence(steer: Steer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERWAY_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("STEERWAY_TOKEN", "t" * 20)
    answer = steer("runs")
    assert answer.exit_code == Unavailable.exit_code
    assert answer.stderr.startswith("steer: no gateway answers at http://127.0.0.1:9")


def test_missing_token_exits_with_four(steer: Steer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEERWAY_TOKEN", raising=False)
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path))
    assert steer("runs").exit_code == 4


def test_wrong_token_exits_with_four_and_is_not_repeated(
    gateway: LiveGateway, steer: Steer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERWAY_TOKEN", "canary-nobody")
    answer = steer("runs")
    assert answer.exit_code == 4
    assert "canary" not in answer.stderr


def test_setting_that_makes_no_sense_names_the_variable(steer: Steer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERWAY_GATEWAY_PORT", "ninety")
    answer = steer("runs")
    assert answer.exit_code == 6
    assert "STEERWAY_GATEWAY_PORT" in answer.stderr
