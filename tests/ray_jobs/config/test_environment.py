"""`env:` of a config: plain values reach the ranks, secret ones lie in a file of their own and nowhere else."""

from pathlib import Path

import pytest

from control_plane.core.model.errors import Damaged, Invalid
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles
from ray_jobs.config.environment import first_variables, keep_secrets, read_secrets, variables, with_variables
from ray_jobs.config.run_config import RunConfig, load
from ray_jobs.submit import prepare

CANARY = "canary-of-an-odd-shape"


def config(tmp_path: Path, env: str) -> RunConfig:
    (tmp_path / "train.py").write_text("")
    path = tmp_path / "run.yaml"
    path.write_text(f"name: mine\nseed: 1\nworkload: {{kind: script, path: train.py}}\nenv: {env}\n")
    return load(path)


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    made = RunFiles(tmp_path / "home" / "runs" / "mine-1")
    made.root.mkdir(parents=True, mode=0o700)
    return made


def test_plain_and_secret_variables_reach_the_ranks(tmp_path: Path, files: RunFiles) -> None:
    found = with_variables(config(tmp_path, "{MODE: fast, MY_KEY: {secret: true}}"), ["THIRD"])
    keep_secrets(files, found, {"MY_KEY": CANARY, "THIRD": "3", "OTHER": "x"})
    assert variables(found, files) == {"MODE": "fast", "MY_KEY": CANARY, "THIRD": "3"}
    assert files.secrets.stat().st_mode & 0o777 == 0o600
    assert RunConfig.from_yaml(found.to_yaml()) == found


def test_plain_variables_are_there_before_anything_is_imported(tmp_path: Path) -> None:
    """Libraries read `HF_HOME` when they are imported. Secrets and the interpreter's own paths do not come so early."""
    found = with_variables(config(tmp_path, "{HF_HOME: /data/hf, PYTHONPATH: src, LD_PRELOAD: x.so}"), ["MINE"])
    assert first_variables(found) == {"HF_HOME": "/data/hf"}


def test_secret_value_is_in_the_file_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_variables(config(tmp_path, "{}"), ["MINE"])
    made = prepare(found, tmp_path / "home" / "runs", "mine-2")
    keep_secrets(made, found, {"MINE": CANARY})
    holding = [path.name for path in made.root.rglob("*") if path.is_file() and CANARY in path.read_text()]
    assert holding == ["secrets.json"]
    assert redaction_of(made, {}).text(f"no answer to {CANARY}") == "no answer to ***", "whatever its name or shape"


def test_run_that_was_moved_asks_for_its_secrets_by_name(tmp_path: Path, files: RunFiles) -> None:
    found = config(tmp_path, "{A: {secret: true}, B: {secret: true}}")
    with pytest.raises(Invalid, match=r"needs A, B, which are not set here.*--env A --env B"):
        keep_secrets(files, found, {})
    with pytest.raises(Invalid, match=r"lacks A, B: `steer resume mine-1 --env A --env B`"):
        variables(found, files)
    keep_secrets(files, found, {"A": "1", "B": "2"})
    keep_secrets(files, found, {})
    keep_secrets(files, found, {"A": "3", "B": "4"}, ["B"])
    assert read_secrets(files) == {"A": "1", "B": "4"}, "only what was named is taken again"
    with pytest.raises(Invalid, match="has no secret variable C"):
        keep_secrets(files, found, {"C": "5"}, ["C"])


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ("{HF_TOKEN: hf_abc}", "looks like a secret.*--env HF_TOKEN"),
        ("{RANK: '1'}", "reserved: Steerway and Ray set it for each rank"),
        ("{STEERWAY_HOME: /x}", "reserved: Steerway and Ray set it for each rank"),
        ("{'A B': x}", "not the name of an environment variable"),
        ("{A: 1}", "env.A"),
        ("{A: {secret: false}}", "env.A"),
    ],
)
def test_variables_that_cannot_be_are_refused(tmp_path: Path, env: str, told: str) -> None:
    with pytest.raises(Invalid, match=told):
        config(tmp_path, env)


@pytest.mark.parametrize("text", ["", "[]", '{"A": 1}', "[" * 100_000])
def test_damaged_file_of_secrets_is_said_and_not_repeated(files: RunFiles, text: str) -> None:
    files.secrets.write_text(text)
    with pytest.raises(Damaged, match=r"secrets\.json cannot be read"):
        read_secrets(files)
    assert redaction_of(files, {}).text("plain") == "plain"
