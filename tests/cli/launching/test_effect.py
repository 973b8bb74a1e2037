"""`steer effect`: starts its replays once, finds them again, and tells an effect from what placebos do."""

import json
import sys
from pathlib import Path

import pytest

from control_plane.cli.launching import effect as command_module
from control_plane.cli.launching import effect_arms
from control_plane.cli.launching.effect_arms import line_of, placebo_sizes
from control_plane.core.model.errors import Unavailable
from tests.cli.conftest import Steer
from tests.cli.launching.effect_rig import LAST, RUN, Gateway, recorded_gateway
from tests.core.examples import uuid
from tests.core.rules.effect.histories import applied, begun, ended

LR = "set_learning_rate"
TRIPLED = applied(1, 10, {"kind": LR, "factor": 3.0}, {"lr": [1e-3, 1e-3]}, {"lr": [3e-3, 3e-3]})
HALVED = applied(2, 20, {"kind": LR, "factor": 0.5}, {"lr": [3e-3, 3e-3]}, {"lr": [1.5e-3, 1.5e-3]})
SAVED = applied(3, 30, {"kind": "save_checkpoint"}, {}, {"checkpoint": "step-00000030-g1"})
COMMAND = str(uuid(1))


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Gateway:
    made = recorded_gateway((begun(),), TRIPLED, HALVED, SAVED, tail=ended())
    monkeypatch.setattr(command_module, "connect", lambda: made)
    monkeypatch.setattr(effect_arms, "LOOK_EVERY_S", 0.0)
    return made


def test_effect_beside_its_placebos_is_told_metric_by_metric(gateway: Gateway, steer: Steer) -> None:
    answer = steer("effect", RUN, COMMAND)
    assert answer.exit_code == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[0] == f"effect of lr x 3 (command 00000000, by ann, after step 10) on run {RUN}"
    assert lines[1] == (
        "until there: identical: 1 digests of every rank and 10 losses until step 10 are equal, bit for bit"
    )
    table = {line.split()[0]: line for line in lines[5:9]}
    assert table["loss"].split()[1:] == ["1.54", "2.04", "-0.5", "<=", "0.003", "6/6", "distinguishable,", "x167"]
    assert table["eval_loss"].endswith("+0.001  <= 0.003  0/6     not distinguishable")
    assert table["grad_norm"].endswith("+0      <= 0.003  0/6     identical")
    assert "step 20: lr x 0.5 was repeated as lr = 0.0015" in lines
    assert "1 in 7" in answer.stderr
    sizes = [request.placebo for request in gateway.asked]
    assert sizes == [None, 1e-6, -1e-6, 2e-6, -2e-6, 3e-6, -3e-6]
    assert gateway.most_active == 1


def test_repeated_command_starts_nothing_and_says_the_same(gateway: Gateway, steer: Steer) -> None:
    first = json.loads(steer("effect", RUN, COMMAND, "--json").stdout)
    asked = len(gateway.asked)
    answer = steer("effect", RUN, COMMAND, "--json")
    assert json.loads(answer.stdout) == first
    assert len(gateway.asked) == asked
    assert answer.stderr.count("is there already") == 7
    # More placebos: only those are started.
    steer("effect", RUN, COMMAND, "--placebos", "8", "--parallel", "3")
    assert [request.placebo for request in gateway.asked[asked:]] == [4e-6, -4e-6]
    assert (first["without"]["step"], first["last_step"], len(first["placebos"])) == (10, LAST, 6)
    assert first["metrics"][0]["statistics"][1]["distinguishable"] is True


def test_arms_may_train_at_the_same_time(gateway: Gateway, steer: Steer) -> None:
    steer("effect", RUN, COMMAND, "--parallel", "4")
    assert gateway.most_active == 4


def test_failed_arm_ends_the_command_and_the_next_one_starts_it_anew(gateway: Gateway, steer: Steer) -> None:
    gateway.fails = [False, True]
    answer = steer("effect", RUN, COMMAND)
    assert answer.exit_code == 1
    assert "failed at step 100: out of memory" in answer.stderr
    assert len(gateway.asked) == 2
    assert steer("effect", RUN, COMMAND).exit_code == 0
    assert gateway.asked[2].placebo == 1e-6
    assert gateway.asked[2].uuid != gateway.asked[1].uuid


