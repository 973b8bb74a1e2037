"""Failpoints: what may be asked of them, that they do nothing unless asked, and a death at each of a checkpoint's."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.kills.campaign import KILL_POINTS
from control_plane.core.model.errors import Invalid, Unavailable
from control_plane.core.model.records import CheckpointCommitted
from control_plane.storage import failpoints
from control_plane.storage.checkpoint.store import (
    MANIFEST,
    ShardFile,
    SigningKey,
    discard,
    hash_shard,
    verify,
)
from control_plane.storage.checkpoint.transfer import transfer_checkpoint
from control_plane.storage.failpoints import POINTS, VARIABLE, arm, halves, parse, reach
from control_plane.storage.journal.export import export, import_run, read_export
from control_plane.storage.journal.writer import Disk, Journal, read
from control_plane.storage.layout import RunFiles
from ray_jobs.checkpoint.convert import _take_place
from tests.storage.checkpoint.saved import name_of, newest_good, save
from tests.storage.facts import NOW, accepted, numbers
from tests.storage.scenario import write_small

POINT = "journal.append.before_sync"
FAILED = 78
OLD, NEW = 1, 2


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


@pytest.mark.parametrize(
    ("specification", "complaint"),
    [
        ("journal.append.before_sink=kill", "unknown failpoint 'journal.append.before_sink'; did you mean journal"),
        ("elsewhere=kill", "unknown failpoint 'elsewhere'; the sites are journal.folder, journal.segment, "),
        (POINT, "write it as POINT=ACTION or POINT=ACTION@WHEN"),
        (f"{POINT}=explode", "'explode'; allowed are kill, stop, error:NAME"),
        (f"{POINT}=error:ENOSUCH", "'error:ENOSUCH'; allowed are"),
        (f"{POINT}=sleep:long", "'sleep:long'; allowed are"),
        (f"{POINT}=sleep:", "'sleep:'; allowed are"),
        (f"{POINT}=kill@0", "'0' is neither a passage (1, 2, ..) nor a probability (0.0 to 1.0)"),
        (f"{POINT}=kill@1.5", "'1.5' is neither"),
        (f"{POINT}=kill@", "'' is neither"),
        (f"{POINT}=kill@.", "'.' is neither"),
        (f"{POINT}=kill;{POINT}=stop", f"{POINT} is given twice"),
        ("server.commit.after_append=error:EIO", "server.commit.after_append does not use the disk"),
    ],
)
def test_specification_that_makes_no_sense_is_refused_with_its_item(specification: str, complaint: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(specification)
    assert complaint in caught.value.reason
    assert specification.split(";")[-1] in caught.value.reason


def test_specification_names_several_points_and_may_be_spaced() -> None:
    rules = parse(f" seed=7 ; {POINT} = error:EIO@3 ; journal.append.mid_write=sleep:0.5@0.1;")
    assert list(rules) == [POINT, "journal.append.mid_write"]
    assert parse("") == parse(" ; ") == {}


def passages(when: str, count: int = 200, seed: int = 5) -> list[int]:
    """At which of so many passages something is done."""
    arm(f"seed={seed};{POINT}=error:EIO{when}", tell=lambda point: None)
    fired = []
    for number in range(1, count + 1):
        try:
            reach("journal.append", "before_sync")
        except OSError:
            fired.append(number)
    return fired


def test_passage_is_one_chance_is_some_and_nothing_is_all() -> None:
    assert passages("@3") == [3]
    assert passages("", 4) == [1, 2, 3, 4]
    assert passages("@0.0") == []
    some = passages("@0.25")
    assert 20 < len(some) < 80
    assert passages("@0.25") == some, "the seed decides"
    assert passages("@0.25", seed=6) != some


def test_disarmed_nothing_is_done_and_data_stays_whole() -> None:
    arm("")
    assert failpoints._armed is None, "a passage is one comparison"
    for point in POINTS:
        reach(*point.rsplit(".", 1))
    assert list(halves("journal.append", b"abcdef")) == [b"abcdef"]


def test_armed_middle_of_a_write_lies_between_its_halves() -> None:
    told = list[str]()
    arm("journal.append.mid_write=sleep:0", tell=told.append)
    parts = halves("journal.append", b"abcde")
    assert (next(parts), told) == (b"ab", [])
    assert (next(parts), told) == (b"cde", ["journal.append.mid_write"])
    assert list(halves("journal.header", b"abcde")) == [b"abcde"]


@pytest.mark.parametrize("name", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("moment", ["before_write", "mid_write", "before_sync", "after_sync", "after_fence"])
def test_append_that_is_refused_at_any_moment_is_unavailable_and_the_next_goes_on(
    tmp_path: Path, moment: str, name: str
) -> None:
    journal = Journal.open(tmp_path, Disk(fsync=lambda descriptor: None))
    arm(f"journal.append.{moment}=error:{name}@1")
    with pytest.raises(Unavailable, match=os.strerror(getattr(errno, name))):
        journal.append([accepted(1)], NOW)
    journal.append([accepted(2)], NOW)
    assert numbers(read(tmp_path)) == [2]


def test_variable_that_makes_no_sense_is_told_at_the_first_write_and_not_at_the_import(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from control_plane.core.model.errors import Invalid\n"
        "from control_plane.storage.journal.writer import Journal\n"
        "try:\n    Journal.open(Path(sys.argv[1]) / 'journal')\nexcept Invalid as error:\n    print(error.reason)"
    )
    environment = os.environ | {VARIABLE: "journal.append=kill"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.startswith("STEERWAY_FAILPOINTS: invalid item 'journal.append=kill': unknown failpoint")
    assert list(tmp_path.iterdir()) == []


def test_variable_kills_a_process_at_its_point(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from control_plane.storage.checkpoint.signing import SigningKey\n"
    script += "SigningKey.of_installation(Path(sys.argv[1]) / 'key')"
    environment = os.environ | {VARIABLE: "key.file.before_link=kill"}
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "key").exists()


def killed_at(point: str, work: Callable[[], object]) -> bool:
    """Do the work in a child that is killed there. Answers whether it was."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            arm(f"{point}=kill", tell=lambda point: None)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code == -signal.SIGKILL


