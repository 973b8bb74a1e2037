"""Command lines in the documents parse, links and paths exist, and the documents stay short."""

from pathlib import Path

import pytest

from tests.architecture.documents import (
    COMMANDS,
    DOCUMENTS,
    QUICKSTART,
    README,
    bash_lines,
    commands,
    dead_links,
    reason_against,
    unknown_options,
)
from tests.architecture.test_words import retired_words
from tests.architecture.tree import DOCUMENT, ROOT

MAX_LINES = {README: 130, DOCUMENT: 220}
MAX_LINE_CHARS = 160
MAX_PICTURE_BYTES = 300_000


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_command_lines_parse_and_paths_exist(document: Path) -> None:
    lines = bash_lines(document.read_text(encoding="utf-8"))
    reasons = {" ".join(words): reason_against(words) for words in lines}
    assert {line: reason for line, reason in reasons.items() if reason} == {}
    assert list(dead_links(document)) == []
    assert list(unknown_options(document.read_text(encoding="utf-8"))) == []


def test_readme_and_quickstart_have_command_lines() -> None:
    for document in (README, QUICKSTART):
        programs = {words[0] for words in bash_lines(document.read_text(encoding="utf-8"))}
        assert {"steer", "make"} <= programs


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("steer set lr=1e-4 --reasn typo", "No such option"),
        ("steer rolback good", "No such command"),
        ("steer token make ann --role viewer", "No such command"),
        ("steer save --label", "requires an argument"),
        ("steer save run-1 too-many", "unexpected extra argument"),
        ("steer submit configs/no-such-config.yaml", "there is no configs/no-such-config.yaml"),
        ("make rum", "no target rum"),
        ("make run UNATTENDD=1", "no variable UNATTENDD"),
        ("python -m benchmark --list", "no module is named benchmark"),
        ("steerr up", "not known"),
    ],
)
def test_planted_wrong_line_is_found(line: str, reason: str) -> None:
    (words,) = bash_lines(f"```bash\n{line}   # a comment\n```")
    assert reason.casefold() in (reason_against(words) or "").casefold()


def test_planted_unknown_commands_and_options_in_a_sentence_are_found() -> None:
    text = "`steer sett RUN`, `steer set RUN --reasn TEXT`, `steer journal RUN --follow`, `steer key list`"
    assert list(unknown_options(text)) == ["steer sett RUN", "steer set RUN --reasn TEXT"]


def test_planted_dead_link_and_path_are_found(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("[gone](gone.md), [here](page.md), `ui/gone.py`, `ui/console.py`, [web](https://host/x),\n")
    document.write_text(document.read_text() + "`model/gone.py`, `model/records.py`, `boundary.py`\n")
    assert list(dead_links(document)) == ["gone.md", "ui/gone.py", "ui/gone.py", "model/gone.py"]


def test_every_command_is_documented() -> None:
    text = COMMANDS.read_text(encoding="utf-8")
    assert [command for command in commands() if command not in text] == []


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path.parent.name != "decisions"], ids=lambda path: path.name
)
def test_documents_use_the_words_of_the_glossary(document: Path) -> None:
    lines = document.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line[:120]}" for number, line in enumerate(lines, 1) if any(retired_words(line))] == []


def test_planted_retired_words_are_found() -> None:
    assert list(retired_words("Nothing stands on it any more.")) == [("stands on it", "depends on it")]
    assert list(retired_words("warehouse")) == []


def test_readme_and_architecture_stay_short() -> None:
    for document, limit in MAX_LINES.items():
        lines = document.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= limit, document
        assert [line for line in lines if len(line) > MAX_LINE_CHARS] == []
    assert (ROOT / "docs" / "console.png").stat().st_size <= MAX_PICTURE_BYTES
