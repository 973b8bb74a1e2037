"""`steer submit` and `steer fork`: what a client reads of a config, packs and sends."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from control_plane.api.launching import ForkRequest, LaunchRequest
from control_plane.client import SteerwayClient
from tests.cli.conftest import Steer, save
from tests.gateway.rig import RUN, LiveGateway

CONFIG = """\
name: mine
seed: 1
workload: {kind: script, path: code/train.py, args: [--fast]}
deepspeed: zero2.json
env: {HF_TOKEN: {secret: true}, PLAIN: "1"}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder, which the cluster does not see."""
    code = tmp_path / "project" / "code"
    code.mkdir(parents=True)
    (code / "train.py").write_text("import module\n")
    (code / "module.py").write_text("x = 1\n")
    (code / "weights.bin").write_bytes(b"0" * 1000)
    (code / ".rayignore").write_text("*.bin\n")
    (tmp_path / "project" / "zero2.json").write_text('{"zero_optimization": {"stage": 2}}')
    (tmp_path / "project" / "run.yaml").write_text(CONFIG)
    return tmp_path / "project"


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names in the bundles that were uploaded."""
    seen: list[list[str]] = []

    def upload_bundle(self: SteerwayClient, path: Path, progress: Any = None) -> str:
        with zipfile.ZipFile(path) as archive:
            seen.append(archive.namelist())
        return "a" * 64

    monkeypatch.setattr(SteerwayClient, "upload_bundle", upload_bundle)
    return seen


def sent(gateway: LiveGateway) -> LaunchRequest:
    ((verb, _, request, by),) = gateway.launches.asked
    assert (verb, by.role) == ("launch", "operator")
    assert isinstance(request, LaunchRequest)
    return request


def test_submit_sends_the_config_the_code_and_the_secrets(
    idle_gateway: LiveGateway, steer: Steer, project: Path, uploads: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-secret")
    monkeypatch.setenv("EXTRA", "canary-extra")
    answer = steer("submit", str(project / "run.yaml"), "training.max_steps=5", "--env", "EXTRA", "--priority", "3")
    assert answer.exit_code == 0, answer.stderr
    assert answer.stdout == "submitted run new-run\n"
    request = sent(idle_gateway)
    assert uploads == [[".rayignore", "module.py", "train.py"]]
    assert (request.config, request.source, request.script) == (CONFIG, "run.yaml", "train.py")
    assert json.loads(request.files["zero2.json"])["zero_optimization"]["stage"] == 2
    assert request.secrets == {"HF_TOKEN": "canary-secret", "EXTRA": "canary-extra"}
    assert (request.env, request.priority, request.overrides) == (("EXTRA",), 3, ("training.max_steps=5",))
    assert "canary" not in answer.stdout + answer.stderr


def test_submit_without_a_bundle_names_the_path_on_the_cluster(
    idle_gateway: LiveGateway, steer: Steer, project: Path, uploads: list[list[str]]
) -> None:
    answer = steer("submit", str(project / "run.yaml"), "--no-bundle", "--json")
    assert answer.exit_code == 0, answer.stderr
    request = sent(idle_gateway)
    assert (request.bundle, request.script, uploads) == (None, None, [])
    assert request.overrides == (f'workload.path="{project / "code" / "train.py"}"',)
    assert json.loads(answer.stdout)["run"] == "new-run"


def test_overrides_count_for_what_is_sent(
    idle_gateway: LiveGateway, steer: Steer, project: Path, uploads: list[list[str]]
) -> None:
    (project / "other").mkdir()
    (project / "other" / "main.py").write_text("")
    answer = steer("submit", str(project / "run.yaml"), "workload.path=other/main.py")
    assert answer.exit_code == 0, answer.stderr
    assert (sent(idle_gateway).script, uploads) == ("main.py", [["main.py"]])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("workload: {kind: script, path: nowhere.py}", "there is no file"),
        ("deepspeed: nowhere.json", "does not exist"),
        ("workload: [", "is not usable YAML"),
    ],
)
def test_what_this_machine_does_not_have_is_said_before_anything_is_sent(
    idle_gateway: LiveGateway, steer: Steer, tmp_path: Path, config: str, reason: str
) -> None:
    (tmp_path / "run.yaml").write_text(config)
    answer = steer("submit", str(tmp_path / "run.yaml"))
    assert (answer.exit_code, reason in answer.stderr) == (6, True), answer.stderr
    assert not idle_gateway.launches.asked


def test_data_file_goes_along_unless_the_gateway_is_this_machine_s(
    idle_gateway: LiveGateway, steer: Steer, tmp_path: Path, uploads: list[list[str]]
) -> None:
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "train.txt").write_text("text")
    (tmp_path / "run.yaml").write_text("name: a\nworkload: {kind: gpt2}\ndata: {source: wikitext2, path: wiki}\n")
    assert steer("submit", str(tmp_path / "run.yaml")).exit_code == 0
    request = sent(idle_gateway)
    assert uploads == [["data/wiki/train.txt"]]
    assert (request.script, request.overrides) == (None, ('data.path="data/wiki"',))


