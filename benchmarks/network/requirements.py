"""Requirements of the rig: root on Linux, namespaces, iproute2, and code outside of /tmp."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("ip", "unshare", "nsenter", "mount")
REPOSITORY = Path(__file__).resolve().parents[2]
TRY_WITHIN_S = 20.0


def reason_against() -> str | None:
    """Return why the rig cannot be built here, or None."""
    if not sys.platform.startswith("linux"):
        return "machines as namespaces need Linux"
    if os.geteuid() != 0:
        return "machines as network namespaces need root: run this as root"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"machines as network namespaces need {', '.join(missing)} (Debian: iproute2, util-linux, mount)"
    for path in (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)):
        if path.is_relative_to("/tmp"):
            return f"{path} lies in /tmp, of which each machine has its own: move it elsewhere"
    probe = (
        "mount -t tmpfs tmpfs /tmp && ip link add steer0 type veth peer name steer1 && "
        "ip link add steer2 type bridge && ip link set steer0 master steer2"
    )
    command = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "sh", "-c", probe]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRY_WITHIN_S, check=False)
    except subprocess.TimeoutExpired:
        return f"`unshare` did not make namespaces within {TRY_WITHIN_S:g} s"
    if done.returncode:
        return f"this kernel or container makes no namespaces, veth pairs or bridges: {done.stderr.strip()}"
    return None
