"""Console server: `python -m ui`, with the address and port of the settings. `steer console` prints a login link."""

import sys
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from control_plane.client import SteerwayClient
from control_plane.config import Settings, settings
from control_plane.core.model.errors import SteerwayError
from ui.login.middleware import LoginRequired

SCRIPT = Path(__file__).with_name("console.py")
TOKEN_CHECK_S = 4.0


def serve(where: Settings) -> None:
    """Serve the console until the process ends."""

    def check_token(token: str) -> None:
        insecure = where.may_be_in_the_clear
        with SteerwayClient(where.gateway_url, token, insecure=insecure, timeout_s=TOKEN_CHECK_S) as client:
            client.runs()

    app = st.App(SCRIPT, middleware=[Middleware(LoginRequired, where=where, check_token=check_token)])
    app.run(
        config={
            "server.address": where.host,
            "server.port": where.console_port,
            "server.headless": True,
            "server.fileWatcherType": "none",
            "server.allowedHosts": list(dict.fromkeys((where.host, "127.0.0.1", "localhost", "::1"))),
            "browser.gatherUsageStats": False,
        }
    )


if __name__ == "__main__":
    try:
        serve(settings())
    except SteerwayError as error:
        sys.exit(f"steer: {error.reason}")
