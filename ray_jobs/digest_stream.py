"""The stream of digests: every k steps, on every rank, roots to the journal and parts to a file beside it.

Training waits for the hashing and for one small collective. Files are written by a thread of their own, and the
journal by the link; neither holds a step up, and what they lose is a digest and nothing of the training.
"""

import logging
import queue
import threading
from pathlib import Path
from typing import Any

from control_plane.core.records import StateDigested
from control_plane.storage.digest_files import RankDigest, digest_file
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import make_folder, private
from ray_jobs.digests import take
from ray_jobs.session import RankSession

log = logging.getLogger(__name__)

MAX_WAITING = 64
"""Digests that wait for the disk. Of those beyond, the journal has the roots, and the file does not have the parts."""

MAX_FILE_BYTES = 1 << 30
"""The parts of one rank in one generation: thousands of digests of a model with some hundred tensors."""

CLOSE_WAIT_S = 10.0
"""How long the end of the training waits for the last lines."""

NO_DIGEST = bytes(16)
"""What a rank tells that could not take one."""


class DigestFile:
    """One rank's file. `put` never waits."""

    def __init__(self, path: Path, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._path, self._room_bytes = path, max_bytes
        self._waiting: queue.Queue[RankDigest | None] = queue.Queue(MAX_WAITING)
        self._missing = 0
        self._thread = threading.Thread(target=self._write, name="steerway-digests", daemon=True)
        self._thread.start()

    def put(self, digest: RankDigest) -> None:
        """Have it written, if there is room."""
        try:
            self._waiting.put_nowait(digest)
        except queue.Full:
            self._tell_missing("the disk is slower than the digests are taken")

    def close(self, wait_s: float = CLOSE_WAIT_S) -> None:
        """Wait for what was put."""
        try:
            self._waiting.put(None, timeout=wait_s)
        except queue.Full:
            return
        self._thread.join(wait_s)

    def _write(self) -> None:
        try:
            make_folder(self._path.parent)
            with open(self._path, "ab", buffering=0, opener=private) as file:
                while (digest := self._waiting.get()) is not None:
                    line = digest.line().encode()
                    self._room_bytes -= len(line)
                    if self._room_bytes < 0:
                        self._tell_missing("the file has reached its limit")
                    else:
                        file.write(line)
        except OSError as error:
            log.error("what the digests are made of is not written any more: %s", error)
            while self._waiting.get() is not None:
                pass

    def _tell_missing(self, why: str) -> None:
        if not self._missing:
            log.warning("%s holds no parts of some digests: %s", self._path.name, why)
        self._missing += 1


class DigestStream:
    """One rank's digests of one generation, every `every_steps` steps (0: never)."""

    def __init__(self, trainer: Any, session: RankSession, files: RunFiles, every_steps: int) -> None:
        self.every_steps = every_steps
        self._trainer, self._session, self._files = trainer, session, files
        self._file: DigestFile | None = None

    def before_the_first_step(self) -> None:
        """Collective. What the script has built: a replay that begins with other weights is told so.

        What cannot be digested yet, as an optimizer that has no state, does not end the stream.
        """
        if self.every_steps:
            self._digest(0)

    def after_boundary(self, step: int) -> None:
        """Collective, when it is time: the step's commands have been carried out, and a pause is over.

        What one rank cannot digest, no rank does from then on: a stream with holes in it could not be compared.
        """
        if not self.every_steps or step % self.every_steps:
            return
        if not self._digest(step):
            self.every_steps = 0

    def _digest(self, step: int) -> bool:
        digest = self._take()
        root = bytes.fromhex(digest.root) if digest is not None else NO_DIGEST
        roots = self._session.collectives.all_gather_bytes(root)
        if NO_DIGEST in roots:
            log.error("step %d could not be digested on rank %d", step, roots.index(NO_DIGEST))
            return False
        if digest is not None:
            self._tell(digest, tuple(each.hex() for each in roots))
        return True

    def _take(self) -> RankDigest | None:
        try:
            return take(self._trainer, self._session)
        except Exception:
            log.exception("the live state could not be digested")
            return None

    def _tell(self, digest: RankDigest, roots: tuple[str, ...]) -> None:
        generation = self._session.replica.generation
        if self._file is None:
            self._file = DigestFile(digest_file(self._files, generation, self._session.rank))
        self._file.put(digest)
        if self._session.link is not None:
            samples = digest.parts["samples"]
            self._session.link.digest(
                StateDigested(generation=generation, step=digest.step, ranks=roots, samples=samples)
            )

    def close(self) -> None:
        """Wait for the last lines."""
        if self._file is not None:
            self._file.close()
