"""The order in which `make test` runs, and what stays together."""

from pathlib import Path

import pytest

from tests.architecture.tree import ROOT
from tests.conftest import LONGEST_FILES, Groups, _place_of_file, group_of, pytest_collection_modifyitems
from tests.ports import FIRST, LAST, free_ports


class Item:
    """As much of a collected test as its place depends on."""

    def __init__(self, file: str, *marks: str, uses: str = "") -> None:
        self.path, self.nodeid = Path("/tests") / file, f"tests/{file}::test_one"
        self.marks = [pytest.mark.__getattr__(mark) for mark in marks]
        self.fixturenames = [uses]

    def get_closest_marker(self, name: str) -> object:
        return next((mark for mark in self.marks if mark.name == name), None)


def test_cluster_comes_first_then_fast_files_then_trainings_the_longest_first() -> None:
    items = [
        Item("jobs/test_short.py", "jobs"),
        Item("jobs/test_mixed.py"),
        Item("jobs/test_mixed.py", "jobs"),
        Item(LONGEST_FILES[1], "jobs"),
        Item("ray/test_live_run.py", "ray", uses="cluster"),
        Item("ui/test_browser.py", "browser", uses="cluster"),
        Item("ray/test_nodes.py", "ray"),
        Item("core/test_fast.py"),
        Item("core/test_fast.py", "jobs", "slow"),
        Item(LONGEST_FILES[0], "jobs"),
    ]
    places = sorted(items, key=_place_of_file(items))  # type: ignore[arg-type]
    assert list(dict.fromkeys(item.path.name for item in places)) == [
        "test_browser.py",
        "test_nodes.py",
        "test_live_run.py",
        "test_fast.py",
        Path(LONGEST_FILES[0]).name,
        Path(LONGEST_FILES[1]).name,
        "test_short.py",
        "test_mixed.py",
    ]


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/core/test_fast.py::test_one", "tests/core/test_fast.py"),
        ("tests/core/test_fast.py::test_one[a::b]", "tests/core/test_fast.py"),
        ("tests/ray/test_nodes.py::test_one", "whole machine"),
        ("tests/cluster/test_local.py::test_one", "whole machine"),
        ("tests/ui/test_browser_login.py::test_one", "whole machine"),
    ],
)
def test_a_file_stays_together_and_so_does_all_that_needs_the_machine(nodeid: str, group: str) -> None:
    assert Groups._split_scope(Groups.__new__(Groups), nodeid) == group_of(nodeid) == group


@pytest.mark.parametrize("mark", ["ray", "browser"])
def test_a_cluster_or_a_browser_in_any_other_file_is_refused(mark: str, pytestconfig: pytest.Config) -> None:
    with pytest.raises(pytest.UsageError, match=r"tests/core/test_fast\.py::test_one"):
        pytest_collection_modifyitems(pytestconfig, [Item("core/test_fast.py", mark)])  # type: ignore[list-item]


def test_files_that_are_called_long_exist() -> None:
    assert [name for name in LONGEST_FILES if not (ROOT / "tests" / name).is_file()] == []


def test_ports_are_many_different_and_below_those_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = free_ports(50)
    assert len(set(found)) == 50
    assert all(FIRST <= port <= LAST < lowest for port in found)
