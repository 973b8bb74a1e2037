"""Settings of the cluster, the gateway and their clients, typed.

A flag overrides the environment (`STEERWAY_*`), which overrides the default. Nothing here reads a file: ports and
processes of a running cluster are in `Settings.cluster_file`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from control_plane.core.model.errors import Invalid

Role = Literal["viewer", "operator", "agent", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "agent", "admin")


WILDCARDS = ("0.0.0.0", "::")
"""Bind addresses that mean every interface; nobody can be reached at them."""

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
"""Names of this machine that a forwarded port (`ssh -L`, `kubectl port-forward`) is reached by."""

INGEST_MAX_BYTES = 16 * 1024 * 1024
"""A request's records are held in memory while they are checked."""

AGENT_MODEL = "o4-mini"
AGENT_PRICES = (1.10, 4.40)
"""List prices of `AGENT_MODEL` in US dollars for a million tokens of prompt and of completion, in 2026."""

AGENT_MAX_COST = 5.0
"""Budget of a run for `AGENT_MODEL` in US dollars, unless another one is set."""

Port = Annotated[int, Field(ge=1, le=65535)]
Money = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Paths, addresses and ports of this installation. Each field is an environment variable, `STEERWAY_<FIELD>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(
        default_factory=lambda: Path.home() / ".steerway",
        description="folder of runs, tokens, keys and logs; on a cluster, one folder that all nodes see",
    )
    host: str = Field(
        default="127.0.0.1", description="address that gateway and console bind; 0.0.0.0 is every interface"
    )
    public_names: tuple[str, ...] = Field(
        default=(),
        description="further host names, comma-separated, by which clients and browsers reach gateway and console: "
        "those of a service, an ingress, a machine; the first is used in links",
    )
    gateway_port: Port = Field(default=8700, description="port of the gateway")
    console_port: Port = Field(default=8701, description="port of the console")
    ray_host: str | None = Field(
        default=None, description="address by which Ray's nodes reach its head; by default that of `host`"
    )
    ray_port: Port = Field(default=6379, description="port of Ray's head (GCS)")
    dashboard_host: str | None = Field(
        default=None, description="address of Ray's dashboard and Jobs API; by default that of `ray_host`"
    )
    dashboard_port: Port = Field(default=8265, description="port of Ray's dashboard and Jobs API")
    tls_cert: Path | None = Field(default=None, description="PEM certificate with which gateway and console serve TLS")
    tls_key: Path | None = Field(default=None, description="PEM private key of `tls_cert`, mode 0600")
    bundle_max_bytes: int = Field(
        default=100 * 1024 * 1024,
        ge=1024,
        le=1 << 30,
        description="size in bytes of the largest code bundle that the gateway accepts",
    )
    ingest_max_bytes: int = Field(
        default=INGEST_MAX_BYTES,
        ge=1024,
        le=1 << 30,
        description="size in bytes of the largest request that brings records for a live source",
    )
    agent_model: str = Field(
        default=AGENT_MODEL, min_length=1, max_length=200, description="model that the runs' agents ask"
    )
    agent_base_url: str | None = Field(
        default=None,
        description="endpoint of that model, any that speaks OpenAI's chat completions; `OPENAI_BASE_URL` sets it, "
        "too. Its key is `OPENAI_API_KEY`, or the file `openai-key` in the home (mode 0600)",
    )
    agent_max_calls: int = Field(default=2000, ge=0, description="calls that one run's agent may make")
    agent_max_tokens: int = Field(
        default=5_000_000, ge=0, description="tokens, of prompts and answers, that one run's agent may use"
    )
    agent_max_cost: Money | None = Field(
        default=None,
        description="money that one run's agent may spend, in the currency of the prices; 5 dollars for the default "
        "model. For another model both prices must be set",
    )
    agent_prompt_price: Money | None = Field(
        default=None, description="price of a million tokens of prompt; known for the default model"
    )
    agent_completion_price: Money | None = Field(
        default=None, description="price of a million tokens of answers; known for the default model"
    )
    url: str | None = Field(default=None, description="gateway to connect to; by default this installation's own")
    token: str | None = Field(default=None, repr=False, description="token for the gateway")
    insecure: bool = Field(default=False, description="the token may go over plain http to the machine in `url`")
    ca: Path | None = Field(default=None, description="PEM file of the authorities that sign the gateway's certificate")
    context: str | None = Field(default=None, description="named gateway to connect to, see `steer context`")

    @field_validator("public_names", mode="before")
    @classmethod
    def _split_names(cls, names: object) -> object:
        return tuple(name.strip() for name in names.split(",") if name.strip()) if isinstance(names, str) else names

    @field_validator("public_names")
    @classmethod
    def _names_have_no_port(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [name for name in names if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9a-fA-F:]+", name)]:
            raise ValueError(f"{wrong[0]!r} is not a host name: give names without scheme, port and path")
        return tuple(name.lower() for name in names)

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together; only one is given")
        return self

    @model_validator(mode="after")
    def _prices_are_known_where_cost_is_limited(self) -> Self:
        if (self.agent_prompt_price is None) != (self.agent_completion_price is None):
            raise ValueError("agent_prompt_price and agent_completion_price belong together; only one is given")
        if self.agent_max_cost is not None and self.agent_prices is None:
            raise ValueError(
                f"agent_max_cost cannot be kept: the prices of {self.agent_model!r} are not known; set "
                "STEERWAY_AGENT_PROMPT_PRICE and STEERWAY_AGENT_COMPLETION_PRICE"
            )
        return self

    @property
    def agent_prices(self) -> tuple[float, float] | None:
        """Prices of a million tokens of prompt and of completion; None if they are not known."""
        if self.agent_prompt_price is not None and self.agent_completion_price is not None:
            return self.agent_prompt_price, self.agent_completion_price
        return AGENT_PRICES if self.agent_model == AGENT_MODEL else None

    @property
    def agent_cost_limit(self) -> float | None:
        """Money that one run's agent may spend; None: no limit but those of calls and tokens."""
        if self.agent_max_cost is not None:
            return self.agent_max_cost
        return AGENT_MAX_COST if self.agent_prices == AGENT_PRICES else None

    @property
    def agent_key_file(self) -> Path:
        """The model's key for a gateway without `OPENAI_API_KEY` in its environment. Mode 0600."""
        return self.home / "openai-key"

    @property
    def runs_dir(self) -> Path:
        """Folder of all runs, one folder each; see `storage.layout.RunFiles`."""
        return self.home / "runs"

    @property
    def signing_key(self) -> Path:
        """The key with which this installation signs checkpoints and configs; see `storage.signing`."""
        return self.home / "checkpoint-key"

    @property
    def cluster_file(self) -> Path:
        """Record of the cluster started by `steer up` (JSON)."""
        return self.home / "cluster.json"

    @property
    def tokens_file(self) -> Path:
        """The gateway's list of tokens: id, role and SHA-256, never the token itself. Mode 0600."""
        return self.home / "tokens.json"

    @property
    def webhooks_file(self) -> Path:
        """Receivers of messages about alerts, with their secrets; see `gateway.health.webhooks`. Mode 0600."""
        return self.home / "webhooks.json"

    @property
    def contexts_file(self) -> Path:
        """Named gateways of this user, with their tokens; see `control_plane.contexts`. Mode 0600."""
        return self.home / "contexts.json"

    def token_file(self, role: Role) -> Path:
        """Return the path of this role's local token, mode 0600."""
        return self.home / "tokens" / role

    @property
    def host_names(self) -> tuple[str, ...]:
        """Host names by which gateway and console accept requests, without ports."""
        bound = () if self.host in WILDCARDS else (self.host,)
        return tuple(dict.fromkeys((*bound, *LOOPBACK_NAMES, *self.public_names)))

    @property
    def origins(self) -> tuple[str, ...]:
        """Origins of the console's and the gateway's own pages: those of their addresses, and of an ingress."""
        ports = (self.console_port, self.gateway_port)
        own = [f"{self._scheme}://{_bracketed(name)}:{port}" for name in self.host_names for port in ports]
        public = [f"{scheme}://{name}" for name in map(_bracketed, self.public_names) for scheme in ("http", "https")]
        return tuple(own + public)

    @property
    def gateway_url(self) -> str:
        """Base URL of the gateway that clients connect to."""
        return self.url or self.own_gateway_url

    @property
    def own_gateway_url(self) -> str:
        """Base URL of this installation's gateway, for clients on this machine."""
        return f"{self._scheme}://{_bracketed(self._own_host)}:{self.gateway_port}"

    @property
    def trusted_ca(self) -> Path | None:
        """PEM file with which a client checks the gateway's certificate; None: the system's authorities."""
        return self.ca or (self.tls_cert if self.url is None else None)

    @property
    def may_be_in_the_clear(self) -> bool:
        """True if the token may be sent over plain http: to the own gateway, or where the user allows it."""
        return self.insecure or self.url is None

    @property
    def console_url(self) -> str:
        """Base URL of the console, as in links for people: by the first public name, if there is one."""
        name = self.public_names[0] if self.public_names else self._own_host
        return f"{self._scheme}://{_bracketed(name)}:{self.console_port}"

    @property
    def own_console_url(self) -> str:
        """Base URL of the console, for programs on this machine."""
        return f"{self._scheme}://{_bracketed(self._own_host)}:{self.console_port}"

    @property
    def own_gateway_health_url(self) -> str:
        """URL that answers 200 while the gateway works, for programs on this machine; no token is needed."""
        return f"{self.own_gateway_url}/api/v1/health"

    @property
    def own_console_health_url(self) -> str:
        """URL that answers 200 while the console works, for programs on this machine; no token is needed."""
        return f"{self.own_console_url}/_stcore/health"

    @property
    def head_host(self) -> str:
        """The address by which Ray's nodes reach its head."""
        return self.ray_host or ("127.0.0.1" if self.host in WILDCARDS else self.host)

    @property
    def ray_address(self) -> str:
        """The head node's address for `ray.init`."""
        return f"{_bracketed(self.head_host)}:{self.ray_port}"

    @property
    def dashboard_address(self) -> str:
        """The address that Ray's dashboard binds."""
        return self.dashboard_host or self.head_host

    @property
    def dashboard_url(self) -> str:
        """Ray's dashboard, which also serves the Ray Jobs API."""
        return f"http://{_bracketed(self.dashboard_address)}:{self.dashboard_port}"

    @property
    def _scheme(self) -> str:
        return "https" if self.tls_cert is not None else "http"

    @property
    def _own_host(self) -> str:
        """The name for this machine's own clients; with TLS, one that the certificate can hold."""
        if self.tls_cert is not None and self.public_names:
            return self.public_names[0]
        return "127.0.0.1" if self.host in WILDCARDS else self.host

    def environment(self) -> dict[str, str]:
        """Return these settings as environment variables for a child process, without the token."""
        values = self.model_dump(mode="json", exclude={"token", "insecure", "context"}, exclude_none=True)
        values |= {"public_names": ",".join(self.public_names)}
        return {f"STEERWAY_{name.upper()}": str(value) for name, value in values.items() if value != ""}


def _bracketed(host: str) -> str:
    """Return a host as in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def settings(environ: Mapping[str, str] = os.environ, **flags: object) -> Settings:
    """Return the settings in force. Raises `Invalid`, naming the variable, if one is malformed."""
    from_environ = {
        name: environ[f"STEERWAY_{name.upper()}"]
        for name in Settings.model_fields
        if environ.get(f"STEERWAY_{name.upper()}")
    }
    if environ.get("OPENAI_BASE_URL"):
        from_environ.setdefault("agent_base_url", environ["OPENAI_BASE_URL"])
    try:
        given = {name: value for name, value in flags.items() if value is not None}
        return Settings.model_validate(from_environ | given)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise Invalid(f"settings: {reason}") from None
        name = str(first["loc"][0])
        raise Invalid(f"STEERWAY_{name.upper()}={first['input']!r}: {reason}") from None
