"""Redacted text of exceptions, for logs, other ranks and the journal."""

from control_plane.storage.known_secrets import redaction_of
from ray_jobs.process import context


def error_text(error: BaseException) -> str:
    """Return an exception as redacted text: `ValueError: no such file`."""
    return without_secrets(f"{type(error).__name__}: {error}")


def without_secrets(text: str) -> str:
    """Return the text with the secrets of this rank's environment and of its run's config redacted.

    To be called before a text leaves this process: no other one knows its environment.
    """
    run = context.current()
    return redaction_of(run.files if run is not None else None).text(text)
