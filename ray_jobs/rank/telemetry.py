"""Bounded queue of metrics for the control server, which drops the oldest points when it is full."""

import threading
from collections import deque

from control_plane.api.messages import Point

MAX_POINTS = 10_000
"""Points buffered while the control server is unavailable: some minutes of a fast run."""

MAX_POINTS_PER_REPORT = 2_000
"""Keeps a report well below a megabyte."""


class Telemetry:
    """Queue between the training thread, which puts without blocking, and the link's thread, which takes."""

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self._points: deque[Point] = deque(maxlen=max_points)
        self._lock = threading.Lock()
        self._dropped = 0

    def put(self, points: list[Point]) -> None:
        """Add points, dropping the oldest ones if the queue is full."""
        with self._lock:
            room = (self._points.maxlen or 0) - len(self._points)
            self._dropped += max(0, len(points) - room)
            self._points.extend(points)

    def take(self) -> tuple[tuple[Point, ...], int]:
        """Remove and return the oldest points, and the number of points dropped since the last `take`."""
        with self._lock:
            size = min(len(self._points), MAX_POINTS_PER_REPORT)
            points = tuple(self._points.popleft() for _ in range(size))
            dropped, self._dropped = self._dropped, 0
            return points, dropped

    def __len__(self) -> int:
        return len(self._points)
