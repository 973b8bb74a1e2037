"""Simulated desktop, drawn by code: a cursor, icons, windows and a menu, and sequences of what people do with them.

    base = records_of([sequence(behaviour, seed) for behaviour in ("move", "drag") for seed in range(100)])
    numpy.savez("base.npz", **base)      # a shard of format `arrays`

A sequence consists of transitions: the last frames and an input event, and the frame that follows. Nothing is hidden:
the next frame follows from the last ones and the event. A sequence depends on its behaviour and seed only.
"""

import io
import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HEIGHT, WIDTH, CHANNELS = 24, 32, 3
LAST_FRAMES = 2
EVENT_FIELDS = ("x", "y", "left", "right")
"""Fields of an event: where the cursor is after it, in pixels, and whether each button is held (0 or 1)."""

OLD, MISSING = ("move", "drag"), ("open_browser", "new_folder")
"""Behaviours in the base data, and those that come in later."""

FIELDS = {
    "frames": {"type": "array", "dtype": "uint8", "shape": [LAST_FRAMES, CHANNELS, HEIGHT, WIDTH]},
    "event": {"type": "array", "dtype": "uint8", "shape": [len(EVENT_FIELDS)]},
    "next": {"type": "array", "dtype": "uint8", "shape": [CHANNELS, HEIGHT, WIDTH]},
}
"""Schema of a transition, as the section `sources` of a config has it."""

ICON = 5
"""Side of an icon, pixels."""

BROWSER = (2, 2)
WINDOW = (13, 5, 15, 13)
"""Place of the browser's window: x, y, width, height."""

MENU = (7, 5)
MAX_MOVE = 6
"""Pixels that the cursor moves with one event, at most, along each axis."""

MOST_MOVES = 8

BACKGROUND, ORANGE, GREEN, YELLOW, WHITE, BLUE, BLACK, GREY = (
    (30, 80, 110), (240, 130, 40), (90, 200, 120), (240, 210, 70), (225, 225, 230), (50, 90, 220), (0, 0, 0),
    (150, 150, 160),
)  # fmt: skip

Frame = npt.NDArray[np.uint8]
Event = tuple[int, int, int, int]
Point = tuple[int, int]


@dataclass
class Screen:
    """State of the desktop. Places are of the upper left corner, as x and y in pixels."""

    cursor: Point
    document: Point
    folder: Point | None = None
    menu: Point | None = None
    is_open: bool = False
    held: Point | None = None
    """Of the document that is dragged: its place, seen from the cursor."""

    was_pressed: bool = False

    def take(self, event: Event) -> None:
        """Change the state by an event."""
        x, y, left, right = event
        self.cursor = (x, y)
        if right and self.menu is None:
            self.menu = (min(x, WIDTH - MENU[0]), min(y, HEIGHT - MENU[1]))
        if left and not self.was_pressed:
            self._press(x, y)
        if not left:
            self.held = None
        if self.held is not None:
            self.document = (_within(x + self.held[0], WIDTH - ICON), _within(y + self.held[1], HEIGHT - ICON))
        self.was_pressed = bool(left)

    def _press(self, x: int, y: int) -> None:
        if self.menu is not None:
            if _is_in((x, y), self.menu, *MENU):
                self.folder = (_within(self.menu[0], WIDTH - ICON), _within(self.menu[1], HEIGHT - ICON))
            self.menu = None
        elif _is_in((x, y), BROWSER, ICON, ICON):
            self.is_open = True
        elif _is_in((x, y), self.document, ICON, ICON):
            self.held = (self.document[0] - x, self.document[1] - y)

    def draw(self) -> Frame:
        """Return the frame, uint8, shape `(CHANNELS, HEIGHT, WIDTH)`."""
        frame = np.empty((HEIGHT, WIDTH, CHANNELS), np.uint8)
        frame[:] = BACKGROUND
        _fill(frame, (*BROWSER, ICON, ICON), ORANGE)
        _fill(frame, (BROWSER[0] + 1, BROWSER[1] + 1, ICON - 2, ICON - 2), BLUE)
        _fill(frame, (*self.document, ICON, ICON), GREEN)
        if self.folder is not None:
            _fill(frame, (*self.folder, ICON, ICON), YELLOW)
        if self.is_open:
            _fill(frame, WINDOW, WHITE)
            _fill(frame, (*WINDOW[:3], 3), BLUE)
        if self.menu is not None:
            _fill(frame, (*self.menu, *MENU), GREY)
            _fill(frame, (self.menu[0] + 1, self.menu[1] + 1, MENU[0] - 2, 2), BLACK)
        _fill(frame, (*self.cursor, 2, 2), (255, 255, 255))
        _fill(frame, (*self.cursor, 1, 1), BLACK)
        return frame.transpose(2, 0, 1).copy()


