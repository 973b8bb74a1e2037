"""The control server as a Ray actor: its name, restarts and retries.

A detached, named actor per run, restarted without limit by Ray. A restarted actor runs its constructor again and
rebuilds its state from the run's journal. Ray never retries a task (`max_task_retries=0`): callers retry, with uuids
that make their calls idempotent.
"""

import hashlib
import logging
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import ray
from pydantic import TypeAdapter, ValidationError

from control_plane.api import versions
from control_plane.config_text import from_yaml
from control_plane.core.model.errors import Damaged, Invalid, SteerwayError
from control_plane.core.model.intents.agent import AgentSettings
from control_plane.core.model.limits import Limit
from control_plane.core.model.records import NOBODY, UNIVERSAL, RunCreated
from control_plane.core.model.reflexes import REFLEXES, Reflexes
from control_plane.runs.usage import owner_of
from control_plane.server.control_server import ControlServer
from control_plane.storage.checkpoint.cleanup import discard, is_ours
from control_plane.storage.checkpoint.transfer import adopt, read_origin
from control_plane.storage.checkpoint.unrecorded import find_unrecorded
from control_plane.storage.journal.writer import Journal
from control_plane.storage.known_secrets import redaction_of
from control_plane.storage.layout import RunFiles
from control_plane.storage.metrics import MetricsStore
from control_plane.storage.regular import read_regular

log = logging.getLogger(__name__)

LIMITS = TypeAdapter(dict[str, Limit])

NAMESPACE = "steerway"
HEAD = "node:__internal_head__"
"""The resource that Ray gives its head node, 1.0 of it."""

SHARE_OF_THE_HEAD = 0.001

MAX_CONCURRENT_CALLS = 1000
"""Each long poll takes one: the run's link, and every watcher."""


def limits_in(config: bytes, source: str) -> dict[str, Limit]:
    """Return the limits in a run's resolved config, in its order. Raises `Damaged` if they cannot be read.

    They were validated at submission; a limit dropped here would not be enforced.
    """
    try:
        # As text: YAML's dialects disagree whether `1e-6` and `on` are text. The limits' types decide.
        raw = from_yaml(config.decode(), source, as_text=True)
        section = raw.get("limits") if isinstance(raw, dict) else None
        return LIMITS.validate_python({knob: _without_nulls(limit) for knob, limit in (section or {}).items()})
    except Invalid as error:
        raise Damaged(f"the limits in {source} cannot be read: {error.reason}") from None
    except (UnicodeDecodeError, ValidationError, AttributeError) as error:
        raise Damaged(f"the limits in {source} cannot be read ({type(error).__name__})") from None


def reflexes_in(config: bytes, source: str) -> Reflexes:
    """Return the reflexes in a run's resolved config. Raises `Damaged` if they cannot be read: none may be dropped."""
    try:
        raw = from_yaml(config.decode(), source, as_text=True)
        section = raw.get("reflexes") if isinstance(raw, dict) else None
        return REFLEXES.validate_python(section if isinstance(section, dict) else {})
    except Invalid as error:
        raise Damaged(f"the reflexes in {source} cannot be read: {error.reason}") from None
    except (UnicodeDecodeError, ValidationError) as error:
        raise Damaged(f"the reflexes in {source} cannot be read ({type(error).__name__})") from None


def agent_in(config: bytes, source: str) -> AgentSettings | None:
    """Return the settings of the agent that a run starts with, by its resolved config; None: it starts with none.

    Raises `Damaged` if they cannot be read.
    """
    try:
        raw = from_yaml(config.decode(), source)
        section = raw.get("agent") if isinstance(raw, dict) else None
        return None if section is None else AgentSettings.model_validate(section)
    except Invalid as error:
        raise Damaged(f"the agent in {source} cannot be read: {error.reason}") from None
    except (UnicodeDecodeError, ValidationError) as error:
        raise Damaged(f"the agent in {source} cannot be read ({type(error).__name__})") from None


