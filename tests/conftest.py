"""Which tests run first, and which beside each other.

In one process: fast tests first; whoever waits for a failure should not wait for the clusters. In several (`make
test`): a file's tests stay in one process, because they share what they have started. All that needs a cluster or a
browser begins at once, one after the other in one process; beside it the fast files, then the trainings, the longest
ones first.
"""

from collections.abc import Callable

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# How long an example takes says something about the machine, which is shared and noisy.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

SLOWNESS = ("jobs", "browser", "ray", "gpu", "slow")
WHOLE_MACHINE = ("tests/cluster/test_local.py", "tests/ray/", "tests/ui/test_browser")
"""Where tests with a cluster or a browser are. Never two of these at a time: a second cluster would double what a
machine of two cores has to carry."""

LONGEST_FILES = (
    "ray_jobs/rank/test_scripts.py",
    "strangers/test_strangers.py",
    "ray_jobs/checkpoint/test_elastic.py",
    "benchmarks/test_gpu_check.py",
    "ray_jobs/steering/test_rollback.py",
    "ray_jobs/rank/test_recovery.py",
    "ray_jobs/steering/test_knob_commands.py",
    "ray_jobs/checkpoint/test_adopting.py",
    "ray_jobs/digest/test_replay.py",
    "ray_jobs/checkpoint/test_checkpoints.py",
    "benchmarks/test_boundary_job.py",
)
"""As measured. A file that is not here comes later, and the one that runs last should be a short one."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    elsewhere = [item.nodeid for item in items if _needs_the_machine(item) and group_of(item.nodeid) != "whole machine"]
    if elsewhere:
        raise pytest.UsageError(f"not in a file for tests with a cluster or a browser {WHOLE_MACHINE}: {elsewhere}")
    items.sort(key=_place_of_file(items) if hasattr(config, "workerinput") else _slowness)


def group_of(nodeid: str) -> str:
    """Tests of one group run in one process, one after the other."""
    return "whole machine" if nodeid.startswith(WHOLE_MACHINE) else nodeid.split("::", 1)[0]


def _needs_the_machine(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(mark) for mark in ("browser", "ray"))


def _slowness(item: pytest.Item) -> tuple[int, bool]:
    slowest = max((SLOWNESS.index(mark) + 1 for mark in SLOWNESS if item.get_closest_marker(mark)), default=0)
    return slowest, _shares_a_cluster(item)


def _shares_a_cluster(item: pytest.Item) -> bool:
    """These come after those that bring up their own: their cluster is up to the end, and even an idle one works."""
    return bool(item.get_closest_marker("ray")) and "cluster" in getattr(item, "fixturenames", ())


def _place_of_file(items: list[pytest.Item]) -> Callable[[pytest.Item], tuple[int, bool]]:
    """A file's place is that of its slowest test, and those that need the whole machine have one place."""
    trainings = {item.path for item in items if item.get_closest_marker("jobs") and not item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> tuple[int, bool]:
        if group_of(item.nodeid) == "whole machine":
            return 0, _shares_a_cluster(item)
        if item.path not in trainings:
            return 1, False
        path = item.path.as_posix()
        ahead = next((i for i, name in enumerate(LONGEST_FILES) if path.endswith(f"/tests/{name}")), len(LONGEST_FILES))
        return 2 + ahead, False

    return place


class Groups(LoadScopeScheduling):
    """Hands out a group in one piece, in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Not by xdist's own `loadgroup`: with pytest 9.2, xdist 3.8 sees no group and says nothing."""
    config.option.loadscopereorder = False
    return Groups(config, log)
