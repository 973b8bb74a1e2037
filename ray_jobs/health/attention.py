"""Attention of the blocks: entropy of its weights, largest logit, and spectral entropy of the QK product.

Read from torch's own calls in a forward pass, whatever the model calls its modules: from the queries and keys that
`scaled_dot_product_attention` gets (after rotary embeddings and norms), or from the logits that `softmax` gets inside
of a block. Attention kernels of other packages are not seen; then the signs are missing.

Of the first sample, the first `tokens` tokens and a few heads are copied to host memory; the rest is computed there.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import log, sqrt
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

MAX_HEADS = 4
"""Heads of a block that are looked at, evenly spread: each costs a singular value decomposition."""

MASKED = -3e4
"""Logits at or below this are masked: masks add the least number of fp16, bf16 or fp32, or set minus infinity."""

SOFTMAX = (torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Queries and keys of a few heads (heads, tokens, width), or their logits (heads, queries, keys)."""

    tensors: tuple[torch.Tensor, ...]
    scale: float = 1.0
    is_causal: bool = False


class AttentionWatch:
    """Watch over the attention calls of chosen blocks in one forward pass."""

    def __init__(self, tokens: int, blocks: Sequence[str], layers: int) -> None:
        self._tokens = tokens
        count = min(layers, len(blocks))
        self._chosen = {blocks[index * len(blocks) // count] for index in range(count)} if count else set()
        self._block: str | None = None
        self._samples: dict[str, _Sample] = {}
        self._mode: _Watch | None = None
        self._event: torch.cuda.Event | None = None

    def enter(self) -> None:
        """Begin to watch torch's calls."""
        self._mode = _Watch(self._see)
        self._mode.__enter__()

    def leave(self) -> None:
        """End the watch."""
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None
        if torch.cuda.is_available() and self._samples:
            self._event = torch.cuda.Event()
            self._event.record()

    def begin(self, block: str) -> None:
        """Note that the forward pass has entered a block."""
        self._block = block if block in self._chosen else None

    def end(self) -> None:
        """Note that it has left the block."""
        self._block = None

    def forget(self) -> None:
        """Drop what was seen."""
        self.leave()
        self._samples, self._block, self._event = {}, None, None

    def signs(self) -> dict[str, float]:
        """Return the signs of every block that was seen."""
        if self._event is not None:
            self._event.synchronize()
        signs: dict[str, float] = {}
        for block, sample in self._samples.items():
            signs |= {f"{sign}/{block}": value for sign, value in _signs(sample).items()}
        return signs

    def _see(self, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._block is None or self._block in self._samples or torch.compiler.is_compiling():
            return
        sample = None
        if function is torch.nn.functional.scaled_dot_product_attention:
            sample = self._of_call(*arguments, **named)
        elif function in SOFTMAX and arguments and isinstance(arguments[0], torch.Tensor):
            sample = self._of_logits(arguments[0])
        if sample is not None:
            self._samples[self._block] = sample

    def _of_call(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: object,
        attn_mask: object = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> _Sample | None:
        if query.dim() != 4 or key.dim() != 4:
            return None
        heads, groups = query.shape[1], key.shape[1]
        chosen = _spread(heads)
        shared = heads // groups if groups else 1  # query heads that share a key head
        queries = self._copied(query[0, chosen, : self._tokens])
        keys = self._copied(key[0, [head // max(1, shared) for head in chosen], : self._tokens])
        width = sqrt(query.shape[-1])
        # A mask of a language model is causal as well; one that is not hides less than that.
        causal = is_causal or (attn_mask is not None and query.shape[-2] == key.shape[-2])
        return _Sample((queries, keys), 1 / width if scale is None else float(scale), causal)

    def _of_logits(self, logits: torch.Tensor) -> _Sample | None:
        if logits.dim() != 4 or logits.shape[-1] < 2:
            return None
        part = logits[0, _spread(logits.shape[1]), : self._tokens, : self._tokens]
        return _Sample((self._copied(part),))

    def _copied(self, part: torch.Tensor) -> torch.Tensor:
        part = part.detach()
        if not part.is_cuda:
            return part.clone()
        host = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        return host.copy_(part, non_blocking=True)


class _Watch(TorchFunctionMode):
    """Mode of torch that shows each call to a function, and changes none."""

    def __init__(self, see: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], None]) -> None:
        self._see = see

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        # A call with unknown arguments is the model's own business; it is not measured.
        with suppress(TypeError, IndexError, RuntimeError), torch.no_grad():
            self._see(func, args, named)
        return func(*args, **named)


def _spread(heads: int) -> list[int]:
    count = min(heads, MAX_HEADS)
    return [index * heads // count for index in range(count)]


def _signs(sample: _Sample) -> dict[str, float]:
    if len(sample.tensors) == 1:
        return _of_logits(sample.tensors[0].double())
    queries, keys = (tensor.double() for tensor in sample.tensors)
    logits = queries @ keys.transpose(-1, -2) * sample.scale
    if sample.is_causal:
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        logits = logits.masked_fill(hidden, -torch.inf)
    return _of_logits(logits) | {"qk_entropy": spectral_entropy(queries, keys)}


def _of_logits(logits: torch.Tensor) -> dict[str, float]:
    """Return largest logit and mean entropy. `logits`: heads, queries, keys; what is masked is very small or -inf."""
    seen = logits > MASKED
    signs = {"attention_logit_max": float(logits[seen].max()) if bool(seen.any()) else float("nan")}
    weights = torch.softmax(logits, dim=-1)
    # A query that sees one key has no choice, and no entropy to compare.
    choices = seen.sum(dim=-1).double()
    entropy = torch.special.entr(weights).sum(dim=-1) / choices.clamp(min=2).log()
    if bool((choices > 1).any()):
        signs["attention_entropy"] = float(entropy[choices > 1].mean())
    return signs


def spectral_entropy(queries: torch.Tensor, keys: torch.Tensor) -> float:
    """Return the mean over heads of -sum p ln p / ln m, where p are the normalised singular values of QK^T.

    Args: heads, tokens, width, in float64; m is the smaller of tokens and width. Source: arXiv 2606.28116. From the
    triangular factors of Q and K, whose product has the same singular values and is no larger than the width.
    """
    if not (bool(torch.isfinite(queries).all()) and bool(torch.isfinite(keys).all())):
        return float("nan")
    left = torch.linalg.qr(queries, mode="r").R
    right = torch.linalg.qr(keys, mode="r").R
    values = torch.linalg.svdvals(left @ right.transpose(-1, -2))
    most = values.shape[-1]
    total = values.sum(dim=-1, keepdim=True)
    if most < 2 or bool((total == 0).any()):
        return 0.0
    return float((torch.special.entr(values / total).sum(dim=-1) / log(most)).mean())
