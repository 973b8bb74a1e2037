"""Ray jobs that the gateway did not submit, and the runs that they execute.

<home>/ray-jobs/<submission id>   holds the run's id; written by the job itself, see `ray_jobs.driver.direct_job`

A job that the gateway submits needs no such file: the run is in its metadata, and its name is made from the run's id.
"""

from pathlib import Path
from urllib.parse import quote

from control_plane.core.model.errors import Damaged
from control_plane.storage.layout import RUN_ID
from control_plane.storage.private import make_folder, replace_file
from control_plane.storage.regular import open_regular

MAX_NAME_CHARS = 200
MAX_BYTES = 256


def write_job(home: Path, job: str, run: str) -> None:
    """Record that this Ray job executes the run. Raises `OSError`."""
    make_folder(home / "ray-jobs")
    replace_file(_file(home, job), run + "\n")


def run_of_job(home: Path, job: str) -> str | None:
    """Return the run that this Ray job executes, or None if it has recorded none."""
    try:
        with open_regular(_file(home, job)) as file:
            run = file.read(MAX_BYTES).decode("ascii", "replace").strip()
    except (Damaged, OSError):
        return None
    return run if RUN_ID.fullmatch(run) else None


def _file(home: Path, job: str) -> Path:
    # An id from elsewhere: it becomes one name without separators.
    return home / "ray-jobs" / ("job-" + quote(job, safe="")[:MAX_NAME_CHARS])
