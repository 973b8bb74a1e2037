"""One process of a run's agent: its command line, its environment, its log, and how it ended."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from control_plane.config import Settings
from control_plane.core.model.characters import one_line
from control_plane.core.model.errors import Damaged
from control_plane.core.model.redaction import Redaction
from control_plane.programs import program
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import make_folder, private, replace_file
from control_plane.storage.regular import open_regular

DECISION = re.compile(r"step \d+: ")
"""Beginning of the line that an agent prints for each decision."""

KEY = "OPENAI_API_KEY"
MAX_KEY_BYTES = 4096
INHERITED = re.compile(
    r"PATH|HOME|LANG|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|PYTHON(PATH|HOME|UNBUFFERED)|VIRTUAL_ENV|SSL_CERT_(FILE|DIR)"
    r"|(HTTPS?|ALL|NO)_PROXY|(https?|all|no)_proxy"
)
"""Variables of the gateway that an agent gets. No other secret of the gateway's is among them."""

MAX_LOG_BYTES = 1 << 20
"""Beyond it the older half of an agent's log is dropped."""

MAX_LINE_CHARS = 2000
MAX_REASON_CHARS = 300
ENDS_WITHIN_S = 3.0
"""Time that an agent has after SIGTERM; it has nothing to save."""


@dataclass(frozen=True, slots=True)
class Ended:
    """End of an agent's process: its exit code, its last line, and whether it had decided anything."""

    code: int
    last_line: str = ""
    decided: bool = False

    @property
    def reason(self) -> str:
        """The end as a sentence."""
        how = f"exit code {self.code}" if self.code >= 0 else f"signal {-self.code}"
        return f"{how}: {self.last_line}" if self.last_line else how


@dataclass(slots=True)
class AgentLog:
    """The log of a run's agent: lines with their times, without secrets, bounded."""

    path: Path
    redaction: Redaction
    _size_bytes: int = field(default=-1)

    def write(self, lines: Sequence[str]) -> None:
        """Append lines. Raises `OSError`."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        text = "".join(f"{now} {line}\n" for line in lines)
        if self._size_bytes < 0 or self._size_bytes > MAX_LOG_BYTES:
            self._shorten()
        with open(self.path, "a", encoding="utf-8", opener=_appending) as file:
            file.write(text)
            self._size_bytes = file.tell()

    def clean(self, line: str) -> str:
        """Return a line as it may be shown."""
        return self.redaction.text(one_line(line[:MAX_LINE_CHARS]))

    def _shorten(self) -> None:
        make_folder(self.path.parent)
        with suppress(FileNotFoundError, Damaged), open_regular(self.path) as file:
            size_bytes = file.seek(0, os.SEEK_END)
            if size_bytes > MAX_LOG_BYTES:
                file.seek(size_bytes - MAX_LOG_BYTES // 2)
                replace_file(self.path, file.read().partition(b"\n")[2].decode("utf-8", "replace"))


def _appending(path: str, flags: int) -> int:
    return private(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def read_key(where: Settings, environ: Mapping[str, str] = os.environ) -> tuple[str | None, str | None]:
    """Return the key of the model, or None and the reason; the reason is None where no key was given at all."""
    if environ.get(KEY):
        return environ[KEY], None
    path = where.agent_key_file
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                return None, f"{path} is not used: others may read it; `chmod 600 {path}`"
            key = file.read(MAX_KEY_BYTES).decode("ascii").strip()
    except FileNotFoundError:
        return None, None
    except (OSError, Damaged, UnicodeDecodeError):
        return None, f"{path} is not used: it cannot be read"
    return (key, None) if key else (None, f"{path} is not used: it is empty")


def environment_of(where: Settings, token: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of an agent's process: this installation, the agent's own token, and the model's key."""
    inherited = {name: value for name, value in environ.items() if INHERITED.fullmatch(name)}
    own = where.model_copy(update={"url": None}).environment() | {"STEERWAY_TOKEN": token, "PYTHONUNBUFFERED": "1"}
    key, _ = read_key(where, environ)
    model = {KEY: key} if key else {}
    base_url = {"OPENAI_BASE_URL": where.agent_base_url} if where.agent_base_url else {}
    return inherited | own | model | base_url


def command_of(where: Settings, files: RunFiles) -> list[str]:
    """Return the command line of a run's agent. Nothing secret is in it."""
    return program("control_plane.agent", "--run", files.run, "--ledger", str(files.agent_ledger))


def lock_of(home: Path, run: str) -> Path:
    """Return the file whose lock the run's only agent on this machine holds."""
    return home / "autopilots" / run


async def run_agent_process(
    where: Settings,
    files: RunFiles,
    token: str,
    *,
    command: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    on_start: Callable[[int], None] = lambda pid: None,
    more: Mapping[str, str] | None = None,
    log_file: Path | None = None,
    lock: Path | None = None,
) -> Ended:
    """Run a run's agent until it ends; when cancelled, end it.

    Args:
        command: another program than the agent's, with variables (`more`), a log and a lock of its own.

    To be awaited on the thread that lives as long as the gateway: the kernel ends the agent with that thread.
    Raises `OSError` if it cannot be started, or its log not be written.
    """
    environment = environment_of(where, token, environ) | dict(more or {})
    redaction = Redaction([token, environment.get(KEY, "")])
    of_run = await asyncio.to_thread(redaction_of, files)
    log = AgentLog(log_file or files.agent_log, redaction)
    lock = lock or lock_of(where.home, files.run)
    tether = program("control_plane.gateway.agents.tether", str(os.getpid()), str(lock))
    process = await asyncio.create_subprocess_exec(
        *tether,
        *(command or command_of(where, files)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    on_start(process.pid)
    decided, last_line = False, ""
    try:
        assert process.stdout is not None
        async for lines in _lines(process.stdout):
            clean = [of_run.text(log.clean(line)) for line in lines]
            decided = decided or any(DECISION.match(line) for line in clean)
            last_line = next((line for line in reversed(clean) if line.strip()), last_line)[:MAX_REASON_CHARS]
            await asyncio.to_thread(log.write, clean)
        return Ended(await process.wait(), last_line, decided)
    finally:
        await _end(process)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[list[str]]:
    rest = b""
    while chunk := await stream.read(16384):
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[:MAX_LINE_CHARS]
        if lines:
            yield [line.decode("utf-8", "replace") for line in lines]
    if rest:
        yield [rest.decode("utf-8", "replace")]


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process with its children, if it has not ended."""
    if process.returncode is not None:
        return
    _signal(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(ENDS_WITHIN_S):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            _signal(process.pid, signal.SIGKILL)
            await process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
