"""Upload of code bundles over HTTP: by our client and by hand, slow, broken off, two at once, too large, hostile."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from control_plane.api import bundles as limits
from control_plane.api.bundles import MAX_PIECE_BYTES
from control_plane.client import SteerwayClient
from control_plane.client import bundles as client_bundles
from control_plane.core.model.errors import Invalid, NotAllowed, Unavailable
from control_plane.gateway import app as front
from control_plane.gateway import bundles
from control_plane.storage.code.uploads import BundleUploads, bundle_path
from tests.gateway.conftest import Rig
from tests.gateway.rig import API, TOKENS, LiveGateway, bearer
from tests.storage.code.bundles import sha256_of, zip_of

SMALL = zip_of(("train.py", b"print()"))
LARGE = zip_of(("train.py", b"print()"), ("data.bin", bytes(range(256)) * 4 * 1024 * 9))
"""9 MiB: three pieces."""


@pytest.fixture
def client(live: LiveGateway) -> Iterator[SteerwayClient]:
    """Our client."""
    with SteerwayClient(live.url, TOKENS["operator"]) as found:
        yield found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The gateway's home."""
    return tmp_path / "home"


def file_of(tmp_path: Path, data: bytes) -> Path:
    """A bundle on the client's machine."""
    path = tmp_path / "code.zip"
    path.write_bytes(data)
    return path


def put(rig: Rig, data: bytes, sha256: str, **headers: str) -> Any:
    """Upload by hand."""
    return rig.web.put(f"{API}/bundles/{sha256}", headers=bearer() | headers, content=data)


def test_a_bundle_is_sent_in_pieces_and_only_once(
    client: SteerwayClient, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, seen = list[int](), list[tuple[int, int]]()
    send = client_bundles.CodeUploads._send
    monkeypatch.setattr(client_bundles.CodeUploads, "_send", lambda self, *given: sent.append(1) or send(self, *given))
    path = file_of(tmp_path, LARGE)
    sha256 = client.upload_bundle(path, lambda received, total: seen.append((received, total)))
    assert sha256 == sha256_of(LARGE)
    assert bundle_path(home, sha256).read_bytes() == LARGE
    assert len(sent) == 3
    assert seen[0] == (0, len(LARGE))
    assert seen[-1] == (len(LARGE), len(LARGE))
    assert client.upload_bundle(path) == sha256
    assert len(sent) == 3, "it was sent again"


def test_an_interrupted_upload_goes_on_where_it_was(client: SteerwayClient, tmp_path: Path, home: Path) -> None:
    here = BundleUploads(home, len(LARGE)).open_piece(sha256_of(LARGE), 0, len(LARGE))
    here.write(LARGE[:5_000_000])
    here.close()
    seen = list[int]()
    client.upload_bundle(file_of(tmp_path, LARGE), lambda received, total: seen.append(received))
    assert seen == [5_000_000, 5_000_000 + limits.PIECE_BYTES, len(LARGE)]
    assert bundle_path(home, sha256_of(LARGE)).read_bytes() == LARGE


def test_a_gateway_that_died_before_the_name_is_asked_to_finish(
    client: SteerwayClient, tmp_path: Path, home: Path
) -> None:
    here = BundleUploads(home, len(SMALL)).open_piece(sha256_of(SMALL), 0, len(SMALL))
    here.write(SMALL)
    here.close()
    client.upload_bundle(file_of(tmp_path, SMALL))
    assert bundle_path(home, sha256_of(SMALL)).read_bytes() == SMALL


def test_bytes_of_somebody_else_under_the_same_hash_cost_one_more_try(
    client: SteerwayClient, tmp_path: Path, home: Path
) -> None:
    here = BundleUploads(home, len(SMALL)).open_piece(sha256_of(SMALL), 0, len(SMALL))
    here.write(b"other bytes")
    here.close()
    client.upload_bundle(file_of(tmp_path, SMALL))
    assert bundle_path(home, sha256_of(SMALL)).read_bytes() == SMALL


def test_two_clients_upload_one_hash_at_once(live: LiveGateway, tmp_path: Path, home: Path) -> None:
    path, failed = file_of(tmp_path, LARGE), list[Exception]()

    def upload() -> None:
        try:
            with SteerwayClient(live.url, TOKENS["admin"]) as one:
                one.upload_bundle(path)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=upload) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []
    assert [found.name for found in (home / "bundles").iterdir()] == [f"{sha256_of(LARGE)}.zip"]


