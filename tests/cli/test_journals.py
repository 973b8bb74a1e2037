"""`steer journal`: printed as ever; audited, exported and imported from files alone."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from control_plane.core.model.records import RunClosed
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from tests.cli.conftest import Steer
from tests.core.examples import accepted, created, settled
from tests.gateway.rig import RUN, LiveGateway
from tests.storage.scenario import FAST, NOW

CONFIG = b"name: run-1\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one run, and no gateway."""
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STEERWAY_URL", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    files = RunFiles(tmp_path / "home" / "runs" / "run-1")
    journal = Journal.open(files.journal, FAST)
    journal.append([created(config_sha256=sha256(CONFIG).hexdigest()), accepted(1), settled(1)], NOW)
    journal.close()
    files.config.write_bytes(CONFIG)
    return tmp_path / "home"


def damage(home: Path) -> None:
    path = home / "runs" / "run-1" / "journal" / "000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"ann"', b'"eve"', 1))


def test_journal_without_a_subcommand_prints_the_run(gateway: LiveGateway, steer: Steer) -> None:
    printed = steer("journal", RUN, "--after", "1").stdout
    assert printed
    assert steer("journal", "show", RUN, "--after", "1").stdout == printed
    assert steer("journal", "--after", "1").stdout == printed
    assert steer("journal", "--after", "1", RUN).stdout == printed


def test_journal_printed_as_json_says_what_each_command_asks(gateway: LiveGateway, steer: Steer) -> None:
    steer("set", RUN, "lr=1e-4")
    accepted_line, settled_line = map(json.loads, steer("journal", RUN, "--json").stdout.splitlines()[-2:])
    assert (accepted_line["status"], settled_line["status"]) == ("accepted", "applied")
    for line in (accepted_line, settled_line):
        assert line["command"] in ("set_learning_rate", "set_knobs")
        assert line["arguments"]
        assert line["arguments"] == accepted_line["arguments"]


def test_journal_of_a_run_that_nobody_knows_is_not_found(gateway: LiveGateway, steer: Steer) -> None:
    assert steer("journal", "nobody").exit_code == 3


def test_audit_of_an_intact_journal_exits_with_zero_and_a_head(home: Path, steer: Steer) -> None:
    answer = steer("journal", "audit", "run-1")
    assert answer.exit_code == 0
    head = next(line for line in answer.stdout.splitlines() if line.startswith("head")).split()[1]
    assert steer("journal", "audit", "run-1", "--expect", head).exit_code == 0
    other = steer("journal", "audit", "run-1", "--expect", "2:" + "0" * 64)
    assert (other.exit_code, "differs from the expected head" in other.stdout) == (1, True)


def test_audit_of_a_damaged_journal_names_it_and_exits_with_one(home: Path, steer: Steer) -> None:
    damage(home)
    answer = steer("journal", "audit", "run-1")
    assert answer.exit_code == 1
    assert "000001.jsonl, line 2" in answer.stdout
    told = json.loads(steer("journal", "audit", "run", "--json").stdout)
    assert (told["verdict"], told["findings"][0]["what"], told["head"]["seq"]) == ("damaged", "changed bytes", 0)


def test_audit_takes_the_path_of_a_folder(home: Path, steer: Steer) -> None:
    root = home / "runs" / "run-1"
    for path in (root, root / "journal"):
        assert json.loads(steer("journal", "audit", str(path), "--json").stdout)["verdict"] == "intact"


def test_audit_of_a_torn_tail_says_so_and_exits_with_zero(home: Path, steer: Steer) -> None:
    with (home / "runs" / "run-1" / "journal" / "000001.jsonl").open("ab") as file:
        file.write(b'{"seq":4')
    answer = steer("journal", "audit", "run-1")
    assert (answer.exit_code, answer.stdout.splitlines()[0].split(maxsplit=1)[1]) == (0, "torn tail")
    assert "8 bytes of 000001.jsonl" in answer.stdout


