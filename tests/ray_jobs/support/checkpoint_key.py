"""What the ranks of a checkpoint test and the test itself must both know, without importing a framework."""

from control_plane.storage.checkpoint.store import SigningKey

KEY_BYTES = b"0123456789abcdef0123456789abcdef"
KEY = SigningKey(KEY_BYTES)
KEY_TEXT = KEY_BYTES.hex() + "\n"
"""Content of a key file."""
STEPS = 4