def test_200_mebibytes_are_refused_before_they_are_sent(
    client: SteerwayClient, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "code.zip"
    with path.open("wb") as file:
        file.truncate(200 * 1024 * 1024)
    monkeypatch.setattr(client_bundles.CodeUploads, "_send", lambda *_: pytest.fail("a piece was sent"))
    with pytest.raises(
        Invalid, match=r"the code bundle has 209,715,200 bytes; the limit of this gateway is 10,485,760"
    ):
        client.upload_bundle(path)
    assert not (home / "bundles").exists()


def test_a_gateway_refuses_200_mebibytes_by_itself(rig: Rig, home: Path) -> None:
    answer = put(rig, SMALL, "a" * 64, **{"Content-Range": f"bytes 0-{len(SMALL) - 1}/{200 * 1024 * 1024}"})
    assert answer.status_code == 413
    assert "the limit of this gateway is 10,485,760" in answer.json()["detail"]
    assert not (home / "bundles").exists()


def test_a_hostile_bundle_is_refused_with_the_reason(client: SteerwayClient, tmp_path: Path, home: Path) -> None:
    with pytest.raises(Invalid, match=r"its entry '\.\./evil' has a path that leaves its folder"):
        client.upload_bundle(file_of(tmp_path, zip_of(("../evil", b"x"))))
    assert list((home / "bundles").iterdir()) == []


@pytest.mark.parametrize("role", ["viewer", "agent"])
def test_other_roles_may_not_upload(live: LiveGateway, tmp_path: Path, home: Path, role: Any) -> None:
    with SteerwayClient(live.url, TOKENS[role]) as one, pytest.raises(NotAllowed):
        one.upload_bundle(file_of(tmp_path, SMALL))
    assert not home.exists()


def test_without_progress_the_client_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_bundles, "WITHOUT_PROGRESS_FOR_S", 0.2)
    monkeypatch.setattr(client_bundles, "RETRY_AFTER_S", 0.05)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with SteerwayClient(f"http://127.0.0.1:{port}", TOKENS["operator"]) as one, pytest.raises(Unavailable):
        one.upload_bundle(file_of(tmp_path, SMALL))


def test_by_hand_whole_or_in_pieces(rig: Rig) -> None:
    sha256 = sha256_of(SMALL)
    answer = put(rig, SMALL[:20], sha256, **{"Content-Range": f"bytes 0-19/{len(SMALL)}"})
    assert (answer.status_code, answer.json()["received_bytes"], answer.json()["complete"]) == (202, 20, False)
    assert rig.get(f"/bundles/{sha256}").json() == answer.json()
    wrong = put(rig, SMALL[:20], sha256, **{"Content-Range": f"bytes 0-19/{len(SMALL)}"})
    assert (wrong.status_code, wrong.json()["received_bytes"]) == (409, 20)
    answer = put(rig, SMALL[20:], sha256, **{"Content-Range": f"bytes 20-{len(SMALL) - 1}/{len(SMALL)}"})
    assert (answer.status_code, answer.json()["complete"]) == (201, True)
    assert put(rig, SMALL, sha256).status_code == 200
    other = zip_of(("other.py", b""))
    assert put(rig, other, sha256_of(other)).status_code == 201


@pytest.mark.parametrize(
    ("content_range", "status"),
    [
        ("bytes 0-9/5", 422),
        ("bytes 9-0/100", 422),
        ("bytes 0-99/100", 422),
        ("bytes 0-9/99999999999999999999", 422),
        ("0-9/100", 422),
        ("bytes 0-9/*", 422),
        ("bytes 0-9/11000000", 413),
        ("bytes */0", 422),
    ],
)
def test_malformed_ranges_are_refused(rig: Rig, home: Path, content_range: str, status: int) -> None:
    answer = put(rig, b"0123456789", "a" * 64, **{"Content-Range": content_range})
    assert answer.status_code == status
    assert not (home / "bundles").exists() or list((home / "bundles").iterdir()) == []


@pytest.mark.parametrize("sha256", ["a" * 63, "A" * 64, "..%2f" + "a" * 59, "a" * 65])
def test_malformed_hashes_are_refused(rig: Rig, sha256: str) -> None:
    assert put(rig, SMALL, sha256).status_code in (404, 422)


