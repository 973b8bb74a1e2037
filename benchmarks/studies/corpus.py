"""Text and model of the agent's study: sources of Python's standard library, by characters, and a small transformer."""

import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from benchmarks.health.models import WIDTH, Batch, Block
from benchmarks.studies.plan import CHARACTERS
from control_plane.core.model.errors import NotFound

MODULES = (
    "argparse",
    "ast",
    "configparser",
    "difflib",
    "doctest",
    "inspect",
    "pathlib",
    "tarfile",
    "typing",
    "zipfile",
)
"""Text of about 1 MB, that every machine with this version of Python has."""

CONTEXT, LAYERS = 32, 2
EVALUATED = 0.1
"""Share of the text, at its end, that is never trained on."""

EVALUATION_BATCHES, EVALUATION_SIZE = 4, 64
INIT_DEVIATION = 0.02


@cache
def text() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the characters' numbers to train on, and those to evaluate on. Raises `NotFound` without the sources."""
    folder = Path(sysconfig.get_path("stdlib"))
    sources = []
    for module in MODULES:
        path = folder / f"{module}.py"
        if not path.is_file():
            raise NotFound(f"the study trains on the standard library's sources, but there is no {path.name}")
        sources.append(path.read_text(encoding="utf-8"))
    number = {character: index for index, character in enumerate(CHARACTERS)}
    parts = [[number[c] for c in source if c in number] for source in sources]
    cut = [round(len(part) * (1 - EVALUATED)) for part in parts]
    train = [index for part, at in zip(parts, cut, strict=True) for index in part[:at]]
    held_out = [index for part, at in zip(parts, cut, strict=True) for index in part[at:]]
    return torch.tensor(train), torch.tensor(held_out)


def batches(seed: int, size: int) -> Iterator[Batch]:
    """Yield batches without end: characters and next characters, each (size, context)."""
    train, _ = text()
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield _batch(train, size, generator)


def held_out(seed: int = 0) -> Batch:
    """Return the evaluation's one large batch, the same for all runs."""
    _, rest = text()
    return _batch(rest, EVALUATION_BATCHES * EVALUATION_SIZE, torch.Generator().manual_seed(seed))


def _batch(of: torch.Tensor, size: int, generator: torch.Generator) -> Batch:
    first = torch.randint(0, len(of) - CONTEXT - 1, (size, 1), generator=generator)
    ids = of[first + torch.arange(CONTEXT + 1)]
    return ids[:, :-1], ids[:, 1:]


class Model(nn.Module):
    """Causal language model of characters: logits (batch, tokens, characters) of ids (batch, tokens)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(len(CHARACTERS), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(CHARACTERS))
        for embedding in (self.embed, self.place):
            nn.init.normal_(embedding.weight, std=INIT_DEVIATION)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next character at each place."""
        hidden = self.embed(ids) + self.place.weight[: ids.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return cast(torch.Tensor, self.head(self.norm(hidden)))


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean cross entropy of a batch, in nats a character."""
    return functional.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def first_of(batch: Batch, size: int) -> Batch:
    """Return the first samples of a batch."""
    return batch[0][:size], batch[1][:size]
