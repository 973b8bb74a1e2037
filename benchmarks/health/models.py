"""Small models and data of the health trials: a transformer on a random Markov chain, and a classifier of points."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import nn
from torch.nn import functional

VOCABULARY, CONTEXT = 32, 16
WIDTH, HEADS, LAYERS = 32, 2, 2
FEATURES, CLASSES = 16, 8

Batch = tuple[torch.Tensor, torch.Tensor]


class Block(nn.Module):
    """Transformer block with ReLU units."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query_key_value, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.act, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the next hidden states (batch, tokens, width)."""
        batch, tokens, _ = hidden.shape
        parts = self.query_key_value(self.norm_1(hidden)).view(batch, tokens, 3, HEADS, WIDTH // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return cast(torch.Tensor, hidden + self.down(self.act(self.up(self.norm_2(hidden)))))


class Transformer(nn.Module):
    """Causal language model: logits (batch, tokens, vocabulary) of token ids (batch, tokens)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token at each place."""
        hidden = self.embed(ids) + self.place.weight[: ids.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return cast(torch.Tensor, self.head(self.norm(hidden)))


class Layer(nn.Module):
    """Linear layer with ReLU units."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up, self.act = nn.Linear(inputs, outputs), nn.ReLU()

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Return the activations (batch, outputs)."""
        return cast(torch.Tensor, self.act(self.up(points)))


class Classifier(nn.Module):
    """Perceptron: logits (batch, classes) of points (batch, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Layer(FEATURES if index == 0 else 64, 64) for index in range(4))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Return the logits of the classes."""
        for block in self.blocks:
            points = block(points)
        return cast(torch.Tensor, self.head(points))


def chain(seed: int) -> torch.Tensor:
    """Return the transition probabilities of a random Markov chain (vocabulary, vocabulary)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2.5 * torch.randn(VOCABULARY, VOCABULARY, generator=generator), dim=1)


def texts(seed: int, rank: int, size: int, of: torch.Tensor) -> Iterator[Batch]:
    """Yield batches of text that a chain has written, without end: ids and next ids, each (size, context)."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    while True:
        ids = torch.randint(0, VOCABULARY, (size, 1), generator=generator)
        for _ in range(CONTEXT):
            drawn = torch.multinomial(of[ids[:, -1]], 1, generator=generator)
            ids = torch.cat([ids, drawn], dim=1)
        yield ids[:, :-1], ids[:, 1:]


def points(seed: int, rank: int, size: int, centres: torch.Tensor) -> Iterator[Batch]:
    """Yield batches of noisy points around the centres of their classes, without end."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    while True:
        classes = torch.randint(0, CLASSES, (size,), generator=generator)
        noise = torch.randn(size, FEATURES, generator=generator)
        yield centres[classes] + noise, classes


def centres(seed: int) -> torch.Tensor:
    """Return the centres of the classes (classes, features)."""
    return torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean cross entropy of a batch."""
    logits = model(batch[0])
    return functional.cross_entropy(logits.flatten(0, -2), batch[1].flatten())
