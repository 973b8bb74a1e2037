"""The exception hierarchy.

    SteerwayError
    ├── Refused              the request cannot be granted; nothing has changed
    │   ├── Invalid          the request itself is malformed or out of bounds
    │   ├── NotFound         no such run, command or parameter group
    │   ├── Conflict         the request contradicts what is already recorded
    │   ├── RunEnded         the run takes no more commands
    │   ├── Overloaded       a limit was reached; try again later
    │   └── NotAllowed       the token is missing, unknown, or its role may not do this
    ├── Unavailable          no answer: it may or may not have happened; retry with the same uuid
    │   └── Fenced           this control server has been replaced by one of a later term; retry
    ├── Damaged              stored data does not verify; nothing is guessed
    └── Diverged             ranks disagree about what they did; the generation must end

    try:
        receipt = await handle.submit(command)
    except Refused as refusal:
        print(refusal.reason)

The gateway and the CLI map a class to an HTTP status and an exit code by `status_hint` and `exit_code`; nothing else
reads those two numbers.
"""


class SteerwayError(Exception):
    """Base of everything this project raises on purpose. `reason` is a sentence for a person."""

    status_hint = 500
    exit_code = 1
    slug = "error"

    def __init__(self, reason: str, **detail: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[object, ...]:
        """Keep `detail` when the error crosses a process (Ray pickles exceptions)."""
        return _rebuild, (type(self), self.reason, self.detail)


def _rebuild(kind: type[SteerwayError], reason: str, detail: dict[str, object]) -> SteerwayError:
    return kind(reason, **detail)


class Refused(SteerwayError):
    """The request was understood and refused. Nothing has changed."""

    status_hint = 409
    exit_code = 6
    slug = "refused"


class Invalid(Refused):
    """The request is malformed or out of bounds."""

    status_hint = 422
    slug = "invalid"


class NotFound(Refused):
    """No such run, command or parameter group."""

    status_hint = 404
    exit_code = 3
    slug = "not-found"


class Conflict(Refused):
    """The request contradicts what is already recorded."""

    status_hint = 409
    exit_code = 5
    slug = "conflict"


class RunEnded(Refused):
    """The run takes no more commands."""

    status_hint = 409
    slug = "run-ended"


class Overloaded(Refused):
    """A limit was reached; the same request may succeed later."""

    status_hint = 429
    slug = "overloaded"


class NotAllowed(Refused):
    """The token is missing or unknown (401), or its role may not do this (403)."""

    status_hint = 403
    exit_code = 4
    slug = "not-allowed"


class Unavailable(SteerwayError):
    """No answer: the request may or may not have taken effect. Retry with the same uuid."""

    status_hint = 503
    slug = "unavailable"


class Fenced(Unavailable):
    """This control server has been replaced by one of a later term (fencing)."""

    slug = "fenced"


class Damaged(SteerwayError):
    """Stored data does not verify. Nothing is guessed and nothing is overwritten."""

    slug = "damaged"


class Diverged(SteerwayError):
    """Ranks disagree about what they did. The generation must end: training on would hide the difference."""

    slug = "diverged"


def errors_by_slug(kind: type[SteerwayError] = SteerwayError) -> dict[str, type[SteerwayError]]:
    """Return `kind` and the classes below it by slug; of two with the same slug, the one nearer to the root."""
    kinds = {kind.slug: kind}
    for below in kind.__subclasses__():
        kinds = errors_by_slug(below) | kinds
    return kinds
