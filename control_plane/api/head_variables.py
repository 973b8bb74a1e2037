"""Variables of Ray's head that decide how soon a node that has gone silent is declared dead, in one table.

`steer up` sets them. Whoever starts Ray's head by other means sets them in the environment of `ray start --head`, and
of `ray start` on the workers too: they reach GCS and raylets because all of Ray's programs read `RAY_` variables.
Without them runs recover just as exactly, only later: after a cut link in minutes, see docs/recovery.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeadVariable:
    """Variable that Ray's head should have: its value here, Ray's default, and what goes wrong without it."""

    name: str
    value: str
    default: str
    without: str


HEAD_VARIABLES = (
    HeadVariable("RAY_health_check_initial_delay_ms", "2000", "5000", "a node that fails early is declared dead later"),
    HeadVariable("RAY_health_check_period_ms", "200", "3000", "a killed node is declared dead after seconds, not one"),
    HeadVariable("RAY_health_check_timeout_ms", "2000", "10000", "a silent node is declared dead after 50 s, not 11"),
    HeadVariable("RAY_health_check_failure_threshold", "5", "5", "living nodes under load are declared dead"),
    HeadVariable(
        "RAY_grpc_client_keepalive_time_ms", "2000", "300000", "calls to a cut node hang for two minutes, not for 7 s"
    ),
    HeadVariable("RAY_grpc_client_keepalive_timeout_ms", "5000", "120000", "the same"),
)
"""Health checks of raylets by the GCS, and keepalive of the connections between Ray's processes.

A killed raylet refuses the connection at once: 5 checks, 0.2 s apart, about 1 s. A silent one gets the time of 5
answers, about 11 s: on two cores under load a raylet may well take a second or two to answer, and to declare a living
node dead costs every rank on it, which is worse than to detect a failure later.

The keepalive ends what health checks do not: a call of the GCS that is on its way to a node whose link was cut, such as
the one that reserves resources there, has no deadline, and would otherwise end with TCP, after about 128 s.
"""


def environment() -> dict[str, str]:
    """Return the variables with their values."""
    return {variable.name: variable.value for variable in HEAD_VARIABLES}


def reasons_against(environ: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that a head with this environment lacks, or has with a larger value."""
    return [
        f"{variable.name} is {environ.get(variable.name, f'not set (Ray takes {variable.default})')}, and should be "
        f"{variable.value}: {variable.without}"
        for variable in HEAD_VARIABLES
        if not _suffices(environ.get(variable.name, variable.default), variable)
    ]


def _suffices(value: str, variable: HeadVariable) -> bool:
    if not value.isdecimal():
        return False
    if variable.name == "RAY_health_check_failure_threshold":
        return int(value) >= int(variable.value)
    return int(value) <= int(variable.value)
