"""Configs and lines that describe something endless are refused at once by everything that reads a run's folder."""

import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from control_plane.actor.control_actor import limits_in
from control_plane.config_text import LARGEST_FILE_BYTES
from control_plane.core.model.errors import Damaged, Invalid
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.server.archive import ArchivedRun
from control_plane.storage.checkpoint.transfer import adoptable
from control_plane.storage.journal.export import CONFIG, read_export, without_secrets
from control_plane.storage.journal.segments import unseal
from control_plane.storage.layout import IMPORTED, RunFiles
from ray_jobs.config.run_config import RunConfig
from tests.storage.checkpoint.kin import lay
from tests.storage.journal.test_export import file, members_of, pack, run

__all__ = ["file", "run"]

AT_ONCE_S = 20.0
"""The bombs would take years, and a busy machine a few seconds for what is only deep."""

NINE_LEVELS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{{', '.join(f'k{each}: *a{level - 1}' for each in range(9))}}}\n" for level in range(1, 10)
)
BOMBS = {
    "aliases of aliases": NINE_LEVELS,
    "aliases in limits": "limits:\n" + "".join(f"  {line}\n" for line in NINE_LEVELS.splitlines()),
    "itself": "a: &a {b: *a}\n",
    "limits that are themselves": "limits: &a {lr: *a}\n",
    "depth": "a: " + "[" * 3000 + "]" * 3000,
    "size": "a: '" + "x" * LARGEST_FILE_BYTES + "'",
}


def read_by_the_control_actor(config: str, folder: Path) -> Any:
    return limits_in(config.encode(), "config.yaml")


def read_by_an_export(config: str, folder: Path) -> Any:
    return without_secrets(config.encode())


def read_by_an_adoption(config: str, folder: Path) -> Any:
    parent = lay(folder, "parent", 1)
    lay(folder, "fork", 5, parent="parent", config=config)
    return adoptable(parent, AdoptCheckpoint(run="fork"))


def read_by_a_submission(config: str, folder: Path) -> Any:
    return RunConfig.from_yaml(config)


READERS = [read_by_the_control_actor, read_by_an_export, read_by_an_adoption, read_by_a_submission]


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_hostile_config_is_refused_at_once(tmp_path: Path, read: Callable[[str, Path], Any], bomb: str) -> None:
    began_s = time.monotonic()
    with pytest.raises((Damaged, Invalid), match=r"aliases|nested too deeply|is larger than"):
        read(BOMBS[bomb], tmp_path)
    assert time.monotonic() - began_s < AT_ONCE_S


@pytest.mark.parametrize("bomb", BOMBS)
def test_import_of_a_hostile_config_lays_nothing_down(file: Path, tmp_path: Path, bomb: str) -> None:
    members = members_of(file)
    members[CONFIG] = BOMBS[bomb].encode()
    pack(file, members)
    with pytest.raises(Damaged, match=r"contains no usable config: config.yaml is"):
        read_export(file)


def test_object_of_python_is_built_by_nobody(tmp_path: Path) -> None:
    text = f"a: !!python/object/apply:os.system ['touch {tmp_path}/built']\nlimits: {{}}\n"
    for read in (read_by_the_control_actor, read_by_an_adoption, read_by_a_submission):
        with pytest.raises((Damaged, Invalid), match="could not determine a constructor"):
            read(text, tmp_path)
    read_by_an_export(text, tmp_path)
    assert not (tmp_path / "built").exists()


def test_line_that_is_only_depth_is_no_line_of_a_journal() -> None:
    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(ValueError, match="nested too deeply"):
        unseal(text[:-1] + b',"crc":"%08x"}' % zlib.crc32(text))


def test_what_an_import_says_of_itself_may_be_only_depth(tmp_path: Path) -> None:
    files: RunFiles = lay(tmp_path, "shared", 1)
    (files.root / IMPORTED).write_text("[" * 100_000)
    assert ArchivedRun(files).only_imported
