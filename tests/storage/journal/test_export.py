"""A journal as one file: the same bytes come out, and nothing that was tampered with comes in."""

import io
import json
import re
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.core.model.errors import Conflict, Damaged, Invalid, NotFound, SteerwayError
from control_plane.storage.journal import export as exports
from control_plane.storage.journal.audit import audit
from control_plane.storage.journal.export import MANIFEST, export, import_run, read_export, without_secrets
from control_plane.storage.journal.provenance import Machine, Trainers, differences, this_machine
from control_plane.storage.journal.segments import SEGMENT_NAME
from control_plane.storage.journal.writer import Journal, read
from control_plane.storage.layout import RunFiles, list_runs
from tests.core.examples import accepted, created, started
from tests.storage.scenario import FAST, NOW, write_scenario

CONFIG = b"name: run-1\nworkload:\n  kind: gpt2\n  tokens: 5\n"
Members = dict[str, bytes]


@pytest.fixture
def run(tmp_path: Path) -> RunFiles:
    files = RunFiles(tmp_path / "there" / "runs" / "run-1")
    journal = Journal.open(files.journal, FAST)
    digest = sha256(CONFIG).hexdigest()
    journal.append([created(config_sha256=digest), started(), accepted(1)], NOW)
    journal.close()
    journal = Journal.open(files.journal, FAST)
    journal.append([accepted(2)], NOW)
    journal.close()
    files.config.write_bytes(CONFIG)
    return files


@pytest.fixture
def file(run: RunFiles, tmp_path: Path) -> Path:
    export(run, tmp_path / "run-1.steer.zip")
    return tmp_path / "run-1.steer.zip"


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "here" / "runs"


def members_of(file: Path) -> Members:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(file: Path, members: Members, manifest: dict[str, Any] | None = None, agree: bool = True) -> None:
    """An export with these members; its manifest agrees with them, or not."""
    plain = json.loads(members[MANIFEST]) | (manifest or {})
    if agree:
        plain["files"] = {
            name: {"size_bytes": len(data), "sha256": sha256(data).hexdigest()}
            for name, data in members.items()
            if name != MANIFEST
        }
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in (members | {MANIFEST: json.dumps(plain).encode()}).items():
            archive.writestr(name, data)


def test_export_comes_in_as_the_same_run(run: RunFiles, file: Path, runs_dir: Path) -> None:
    laid = import_run(read_export(file), runs_dir)
    assert [files.run for files in list_runs(runs_dir)] == ["run-1"]
    assert read(laid.journal) == read(run.journal)
    assert {path.name: path.read_bytes() for path in laid.journal.iterdir()} == {
        path.name: path.read_bytes() for path in run.journal.iterdir()
    }
    assert laid.config.read_bytes() == CONFIG
    assert audit(laid.journal).head == audit(run.journal).head
    assert sorted(path.name for path in runs_dir.iterdir()) == ["run-1"]


