"""File systems of a folder: which one it is on, and whether several machines may share a run's files there.

A run's folder needs exclusive creation (one writer of a journal segment), atomic rename, fsync, and locks that every
machine sees. Network file systems for POSIX programs offer them; file systems over an object store do not.

Source: proc(5), nfs(5), mount.cifs(8).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "warning", "failed"]

MOUNTS = Path("/proc/self/mounts")

NETWORK = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "wekafs",
        "orangefs",
        "pvfs2",
        "ocfs2",
        "gfs2",
        "afs",
        "9p",
        "virtiofs",
        "fuse.glusterfs",
        "fuse.ceph",
        "fuse.ceph-fuse",
        "fuse.juicefs",
        "fuse.moosefs",
        "fuse.lizardfs",
    ]
)
"""File systems that several machines may mount, with exclusive creation, rename and locks."""

OVER_OBJECTS = frozenset(
    [
        "fuse.s3fs",
        "fuse.gcsfuse",
        "fuse.goofys",
        "fuse.mountpoint-s3",
        "fuse.mount-s3",
        "fuse.blobfuse",
        "fuse.blobfuse2",
        "fuse.rclone",
        "fuse.sshfs",
        "fuse.ossfs",
        "fuse.davfs",
    ]
)
"""File systems without atomic rename, exclusive creation or locks: two control servers could own one journal."""

WITHOUT_DISK = frozenset(["tmpfs", "ramfs"])

LOCAL_LOCKS = {"nolock", "nobrl", "nolease"} | {f"local_lock={which}" for which in ("all", "flock")}
"""Mount options with which a lock is seen on its own machine only."""

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A mounted file system."""

    kind: str
    source: str
    mount_point: Path
    options: tuple[str, ...] = ()

    @property
    def is_network(self) -> bool:
        """Return whether other machines can mount it, too."""
        return self.kind in NETWORK

    def __str__(self) -> str:
        """Return a short text such as `nfs4 at /net/home`."""
        return f"{self.kind} at {self.mount_point}"


def file_system_of(path: Path, mounts: Path = MOUNTS) -> FileSystem:
    """Return the file system of a path, or of its nearest existing parent. Raises `OSError`."""
    resolved = path.resolve()
    best = FileSystem("unknown", "", Path("/"))
    for mounted in _mounted(mounts.read_text(errors="surrogateescape").splitlines()):
        # Of two on one mount point the later one hides the earlier.
        inside = resolved == mounted.mount_point or mounted.mount_point in resolved.parents
        if inside and len(mounted.mount_point.parts) >= len(best.mount_point.parts):
            best = mounted
    return best


def _mounted(lines: Iterable[str]) -> Iterable[FileSystem]:
    for line in lines:
        fields = [_ESCAPED.sub(lambda match: chr(int(match[1], 8)), field) for field in line.split(" ")]
        if len(fields) >= 4:
            source, mount_point, kind, options = fields[:4]
            yield FileSystem(kind, source, Path(mount_point), tuple(options.split(",")))


def assess(file_system: FileSystem, machines: int) -> tuple[Level, str]:
    """Return whether runs that `machines` machines work on may be stored there, and why not; an empty text if so."""
    kind = file_system.kind
    if kind in OVER_OBJECTS:
        return "failed", (
            f"{kind} has no atomic rename, no exclusive creation or no locks, so two control servers could write to "
            "one journal; use NFS or another network file system for POSIX programs"
        )
    if file_system.is_network:
        if local := sorted(LOCAL_LOCKS & set(file_system.options)):
            return "failed", (
                f"{file_system} is mounted with {', '.join(local)}: a lock is seen on its own machine only; mount it "
                "without that option"
            )
        if "soft" in file_system.options:
            return "warning", f"{file_system} is mounted `soft`: a slow server becomes an I/O error; mount it `hard`"
        return "ok", ""
    if machines > 1 and not kind.startswith("fuse"):
        return "warning", (
            f"{file_system} is a file system of one machine, and the cluster has {machines}; it holds runs only if it "
            "is this machine's export of what the others mount"
        )
    if kind in WITHOUT_DISK:
        return "warning", f"{file_system} is in memory: runs are lost when the machine restarts"
    if kind == "overlay":
        return "warning", f"{file_system} is a container's own layer: runs are lost with the container; mount a volume"
    return "ok", ""
