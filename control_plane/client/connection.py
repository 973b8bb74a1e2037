"""One client's connection to a gateway: address and token checked, requests with errors of the gateway's classes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import SplitResult, urlsplit

from control_plane.addresses import client_tls, is_in_the_clear, is_loopback, plain_url, token_of
from control_plane.api.patience import patience_of, retrying
from control_plane.client.answers import error_of, parse_json
from control_plane.config import Role, Settings
from control_plane.core.model.errors import Invalid, Unavailable
from control_plane.storage.layout import check_run_id

if TYPE_CHECKING:
    import httpx

API = "/api/v1"


class GatewayConnection:
    """Thread-safe connection to a gateway. Every call raises a `SteerwayError` and nothing else."""

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        insecure: bool = False,
        timeout_s: float = 10.0,
        patience_s: float = 0.0,
        ca: Path | None = None,
        context: str | None = None,
        transport: "httpx.BaseTransport | None" = None,
    ) -> None:
        """Prepare a client without connecting. Raises `Invalid` for a malformed address or token.

        Args:
            patience_s: how long an unanswered request is retried; submissions are always retried a few times.
            insecure: allow the token over plain http to another machine.
            ca: PEM file of the authorities that sign the gateway's certificate, in place of the system's.
            context: the name of the context that the address is from, for messages.
        """
        import httpx

        self._base_url = base_url.rstrip("/")
        self._token = _check_token(token)
        self._timeout_s, self._patience_s, self._context = timeout_s, patience_s, context
        self._tls = client_tls(ca)
        at = _check_url(self._base_url, insecure)
        self._http = httpx.Client(
            base_url=self._base_url + API,
            headers={"Authorization": f"Bearer {self._token}", "Accept": "application/json"},
            timeout=timeout_s,
            transport=transport,
            verify=self._tls or True,
            # The environment's proxy must not see the token: only https goes through it.
            trust_env=at.scheme == "https" and not is_loopback(at.hostname or ""),
        )

    @classmethod
    def from_settings(cls, settings: Settings, role: Role = "operator", *, timeout_s: float = 10.0) -> Self:
        """Return a client of the gateway in the settings. Raises `NotAllowed` if there is no token for this role."""
        return cls(
            settings.gateway_url,
            token_of(settings, role),
            timeout_s=timeout_s,
            insecure=settings.may_be_in_the_clear,
            patience_s=patience_of(settings),
            ca=settings.trusted_ca,
            context=settings.context,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _get_json(self, path: str, wait_s: float = 0.0, **params: Any) -> Any:
        params |= {"wait_s": wait_s} if wait_s else {}
        timeout_s = self._timeout_s + wait_s
        tries = retrying(1, self._patience_s, self._patience_s)
        return tries(self._request, "GET", path, params=params, timeout=timeout_s)

    def _request(self, method: str, path: str, **options: Any) -> Any:
        import httpx

        try:
            answer = self._http.request(method, path, **options)
        except httpx.TimeoutException:
            raise Unavailable(f"{self._at()} timed out; the request may or may not have taken effect") from None
        except httpx.ConnectError as error:
            raise self._no_answer(error) from None
        except httpx.HTTPError as error:
            raise Unavailable(f"the response of {self._at()} was interrupted ({type(error).__name__})") from None
        if answer.is_success:
            return parse_json(answer.content, self._base_url)
        raise error_of(answer, self._base_url)

    def _at(self) -> str:
        """Return the address for messages, with the context that it is from."""
        return f"{self._base_url} (context {self._context})" if self._context else self._base_url

    def _no_answer(self, error: Exception | None = None) -> Unavailable:
        if error is not None and "CERTIFICATE_VERIFY_FAILED" in str(error):
            return Unavailable(
                f"the certificate of {self._at()} is not trusted here: give its authority's PEM file with STEERWAY_CA, "
                "or `steer context add ... --ca FILE`"
            )
        return Unavailable(f"no gateway answers at {self._at()}; {self._remedy()}")

    def _remedy(self) -> str:
        if is_loopback(urlsplit(self._base_url).hostname or ""):
            return "start one with `steer up`, or check the tunnel to it"
        return "check the address, and that the gateway is up there"


def path_of(run: str, *below: str) -> str:
    """Return the path of a run's resource. Raises `Invalid` for a malformed run id."""
    return "/".join(("/runs", check_run_id(run), *below))


def _check_url(url: str, insecure: bool) -> SplitResult:
    """Return the parts of the address. Raises `Invalid` for a malformed one, or one that would expose the token."""
    parts = plain_url(url)
    if parts is None:
        raise Invalid(f"{url!r} is not a gateway address; use one like http://127.0.0.1:8700")
    if is_in_the_clear(parts) and not insecure:
        raise Invalid(
            f"{url} is plain http to another machine and would expose the token on the network: use https, or a "
            f"tunnel (ssh -L 8700:127.0.0.1:8700 {parts.hostname}) and http://127.0.0.1:8700; STEERWAY_INSECURE=1 "
            "sends it anyway"
        )
    return parts


def _check_token(token: str) -> str:
    """Return the token without surrounding white space. The error must not repeat it."""
    stripped = token.strip()
    if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise Invalid("the token is empty or contains invalid characters; copy it again")
    return stripped
