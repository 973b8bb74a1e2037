"""The order in which `make test` runs, and what stays together."""

from pathlib import Path

import pytest

from tests.architecture.tree import ROOT
from tests.conftest import LONGEST_FILES, GroupsAndFiles, _place_of_file
from tests.ports import FIRST, LAST, free_ports


class Item:
    """As much of a collected test as its place depends on."""

    def __init__(self, file: str, *marks: str) -> None:
        self.path, self.marks = Path("/tests") / file, [pytest.mark.__getattr__(mark) for mark in marks]

    def get_closest_marker(self, name: str) -> object:
        return next((mark for mark in self.marks if mark.name == name), None)

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self.marks.append(mark)


def test_fast_files_come_first_then_the_cluster_then_trainings_the_longest_first() -> None:
    items = [
        Item("jobs/test_short.py", "jobs"),
        Item("jobs/test_mixed.py"),
        Item("jobs/test_mixed.py", "jobs"),
        Item(LONGEST_FILES[1], "jobs"),
        Item("ui/test_browser.py", "browser"),
        Item("ray/test_recovery.py", "ray"),
        Item("core/test_fast.py"),
        Item("core/test_fast.py", "jobs", "slow"),
        Item(LONGEST_FILES[0], "jobs"),
    ]
    places = sorted(items, key=_place_of_file(items))  # type: ignore[arg-type]
    assert list(dict.fromkeys(item.path.name for item in places)) == [
        "test_fast.py",
        "test_browser.py",
        "test_recovery.py",
        Path(LONGEST_FILES[0]).name,
        Path(LONGEST_FILES[1]).name,
        "test_short.py",
        "test_mixed.py",
    ]
    groups = {item.path.name for item in items if item.get_closest_marker("xdist_group")}
    assert groups == {"test_browser.py", "test_recovery.py"}


@pytest.mark.parametrize(
    ("nodeid", "scope"),
    [
        ("tests/core/test_fast.py::test_one", "tests/core/test_fast.py"),
        ("tests/core/test_fast.py::test_one[a@b]", "tests/core/test_fast.py"),
        ("tests/ray/test_nodes.py::test_one[a@b]@whole-machine", "whole-machine"),
        ("tests/ui/test_browser.py::test_one@whole-machine", "whole-machine"),
    ],
)
def test_a_file_stays_together_and_so_does_a_group(nodeid: str, scope: str) -> None:
    assert GroupsAndFiles._split_scope(GroupsAndFiles.__new__(GroupsAndFiles), nodeid) == scope


def test_files_that_are_called_long_exist() -> None:
    assert [name for name in LONGEST_FILES if not (ROOT / "tests" / name).is_file()] == []


def test_ports_are_many_different_and_below_those_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = free_ports(50)
    assert len(set(found)) == 50
    assert all(FIRST <= port <= LAST < lowest for port in found)