def give_up_after_in(config: bytes, source: str) -> float | None:
    """Return the seconds for which a run may fail without a new step, from its resolved config; None: no limit."""
    try:
        raw = from_yaml(config.decode(), source, as_text=True)
        text = raw["recovery"]["give_up_after_s"]
        return None if text == "null" else float(text)
    except (Invalid, UnicodeDecodeError, KeyError, TypeError, ValueError):
        return None  # runs of earlier releases have no such setting


def _without_nulls(limit: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in limit.items() if value != "null"}


def remove_later(files: RunFiles, checkpoint: str) -> None:
    """Remove a checkpoint's files and their conversions in a thread: it may take seconds."""

    def remove() -> None:
        for name in (checkpoint, f"{checkpoint}{UNIVERSAL}"):
            try:
                discard(files.checkpoints, name)
            except SteerwayError as error:
                log.error("files of checkpoint %s could not be removed: %s", name, error.reason)

    threading.Thread(target=remove, name=f"discard-{checkpoint}", daemon=True).start()


class ControlActor(ControlServer):
    """A `ControlServer` on a run's folder, as a Ray actor."""

    def __init__(self, root: str) -> None:
        """Open the run's files in a new term.

        Raises `Damaged` if the journal does not verify or the config cannot be read, `Conflict` if the journal belongs
        to another run.
        """
        logging.basicConfig(level=logging.INFO)
        files = RunFiles(Path(root))
        config = read_regular(files.config)
        created = RunCreated(
            run=files.run,
            name=files.run,
            author=owner_of(files) or NOBODY,
            config_sha256=hashlib.sha256(config).hexdigest(),
            limits=limits_in(config, str(files.config)),
            reflexes=reflexes_in(config, str(files.config)),
            agent=agent_in(config, str(files.config)),
        )
        super().__init__(
            created,
            Journal.open(files.journal),
            MetricsStore(files.metrics),
            discard=lambda checkpoint: remove_later(files, checkpoint.checkpoint),
            unrecorded=partial(find_unrecorded, files),
            origin=read_origin(files),
            adopt=partial(adopt, files),
            redaction=redaction_of(files),
            give_up_after_s=give_up_after_in(config, str(files.config)),
        )
        # The previous server may have died between the decision and the removal.
        for name in self.discarded:
            if is_ours(files.checkpoints, name):
                remove_later(files, name)

    async def pid(self) -> int:
        """Return the pid of the serving process, for people and for tests that kill it."""
        return os.getpid()

    async def protocol(self) -> dict[str, int | str]:
        """Return protocol and release of this process; whoever connects asks for it first."""
        return versions.own()


def actor_name(run: str) -> str:
    """Return the name of a run's control actor in `NAMESPACE`."""
    return f"control:{run}"


def get_or_create(files: RunFiles) -> Any:
    """Return the run's control actor, created if it does not exist. Needs a connection to Ray."""
    remote = ray.remote(ControlActor)
    return remote.options(
        name=actor_name(files.run),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=MAX_CONCURRENT_CALLS,
        num_cpus=0,
        resources=of_the_head(),
    ).remote(str(files.root))


def of_the_head() -> dict[str, float]:
    """Return the resource that places the actor on the head node, so that a node failure hits ranks or the control
    server, not both. No node affinity: Ray forgets a soft one, and a hard one names a node."""
    heads = [node for node in ray.nodes() if node["Alive"] and HEAD in node.get("Resources", {})]
    return {HEAD: SHARE_OF_THE_HEAD} if heads else {}


def is_serving(files: RunFiles) -> bool:
    """Return whether the run has a control actor, alive or restarting. Creates none."""
    try:
        ray.get_actor(actor_name(files.run), namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def retire(files: RunFiles) -> None:
    """Kill the actor of a closed run: its files hold everything, and one process per old run would add up."""
    try:
        ray.kill(ray.get_actor(actor_name(files.run), namespace=NAMESPACE), no_restart=True)
    except ValueError:
        return  # the run has no actor
