"""How an exception of a script or a library is told: its kind and its text, without the secrets that are known here."""

from control_plane.storage.known_secrets import redaction_of
from ray_jobs import context


def told(error: BaseException) -> str:
    """`ValueError: no such file`. It goes to other ranks and to the journal: what this process knows to be secret is
    hidden before, since only here its environment is known."""
    return without_secrets(f"{type(error).__name__}: {error}")


def without_secrets(text: str) -> str:
    """A text that this rank is about to tell, without what is secret in its environment and its run's config."""
    run = context.current()
    return redaction_of(run.files if run is not None else None).text(text)
