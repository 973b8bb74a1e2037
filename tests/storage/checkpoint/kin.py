"""Runs beside each other that come from one another, with checkpoints: for what is given from one to the other."""

from hashlib import sha256
from pathlib import Path

from control_plane.core.model.records import CheckpointCommitted, Parent, Record, RunCreated
from control_plane.core.model.state import fold
from control_plane.core.rules.branch_rules import Origin
from control_plane.storage.checkpoint.store import MANIFEST, SigningKey
from control_plane.storage.checkpoint.transfer import write_origin
from control_plane.storage.journal.writer import Journal, read
from control_plane.storage.layout import RunFiles
from control_plane.storage.ownership import sign_config
from tests.storage.checkpoint.saved import name_of, save
from tests.storage.facts import NOW

CONFIG = """name: {run}
seed: 7
training: {{max_steps: {max_steps}, optim: adamw_torch}}
deepspeed:
  zero_optimization: {{stage: {stage}}}
"""


def record_of(files: RunFiles, checkpoint: str) -> CheckpointCommitted:
    """What a run's journal says of a checkpoint."""
    (found,) = (each for each in fold(read(files.journal)).checkpoints.existing if each.checkpoint == checkpoint)
    return found


def lay(
    folder: Path,
    run: str,
    *steps: int,
    parent: str | None = None,
    stage: int = 2,
    max_steps: int = 100,
    config: str | None = None,
    config_sha256: str = "c" * 64,
) -> RunFiles:
    """A run with checkpoints of these steps, forked from `parent` if there is one."""
    files = RunFiles(folder / "runs" / run)
    files.root.mkdir(parents=True)
    files.config.write_text(config or CONFIG.format(run=run, stage=stage, max_steps=max_steps))
    sign_config(files)
    key = SigningKey.of_installation(files.signing_key)
    records: list[Record] = [RunCreated(run=run, name=run, author="ann", config_sha256=config_sha256)]
    for step in steps:
        told = sha256((save(files.checkpoints, step, key) / MANIFEST).read_bytes()).hexdigest()
        name, path = name_of(step), f"checkpoints/{name_of(step)}"
        records.append(CheckpointCommitted(checkpoint=name, step=step, generation=1, path=path, manifest_sha256=told))
    journal = Journal.open(files.journal)
    journal.append(records, NOW)
    journal.close()
    if parent is not None:
        write_origin(files, Origin(parent=Parent(kind="fork", run=parent, checkpoint=name_of(1), step=1)))
    return files
