"""The tokens on the disk: private, whole, and mended when one is missing."""

import json
from pathlib import Path

import pytest

from control_plane.config import ROLES, Settings
from control_plane.core.errors import Damaged, NotFound
from control_plane.gateway.tokens import TokenBook, create_tokens, digest


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