def test_two_exports_of_one_journal_are_the_same_bytes(run: RunFiles, file: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == file.read_bytes()


def test_import_of_an_import_s_export_is_the_same_file(file: Path, runs_dir: Path, tmp_path: Path) -> None:
    export(import_run(read_export(file), runs_dir), tmp_path / "second.zip")
    assert (tmp_path / "second.zip").read_bytes() == file.read_bytes()


def test_imported_journal_goes_on_in_its_next_term(file: Path, runs_dir: Path) -> None:
    laid = import_run(read_export(file), runs_dir)
    journal = Journal.open(laid.journal, FAST)
    journal.append([accepted(3)], NOW)
    assert (journal.term, len(read(laid.journal)), audit(laid.journal).verdict) == (3, 5, "intact")


def test_journal_of_the_first_release_is_exported_and_imported(runs_dir: Path, tmp_path: Path) -> None:
    old = RunFiles(tmp_path / "old" / "run-1")
    old.root.mkdir(parents=True)
    old.config.write_bytes(CONFIG)
    old.journal.symlink_to(Path(__file__).parents[1] / "journals" / "v0.1")
    export(old, tmp_path / "old.zip")
    found = read_export(tmp_path / "old.zip")
    assert not found.config_is_the_runs
    assert read(import_run(found, runs_dir).journal) == read(old.journal)


def test_torn_tail_and_void_segments_stay_behind(run: RunFiles, tmp_path: Path, runs_dir: Path) -> None:
    before = read(run.journal)
    with (run.journal / "000002.jsonl").open("ab") as segment:
        segment.write(b'{"seq":5,"ti')
    (run.journal / "000003.jsonl").write_bytes(b"")
    manifest = export(run, tmp_path / "torn.zip")
    assert manifest.records == len(before)
    laid = import_run(read_export(tmp_path / "torn.zip"), runs_dir)
    assert (read(laid.journal), audit(laid.journal).verdict) == (before, "intact")


def test_damaged_journal_is_not_exported(run: RunFiles, tmp_path: Path) -> None:
    path = run.journal / "000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"run-1"', b'"run-2"', 1))
    with pytest.raises(Damaged, match=r"cannot be exported: the journal is damaged: 000001\.jsonl, line 2"):
        export(run, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_export_overwrites_no_file(run: RunFiles, file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(Conflict, match="already"):
        export(run, file)
    assert file.read_bytes() == before


def test_import_overwrites_no_run(file: Path, runs_dir: Path) -> None:
    found = read_export(file)
    import_run(found, runs_dir)
    with pytest.raises(Conflict, match="'run-1' already"):
        import_run(found, runs_dir)
    assert import_run(found, runs_dir, "other").run == "other"
    with pytest.raises(Invalid, match="not a valid run id"):
        import_run(found, runs_dir, "../x")


def test_secrets_of_the_config_stay_behind_and_all_else_is_kept() -> None:
    config = b"a: 1e-4  # kept\nhf_token: 'abc'\nargs:\n- {api_key: k, tokens: 5, tokenizer: gpt2, password: null}\n"
    kept, removed = without_secrets(config)
    assert removed == ("hf_token", "args[0].api_key")
    assert kept == config.replace(b"'abc'", b"removed-by-export").replace(b": k,", b": removed-by-export,")
    assert without_secrets(CONFIG) == (CONFIG, ())


PLANTED = b"""\
workload:
  kind: script
  args: [--hf-token, hf_A1, --api-key=B2, --lr, 1e-4, 'db.password=C"3', --max_new_tokens, 8]
  env: {aws_secret_access_key: D4, AWS_ACCESS_KEY_ID: E5, wandb_key: F6, hfToken: G7, sort_key: length}
  dsn: postgres://u:H8@host/db
  authorization: Bearer I9
tokens: [J10, K11]
api_keys: {x: L12, y: {z: M13}}
passphrase: |
  N14 and
  more
pin: 1515
log_to: https://me:O16@host/x?api_key=P17
said: "sk-proj-Q18Q18Q18Q18Q18Q18"
training: {max_new_tokens: 128, pad_token: <pad>, tokenizer: gpt2, use_auth_token: true, keep_best_key: loss}
"""


def test_every_planted_secret_stays_behind_and_the_config_is_still_one() -> None:
    kept, removed = without_secrets(PLANTED)
    left = re.findall(rb"\b(?:hf_A1|B2|C.3|D4|E5|F6|G7|H8|I9|J10|K11|L12|M13|N14|1515|O16|P17|Q18)\b", kept)
    assert left == []
    before, after = yaml.safe_load(PLANTED), yaml.safe_load(kept)
    assert after["training"] == before["training"]
    assert after["workload"]["args"][::2] == [
        "--hf-token",
        "--api-key=removed-by-export",
        *before["workload"]["args"][4::2],
    ]
    assert after["workload"]["args"][5] == "db.password=removed-by-export"
    assert after["workload"]["env"]["sort_key"] == "length"
    assert after["passphrase"] == "removed-by-export"
    assert len(removed) == 17
    assert removed[:3] == ("workload.args[1]", "workload.args[2]", "workload.args[5]")


def test_no_token_of_the_installation_is_in_an_export(run: RunFiles, file: Path) -> None:
    (run.root.parent.parent / "tokens").mkdir()
    (run.root.parent.parent / "tokens" / "operator").write_text("canary-operator-71bc")
    assert not any(b"canary" in data for data in members_of(file).values())
    assert set(members_of(file)) == {MANIFEST, "config.yaml", "journal/000001.jsonl", "journal/000002.jsonl"}


def edit(name: str, old: bytes, new: bytes) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        assert old in members[name]
        return members | {name: members[name].replace(old, new, 1)}

    return change


def without(name: str) -> Callable[[Members], Members]:
    return lambda members: {key: data for key, data in members.items() if key != name}


SEGMENT = "journal/000001.jsonl"
TAMPERED: dict[str, tuple[Callable[[Members], Members], str]] = {
    "an edited line": (edit(SEGMENT, b"ann", b"eve"), "000001.jsonl, line 2: the checksum does not match"),
    "a segment missing": (without(SEGMENT), "line 1: its pin does not match"),
    "the newest segment missing": (without("journal/000002.jsonl"), "its journal ends at 3:"),
    "a torn tail": (lambda members: members | {SEGMENT: members[SEGMENT][:-5]}, "incomplete line"),
    "no journal": (lambda members: {key: members[key] for key in (MANIFEST, "config.yaml")}, "its journal ends at 0:"),
    "no config": (without("config.yaml"), "'config.yaml'"),
    "a member outside": (lambda members: members | {"../evil": b"x"}, "'../evil'"),
    "an absolute member": (lambda members: members | {"/tmp-evil": b"x"}, "'/tmp-evil'"),
    "a member too many": (lambda members: members | {"journal/000001.jsonl.x": b"x"}, "'journal/000001.jsonl.x'"),
}


@pytest.mark.parametrize(("change", "said"), TAMPERED.values(), ids=TAMPERED.keys())
def test_export_that_was_changed_with_its_manifest_is_refused(
    file: Path, tmp_path: Path, change: Callable[[Members], Members], said: str
) -> None:
    pack(tmp_path / "changed.zip", change(members_of(file)))
    with pytest.raises(Damaged) as caught:
        read_export(tmp_path / "changed.zip")
    assert said in caught.value.reason


def test_export_whose_hashes_differ_is_refused(file: Path, tmp_path: Path) -> None:
    members = members_of(file)
    pack(tmp_path / "changed.zip", members | {"config.yaml": CONFIG.replace(b"5", b"6")}, agree=False)
    with pytest.raises(Damaged, match=r"config\.yaml does not match its manifest"):
        read_export(tmp_path / "changed.zip")


def test_member_larger_than_it_says_is_not_unpacked_to_its_end(file: Path, tmp_path: Path) -> None:
    members = members_of(file)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (members | {"config.yaml": b"0" * 50_000_000}).items():
            archive.writestr(name, data)
    (tmp_path / "bomb.zip").write_bytes(buffer.getvalue())
    with pytest.raises(Damaged, match="does not match its manifest"):
        read_export(tmp_path / "bomb.zip")


def test_member_twice_is_refused(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "twice.zip"
    target.write_bytes(file.read_bytes())
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(target, "a") as archive:
        archive.writestr("config.yaml", b"x")
    with pytest.raises(Damaged, match=r"config\.yaml"):
        read_export(target)


STRANGE_MANIFESTS: dict[str, tuple[dict[str, Any], type[SteerwayError], str]] = {
    "of a later format": ({"format": 2}, Invalid, "has format 2; this release reads format 1"),
    "larger than any": ({"files": {"config.yaml": {"size_bytes": 2**40, "sha256": ""}}}, Damaged, "does not verify"),
    "without sense": ({"head": 7}, Damaged, "is invalid: head"),
    "of another run": ({"run": "run-2"}, Damaged, "names run 'run-2', but its journal names another"),
    "with another count": ({"records": 3}, Damaged, "its journal ends at 4:"),
}


@pytest.mark.parametrize(("change", "kind", "said"), STRANGE_MANIFESTS.values(), ids=STRANGE_MANIFESTS.keys())
def test_strange_manifest_is_refused(
    file: Path, tmp_path: Path, change: dict[str, Any], kind: type[SteerwayError], said: str
) -> None:
    pack(tmp_path / "strange.zip", members_of(file), change, agree=False)
    with pytest.raises(kind) as caught:
        read_export(tmp_path / "strange.zip")
    assert said in caught.value.reason


def test_export_larger_than_the_limit_is_refused_before_it_is_unpacked(file: Path, tmp_path: Path) -> None:
    files = json.loads(members_of(file)[MANIFEST])["files"]
    files["config.yaml"]["size_bytes"] = 2**40
    pack(tmp_path / "large.zip", members_of(file), {"files": files}, agree=False)
    with pytest.raises(Invalid, match="exceeds the limit"):
        read_export(tmp_path / "large.zip")


def test_export_cut_at_any_byte_or_with_a_bit_flipped_is_refused_or_the_same(file: Path, tmp_path: Path) -> None:
    data, target, whole = file.read_bytes(), tmp_path / "cut.zip", read_export(file)
    for size_bytes in range(0, len(data), 41):
        target.write_bytes(data[:size_bytes])
        with pytest.raises((Damaged, Invalid)):
            read_export(target)
    for offset in range(0, len(data), 41):
        target.write_bytes(data[:offset] + bytes([data[offset] ^ 1 << offset % 8]) + data[offset + 1 :])
        try:
            found = read_export(target)
        except (Damaged, Invalid):
            continue
        assert (found.files, found.manifest) == (whole.files, whole.manifest), offset  # a time or a mode has changed


def test_file_that_is_no_export_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(Invalid, match="not a ZIP"):
        read_export(tmp_path / "text")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(Invalid, match=r"no manifest\.json"):
        read_export(tmp_path / "other.zip")
    with pytest.raises(NotFound):
        read_export(tmp_path / "nowhere")


def test_journal_whose_history_cannot_be_is_not_laid_down(run: RunFiles, tmp_path: Path, runs_dir: Path) -> None:
    journal = Journal.open(run.journal, FAST)
    journal.append([accepted(2)], NOW)
    with pytest.raises(Damaged, match="is accepted twice"):
        export(run, tmp_path / "x.zip")
    assert not runs_dir.exists()


def test_differences_of_machines_are_each_a_sentence() -> None:
    there = Machine(
        python="3.11.1",
        packages={"torch": "2.1", "deepspeed": None, "ray": "2.54"},
        system="Linux",
        architecture="x86_64",
        cpu="A",
        gpus=("NVIDIA H100", "NVIDIA H100"),
    )
    here = Machine(
        python="3.12.0",
        packages={"torch": "2.2", "deepspeed": "0.15", "ray": "2.54"},
        system="Linux",
        architecture="arm64",
    )
    assert differences(there, here, Trainers(ranks=2, devices={"cuda": 2}, nodes=1)) == [
        "Python was 3.11.1 there and is 3.12.0 here",
        "torch was 2.1 there and is 2.2 here",
        "deepspeed was not installed there and is 0.15 here",
        "the architecture was x86_64 there and is arm64 here",
        "the machine had 2 x NVIDIA H100 there and has no NVIDIA GPU here",
        "2 of 2 ranks trained on a GPU, but this machine has none",
    ]
    assert differences(there, there, Trainers(ranks=2, devices={"cuda": 2})) == []


def test_manifest_says_where_the_run_was(file: Path) -> None:
    manifest = read_export(file).manifest
    assert manifest.machine == this_machine()
    assert manifest.trainers == Trainers(ranks=2, devices={"cpu": 2}, nodes=1)
    assert manifest.machine.python
    assert set(manifest.machine.packages) >= {"steerway", "torch", "deepspeed", "transformers"}


def test_scenario_with_every_record_is_exported_whole(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "runs" / "run-1")
    write_scenario(files.journal)
    files.config.write_bytes(CONFIG)
    assert (
        export(files, tmp_path / "x.zip").records
        == len(read(files.journal))
        == len(read_export(tmp_path / "x.zip").entries)
    )


def test_export_that_would_unpack_to_a_multiple_is_refused_before_it_is_unpacked(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = members_of(file) | {exports.CONFIG: b"a: '" + b"x" * (65 * 2**20) + b"'"}
    plain = json.loads(members[MANIFEST])
    plain["files"][exports.CONFIG] = {
        "size_bytes": len(members[exports.CONFIG]),
        "sha256": sha256(members[exports.CONFIG]).hexdigest(),
    }
    members[MANIFEST] = json.dumps(plain).encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    unpacked: list[str] = []
    bounded = exports._bounded
    monkeypatch.setattr(
        exports, "_bounded", lambda zipped, name, limit: unpacked.append(name) or bounded(zipped, name, limit)
    )
    with pytest.raises(Invalid, match=r"would unpack to 68,\d+,\d+ bytes, more than 100 times its size"):
        read_export(file)
    assert unpacked == [MANIFEST]


def test_segments_are_numbered_in_ascii_digits_only() -> None:
    assert SEGMENT_NAME.fullmatch("000001.jsonl")
    assert not SEGMENT_NAME.fullmatch("\u0660\u0660\u0660\u0660\u0660\u0661.jsonl")
