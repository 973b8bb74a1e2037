"""Every transcript ends as it is written. STEERWAY_REWRITE=1 writes them anew: read the difference before you keep it.

A transcript is a list of scenes, parted by an empty line: directives, then `----`, then everything that was printed.
"""

import difflib
import json
import os
import re
from pathlib import Path
from typing import get_args

import pytest

from control_plane.core.model.commands import Intent
from control_plane.core.model.records import Record, Status
from tests.scenarios.stage import Stage

FOLDER = Path(__file__).parent
TRANSCRIPTS = sorted(FOLDER.glob("*.txt"))
RECORDED = re.compile(r"#\d+ (?P<type>[A-Za-z]+)(?: [\d.]+)? (?P<body>\{.*\})")
REWRITE = os.environ.get("STEERWAY_REWRITE") == "1"


def play(transcript: str) -> str:
    """The transcript with what is really printed. Lines that begin with `#` above the first scene are its title."""
    stage, scenes = Stage(), []
    for scene in transcript.strip().split("\n\n"):
        script = scene.split("\n----")[0].splitlines()
        if all(line.startswith("#") for line in script):
            scenes.append("\n".join(script))
            continue
        printed = [line for directive in script for line in stage.play(directive)]
        scenes.append("\n".join([*script, "----", *printed]))
    return "\n\n".join(scenes) + "\n"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript_ends_as_it_is_written(path: Path) -> None:
    written = path.read_text(encoding="utf-8")
    played = play(written)
    if REWRITE:
        path.write_text(played, encoding="utf-8")
    elif played != written:
        difference = difflib.unified_diff(written.splitlines(), played.splitlines(), "written", "played", lineterm="")
        pytest.fail("\n".join(difference), pytrace=False)


def recorded() -> tuple[set[str], set[str], set[str]]:
    """Which kinds of intents, types of records and statuses some transcript shows in its journal."""
    kinds, types, statuses = set[str](), set[str](), set[str]()
    for path in TRANSCRIPTS:
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = RECORDED.fullmatch(line)
            if entry is not None:
                body = json.loads(entry["body"])
                types.add(entry["type"])
                kinds |= {body["kind"]} if entry["type"] == "CommandAccepted" else set()
                statuses |= {body["status"]} if entry["type"] == "CommandSettled" else set()
    return kinds, types, statuses


def test_every_kind_of_intent_every_type_of_record_and_every_status_is_in_a_transcript() -> None:
    """As a line of a journal: that a word is asked for, or refused, is not enough."""
    kinds, types, statuses = recorded()
    assert kinds == {intent.model_fields["kind"].default for intent in get_args(get_args(Intent)[0])}
    assert types == {record.model_fields["type"].default for record in get_args(get_args(Record)[0])}
    assert statuses == set(get_args(Status))


def test_transcript_that_is_wrong_is_noticed() -> None:
    sound = TRANSCRIPTS[0].read_text(encoding="utf-8")
    assert play(sound) == sound or REWRITE
    assert play(sound.replace("\n#1 RunCreated", "\n#1 RunInvented")) == play(sound)
