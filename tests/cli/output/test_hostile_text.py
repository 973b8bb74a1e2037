"""Whatever is in a journal, what `steer` and the console say of it are lines without a character that is obeyed."""

import ast
import json
import os
import pty
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from control_plane.api.messages import CommandView
from control_plane.cli.output import formatting, printing
from control_plane.cli.output.watch import JsonLines
from control_plane.core.model.commands import Command
from control_plane.core.model.intents import (
    Freeze,
    Intent,
    Pause,
    ResetParameters,
    Rollback,
    RunAction,
    SaveCheckpoint,
    SetKnobs,
    SetLearningRate,
)
from control_plane.core.model.intents.server import PinCheckpoint
from control_plane.core.model.records import (
    BranchAdopted,
    BranchStarted,
    CheckpointCommitted,
    CheckpointDiscarded,
    CheckpointFailed,
    CommandAccepted,
    CommandRepeated,
    CommandSettled,
    Death,
    Entry,
    GenerationEnded,
    GenerationLost,
    GenerationRecovered,
    GenerationStarted,
    Parent,
    Record,
    RefusedCheckpoint,
    RunClosed,
    RunCreated,
    TermStarted,
)
from control_plane.core.model.values import Change
from control_plane.storage.journal.export import export
from control_plane.storage.journal.writer import Journal
from control_plane.storage.layout import RunFiles
from tests.cli.conftest import Steer
from tests.storage.scenario import FAST, NOW
from ui.labels import life, line, read_back

EVIL = "ok\x1b]0;owned\x07\x1b[2J\x1b[1;31mred\r\nFAKE\u2028  CommandSettled\u202ecod\u2066\u200b\x9b31m\x00\x85\ud800"
UUID_1 = UUID(int=1)


def command(intent: Intent = Pause(), **said: Any) -> Command:
    return Command.model_construct(**{"uuid": UUID_1, "author": "ada", "intent": intent, "reason": None} | said)


COMMANDS = {
    "reason": command(reason=EVIL),
    "author": command(author=EVIL),
    "label": command(SaveCheckpoint.model_construct(label=EVIL, note=EVIL)),
    "knob": command(SetKnobs.model_construct(changes=(Change.model_construct(knob=EVIL, value=1.0),))),
    "group": command(SetLearningRate.model_construct(value=1e-4, group=EVIL)),
    "pattern": command(Freeze.model_construct(parameters=EVIL)),
    "modules": command(ResetParameters.model_construct(modules=EVIL)),
    "action": command(RunAction.model_construct(name=EVIL, arguments={EVIL: EVIL})),
    "checkpoint": command(PinCheckpoint.model_construct(checkpoint=EVIL)),
    "rollback": command(Rollback.model_construct(checkpoint=EVIL)),
}
OUTCOMES: dict[str, CommandSettled] = {
    "rejected": CommandSettled(uuid=UUID_1, status="rejected", reason=EVIL),
    "cancelled": CommandSettled(uuid=UUID_1, status="cancelled", reason=f"cancelled by x: {EVIL}"),
    "applied": CommandSettled(
        uuid=UUID_1, status="applied", step=3, world_size=2, before={"a": EVIL, EVIL: 1}, after={"a": 2, EVIL: [EVIL]}
    ),
}
COMMITTED = CheckpointCommitted.model_construct(checkpoint=EVIL, step=1, generation=1, path="", label=EVIL, note=EVIL)
RECORDS: list[Record] = [
    RunCreated(run=EVIL, name=EVIL, author=EVIL, config_sha256=""),
    RunClosed(ending="failed", reason=EVIL),
    BranchStarted.model_construct(branch=EVIL, parent=EVIL, checkpoint=EVIL, step=1, rollback=UUID_1),
    BranchAdopted.model_construct(
        branch=EVIL, origin=Parent.model_construct(kind="adopted", run=EVIL, branch=EVIL, checkpoint=EVIL)
    ),
    COMMITTED,
    CheckpointFailed(checkpoint="c", step=1, generation=1, reason=EVIL),
    CheckpointDiscarded.model_construct(checkpoint=EVIL, reason=EVIL),
    GenerationLost(generation=1, step=1, deaths=(Death(rank=0, node=EVIL, reason=EVIL),)),
    GenerationRecovered(generation=1, step=1, lost_steps=1, phases_s={EVIL: 1.0}),
    GenerationEnded(generation=1, ending="failed", step=1, reason=EVIL),
    GenerationStarted.model_construct(
        uuid=UUID_1,
        generation=1,
        ranks=(),
        step=0,
        checkpoint=EVIL,
        refused=(RefusedCheckpoint.model_construct(checkpoint=EVIL, reason=EVIL),),
    ),
    CommandRepeated(uuid=UUID_1, generation=1, step=1, status="failed", reason=EVIL),
]


def entry(record: Record) -> Entry:
    return Entry.model_construct(seq=1, time="2026-11-28T00:00:00.000Z", record=record, about=None)


def view(asked: Command, settled: CommandSettled | None) -> CommandView:
    return CommandView.model_construct(
        command=asked, what=asked.describe(), status="x", accepted_seq=1, accepted_at=NOW, settled=settled
    )


