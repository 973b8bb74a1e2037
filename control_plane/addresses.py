"""Where a client may send a secret: which hosts are this machine, and whom plain http or a local token may reach."""

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from control_plane.config import Role, Settings
from control_plane.core.model.errors import NotAllowed

PLAIN_URL = re.compile(r"https?://[A-Za-z0-9.\-_~%:\[\]]+(/[A-Za-z0-9.\-_~%/]*)?")
"""Nothing that two URL parsers could read differently: no user, no query, no backslash, no blank."""


def is_loopback(host: str) -> bool:
    """Whether a host can be reached from this machine only: 127.0.0.0/8, ::1, localhost.

    Odd spellings of an address (decimal, short) are not: a proxy and a resolver may read them differently.
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def plain_url(url: str) -> SplitResult | None:
    """The parts of an http or https address that every parser reads alike; None for any other text."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return None
    return parts if host and PLAIN_URL.fullmatch(url) else None


def is_in_the_clear(parts: SplitResult) -> bool:
    """Whether others could read what is sent there: plain http to another machine."""
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def token_of(settings: Settings, role: Role) -> str:
    """The token for the gateway in the settings: the one that is set, or that of this machine's own installation.

    Raises `NotAllowed` if there is none. The installation's own token is for its own gateway, and for no other
    machine that an address may name.
    """
    if settings.token:
        return settings.token
    parts = plain_url(settings.url or settings.gateway_url)
    host = (parts.hostname if parts else None) or ""
    if settings.url is not None and not is_loopback(host):
        raise NotAllowed(
            f"STEERWAY_URL names {host or 'no host'}, which is another machine, and the token of this machine's own "
            "installation is not sent there: set STEERWAY_TOKEN to a token of that gateway"
        )
    path = settings.token_file(role)
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise NotAllowed(f"no token at {path}: is a cluster up? start one with `steer up`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise NotAllowed(f"the token at {path} cannot be read ({type(error).__name__})") from None
