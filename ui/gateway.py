"""The console's line to the gateway, as whoever is logged in, and what a page says when it is down."""

import streamlit as st

from control_plane.addresses import token_of
from control_plane.client import SteerwayClient
from control_plane.config import Settings, settings
from control_plane.console_login import read_session
from control_plane.core.model.errors import NotAllowed, NotFound, SteerwayError, Unavailable
from ui.labels import sentence
from ui.login.middleware import SESSION_HEADER

TIMEOUT_S = 4.0
"""A page that waits longer for the gateway feels dead; it says so and tries again."""


def client() -> SteerwayClient:
    """The client of whoever is logged in to this page. Raises `NotAllowed` for nobody, `Invalid` for bad settings."""
    found = settings()
    return _client(found.gateway_url, session_token(found), found.may_be_in_the_clear)


def session_token(found: Settings) -> str:
    """The token of this page's session. Raises `NotAllowed` if there is no living session, or no token for it."""
    session = read_session(found, st.context.headers.get(SESSION_HEADER) or "")
    if session is None:
        raise NotAllowed("this page has no login, or it is over: open the link that `steer console` prints")
    return session.token or token_of(found, session.role or "viewer")


@st.cache_resource(show_spinner=False, max_entries=32)
def _client(url: str, token: str, insecure: bool) -> SteerwayClient:
    """One client, with its connections, for all pages; a new token or address makes a new one."""
    return SteerwayClient(url, token, insecure=insecure, timeout_s=TIMEOUT_S)


def explain(error: SteerwayError) -> str:
    """What is wrong and what to do about it."""
    if isinstance(error, Unavailable):
        return (
            f"**The gateway does not answer.** {_sentence(error.reason)} Training goes on without it, and what was "
            "accepted stays accepted. This page tries again by itself."
        )
    if isinstance(error, NotAllowed):
        return (
            f"**The gateway does not let this console in.** {_sentence(error.reason)} `steer up` writes the tokens of "
            "a local cluster; for another cluster set `STEERWAY_URL` and `STEERWAY_TOKEN` before starting the console."
        )
    return _sentence(error.reason)


def banner(error: SteerwayError) -> None:
    """Show what is wrong, in place of or above what a page would show."""
    if isinstance(error, NotFound):
        st.warning(explain(error), icon=":material/search_off:")
    else:
        st.error(explain(error), icon=":material/cloud_off:")


def _sentence(reason: str) -> str:
    said = sentence(reason)
    said = said[:1].upper() + said[1:]
    return said if said.endswith((".", "!", "?", "`")) else said + "."