def of(*sites: str) -> list[str]:
    return [point for point in POINTS if point.startswith(tuple(f"{site}." for site in sites))]


SAVING = of("shard.file", "shard.folder", "shard.found", "checkpoint", "manifest")
REMOVING = of("removal.manifest", "removal.files")
KEY = of("key")
CONVERSION = of("conversion.name")
ONE_BY_ONE = of("shard.abandoned", "removal.link")
INHERITED, IMPORTED, EXPORTED = of("inherited"), of("import"), of("export")
BY_KILLS = [*KILL_POINTS]
"""In `tests/server/test_kills.py`."""

OF_CODE = of("bundle")
"""In `tests/storage/code`."""

OF_INGEST = of("ingest")
"""In `tests/storage/data`."""

OF_LAUNCHES = of("launch")
"""In `tests/ray_jobs/service/test_launches.py`."""


def test_every_failpoint_is_the_place_of_a_death_in_some_test() -> None:
    carried = {*INHERITED, *IMPORTED, *EXPORTED}
    of_uploads = {*OF_CODE, *OF_INGEST, *OF_LAUNCHES}
    assert set(POINTS) == {*SAVING, *REMOVING, *KEY, *CONVERSION, *ONE_BY_ONE, *BY_KILLS} | of_uploads | carried


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.of_installation(tmp_path / "installation")


@pytest.mark.parametrize("point", SAVING)
def test_save_killed_at_a_failpoint_leaves_a_whole_checkpoint_or_none(
    tmp_path: Path, key: SigningKey, point: str
) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, OLD, key)

    def saved() -> None:
        if point.startswith("shard.found"):
            hash_shard(folder, folder / name_of(OLD) / MANIFEST, 0)
        save(folder, NEW, key)

    assert killed_at(point, saved)
    chosen, _ = newest_good(folder, key, [name_of(NEW), name_of(OLD)])
    exists = (folder / name_of(NEW) / MANIFEST).exists()
    assert chosen is not None
    assert chosen.step == (NEW if exists else OLD)
    assert exists == (point in ("manifest.file.after_rename", *of("manifest.folder", "checkpoint.name")))
    save(folder, NEW, key)
    assert verify(folder / name_of(NEW), key).step == NEW


