"""Address checks before a secret is sent: loopback hosts, plain http, and the scope of the local token."""

import re
import ssl
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from control_plane.config import Role, Settings
from control_plane.core.model.errors import Invalid, NotAllowed

PLAIN_URL = re.compile(r"https?://[A-Za-z0-9.\-_~%:\[\]]+(/[A-Za-z0-9.\-_~%/]*)?")
"""No user, query, backslash or blank: nothing that two URL parsers could read differently."""


def host_name(host: str) -> str:
    """Return the name in a Host header, without the port: `localhost:8700` -> `localhost`, `[::1]:8700` -> `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def is_loopback(host: str) -> bool:
    """Return whether a host is the loopback: 127.0.0.0/8, ::1, localhost.

    Odd spellings of an address (decimal, short) do not count: a proxy and a resolver may read them differently.
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def plain_url(url: str) -> SplitResult | None:
    """Return the parts of an unambiguous http or https URL; None for any other text."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return None
    return parts if host and PLAIN_URL.fullmatch(url) else None


def is_in_the_clear(parts: SplitResult) -> bool:
    """Return whether traffic could be read on the way: plain http to another machine."""
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def check_certificate(certificate: Path, key: Path) -> None:
    """Raise `Invalid` unless these PEM files hold a certificate and its private key, which only its owner can read."""
    try:
        if key.stat().st_mode & 0o077:
            raise Invalid(f"other users can read the private key {key}: chmod 600 it")
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except OSError as error:  # ssl.SSLError is one
        reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
        raise Invalid(
            f"{certificate} and {key} cannot be used for TLS: {str(reason).replace('_', ' ').lower()}"
        ) from None


def client_tls(ca: Path | None) -> ssl.SSLContext | None:
    """Return the TLS settings of a client that trusts the authorities in `ca`; None: the system's. Raises `Invalid`."""
    if ca is None:
        return None
    try:
        return ssl.create_default_context(cafile=str(ca))
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
        raise Invalid(f"{ca} holds no certificate that can be used: {str(reason).replace('_', ' ').lower()}") from None


def token_of(settings: Settings, role: Role) -> str:
    """Return the token for the gateway in the settings: the configured one, or this installation's own.

    Raises `NotAllowed` if there is none. The installation's own token is never sent to another machine.
    """
    if settings.token:
        return settings.token
    parts = plain_url(settings.gateway_url)
    host = (parts.hostname if parts else None) or ""
    if settings.url is not None and not is_loopback(host):
        raise NotAllowed(
            f"STEERWAY_URL names {host or 'no host'}, which is another machine; this installation's own token is not "
            "sent there: set STEERWAY_TOKEN to a token of that gateway"
        )
    path = settings.token_file(role)
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise NotAllowed(f"no token at {path}: is a cluster up? start one with `steer up`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise NotAllowed(f"the token at {path} cannot be read ({type(error).__name__})") from None
