"""The table of variables of Ray's head: what `steer up` sets, and what is said of a head that has other values."""

import pytest

from cluster.environment import ray_environment
from control_plane.api.head_variables import HEAD_VARIABLES, environment, reasons_against
from control_plane.config import Settings


def test_steer_up_sets_every_variable_of_the_table() -> None:
    assert environment().items() <= ray_environment(Settings()).items()
    assert reasons_against(ray_environment(Settings())) == []


def test_a_head_started_by_hand_is_told_of_each_variable() -> None:
    reasons = reasons_against({})
    named = [variable.name for variable in HEAD_VARIABLES if any(variable.name in reason for reason in reasons)]
    assert named == [v.name for v in HEAD_VARIABLES if v.name != "RAY_health_check_failure_threshold"]


@pytest.mark.parametrize(
    ("name", "value", "suffices"),
    [
        ("RAY_health_check_timeout_ms", "1000", True),
        ("RAY_health_check_timeout_ms", "10000", False),
        ("RAY_health_check_failure_threshold", "2", False),
        ("RAY_health_check_failure_threshold", "9", True),
        ("RAY_grpc_client_keepalive_time_ms", "never", False),
        ("RAY_grpc_client_keepalive_time_ms", "", False),
    ],
)
def test_values_are_compared_in_the_direction_that_matters(name: str, value: str, suffices: bool) -> None:
    reasons = reasons_against(environment() | {name: value})
    assert (reasons == []) is suffices
    assert all(name in reason for reason in reasons)
