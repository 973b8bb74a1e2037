"""Console server: `python -m ui`, with the address and port of the settings. `steer console` prints a login link."""

import sys
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from control_plane.addresses import check_certificate
from control_plane.client import SteerwayClient
from control_plane.config import Settings, settings
from control_plane.core.model.errors import SteerwayError
from ui.login.middleware import LoginRequired

SCRIPT = Path(__file__).with_name("console.py")
TOKEN_CHECK_S = 4.0


def serve(where: Settings) -> None:
    """Serve the console until the process ends."""

    def check_token(token: str) -> None:
        with SteerwayClient(
            where.gateway_url,
            token,
            insecure=where.may_be_in_the_clear,
            ca=where.trusted_ca,
            timeout_s=TOKEN_CHECK_S,
        ) as client:
            client.runs()

    app = st.App(SCRIPT, middleware=[Middleware(LoginRequired, where=where, check_token=check_token)])
    tls = {}
    if where.tls_cert is not None and where.tls_key is not None:
        check_certificate(where.tls_cert, where.tls_key)
        tls = {"server.sslCertFile": str(where.tls_cert), "server.sslKeyFile": str(where.tls_key)}
    app.run(
        config=tls
        | {
            "server.address": where.host,
            "server.port": where.console_port,
            "server.headless": True,
            "server.fileWatcherType": "none",
            "server.allowedHosts": list(where.host_names),
            "browser.gatherUsageStats": False,
        }
    )


if __name__ == "__main__":
    try:
        serve(settings())
    except SteerwayError as error:
        sys.exit(f"steer: {error.reason}")