def test_deleted_arm_is_started_anew_though_its_request_is_remembered(gateway: Gateway, steer: Steer) -> None:
    steer("effect", RUN, COMMAND)
    gone = gateway.asked[0].uuid
    gateway.deleted = {gone}
    del gateway.arms[f"arm-{gone.hex[:6]}"]
    assert steer("effect", RUN, COMMAND).exit_code == 0
    assert [request.uuid == gone for request in gateway.asked[7:]] == [True, False]


def test_gateway_that_does_not_answer_for_a_while_is_asked_again(gateway: Gateway, steer: Steer) -> None:
    gateway.silent = 5
    answer = steer("effect", RUN, COMMAND)
    assert answer.exit_code == 0, answer.stderr
    assert answer.stderr.count("the gateway timed out; asking again") == 3
    gateway.silent = 1001
    with pytest.raises(Unavailable):
        effect_arms.patiently(lambda: gateway.snapshot(next(iter(gateway.arms))), within_s=0.0)


def test_replay_that_is_not_the_run_ends_everything_before_a_placebo(gateway: Gateway, steer: Steer) -> None:
    gateway.divergent = True
    answer = steer("effect", RUN, COMMAND)
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert "is not the run until the command took effect: divergent: the first difference is at step 7" in answer.stderr
    assert len(gateway.asked) == 1


def test_refused_placebos_do_not_count(gateway: Gateway, steer: Steer) -> None:
    gateway.refuses = frozenset({3e-6})
    answer = steer("effect", RUN, COMMAND, "--json")
    assert len(json.loads(answer.stdout)["placebos"]) == 5
    assert "(lr x 1.000003) was rejected: lr would be above the limit" in answer.stderr
    gateway.refuses = frozenset({1e-6, 2e-6})
    answer = steer("effect", RUN, COMMAND)
    assert (answer.exit_code, "only 4 placebos were applied, and 5 are needed" in answer.stderr) == (5, True)


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        ((RUN, str(uuid(3))), 5, "only reads the training"),
        ((RUN, str(uuid(9))), 3, "has no command"),
        ((RUN, "abcdefab"), 3, "no command whose uuid starts with"),
        ((RUN, COMMAND, "--placebos", "4"), 2, "greater than or equal to 5"),
        ((RUN, COMMAND, "--until-step", "10"), 5, "the replay ends at step 10"),
        ((RUN, COMMAND, "--figure", "effect.gif"), 2, "must end with .png or .svg"),
        ((RUN, COMMAND, "--figure", "no-folder-here/effect.png"), 2, "there is no folder"),
    ],
)
def test_what_cannot_be_measured_starts_nothing(
    gateway: Gateway, steer: Steer, words: tuple[str, ...], exit_code: int, said: str
) -> None:
    answer = steer("effect", *words)
    assert (answer.exit_code, answer.stdout, gateway.asked) == (exit_code, "", [])
    assert said in " ".join(answer.stderr.split())


def test_figure_without_matplotlib_says_what_to_install(
    gateway: Gateway, steer: Steer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    answer = steer("effect", RUN, COMMAND, "--figure", "effect.png")
    assert (answer.exit_code, gateway.asked) == (1, [])
    assert "pip install 'steerway[figures]'" in answer.stderr


@pytest.mark.parametrize("name", ["effect.png", "effect.svg"])
def test_figure_is_drawn(gateway: Gateway, steer: Steer, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    answer = steer("effect", RUN, COMMAND, "--figure", str(tmp_path / name))
    assert answer.exit_code == 0, answer.stderr
    assert (tmp_path / name).read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_placebos_go_up_and_down_and_no_two_are_alike() -> None:
    assert placebo_sizes(5) == [1e-6, -1e-6, 2e-6, -2e-6, 3e-6]
    assert len(set(placebo_sizes(32))) == 32


def test_line_of_a_run_is_that_of_its_head(gateway: Gateway) -> None:
    (only,) = line_of(gateway.snapshot(RUN))
    assert (only.branch, only.first, only.last) == ("main", 0, None)
