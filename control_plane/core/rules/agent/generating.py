"""Generators of a run: functions and prompts that write records for a live source, within a budget.

generators:
  poems: {source: fresh, path: write_poems.py, records: 64, max_records: 1000}
  chats: {source: fresh, prompt: "Short dialogues in a shop.", records: 16, max_records: 200, approval: true}
"""

from typing import Annotated, Self

from pydantic import Field, StrictBool, model_validator

from control_plane.core.model.data import SourceName, SourceSettings
from control_plane.core.model.intent_base import Message
from control_plane.core.model.values import MAX_STEP, Name

MAX_GENERATORS = 8
"""Generators of one run: each is a process beside the gateway."""

MAX_RECORDS = 10_000
"""Records of one batch."""

MAX_BUDGET = 10**9
MAX_PROMPT_CHARS = 8_000

AUTHOR = "generator:"
"""Prefix of the author of what a generator sends, followed by its name."""

GeneratorName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$", strict=True)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEP, strict=True)]


class GeneratorSettings(Message):
    """Settings of one generator: a function of a Python file (`path`), or a prompt for a model (`prompt`).

    source: live source that its records go to.
    function: name of the function in the file. It is given a mapping, and returns mappings by the source's fields.
    helps: sources that it writes for: it is asked while the weakest is one of these; none: whichever is the weakest.
    every_steps: steps from one batch to the next; None: one after each evaluation.
    records: of one batch, at most. max_records: of all, over the whole run.
    approval: records wait on the disk until a person has approved them.
    """

    source: SourceName
    path: Name | None = None
    function: Annotated[str, Field(pattern=r"^[A-Za-z_]\w{0,99}$")] = "generate"
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)] | None = None
    helps: tuple[SourceName, ...] = ()
    every_steps: Steps | None = None
    records: Annotated[int, Field(ge=1, le=MAX_RECORDS, strict=True)] = 64
    max_records: Annotated[int, Field(ge=1, le=MAX_BUDGET, strict=True)]
    approval: StrictBool = False

    @model_validator(mode="after")
    def _is_a_function_or_a_prompt(self) -> Self:
        if (self.path is None) == (self.prompt is None):
            raise ValueError("give either 'path', a Python file with the function, or 'prompt', for a model")
        return self


def author_of(generator: str) -> str:
    """Return the author of what a generator sends."""
    return AUTHOR + generator


def reason_against_generators(
    generators: dict[str, GeneratorSettings], sources: dict[str, SourceSettings]
) -> str | None:
    """Return why a config cannot have these generators, or None."""
    for name, settings in generators.items():
        target = sources.get(settings.source)
        if target is None or not target.live:
            return f"generators.{name}.source is {settings.source}, but no source of that name is 'live: true'"
        if target.format == "images":
            return f"generators.{name}.source is {settings.source}: records of images cannot be generated"
        if unknown := [one for one in settings.helps if one not in sources]:
            return f"generators.{name}.helps names {unknown[0]}, which is no source"
    if generators and not any(source.held_out for source in sources.values()):
        return "generators need a source with 'held_out': its loss says where records are needed"
    return None
