"""The tokens on the disk: private, whole, and mended when one is missing."""

import json
import logging
from pathlib import Path

import pytest

from control_plane.config import ROLES, Settings
from control_plane.core.model.errors import Damaged, Invalid, NotFound
from control_plane.gateway.tokens import TokenBook, TokenFile, add_token, create_tokens, digest


def mode(path: Path) -> int:
    """The permissions."""
    return path.stat().st_mode & 0o777


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    """Settings whose home does not exist yet."""
    return Settings(home=tmp_path / "home")


def test_tokens_are_made_once_per_role_and_found_again(home: Settings) -> None:
    assert create_tokens(home) == create_tokens(home) == TokenBook.from_file(home.tokens_file)
    book = TokenBook.from_file(home.tokens_file)
    for role in ROLES:
        identity = book.identify(home.token_file(role).read_text().strip())
        assert identity is not None
        assert (identity.id, identity.role) == (f"local-{role}", role)


def test_tokens_are_readable_by_their_owner_only(home: Settings) -> None:
    create_tokens(home)
    assert mode(home.tokens_file) == 0o600
    for role in ROLES:
        assert (mode(home.token_file(role)), mode(home.token_file(role).parent)) == (0o600, 0o700)


def test_tokens_are_private_from_their_first_moment(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "chmod", lambda path, mode: None)
    create_tokens(home)
    assert {mode(path) for path in (home.tokens_file, *map(home.token_file, ROLES))} == {0o600}


def test_tokens_that_others_could_read_are_closed_again(home: Settings) -> None:
    create_tokens(home)
    home.token_file("admin").chmod(0o644)
    create_tokens(home)
    assert mode(home.token_file("admin")) == 0o600


def test_list_of_tokens_holds_no_token(home: Settings) -> None:
    create_tokens(home)
    listed = home.tokens_file.read_text()
    assert not [role for role in ROLES if home.token_file(role).read_text().strip() in listed]
    assert sorted(path.name for path in home.home.rglob("*") if path.is_file()) == sorted([*ROLES, "tokens.json"])


def test_token_that_is_missing_is_made_anew_and_the_old_one_forgotten(home: Settings) -> None:
    create_tokens(home)
    old = home.token_file("viewer").read_text().strip()
    home.token_file("viewer").unlink()
    book = create_tokens(home)
    assert book.identify(old) is None
    assert book.identify(home.token_file("viewer").read_text().strip()) is not None


def test_list_that_was_lost_after_the_tokens_is_mended(home: Settings) -> None:
    before = create_tokens(home)
    home.tokens_file.unlink()
    assert create_tokens(home) == before


def test_tokens_of_other_people_are_kept(home: Settings) -> None:
    other = {"id": "ann", "role": "viewer", "sha256": digest("hers")}
    home.home.mkdir()
    home.tokens_file.write_text(json.dumps({"tokens": [other]}))
    create_tokens(home)
    identity = create_tokens(home).identify("hers")
    assert identity is not None
    assert identity.id == "ann"


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"tokens": [{"id": "a", "role": "king", "sha256": "0"}]}', '{"tokens": [{"id": "a"}]}', "\xff"],
)
def test_list_that_cannot_be_used_is_damaged_and_left_alone(home: Settings, text: str) -> None:
    home.home.mkdir()
    home.tokens_file.write_text(text, encoding="latin-1")
    with pytest.raises(Damaged):
        TokenBook.from_file(home.tokens_file)
    with pytest.raises(Damaged):
        create_tokens(home)
    assert home.tokens_file.read_text(encoding="latin-1") == text


def test_list_that_is_missing_is_not_found(home: Settings) -> None:
    with pytest.raises(NotFound, match="steer up"):
        TokenBook.from_file(home.tokens_file)


def listed(home: Settings, version: int | None, **record: object) -> Path:
    """A list with one token, whose text is its name."""
    home.home.mkdir(mode=0o700, exist_ok=True)
    told = {"id": "ann", "role": "operator", "sha256": digest("ann"), **record}
    home.tokens_file.write_text(json.dumps(({"version": version} if version else {}) | {"tokens": [told]}))
    home.tokens_file.chmod(0o600)
    return home.tokens_file


def test_list_leaves_out_runs_where_a_token_is_for_all_of_them(home: Settings) -> None:
    create_tokens(home)
    add_token(home, "ann", "viewer")
    add_token(home, "bob", "viewer", ("gpt2-*",))
    told = json.loads(home.tokens_file.read_text())
    assert told["version"] == 2
    assert [record.get("runs") for record in told["tokens"]] == [None] * (len(ROLES) + 1) + [["gpt2-*"]]
    assert all("runs" not in record for record in told["tokens"] if record["id"] != "bob")


def test_empty_list_of_runs_lets_nobody_in_and_says_so(home: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokens = TokenFile(listed(home, 2, runs=[]))
    assert tokens.identify("ann") is None
    assert "'ann' is valid for no run" in caplog.text
    assert "steer token revoke ann" in caplog.text
    listed(home, 2)
    identity = tokens.identify("ann")
    assert identity is not None
    assert identity.sees("any-run")
    with pytest.raises(Invalid, match="for no run"):
        add_token(home, "bob", "viewer", ())


def test_empty_list_of_runs_of_an_earlier_release_means_all_as_it_did_and_is_written_anew(home: Settings) -> None:
    for runs in ([], None):
        identity = TokenFile(listed(home, None, **({} if runs is None else {"runs": runs}))).identify("ann")
        assert identity is not None
        assert identity.sees("any-run")
    listed(home, None, runs=[])
    create_tokens(home)
    assert '"version": 2' in home.tokens_file.read_text()
    assert "runs" not in home.tokens_file.read_text()
    identity = TokenFile(home.tokens_file).identify("ann")
    assert identity is not None
    assert identity.sees("any-run")


@pytest.mark.parametrize("version", [1, 3])
def test_list_of_another_version_is_not_guessed_at(home: Settings, version: int) -> None:
    with pytest.raises(Damaged):
        TokenBook.from_file(listed(home, version, runs=[]))
