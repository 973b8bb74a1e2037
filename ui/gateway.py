"""Gateway client of the logged-in user, and error messages of pages."""

from pathlib import Path

import streamlit as st

from control_plane.addresses import token_of
from control_plane.client import SteerwayClient
from control_plane.config import Settings, settings
from control_plane.console_login import read_session
from control_plane.core.model.errors import NotAllowed, NotFound, SteerwayError, Unavailable
from ui.labels import sentence
from ui.login.middleware import SESSION_HEADER

TIMEOUT_S = 4.0
"""Timeout of requests to the gateway, after which a page shows an error and retries."""


def client() -> SteerwayClient:
    """Return the client of this page's user. Raises `NotAllowed` without a login, `Invalid` for bad settings."""
    where = settings()
    return _client(where.gateway_url, session_token(where), where.may_be_in_the_clear, where.trusted_ca)


def session_token(where: Settings) -> str:
    """Return the token of this page's session. Raises `NotAllowed` without a valid session or a token for it."""
    session = read_session(where, st.context.headers.get(SESSION_HEADER) or "")
    if session is None:
        raise NotAllowed("you are not logged in, or the login has expired: open the link that `steer console` prints")
    return session.token or token_of(where, session.role or "viewer")


def may_steer() -> bool:
    """Return whether this page's user may send commands, as far as the console knows.

    A session that was opened with a token of its own is not asked about: the gateway refuses what the token may not do.
    """
    session = read_session(settings(), st.context.headers.get(SESSION_HEADER) or "")
    return session is not None and session.role != "viewer"


@st.cache_resource(show_spinner=False, max_entries=32)
def _client(url: str, token: str, insecure: bool, ca: Path | None) -> SteerwayClient:
    """Return a client, with its connections, that all pages share; one for each token and address."""
    return SteerwayClient(url, token, insecure=insecure, ca=ca, timeout_s=TIMEOUT_S)


def explain(error: SteerwayError) -> str:
    """Return an error and its remedy, in Markdown."""
    if isinstance(error, Unavailable):
        return (
            f"**The gateway does not answer.** {_sentence(error.reason)} Training continues without it, and accepted "
            "commands stay accepted. This page retries by itself."
        )
    if isinstance(error, NotAllowed):
        return (
            f"**The gateway refuses this console's access.** {_sentence(error.reason)} `steer up` writes the tokens of "
            "a local cluster; for another cluster set `STEERWAY_URL` and `STEERWAY_TOKEN` before starting the console."
        )
    return _sentence(error.reason)


def banner(error: SteerwayError) -> None:
    """Show an error at the top of a page."""
    if isinstance(error, NotFound):
        st.warning(explain(error), icon=":material/search_off:")
    else:
        st.error(explain(error), icon=":material/cloud_off:")


def _sentence(reason: str) -> str:
    text = sentence(reason)
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?", "`")) else text + "."
