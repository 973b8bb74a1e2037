"""The one way from a run's folder to a job: its config, if this installation made it or somebody trusts it."""

from control_plane import telling
from control_plane.config_text import from_yaml
from control_plane.core.errors import Refused
from control_plane.storage.checkpoints import MANIFEST, SigningKey, resign
from control_plane.storage.layout import RunFiles
from control_plane.storage.ownership import sign_config, signed_config, whence
from ray_jobs.config import RunConfig


def own_config(files: RunFiles) -> RunConfig:
    """The config of a run that is to be started, forked or replayed. Raises what `check_own` does, and `Invalid`."""
    return RunConfig.from_yaml(check_own(files), str(files.config))


def check_own(files: RunFiles) -> str:
    """The text of a run's config, if this installation signed it.

    Raises `Refused` for a run of elsewhere, with what a job of it would run; `Damaged`, `Invalid` if it cannot be read.
    """
    text = signed_config(files)
    if text is not None:
        return text
    would = telling.what_starts(from_yaml(files.config.read_text(), str(files.config)))
    raise Refused(
        f"run {files.run} {telling.clean(whence(files))}; a job of it would run, as you, {would}; if you know where it "
        "comes from and mean that to run, say --trust"
    )


def trust(files: RunFiles) -> None:
    """Take a run of elsewhere for one's own: its config, and its checkpoints, whose hashes are compared first.

    Raises `Damaged` for a checkpoint that does not verify, `Unavailable` if the disk fails.
    """
    sign_config(files)
    key = SigningKey.of_installation(files.signing_key)
    for root in sorted(files.checkpoints.iterdir()) if files.checkpoints.is_dir() else []:
        if (root / MANIFEST).is_file():
            resign(root, key)
