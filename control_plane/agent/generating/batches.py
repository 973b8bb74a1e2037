"""Memory of a generator on the disk: the batch that is on its way, and the evaluation that it was asked after.

    memory = Memory.read(folder)
    memory.keep(step=120, spot="fresh", records=[...])      # durable before anything is sent
    memory.sent()                                           # the gateway has it

A batch keeps its key, so that a process that is killed between sending and hearing the answer sends the same request
again, which changes nothing. What counts against the budget is not here, but in the index of what was taken in.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

from pydantic import ValidationError

from control_plane.core.model.errors import Damaged, Unavailable
from control_plane.core.model.intent_base import Message

FILE_MODE, FOLDER_MODE = 0o600, 0o700


class Batch(Message):
    """Records that are to be sent: as JSON lines, under a key. `spot`: the source or slice that they are for."""

    key: UUID
    spot: str
    step: int
    lines: str


class _Kept(Message):
    """Content of the file. `asked_step`: step of the last evaluation, or of the last batch, that it was asked for."""

    asked_step: int | None = None
    batch: Batch | None = None


@dataclass(slots=True)
class Memory:
    """Memory of one generator. One process has it at a time: it holds the generator's lock."""

    path: Path
    _kept: _Kept

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return what is in the folder; it need not exist. Raises `Damaged`, `Unavailable`."""
        path = folder / "memory.json"
        try:
            return cls(path, _Kept.model_validate_json(path.read_bytes()))
        except FileNotFoundError:
            return cls(path, _Kept())
        except ValidationError:
            raise Damaged(
                f"{path} cannot be read: remove it, and the generator begins anew within its budget"
            ) from None
        except OSError as error:
            raise Unavailable(f"{path} cannot be read: {error.strerror}") from None

    @property
    def batch(self) -> Batch | None:
        """The batch that is to be sent."""
        return self._kept.batch

    @property
    def asked_step(self) -> int | None:
        """Step that it was last asked for records at; None: never."""
        return self._kept.asked_step

    def keep(self, step: int, spot: str, records: Sequence[dict[str, Any]]) -> None:
        """Keep that it was asked at a step, and what it has written, durably. Raises `Unavailable`."""
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        batch = Batch(key=uuid4(), spot=spot, step=step, lines=lines) if records else None
        self._write(_Kept(asked_step=step, batch=batch))

    def sent(self) -> None:
        """Let go of the batch: it was taken in, or refused. Raises `Unavailable`."""
        self._write(_Kept(asked_step=self._kept.asked_step))

    def _write(self, kept: _Kept) -> None:
        draft = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, FILE_MODE)
            with open(descriptor, "wb") as file:
                file.write(kept.model_dump_json().encode())
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be written: {error.strerror}") from None
        self._kept = kept