def said_of_commands() -> list[tuple[str, str]]:
    said = []
    for name, asked in COMMANDS.items():
        known = {UUID_1: asked}
        said.append(
            (f"{name}, accepted", formatting.journal_line(entry(CommandAccepted.model_construct(command=asked)), known))
        )
        said.append((f"{name}, in the console", line(entry(CommandAccepted.model_construct(command=asked)), known)))
        said.append((f"{name}, not settled", formatting.outcome(view(asked, None))))
        for status, settled in OUTCOMES.items():
            told = [
                formatting.journal_line(entry(settled), known),
                formatting.settled_line(view(asked, settled)),
                formatting.outcome(view(asked, settled)),
                line(entry(settled), known),
                life(view(asked, settled)),
                *read_back(settled),
            ]
            said += [(f"{name}, {status}, {number}", each) for number, each in enumerate(told)]
    return said


def said_of_records() -> list[tuple[str, str]]:
    said = [(f"cell {number}", cell) for number, cell in enumerate(formatting.checkpoint_row(COMMITTED))]
    for record in RECORDS:
        said.append((record.type, formatting.journal_line(entry(record), {})))
        said.append((f"{record.type}, in the console", line(entry(record), {})))
    return said


def test_nothing_that_is_said_holds_a_character_that_is_obeyed() -> None:
    said = [*said_of_commands(), *said_of_records()]
    assert len(said) > 135
    assert [name for name, text in said if not text.isprintable()] == []
    assert all("ok" in text for _, text in said if "FAKE" in text), "the line is still the same line"


def test_what_is_printed_holds_none_either(capfd: pytest.CaptureFixture[str]) -> None:
    printing.tell(EVIL)
    printing.say(f"steer: {EVIL}")
    printing.say_log([f"\x1b[1;31mred{EVIL}"])
    printing.tell_json({"reason": EVIL, EVIL: 1})
    printing.tell_json(RunClosed(ending="failed", reason=EVIL.replace("\ud800", "") + "\x7f"))
    written = capfd.readouterr()
    lines = [*written.out.splitlines(), *written.err.splitlines()]
    assert len(lines) == 5
    assert all(each.isprintable() for each in lines)
    assert written.out.splitlines()[1].isascii()
    assert json.loads(written.out.splitlines()[2])["reason"] == EVIL.replace("\ud800", "") + "\x7f"
    assert written.err.splitlines()[1].startswith("redok")


def test_a_followed_run_as_json_is_ascii() -> None:
    class Said:
        def model_dump_json(self, exclude: Any = None) -> str:
            return json.dumps({"reason": "\u202e\x9b"}, ensure_ascii=False)

    told: list[str] = []
    JsonLines(told.append).show(Said())  # type: ignore[arg-type]
    assert told == ['{"reason": "\\u202e\\u009b"}']


def test_nobody_prints_past_the_one_place_that_cleans() -> None:
    """`printing` for the commands of `steer`; rich's console in `following`, which cleans what it is given."""
    found = []
    for path in sorted(Path(formatting.__file__).parents[1].rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if path.name != "printing.py" and called in ("typer.echo", "typer.secho", "click.echo", "print"):
                found.append(f"{path.name}:{getattr(node, 'lineno', 0)} {called}")
    assert found == []


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """An export that says hostile things of the machine that it comes from."""
    files = RunFiles(tmp_path / "other" / "run-1")
    files.logs.mkdir(parents=True)
    files.config.write_bytes(b"name: x\n")
    journal = Journal.open(files.journal, FAST)
    created = RunCreated(run="run-1", name="x", author="b", config_sha256=sha256(b"name: x\n").hexdigest())
    journal.append([created, TermStarted(term=1, recovered=0)], NOW)
    journal.close()
    export(files, tmp_path / "good.zip")
    with zipfile.ZipFile(tmp_path / "good.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members["manifest.json"])
    manifest["machine"]["python"] = "3.11\x1b]0;owned\x07\x1b[2J\nversions and hardware are the same"
    manifest["machine"]["packages"]["torch"] = "\x1b[8m\u202e"
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for name, data in (members | {"manifest.json": json.dumps(manifest).encode()}).items():
            archive.writestr(name, data)
    return tmp_path / "bad.zip"


def test_import_of_a_hostile_export_prints_no_escapes(hostile: Path, steer: Steer) -> None:
    answer = steer("journal", "import", "--check", str(hostile))
    assert "difference  " in answer.stdout
    assert all(each.isprintable() for each in answer.stdout.splitlines())
    assert "versions and hardware are the same" not in answer.stdout.splitlines()


def test_on_a_terminal_logs_are_cleaned_and_in_a_pipe_they_are_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def written(to: int, reader: int) -> bytes:
        with os.fdopen(to, "w") as stream, monkeypatch.context() as patched:
            patched.setattr("sys.stdout", stream)
            printing.tell_log(["\x1b[32mgreen\x1b[0m\tx\x1b]0;owned\x07"])
            stream.flush()
            return os.read(reader, 4096)

    reader, terminal = pty.openpty()
    assert written(terminal, reader).strip() == b"green   x ]0;owned"
    os.close(reader)
    reader, pipe = os.pipe()
    assert b"green" in written(pipe, reader)
    os.close(reader)