@pytest.mark.parametrize("verb", ["audit", "export"])
def test_run_that_is_not_there_is_not_found(home: Path, steer: Steer, verb: str) -> None:
    answer = steer("journal", verb, "nobody")
    assert (answer.exit_code, answer.stderr) == (3, "steer: there is no run 'nobody'\n")


def test_export_is_imported_elsewhere_with_the_differences_stated(
    home: Path, steer: Steer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = json.loads(steer("journal", "export", "run-1", "--json").stdout)["head"]
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path / "elsewhere"))
    checked = steer("journal", "import", "run-1.steer.zip", "--check")
    assert (checked.exit_code, (tmp_path / "elsewhere").exists()) == (0, False)
    assert "versions and hardware are the same" in checked.stdout
    told = json.loads(steer("journal", "import", "run-1.steer.zip", "--json").stdout)
    assert told == {
        "run": "run-1",
        "imported_from": "run-1",
        "records": 3,
        "head": f"{head['seq']}:{head['hash']}",
        "differences": [],
        "would_start": "nothing: its config names no workload",
    }
    assert json.loads(steer("journal", "audit", "run-1", "--json").stdout)["head"] == head
    again = steer("journal", "import", "run-1.steer.zip")
    assert (again.exit_code, "already" in again.stderr) == (5, True)
    assert steer("journal", "import", "run-1.steer.zip", "--run", "other").exit_code == 0


def test_export_says_what_was_left_out_and_what_is_in_it_all_the_same(home: Path, steer: Steer) -> None:
    files = RunFiles(home / "runs" / "run-1")
    files.config.write_bytes(CONFIG + b"workload: {args: [--hf-token, hf_A1]}\n")
    journal = Journal.open(files.journal, FAST)
    journal.append([RunClosed(ending="failed", reason="HF_TOKEN=hf_A1 is refused")], NOW)
    journal.close()
    said = steer("journal", "export", "run-1").stderr.splitlines()
    assert said[0] == "steer: config.yaml: removed the value of workload.args[1], which looks like a secret"
    assert said[1].startswith("steer: journal: record 4 contains what looks like a secret and is exported unchanged")


def test_export_of_a_damaged_journal_exits_with_one_and_leaves_no_file(
    home: Path, steer: Steer, tmp_path: Path
) -> None:
    damage(home)
    answer = steer("journal", "export", "run-1", "-o", "x.zip")
    assert (answer.exit_code, "is damaged" in answer.stderr, (tmp_path / "x.zip").exists()) == (1, True, False)


def test_import_of_what_is_no_export_says_what_it_is(home: Path, steer: Steer, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("hello")
    answer = steer("journal", "import", "x.zip")
    assert (answer.exit_code, answer.stderr) == (
        6,
        "steer: x.zip is not a journal export: not a ZIP file\n",
    )
    assert steer("journal", "import", "nothing.zip").exit_code == 3


def test_bad_head_is_refused_with_its_form(home: Path, steer: Steer) -> None:
    answer = steer("journal", "audit", "run-1", "--expect", "seven")
    assert (answer.exit_code, "SEQ:HASH" in answer.stderr) == (6, True)


def test_import_says_which_script_the_run_would_start(home: Path, steer: Steer) -> None:
    config = b'workload: {kind: script, path: /opt/train.py, args: ["--lr", "1 \\e[2K", 3]}\n'
    (home / "runs" / "run-1" / "config.yaml").write_bytes(config)
    steer("journal", "export", "run-1")
    shown = steer("journal", "import", "run-1.steer.zip", "--check").stdout
    assert (
        "would start  the script /opt/train.py with the arguments --lr '1 [2K' 3; it only runs here with --trust"
        in shown
    )
    told = json.loads(steer("journal", "import", "run-1.steer.zip", "--run", "again", "--json").stdout)
    assert told["would_start"].startswith("the script /opt/train.py with")
