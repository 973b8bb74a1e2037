"""Signs of life between ranks, beside the training's collectives: a rank that is slow still beats, a stopped one not.

Each rank sets a number in torch.distributed's store once a second and looks at the one of its successor, so that every
rank is watched by one other, and the store serves two requests a second and rank. Who watches needs no clock of others:
what counts is how long ago a number was last seen to change.
"""

import logging
import threading
import time
from typing import Any, Protocol

log = logging.getLogger(__name__)

BEAT_EVERY_S = 1.0


class Store(Protocol):
    """What this needs of a `torch.distributed.Store`."""

    def set(self, key: str, value: str) -> None:
        """Set a key."""
        ...

    def get(self, key: str) -> Any:
        """The value of a key; waits for it to exist."""
        ...


class Heartbeat:
    """One rank's. The exchange may hang (the store lives in rank 0); then its successor counts as silent, too."""

    def __init__(self, store: Store, rank: int, world_size: int, prefix: str = "steerway/alive") -> None:
        self._store, self._prefix, self._rank = store, prefix, rank
        self.watched = (rank + 1) % world_size
        self._heard_at_s = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._exchange, name="steerway-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin. Collective in effect: every rank waits for its successor's first beat."""
        self._heard_at_s = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """The training is over."""
        self._stopped.set()

    @property
    def alone(self) -> bool:
        """Whether there is nobody to watch."""
        return self.watched == self._rank

    def silent_s(self) -> float:
        """How long the watched rank has given no sign of life."""
        return 0.0 if self.alone else time.monotonic() - self._heard_at_s

    def _exchange(self) -> None:
        number, last_heard = 0, b""
        try:
            while not self._stopped.wait(BEAT_EVERY_S):
                number += 1
                self._store.set(f"{self._prefix}/{self._rank}", str(number))
                heard = bytes(self._store.get(f"{self._prefix}/{self.watched}"))
                if heard != last_heard:
                    last_heard, self._heard_at_s = heard, time.monotonic()
        except Exception as error:
            # The store is gone, and with it rank 0: the silence goes on, and that is what it means.
            log.warning("no more signs of life are exchanged: %s", error)
