"""Messages and limits of the upload of code bundles, which gateway and client share."""

from control_plane.core.model.intent_base import Message

MAX_BUNDLE_BYTES = 100 * 1024 * 1024
"""Default limit of a bundle's size; a gateway's own is `STEERWAY_BUNDLE_MAX_BYTES`."""

MAX_PIECE_BYTES = 8 * 1024 * 1024
"""A bundle is sent in pieces, one request each: Ray Serve's proxy reads ahead of the gateway without a limit, so that a
request is the unit of what it may hold in memory."""

PIECE_BYTES = 4 * 1024 * 1024
"""Size of the pieces that our client sends."""

BASE_DEADLINE_S, DEADLINE_S_PER_MIB = 10.0, 10.0
"""A slower client than 100 KiB/s is cut off after a piece; what it has sent stays, and it may go on."""


class BundleView(Message):
    """State of a code bundle at a gateway. Of an incomplete one, the next piece begins at `received_bytes`."""

    sha256: str
    received_bytes: int
    complete: bool
    max_bytes: int


def deadline_s(size_bytes: int) -> float:
    """Return how long a piece of this size may take."""
    return BASE_DEADLINE_S + DEADLINE_S_PER_MIB * size_bytes / (1 << 20)