def test_too_large_a_piece_is_refused(rig: Rig) -> None:
    answer = put(rig, b"0" * (MAX_PIECE_BYTES + 1), "a" * 64)
    assert answer.status_code == 413
    assert "in pieces" in answer.json()["detail"]


def test_other_routes_keep_their_limits(rig: Rig) -> None:
    for method, path in (("POST", f"/bundles/{'a' * 64}"), ("PUT", "/bundles"), ("PUT", "/runs/run-1/commands")):
        answer = rig.web.request(method, API + path, headers=bearer(), content=b"0" * (front.MAX_BODY_BYTES + 1))
        assert answer.status_code == 413, (method, path)


def wait_for(client: SteerwayClient, received_bytes: int) -> None:
    """Wait until so much of the small bundle is here."""
    deadline = time.monotonic() + 5
    while client.bundle(sha256_of(SMALL)).received_bytes != received_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def connected(
    live: LiveGateway, length: int, total: int, token: str = TOKENS["operator"], first: int = 0
) -> http.client.HTTPConnection:
    """A connection that has announced a piece and sent nothing of it."""
    connection = http.client.HTTPConnection(urlsplit(live.url).netloc, timeout=10)
    connection.putrequest("PUT", f"{API}/bundles/{sha256_of(SMALL)}")
    for name, value in (
        ("Authorization", f"Bearer {token}"),
        ("Content-Length", str(length)),
        ("Content-Range", f"bytes {first}-{first + length - 1}/{total}"),
    ):
        connection.putheader(name, value)
    connection.endheaders()
    return connection


def test_a_slow_client_is_cut_off_and_may_continue(
    live: LiveGateway, client: SteerwayClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "deadline_s", lambda size_bytes: 0.3)
    slow = connected(live, len(SMALL), len(SMALL))
    slow.send(SMALL[:10])
    answer = slow.getresponse()
    assert (answer.status, answer.getheader("connection")) == (408, "close")
    assert b"continue with what is missing" in answer.read()
    assert client.bundle(sha256_of(SMALL)).received_bytes == 10
    client.upload_bundle(file_of(tmp_path, SMALL))


def test_a_client_that_goes_away_leaves_what_it_has_sent(live: LiveGateway, client: SteerwayClient) -> None:
    gone = connected(live, len(SMALL), len(SMALL))
    gone.send(SMALL[:10])
    wait_for(client, 10)
    gone.close()
    deadline = time.monotonic() + 5
    while True:  # until the request that held the bundle has ended
        again = connected(live, len(SMALL) - 10, len(SMALL), first=10)
        again.send(SMALL[10:])
        if (status := again.getresponse().status) == 201:
            break
        assert (status, time.monotonic() < deadline) == (409, True)


def test_a_bundle_that_another_request_uploads_is_not_written_twice(live: LiveGateway, client: SteerwayClient) -> None:
    held = connected(live, 10_000, 10_000)
    held.send(b"0")
    wait_for(client, 1)
    answer = connected(live, 10_000, 10_000).getresponse()
    assert answer.status == 409
    assert b"another request is uploading the same bundle" in answer.read()
    held.close()


def test_the_number_of_uploads_is_bounded(rig: Rig) -> None:
    rig.app.state.upload_slots = bundles.UploadSlots(in_all=0)
    answer = put(rig, SMALL, sha256_of(SMALL))
    assert answer.status_code == 429
    rig.app.state.upload_slots = bundles.UploadSlots(per_token=0)
    assert "open uploads of code bundles, the limit" in put(rig, SMALL, sha256_of(SMALL)).json()["detail"]


@pytest.mark.parametrize(("token", "status"), [("unknown", 401), (TOKENS["viewer"], 403)])
def test_the_body_of_who_may_not_upload_is_not_awaited(live: LiveGateway, token: str, status: int) -> None:
    answer = connected(live, MAX_PIECE_BYTES, MAX_PIECE_BYTES, token).getresponse()
    assert (answer.status, answer.getheader("connection")) == (status, "close")


def test_a_gateway_without_a_folder_says_so(rig: Rig) -> None:
    rig.app.state.uploads = None
    assert put(rig, SMALL, sha256_of(SMALL)).status_code == 503
