"""Measurements on their way to the control server: bounded, droppable, never in the journal."""

import threading
from collections import deque

from control_plane.handle import Point

MAX_POINTS = 10_000
"""Points kept while the control server is away: some minutes of a fast run. Older ones are dropped first."""

MAX_POINTS_PER_REPORT = 2_000
"""One report stays well below a megabyte."""


class Telemetry:
    """A queue between the training thread, which puts and never waits, and the link's thread, which takes."""

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self._points: deque[Point] = deque(maxlen=max_points)
        self._lock = threading.Lock()
        self._dropped = 0

    def put(self, points: list[Point]) -> None:
        """Add points, dropping the oldest ones when there is no room."""
        with self._lock:
            room = (self._points.maxlen or 0) - len(self._points)
            self._dropped += max(0, len(points) - room)
            self._points.extend(points)

    def take(self) -> tuple[tuple[Point, ...], int]:
        """The oldest points, and how many were dropped since the last `take`."""
        with self._lock:
            size = min(len(self._points), MAX_POINTS_PER_REPORT)
            points = tuple(self._points.popleft() for _ in range(size))
            dropped, self._dropped = self._dropped, 0
            return points, dropped

    def __len__(self) -> int:
        return len(self._points)
