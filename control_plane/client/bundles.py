"""Client of the bundle routes: skips what is there, continues what was interrupted, and sends the rest in pieces."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from control_plane.api.bundles import PIECE_BYTES, BundleView, deadline_s
from control_plane.client.answers import parse
from control_plane.client.connection import GatewayConnection
from control_plane.core.model.errors import Conflict, Invalid, Overloaded, Unavailable

WITHOUT_PROGRESS_FOR_S = 60.0
"""How long an upload that gets nowhere is tried again: a gateway restarts, or another client sends the same bundle."""

RETRY_AFTER_S = 1.0

Progress = Callable[[int, int], None]


class CodeUploads(GatewayConnection):
    """Uploads code bundles."""

    def upload_bundle(self, path: Path, progress: Progress | None = None) -> str:
        """Upload a bundle and return its SHA-256. Idempotent; only what is missing is sent.

        `progress` is called with the bytes that the gateway has, and those of the whole.
        Raises `Invalid` for a bundle that the gateway refuses, `NotAllowed`, or `Unavailable` if there was no progress
        for `WITHOUT_PROGRESS_FOR_S`.
        """
        try:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                self._upload(file, sha256, path.stat().st_size, progress or (lambda received, total: None))
        except OSError as error:
            raise Invalid(f"{path} cannot be read: {error.strerror or error}") from None
        return sha256

    def bundle(self, sha256: str) -> BundleView:
        """Return how much of a bundle the gateway has."""
        return parse(BundleView, self._get_json(f"/bundles/{sha256}"))

    def _upload(self, file: BinaryIO, sha256: str, total_bytes: int, progress: Progress) -> None:
        most_bytes, moved_at, repeated = -1, time.monotonic(), False
        while True:
            try:
                view = self.bundle(sha256)
                if total_bytes > view.max_bytes:
                    raise Invalid(
                        f"the code bundle has {total_bytes:,} bytes; the limit of this gateway is {view.max_bytes:,}"
                    )
                progress(min(view.received_bytes, total_bytes), total_bytes)
                while not view.complete:
                    if view.received_bytes > most_bytes:
                        most_bytes, moved_at = view.received_bytes, time.monotonic()
                    view = self._send(file, view, total_bytes)
                    progress(min(view.received_bytes, total_bytes), total_bytes)
                return
            except (Conflict, Overloaded, Unavailable):
                if time.monotonic() - moved_at > WITHOUT_PROGRESS_FOR_S:
                    raise
                time.sleep(RETRY_AFTER_S)
            except Invalid as refusal:
                # Somebody else has sent other bytes under this hash, and all were deleted: once more from the start.
                if repeated or not refusal.detail.get("wrong_hash"):
                    raise
                repeated, most_bytes = True, -1

    def _send(self, file: BinaryIO, view: BundleView, total_bytes: int) -> BundleView:
        offset = view.received_bytes if view.received_bytes <= total_bytes else 0
        file.seek(offset)
        piece = file.read(PIECE_BYTES)
        where = f"{offset}-{offset + len(piece) - 1}" if piece else "*"
        headers = {"Content-Range": f"bytes {where}/{total_bytes}", "Content-Type": "application/zip"}
        path, timeout_s = f"/bundles/{view.sha256}", self._timeout_s + deadline_s(len(piece))
        return parse(BundleView, self._request("PUT", path, content=piece, headers=headers, timeout=timeout_s))
