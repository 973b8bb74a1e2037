"""Contexts: named gateways of this user, one of them in use, as `kubectl` has them.

    {"version": 1, "current": "lab", "contexts": [{"name": "lab", "url": "https://...", "token": "..."}]}

The file is private (mode 0600), because it holds tokens. Which gateway a command talks to, in this order: `--context`,
`STEERWAY_URL`, `STEERWAY_CONTEXT`, the context in use, this machine's own gateway.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from control_plane.addresses import client_tls, is_in_the_clear, plain_url
from control_plane.config import Settings, settings
from control_plane.core.model.errors import Conflict, Damaged, Invalid, NotFound
from control_plane.storage.private import make_folder, replace_file
from control_plane.storage.regular import open_regular

LOCAL = "local"
"""Context of this machine's own cluster, which `steer up` writes. It holds no token: those are files of the home."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Context(BaseModel):
    """One named gateway.

    url: None for this machine's own gateway, with the tokens of its home.
    environment: settings with which this machine's cluster was started, so that a shell without them finds it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{NAME.pattern}$")
    url: str | None = None
    token: str | None = Field(default=None, repr=False)
    insecure: bool = False
    ca: Path | None = None
    environment: dict[str, str] = {}


class ContextBook(BaseModel):
    """All contexts of a user, and the name of the one in use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    current: str | None = None
    contexts: tuple[Context, ...] = ()

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read the file; an empty book if there is none. Raises `Damaged` if it is malformed, or not private."""
        try:
            with open_regular(path) as file:
                status = os.fstat(file.fileno())
                if status.st_mode & 0o077 or status.st_uid != os.geteuid():
                    raise Damaged(
                        f"other users have access to {path} (mode {status.st_mode & 0o777:04o}), which holds tokens: "
                        "chmod 600 it, and renew the tokens if they may have been read"
                    )
                return cls.model_validate_json(file.read())
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError) as error:
            raise Damaged(f"the contexts in {path} cannot be read ({type(error).__name__})") from None

    def named(self, name: str) -> Context:
        """Return the context of this name. Raises `NotFound`."""
        for context in self.contexts:
            if context.name == name:
                return context
        listed = ", ".join(context.name for context in self.contexts) or "none"
        raise NotFound(f"there is no context {name!r}; there are: {listed} (see `steer context list`)")

    def with_context(self, context: Context) -> Self:
        """Return the book with this context, in place of one of the same name."""
        others = tuple(one for one in self.contexts if one.name != context.name)
        return self.model_copy(update={"contexts": (*others, context)})

    def without(self, name: str) -> Self:
        """Return the book without this context. Raises `NotFound`."""
        self.named(name)
        others = tuple(one for one in self.contexts if one.name != name)
        return self.model_copy(update={"contexts": others, "current": None if self.current == name else self.current})

    def write(self, path: Path) -> None:
        """Write the file, mode 0600. Raises `Damaged` if that fails."""
        try:
            make_folder(path.parent)
            replace_file(path, self.model_dump_json(indent=2, exclude_none=True) + "\n")
        except OSError as error:
            raise Damaged(f"the contexts cannot be written to {path}: {error.strerror or error}") from None


def checked(context: Context) -> Context:
    """Return a context that is to be added. Raises `Invalid` for an address that a client would refuse."""
    if not NAME.fullmatch(context.name):
        raise Invalid(f"{context.name!r} is not a valid name: use 1 to 64 letters, digits, '.', '_' and '-'")
    if context.name == LOCAL:
        raise Conflict(
            f"the context {LOCAL!r} is this machine's own cluster: `steer up` writes it; choose another name"
        )
    parts = plain_url(context.url or "")
    if parts is None:
        raise Invalid(f"{context.url!r} is not a gateway address; use one like https://steerway.example")
    if is_in_the_clear(parts) and not context.insecure:
        raise Invalid(
            f"{context.url} is plain http to another machine and would expose the token on the network: use https, or "
            f"a tunnel (ssh -L 8700:127.0.0.1:8700 {parts.hostname}) and http://127.0.0.1:8700; --insecure allows it"
        )
    client_tls(context.ca)
    return context


def chosen_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings with the gateway of the chosen context. Raises `NotFound`, `Damaged`, `Invalid`."""
    where = settings(environ)
    if where.url is not None:
        return where.model_copy(update={"context": None})
    book = ContextBook.from_file(where.contexts_file)
    name = where.context or book.current
    if name is None or (name == LOCAL and all(one.name != LOCAL for one in book.contexts)):
        return where.model_copy(update={"context": None})
    context = book.named(name)
    if context.url is None:
        return settings(context.environment | dict(environ)).model_copy(update={"context": name})
    return where.model_copy(
        update={
            "context": name,
            "url": context.url,
            "token": where.token or context.token,
            "insecure": where.insecure or context.insecure,
            "ca": where.ca or context.ca,
        }
    )


def use_local(where: Settings) -> str | None:
    """Write the context of this machine's cluster, and use it unless another one is in use; return that one's name."""
    other = ("STEERWAY_HOME", "STEERWAY_URL", "STEERWAY_CA")
    environment = {name: value for name, value in where.environment().items() if name not in other}
    book = ContextBook.from_file(where.contexts_file).with_context(Context(name=LOCAL, environment=environment))
    if book.current is None:
        book = book.model_copy(update={"current": LOCAL})
    book.write(where.contexts_file)
    return None if book.current == LOCAL else book.current
