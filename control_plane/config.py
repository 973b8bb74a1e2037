"""Settings of the cluster, the gateway and their clients, typed.

A flag overrides the environment (`STEERWAY_*`), which overrides the default. Nothing here reads a file: ports and
processes of a running cluster are in `Settings.cluster_file`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from control_plane.core.model.errors import Invalid

Role = Literal["viewer", "operator", "agent", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "agent", "admin")


class Settings(BaseModel):
    """Paths, addresses and ports of this installation. Ports are bound on `host`, by default the loopback."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(default_factory=lambda: Path.home() / ".steerway")
    host: str = "127.0.0.1"
    gateway_port: int = Field(default=8700, ge=1, le=65535)
    console_port: int = Field(default=8701, ge=1, le=65535)
    ray_port: int = Field(default=6379, ge=1, le=65535)
    dashboard_port: int = Field(default=8265, ge=1, le=65535)
    url: str | None = None
    token: str | None = Field(default=None, repr=False)
    insecure: bool = Field(default=False, description="the token may go over plain http to the machine in `url`")

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

    def token_file(self, role: Role) -> Path:
        """Return the path of this role's local token, mode 0600."""
        return self.home / "tokens" / role

    @property
    def gateway_url(self) -> str:
        """Base URL of the gateway."""
        return self.url or f"http://{self.host}:{self.gateway_port}"

    @property
    def may_be_in_the_clear(self) -> bool:
        """True if the token may be sent over plain http: to the own gateway, or where the user allows it."""
        return self.insecure or self.url is None

    @property
    def console_url(self) -> str:
        """Base URL of the console."""
        return f"http://{self.host}:{self.console_port}"

    @property
    def ray_address(self) -> str:
        """The head node's address for `ray.init`."""
        return f"{self.host}:{self.ray_port}"

    @property
    def dashboard_url(self) -> str:
        """Ray's dashboard, which also serves the Ray Jobs API."""
        return f"http://{self.host}:{self.dashboard_port}"

    def environment(self) -> dict[str, str]:
        """Return these settings as environment variables for a child process, without the token."""
        values = self.model_dump(mode="json", exclude={"token", "insecure"}, exclude_none=True)
        return {f"STEERWAY_{name.upper()}": str(value) for name, value in values.items()}


def settings(environ: Mapping[str, str] = os.environ, **flags: object) -> Settings:
    """Return the settings in force. Raises `Invalid`, naming the variable, if one is malformed."""
    from_environ = {
        name: environ[f"STEERWAY_{name.upper()}"]
        for name in Settings.model_fields
        if environ.get(f"STEERWAY_{name.upper()}")
    }
    try:
        given = {name: value for name, value in flags.items() if value is not None}
        return Settings.model_validate(from_environ | given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise Invalid(f"STEERWAY_{name.upper()}={first['input']!r}: {first['msg']}") from None
