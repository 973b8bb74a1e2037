"""Record of the cluster that `steer up` has started, and the lock that allows one `up` or `down` at a time."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.processes import ProcessMark, find_members
from control_plane.config import Settings
from control_plane.core.model.errors import Conflict, Damaged, SteerwayError
from control_plane.storage.private import check_home, make_folder, replace_file


class ClusterRecord(BaseModel):
    """Record of one cluster on this machine. It is written before the first process starts, so that none can be lost.

    `ray_environment` is that of `cluster.environment.ray_environment`: clients of Ray need it. It holds no secret.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cluster: str
    started_at: str
    ready: bool
    temp_dir: str
    gateway_url: str
    console_url: str
    dashboard_url: str
    ray_address: str
    ports: dict[str, int]
    ray_environment: dict[str, str]
    processes: dict[str, ProcessMark] = {}

    def members(self) -> list[psutil.Process]:
        """Return every living process of the cluster, except this one and its ancestors."""
        return find_members(self.cluster, self.processes.values(), self.temp_dir)

    def living(self) -> list[str]:
        """Return the names of the recorded processes that are alive."""
        return [name for name, mark in self.processes.items() if mark.process() is not None]


def utc_now() -> str:
    """Return the current time as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def read_record(settings: Settings) -> ClusterRecord | None:
    """Return the record, or None if there is none. Raises `Damaged` if it is malformed."""
    path = settings.cluster_file
    try:
        return ClusterRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise Damaged(
            f"{path} cannot be read as a record of a cluster ({type(error).__name__}); if no cluster is up, remove it"
        ) from None


def write_record(settings: Settings, record: ClusterRecord) -> None:
    """Write the record atomically, readable by its owner only."""
    replace_file(settings.cluster_file, json.dumps(record.model_dump(mode="json"), indent=1) + "\n")


@contextmanager
def cluster_lock(settings: Settings) -> Iterator[None]:
    """Hold the lock against a second `up` or `down`. Raises `Conflict` if it is taken. Released if the process dies."""
    make_home(settings)
    handle = os.open(settings.home / "cluster.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise Conflict(f"another `steer up` or `steer down` is running on {settings.home}; wait for its end") from None
    try:
        yield
    finally:
        os.close(handle)


def make_home(settings: Settings) -> None:
    """Make the folder of this installation, closed to other users.

    Raises `SteerwayError` if that fails, or if other users may write to an existing one.
    """
    try:
        make_folder(settings.home)
        check_home(settings.home)
        make_folder(settings.home / "logs")
    except OSError as error:
        raise SteerwayError(f"{settings.home} cannot be made: {error.strerror}; choose another STEERWAY_HOME") from None
