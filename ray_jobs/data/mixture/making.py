"""Making of samples from records: as they are asked for, from a cache, or packed into blocks of equally many tokens.

Making(tokenize)                                            # each time that a record is drawn
Making(tokenize, SampleCache(tokenize, "my-tokens-1"))      # once a node
Making.packed(tokenize, 128, "my-tokens-1")                 # whole documents in blocks of 128 tokens
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from control_plane.core.model.errors import Invalid
from ray_jobs.data.mixture.packing import Block, Piece
from ray_jobs.data.mixture.sample_cache import SampleCache
from ray_jobs.data.mixture.shards import Record

TOKENS = "input_ids"
"""Name of a sample's tokens, as models of Transformers take them."""

NO_LABEL = -100
"""Label of a token that the loss leaves out."""

MAX_BLOCK = 1 << 20

Transform = Callable[[Record], Any]


@dataclass(frozen=True)
class Making:
    """How samples are made.

    transform: makes a sample of a record; None: the record is the sample.
    cache: keeps what a `transform` made; None: nothing is kept.
    finish: makes the sample of what the cache has kept.
    block_size: tokens of a block, where documents are packed; None: a sample is a record.
    filler: token that fills a source's last block up.
    """

    transform: Transform | None = None
    cache: SampleCache | None = None
    finish: Callable[[Any], Any] | None = None
    block_size: int | None = None
    filler: int = 0

    @classmethod
    def packed(cls, tokenize: Transform, block_size: int, fingerprint: str, filler: int = 0) -> Self:
        """Return the making of blocks from the tokens that `tokenize` makes of a record. Raises `Invalid`."""
        if not 2 <= block_size <= MAX_BLOCK:
            raise Invalid(f"a block has 2 to {MAX_BLOCK:,} tokens, not {block_size}")
        make = Tokens(tokenize)
        return cls(make, SampleCache(make, f"tokens {fingerprint}"), None, block_size, filler)

    def sample(self, made: Any) -> Any:
        """Return the sample of what was made of a record; where documents are packed, its first block."""
        if self.block_size is not None:
            return self._filled(made[TOKENS][: self.block_size], self.block_size)
        return made if self.finish is None else self.finish(made)

    def block(self, block: Block, tokens: Callable[[Piece], npt.NDArray[Any]]) -> dict[str, torch.Tensor]:
        """Return a packed sample: `input_ids`, `labels` and `attention_mask`, int64, shape `(block_size,)`.

        `tokens` returns all tokens of a piece's document. Nothing keeps the documents of a block apart, but what
        `tokenize` puts at their ends.
        """
        assert self.block_size is not None
        parts = [tokens(piece)[piece.begin : piece.end] for piece in block.pieces]
        return self._filled(np.concatenate(parts), self.block_size)

    def _filled(self, tokens: npt.NDArray[Any], size: int) -> dict[str, torch.Tensor]:
        ids = torch.full((size,), self.filler)
        ids[: len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        mask = (torch.arange(size) < len(tokens)).long()
        return {TOKENS: ids, "labels": ids.masked_fill(mask == 0, NO_LABEL), "attention_mask": mask}


class Tokens:
    """Transform of a record into its tokens alone, as whole numbers of one type."""

    def __init__(self, tokenize: Transform) -> None:
        self._tokenize = tokenize

    def __call__(self, record: Record) -> dict[str, npt.NDArray[np.int32]]:
        """Return the tokens of a record. Raises `Invalid` if `tokenize` made none."""
        made = self._tokenize(record)
        ids = made.get(TOKENS) if isinstance(made, Mapping) else made
        try:
            tokens = np.asarray(ids)
        except ValueError:
            tokens = np.zeros((0, 0))
        if tokens.ndim != 1 or (len(tokens) and tokens.dtype.kind not in "iu"):
            raise Invalid(
                f"what is packed must be tokens: a list of whole numbers, or a mapping with '{TOKENS}', and not "
                f"{type(ids).__name__}"
            )
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < 2**31:
            raise Invalid("tokens must be from 0 to 2147483647")
        return {TOKENS: tokens.astype(np.int32)}
