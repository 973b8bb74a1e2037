"""Which tests run first, and which beside each other.

In one process: fast tests first; whoever waits for a failure should not wait for the clusters. In several (`make
test`): a file's tests stay in one process, because they share what they have started. Fast files first, then all that
needs a cluster or a browser, one after the other in one process, and beside it the trainings, the longest ones first.
"""

from collections.abc import Callable

import pytest
from hypothesis import settings
from xdist.scheduler import LoadGroupScheduling

# How long an example takes says something about the machine, which is shared and noisy.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

SLOWNESS = ("jobs", "browser", "ray", "gpu", "slow")
WHOLE_MACHINE = ("browser", "ray")
"""Never two of these at a time: a second cluster would double what a machine of two cores has to carry."""

LONGEST_FILES = (
    "jobs/test_elastic.py",
    "benchmarks/test_gpu_check.py",
    "jobs/test_rollback.py",
    "jobs/test_recovery.py",
    "jobs/test_knob_commands.py",
    "jobs/test_adopting.py",
    "jobs/test_replay.py",
    "jobs/test_checkpoints.py",
    "benchmarks/test_boundary_job.py",
)
"""As measured. A file that is not here comes later, and the one that runs last should be a short one."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_place_of_file(items) if hasattr(config, "workerinput") else _slowness)


def _slowness(item: pytest.Item) -> int:
    return max((SLOWNESS.index(mark) + 1 for mark in SLOWNESS if item.get_closest_marker(mark)), default=0)


def _place_of_file(items: list[pytest.Item]) -> Callable[[pytest.Item], int]:
    """A file's place is that of its slowest test. Tests that need the whole machine are a group beside the files."""
    trainings = {item.path for item in items if item.get_closest_marker("jobs") and not item.get_closest_marker("slow")}
    for item in items:
        if any(item.get_closest_marker(mark) for mark in WHOLE_MACHINE):
            item.add_marker(pytest.mark.xdist_group("whole-machine"))

    def place(item: pytest.Item) -> int:
        if item.get_closest_marker("xdist_group"):
            return 1
        if item.path not in trainings:
            return 0
        name = "/".join(item.path.parts[-2:])
        return 2 + (LONGEST_FILES.index(name) if name in LONGEST_FILES else len(LONGEST_FILES))

    return place


class GroupsAndFiles(LoadGroupScheduling):
    """A group is handed out in one piece, and so is what else is in a file."""

    def _split_scope(self, nodeid: str) -> str:
        scope: str = super()._split_scope(nodeid)
        return scope.split("::", 1)[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadGroupScheduling:
    return GroupsAndFiles(config, log)
