"""Every durable write of storage and of the control server has a failpoint beside it, and the catalogue is complete."""

from pathlib import Path

import pytest

from control_plane.storage.failpoints import POINTS
from tests.architecture.tree import ROOT
from tests.storage.write_sites import points, sites

STORAGE = sorted((ROOT / "control_plane" / "storage").rglob("*.py"))
SERVER = ROOT / "control_plane" / "server" / "control_server.py"
WALKED = [*(path for path in STORAGE if path.name != "failpoints.py"), SERVER]
ELSEWHERE = [
    ROOT / "ray_jobs" / "checkpoint" / "convert.py",
    *(ROOT / "ray_jobs" / "service" / name for name in ("ledger.py", "launches.py", "starts.py", "ray_submissions.py")),
]
"""Pass failpoints, too; what else they write is their workshop, which no restart looks at."""

WITHOUT: dict[tuple[str, str], str] = {
    ("writer.py", "_create"): "the segment's birth: `_begin_segment` has a point before it and one after it",
    ("writer.py", "<module>"): "the three calls by their names; whoever calls them has the points",
    ("signing.py", "_create"): "it says only how the key is named: `_put` names it, and has the points",
    ("private.py", "make_folder"): "whoever makes a folder in which something has to last has the points",
    ("private.py", "sync_names"): "whoever makes the name that has to last has the points",
    ("locks.py", "lock_file"): "an empty file that is only locked",
    ("private.py", "write_file"): "what a new run begins with: one that was not submitted is removed",
    ("probe.py", "held_probe"): "a scratch folder, removed at once",
    ("probe.py", "_write"): "into a scratch folder",
    ("probe.py", "_rename"): "in a scratch folder",
    ("probe.py", "_fsync"): "of a scratch folder",
    ("proof.py", "write_proof"): "every start writes a new one",
    ("proof.py", "_check_writable"): "an empty file that is removed at once",
    ("outputs.py", "copy_outputs"): "copies for people: who lacks one asks again",
    (
        "private.py",
        "replace_file",
    ): "tokens, logins, a config's signature: a lost one is created again, or asks for --trust",
    ("archive.py", "unpack"): "made again from code.zip wherever it is missing",
    ("archive.py", "_unpack_entry"): "made again from code.zip wherever it is missing",
    ("packing.py", "packed"): "a client's temporary file, for as long as it is sent",
    ("unpacked.py", "_unpack"): "made again from code.zip wherever it is missing",
    ("unpacked.py", "_remove"): "of a run that does not begin: the upload still has the bundle",
    ("uploads.py", "open_piece"): "an empty unfinished upload: its first byte has the points",
    ("uploads.py", "_remove"): "a bundle that no run has: who lacks it uploads it again",
    ("index.py", "__init__"): "an empty file: SQLite writes what is in it, in transactions of its own",
    ("index.py", "transaction"): "SQLite's own commit, whole or not at all; a kill before it is at `ingest.folder`",
    ("store.py", "body"): "a request's body, for as long as it is checked: who is not answered sends it again",
    ("store.py", "_clean"): "bodies of requests that are over",
    ("metrics.py", "_open"): "measurements may be lost, and no decision depends on one",
    ("metrics.py", "_move_aside"): "measurements may be lost, and no decision depends on one",
}


def uncovered(module: str, source: str) -> list[str]:
    """The functions that write, have no failpoint, and no reason to have none."""
    return [
        f"{site.module}: {site.function} writes by {', '.join(site.writes)}"
        for site in sites(module, source)
        if not site.covered and (site.module, site.function) not in WITHOUT
    ]


def test_every_durable_write_has_a_failpoint_beside_it_or_a_reason() -> None:
    found = [line for path in WALKED for line in uncovered(path.name, path.read_text(encoding="utf-8"))]
    assert found == [], "give it a failpoint in `control_plane/storage/failpoints.py`, or a reason here"


def test_every_reason_belongs_to_a_write_that_is_there() -> None:
    bare = {
        (site.module, site.function)
        for path in WALKED
        for site in sites(path.name, path.read_text(encoding="utf-8"))
        if not site.covered
    }
    assert set(WITHOUT) == bare


def test_catalogue_holds_exactly_the_points_that_the_code_can_reach() -> None:
    reached = points(path.read_text(encoding="utf-8") for path in [*WALKED, *ELSEWHERE])
    assert reached == set(POINTS)
    assert len(POINTS) == len(set(POINTS)) == 110


@pytest.mark.parametrize(
    "write",
    [
        "os.fsync(descriptor)",
        "os.write(descriptor, b'')",
        "os.rename(old, new)",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "open(path, 'w').write('')",
        "path.open(mode='ab')",
        "path.write_text('')",
        "path.rename(new)",
        "path.replace(new)",
        "shutil.rmtree(path)",
        "self._disk.persist(descriptor, data)",
        "self._disk.create(path)",
        "self._journal.append(records, now)",
        "self._discard(checkpoint)",
        "sync_folder(path)",
        "write_all(descriptor, data)",
    ],
)
def test_planted_write_without_a_failpoint_is_named(write: str) -> None:
    planted = f"class Keeper:\n    def keep(self, path):\n        {write}\n"
    [line] = uncovered("planted.py", planted)
    assert line.startswith("planted.py: keep writes by ")
    guarded = planted.replace(write, f"reach('journal.append', 'before_write')\n        {write}")
    assert uncovered("planted.py", guarded) == []


@pytest.mark.parametrize("read", ["os.read(descriptor, 1)", "open(path)", "text.replace('a', 'b')", "names.append(1)"])
def test_what_writes_nothing_needs_no_failpoint(read: str) -> None:
    assert uncovered("planted.py", f"def look(path):\n    {read}\n") == []


def test_planted_point_that_the_catalogue_lacks_is_found() -> None:
    source = Path(WALKED[0]).read_text(encoding="utf-8") + "\ndef f():\n    sync_folder(p, 'new.site')\n"
    everything = [path.read_text(encoding="utf-8") for path in [*WALKED[1:], *ELSEWHERE]]
    assert points([source, *everything]) - set(POINTS) == {"new.site.before_sync", "new.site.after_sync"}
