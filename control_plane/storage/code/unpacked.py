"""The code of a run: its bundle as RUN/code.zip, and the bundle's files in RUN/code.

RUN/code.zip has the hash that the run's signed config names, or nothing of it is unpacked. RUN/code is made from it
again where it is missing or was changed, so a run can be resumed from its folder alone.
"""

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import BinaryIO

from control_plane.core.model.errors import Damaged, NotFound, Refused, Unavailable
from control_plane.storage.checkpoint.shards import sync_folder
from control_plane.storage.code import archive
from control_plane.storage.code.uploads import bundle_path
from control_plane.storage.failpoints import reach
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import FILE_MODE
from control_plane.storage.regular import open_regular


def unpack_bundle(home: Path, sha256: str, files: RunFiles) -> None:
    """Give a new run the uploaded bundle: RUN/code.zip, and its files in RUN/code. The run's folder must exist.

    Raises `NotFound` if no such bundle was uploaded (or it was removed by age), `Damaged` if it has another hash,
    `Invalid` if it is refused, `Unavailable` if the disk fails. Then the run has neither.
    """
    _take(bundle_path(home, sha256), sha256, files)


def inherit_code(parent: RunFiles, sha256: str, files: RunFiles) -> None:
    """Give a fork or a replay the code of its parent. Raises like `unpack_bundle`."""
    _take(parent.bundle, sha256, files)


def restore_code(files: RunFiles, sha256: str, home: Path) -> Path | None:
    """Unpack a run's code again from RUN/code.zip, before a job of it is started, where it is missing or was changed.

    A run that was imported has no code.zip: it takes the bundle of that hash that was uploaded to `home`, if there is
    one. Files in RUN/code that are not of the bundle stay. If files of the bundle were changed, the whole folder is
    kept under another name, which is returned.
    Raises like `unpack_bundle`; `Refused` if code.zip is not the signed one.
    """
    if not os.path.lexists(files.bundle) and bundle_path(home, sha256).exists():
        unpack_bundle(home, sha256, files)
        return None
    try:
        with _opened(files.bundle, sha256) as file:
            if not os.path.lexists(files.code):
                _unpack(file, files)
                return None
            if not archive.changed_files(file, files.code):
                return None
            aside = files.root / f"code-{time.time_ns() // 10**6}"
            _unpack(file, files, aside)
            return aside
    except NotFound:
        raise NotFound(
            f"the code of run {files.run} is not here: it has no code.zip (an export holds none), and no bundle with "
            f"the SHA-256 {sha256[:16]}... was uploaded; upload the same folder, or copy code.zip from its origin"
        ) from None
    except OSError as error:
        raise Unavailable(f"the code of run {files.run} cannot be unpacked: {error.strerror or error}") from error
    except Damaged:
        raise Refused(
            f"{files.bundle} is not the code that run {files.run} was submitted with (SHA-256 {sha256[:16]}...): "
            "nothing of it is run; put the original file back, or submit the script as a new run"
        ) from None


def _take(source: Path, sha256: str, files: RunFiles) -> None:
    try:
        with _opened(source, sha256) as file:
            _remove(files)  # of a request that was killed in the middle, and is repeated
            _unpack(file, files)
            _keep(source, file, files)
    except NotFound:
        raise
    except OSError as error:
        _remove(files)
        raise Unavailable(f"the code of run {files.run} cannot be stored: {error.strerror or error}") from error
    except BaseException:
        _remove(files)
        raise


def _opened(path: Path, sha256: str) -> BinaryIO:
    """Open a bundle whose bytes have this hash; the same open file is then unpacked. Raises `NotFound`, `Damaged`."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise NotFound(
            f"there is no code bundle {sha256[:16]}... here: it was not uploaded, or was removed unused; submit again"
        ) from None
    if archive.digest_of(file) != sha256:
        file.close()
        raise Damaged(f"the code bundle {path.name} has changed: its SHA-256 is not {sha256[:16]}...")
    return file


def _unpack(file: BinaryIO, files: RunFiles, aside: Path | None = None) -> None:
    draft = files.root / ".code.new"
    shutil.rmtree(draft, ignore_errors=True)
    archive.unpack(file, draft)
    if aside is not None:
        os.rename(files.code, aside)
    os.rename(draft, files.code)


def _keep(source: Path, file: BinaryIO, files: RunFiles) -> None:
    """Name the bundle RUN/code.zip: a hard link, or a copy where the file system has none."""
    reach("bundle.kept", "before_link")
    try:
        os.link(source, files.bundle)
    except OSError:
        file.seek(0)
        descriptor = os.open(files.bundle, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        with os.fdopen(descriptor, "wb") as copy:
            shutil.copyfileobj(file, copy)
            copy.flush()
            os.fsync(copy.fileno())
    sync_folder(files.root, "bundle.kept")


def _remove(files: RunFiles) -> None:
    shutil.rmtree(files.code, ignore_errors=True)
    with contextlib.suppress(OSError):
        files.bundle.unlink(missing_ok=True)