@dataclass(frozen=True)
class Sequence:
    """Transitions that one behaviour makes, in order.

    frames: the last ones before each event, `(n, LAST_FRAMES, CHANNELS, HEIGHT, WIDTH)`, uint8.
    events: `(n, 4)`, uint8, as `EVENT_FIELDS`.
    after: the frame that follows each event, `(n, CHANNELS, HEIGHT, WIDTH)`, uint8.
    telling: which transitions changed more than the cursor, `(n,)`.
    """

    behaviour: str
    frames: Frame
    events: Frame
    after: Frame
    telling: npt.NDArray[np.bool_]

    def records(self, telling_only: bool = False) -> dict[str, Frame]:
        """Return the transitions as arrays, one a field, whose first axis counts them."""
        kept = self.telling if telling_only else np.ones_like(self.telling)
        return {"frames": self.frames[kept], "event": self.events[kept], "next": self.after[kept]}


def sequence(behaviour: str, seed: int) -> Sequence:
    """Return a sequence of one behaviour. Raises `ValueError` for one that is not known."""
    if behaviour not in OLD + MISSING:
        raise ValueError(f"there is no behaviour {behaviour!r}; there are {', '.join(OLD + MISSING)}")
    chance = random.Random(f"{behaviour} {seed}")
    screen = Screen(_somewhere(chance), (chance.randint(8, WIDTH - ICON), chance.randint(8, HEIGHT - ICON)))
    drawn = [screen.draw()] * LAST_FRAMES
    before, events, after, telling = [], [], [], []
    for event in _events(behaviour, screen, chance):
        old = (screen.document, screen.folder, screen.menu, screen.is_open)
        before.append(np.stack(drawn))
        screen.take(event)
        drawn = [*drawn[1:], screen.draw()]
        events.append(event)
        after.append(drawn[-1])
        telling.append(old != (screen.document, screen.folder, screen.menu, screen.is_open))
    return Sequence(behaviour, np.stack(before), np.array(events, np.uint8), np.stack(after), np.array(telling))


def _events(behaviour: str, screen: Screen, chance: random.Random) -> list[Event]:
    """Return the events of a sequence, from the screen that it begins with."""
    start = screen.cursor
    if behaviour == "move":
        goal = _somewhere(chance)
        return (_way(start, goal, chance) + _way(goal, _somewhere(chance), chance))[:MOST_MOVES]
    if behaviour == "drag":
        grip = _in_icon(screen.document, chance)
        goal = (chance.randint(8, WIDTH - 2), chance.randint(8, HEIGHT - 2))
        dragged = _way(grip, goal, chance, left=1)
        return [*_way(start, grip, chance), (*grip, 1, 0), *dragged, (*goal, 0, 0)]
    if behaviour == "open_browser":
        icon = _in_icon(BROWSER, chance)
        near = (_within(icon[0] + chance.randint(-6, 6), 30), _within(icon[1] + chance.randint(-6, 6), 22))
        return [*_way(near, icon, chance), (*icon, 1, 0), (*icon, 0, 0), *_way(icon, _somewhere(chance), chance)[:2]]
    place = (chance.randint(8, WIDTH - MENU[0]), chance.randint(0, HEIGHT - MENU[1]))
    entry = (place[0] + chance.randint(1, MENU[0] - 2), place[1] + chance.randint(1, 2))
    near = (_within(place[0] + chance.randint(-6, 6), 30), _within(place[1] + chance.randint(-6, 6), 22))
    into = [*_way(place, entry, chance), (*entry, 1, 0), (*entry, 0, 0)]
    return [*_way(near, place, chance), (*place, 0, 1), *into]


def _way(start: Point, goal: Point, chance: random.Random, left: int = 0) -> list[Event]:
    """Return the moves of the cursor to a goal."""
    (x, y), moves = start, list[Event]()
    while (x, y) != goal:
        most = chance.randint(2, MAX_MOVE)
        x += max(-most, min(most, goal[0] - x))
        y += max(-most, min(most, goal[1] - y))
        moves.append((x, y, left, 0))
    return moves


def _somewhere(chance: random.Random) -> Point:
    return chance.randint(0, WIDTH - 2), chance.randint(0, HEIGHT - 2)


def _in_icon(corner: Point, chance: random.Random) -> Point:
    return corner[0] + chance.randint(0, ICON - 2), corner[1] + chance.randint(0, ICON - 2)


def _within(value: int, most: int) -> int:
    return max(0, min(value, most))


def _is_in(point: Point, corner: Point, width: int, height: int) -> bool:
    return corner[0] <= point[0] < corner[0] + width and corner[1] <= point[1] < corner[1] + height


def _fill(frame: Frame, place: tuple[int, int, int, int], colour: tuple[int, int, int]) -> None:
    x, y, width, height = place
    frame[y : y + height, x : x + width] = colour


def records_of(sequences: Iterable[Sequence], telling_only: bool = False) -> dict[str, Frame]:
    """Return the transitions of sequences as arrays, one a field; `telling_only`: those that changed more than the
    cursor."""
    parts = [one.records(telling_only) for one in sequences]
    return {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}


def shard(sequences: Iterable[Sequence]) -> bytes:
    """Return the transitions of sequences as the bytes of an `.npz`, as the data route takes it."""
    content = io.BytesIO()
    np.savez(content, **records_of(sequences))  # type: ignore[arg-type]
    return content.getvalue()
