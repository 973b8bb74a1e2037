"""Digest stream: every k steps, on every rank, root digests to the journal and their parts to a file beside it.

Training waits for the hashing and for one small collective. Files are written by a thread of their own, and the
journal by the link; neither blocks a step, and only digests can be lost, nothing of the training.
"""

import logging
import queue
import threading
from pathlib import Path

from control_plane.core.model.records import StateDigested
from control_plane.storage.digest_files import RankDigest, digest_file
from control_plane.storage.layout import RunFiles
from control_plane.storage.private import make_folder, private
from ray_jobs.digest.state import take
from ray_jobs.rank.live_training import LiveTraining
from ray_jobs.rank.session import RankSession

log = logging.getLogger(__name__)

MAX_WAITING = 64
"""Digests queued for the disk. Of those beyond, the journal has the roots, and the file lacks the parts."""

MAX_FILE_BYTES = 1 << 30
"""The parts of one rank in one generation: thousands of digests of a model with some hundred tensors."""

CLOSE_WAIT_S = 10.0
"""Timeout for writing the last lines at the end of the training."""

NO_DIGEST = bytes(16)
"""Placeholder from a rank that failed to compute its digest."""


class DigestFile:
    """Digest file of one rank, written by a thread. `put` never blocks."""

    def __init__(self, path: Path, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._path, self._room_bytes = path, max_bytes
        self._waiting: queue.Queue[RankDigest | None] = queue.Queue(MAX_WAITING)
        self._missing = 0
        self._thread = threading.Thread(target=self._write, name="steerway-digests", daemon=True)
        self._thread.start()

    def put(self, digest: RankDigest) -> None:
        """Queue a digest for writing; dropped if the queue is full."""
        try:
            self._waiting.put_nowait(digest)
        except queue.Full:
            self._tell_missing("the disk is slower than the digests are taken")

    def close(self, wait_s: float = CLOSE_WAIT_S) -> None:
        """Wait until all queued digests are written."""
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
            log.error("the digest file is no longer written: %s", error)
            while self._waiting.get() is not None:
                pass

    def _tell_missing(self, why: str) -> None:
        if not self._missing:
            log.warning("%s lacks the parts of some digests: %s", self._path.name, why)
        self._missing += 1


class DigestStream:
    """Digest stream of one rank and generation, every `every_steps` steps (0: never)."""

    def __init__(self, training: LiveTraining, session: RankSession, files: RunFiles, every_steps: int) -> None:
        self.every_steps = every_steps
        self._training, self._session, self._files = training, session, files
        self._file: DigestFile | None = None

    def before_the_first_step(self) -> None:
        """Collective. Digest the initial state, so that a replay with other initial weights is detected.

        A failure here, such as an optimizer without state yet, does not end the stream.
        """
        if self.every_steps:
            self._digest(0)

    def after_boundary(self, step: int) -> None:
        """Collective, if a digest is due: after the step's commands were applied and any pause has ended.

        If one rank fails, no rank goes on: a stream with gaps could not be compared.
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
            self._tell(digest, tuple(one.hex() for one in roots))
        return True

    def _take(self) -> RankDigest | None:
        try:
            return take(self._training, self._session)
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
        """Wait until the last digests are written."""
        if self._file is not None:
            self._file.close()
