"""What the ranks of a checkpoint test and the test itself must both know, without importing a framework."""

from control_plane.storage.checkpoint.store import SigningKey

KEY = SigningKey(b"0123456789abcdef0123456789abcdef")
STEPS = 4
