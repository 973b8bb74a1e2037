"""Body of a login request: a key or a token, with bounds and validation."""

import asyncio

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import ClientDisconnect, Request

from control_plane.core.model.errors import Invalid

MAX_BODY_BYTES = 4096
BODY_WITHIN_S = 5.0


class LoginRequest(BaseModel):
    """Login request with a key or a token."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str | None = Field(default=None, min_length=1, max_length=200)
    token: str | None = Field(default=None, min_length=1, max_length=512)

    @model_validator(mode="after")
    def _one(self) -> "LoginRequest":
        if (self.key is None) == (self.token is None):
            raise ValueError("a key or a token")
        return self


async def read_request(request: Request) -> LoginRequest:
    """Read the body of a login. Raises `Invalid` if it is malformed, too long, or late."""
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            body = b""
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise Invalid(f"the request is longer than {MAX_BODY_BYTES} bytes")
        return LoginRequest.model_validate_json(body)
    except (TimeoutError, ClientDisconnect, ValidationError):
        raise Invalid("a login is a JSON object with a key or a token") from None
