"""What a script, or whoever a run's folder came from, may have put in the place of a file: nobody waits for it."""

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from control_plane.core.model.errors import Damaged, NotFound, SteerwayError
from control_plane.gateway.routes import read_log_tail
from control_plane.server.archive import ArchivedRun
from control_plane.storage.checkpoint.transfer import read_origin
from control_plane.storage.journal import writer
from control_plane.storage.journal.audit import audit
from control_plane.storage.journal.segments import segment_name
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import IMPORTED, RunFiles
from control_plane.storage.metrics import MetricsStore
from control_plane.storage.ownership import signed_config, whence
from control_plane.storage.regular import open_regular, read_regular
from tests.gateway.conftest import Rig
from tests.gateway.hostile.test_bad_input import problem_in
from tests.gateway.rig import RUN

CANARY = "what is in somebody's own file"
MAX_S = 10.0


def pipe(path: Path, _: Path) -> None:
    """A named pipe that nobody writes to."""
    os.mkfifo(path)


def hard_link(path: Path, other: Path) -> None:
    """Another name of somebody's file."""
    os.link(other, path)


def link(path: Path, other: Path) -> None:
    """A symbolic link to somebody's file."""
    path.symlink_to(other)


def link_to_pipe(path: Path, other: Path) -> None:
    """A symbolic link to a named pipe."""
    os.mkfifo(other.with_name("a-pipe"))
    path.symlink_to(other.with_name("a-pipe"))


def bound_socket(path: Path, _: Path) -> None:
    """A socket; its name is bound from the folder, since a socket's path must be short."""
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def folder(path: Path, _: Path) -> None:
    """A folder."""
    path.mkdir()


PLANTED = [pipe, hard_link, link, link_to_pipe, bound_socket, folder]
NO_FILES = [pipe, link, link_to_pipe, bound_socket, folder]


def soon(work: Callable[[], Any]) -> Any:
    """What this comes to, in a thread that is not waited for longer than `MAX_S`."""
    told: list[Any] = []

    def run() -> None:
        try:
            told.append(work())
        except (SteerwayError, OSError) as error:
            told.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(MAX_S)
    assert not thread.is_alive(), "it waits for a pipe that nobody writes to"
    return told[0]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Somebody's own file."""
    path = tmp_path / "own.txt"
    path.write_text(CANARY)
    return path


@pytest.mark.parametrize("plant", PLANTED)
def test_log_that_is_no_file_of_its_own_is_no_log(rig: Rig, secret: Path, plant: Callable[..., None]) -> None:
    logs = rig.runs.files(RUN).logs
    logs.mkdir()
    (logs / "driver.log").write_text("the driver's\n")
    plant(logs / "evil.log", secret)
    told = soon(lambda: rig.get(f"/runs/{RUN}/logs?source=evil"))
    assert CANARY not in told.text
    assert problem_in(told, 404, "not-found")["sources"] == ["driver"]
    assert rig.get(f"/runs/{RUN}/logs").json()["text"] == "the driver's\n"


@pytest.mark.parametrize("plant", PLANTED)
def test_log_that_is_exchanged_after_it_was_listed_is_refused(
    tmp_path: Path, secret: Path, plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RunFiles(tmp_path / "runs" / RUN)
    files.logs.mkdir(parents=True)
    plant(files.logs / "evil.log", secret)
    monkeypatch.setattr("control_plane.gateway.routes._is_log", lambda entry: True)
    assert isinstance(soon(lambda: read_log_tail(files, "evil", 10)), NotFound if plant is folder else Damaged)


def test_folder_of_logs_that_leads_elsewhere_is_not_followed(rig: Rig, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "driver.log").write_text(CANARY)
    rig.runs.files(RUN).logs.symlink_to(elsewhere)
    problem_in(rig.get(f"/runs/{RUN}/logs"), 404, "not-found")


def test_many_who_ask_for_a_pipe_keep_nobody_waiting(rig: Rig) -> None:
    logs = rig.runs.files(RUN).logs
    logs.mkdir()
    os.mkfifo(logs / "evil.log")
    (logs / "driver.log").write_text("the driver's\n")
    begun = time.monotonic()
    for _ in range(40):  # more than there are threads for reading files
        assert soon(lambda: rig.get(f"/runs/{RUN}/logs?source=evil")).status_code == 404
    assert rig.get(f"/runs/{RUN}/logs").status_code == 200
    assert time.monotonic() - begun < 3 * MAX_S


READERS: dict[str, tuple[str, Callable[[RunFiles], Any]]] = {
    "the config of a listing": ("config.yaml", signed_config),
    "the config's secrets": ("config.yaml", lambda files: redaction_of(files, {})),
    "what an import says": (IMPORTED, whence),
    "whether it is imported": (IMPORTED, lambda files: ArchivedRun(files).only_imported),
    "how it began": ("origin.json", read_origin),
    "the journal": (f"journal/{segment_name(1)}", lambda files: writer.read(files.journal)),
    "the audit": (f"journal/{segment_name(1)}", lambda files: audit(files.journal)),
}


@pytest.mark.parametrize("plant", NO_FILES)
@pytest.mark.parametrize("named", READERS)
def test_file_of_a_run_that_is_none_is_not_waited_for(
    tmp_path: Path, secret: Path, named: str, plant: Callable[..., None]
) -> None:
    name, read = READERS[named]
    files = RunFiles(tmp_path / "runs" / RUN)
    path = files.root / name
    path.parent.mkdir(parents=True)
    plant(path, secret)
    assert CANARY not in str(soon(lambda: read(files)))


@pytest.mark.parametrize("plant", NO_FILES)
def test_what_is_no_regular_file_is_refused_by_name(tmp_path: Path, secret: Path, plant: Callable[..., None]) -> None:
    plant(tmp_path / "here", secret)
    told = soon(lambda: read_regular(tmp_path / "here"))
    if plant is folder:
        assert isinstance(told, IsADirectoryError)
        return
    assert isinstance(told, Damaged)
    assert told.reason.startswith("here is not a regular file")


def test_file_is_read_and_a_missing_one_is_said_to_be_missing(tmp_path: Path, secret: Path) -> None:
    assert read_regular(secret) == CANARY.encode()
    with open_regular(secret, only_name=True) as file:
        assert file.read() == CANARY.encode()
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "missing")


def test_measurements_that_are_a_link_are_not_written_to(tmp_path: Path) -> None:
    others = tmp_path / "others.sqlite"
    others.write_bytes(b"")
    (tmp_path / "metrics.sqlite").symlink_to(others)
    MetricsStore(tmp_path / "metrics.sqlite")
    assert others.read_bytes() == b""
