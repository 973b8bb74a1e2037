"""Trusted configs: only a config that this installation has signed is run as a job."""

from control_plane.api import sentences
from control_plane.config_text import from_yaml
from control_plane.core.model.errors import Refused
from control_plane.storage.checkpoint.store import MANIFEST, SigningKey, resign
from control_plane.storage.layout import RunFiles
from control_plane.storage.ownership import sign_config, signed_config, whence
from ray_jobs.config.run_config import RunConfig


def own_config(files: RunFiles) -> RunConfig:
    """Return the config of a run that is to be started, forked or replayed. Raises as `check_own`, and `Invalid`."""
    return RunConfig.from_yaml(check_own(files), str(files.config))


def check_own(files: RunFiles) -> str:
    """Return the text of a run's config if this installation has signed it.

    Raises `Refused` otherwise, with the command that a job would run; `Damaged`, `Invalid` if it cannot be read.
    """
    text = signed_config(files)
    if text is not None:
        return text
    would = sentences.describe_job(from_yaml(files.config.read_text(), str(files.config)))
    raise Refused(
        f"run {files.run} {sentences.clean(whence(files))}; a job of it would run, as you, {would}; if you know where "
        "it comes from and want to run that, add --trust"
    )


def trust(files: RunFiles) -> None:
    """Sign another installation's run: its config, and its checkpoints, after verifying their hashes.

    Raises `Damaged` for a checkpoint that does not verify, `Unavailable` if the disk fails.
    """
    sign_config(files)
    key = SigningKey.of_installation(files.signing_key)
    for root in sorted(files.checkpoints.iterdir()) if files.checkpoints.is_dir() else []:
        if (root / MANIFEST).is_file():
            resign(root, key)
