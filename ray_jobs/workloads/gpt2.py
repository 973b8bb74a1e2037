"""GPT-2 workload: a model with new weights, on one of the text sources."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from control_plane.core.model.errors import Invalid
from ray_jobs.config.run_config import DataSettings, ModelSettings, RunConfig
from ray_jobs.data.mixture.dataset import MixtureDataset
from ray_jobs.data.mixture.making import NO_LABEL, TOKENS, Making, Tokens
from ray_jobs.data.mixture.sample_cache import SampleCache
from ray_jobs.data.mixture.shards import Record
from ray_jobs.data.sample_order import Corpus, Ids, TokenBlocks, unigram_entropy
from ray_jobs.workloads import stdlib_text, wikitext2
from ray_jobs.workloads.vocabulary import END_OF_TEXT, TokenizedCorpus, tokenized, tokenizer_of
from ray_jobs.workloads.workload import Workload

log = logging.getLogger(__name__)


class Documents:
    """Transform of a record with a `text`: its first `block_size` tokens, filled up with the end of the text.

    Tensors `input_ids`, `labels` and `attention_mask`, int64, shape `(block_size,)`.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, block_size: int) -> None:
        self._tokenizer, self._block_size = tokenizer, block_size

    def making(self, is_packed: bool) -> Making:
        """Return how samples are made: tokens once a node, then one document a sample, or blocks of several."""
        text = f"{self._tokenizer.to_str()} {END_OF_TEXT}"
        fingerprint = f"gpt2 {hashlib.sha256(text.encode()).hexdigest()}"
        if is_packed:
            return Making.packed(self.tokens, self._block_size, fingerprint, END_OF_TEXT)
        return Making(make := Tokens(self.tokens), SampleCache(make, f"tokens {fingerprint}"), self.cut)

    def __call__(self, record: Record) -> dict[str, torch.Tensor]:
        """Return the sample of a record. Raises `Invalid` if it has no text."""
        return self.cut({TOKENS: self.tokens(record)})

    def tokens(self, record: Record) -> list[int]:
        """Return all tokens of a record, and the end of the text. Raises `Invalid` if it has no text."""
        text = record.get("text")
        if not isinstance(text, str):
            raise Invalid(f"a record of the sources has no text, but {', '.join(record) or 'nothing'}")
        return [*self._tokenizer.encode(text).ids, END_OF_TEXT]

    def cut(self, made: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
        """Return the sample of a record's tokens."""
        ids = torch.full((self._block_size,), END_OF_TEXT)
        tokens = torch.tensor([*made[TOKENS][:-1][: self._block_size - 1], END_OF_TEXT])
        ids[: len(tokens)] = tokens
        mask = (torch.arange(self._block_size) < len(tokens)).long()
        return {TOKENS: ids, "labels": ids.masked_fill(mask == 0, NO_LABEL), "attention_mask": mask}


def build(config: RunConfig, folder: Path | None = None) -> Workload:
    """Build the model and the data of a config. The weights depend on `config.seed` only.

    With `sources` it trains on their texts, and evaluates on `data`. `folder` holds the shards of live sources.
    """
    if config.model is None or config.data is None:
        raise Invalid(f"{config.name}: workload.kind is gpt2, which also needs model and data.")
    corpus = _corpus(config.data)
    tokens = tokenized(corpus, config.data.vocab_size)
    model = fresh_model(config.model, config.data, tokens.vocab_size, config.seed)
    train = _blocks(tokens.train, config.data, "train")
    evaluation = _blocks(tokens.evaluation, config.data, "evaluation")
    facts: dict[str, float | str] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": tokens.vocab_size,
        "train_tokens": train.blocks.size,
        "eval_tokens": evaluation.blocks.size,
        "unigram_entropy_nats": unigram_entropy(evaluation.blocks.ravel()),
        "tokens_digest": _digest(tokens),
    }
    log.info("gpt2: %s", ", ".join(f"{name} {value}" for name, value in facts.items()))
    if not config.sources:
        return Workload(model, train, evaluation, facts)
    documents = Documents(tokenizer_of(corpus, config.data.vocab_size), config.data.block_size)
    mixing, making = config.mixture, documents.making(config.mixture.unit == "packed")
    mixed = MixtureDataset(config.sources, config.seed, making, mixing.temperature, folder, mixing.planned())
    del facts["train_tokens"]
    first = "first_blocks" if making.block_size is not None else "first_records"
    return Workload(model, mixed, evaluation, facts | {first: len(mixed)})


def _corpus(data: DataSettings) -> Corpus:
    return stdlib_text.read(data) if data.source == "stdlib" else wikitext2.read(data)


def fresh_model(shape: ModelSettings, data: DataSettings, vocab_size: int, seed: int) -> GPT2LMHeadModel:
    """Build a GPT-2 of this shape. Its weights depend on the seed only, so they are the same on every rank."""
    gpt2 = GPT2Config(
        vocab_size=vocab_size,
        n_positions=data.block_size,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        resid_pdrop=shape.dropout,
        embd_pdrop=shape.dropout,
        attn_pdrop=shape.dropout,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        use_cache=False,
    )
    with torch.random.fork_rng():  # the caller's own random state stays as it was
        torch.manual_seed(seed)
        return GPT2LMHeadModel(gpt2)


def _blocks(ids: Ids, data: DataSettings, split: str) -> TokenBlocks:
    blocks = TokenBlocks(ids, data.block_size)
    if not len(blocks):
        raise Invalid(
            f"The {split} text of data.source {data.source} has {len(ids)} tokens, "
            f"which is less than one block of data.block_size {data.block_size}."
        )
    return blocks


def _digest(tokens: TokenizedCorpus) -> str:
    digest = hashlib.sha256()
    for ids in (tokens.train, tokens.evaluation):
        digest.update(np.ascontiguousarray(ids, dtype="<i4").tobytes())
    return digest.hexdigest()