@pytest.mark.parametrize("point", REMOVING)
def test_removal_killed_at_a_failpoint_can_be_repeated(tmp_path: Path, key: SigningKey, point: str) -> None:
    root = save(tmp_path / "checkpoints", NEW, key)
    assert killed_at(point, lambda: discard(root.parent, root.name))
    if (root / MANIFEST).exists():
        assert verify(root, key).step == NEW
        assert point == "removal.manifest.before_unlink"
    discard(root.parent, root.name)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("point", KEY)
def test_making_of_the_key_killed_at_a_failpoint_leaves_a_whole_key_or_none(tmp_path: Path, point: str) -> None:
    path = tmp_path / "installation" / "key"
    assert killed_at(point, lambda: SigningKey.of_installation(path))
    made = path.read_text() if path.exists() else None
    assert made is None or len(made.strip()) == 64
    SigningKey.of_installation(path)
    assert made is None or path.read_text() == made


@pytest.mark.parametrize("point", CONVERSION)
def test_converted_checkpoint_killed_at_a_failpoint_has_its_name_or_not(
    tmp_path: Path, key: SigningKey, point: str
) -> None:
    folder = tmp_path / "checkpoints"
    source, made = save(folder, OLD, key), folder / ".converting"
    shutil.copytree(source, made)
    manifest = verify(source, key)
    assert killed_at(point, lambda: _take_place(made, folder / "twin", manifest, key))
    assert [(folder / "twin").exists(), made.exists()] == [point != CONVERSION[0], point == CONVERSION[0]]


@pytest.mark.parametrize("point", INHERITED)
def test_checkpoint_of_a_parent_killed_at_a_failpoint_is_none_of_the_childs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    parent, child = RunFiles(tmp_path / "runs" / "parent"), RunFiles(tmp_path / "runs" / "child")
    save(parent.checkpoints, OLD, SigningKey.of_installation(parent.signing_key))
    monkeypatch.setattr(os, "link", refuse_to_link)  # so that what is linked where it can be is copied
    known = CheckpointCommitted(checkpoint=name_of(OLD), step=OLD, generation=1, path="")
    assert killed_at(point, lambda: transfer_checkpoint(parent, known, child))
    chosen, _ = newest_good(child.checkpoints, SigningKey.of_installation(child.signing_key), [name_of(OLD)])
    assert chosen is None
    another = RunFiles(tmp_path / "runs" / "another")
    assert transfer_checkpoint(parent, known, another).step == OLD


def refuse_to_link(source: object, target: object) -> None:
    raise OSError("these are two file systems")


@pytest.mark.parametrize("point", [*EXPORTED, *IMPORTED])
def test_export_and_import_killed_at_a_failpoint_leave_a_whole_run_or_none(tmp_path: Path, point: str) -> None:
    there, here = RunFiles(tmp_path / "there" / "run-1"), tmp_path / "here"
    write_small(there.journal)
    there.config.write_text("name: run-1\n")
    here.mkdir()

    def carry() -> None:
        export(there, tmp_path / "run-1.zip")
        import_run(read_export(tmp_path / "run-1.zip"), here)

    assert killed_at(point, carry)
    if (here / "run-1").exists():
        assert read(here / "run-1" / "journal") == read(there.journal)
        return
    (tmp_path / "run-1.zip").unlink(missing_ok=True)
    carry()
    assert read(here / "run-1" / "journal") == read(there.journal)


def test_shard_that_is_given_up_and_link_that_is_removed_can_be_killed(tmp_path: Path) -> None:
    def give_up() -> None:
        with ShardFile(tmp_path, "state/a.pt", 0) as file:
            file.write(b"abc")
            raise RuntimeError

    assert killed_at("shard.abandoned.before_unlink", give_up)
    assert [path.name for path in (tmp_path / "state").iterdir()] == [".a.pt.tmp"]
    shutil.rmtree(tmp_path / "state")
    link = tmp_path / "linked"
    link.symlink_to(tmp_path)
    assert killed_at("removal.link.before_unlink", lambda: discard(link.parent, link.name))
    assert link.is_symlink()
    discard(link.parent, link.name)
    assert not link.is_symlink()