def test_files_of_generators_go_along(
    idle_gateway: LiveGateway, steer: Steer, project: Path, uploads: list[list[str]]
) -> None:
    (project / "write.py").write_text("x = 1\n")
    generators = (
        "generators: {a: {source: f, path: write.py}, b: {source: f, prompt: x}, c: {path: /on/the/cluster.py}}"
    )
    (project / "run.yaml").write_text(f"name: a\nworkload: {{kind: gpt2}}\n{generators}\n")
    answer = steer("submit", str(project / "run.yaml"))
    assert answer.exit_code == 0, answer.stderr
    assert uploads == [["_generators/a/write.py"]]
    assert sent(idle_gateway).overrides == (
        'generators.a.path="_generators/a/write.py"',
        'generators.c.path="/on/the/cluster.py"',
    )


SOURCES = """\
name: a
workload: {kind: gpt2}
sources:
  web: {format: jsonl, path: "../crawl/*/part-?.jsonl", fields: {text: text}}
  one: {format: text, path: ONE}
  far: {format: text, path: "/nowhere/on/this/machine/*.txt"}
  live: {format: text, live: true}
"""


def test_files_of_sources_go_along_and_keep_their_globs(
    idle_gateway: LiveGateway, steer: Steer, project: Path, uploads: list[list[str]], tmp_path: Path
) -> None:
    for name in ("b/part-1.jsonl", "a/part-2.jsonl", "a/part-10.jsonl", "a/.part-3.jsonl"):
        (tmp_path / "crawl" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "crawl" / name).write_text("{}")
    (tmp_path / "one.txt").write_text("text")
    (project / "run.yaml").write_text(SOURCES.replace("ONE", "nothing.txt"))
    answer = steer("submit", str(project / "run.yaml"), f"sources.one.path={tmp_path / 'one.txt'}")
    assert answer.exit_code == 0, answer.stderr
    assert uploads == [["_sources/one/one.txt", "_sources/web/a/part-2.jsonl", "_sources/web/b/part-1.jsonl"]]
    assert sent(idle_gateway).overrides[1:] == (
        'sources.web.path="_sources/web/*/part-?.jsonl"',
        'sources.one.path="_sources/one/one.txt"',
        'sources.far.path="/nowhere/on/this/machine/*.txt"',
    )


def test_files_of_sources_that_are_not_here_or_too_large_are_named_and_nothing_is_sent(
    idle_gateway: LiveGateway, steer: Steer, project: Path, uploads: list[list[str]], tmp_path: Path
) -> None:
    (project / "run.yaml").write_text(SOURCES.replace("ONE", "large.txt"))
    answer = steer("submit", str(project / "run.yaml"))
    assert (answer.exit_code, "sources.web.path is ../crawl/*/part-?.jsonl, but no file" in answer.stderr) == (6, True)
    (tmp_path / "crawl" / "a").mkdir(parents=True)
    (tmp_path / "crawl" / "a" / "part-1.jsonl").write_text("{}")
    with (project / "large.txt").open("wb") as file:
        file.truncate(101 << 20)
    answer = steer("submit", str(project / "run.yaml"))
    assert (answer.exit_code, "sources.one.path (1 file) 101.0 MiB" in " ".join(answer.stderr.split())) == (6, True)
    assert "steer data add" in answer.stderr
    assert (uploads, idle_gateway.launches.asked) == ([], [])
    answer = steer("submit", str(project / "run.yaml"), "--no-bundle")
    assert answer.exit_code == 0, answer.stderr
    assert f'sources.one.path="{project / "large.txt"}"' in sent(idle_gateway).overrides


def test_folders_of_modules_go_along(
    idle_gateway: LiveGateway, steer: Steer, project: Path, uploads: list[list[str]], tmp_path: Path
) -> None:
    for name in ("libs/mine", "other/mine"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
    config = project / "run.yaml"
    plain = CONFIG.replace("env: {HF_TOKEN: {secret: true}, PLAIN", "env: {PLAIN")
    config.write_text(plain + "runtime_env: {py_modules: [../libs/mine, 's3://bucket/m.zip']}\n")
    assert steer("submit", str(config)).exit_code == 0
    assert uploads == [[".rayignore", "_modules/mine/__init__.py", "module.py", "train.py"]]
    assert sent(idle_gateway).overrides == ('runtime_env.py_modules=["_modules/mine", "s3://bucket/m.zip"]',)
    config.write_text(plain + "runtime_env: {py_modules: [../libs/mine, ../other/mine]}\n")
    assert "names two folders mine" in steer("submit", str(config)).stderr


def test_fork_sends_the_first_commands_of_each_fork(idle_gateway: LiveGateway, steer: Steer) -> None:
    idle_gateway.call(save(idle_gateway.server, 2))
    answer = steer("fork", RUN, "step:2", "training.max_steps=9", "--set", "lr=1e-4")
    assert answer.exit_code == 0, answer.stderr
    ((verb, run, request, _),) = idle_gateway.launches.asked
    assert isinstance(request, ForkRequest)
    assert (verb, run, request.checkpoint, request.overrides) == ("fork", RUN, "step-2-g1", ("training.max_steps=9",))
    assert [[intent.describe() for intent in first] for first in request.firsts] == [["lr = 0.0001"]]
